"""Signals for sound.py: mu-law levels, vowels and time series made by seeded formulas, and what predicts them plainly.

A level is written as a letter: signals are texts in an alphabet of 256, so everything that reads texts reads them.

M: signals, T: samples or values of one, W: paths drawn of a continuation, V: levels, Q: coefficients of a predictor.
"""

from typing import NamedTuple

import numpy as np
from scipy.signal import lfilter, welch
from scipy.special import ndtr

RATE = 8000
"""Samples a second of a vowel."""
LEVELS, MU = 256, 255
FIRST_LETTER = 0x100
"""U+0100 to U+01FF are 256 Latin letters, of which none is altered by any reader."""
HERTZ = np.array([(730, 1090, 2440), (530, 1840, 2480), (270, 2290, 3010), (570, 840, 2410), (300, 870, 2240)])
"""Formants of men's a, e, i, o, u (Peterson and Barney 1952, table 2)."""
BANDWIDTHS = np.array([80, 100, 140])
BEGINNING, SCORED, CONTINUED = 256, 256, 2000
"""Samples of a vowel that are known, that are scored after them, and that are drawn."""
HISTORY, HORIZON = 144, 24
"""Values of a time series that are known, and that are asked for."""
SERIES = ("seasonal", "chaotic", "autoregressive")


def write(levels: np.ndarray) -> str:
    return "".join(chr(FIRST_LETTER + level) for level in levels)


def read(text: str) -> np.ndarray:
    return np.array([ord(letter) - FIRST_LETTER for letter in text], int)


# --- levels ----------------------------------------------------------------------------------------------------------
def mu_law(x: np.ndarray) -> np.ndarray:
    """The level, 0 to 255, of numbers in [-1, 1]: evenly spaced in sign(x) log(1 + 255 |x|) (ITU-T G.711's curve)."""
    curved = np.sign(x) * np.log1p(MU * np.abs(np.clip(x, -1, 1))) / np.log1p(MU)
    return np.clip(np.floor((curved + 1) / 2 * LEVELS), 0, LEVELS - 1).astype(int)


def from_mu_law(level: np.ndarray) -> np.ndarray:
    """The middle of a level; level + 0.5 and level - 0.5 are its edges."""
    curved = (np.asarray(level) + 0.5) * 2 / LEVELS - 1
    return np.sign(curved) * np.expm1(np.abs(curved) * np.log1p(MU)) / MU


def gaussian_bits(levels: np.ndarray, mean: np.ndarray, deviation: float) -> np.ndarray:
    """Bits that each level costs whoever expects a normal distribution, cut into the levels' intervals."""
    low = np.where(levels == 0, -np.inf, from_mu_law(levels - 0.5))
    high = np.where(levels == LEVELS - 1, np.inf, from_mu_law(levels + 0.5))
    a, b = (low - mean) / deviation, (high - mean) / deviation
    flip = a > 0  # the two tails are the same, and ndtr tells small numbers apart
    mass = np.where(flip, ndtr(-a) - ndtr(-b), ndtr(b) - ndtr(a))
    return -np.log2(np.maximum(mass, 1e-12))


# --- vowels ----------------------------------------------------------------------------------------------------------
class Vowel(NamedTuple):
    """A vowel and how it was made."""

    wave_T: np.ndarray
    pitch: float
    """Pulses a second."""
    mean_T: np.ndarray
    """What is expected of each sample by one who knows the pulses, the filter and all samples before."""
    deviation: float
    """Standard deviation of what that one cannot know."""


def vowel(rng: np.random.Generator, samples: int) -> Vowel:
    """Pulses and breath through a filter of three formants and a tilt: a random vowel of five, throat and pitch."""
    pitch, throat = rng.uniform(110, 220), rng.uniform(0.9, 1.2)
    filter_Q = np.array([1.0])
    for hertz, width in zip(HERTZ[rng.integers(5)] * throat, BANDWIDTHS, strict=True):
        radius = np.exp(-np.pi * width / RATE)
        filter_Q = np.convolve(filter_Q, [1, -2 * radius * np.cos(2 * np.pi * hertz / RATE), radius**2])
    filter_Q = np.convolve(filter_Q, [1, -0.9])
    settle = 800
    count = samples + settle
    pulses_T = np.diff(np.floor((np.arange(count + 1) + rng.uniform(0, RATE)) * pitch / RATE))
    breath = 0.1 * np.sqrt(pitch / RATE)  # 20 dB below the pulses
    wave_T = lfilter([1.0], filter_Q, pulses_T + breath * rng.standard_normal(count))
    scale = rng.uniform(0.4, 0.9) / np.abs(wave_T).max()
    mean_T = lfilter(np.append(0, -filter_Q[1:]), [1.0], wave_T) + pulses_T
    return Vowel(scale * wave_T[settle:], pitch, scale * mean_T[settle:], scale * breath)


def pitch_of(wave_T: np.ndarray) -> float:
    """Pulses a second by the autocorrelation: the first peak between 300 and 80 that is nearly as high as the highest
    (which two periods may be), refined by a parabola. 0 where there is none."""
    x_T = wave_T - wave_T.mean()
    power = np.abs(np.fft.rfft(x_T, 2 * len(x_T))) ** 2
    correlation = np.fft.irfft(power)[: len(x_T)] / np.arange(len(x_T), 0, -1)
    low, high = RATE // 300, RATE // 80
    inner = correlation[low:high]
    peaks = (inner >= correlation[low - 1 : high - 1]) & (inner >= correlation[low + 1 : high + 1]) & (inner > 0)
    if not peaks.any():
        return 0.0
    peak = low + int(np.flatnonzero(peaks & (inner >= 0.85 * inner[peaks].max()))[0])
    before, at, after = correlation[peak - 1 : peak + 2]
    return RATE / (peak + 0.5 * (before - after) / (before - 2 * at + after))


def spectrum(wave_T: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Frequencies in Hz, and decibels of the wave's power at each, below its mean."""
    hertz, power = welch(wave_T, RATE, nperseg=256)
    return hertz[2:], 10 * np.log10(power[2:] / power[2:].mean() + 1e-9)


def spectral_distance(one_T: np.ndarray, other_T: np.ndarray) -> float:
    """Root of the mean squared difference of two spectra, in decibels."""
    return float(np.sqrt(np.mean((spectrum(one_T)[1] - spectrum(other_T)[1]) ** 2)))


# --- linear prediction -----------------------------------------------------------------------------------------------
class Linear(NamedTuple):
    """x_t = weights . (x_{t-1}, ..., x_{t-Q}, 1), give or take the deviation."""

    weights_Q: np.ndarray
    deviation: float


def columns(x_MT: np.ndarray, order: int) -> tuple[np.ndarray, np.ndarray]:
    """What each value from place `order` on is predicted from, and the values."""
    windows = np.lib.stride_tricks.sliding_window_view(x_MT, order + 1, axis=-1).reshape(-1, order + 1)
    before = windows[:, :-1][:, ::-1]
    return np.column_stack([before, np.ones(len(before))]), windows[:, -1]


def fit_linear(x_MT: np.ndarray, order: int, ridge: float = 0.0) -> Linear:
    """Least squares over all the signals; ridge is relative to the mean square of the values."""
    before, values = columns(x_MT, order)
    penalty = ridge * np.mean(values**2) * len(values) * np.eye(order + 1)
    weights_Q = np.linalg.lstsq(before.T @ before + penalty, before.T @ values, rcond=None)[0]
    free = max(1, len(values) - order - 1)
    return Linear(weights_Q, float(np.sqrt(np.sum((values - before @ weights_Q) ** 2) / free)) + 1e-9)


def draw_linear(model: Linear, history_T: np.ndarray, steps: int, paths: int, rng: np.random.Generator) -> np.ndarray:
    """Continuations [W, steps] with normal noise."""
    order = len(model.weights_Q) - 1
    x = np.repeat(history_T[None, len(history_T) - order :], paths, 0)
    for _ in range(steps):
        before = x[:, len(x[0]) - order :][:, ::-1]
        new_W = before @ model.weights_Q[:-1] + model.weights_Q[-1] + model.deviation * rng.standard_normal(paths)
        x = np.column_stack([x, np.clip(new_W, -1e3, 1e3)])
    return x[:, order:]


def best_autoregression(x_T: np.ndarray) -> Linear:
    """Of several orders the least AICc (Hurvich and Tsai 1989), all on the same values."""
    most, scored = 48, []
    for order in (1, 2, 3, 4, 6, 8, 12, 13, 16, 24, 48):
        model, free = fit_linear(x_T[None, most - order :], order), order + 2
        count = len(x_T) - most
        error = model.deviation**2 * max(1, count - order - 1) / count
        scored.append((count * np.log(error) + 2 * free * count / max(1e-3, count - free - 1), order))
    order = min(scored)[1]
    return fit_linear(x_T[None], order)


# --- time series -----------------------------------------------------------------------------------------------------
def time_series(kind: str, rng: np.random.Generator, length: int = HISTORY + HORIZON) -> np.ndarray:
    """seasonal: a trend, seasons of 12 and 48, correlated noise; chaotic: Mackey and Glass (1977), every sixth unit of
    time; autoregressive: of second order, with a wandering cycle. Each with random constants."""
    t = np.arange(length)
    if kind == "seasonal":
        x_T = rng.normal(0, 1.5) * t / length + lfilter([1], [1, -0.5], 0.3 * rng.standard_normal(length))
        for period in (12, 48):
            for harmonic in (1, 2):
                phase = rng.uniform(0, 2 * np.pi)
                x_T = x_T + rng.uniform(0.2, 1) / harmonic * np.sin(2 * np.pi * harmonic * t / period + phase)
        return x_T
    if kind == "chaotic":
        delay, every, settle = int(rng.integers(17, 26)), 6, 200
        x = list(rng.uniform(0.5, 1.3, delay + 1))
        for _ in range((length + settle) * every):
            x.append(0.9 * x[-1] + 0.2 * x[-1 - delay] / (1 + x[-1 - delay] ** 10))
        return np.array(x[-length * every :: every])
    radius, angle = rng.uniform(0.9, 0.98), 2 * np.pi / rng.uniform(6, 20)
    coefficients = [1, -2 * radius * np.cos(angle), radius**2]
    return lfilter([1], coefficients, rng.standard_normal(length + 200))[200:]


REACH = 4.0
"""Standard deviations of a history that the levels of a time series reach on either side of its mean."""


def series_levels(z_T: np.ndarray) -> np.ndarray:
    """The level of values that are in standard deviations: even steps of 1/32 (as Ansari et al. 2024 do)."""
    return np.clip(np.floor((z_T + REACH) / (2 * REACH) * LEVELS), 0, LEVELS - 1).astype(int)


def from_series_levels(level: np.ndarray) -> np.ndarray:
    return (np.asarray(level) + 0.5) * 2 * REACH / LEVELS - REACH


def standardised(x_T: np.ndarray) -> np.ndarray:
    """In standard deviations of its history about the history's mean."""
    return (x_T - x_T[:HISTORY].mean()) / x_T[:HISTORY].std()


def seasonal_naive(history_T: np.ndarray, paths: int, rng: np.random.Generator) -> np.ndarray:
    """The last season again, [W, HORIZON], with the errors that this made in the history; of the lags from HORIZON to
    72 the one that erred least there, so that every value asked for has one a season before it."""
    errors = {lag: history_T[lag:] - history_T[:-lag] for lag in range(HORIZON, 73)}
    lag = min(errors, key=lambda lag: np.mean(np.abs(errors[lag])))
    return history_T[len(history_T) - lag :][:HORIZON] + rng.choice(errors[lag], (paths, HORIZON))


def seasonal_regression(history_T: np.ndarray, paths: int, rng: np.random.Generator) -> np.ndarray:
    """A line, and two waves of each season, whose periods it is told, by least squares; with the errors this made."""
    t = np.arange(HISTORY + HORIZON)
    waves = [wave(2 * np.pi * k * t / period) for period in (12, 48) for k in (1, 2) for wave in (np.sin, np.cos)]
    terms = np.column_stack([np.ones(len(t)), t / HISTORY, *waves])
    mean_T = terms @ np.linalg.lstsq(terms[:HISTORY], history_T, rcond=None)[0]
    return mean_T[HISTORY:] + rng.choice(history_T - mean_T[:HISTORY], (paths, HORIZON))


def forecast_scores(paths_MWT: np.ndarray, truth_MT: np.ndarray, history_MT: np.ndarray) -> dict[str, float]:
    """Of M forecasts by their W paths: MASE, the median's absolute error in units of the history's mean absolute change
    (Hyndman and Koehler 2006); and how often the truth lies in the middle 80% of the paths."""
    median_MT = np.median(paths_MWT, axis=1)
    unit_M = np.abs(np.diff(history_MT, axis=1)).mean(1)
    low_MT, high_MT = np.quantile(paths_MWT, (0.1, 0.9), axis=1)
    error_M = np.abs(median_MT - truth_MT).mean(1)
    inside = np.mean((truth_MT >= low_MT) & (truth_MT <= high_MT))
    return {"MASE": float(np.mean(error_M / unit_M)), "coverage": float(inside)}
