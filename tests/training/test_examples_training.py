"""Examples trained on as a user trains: a source and its answer, by every kind of model; answered, scored, resumed."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import tiny

from lm.cli import main
from lm.config import EncoderConfig, Experiment
from lm.data.supply import prepare
from lm.errors import UserError
from lm.evaluation import evaluate_validation, open_examples
from lm.model.api import Inputs
from lm.run import load
from lm.sample.answers import answer_examples
from lm.training.loop import train, train_pack

LETTERS = "abcdefgh"
SHAPE = dict(layers=1, width=16, heads=2, feedforward=32, dtype="float32", unroll=1)
MODELS = {
    "encoder": dict(encoder=EncoderConfig(**SHAPE, context=8), context=8),
    "prefix": dict(mask="prefix", context=12),
}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """A letter somewhere among noughts and ones, and the letter written twice."""
    rng, path = np.random.default_rng(0), tmp_path_factory.mktemp("pairs") / "pairs.tsv"
    lines = []
    for letter in rng.choice(list(LETTERS), 400):
        around = rng.choice(["0", "1"], 4)
        at = rng.integers(0, 5)
        lines.append("".join([*around[:at], letter, *around[at:]]) + f"\t{letter * 2}\n")
    path.write_text("".join(lines))
    return path


def experiment(path, name: str, **changes) -> Experiment:
    base = tiny.experiment("unused.txt", name=name, data__examples=str(path), train__steps=120, train__batch=16)
    base = tiny.replaced(base, **{"optimizer__learning_rate": 2e-2} | changes)
    return dataclasses.replace(base, model=dataclasses.replace(base.model, **SHAPE | MODELS.get(name, {})))


@pytest.fixture(scope="module", params=MODELS)
def run(request, pairs, tmp_path_factory):
    return train(experiment(pairs, request.param), folder=tmp_path_factory.mktemp("runs"), display=False)


def test_what_is_to_be_answered_is_learnt(run):
    """Most of what was held out is answered right, where chance is 1/8; by a beam as greedily."""
    m = load(run)
    made = answer_examples(m, open_examples(m))
    shown = prepare(m.experiment.data).train.sources
    assert set(made.shown).isdisjoint(m.tokenizer.decode(shown[i].tolist()) for i in range(len(shown)))
    right = [said in texts for said, texts in zip(made.answers, made.references, strict=True)]
    assert len(right) > 10 and np.mean(right) > 0.8
    searched = answer_examples(m, open_examples(m), beam=3)
    assert np.mean(np.array(searched.answers) == np.array(made.answers)) > 0.8
    assert set(made.scores()) == {"bleu", "chrf", "bleu_signature", "chrf_signature"}


def test_the_loss_is_of_the_answer_and_its_end(run):
    """As plain passes score it, over each example alone and unpadded; and as it was logged at the end."""
    m, nats = load(run), 0.0
    file, end = open_examples(m), m.tokenizer.eot_token
    for i in range(file.documents):
        source, answer = file.sources[i].tolist(), [*file.targets[i].tolist(), end]
        if m.model.config.encoder is None:
            inputs = Inputs(np.array([[end, *source, end, *answer[:-1]]]), open_B=np.array([1 + len(source)]))
        else:
            inputs = Inputs(np.array([[end, *answer[:-1]]]), source=Inputs(np.array([[*source, end]])))
        logprobs_TV = np.asarray(jax.nn.log_softmax(m.model.apply(m.params, inputs)[0][0]))
        nats -= float(logprobs_TV[np.arange(-len(answer), 0), answer].sum())
    score = evaluate_validation(m)
    assert (score.tokens, score.bytes) == (file.count, file.bytes)
    assert score.nats == pytest.approx(nats, rel=1e-5)
    logged = [record["val_loss"] for record in run.metrics() if "val_loss" in record]
    assert logged[-1] == pytest.approx(score.loss, rel=1e-5)


def test_a_run_that_was_cut_goes_on_to_the_bit(pairs, tmp_path):
    """And so do runs side by side, which differ in their seeds."""
    e = experiment(pairs, "encoder", train__steps=30)
    both = [e, tiny.replaced(e, name="other", train__seed=1)]
    alone = load(train(e, folder=tmp_path / "alone", display=False))
    train_pack(both, folder=tmp_path / "pack", display=False, until=15)
    packed = train_pack(both, folder=tmp_path / "pack", display=False)
    assert tiny.same_bits(load(packed[0]).params, alone.params)
    assert not tiny.same_bits(load(packed[1]).params, alone.params)


def test_label_smoothing_is_learnt_by_but_not_reported(pairs, tmp_path):
    """At no rate nothing is learnt: the loss that is logged is the same with and without."""
    losses = []
    for name, smoothing in (("plain", 0.0), ("smooth", 0.3)):
        e = experiment(pairs, "encoder", train__steps=20, optimizer__learning_rate=1e-9)
        e = tiny.replaced(e, name=name, train__label_smoothing=smoothing)
        losses.append(train(e, folder=tmp_path, display=False).metrics()[-1]["val_loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


# --- arrays and labels -----------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def bars(tmp_path_factory):
    """Pictures of 4 x 4 pixels with one bright column, and its number."""
    rng, path = np.random.default_rng(0), tmp_path_factory.mktemp("bars") / "bars.npz"
    labels = rng.integers(0, 4, 300)
    images = rng.normal(size=(300, 4, 4)) * 0.1
    images[np.arange(300), :, labels] += 1
    np.savez(path, images=images, labels=labels)
    return path


def test_pictures_are_told_by_the_command(bars, tmp_path, monkeypatch, capsys):
    """lm eval: accuracy with its interval, and a figure of the confusions; another file of examples likewise."""
    monkeypatch.chdir(tmp_path)
    e = experiment(bars, "bars", train__steps=60)
    train(
        dataclasses.replace(e, model=dataclasses.replace(e.model, mask="prefix", vectors=4, context=6)), display=False
    )
    assert main(["eval", "bars", "--json", "--figure", "confusion.svg"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["accuracy"] > 0.9 and told["accuracy_low"] < told["accuracy"] <= told["accuracy_high"] <= 1
    assert told["confusion"]["names"][:4] == ["0", "1", "2", "3"] and told["answers"] == np.sum(
        told["confusion"]["counts"]
    )
    assert (tmp_path / "confusion.svg").stat().st_size > 1000
    assert main(["eval", "bars", "--examples", str(bars), "--answers", "7"]) == 0
    assert "7 answers" in capsys.readouterr().out


# --- the masked objective --------------------------------------------------------------------------------------------
def test_a_masked_model_learns_evaluates_and_cannot_continue(corpus, tmp_path):
    e = tiny.experiment(corpus, name="masked", train__steps=40)
    e = tiny.replaced(e, model__mask="full", model__mask_token=True, train__objective="masked")
    run = train(e, folder=tmp_path, display=False)
    losses = [record["val_loss"] for record in run.metrics() if "val_loss" in record]
    assert losses[-1] < losses[0]
    m = load(run)
    score = evaluate_validation(m)
    assert score.loss == evaluate_validation(m).loss  # what is hidden is always the same
    assert 0.1 < score.tokens / prepare(e.data).validation.count < 0.2
    with pytest.raises(UserError, match="reads both ways"):
        from lm.sample.generate import generate

        generate(m, ["the"], max_tokens=3)


# --- what makes no sense ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(train__objective="masked"), 'needs model.mask "full", model.mask_token and a corpus'),
        (dict(model__mask="full"), "would read the token it is to predict"),
        (dict(model__vectors=3), "nothing in a corpus is a source; give data.examples"),
        (dict(model__encoder=EncoderConfig()), "nothing in a corpus is a source; give data.examples"),
        (dict(data__examples="a.tsv", data__packing=True), "examples are a row each, and never packed"),
    ],
)
def test_experiments_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        tiny.replaced(Experiment(), **changes)


def test_the_command_refuses_what_a_run_cannot_answer(run, tiny_run, corpus, pairs, capsys):
    cases = [
        (["eval", str(run.path), "--text", str(corpus)], "was trained on examples; give --examples FILE"),
        (["eval", str(tiny_run.path), "--examples", str(pairs)], "was trained on a corpus; give --text"),
    ]
    if run.experiment.model.encoder:
        cases += [(["sample", str(run.path)], "this model answers a source: give sources")]
    for arguments, message in cases:
        assert main(arguments) == 2
        assert message in capsys.readouterr().err
