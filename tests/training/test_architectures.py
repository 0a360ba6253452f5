"""Training knows models by their interface alone: exact resume and packs hold for every architecture."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest
import tiny

import lm
from lm import settings
from lm.config import RecurrentConfig
from lm.training.programs import many_steps
from lm.training.step import hyperparameters, init_state

SHAPE = dict(layers=2, width=16, context=16)
MODELS = {
    "lstm": RecurrentConfig(**SHAPE, dtype="float32", dropout=0.1),
    "tanh rnn": RecurrentConfig(**SHAPE, dtype="float32", cell="rnn", tied=True),
    "one's own": dataclasses.replace(settings.load_experiment("gated_recurrence").model, **SHAPE),
}
every_model = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    file = tmp_path_factory.mktemp("corpus") / "text.txt"
    file.write_text(tiny.text())
    return file


def experiment(model, corpus, **changes) -> lm.Experiment:
    e = dataclasses.replace(tiny.experiment(corpus), model=model)
    short = dict(train__steps=20, train__checkpoint_every=10, train__eval_every=10, train__keep=3)
    return tiny.replaced(e, **short | changes)


@every_model
def test_a_resumed_run_equals_an_uninterrupted_one(model, corpus, tmp_path, monkeypatch):
    """To the bit, from the checkpoint in the middle; then its text is generated and its validation split scored."""
    monkeypatch.chdir(tmp_path)
    whole = lm.train(experiment(model, corpus), folder=tmp_path / "whole", display=False)
    shutil.copytree(whole.path, tmp_path / "cut" / whole.name)
    cut = lm.Run(tmp_path / "cut" / whole.name)
    shutil.rmtree(cut.checkpoint_folder / "20")
    resumed = lm.train(experiment(model, corpus), folder=tmp_path / "cut", display=False)
    m, other = lm.load(whole), lm.load(resumed)
    assert m.step == other.step == 20 and tiny.same_bits(jax.device_get(m.params), jax.device_get(other.params))
    assert whole.metrics()[-1]["val_loss"] == resumed.metrics()[-1]["val_loss"] < whole.metrics()[0]["val_loss"]

    (sample,) = lm.generate(m, ["the "], lm.Sampler(temperature=0), max_tokens=12)
    text, tokens_1T = "the ", m.tokenizer.encode_ordinary("the " + sample.text)
    logits_1TV, _ = m.apply(np.array([tokens_1T], np.int32))
    greedy = np.asarray(logits_1TV[0, len(text) - 1 : -1].argmax(-1))
    np.testing.assert_array_equal(greedy, sample.tokens)
    assert lm.evaluate(m, tiny.text(200, seed=1)).loss == pytest.approx(whole.metrics()[-1]["val_loss"], rel=0.2)


@every_model
def test_windows_that_are_cut_are_read_by_all(model):
    """Traced, not compiled: a step on halves, whose shapes are those of one on whole windows."""
    e = tiny.replaced(experiment(model, "text.txt"), model__vocab=21)
    state, hyper = jax.eval_shape(lambda: init_state(e)), hyperparameters(e, e.steps(1000))
    tokens, starts = np.zeros(99, np.uint16), np.zeros((3, 4), np.int32)
    whole = jax.eval_shape(many_steps(e, 20), state, hyper, tokens, starts, 1)
    assert jax.eval_shape(many_steps(e, 20, pieces=2), state, hyper, tokens, starts.repeat(2, axis=1), 1) == whole


@pytest.mark.parametrize("name", ["lstm", "one's own"])
def test_a_pack_equals_its_runs_alone(name, corpus, tmp_path):
    """To the bit, for runs that differ in seed and rate."""
    changes = [dict(name="a"), dict(name="b", train__seed=1, optimizer__learning_rate=1e-2)]
    experiments = [experiment(MODELS[name], corpus, **change) for change in changes]
    together = lm.train_pack(experiments, folder=tmp_path / "together", display=False)
    for e, packed in zip(experiments, together, strict=True):
        alone = lm.train(e, folder=tmp_path / "alone", display=False)
        assert tiny.same_bits(jax.device_get(lm.load(alone).params), jax.device_get(lm.load(packed).params))
