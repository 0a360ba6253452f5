"""Pictures through the blocks of a language model: read as patches, written as pixels, and described in words.

python experiments/images.py                              6 minutes on two CPU cores, no download
python experiments/images.py --steps 60 --seeds 0         a minute, to see that it works
python experiments/images.py --write digits.npz           the examples of configs/digits.py

"""

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from scipy import ndimage
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.neighbors import KNeighborsClassifier

import lm
from lm.data import held_out, patches, prepare
from lm.hardware import keep_compiled_programs
from lm.model import Batch, next_token

PATCHES = 1, 2, 4, 8
HELD = 450
COPIES = 8
LEVELS = "abcdefghijklmnopq"
WORDS = "zero one two three four five six seven eight nine".split()


@dataclass(frozen=True)
class Split:
    """Images of 8 x 8 pixels, 0 to 16, and their digits, divided anew for each seed."""

    train_NHW: np.ndarray
    train_N: np.ndarray
    test_NHW: np.ndarray
    test_N: np.ndarray


def split(seed: int) -> Split:
    images_NHW, digits_N = load_digits().images, load_digits().target
    train, test = train_test_split(np.arange(len(digits_N)), test_size=HELD, stratify=digits_N, random_state=seed)
    return Split(images_NHW[train], digits_N[train], images_NHW[test], digits_N[test])


def moved(images_NHW: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Each image turned by up to 10 degrees, made up to 10% larger or smaller, and shifted by up to 0.7 pixels."""
    moved_NHW = np.empty_like(images_NHW)
    middle = (np.array(images_NHW.shape[1:]) - 1) / 2
    for image_HW, out_HW in zip(images_NHW, moved_NHW, strict=True):
        angle, shift = np.radians(rng.uniform(-10, 10)), rng.uniform(-0.7, 0.7, 2)
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) * rng.uniform(0.9, 1.1)
        ndimage.affine_transform(image_HW, turn, middle - turn @ middle + shift, output=out_HW, order=1)
    return moved_NHW


def with_copies(images_NHW: np.ndarray, copies: int, seed: int) -> np.ndarray:
    """The images, and so many moved copies of each behind them: [(1 + copies) N, H, W]."""
    rng = np.random.default_rng(seed)
    return np.concatenate([images_NHW, *(moved(images_NHW, rng) for _ in range(copies))])


def write_frames(path: Path, images_NHW: np.ndarray, patch: int, **answers: np.ndarray) -> None:
    """Images as examples of vectors: a patch each, centred on zero."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, frames=patches(images_NHW / 8 - 1, patch).astype(np.float32), **answers)
