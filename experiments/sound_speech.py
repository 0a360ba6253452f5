"""Speech for sound.py: digits that espeak-ng speaks in memory, as log-mel frames of 10 ms, and two plain recognisers.

The engine is an optional tool, GPL-3, from the package espeakng-loader; nothing of it is copied here.

N: utterances, I: frames of one, or vectors, E: mel bands, or numbers in a vector, A: samples of a wave, C: samples of a
window, P: bins of its spectrum.
"""

import ctypes
import functools
import re
from pathlib import Path

import numpy as np
from scipy.signal import resample_poly

RATE = 8000
"""Samples a second."""
HOP, WINDOW, BANDS = 80, 200, 24
"""Samples from frame to frame (10 ms) and in a window (25 ms), and mel bands between 100 and 3,900 Hz."""
MOST_FRAMES = 128
"""Frames of the longest utterance kept; the longest are drawn again."""
STACKED = 2
"""Neighbouring frames that make a vector, so that there are half as many places to attend to."""
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
ACCENTS = ("en-us", "en", "en-gb-scotland", "en-gb-x-rp")
SPEEDS, PITCHES = (150, 220), (25, 75)
"""Words a minute, and the engine's pitch, 0 to 100; uniform between these."""
SYNCHRONOUS, NO_EXIT, UTF8, CHARACTERS, SPEED, PITCH = 2, 0x8000, 1, 1, 1, 3
"""The engine's constants (speak_lib.h)."""


# --- the engine ------------------------------------------------------------------------------------------------------
class Speaker:
    """espeak-ng, which speaks into memory. Raises ImportError where the package is missing."""

    def __init__(self):
        import espeakng_loader

        data = Path(espeakng_loader.get_data_path())
        self.voices = sorted(path.name for path in (data / "voices" / "!v").iterdir())
        self.library = ctypes.CDLL(espeakng_loader.get_library_path())
        self.rate = self.library.espeak_Initialize(SYNCHRONOUS, 0, str(data).encode(), NO_EXIT)
        self.heard: list[np.ndarray] = []
        callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
        self.callback = callback(self._hear)  # kept: the engine holds no reference
        self.library.espeak_SetSynthCallback(self.callback)

    def _hear(self, wave, count: int, events) -> int:
        if count > 0:
            self.heard.append(np.ctypeslib.as_array(wave, (count,)).copy())
        return 0

    def say(self, text: str, voice: str, accent: str = "en-us", speed: int = 175, pitch: int = 50) -> np.ndarray:
        """The text as this voice says it, float32 [A] in [-1, 1] at RATE."""
        known = self.library.espeak_SetVoiceByName(f"{accent}+{voice}".encode())
        assert known == 0, f"espeak-ng has no voice {accent}+{voice}"
        self.library.espeak_SetParameter(SPEED, speed, 0)
        self.library.espeak_SetParameter(PITCH, pitch, 0)
        self.heard, letters = [], text.encode() + b"\0"
        self.library.espeak_Synth(letters, len(letters), 0, CHARACTERS, 0, UTF8, None, None)
        wave_A = np.concatenate(self.heard).astype(np.float32) / 2**15
        return resample_poly(wave_A, RATE, self.rate).astype(np.float32)


def family(voice: str) -> str:
    """What voices that are made from each other have in common: klatt for klatt4, whisper for whisperf."""
    return re.match(r"whisper|anika|[a-z ]+", voice.lower())[0]


def divide(voices: list[str], seed: int, share: float = 0.25) -> tuple[list[str], list[str]]:
    """Voices to train on and about a share of them held out, whole families."""
    families = sorted(set(map(family, voices)))
    held: set[str] = set()
    for index in np.random.default_rng(seed).permutation(len(families)):
        if sum(family(voice) in held for voice in voices) >= share * len(voices):
            break
        held.add(families[index])
    return [v for v in voices if family(v) not in held], [v for v in voices if family(v) in held]


def utterances(speaker: Speaker, voices: list[str], count: int, seed: int) -> dict[str, np.ndarray]:
    """One to three random digits, said by random voices: the arrays of a file of examples, and `voices` [N]."""
    rng = np.random.default_rng(seed)
    frames_NIE = np.zeros((count, MOST_FRAMES, BANDS), np.float32)
    frame_counts, captions, said_by = np.zeros(count, int), [], []
    while len(captions) < count:
        text = " ".join(rng.choice(DIGITS, 1 + len(captions) % 3))
        voice, accent = str(rng.choice(voices)), str(rng.choice(ACCENTS))
        frames_IE = log_mel(speaker.say(text, voice, accent, int(rng.integers(*SPEEDS)), int(rng.integers(*PITCHES))))
        if len(frames_IE) <= MOST_FRAMES:
            row = len(captions)
            frames_NIE[row, : len(frames_IE)], frame_counts[row] = frames_IE, len(frames_IE)
            captions.append(text)
            said_by.append(voice)
    return dict(frames=frames_NIE, frame_counts=frame_counts, captions=np.array(captions), voices=np.array(said_by))


# --- frames ----------------------------------------------------------------------------------------------------------
@functools.cache
def mel_filters() -> np.ndarray:
    """Triangles [P, E] over the bins of a spectrum, evenly spaced and overlapping by half in mel."""
    edges = 700 * (10 ** (np.linspace(*(2595 * np.log10(1 + np.array([100, 3900]) / 700)), BANDS + 2) / 2595) - 1)
    hertz_P1 = np.fft.rfftfreq(256, 1 / RATE)[:, None]
    low_E, centre_E, high_E = edges[:-2], edges[1:-1], edges[2:]
    return np.clip(np.minimum((hertz_P1 - low_E) / (centre_E - low_E), (high_E - hertz_P1) / (high_E - centre_E)), 0, 1)


def log_mel(wave_A: np.ndarray) -> np.ndarray:
    """Frames [I, E] of a wave without its silent ends: log energies, the mean of each band over the utterance taken
    away (so that a voice's colour and loudness count less), and scaled to about 1."""
    windows_IC = np.lib.stride_tricks.sliding_window_view(np.pad(wave_A, WINDOW), WINDOW)[::HOP] * np.hanning(WINDOW)
    mel_IE = np.abs(np.fft.rfft(windows_IC, 256)) ** 2 @ mel_filters()
    loud = np.flatnonzero(mel_IE.sum(1) > 1e-5 * mel_IE.sum(1).max())
    mel_IE = mel_IE[loud[0] : loud[-1] + 1]
    log_IE = np.log(mel_IE + 1e-6 * mel_IE.max())
    return ((log_IE - log_IE.mean(0)) / 3).astype(np.float32)


def stacked(examples: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same examples with every STACKED frames in one vector."""
    N, frames, bands = examples["frames"].shape
    vectors_NIE = examples["frames"].reshape(N, frames // STACKED, STACKED * bands)
    return examples | {"frames": vectors_NIE, "frame_counts": -(-examples["frame_counts"] // STACKED)}


# --- plain recognisers -----------------------------------------------------------------------------------------------
def stretched(examples: dict[str, np.ndarray], length: int = 24) -> np.ndarray:
    """Every utterance as `length` frames evenly spaced in it, and its true length: [N, length E + 1]."""
    rows = []
    for frames_IE, count in zip(examples["frames"], examples["frame_counts"], strict=True):
        places = np.linspace(0, count - 1, length)
        low = np.minimum(places.astype(int), count - 2)
        mixed = frames_IE[low] + (places - low)[:, None] * (frames_IE[low + 1] - frames_IE[low])
        rows.append(np.append(mixed.ravel(), count / 20))
    return np.array(rows, np.float32)


def plain_answers(train: dict[str, np.ndarray], held: dict[str, np.ndarray]) -> dict[str, list[str]]:
    """What the nearest training utterance said; and logistic regression, a class for the digit at each place."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.preprocessing import StandardScaler

    x_train, x_held = stretched(train), stretched(held)
    nearest = KNeighborsClassifier(1).fit(x_train, train["captions"]).predict(x_held)
    scale = StandardScaler().fit(x_train)
    words = [np.array([[*text.split(), "", ""][:3] for text in part["captions"]]) for part in (train, held)]
    places = []
    for place in range(3):
        model = LogisticRegression(C=0.01, max_iter=100).fit(scale.transform(x_train), words[0][:, place])
        places.append(model.predict(scale.transform(x_held)))
    logistic = [" ".join(word for word in row if word) for row in zip(*places, strict=True)]
    return {"nearest neighbour": list(nearest), "logistic regression": logistic}
