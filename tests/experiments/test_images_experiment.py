"""Digits moved, described and spelled as they should be; likelihoods by another path; a tiny run draws and resumes."""

import sys

import numpy as np
import pytest
from sklearn.naive_bayes import CategoricalNB

import lm
from lm.sample import score_texts

SCRIPT = "images"


SMALL = {"model.layers": 1, "model.width": 16, "optimizer.name": "adamw"}


class Middle:
    """A generator whose uniform numbers are all in the middle."""

    def uniform(self, low, high, size=None):
        return np.full(size, (low + high) / 2) if size else (low + high) / 2


def test_an_image_turned_by_nothing_is_itself_and_otherwise_keeps_most_of_its_ink(script):
    images_NHW = script.load_digits().images[:50]
    np.testing.assert_allclose(script.moved(images_NHW, Middle()), images_NHW, atol=1e-12)
    moved_NHW = script.moved(images_NHW, np.random.default_rng(0))
    share = moved_NHW.sum() / images_NHW.sum()
    assert 0.8 < share < 1.1 and np.abs(moved_NHW - images_NHW).mean() > 0.5


def test_captions_say_what_is_in_the_image(script):
    upper, thick = np.zeros((8, 8)), np.full((8, 8), 16.0)
    upper[1, 2], thick[0] = 3, 0
    said = script.describe(np.stack([upper, thick]), np.array([0, 7]))
    assert said.tolist() == ["a thin zero in the upper half", "a thick seven in the lower half"]


def test_letters_are_read_back_as_the_image_they_spell(script):
    image_HW = script.load_digits().images[3].astype(int)
    np.testing.assert_array_equal(script.read(script.spell(image_HW)), image_HW)


def test_histograms_are_those_of_naive_bayes(script):
    """scikit-learn's categorical naive Bayes with the same pseudo-count."""
    images_NHW, digits_N = script.load_digits().images, script.load_digits().target
    train, test = slice(0, 900), slice(900, 950)
    _, bits_NC = script.histogram_bits(images_NHW[train], digits_N[train], images_NHW[test])
    flat = images_NHW.reshape(-1, 64).astype(int)
    bayes = CategoricalNB(alpha=0.1, min_categories=17).fit(flat[train], digits_N[train])
    logs_XCN = np.stack([table[:, levels] for table, levels in zip(bayes.feature_log_prob_, flat[test].T, strict=True)])
    np.testing.assert_allclose(bits_NC, -logs_XCN.mean(axis=0).T / np.log(2), rtol=1e-6)


def test_nats_of_an_image_under_a_digit_are_those_of_its_letters_one_by_one(script, tmp_path):
    """Against scores of single texts, by a model that has learnt nothing but whose head is not zero."""
    images_NHW, file = script.load_digits().images[:12], tmp_path / "pixels.tsv"
    script.write_letters(file, images_NHW, np.arange(12) % 10)
    changes = {
        "data.examples": str(file), "data.validation_corpus": str(file), "data.tokenizer": "chars",
        "model.vectors": None, "model.mask": "causal", "model.context": 67, "model.zero_init": False,
    }  # fmt: skip
    e = lm.replace(lm.load_experiment("digits"), SMALL | changes)
    data = script.prepare(e.data)
    e = lm.replace(e, {"model.vocab": data.tokenizer.n_vocab})
    m = lm.Trained(lm.build(e.model).init(0), data.tokenizer, e, step=0)
    columns = script.held_out(data.validation, e.data, e.model, 10**9)
    columns = {name: column[:2] for name, column in columns.items()}
    for digit in (0, 7):
        texts = [script.spell(image_HW.astype(int)) for image_HW in images_NHW[:2]]
        known = score_texts(m, [""] * 2, texts, sources=[str(digit)] * 2)
        one_by_one = [-sum(hypothesis.logprobs[:64]) for hypothesis in known]
        np.testing.assert_allclose(script.pixel_nats(m, columns, digit), one_by_one, rtol=1e-5)


@pytest.mark.slow
def test_a_tiny_run_measures_draws_and_is_not_computed_again(script, tmp_path, monkeypatch):
    """Everything with two steps, one size of patch and 40 images held out."""
    load = lm.load_experiment
    monkeypatch.setattr(script.lm, "load_experiment", lambda name: lm.replace(load(name), SMALL))
    for name, value in {"HELD": 40, "COPIES": 1, "PATCHES": (4,)}.items():
        monkeypatch.setattr(script, name, value)
    monkeypatch.setattr(script, "keep_compiled_programs", lambda folder: None)
    arguments = ["--steps", "2", "--seeds", "0", "--runs", str(tmp_path), "--figure", str(tmp_path / "images.svg")]
    monkeypatch.setattr(sys, "argv", ["images", *arguments])
    for cached in (script.split, script.with_copies):
        cached.cache_clear()
    script.main()
    monkeypatch.setattr(script.lm, "train_pack", None)  # nothing is trained again
    script.main()
    results = (tmp_path / "results.jsonl").read_text().splitlines()
    assert len(results) == 8  # a record each: one patch, two baselines, pixels, histograms, three of captions
    text = (tmp_path / "images.svg").read_text()
    assert all(title in text for title in ("Wrong digits", "Bits a pixel", "Captions right"))
    for cached in (script.split, script.with_copies):
        cached.cache_clear()
