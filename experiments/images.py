"""Pictures through the blocks of a language model: read as patches, written pixel by pixel, described in words.

python experiments/images.py                              5 minutes on two CPU cores, no download
python experiments/images.py --steps 20 --seeds 0         a minute, to see that it works
python experiments/images.py --write digits.npz           the examples of configs/digits.py

Takes scikit-learn's 1,797 digits of 8 x 8 pixels, of which 450 are held out. Classes: patches of 1, 2, 4 or 8 pixels
are vectors before the tokens, all read both ways, and the digit is the answer; beside logistic regression and the 3
nearest neighbours. Pixels: the digit, then 64 grey levels as letters; bits a pixel, and the digit that makes the pixels
likeliest (Bayes). Captions: patches, then "a thick zero in the upper half"; the patches are read both ways or causally.
Classes and captions are learnt from moved copies of the training images as well, and so are the baselines where a
figure says so.
Expected: digits .989 from patches of 4, .987 by neighbours; 1.72 bits a pixel, .975 by Bayes' rule; captions .87 whole.
"""

import argparse
import functools
import itertools
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from scipy import ndimage
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.neighbors import KNeighborsClassifier

import lm
from lm.data import held_out, patches, prepare
from lm.figures import STYLE, plt, save
from lm.files import whole
from lm.hardware import keep_compiled_programs
from lm.model import Batch, next_token

FIGURE = Path(__file__).parent / "figures" / "images.svg"
PATCHES = 8, 4, 2, 1
HELD, COPIES = 450, 8
"""Images held out; moved copies of each of the others."""
STEPS = {"patch 1": 400, "pixels": 600, "captions prefix": 600, "captions causal": 600}
"""Of a run, where not those of configs/digits.py: with 64 vectors a step takes four times as long as with 16."""
LETTERS = "abcdefghijklmnopq"
"""A token for each of the 17 grey levels."""
WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, help="of every run, instead of each one's own number")
    parser.add_argument("--runs", type=Path, default=Path("runs/images"), help="where runs and results are kept")
    parser.add_argument("--figure", type=Path, default=FIGURE)
    parser.add_argument("--write", type=Path, help="write the examples of configs/digits.py to this .npz file, no more")
    options = parser.parse_args()
    if options.write:
        write_frames(options.write, load_digits().images, 2, labels=load_digits().target)
        return
    keep_compiled_programs(options.runs / "programs")
    results = Results(options.runs / "results.jsonl")
    classes(results, options)
    pixels(results, options)
    captions(results, options)
    print(table(results))
    save(draw(results), options.figure)
    print(options.figure)


class Results:
    """What was measured, a line each in a file: what is there already is not computed again."""

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.records = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def add(self, name: str, seed: int | None, **values) -> None:
        self.records.append({"name": name, "seed": seed, **values})
        with self.path.open("a") as file:
            file.write(json.dumps(self.records[-1]) + "\n")

    def has(self, name: str, seed: int | None = None) -> bool:
        return any((record["name"], record["seed"]) == (name, seed) for record in self.records)

    def values(self, name: str, key: str) -> list:
        """One value of each seed's record of this name."""
        return [record[key] for record in self.records if record["name"] == name]


# --- the images ------------------------------------------------------------------------------------------------------
@functools.cache
def split() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Images for training and held out, [N, H, W] of 0 to 16, and the digits [N] of each: always the same."""
    images_NHW, digits_N = load_digits().images, load_digits().target
    train_NHW, test_NHW, train_N, test_N = train_test_split(
        images_NHW, digits_N, test_size=HELD, stratify=digits_N, random_state=0
    )
    return train_NHW, train_N, test_NHW, test_N


@functools.cache
def with_copies() -> tuple[np.ndarray, np.ndarray]:
    """The images for training with moved copies behind them, and their digits."""
    train_NHW, train_N, _, _ = split()
    rng = np.random.default_rng(0)
    return np.concatenate([train_NHW, *(moved(train_NHW, rng) for _ in range(COPIES))]), np.tile(train_N, 1 + COPIES)


def moved(images_NHW: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Each image turned by up to 10 degrees, up to 10% larger or smaller, and shifted by up to 0.7 pixels."""
    moved_NHW = np.empty_like(images_NHW)
    middle = (np.array(images_NHW.shape[1:]) - 1) / 2
    for image_HW, out_HW in zip(images_NHW, moved_NHW, strict=True):
        angle, shift = np.radians(rng.uniform(-10, 10)), rng.uniform(-0.7, 0.7, 2)
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) * rng.uniform(0.9, 1.1)
        ndimage.affine_transform(image_HW, turn, middle - turn @ middle + shift, output=out_HW, order=1)
    return moved_NHW


def frames(images_NHW: np.ndarray, patch: int) -> np.ndarray:
    """A vector for each patch, with numbers from -1 to 1: [N, I, E]."""
    return patches(images_NHW / 8 - 1, patch).astype(np.float32)


def write_frames(path: Path, images_NHW: np.ndarray, patch: int, **answers: np.ndarray) -> None:
    with whole(path, "wb") as file:
        np.savez(file, frames=frames(images_NHW, patch), **answers)


def train(
    name: str, files: tuple[Path, Path], results: Results, options: argparse.Namespace, **changes
) -> list[lm.Run]:
    """A run of each seed without a result yet, side by side: configs/digits.py with other files and settings."""
    shared = {"data.examples": str(files[0]), "data.validation_corpus": str(files[1]), **changes}
    if steps := options.steps or STEPS.get(name):
        shared["train.steps"] = steps
    experiments = [
        lm.replace(
            lm.load_experiment("digits"), shared | {"name": f"{name}-{seed}".replace(" ", "-"), "train.seed": seed}
        )
        for seed in options.seeds
        if not results.has(name, seed)
    ]
    runs = lm.train_pack(experiments, folder=options.runs, display=False) if experiments else []
    if not all(run.finished for run in runs):
        sys.exit(75)  # stopped and saved: the same command goes on
    return runs


def answers(run: lm.Run, patch: int, tokens: int) -> list[str]:
    """What a run's model says of each image held out, the likeliest token each time."""
    vectors = list(frames(split()[2], patch))
    greedy = lm.Sampler(temperature=0)
    return [one.text for one in lm.generate(lm.load(run.path), [""] * HELD, greedy, vectors=vectors, max_tokens=tokens)]


def share(answered: list[str], wanted: list[str]) -> float:
    return float(np.mean([one == other for one, other in zip(answered, wanted, strict=True)]))


# --- patches to class ------------------------------------------------------------------------------------------------
def classes(results: Results, options: argparse.Namespace) -> None:
    """The digit of each image held out, told from patches of every size and by the baselines."""
    train_NHW, train_N, test_NHW, test_N = split()
    more_NHW, more_N = with_copies()
    for patch in PATCHES:
        name, count = f"patch {patch}", (8 // patch) ** 2
        files = options.runs / f"patch{patch}.npz", options.runs / f"patch{patch}-held.npz"
        changes = {"model.context": count + 2, "model.vectors": patch**2}
        write_frames(files[0], more_NHW, patch, labels=more_N)
        write_frames(files[1], test_NHW, patch, labels=test_N)
        for run in train(name, files, results, options, **changes):
            right = share(answers(run, patch, 1), [str(digit) for digit in test_N])
            results.add(name, run.experiment.train.seed, accuracy=right, seconds=run.metrics()[-1]["seconds"])
    for name, model in (("logistic", LogisticRegression(max_iter=5000)), ("3-NN", KNeighborsClassifier(3))):
        if not results.has(name):
            scores = {
                key: model.fit(flat(images_NHW), digits_N).score(flat(test_NHW), test_N)
                for key, images_NHW, digits_N in (("accuracy", train_NHW, train_N), ("copies", more_NHW, more_N))
            }
            results.add(name, None, **scores)


def flat(images_NHW: np.ndarray) -> np.ndarray:
    """Pixels side by side, 0 to 1: what the baselines read."""
    return images_NHW.reshape(len(images_NHW), -1) / 16


# --- pixels as tokens ------------------------------------------------------------------------------------------------
def pixels(results: Results, options: argparse.Namespace) -> None:
    """Bits a pixel of the images held out, their digits by Bayes' rule, and images written by the model."""
    train_NHW, train_N, test_NHW, test_N = split()
    files = options.runs / "pixels.tsv", options.runs / "pixels-held.tsv"
    write_letters(files[0], train_NHW, train_N)
    write_letters(files[1], test_NHW, test_N)
    changes = {"model.context": 67, "model.vectors": None, "model.mask": "causal", "data.tokenizer": "chars"}
    for run in train("pixels", files, results, options, **changes):
        m = lm.load(run.path)
        columns = held_out(prepare(m.experiment.data).validation, m.experiment.data, m.model.config, 10**9)
        nats_BC = np.stack([pixel_nats(m, columns, digit) for digit in range(10)], axis=1)
        bits = nats_BC[np.arange(HELD), test_N].mean() / 64 / np.log(2)
        right = np.mean(nats_BC.argmin(axis=1) == test_N)
        written = lm.generate(m, [""] * 10, lm.Sampler(), sources=list("0123456789"), max_tokens=64)
        seed, seconds = run.experiment.train.seed, run.metrics()[-1]["seconds"]
        results.add("pixels", seed, bits=bits, bayes=right, written=[one.text for one in written], seconds=seconds)
    if not results.has("histogram"):
        place, by_class_C = histogram_bits(train_NHW, train_N, test_NHW)
        own = by_class_C[np.arange(HELD), test_N].mean()
        right = np.mean(by_class_C.argmin(axis=1) == test_N)
        results.add("histogram", None, uniform=np.log2(len(LETTERS)), place=place.mean(), own=own, bayes=right)


def write_letters(path: Path, images_NHW: np.ndarray, digits_N: np.ndarray) -> None:
    """Images as examples of text: the digit is the source, a letter for each pixel the target."""
    levels_NHW = np.clip(images_NHW.round(), 0, 16).astype(int)
    lines = (f"{digit}\t{spell(image_HW)}" for digit, image_HW in zip(digits_N, levels_NHW, strict=True))
    with whole(path) as file:
        file.write("\n".join(["source\ttarget", *lines]) + "\n")


def spell(image_HW: np.ndarray) -> str:
    return "".join(LETTERS[level] for level in image_HW.flat)


@functools.partial(jax.jit, static_argnames="model")
def row_nats(model: lm.LanguageModel, params: dict, batch: Batch) -> jax.Array:
    """[B] nats of each row's 64 pixels; the end of text after them is left out."""
    learnt = next_token(model, params, batch)
    return (learnt.nats.target * learnt.weights_BT)[:, :-1].sum(axis=1)


def pixel_nats(m: lm.Trained, columns: dict[str, np.ndarray], digit: int) -> np.ndarray:
    """[B] nats of each row's pixels, were it an image of this digit."""
    tokens_BU = columns["tokens_BU"].copy()
    tokens_BU[:, 1] = m.tokenizer.encode_ordinary(str(digit))[0]
    return np.asarray(row_nats(m.model, m.params, Batch(**{**columns, "tokens_BU": tokens_BU})))


def histogram_bits(train_NHW: np.ndarray, train_N: np.ndarray, test_NHW: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bits a pixel under the frequencies of the levels at its place, [N]; and under those of each class, [N, C]."""
    levels_NX, test_NX = train_NHW.reshape(-1, 64).astype(int), test_NHW.reshape(-1, 64).astype(int)

    def bits(some_NX: np.ndarray) -> np.ndarray:
        counts_XV = 0.1 + np.stack([(some_NX == level).sum(axis=0) for level in range(17)], axis=1)
        shares_XV = counts_XV / counts_XV.sum(axis=1, keepdims=True)
        return -np.log2(shares_XV[np.arange(64), test_NX]).mean(axis=1)

    return bits(levels_NX), np.stack([bits(levels_NX[train_N == digit]) for digit in range(10)], axis=1)


# --- captions --------------------------------------------------------------------------------------------------------
def captions(results: Results, options: argparse.Namespace) -> None:
    """Whole captions and digits right, by greedy decoding, of images read both ways and causally."""
    more_NHW, more_N = with_copies()
    _, _, test_NHW, test_N = split()
    files = options.runs / "captions.npz", options.runs / "captions-held.npz"
    write_frames(files[0], more_NHW, 4, captions=describe(more_NHW, more_N))
    write_frames(files[1], test_NHW, 4, captions=describe(test_NHW, test_N))
    wanted, digits = describe(test_NHW, test_N).tolist(), [WORDS[digit] for digit in test_N]
    for name, mask in (("captions prefix", "prefix"), ("captions causal", "causal")):
        changes = {"model.context": 12, "model.vectors": 16, "model.mask": mask, "data.tokenizer": "words"}
        for run in train(name, files, results, options, **changes):
            said = answers(run, 4, 7)
            third = [" ".join(text.split()[2:3]) for text in said]
            whole, digit = share(said, wanted), share(third, digits)
            results.add(name, run.experiment.train.seed, whole=whole, digit=digit, said=said[:4])
    if not results.has("captions logistic"):
        parts = zip(attributes(more_NHW, more_N), attributes(test_NHW, test_N), strict=True)
        right_PN = [
            LogisticRegression(max_iter=5000).fit(flat(more_NHW), train_N).predict(flat(test_NHW)) == test_N
            for train_N, test_N in parts
        ]
        results.add("captions logistic", None, whole=np.mean(np.all(right_PN, axis=0)), digit=np.mean(right_PN[0]))


def attributes(images_NHW: np.ndarray, digits_N: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What a caption says of each image, [N] each: its digit; whether it has more ink than half of the images for
    training; whether there is more in its upper half than in the lower."""
    ink_N, usual = images_NHW.sum(axis=(1, 2)), np.median(split()[0].sum(axis=(1, 2)))
    upper_N = images_NHW[:, :4].sum(axis=(1, 2)) > images_NHW[:, 4:].sum(axis=(1, 2))
    return digits_N, ink_N > usual, upper_N


def describe(images_NHW: np.ndarray, digits_N: np.ndarray) -> np.ndarray:
    """A caption for each image, [N] texts."""
    return np.array(
        [
            f"a {'thick' if thick else 'thin'} {WORDS[digit]} in the {'upper' if upper else 'lower'} half"
            for digit, thick, upper in zip(*attributes(images_NHW, digits_N), strict=True)
        ]
    )


# --- what is shown ---------------------------------------------------------------------------------------------------
FIGURES = {
    "accuracy": "digits right", "copies": "digits right, learnt from copies too", "uniform": "bits a pixel, uniform",
    "place": "bits a pixel, by place", "own": "bits a pixel, by place and digit", "bits": "bits a pixel",
    "bayes": "digits right by Bayes' rule", "whole": "whole captions right", "digit": "digits right in captions",
    "seconds": "seconds of training",
}  # fmt: skip


def deviation(values: list[float]) -> float:
    """Standard deviation over seeds; 0 where there is one."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def spread(values: list[float]) -> str:
    """Mean and, of several seeds, standard deviation."""
    return f"{np.mean(values):.3f}" + (f" ± {deviation(values):.3f}" if len(values) > 1 else "")


def table(results: Results) -> str:
    """Markdown: every figure, mean and standard deviation over seeds."""
    lines = ["| model | figure | held-out images |", "|---|---|---|"]
    for name in dict.fromkeys(record["name"] for record in results.records):
        for key in FIGURES:
            if values := [record[key] for record in results.records if record["name"] == name and key in record]:
                lines.append(f"| {name} | {FIGURES[key]} | {spread(values)} |")
    return "\n".join(lines)


def draw(results: Results):
    """Above: errors by patch, bits a pixel, captions. Below: images and captions that the first seed's models wrote."""
    with plt.rc_context(STYLE):
        figure = plt.figure(figsize=(11, 7), layout="constrained")
        above, below = figure.subfigures(2, 1, height_ratios=[1.25, 1])
        axes = above.subplots(1, 3)
    draw_classes(axes[0], results)
    known = {key: results.values("histogram", key)[0] for key in ("uniform", "place", "own")}
    names = "uniform", "by place", "by place\nand digit", "model"
    draw_bars(axes[1], names, [[bits] for bits in known.values()] + [results.values("pixels", "bits")])
    axes[1].set_title("Bits a pixel", fontsize=12)
    kinds = "captions prefix", "captions causal", "captions logistic"
    draw_bars(axes[2], ["both ways", "causal", "logistic"], [results.values(name, "whole") for name in kinds])
    axes[2].set_title("Captions right as a whole", fontsize=12)
    left, right = below.subfigures(1, 2, width_ratios=[1.3, 1])
    train_NHW, train_N, test_NHW, _ = split()
    real = [train_NHW[np.flatnonzero(train_N == digit)[0]] for digit in range(10)]
    show(left.subplots(2, 10), [*real, *map(read, results.values("pixels", "written")[0])])
    left.suptitle("Digits, and below digits written pixel by pixel", fontsize=12)
    said = [text.replace(" in ", "\nin ") for text in results.values("captions prefix", "said")[0]]
    show(right.subplots(1, 4), test_NHW, said)
    right.suptitle("Captions of images held out", fontsize=12)
    return figure


def draw_classes(axis, results: Results) -> None:
    """Errors in percent against the patch, and the baselines' as lines."""
    sizes = [patch for patch in sorted(PATCHES) if results.values(f"patch {patch}", "accuracy")]
    accuracy = [results.values(f"patch {patch}", "accuracy") for patch in sizes]
    errors, deviations = [100 * (1 - np.mean(x)) for x in accuracy], [100 * deviation(x) for x in accuracy]
    axis.errorbar(sizes, errors, deviations, marker="o", capsize=3)
    for i, name in enumerate(("logistic", "3-NN")):
        axis.axhline(100 * (1 - results.values(name, "accuracy")[0]), color=f"C{i + 1}", linestyle="--", label=name)
    axis.set(xscale="log", xlabel="pixels along a patch (1: fewer steps)", ylim=(0, None))
    axis.set_xticks(sizes, [str(patch) for patch in sizes])
    axis.minorticks_off()
    axis.set_title("Wrong digits, %", fontsize=12)
    axis.legend(fontsize=10, frameon=False)


def draw_bars(axis, names: Sequence[str], values: Sequence[list[float]]) -> None:
    """A bar for each name, the mean over seeds with its deviation."""
    means, deviations = [np.mean(x) for x in values], [deviation(x) for x in values]
    bars = axis.bar(names, means, yerr=deviations, capsize=3, color="C0")
    axis.bar_label(bars, fmt="%.3f", fontsize=10, padding=2)
    axis.tick_params(axis="x", labelsize=10)
    axis.margins(y=0.12)


def show(axes: np.ndarray, images: Sequence[np.ndarray], titles: Sequence[str] = ()) -> None:
    """An image in each place, and a title where there is one."""
    for axis, image_HW, title in zip(axes.flat, images, titles or itertools.repeat(""), strict=False):
        axis.imshow(image_HW, cmap="Greys", vmin=0, vmax=16)
        axis.set_axis_off()
        axis.set_title(title, fontsize=9)


def read(text: str) -> np.ndarray:
    """The image that letters spell, [8, 8]; what is not written is white."""
    levels = [LETTERS.index(letter) if letter in LETTERS else 0 for letter in text[:64]]
    return np.array(levels + [0] * (64 - len(levels))).reshape(8, 8)


if __name__ == "__main__":
    main()
