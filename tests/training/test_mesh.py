"""A mesh computes what one device does: the same initial bits, the same losses, in less memory and fewer FLOPs each.

In a process of its own, where a CPU counts as eight devices (on_eight_devices.py).
"""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny

from lm.config import Experiment, ModelConfig, ParallelConfig, RecurrentConfig, TrainConfig
from lm.errors import UserError
from lm.model.api import build
from lm.parallel import mesh_of, require_rows, spec
from lm.settings import require_packable
from lm.sweep.jobs import Job, packs
from lm.training.dry_run import dry_run

HERE = Path(__file__).parent
SHORT = [
    "adamw:transformer:1x1", "adamw:transformer:8x1", "adamw:transformer:8x1:fsdp", "muon:transformer:1x1",
    "muon:transformer:8x1", "muon:transformer:4x2:fsdp",
]  # fmt: skip
TOPOLOGIES = ("1x1", "8x1", "8x1:fsdp", "4x2:fsdp", "1x8", "2x1", "2x2", "2x4:fsdp")
OTHERS = ("adamw:lstm", "muon:lstm", "adamw:accumulated", "adamw:remat", "adamw:halves")
FULL = [f"{optimizer}:transformer:{shape}" for optimizer in ("adamw", "muon") for shape in TOPOLOGIES]
FULL += [f"{other}:{shape}" for other in OTHERS for shape in ("1x1", "8x1:fsdp", "4x2:fsdp")]


def on_eight_devices(folder: Path, way: str, cases: list[str]) -> dict[str, dict]:
    """What each case gave."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    paths = os.pathsep.join([str(HERE.parents[1]), str(HERE.parent)])
    command = [sys.executable, HERE / "on_eight_devices.py", folder / "kept", way, *cases]
    environment = os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": paths, "JAX_PLATFORMS": "cpu"}
    made = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr[-3000:]
    return json.loads(made.stdout.splitlines()[-1])


@pytest.fixture(
    scope="module", params=[pytest.param("short", marks=pytest.mark.gate), pytest.param("full", marks=pytest.mark.slow)]
)
def found(request, tmp_path_factory):
    way, cases = ("4x2:fsdp,1x1", SHORT) if request.param == "short" else ("4x2:fsdp,1x1,8x1,2x4:fsdp", FULL)
    return on_eight_devices(tmp_path_factory.mktemp("mesh"), way, cases)


def alone(case: str) -> str:
    """The same on one device."""
    return ":".join([*case.split(":")[:2], "1x1"])


def test_a_mesh_computes_what_one_device_does(found):
    """Loss and gradient norm of the fourth step, grouped heads that do and do not divide, and the first bits."""
    for case, figures in found["cases"].items():
        plain = found["cases"][alone(case)]
        assert figures["loss"] == pytest.approx(plain["loss"], abs=1e-5), case
        assert figures["gradient_norm"] == pytest.approx(plain["gradient_norm"], rel=1e-4), case
        assert figures["digest"] == plain["digest"], case


def test_fsdp_keeps_an_eighth_and_gathers_a_layer_at_a_time(found):
    """Left to itself XLA cuts the residual stream instead, and takes four times the temporaries."""
    whole, fsdp, data = (found["cases"][f"adamw:transformer:{name}"] for name in ("1x1", "8x1:fsdp", "8x1"))
    assert fsdp["arguments"] <= whole["arguments"] / 7
    assert fsdp["temporaries"] <= 1.2 * data["temporaries"]
    assert fsdp["widest"] <= whole["widest"] / 8


def test_the_memory_of_a_state_is_planned_to_the_byte(found):
    for case, figures in found["cases"].items():
        assert figures["planned"] == figures["held"], case


def test_muon_is_not_repeated_on_every_device(found):
    """Each orthogonalises its own layers."""
    cases = found["cases"]
    assert cases["muon:transformer:8x1"]["flops"] <= 0.2 * cases["muon:transformer:1x1"]["flops"]


def test_checkpoints_restore_on_any_topology(found):
    """Parameters and optimizer, to the bit."""
    for case, figures in found["cases"].items():
        assert set(figures["restored"].values()) == {figures["saved"]}, case


def test_runs_of_a_pack_lie_on_devices_of_their_own(found):
    """Eight runs on eight devices exchange nothing, and the first is the run alone."""
    pack, alone = found["pack"], found["cases"]["adamw:transformer:1x1"]
    assert pack["devices"] == 8 and pack["exchanged"] == [] and len(set(pack["losses"])) == 8
    assert pack["losses"][0] == pytest.approx(alone["loss"], abs=1e-5)


def test_a_run_goes_on_from_one_mesh_to_another(found):
    """Every record within rounding of the run that stayed on one device: none missing, none twice."""
    alone, moved = found["moved"]["alone"], found["moved"]["moved"]
    assert [record["step"] for record in moved] == [record["step"] for record in alone]
    for one, other in zip(alone, moved, strict=True):
        for kind in ("loss", "val_loss"):
            assert other[kind] == (None if one[kind] is None else pytest.approx(one[kind], abs=1e-5)), one
        if one["gradient_norm"] is not None:
            assert other["gradient_norm"] == pytest.approx(one["gradient_norm"], rel=1e-4), one


def test_a_model_that_is_spread_says_what_it_says_on_one_device(found):
    """Evaluation, samples of ragged prompts, and probes; each device holds an eighth, also laid out to generate."""
    one, spread = found["moved"]["said"]
    assert all(there <= here / 7 for here, there in zip(one["held"], spread["held"], strict=True))
    assert spread["loss"] == pytest.approx(one["loss"], abs=1e-5)
    assert spread["tokens"] == one["tokens"]
    np.testing.assert_allclose(np.concatenate(spread["logprobs"]), np.concatenate(one["logprobs"]), atol=1e-5)
    assert [word for word, _ in spread["neighbours"]] == [word for word, _ in one["neighbours"]]
    np.testing.assert_allclose(spread["attention"], one["attention"], atol=1e-5)


def test_a_mesh_that_is_not_here_is_planned_by_formula(corpus):
    """Gathered at both passes in float32, its gradients scattered once; only gains of heads, [L, H], lie whole."""
    e = tiny.experiment(corpus, parallel__data=16, parallel__fsdp=True, train__batch=32)
    plan, other, gains = dry_run(e), 15 / 16, 2 * e.model.layers * 8
    alone = dry_run(dataclasses.replace(e, parallel=ParallelConfig(data=1, model=500)))
    assert plan.devices == 16 and plan.tokens_per_second is None and "by formula" in plan.table()
    assert plan.memory_parameters == 4 * ((plan.params_total - gains) // 16 + gains)
    gathered, scattered = plan.bytes_sent_per_step.values()
    assert gathered == round(2 * other * 4 * plan.params_total) and scattered == round(other * 4 * plan.params_total)
    assert alone.memory_parameters == 4 * plan.params_total, "nothing divides by 500"
    assert set(alone.bytes_sent_per_step) == {"activations"}
    with pytest.raises(UserError, match="is not a multiple of the 64 devices"):
        dry_run(tiny.replaced(e, parallel__data=64))


@pytest.mark.parametrize("words", [("sample",), ("eval",), ("probe", "attention", "the king")], ids=lambda w: w[0])
def test_verbs_that_load_a_run_are_told_what_to_spread_it_over(lm, tiny_run, words):
    verb, *rest = words
    status, out, error = lm(verb, tiny_run.path, *rest, "--parallel.data", 500, "--parallel.model", 2)
    assert (status, out) == (2, "") and error.startswith("lm: parallel.data 500 x parallel.model 2 are ")
    assert error.count("\n") == 1


SIZES = {"data": 4, "model": 2}


@pytest.mark.parametrize(
    "config", [ModelConfig.gpt2(), ModelConfig.llama("1B"), RecurrentConfig(vocab=100)], ids=["gpt2", "llama", "lstm"]
)
def test_every_parameter_lies_as_its_letters_say(config):
    """D over data with fsdp, hidden values, heads and the vocabulary over model, no mesh axis twice, no head cut."""
    model = build(config)
    gates = isinstance(config, RecurrentConfig)
    for leaf, axes in model.with_axes(model.shapes()):
        found = spec(axes, leaf.shape, SIZES, config.pieces, fsdp=True)
        for letter, name in zip(axes, found, strict=True):
            expected = {"D": "data", "V": "model", "F": None if gates else "model", "NH": "model", "KH": "model"}
            assert name == expected.get(letter), axes
    grouped = ModelConfig(heads=8, kv_heads=4)
    assert tuple(spec(("D", "KH"), (128, 64), {"data": 1, "model": 8}, grouped.pieces, fsdp=False)) == (None, None)


def test_what_does_not_go_is_refused_in_one_line():
    with pytest.raises(UserError, match=r"parallel\.data 3 x parallel\.model 1 are 3 devices, there are 2 here"):
        mesh_of(ParallelConfig(data=3), devices=[0, 1])
    with pytest.raises(UserError, match=r"parallel\.model 2 does not divide the 3 devices"):
        mesh_of(ParallelConfig(model=2), devices=[0, 1, 2])

    with pytest.raises(UserError, match=r"train\.batch 6 / train\.accumulation 2 is not a multiple of the 2 devices"):
        require_rows(2, 6, 2)
    cut = Experiment(parallel=ParallelConfig(fsdp=True))
    with pytest.raises(UserError, match="each run of a pack lies whole on one device"):
        require_packable([cut, dataclasses.replace(cut, name="other")])
    assert mesh_of(Experiment().parallel, devices=[0]) is None


@pytest.mark.parametrize(("cut", "sizes"), [({}, [2, 1]), ({"fsdp": True}, [1, 1, 1]), ({"model": 2}, [1, 1, 1])])
def test_a_sweep_packs_no_runs_that_are_cut_over_devices(cut, sizes):
    runs = [Experiment(parallel=ParallelConfig(**cut), train=TrainConfig(seed=seed)) for seed in range(3)]
    trunks = [(Job(run, run.steps(1_000_000), {}, 0, 0),) for run in runs]
    assert [len(pack) for pack in packs(trunks, most=2)] == sizes


def test_a_record_of_before_there_were_names_still_says_what_to_remember():
    assert ModelConfig(remat=True) == ModelConfig(remat="full") and ModelConfig(remat=False) == ModelConfig()
