"""Digits moved, described and spelled as they should be; likelihoods by another path; a tiny run draws and resumes."""

import sys

import numpy as np
import pytest
from sklearn.naive_bayes import CategoricalNB

import lm
from lm.sample import score_texts

SCRIPT = "images"


@pytest.fixture(scope="module")
def tiny(script, tmp_path_factory):
    """The folder of a run of everything with two steps, one size of patch, and 40 images held out; what it printed."""
    folder = tmp_path_factory.mktemp("images")
    arguments = ["--steps", "2", "--seeds", "0", "--runs", str(folder / "runs"), "--figure", str(folder / "images.svg")]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"HELD": 40, "COPIES": 1, "PATCHES": (4,)}.items():
            patch.setattr(script, name, value)
        patch.setattr(script, "keep_compiled_programs", lambda folder: None)
        patch.setattr(sys, "argv", ["images", *arguments])
        script.split.cache_clear(), script.with_copies.cache_clear()
        script.main()
        patch.setattr(script, "lm", None)  # nothing is trained or asked again
        script.main()
        yield folder
        script.split.cache_clear(), script.with_copies.cache_clear()


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


def test_nats_of_an_image_under_a_digit_are_those_of_its_letters_one_by_one(script, tiny):
    m = lm.load(tiny / "runs" / "pixels-0")
    rows = (tiny / "runs" / "pixels-held.tsv").read_text().splitlines()[1:3]
    columns = script.held_out(script.prepare(m.experiment.data).validation, m.model.config, 10**9)
    columns = {name: column[:2] for name, column in columns.items()}
    for digit in (0, 7):
        known = score_texts(m, [""] * 2, [row.split("\t")[1] for row in rows], sources=[str(digit)] * 2)
        one_by_one = [-sum(hypothesis.logprobs[:64]) for hypothesis in known]
        np.testing.assert_allclose(script.pixel_nats(m, columns, digit), one_by_one, rtol=1e-5)


def test_a_tiny_run_measures_draws_and_is_not_computed_again(tiny):
    results = (tiny / "runs" / "results.jsonl").read_text().splitlines()
    assert len(results) == 8  # a record each: one patch, two baselines, pixels, histograms, three of captions
    text = (tiny / "images.svg").read_text()
    assert all(title in text for title in ("Patches to digits", "Pixels as tokens", "Captions"))
