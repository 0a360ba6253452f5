"""Levels, signals, predictors and recognisers are what their formulas say; a little of each part trains and draws."""

import sys

import numpy as np
import pytest
from scipy.stats import norm

SCRIPT = "sound"


@pytest.fixture
def signals(script):
    return script.signals


@pytest.fixture
def speech(script):
    return script.speech


def test_mu_law_keeps_what_its_closed_form_says(signals):
    """The error of an even step of the curve, over the curve's slope, averaged over numbers that are uniform."""
    x = np.random.default_rng(0).uniform(-1, 1, 200_000)
    levels = signals.mu_law(x)
    error = np.mean((signals.from_mu_law(levels) - x) ** 2)
    step, mu = 2 / 256, 255
    expected = step**2 / 12 * (np.log(1 + mu) / mu) ** 2 * (1 + mu + mu**2 / 3)
    assert 10 * np.log10(np.mean(x**2) / error) == pytest.approx(10 * np.log10(1 / 3 / expected), abs=0.05)
    every = np.arange(256)
    np.testing.assert_array_equal(signals.mu_law(signals.from_mu_law(every)), every)
    np.testing.assert_array_equal(signals.read(signals.write(every)), every)


def test_a_normal_distribution_is_cut_into_levels_that_add_up_to_one(signals):
    every = np.arange(256)
    mass = 2.0 ** -signals.gaussian_bits(every, np.full(256, 0.3), 0.2)
    assert mass.sum() == pytest.approx(1, abs=1e-9)
    low, high = signals.from_mu_law(199.5), signals.from_mu_law(200.5)
    assert mass[200] == pytest.approx(norm.cdf(high, 0.3, 0.2) - norm.cdf(low, 0.3, 0.2), rel=1e-9)


def test_whoever_knows_a_vowel_errs_by_its_breath_alone(signals):
    rng = np.random.default_rng(1)
    for _ in range(8):
        vowel = signals.vowel(rng, 4000)
        assert (vowel.wave_T - vowel.mean_T).std() == pytest.approx(vowel.deviation, rel=0.05)
        assert signals.pitch_of(vowel.wave_T) == pytest.approx(vowel.pitch, rel=0.01)
    assert signals.pitch_of(np.zeros(1000)) == 0


def test_least_squares_finds_an_autoregression_and_forecasts_it(signals):
    """An AR(1) of .8: the mean falls by .8 a step, and the spread grows to 1 / sqrt(1 - .64)."""
    rng = np.random.default_rng(2)
    x_MT = np.zeros((1, 40_000))
    for t in range(1, x_MT.shape[1]):
        x_MT[0, t] = 0.8 * x_MT[0, t - 1] + rng.standard_normal()
    model = signals.fit_linear(x_MT, 2)
    np.testing.assert_allclose([*model.weights_Q, model.deviation], [0.8, 0, 0, 1], atol=0.03)
    paths_WT = signals.draw_linear(model, np.array([3.0, 5.0]), 24, 4000, rng)
    np.testing.assert_allclose(paths_WT[:, :3].mean(0), [4, 3.2, 2.56], atol=0.15)
    assert paths_WT[:, -1].std() == pytest.approx(1 / 0.6, rel=0.05)


def test_forecasts_are_scored_by_the_median_and_the_middle(signals):
    history_MT, truth_MT = np.array([[0.0, 2, 0, 2, 0]]), np.array([[1.0, 1, 9]])
    paths_MWT = np.linspace(0, 10, 101)[None, :, None] * np.ones(3)
    assert signals.forecast_scores(paths_MWT, truth_MT, history_MT) == {
        "MASE": pytest.approx((4 + 4 + 4) / 3 / 2), "coverage": 1.0,
    }  # fmt: skip
    assert signals.forecast_scores(paths_MWT, truth_MT - 0.5, history_MT)["coverage"] == pytest.approx(1 / 3)


def test_a_season_is_repeated(signals):
    rng = np.random.default_rng(3)
    t = np.arange(signals.HISTORY + signals.HORIZON)
    x_T = np.sin(2 * np.pi * t / 48) + np.sin(2 * np.pi * t / 12)
    for forecast in (signals.seasonal_naive, signals.seasonal_regression):
        paths_WT = forecast(x_T[: signals.HISTORY], 5, rng)
        np.testing.assert_allclose(paths_WT, np.tile(x_T[signals.HISTORY :], (5, 1)), atol=1e-9)


def test_mel_bands_share_out_the_spectrum_and_tones_light_theirs(speech):
    filters_PE, hertz_P = speech.mel_filters(), np.fft.rfftfreq(256, 1 / speech.RATE)
    mel = np.linspace(2595 * np.log10(1 + 100 / 700), 2595 * np.log10(1 + 3900 / 700), speech.BANDS + 2)
    centres_E = 700 * (10 ** (mel[1:-1] / 2595) - 1)
    between = (hertz_P >= centres_E[0]) & (hertz_P <= centres_E[-1])
    np.testing.assert_allclose(filters_PE[between].sum(1), 1, atol=1e-12)
    t = np.arange(speech.WINDOW) / speech.RATE
    for band in (5, 12, 20):
        window = np.sin(2 * np.pi * centres_E[band] * t) * np.hanning(speech.WINDOW)
        assert np.argmax(np.abs(np.fft.rfft(window, 256)) ** 2 @ filters_PE) == band


def test_loudness_and_silence_change_no_frame(speech):
    wave_A = np.random.default_rng(4).standard_normal(4000) * np.hanning(4000)
    frames_IE = speech.log_mel(wave_A)
    assert frames_IE.mean(0) == pytest.approx(0, abs=1e-6) and len(frames_IE) == pytest.approx(50, abs=4)
    silence = np.zeros(10 * speech.HOP)
    np.testing.assert_allclose(speech.log_mel(np.concatenate([silence, 3 * wave_A, silence])), frames_IE, atol=1e-5)


def test_families_of_voices_are_never_divided(speech):
    voices = ["klatt", "klatt4", "m1", "m8", "whisper", "whisperf", "anika", "anikaRobot", "Mike", "mike2", "zac", "f1"]
    for seed in range(5):
        train, held = speech.divide(voices, seed)
        assert sorted(train + held) == sorted(voices)
        assert held and not set(map(speech.family, train)) & set(map(speech.family, held))
    assert len(set(map(speech.family, voices))) == 7


def test_espeak_says_the_same_digits_differently(speech):
    pytest.importorskip("espeakng_loader")
    speaker = speech.Speaker()
    low, high = (speaker.say("three", "m1", pitch=pitch) for pitch in (10, 90))
    assert speech.RATE * 0.2 < len(low) < speech.RATE and 0.05 < np.abs(low).max() <= 1
    assert len(low) != len(high) or not np.allclose(low, high)
    made = speech.utterances(speaker, ["m1", "f2"], 6, seed=0)
    assert [len(text.split()) for text in made["captions"]] == [1, 2, 3] * 2
    assert np.all(np.diff(made["frame_counts"].reshape(2, 3)) > 0)  # more digits take longer
    pairs = speech.stacked(made)
    np.testing.assert_array_equal(pairs["frames"][0, 3], np.append(made["frames"][0, 6], made["frames"][0, 7]))
    assert pairs["frame_counts"][0] == (made["frame_counts"][0] + 1) // 2
    answers = speech.plain_answers(made, made)
    assert answers["nearest neighbour"] == list(made["captions"])


def test_the_study_does_without_espeak(script, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    assert script.study_speech(0, None) is None
    assert capsys.readouterr().out == "speech is left out: pip install espeakng-loader\n"


@pytest.mark.slow
def test_a_little_of_it_trains_and_draws(script, monkeypatch, tmp_path, capsys):
    pytest.importorskip("espeakng_loader")
    arguments = ["--steps", "2", "--scale", "0.01", "--seeds", "0", "--runs", str(tmp_path / "runs")]
    monkeypatch.setattr(sys, "argv", [SCRIPT, *arguments, "--figure", str(tmp_path / "out.svg")])
    script.main()
    printed = capsys.readouterr().out
    for words in ("| decoder-only |", "| linear, of this beginning |", "seasonal, MASE"):
        assert words in printed
    assert "nan" not in printed and "middle 80%" in (tmp_path / "out.svg").read_text()
    assert len(list((tmp_path / "runs").glob("*.wav"))) == 4
    script.main()  # from what was kept
    assert capsys.readouterr().out.splitlines()[-1] == printed.splitlines()[-1]
