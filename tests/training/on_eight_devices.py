"""What test_mesh.py runs in a process of its own, in which a CPU counts as eight devices. Prints one line of JSON.

python tests/training/on_eight_devices.py FOLDER MESHES CASE...
  MESHES  where a run goes on, in order: DATAxMODEL[:fsdp],...
  CASE    OPTIMIZER:MODEL:DATAxMODEL[:fsdp]
"""

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
import tiny

import lm
from lm import checkpoints, parallel, settings
from lm.config import Experiment, ModelConfig, ParallelConfig, RecurrentConfig, Steps, TrainConfig
from lm.training import step as steps
from lm.training.across import share, sizes
from lm.training.memory import tree_bytes
from lm.training.pack import make_pack

TRANSFORMER = ModelConfig(
    layers=8, width=32, heads=8, kv_heads=4, context=16, feedforward=64, vocab=64, dtype="float32", unroll=1
)
LSTM = RecurrentConfig(layers=2, width=32, context=16, vocab=64, dtype="float32")
TIMES = Steps(total=100, warmup=0, decay=0, log_every=100, eval_every=100, checkpoint_every=100)


def experiment(case: str) -> Experiment:
    """The experiment that a topology's name describes."""
    optimizer, model, shape, *fsdp = case.split(":")
    train = TrainConfig(batch=16, accumulation=2 if model == "accumulated" else 1)
    e = Experiment(model=LSTM if model == "lstm" else TRANSFORMER, train=train)
    if model == "remat":
        e = dataclasses.replace(e, model=dataclasses.replace(TRANSFORMER, remat="dots"))
    e = dataclasses.replace(e, parallel=mesh(":".join([shape, *fsdp])))
    return settings.replace(e, {"optimizer.name": optimizer})


def mesh(shape: str) -> ParallelConfig:
    """What DATAxMODEL[:fsdp] stands for."""
    sizes, _, fsdp = shape.partition(":")
    data, model = map(int, sizes.split("x"))
    return ParallelConfig(data=data, model=model, fsdp=bool(fsdp))


def measure(case: str, folder: Path) -> dict:
    """What four steps on a topology give, and what XLA says of their program."""
    e = experiment(case)
    state = steps.init_state(e)
    digest = checkpoints.digest(state.params)
    held, planned = [tree_bytes(state.params), tree_bytes(state.optimizer)], share(e, *sizes(e)).memory
    widest = max(shard.data.nbytes for leaf in jax.tree.leaves(state.params) for shard in leaf.addressable_shards[:1])
    pack = make_pack([state], [steps.hyperparameters(e, TIMES)], e, None)
    pieces = 2 if ":halves:" in case else 1
    pack.read_in(pieces)
    store = pack.place(np.random.default_rng(0).integers(0, 64, 2000).astype(np.int32))
    windows = [np.random.default_rng(1).integers(0, 2000, (4, 16 * pieces)).astype(np.int32)]
    with parallel.using(pack.mesh):
        calls = pack._calls(store, windows, [4])[0]
        pack.compiled = pack.train_steps.lower(*calls).compile(compiler_options=tiny.QUICK)
    [report] = pack.advance(store, windows, [4])
    plan, cost = pack.compiled.memory_analysis(), pack.compiled.cost_analysis()
    text = pack.compiled.as_text()
    found = {
        "loss": float(report["loss"]), "gradient_norm": float(report["gradient_norm"]), "digest": digest,
        "held": held, "planned": [planned.parameters, planned.optimizer],
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


def moved(folder: Path, shapes: Sequence[str]) -> dict:
    """The records of a run that goes on from mesh to mesh, and those of one that was left alone on one device.

    Few steps: differences of rounding grow with every one of them.
    """
    (folder / "text.txt").write_text(tiny.text())
    heads = dict(model__heads=4, model__kv_heads=2, model__vocab_multiple=8)
    times = dict(train__steps=24, train__eval_every=8, train__checkpoint_every=6)
    e = tiny.experiment(folder / "text.txt", parallel__data=1, train__batch=8, **heads, **times)
    alone = lm.train(e, folder=folder / "alone", display=False)
    for number, shape in enumerate(shapes, 1):
        here, until = dataclasses.replace(e, parallel=mesh(shape)), e.train.steps * number // len(shapes)
        [run] = lm.train_pack([here], folder=folder / "moved", display=False, until=until)
    kinds = ("step", "loss", "val_loss", "gradient_norm")
    kept = [[{kind: record.get(kind) for kind in kinds} for record in one.metrics()] for one in (alone, run)]
    return {"alone": kept[0], "moved": kept[1], "said": [said(alone.path, shape) for shape in ("1x1", "4x2:fsdp")]}


def said(path: Path, shape: str) -> dict:
    """What a trained model says where it is spread over a mesh."""
    m = lm.load(path, parallel=mesh(shape))
    [space] = lm.probe.spaces_of(m, ["input"], words=tiny.WORDS, pieces="mean")
    samples = lm.generate(m, ["the king", "his"], lm.Sampler(temperature=0.8), max_tokens=6)
    return {
        "held": [tree_bytes(m.params), *(tree_bytes(m.model.lay_out(m.params, rows)) for rows in (1, 2))],
        "loss": lm.evaluate(m, tiny.text(200, seed=1)).loss,
        "tokens": [sample.tokens for sample in samples],
        "logprobs": [sample.logprobs for sample in samples],
        "neighbours": lm.probe.neighbours(space, "king", n=3).answers,
        "attention": lm.probe.attention_patterns(m, "the king").weights_LNTS.tolist(),
    }


def restored(case: str, other: str, folder: Path) -> str:
    """The digest of what a topology saved, restored on another."""
    abstract = steps.abstract_parts(experiment(other))
    loaded = checkpoints.load(folder / case.replace(":", "_"), 4, **abstract)
    places = jax.tree.map(lambda x, like: like.sharding in (None, x.sharding), loaded, abstract)
    assert all(jax.tree.leaves(places)), "it lies elsewhere"
    return checkpoints.digest(loaded)


if __name__ == "__main__":
    folder, way, cases = Path(sys.argv[1]), sys.argv[2], sys.argv[3:]
    folder.mkdir(parents=True)
    found = {case: measure(case, folder) for case in cases}
    for case in cases:
        alike = [other for other in cases if other.split(":")[:2] == case.split(":")[:2]]
        found[case]["restored"] = {other: restored(case, other, folder) for other in alike}
    print(json.dumps({"cases": found, "pack": packed(), "moved": moved(folder, way.split(","))}))
