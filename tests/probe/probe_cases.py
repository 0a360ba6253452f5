"""Spaces whose answers are known, and suites to ask of them."""

from pathlib import Path

import jax
import numpy as np

from lm.config import DataConfig, Experiment, ModelConfig
from lm.model.api import build
from lm.model.trained import Trained
from lm.probe import Space


def random_space(words: int, width: int, seed: int = 0, cases: bool = True) -> Space:
    """Gaussian vectors of different lengths; some words come in two or three cases."""
    rng = np.random.default_rng(seed)
    names = [f"word{i}" for i in range(words)]
    if cases:
        for i in range(2, words, 5):
            names[i] = names[i - 1].capitalize()
        for i in range(8, words, 15):
            names[i] = names[i - 2].upper()
    vectors = rng.normal(size=(words, width)) * rng.uniform(0.2, 5, size=(words, 1))
    return Space("random", tuple(names), vectors.astype("float32"))


def write_suite(
    file: Path, space: Space, *, sections: int, questions: int, missing: bool = True, seed: int = 0
) -> list[list[str]]:
    """Google's format: random words, the right answer often near enough to be found; some words the space lacks."""
    rng, lines, written = np.random.default_rng(seed), [], []
    unit = space.vectors_VD / np.linalg.norm(space.vectors_VD, axis=1, keepdims=True)
    for section in range(sections):
        lines.append(f": section {section}")
        for _ in range(questions):
            a, b, c = rng.choice(len(space.words), 3, replace=False)
            score = unit @ (unit[b] - unit[a] + unit[c])
            score[[a, b, c]] = -np.inf
            d = np.argsort(-score)[min(rng.integers(3), rng.integers(3))]
            words = [space.words[i] for i in (a, b, c, d)]
            words = [word.lower() if rng.random() < 0.2 else word for word in words]
            if missing and rng.random() < 0.1:
                words[rng.integers(4)] = "absent"
            written.append(words)
            lines.append(" ".join(words))
    file.write_text("\n".join(lines) + "\n")
    return written


def lattice(folder: Path, domains: int = 8) -> tuple[Space, Path]:
    """Gender x age x domain, an axis for each gender, age and domain, among words of no relation; and its suite."""
    rng = np.random.default_rng(5)
    words, vectors, width = [], [], 2 + domains + 30
    for domain in range(domains):
        for gender in "mf":
            for age in "oy":
                vector = np.zeros(width)
                vector[:2] = 1 if gender == "m" else -1, 1 if age == "o" else -1
                vector[2 + domain] = 1.5
                words.append(f"{gender}{domain}{age}")
                vectors.append(vector)
    fillers = rng.normal(size=(400, width)) / np.sqrt(width)
    space = Space("lattice", (*words, *(f"x{i}" for i in range(400))), np.concatenate([vectors, fillers]).astype("f4"))
    lines = []
    for name, first, second in (
        ("gender", "m{}{}", "f{}{}"),
        ("age", "{1}{0}o", "{1}{0}y"),
    ):
        lines.append(f": {name}")
        others = "oy" if name == "gender" else "mf"
        pairs = [(first.format(i, x), second.format(i, x)) for i in range(domains) for x in others]
        lines += [f"{a} {b} {c} {d}" for a, b in pairs for c, d in pairs if (a, b) != (c, d)]
    file = folder / "lattice.txt"
    file.write_text("\n".join(lines) + "\n")
    return space, file


def little(tokenizer, packing: bool = False, **changes) -> Trained:
    """L=2, D=16, N=2, T=24 of random parameters that make every word and place sway the states."""
    shape = dict(layers=2, width=16, heads=2, context=24, vocab=tokenizer.n_vocab, zero_init=False, dtype="float32")
    c, rng = ModelConfig(**(shape | changes)), np.random.default_rng(0)

    def draw(path, leaf):
        return jax.numpy.asarray(rng.normal(size=leaf.shape) * 0.5 + (path[-1].key == "scale"), "float32")

    experiment = Experiment(model=c, data=DataConfig(packing=packing))
    return Trained(jax.tree.map_with_path(draw, build(c).shapes()), tokenizer, experiment, step=0)
