"""Configurations: what they refuse and say, to JSON and back, overrides, the fingerprint."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as profile
from hypothesis import strategies as st

from lm.config import (
    DataConfig,
    Experiment,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainConfig,
    duration_steps,
    parse_duration,
)
from lm.errors import UserError
from lm.settings import FREE, fingerprint, flatten, from_dict, identity, replace, settings, to_dict

# --- any valid experiment --------------------------------------------------------------------------------------------
units = st.sampled_from(["", " steps", "k tokens", "M tokens", " epochs", "%"])
durations = st.integers(1, 10**6) | st.builds("{}{}".format, st.integers(1, 999), units)
positive = st.floats(1e-9, 1e9)
fractions = st.floats(0, 1, exclude_max=True, width=32)


@st.composite
def models(draw):
    kv_heads, groups, half = draw(st.integers(1, 4)), draw(st.integers(1, 3)), draw(st.integers(1, 16))
    window = draw(st.none() | st.integers(1, 99))
    return ModelConfig(
        layers=draw(st.integers(1, 99)),
        width=kv_heads * groups * 2 * half,
        heads=kv_heads * groups,
        kv_heads=draw(st.sampled_from([None, kv_heads])),
        feedforward=draw(st.none() | st.integers(1, 999)),
        vocab=draw(st.none() | st.integers(1, 99999)),
        norm=draw(st.sampled_from(["rmsnorm", "layernorm"])),
        positions=draw(st.sampled_from(["rotary", "learned", "sinusoidal", "none"])),
        activation=draw(st.sampled_from(["gelu", "gelu_exact", "relu", "relu2", "swiglu"])),
        window=window,
        global_every=window and draw(st.none() | st.integers(1, 9)),
        logit_softcap=draw(st.none() | positive | st.integers(1, 50)),
        dropout=draw(fractions),
        tied=draw(st.booleans()),
    )


optimizers = st.builds(
    OptimizerConfig,
    name=st.sampled_from(["adamw", "muon", "lion", "sgd"]),
    learning_rate=positive,
    weight_decay=positive | st.just(0),
    beta1=fractions,
    clip=st.none() | positive | st.just(1),
)
training = st.builds(
    TrainConfig, steps=durations, seed=st.integers(0, 2**31), eval_every=durations,
    trackers=st.lists(st.sampled_from(["tensorboard", "wandb"]), unique=True).map(tuple) | st.just(["wandb"]),
)  # fmt: skip
experiments = st.builds(
    Experiment,
    name=st.from_regex(r"[a-z0-9_+=-]{1,9}(/[a-z.]{3})?", fullmatch=True),
    model=models(),
    data=st.builds(DataConfig, corpus=st.text(min_size=1), separator=st.text(), validation=st.floats(0.01, 0.99)),
    optimizer=optimizers,
    schedule=st.builds(ScheduleConfig, warmup=durations, final=st.floats(0, 1) | st.sampled_from([0, 1])),
    train=training,
)


@given(experiments)
@profile(max_examples=50, deadline=None, derandomize=True)
def test_json_gives_back_the_same_experiment(experiment):
    """Through text and back: equal, with the same fingerprint, and to_dict holds plain JSON values only."""
    text = json.dumps(to_dict(experiment), allow_nan=False)
    again = from_dict(json.loads(text))
    assert again == experiment
    assert json.dumps(to_dict(again)) == text
    assert fingerprint(again, {}) == fingerprint(experiment, {})


def test_numbers_written_differently_are_the_same_setting():
    """weight_decay=0, 0.0 and NumPy's zero are one value, with one fingerprint; lists serve as tuples."""
    made = [Experiment(optimizer=OptimizerConfig(weight_decay=zero)) for zero in (0, 0.0, np.float32(0), np.int64(0))]
    assert len({fingerprint(experiment, {}) for experiment in made}) == 1
    assert all(type(experiment.optimizer.weight_decay) is float for experiment in made)
    assert type(ModelConfig(layers=np.int64(3)).layers) is int
    assert TrainConfig(trackers=["wandb"]).trackers == ("wandb",)


# --- what is refused -------------------------------------------------------------------------------------------------
REFUSED = [
    (ModelConfig, dict(layers=0), "model.layers 0: must be at least 1"),
    (ModelConfig, dict(layers="4"), "model.layers '4': expected int"),
    (ModelConfig, dict(layers=True), "model.layers True: expected int"),
    (ModelConfig, dict(layers=2.5), "model.layers 2.5: expected int"),
    (ModelConfig, dict(window=0), "model.window 0: must be at least 1 and below 2^31, or None"),
    (ModelConfig, dict(vocab=-3), "model.vocab -3: must be at least 1 and below 2^31, or None"),
    (ModelConfig, dict(width=100, heads=3), "model.width 100 is not a multiple of model.heads 3; change one"),
    (ModelConfig, dict(heads=4, kv_heads=3), "model.heads 4 is not a multiple of model.kv_heads 3: each key head"),
    (ModelConfig, dict(heads=4, kv_heads=8), "model.heads 4 is not a multiple of model.kv_heads 8"),
    (ModelConfig, dict(head_width=5), "model.head_width 5 is odd: rotary positions rotate pairs; use an even"),
    (ModelConfig, dict(dropout=1.0), "model.dropout 1.0: must be at least 0 and below 1"),
    (ModelConfig, dict(dropout=float("nan")), "model.dropout nan: must be at least 0 and below 1"),
    (ModelConfig, dict(norm_epsilon=0), "model.norm_epsilon 0.0: must be above 0 and finite"),
    (ModelConfig, dict(rotary_base=-1), "model.rotary_base -1.0: must be above 0 and finite"),
    (ModelConfig, dict(global_every=2), "model.global_every 2 needs model.window: without a window every layer is"),
    (ModelConfig, dict(layer_windows=(4,)), "model.layer_windows: 1 numbers for 4 layers; must be one of 0 or more"),
    (ModelConfig, dict(layers=1, layer_windows=(4,), window=2), "layer_windows and model.window: give one of the two"),
    (ModelConfig, dict(layers=1, layer_windows=(-4,)), "model.layer_windows: 1 numbers for 1 layers; must be one of 0"),
    (
        ModelConfig,
        dict(rotary_band=(4.0, 1.0)),
        "model.rotary_band (4.0, 1.0): must be two numbers above 0, the smaller",
    ),
    (ModelConfig, dict(rotary_fraction=0), "model.rotary_fraction 0.0: must be above 0 and at most 1"),
    (ModelConfig, dict(rotary_skips=2, positions="none"), "model.rotary_skips 2 needs model.positions rotary"),
    (ModelConfig, dict(parallel="one_norm", norm_place="post"), "model.parallel one_norm: needs model.norm_place pre"),
    (ModelConfig, dict(norm="layernom"), "model.norm 'layernom': one of rmsnorm, layernorm; did you mean layernorm?"),
    (ModelConfig, dict(positions="rotery"), "'rotery': one of rotary, learned, sinusoidal, none; did you mean rotary?"),
    (ModelConfig, dict(width=8, heads=2**30, head_width=8), "query, key and value axis would be 25,769,803,776 wide"),
    (ModelConfig, dict(width=2**29), "the feed-forward axis would be 2,147,483,648 wide; must be below 2^31"),
    (ModelConfig, dict(vocab=2**31 - 1), "the vocabulary axis would be 2,147,483,648 wide"),
    (DataConfig, dict(corpus=""), "data.corpus is empty: name a corpus or a path"),
    (
        DataConfig,
        dict(vocab=257),
        "data.vocab 257: must be at least 258 and below 2^31: 256 bytes, end of text and one more",
    ),
    (DataConfig, dict(validation=0), "data.validation 0.0: must be above 0 and below 1"),
    (OptimizerConfig, dict(learning_rate=0), "optimizer.learning_rate 0.0: must be above 0 and finite"),
    (OptimizerConfig, dict(beta2=1), "optimizer.beta2 1.0: must be at least 0 and below 1"),
    (OptimizerConfig, dict(weight_decay=-0.1), "optimizer.weight_decay -0.1: must be at least 0 and finite"),
    (OptimizerConfig, dict(clip=0), "optimizer.clip 0.0: must be above 0 and finite, or None"),
    (OptimizerConfig, dict(name="adam"), "optimizer.name 'adam': one of adamw, muon, lion, sgd; did you mean adamw?"),
    (ScheduleConfig, dict(final=2), "schedule.final 2.0: must be at least 0 and at most 1"),
    (ScheduleConfig, dict(warmup="soon"), "schedule.warmup 'soon': expected steps (2000), tokens (5M tokens)"),
    (TrainConfig, dict(steps=0), "train.steps 0: must be positive"),
    (TrainConfig, dict(steps=1e4), "train.steps 10000.0: expected int | str"),
    (TrainConfig, dict(seed=-1), "train.seed -1: must be at least 0 and below 2^32: JAX makes its keys from 32 bits"),
    (TrainConfig, dict(z_loss=-1), "train.z_loss -1.0: must be at least 0 and finite"),
    (TrainConfig, dict(batch=32, accumulation=5), "train.batch 32 is not a multiple of train.accumulation 5"),
    (
        TrainConfig,
        dict(diverged=1),
        "train.diverged 1.0: must be above 1 and finite: an untrained model's loss is ln V",
    ),
    (TrainConfig, dict(trackers=("wandbb",)), "'wandbb': one of tensorboard, wandb; did you mean wandb?"),
    (TrainConfig, dict(steps=10**400), "train.steps of 1329 bits: expected steps"),
    (TrainConfig, dict(seed=-(10**400)), "train.seed of 1329 bits: must be at least 0 and below 2^32"),
    (TrainConfig, dict(z_loss=10**400), "train.z_loss of 1329 bits: too large for a float"),
    (TrainConfig, dict(steps="9" * 400), "must be below 2^31 steps"),
    (TrainConfig, dict(eval_every="1e99 epochs"), "train.eval_every '1e99 epochs': must be below 2^63 epochs"),
    (
        Experiment,
        dict(schedule=ScheduleConfig(context_start=96)),
        "schedule.context_start 96: must be model.context 256 divided by a power of two",
    ),
    (Experiment, dict(schedule=ScheduleConfig(context_start=512)), "context_start 512: must be model.context 256"),
    (
        Experiment,
        dict(schedule=ScheduleConfig(context_start=64), data=DataConfig(examples="a.tsv")),
        "schedule.context_start 64: data.examples have rows of their own length; leave it out",
    ),
    (Experiment, dict(name="../elsewhere"), "name '../elsewhere': letters, digits and any of . _ - + ="),
    (Experiment, dict(name="."), "name '.': letters, digits"),
    (Experiment, dict(name="two words"), "name 'two words': letters, digits"),
    (Experiment, dict(model={"layers": 2}), "model {'layers': 2}: expected ModelConfig"),
]


@pytest.mark.parametrize("kind, values, message", REFUSED, ids=lambda case: str(case) if isinstance(case, dict) else "")
def test_nonsense_is_refused_where_it_is_made(kind, values, message):
    """One sentence with the setting, its value and what would be right; from JSON the same sentence."""
    with pytest.raises(UserError) as made:
        kind(**values)
    assert message in str(made.value)
    assert "\n" not in str(made.value)
    part = {ModelConfig: "model", DataConfig: "data", OptimizerConfig: "optimizer", ScheduleConfig: "schedule"}
    if kind is not Experiment:
        with pytest.raises(UserError) as read:
            from_dict({part.get(kind, "train"): values})
        assert str(read.value) == str(made.value)


@pytest.mark.parametrize(
    "values, message",
    [
        ({"model": {"layerz": 4}}, "model.layerz: no such setting; did you mean model.layers?"),
        ({"modle": {}}, "modle: no such setting"),
        ({"model": {"layers": "four"}}, "model.layers 'four': expected int"),
        ({"model": 4}, "model: expected "),
        ({"train": {"trackers": "wandb"}}, "train.trackers 'wandb': expected tuple"),
    ],
)
def test_mistakes_in_json_are_refused(values, message):
    with pytest.raises(UserError) as error:
        from_dict(values)
    assert str(error.value).startswith(message)


# --- shapes ----------------------------------------------------------------------------------------------------------
def test_unset_shapes_follow_from_the_others():
    """K, H, F, V and the windows; swiglu's F is 8/3 D, rounded up to a multiple of 8."""
    c = ModelConfig(width=96, heads=6, layers=4, vocab=50257, vocab_multiple=64, window=8, global_every=2)
    assert (c.K, c.H, c.F, c.V, c.windows) == (6, 16, 384, 50304, (8, None, 8, None))
    assert ModelConfig(width=100, heads=4, activation="swiglu", head_width=8).F == 272
    assert ModelConfig(kv_heads=2, head_width=6, feedforward=7).F == 7
    with pytest.raises(UserError, match=r"model\.vocab is not known yet: set it, or give a tokenizer"):
        _ = ModelConfig().V


# --- durations -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "text, steps",
    [
        (2000, 2000),
        ("2000", 2000),
        ("2_000 steps", 2000),
        ("1 step", 1),
        ("1.5k", 1500),
        ("1e3 steps", 1000),
        ("100 tokens", 10),
        ("5M tokens", 500_000),
        ("0.5 epochs", 200),
        ("1 epoch", 400),
        (" 25 % ", 50),
        ("12.6%", 25),
    ],
)
def test_durations_in_steps(text, steps):
    """With 10 tokens a batch, 4000 an epoch and 200 steps in all."""
    assert duration_steps(text, "x", batch_tokens=10, epoch_tokens=4000, total=200) == steps


@pytest.mark.parametrize(
    "text", ["", "soon", "-5", "5 minutes", "5 M T", "1__0", "1_", "%", "5%%", "1e999", "nan", "0x10"]
)
def test_bad_durations_are_refused(text):
    with pytest.raises(UserError, match=r"^x '.*': expected steps \(2000\), tokens \(5M tokens\), epochs .* or 5%$"):
        parse_duration(text, "x")


def test_a_percentage_needs_a_total():
    """The length of the run itself cannot be a percentage of it."""
    with pytest.raises(UserError, match=r"train\.steps '5%': a percentage needs a total; give steps, tokens or epochs"):
        Experiment(train=TrainConfig(steps="5%")).steps(1000)


def test_an_experiments_durations():
    """Percentages are of the run; whatever happens between steps happens at least every step."""
    experiment = Experiment(
        model=ModelConfig(context=10),
        schedule=ScheduleConfig(warmup="10%", decay="95%"),
        train=TrainConfig(batch=2, steps="2 epochs", log_every="1 tokens", eval_every="25%", checkpoint_every=30),
    )
    steps = experiment.steps(epoch_tokens=1000)
    assert dataclasses.asdict(steps) == dict(
        total=100, warmup=10, decay=90, log_every=1, eval_every=25, checkpoint_every=30, growth=0
    )
    with pytest.raises(UserError, match=r"train\.log_every '1G epochs': 5e\+10 steps; must be below 2\^31"):
        dataclasses.replace(experiment, train=TrainConfig(batch=2, log_every="1G epochs")).steps(1000)
    growing = dataclasses.replace(experiment, schedule=ScheduleConfig(context_start=5, context_growth="30%"))
    assert growing.steps(epoch_tokens=1000).growth == 30
    with pytest.raises(UserError, match=r"schedule\.context_growth 101 is longer than the run's 100 steps"):
        replace(growing, {"schedule.context_growth": 101}).steps(1000)
    with pytest.raises(UserError, match=r"schedule\.warmup 101 is longer than the run's 100 steps"):
        dataclasses.replace(experiment, schedule=ScheduleConfig(warmup=101)).steps(1000)


# --- overrides and the fingerprint -----------------------------------------------------------------------------------
def another(key, value):
    """A valid value other than the default."""
    special = {
        "name": "other", "model.heads": 2, "model.kv_heads": 2, "model.norm": "layernorm", "model.dtype": "bfloat16",
        "model.positions": "learned", "model.activation": "swiglu", "model.logit_softcap": 5.0,
        "optimizer.name": "lion", "data.validation_corpus": "kingdom", "schedule.name": "wsd",
        "train.trackers": ["wandb"], "model.width": 64, "model.head_width": 64, "model.global_every": 2,
        "train.accumulation": 2, "model.attention": "plain", "train.start": "runs/other", "model.mask": "prefix",
        "model.remat": "dots", "parallel.model": 2,
        "model.norm_place": "post", "data.examples": "other.tsv", "model.parallel": "one_norm",
        "model.rotary_scaling": "linear", "model.rotary_band": [1.0, 8.0], "model.layer_windows": [8, 8, 8, 0],
        "schedule.context_start": 64, "data.template": "plain", "feedback.reference": "runs/other",
        "feedback.reward": "rewards.py:reward",
    }  # fmt: skip
    if key in special:
        return special[key]
    if isinstance(value, bool):
        return not value
    if isinstance(value, str):
        return "7" if value[:1].isdigit() else value + "1"
    if value is None:
        return 3
    if isinstance(value, float):
        return 1.5 if key == "train.diverged" else value / 2 or 0.5
    return value * 2 or 1


@pytest.mark.parametrize("key", [key for key in settings() if key not in ("model.encoder", "train.objective")])
def test_the_fingerprint_follows_what_decides_what_is_learnt(key):
    """Every setting but the FREE ones changes it; replace changes that setting and no other. (Two do not go alone.)"""
    beside = {"model.window": None if key == "model.layer_windows" else 8}
    beside |= {"data.examples": "a.tsv"} if "vectors" in key else {}
    beside |= {"train.start": "runs/other"} if key == "optimizer.lora" else {}
    experiment = replace(Experiment(), beside)
    before = flatten(to_dict(experiment))
    changed = replace(experiment, {key: another(key, before[key])})
    after = flatten(to_dict(changed))
    assert [k for k in before if before[k] != after[k]] == [key]
    same = fingerprint(changed, {"data": "a"}) == fingerprint(experiment, {"data": "a"})
    assert same == (key in FREE)
    assert (key in identity(experiment)) == (key not in FREE)


def test_the_fingerprint_covers_data_and_tokenizer():
    """Other hashes, other fingerprint."""
    hashes = [{}, {"data": "a"}, {"data": "b"}, {"data": "a", "tokenizer": "c"}]
    assert len({fingerprint(Experiment(), given) for given in hashes}) == len(hashes)


def test_only_these_settings_may_change_when_a_run_resumes():
    """Names, the run's length, how often to look, and ways of computing the same numbers; nothing that is learnt."""
    names = {"name", "train.steps", "train.keep", "train.diverged", "train.trackers", "train.eval_tokens"}
    names |= {"train.log_every", "train.eval_every", "train.checkpoint_every"}
    assert (
        names
        | {
            "model.attention",
            "model.remat",
            "model.unroll",
            "train.loss_chunk",
            "parallel.data",
            "parallel.model",
            "parallel.fsdp",
        }
        == FREE
    )


def test_replace_refuses_what_there_is_not():
    """A typo with its nearest, a bad value as anywhere; several changes at once are checked together."""
    with pytest.raises(UserError, match=r"^model.layerz: no such setting; did you mean model.layers\?$"):
        replace(Experiment(), {"model.layerz": 4})
    with pytest.raises(UserError, match=r"model\.layers 0: must be at least 1"):
        replace(Experiment(), {"model.layers": 0})
    changed = replace(Experiment(), {"model.width": 90, "model.heads": 3})
    assert (changed.model.width, changed.model.heads, changed.model.layers) == (90, 3, 4)
