"""What test_mesh.py runs in a process of its own, in which a CPU counts as eight devices. Prints one line of JSON.

python tests/training/on_eight_devices.py FOLDER TOPOLOGY...    each OPTIMIZER:MODEL:DATAxMODEL[:fsdp]
"""

import dataclasses
import json
import sys
from pathlib import Path

import jax
import numpy as np
import tiny

from lm import checkpoints, parallel, settings
from lm.config import Experiment, ModelConfig, RecurrentConfig, Steps, TrainConfig
from lm.training import step as steps
from lm.training.pack import make_pack

TRANSFORMER = ModelConfig(
    layers=8, width=32, heads=8, kv_heads=4, context=16, feedforward=64, vocab=64, dtype="float32", unroll=1
)
LSTM = RecurrentConfig(layers=2, width=32, context=16, vocab=64, dtype="float32")
TIMES = Steps(total=100, warmup=0, decay=0, log_every=100, eval_every=100, checkpoint_every=100)


def experiment(case: str) -> Experiment:
    """The experiment that a topology's name describes."""
    optimizer, model, shape, *fsdp = case.split(":")
    data, across = map(int, shape.split("x"))
    train = TrainConfig(batch=16, accumulation=2 if model == "accumulated" else 1)
    e = Experiment(model=LSTM if model == "lstm" else TRANSFORMER, train=train)
    if model == "remat":
        e = dataclasses.replace(e, model=dataclasses.replace(TRANSFORMER, remat="dots"))
    changes = {
        "parallel.data": data,
        "parallel.model": across,
        "parallel.fsdp": bool(fsdp),
        "optimizer.name": optimizer,
    }
    return settings.replace(e, changes)


def measure(case: str, folder: Path) -> dict:
    """What four steps on a topology give, and what XLA says of their program."""
    e = experiment(case)
    state = steps.init_state(e)
    digest = checkpoints.digest(state.params)
    widest = max(shard.data.nbytes for leaf in jax.tree.leaves(state.params) for shard in leaf.addressable_shards[:1])
    pack = make_pack([state], [steps.hyperparameters(e, TIMES)], e, None)
    store = pack.place(np.random.default_rng(0).integers(0, 64, 2000).astype(np.int32))
    windows = [np.random.default_rng(1).integers(0, 2000, (4, 16)).astype(np.int32)]
    with parallel.using(pack.mesh):
        calls = pack._calls(store, windows, [4])[0]
        pack.compiled = pack.train_steps.lower(*calls).compile(compiler_options=tiny.QUICK)
    [report] = pack.advance(store, windows, [4])
    plan, cost = pack.compiled.memory_analysis(), pack.compiled.cost_analysis()
    text = pack.compiled.as_text()
    found = {
        "loss": float(report["loss"]), "gradient_norm": float(report["gradient_norm"]), "digest": digest,
        "arguments": plan.argument_size_in_bytes, "temporaries": plan.temp_size_in_bytes, "widest": widest,
        "flops": cost["flops"], "collectives": {name: text.count(f" {name}(") for name in COLLECTIVES},
    }  # fmt: skip
    kept = checkpoints.Checkpoints(folder / case.replace(":", "_"), 1)
    kept.save(4, None, **steps.parts(pack.state(0)))
    kept.close()
    print(case, found, file=sys.stderr)
    return found | {"saved": checkpoints.digest(steps.parts(pack.state(0)))}


COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


def packed() -> dict:
    """What eight runs give, each on a device of its own, and what the devices say to each other meanwhile."""
    e = experiment("adamw:transformer:1x1")
    runs = [settings.replace(e, {"train.seed": seed}) for seed in range(8)]
    states, hypers = [steps.init_state(run) for run in runs], [steps.hyperparameters(run, TIMES) for run in runs]
    pack = make_pack(states, hypers, e, None, devices=None)
    store = pack.place(np.random.default_rng(0).integers(0, 64, 2000).astype(np.int32))
    windows = [np.random.default_rng(1).integers(0, 2000, (4, 16)).astype(np.int32)] * 8
    calls = pack._calls(store, windows, [4] * 8)[0]
    pack.compiled = pack.train_steps.lower(*calls).compile(compiler_options=tiny.QUICK)
    reports, text = pack.advance(store, windows, [4] * 8), pack.compiled.as_text()
    exchanged = [name for name in COLLECTIVES if f" {name}(" in text]
    return {"losses": [float(report["loss"]) for report in reports], "devices": pack.devices, "exchanged": exchanged}


def restored(case: str, other: str, folder: Path) -> str:
    """The digest of what a topology saved, restored on another."""
    abstract = steps.abstract_parts(experiment(other))
    loaded = checkpoints.load(folder / case.replace(":", "_"), 4, **abstract)
    places = jax.tree.map(lambda x, like: like.sharding in (None, x.sharding), loaded, abstract)
    assert all(jax.tree.leaves(places)), "it lies elsewhere"
    return checkpoints.digest(loaded)


if __name__ == "__main__":
    folder, cases = Path(sys.argv[1]), sys.argv[2:]
    folder.mkdir(parents=True)
    found = {case: measure(case, folder) for case in cases}
    for case in cases:
        alike = [other for other in cases if other.split(":")[:2] == case.split(":")[:2]]
        found[case]["restored"] = {other: restored(case, other, folder) for other in alike}
    print(json.dumps({"pack": packed(), "cases": found}))
