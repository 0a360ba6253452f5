"""What every setting may be: a list of all of them with their ranges, and any value at all for each."""

import dataclasses
import functools
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as profile
from hypothesis import strategies as st

from lm.arguments import parse_train
from lm.cli import main
from lm.config import Experiment, parse_duration
from lm.errors import UserError, print_once
from lm.settings import annotations, flatten, from_dict, replace, surprises, to_dict
from lm.typed import Range, divide, hints

COUNT, BELOW_ONE = (1, 2**31 - 1), (0, 1 - 2**-24)
TINY, HUGE = 2.0**-126, (2 - 2**-23) * 2.0**127
POSITIVE, NOT_NEGATIVE = (TINY, HUGE), (0, HUGE)
RANGES = {
    "model.layers": COUNT, "model.width": COUNT, "model.heads": COUNT, "model.kv_heads": COUNT,
    "model.head_width": COUNT, "model.feedforward": COUNT, "model.context": COUNT, "model.vocab": COUNT,
    "model.vocab_multiple": COUNT, "model.norm_epsilon": POSITIVE, "model.rotary_base": POSITIVE,
    "model.rotary_base_windowed": POSITIVE, "model.rotary_fraction": (TINY, 1), "model.rotary_skips": COUNT,
    "model.rotary_factor": POSITIVE, "model.rotary_context": COUNT, "model.attention_softcap": POSITIVE,
    "model.window": COUNT, "model.global_every": COUNT, "model.logit_softcap": POSITIVE, "model.dropout": BELOW_ONE,
    "model.vectors": COUNT, "parallel.data": COUNT, "parallel.model": COUNT,
    "model.unroll": COUNT, "model.base_width": COUNT, "model.base_head_width": COUNT, "model.base_layers": COUNT,
    "data.vocab": (258, 2**31 - 1), "data.validation": (TINY, 1 - 2**-24),
    "optimizer.learning_rate": POSITIVE, "optimizer.matrix_learning_rate": POSITIVE, "optimizer.beta1": BELOW_ONE,
    "optimizer.beta2": BELOW_ONE, "optimizer.momentum": BELOW_ONE, "optimizer.newton_schulz": (1, 100),
    "optimizer.epsilon": POSITIVE, "optimizer.weight_decay": NOT_NEGATIVE, "optimizer.clip": POSITIVE,
    "schedule.final": (0, 1), "schedule.context_start": COUNT, "train.batch": COUNT, "train.accumulation": COUNT,
    "train.seed": (0, 2**32 - 1), "train.label_smoothing": BELOW_ONE,
    "train.z_loss": NOT_NEGATIVE, "train.loss_chunk": COUNT, "train.eval_tokens": COUNT, "train.keep": COUNT,
    "train.diverged": (1 + 2**-23, HUGE), "optimizer.lora": COUNT, "optimizer.lora_alpha": POSITIVE,
    "feedback.beta": POSITIVE, "feedback.group": (2, 2**31 - 1), "feedback.max_tokens": COUNT,
    "feedback.updates": COUNT, "feedback.clip": POSITIVE,
}  # fmt: skip
"""Least and most of every number, of floats in float32."""
DURATIONS = {
    "schedule.warmup", "schedule.decay", "schedule.context_growth", "train.steps", "train.log_every",
    "train.eval_every", "train.checkpoint_every",
}  # fmt: skip
PARTS = {f.name: f.default_factory for f in dataclasses.fields(Experiment) if f.name != "name"}
FLOATS = {name: "float" in str(hints(PARTS[part])[leaf]) for name in RANGES for part, leaf in [name.split(".")]}


def with_setting(name: str, value):
    """The part of an experiment with one setting changed."""
    part, leaf = name.split(".")
    return getattr(PARTS[part](**{leaf: value}), leaf)


def test_every_number_has_its_range():
    """The lists above are complete: a new setting is put there, with what it may be."""
    limited = {name: divide(hint)[1] for name, hint in annotations().items()}
    numbers = {name for name, limit in limited.items() if isinstance(limit, Range)}
    assert numbers == set(RANGES)
    assert {name for name, limit in limited.items() if limit is not None} - numbers == DURATIONS
    flat = flatten(to_dict(Experiment()))
    assert {name for name, value in flat.items() if type(value) in (int, float)} <= numbers | DURATIONS


whole = st.integers(-10, 10) | st.integers(-(2**70), 2**70) | st.sampled_from([2**31, 2**32, 2**64, 10**400])
real = st.floats(width=32) | st.floats() | st.sampled_from([math.nan, math.inf, -math.inf, 1e300, 1e-50, 1 - 1e-12])
others = st.booleans() | st.none() | st.text(max_size=5) | st.just([]) | st.just({})
foreign = st.sampled_from([np.float32("nan"), np.float64(0.5), np.int64(2**40), np.bool_(True), np.uint8(3)])


@given(st.sampled_from(sorted(RANGES)), whole | real | others | foreign)
@profile(max_examples=1500, deadline=None, derandomize=True)
def test_a_number_is_within_its_range_or_refused(name, value):
    """Any value at all, in Python and as JSON: a setting holds a number within its range, or refuses on one line."""
    least, most = RANGES[name]
    try:
        held = with_setting(name, value)
    except UserError as refusal:
        assert "\n" not in str(refusal) and len(str(refusal)) < 300
        assert not (
            FLOATS[name] and type(value) is float and least <= value <= most and least <= float32(value) <= most
        )
        return
    assert held == (float(value) if FLOATS[name] and value is not None else value)
    if held is not None:
        assert type(held) in (int, float)
        assert least <= (float32(held) if FLOATS[name] else held) <= most
        part, leaf = name.split(".")
        again = from_dict(json.loads(json.dumps({leaf: held})), PARTS[part], f"{part}.")
        assert getattr(again, leaf) == held


def float32(value: float) -> float:
    with np.errstate(over="ignore"):
        return float(np.float32(value))


def nested(name: str, value) -> dict:
    part, leaf = name.split(".")
    return {part: {leaf: value}}


@pytest.mark.parametrize("name", sorted(RANGES))
def test_the_ends_of_each_range(name):
    """The ends are refused just outside; from overrides, JSON and Python alike, with the same words."""
    least, most = RANGES[name]
    step = 1 if type(most) is int and name != "schedule.final" else None
    outside = [least - 1 if step else least - 1e-3, most + 1 if step else min(most * (1 + 2e-7), 1e300)]
    for value in [*outside, math.nan, math.inf, True]:
        value = value if isinstance(value, bool | int) else float(value)
        with pytest.raises(UserError) as made:
            with_setting(name, value)
        assert str(made.value).startswith(name)
        for read, argument in (
            (functools.partial(replace, Experiment()), {name: value}),
            (from_dict, nested(name, value)),
        ):
            with pytest.raises(UserError) as again:
                read(argument)
            assert str(again.value) == str(made.value)


def test_numbers_too_long_to_be_written_are_refused():
    """Python itself refuses to turn more than 4,300 digits into text."""
    for name in (*RANGES, *DURATIONS):
        with pytest.raises(UserError, match=r"of 16610 bits: "):
            with_setting(name, 10**5000)


@given(st.sampled_from(sorted(DURATIONS)), whole | real | others | st.from_regex(r"[0-9e._]{1,9} ?(k|G|%| epochs)?"))
@profile(max_examples=500, deadline=None, derandomize=True)
def test_a_duration_is_finite_or_refused(name, value):
    try:
        held = with_setting(name, value)
    except UserError as refusal:
        assert "\n" not in str(refusal) and len(str(refusal)) < 300
        return
    amount, unit = parse_duration(held)
    assert 0 <= amount < (2**31 if unit == "steps" else 2**63)
    assert amount > 0 or name.startswith("schedule.")


@pytest.mark.parametrize(
    "override, said",
    [
        (("--train.seed", str(2**64)), "train.seed 18446744073709551616: must be at least 0 and below 2^32"),
        (("--optimizer.learning-rate", "inf"), "optimizer.learning_rate inf: must be above 0 and finite"),
        (("--optimizer.epsilon", "1e-50"), "optimizer.epsilon 1e-50: must be above 0 and finite in float32, where it"),
        (("--model.head-width", str(2**32)), "model.head_width 4294967296: must be at least 1 and below 2^31"),
        (("--train.steps", "1e12"), "train.steps '1e12': must be below 2^31 steps"),
    ],
)
def test_overrides_are_refused_on_one_line(capsys, workplace, override, said):
    assert main(["train", "quickstart", *override]) == 2
    out, err = capsys.readouterr()
    assert not out and err.count("\n") == 1 and said in err


MUON = "under muon optimizer.learning_rate leaves hidden matrices alone: their matrix_learning_rate is 0.02"


@pytest.mark.parametrize(
    "values, changed, told",
    [
        ({"optimizer.name": "muon"}, ["optimizer.learning_rate"], [MUON]),
        ({"optimizer.name": "muon"}, ["optimizer.learning_rate", "optimizer.matrix_learning_rate"], []),
        ({}, ["optimizer.learning_rate"], []),
        ({}, ["optimizer.momentum"], ["optimizer.momentum does nothing under optimizer.name adamw"]),
        ({}, ["schedule.decay", "train.seed"], ["schedule.decay does nothing under schedule.name cosine"]),
        ({"data.tokenizer": "bpe"}, ["data.vocab"], []),
        ({}, ["schedule.context_growth"], ["schedule.context_growth does nothing without schedule.context_start"]),
        ({"schedule.context_start": 64}, ["schedule.context_growth"], []),
    ],
)
def test_overrides_say_what_they_leave_alone(values, changed, told):
    assert surprises(replace(Experiment(), values), changed) == told


def test_the_command_says_what_an_override_leaves_alone(capsys, workplace):
    """Once, on standard error, in training and in a sweep's grid; before anything else happens."""
    (workplace / "configs").mkdir()
    (workplace / "configs" / "m.py").write_text(
        "import lm\nexperiment = lm.replace(lm.Experiment(), {'optimizer.name': 'muon'})\n"
    )
    parse_train(["m", "--optimizer.learning-rate=0.01"])
    assert capsys.readouterr().err == f"lm: {MUON}\n"
    from lm.commands.sweep import Options, _experiments

    print_once.cache_clear()
    _experiments("m", Options(grid=("optimizer.learning-rate=0.01,0.02",)), [])
    assert capsys.readouterr().err == f"lm: {MUON}\n"
