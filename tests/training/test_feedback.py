"""After pretraining: preferences, rewards and policies learn what they say they do, and resume to the bit."""

import dataclasses
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from lm.cli import main
from lm.config import Experiment, FeedbackConfig, ModelConfig
from lm.errors import UserError
from lm.model.api import Inputs, build
from lm.model.loss import Batch
from lm.run import load
from lm.sample.generate import generate
from lm.training.loop import train, train_pack
from lm.training.objectives import account, text_rewards, token_divergence
from lm.training.rollouts import advantages
from lm.training.step import hyperparameters

SHAPE = dict(layers=1, width=16, heads=2, feedforward=32, dtype="float32", unroll=1, context=8)
LETTERS = "abc"
REWARDS = """
def is_a(answer):
    return 1.0 if answer == "a" else 0.0

def right(prompt, answer, target):
    return float(answer == target)

def nowhere(answer):
    return float("nan")

def fails(answer):
    return answer["x"]

def asks(question):
    return 0.0

number = 3
"""


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a base model that answers one of three letters to two digits, files to learn from, and rewards."""
    folder, rng = tmp_path_factory.mktemp("feedback"), np.random.default_rng(0)
    prompts = [f"{a}{b}" for a in range(10) for b in range(10)]
    answers = rng.choice(list(LETTERS), 300, p=[0.2, 0.5, 0.3])
    rows = [dict(prompt=prompts[i % 100], completion=str(letter)) for i, letter in enumerate(answers)]
    written(folder / "answers.jsonl", rows)
    written(folder / "preferences.jsonl", [dict(prompt=p, chosen="a", rejected=r) for p in prompts for r in "bc"])
    (folder / "rewards.py").write_text(REWARDS)
    e = tiny.experiment("unused.txt", name="base", data__examples=str(folder / "answers.jsonl"), train__batch=16)
    e = tiny.replaced(e, optimizer__learning_rate=1e-2, data__validation=0.2)
    train(dataclasses.replace(e, model=dataclasses.replace(e.model, **SHAPE)), folder=folder, display=False)
    return folder


OBJECTIVES = {
    "preference": dict(data__examples="preferences.jsonl"),
    "reward": dict(data__examples="preferences.jsonl"),
    "policy": dict(feedback__reward="rewards.py:is_a", feedback__group=8, feedback__max_tokens=3),
    "lora": dict(optimizer__lora=2),
    "policy with adapters": dict(
        feedback__reward="rewards.py:is_a", feedback__group=8, feedback__max_tokens=3, optimizer__lora=2,
        feedback__updates=2,
    ),
}  # fmt: skip


def experiment(place, objective: str, **changes) -> Experiment:
    """What follows the base, by one of OBJECTIVES."""
    base = load(place / "base").experiment
    learnt = {"lora": "next_token", "policy with adapters": "policy"}.get(objective, objective)
    own = {
        key: str(place / value) if key in ("data__examples", "feedback__reward") else value
        for key, value in OBJECTIVES[objective].items()
    }
    settings = dict(
        name=objective.replace(" ", "-"), train__start=str(place / "base"), train__objective=learnt, train__steps=8,
        train__log_every=2, train__eval_every=4, train__checkpoint_every=4, train__eval_tokens=256,
        data__tokenizer=str(place / "base" / "tokenizer.json"), feedback__beta=0.5, optimizer__learning_rate=3e-3,
        schedule__warmup=0,
    )  # fmt: skip
    return tiny.replaced(base, **settings | own | changes)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_resumed_equals_uninterrupted(place, tmp_path, name):
    e = experiment(place, name)
    whole = train(e, folder=tmp_path / "whole", display=False)
    [stopped] = train_pack([e], folder=tmp_path / "cut", display=False, until=4)
    assert stopped.reached == 4 and not stopped.finished
    resumed = train(e, folder=tmp_path / "cut", display=False)
    assert tiny.same_bits(load(resumed).params, load(whole).params)
    assert tiny.logged(resumed) == tiny.logged(whole)
    begun = load(place / "base").params
    assert not tiny.same_bits(load(whole).params, begun)


def test_packed_equals_alone(place, tmp_path):
    """Policies that differ in beta, side by side."""
    each = [experiment(place, "policy", name=f"p{i}", feedback__beta=beta) for i, beta in enumerate((0.1, 1.0))]
    packed = train_pack(each, folder=tmp_path / "packed", display=False)
    for e, run in zip(each, packed, strict=True):
        alone = train(e, folder=tmp_path / "alone", display=False)
        assert tiny.same_bits(load(alone).params, load(run).params)


def test_a_policy_learns_what_is_rewarded(place, tmp_path):
    run = train(experiment(place, "policy", train__steps=40, train__batch=64), folder=tmp_path, display=False)
    records = [record for record in run.metrics() if "val_reward" in record]
    first, last = records[0], records[-1]
    assert first["val_divergence"] == pytest.approx(0, abs=1e-5) and first["val_reward"] < 0.4
    assert last["val_reward"] > first["val_reward"] + 0.2
    assert last["val_loss"] == pytest.approx(0.5 * last["val_divergence"] - last["val_reward"])
    assert {"reward", "divergence", "clipped"} <= records[-1].keys()


@pytest.mark.parametrize("per_token", [False, True])
def test_preferences_are_learnt(place, tmp_path, per_token):
    e = experiment(place, "preference", train__steps=40, feedback__per_token=per_token)
    records = train(e, folder=tmp_path, display=False).metrics()
    first, last = (next(r for r in some if "val_loss" in r) for some in (records, records[::-1]))
    assert first["val_loss"] == pytest.approx(np.log(2), abs=1e-5) and first["val_chosen"] == pytest.approx(0, abs=1e-5)
    assert last["val_right"] == 1 and last["val_chosen"] > last["val_rejected"] + 1
    assert last["val_loss"] < first["val_loss"] - 0.1


def test_a_run_that_learnt_rewards_rewards_a_policy(place, tmp_path, monkeypatch):
    judge = train(experiment(place, "reward", train__steps=40), folder=tmp_path, display=False)
    assert judge.metrics()[-1]["val_right"] == 1
    e = experiment(place, "policy", feedback__reward=str(judge.path), train__steps=40, train__batch=64)
    run = train(e, folder=tmp_path, display=False)
    m = load(run)
    said = generate(m, ["12"] * 64, max_tokens=3)
    begun = generate(load(place / "base"), ["12"] * 64, max_tokens=3)
    assert sum(s.text == "a" for s in said) > sum(s.text == "a" for s in begun) + 8
    # The reward that was logged is that of the judge, read from a plain full pass.
    j, end = load(judge), m.tokenizer.eot_token
    tokens = np.array([[end, *m.tokenizer.encode_ordinary("12a")]])
    h_BTD, _ = j.model.hidden(j.params, Inputs(tokens))
    plain = j.model.logits(j.params, h_BTD)[0, -1, j.model.config.vocab - 1]
    row = Batch(np.array([[*tokens[0], end, end, end]]), np.array([[0, 0, 1, 1, 0, 0]], np.float32))
    assert float(text_rewards(j.model, j.params, row)[0]) == pytest.approx(float(plain), abs=1e-5)


# --- the gradient of a policy is that of the whole -------------------------------------------------------------------
V, LONG = 3, 2


def test_the_gradient_is_that_of_reward_less_divergence():
    """Averaged over every pair of answers that could have been drawn, weighted by how probable it was, the gradient is
    that of E[reward] - beta KL(pi || pi_ref), computed from all answers at once."""
    model = build(ModelConfig(**SHAPE, vocab=V, vocab_multiple=1, zero_init=False))
    params, reference = model.init(0), model.init(1)
    answers = np.array(list(itertools.product(range(V), repeat=LONG)))
    reward_A = np.random.default_rng(0).normal(size=len(answers)).astype(np.float32)
    beta, prompt = 0.7, 1
    tokens_AU = np.concatenate([np.full((len(answers), 1), prompt), answers], axis=1)

    def logprobs(p):
        logits_ATV, _ = model.apply(p, Inputs(tokens_AU[:, :-1]))
        return jnp.take_along_axis(jax.nn.log_softmax(logits_ATV[..., :V]), tokens_AU[:, 1:, None], axis=2)[..., 0]

    def objective(p):
        own, their = logprobs(p).sum(axis=1), logprobs(reference).sum(axis=1)
        return jnp.sum(jnp.exp(own) * (reward_A - beta * (own - their)))

    exact = jax.grad(objective)(params)
    probability_A = np.exp(np.asarray(logprobs(params).sum(axis=1)))
    pairs = np.array(list(itertools.product(range(len(answers)), repeat=2)))
    rows = pairs.reshape(-1)
    weight = np.repeat(probability_A[pairs[:, 0]] * probability_A[pairs[:, 1]], 2) / 2
    ones = np.ones((len(rows), LONG), np.float32)
    drawn = token_divergence(model, params, reference, Batch(tokens_AU[rows], ones))
    e = Experiment(
        model=model.config, feedback=FeedbackConfig(beta=beta, group=2, reward="x.py:y", max_tokens=2),
        train=dataclasses.replace(Experiment().train, objective="policy", start="base", batch=2),
        data=dataclasses.replace(Experiment().data, examples="x"),
    )  # fmt: skip
    batch = Batch(
        tokens_AU[rows], ones * weight[:, None], old_BT=drawn.logprob, reward_B=reward_A[rows],
        advantage_BT=advantages(reward_A[rows], np.asarray(drawn.divergence), beta, group=2),
    )  # fmt: skip
    hyper = hyperparameters(e, e.steps(1 << 20)) | {"frozen": {"reference": reference}}
    made, sums = jax.grad(lambda p: tuple(account(p, batch, e, None, hyper, None)), has_aux=True)(params)
    assert float(sums["clipped"]) == 0  # every ratio is 1
    for a, b in zip(jax.tree.leaves(made), jax.tree.leaves(exact), strict=True):
        assert np.asarray(a) == pytest.approx(-np.asarray(b), abs=2e-6)


def test_probabilities_in_chunks_are_those_at_once():
    model = build(ModelConfig(**SHAPE, vocab=5, vocab_multiple=8))
    batch = Batch(np.random.default_rng(0).integers(0, 5, (3, 8)))
    whole, cut = (token_divergence(model, model.init(0), model.init(1), batch, chunk) for chunk in (None, 4))
    assert np.asarray(whole.logprob) == pytest.approx(np.asarray(cut.logprob), abs=1e-6)
    assert np.asarray(whole.divergence) == pytest.approx(np.asarray(cut.divergence), abs=1e-6)


# --- what is refused -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("policy", dict(feedback__reward="rewards.py:nowhere"), "it returns nan for the answer .* must be a finite"),
        ("policy", dict(feedback__reward="rewards.py:fails"), "TypeError: string indices must be integers"),
        ("policy", dict(feedback__reward="rewards.py:asks"), "it asks for question; a reward is a function of prompt"),
        ("policy", dict(feedback__reward="rewards.py:number"), "defines no function number"),
        ("policy", dict(feedback__reward="rewards.py:absent"), "defines no function absent"),
        ("policy", dict(feedback__reward="none.py:f"), "feedback.reward .*none.py:f: no such file"),
        ("policy", dict(feedback__reward="base"), "it learnt next_token; train one with train.objective reward"),
        ("policy", dict(feedback__max_tokens=7), "none of .* prompts fits model.context 8 with feedback.max_tokens 7"),
        ("policy", dict(feedback__updates=3), "feedback.updates 3: train.steps, .* must be a multiple of it"),
        ("preference", dict(data__examples="answers.jsonl"), "learns from examples with chosen and rejected answers"),
        ("lora", dict(data__examples="preferences.jsonl"), "give train.objective preference or reward"),
        ("lora", dict(train__start="none"), "train.start none: no such run"),
        ("preference", dict(feedback__reference="none"), "feedback.reference none: no such run"),
        ("preference", dict(train__start=None), "is measured by another run; give train.start"),
        ("policy", dict(feedback__reward=None), "what are answers worth\\? give feedback.reward"),
        ("policy", dict(data__examples=None), "learns from examples; give data.examples"),
    ],
)  # fmt: skip
def test_what_cannot_be_learnt_from_is_one_line(place, tmp_path, name, changes, message):
    in_place = {"data__examples", "feedback__reward"}
    changes = {key: str(place / value) if value and key in in_place else value for key, value in changes.items()}
    with pytest.raises(UserError, match=message) as refused:
        train(experiment(place, name, **changes), folder=tmp_path, display=False)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("what", ["reference", "start"])
def test_another_tokenizer_is_refused(place, tmp_path, what):
    other = tiny.replaced(
        load(place / "base").experiment, name="other", data__tokenizer="bytes", train__steps=1, schedule__warmup=0
    )
    other = train(tiny.replaced(other, model__vocab=None), folder=tmp_path, display=False)
    key = {"reference": "feedback__reference", "start": "train__start"}[what]
    with pytest.raises(UserError, match=r"has another tokenizer \(bytes"):
        train(experiment(place, "preference", **{key: str(other.path)}), folder=tmp_path, display=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(optimizer__lora=4), "optimizer.lora 4: adapters change a model that is there"),
        (dict(train__objective="policy", data__examples="x", train__start="x", feedback__reward="x", feedback__group=3),
         "train.batch 4: must be a multiple of feedback.group"),
        (dict(train__objective="reward", data__examples="x", data__packing=True), "leave data.packing out"),
    ],
)  # fmt: skip
def test_settings_that_do_not_go_together_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        tiny.experiment("x.txt", **changes)


def test_a_reference_that_changed_is_refused(place, tmp_path):
    """What a run is measured by must be what it was; it may have been trained further, if that checkpoint is kept."""
    base = tiny.replaced(
        load(place / "base").experiment, name="base2", train__steps=4, train__checkpoint_every=4, schedule__warmup=0
    )
    train(base, folder=tmp_path, display=False)
    e = experiment(place, "preference", train__start=str(tmp_path / "base2"))
    train_pack([e], folder=tmp_path, display=False, until=4)
    (tmp_path / "base2").rename(tmp_path / "away")
    with pytest.raises(UserError, match=r"base2: no such run"):
        train(e, folder=tmp_path, display=False)
    train(tiny.replaced(base, train__seed=5), folder=tmp_path, display=False)
    with pytest.raises(UserError, match=r"reference sha"):
        train(e, folder=tmp_path, display=False)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_command_says_what_it_costs_and_what_came_of_it(place, tmp_path, name, monkeypatch, capsys):
    """A dry run counts; training prints its figures as JSON; the run is evaluated and sampled."""
    monkeypatch.chdir(tmp_path)
    e = experiment(place, name)
    words = ["--train.start", e.train.start, "--train.objective", e.train.objective, "--train.steps", "4"]
    words += ["--data.examples", e.data.examples, "--data.tokenizer", e.data.tokenizer]
    words += ["--schedule.warmup", "0", "--train.log-every", "2", "--train.eval-every", "2"]
    words += ["--train.checkpoint-every", "2"]
    for key in OBJECTIVES[name]:
        if key.startswith(("feedback", "optimizer")):
            part, setting = key.split("__")
            words += [f"--{part}.{setting.replace('_', '-')}", str(getattr(getattr(e, part), setting))]
    config = tmp_path / "base.py"
    config.write_text(
        "import lm\nexperiment = lm.settings.from_dict("
        f"{json.loads((place / 'base' / 'experiment.json').read_text())['experiment']!r})\n"
    )
    assert main(["train", str(config), "--name", "after", *words, "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 4
    assert not (tmp_path / "runs").exists()
    assert main(["train", str(config), "--name", "after", *words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["step"] == 4
    assert main(["sample", "after", "--prompt", "12", "--max-tokens", "2"]) == 0
    assert main(["eval", "after"]) == 0
