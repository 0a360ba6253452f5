"""Word vectors of a transformer beside word2vec's: the same tokens, the same time, the same cores.

python experiments/google_set.py --corpus train.txt.xz --questions questions-words.txt --wordsim EN-WS-353-ALL.txt
python experiments/google_set.py --corpus train.txt.xz --questions questions-words.txt --minutes 30 --seeds 0 1 2
The text becomes its --vocab most frequent words, lower case; all else is dropped. On these tokens gensim's word2vec
(skip-gram, 5 negative samples, window 5) makes as many epochs as fit in the minutes, and then a next-token transformer
of 2 layers and the same width as many steps. Both are asked the Google analogies (Mikolov et al. 2013) and, if given,
WordSim-353, in every space: as it is, centred, whitened; the transformer's embedding and its states by layer, averaged
over their places in the text. One space of each is chosen by half of the questions, and reported on the other half.
Besides the two times --minutes for a seed: reading the text, measuring the rates and scoring, about 8 minutes.

Expect the transformer to be behind. Its softmax compares each word with all others, where negative sampling draws five:
in six minutes on two cores it read a quarter of 11 million words once, word2vec all of them 14 times.
Stopped, it goes on where it was. Expected: experiments/RESULTS.md. Draws experiments/figures/google_set.svg.
"""

import argparse
import base64
import dataclasses
import importlib.util
import json
import os
import re
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

import lm
from lm import probe
from lm import tokenizer as tokenizers
from lm.data import Prepared, open_corpus, prepare
from lm.errors import require
from lm.files import whole
from lm.hardware import keep_compiled_programs

FIGURE = Path(__file__).parent / "figures" / "google_set.svg"
WORD = re.compile(r"[^\W\d_]+")
BASE = lm.Experiment(
    model=lm.ModelConfig(layers=2, width=128, heads=4, context=64, tied=True),
    data=lm.DataConfig(separator="\n", validation=0.005),
    optimizer=lm.OptimizerConfig(name="muon", learning_rate=6e-3, matrix_learning_rate=0.02, newton_schulz=3),
    schedule=lm.ScheduleConfig(name="wsd", warmup="2%", decay="60%"),
    train=lm.TrainConfig(batch=16, eval_every="100%", eval_tokens=32_768, keep=1),
)
"""A large vocabulary makes the head most of a step: steps are small, and one matrix serves as embedding and head."""
WORD2VEC = dict(sg=1, negative=5, window=5, sample=1e-4, min_count=1)
NAMES = ("word2vec", "transformer")
FOREMOST = ("family", "capital-common-countries", "capital-world")
NUMBERS = ("accuracy", "accuracy_unexcluded", "only_c", "only_b", "offset_cosine")
LINE = 1000
"""Words in a line for word2vec where the text is one document."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", required=True, help="a file, folder or named corpus of English")
    parser.add_argument("--questions", required=True, type=Path, help="analogies in Google's format")
    parser.add_argument("--wordsim", type=Path, help="pairs of words with people's scores of their similarity")
    parser.add_argument("--minutes", type=float, default=10, help="that each of the two trains for")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--vocab", type=int, default=20_000, help="words known, the most frequent ones")
    parser.add_argument("--tokens", type=int, default=2_000_000, help="text that contextual spaces average over")
    parser.add_argument("--folder", type=Path, default=Path("runs/google_set"), help="where everything is kept")
    parser.add_argument("--figure", type=Path, default=FIGURE)
    options = parser.parse_args()
    require(options.minutes > 0 and options.vocab > 0, "--minutes and --vocab must be positive")

    keep_compiled_programs(options.folder / "programs")
    sections = probe.read_suite(options.questions)
    data, text = tokens_of(options)
    plan = make_plan(data, options)
    spaces, seconds = trained(data, plan, options)
    found = score(spaces, sections, options)
    found |= {"text": text, "plan": plan, "seconds": seconds, "minutes": options.minutes, "width": BASE.model.width}
    print(described(found))
    file = options.folder / f"results-{options.minutes:g}min.json"
    with whole(file) as target:
        target.write(json.dumps(found, indent=1) + "\n")
    draw(found, options.figure)
    print(f"{file}\n{options.figure}")


# --- the text that both read -----------------------------------------------------------------------------------------
def tokens_of(options) -> tuple[Prepared, dict]:
    """The corpus in tokens that are words, and what was counted. Raises UserError when the folder holds another's."""
    folder = options.folder
    asked = {"corpus": Path(options.corpus).name, "vocab": options.vocab}
    about, experiment = folder / "text.json", experiment_of(options, 0, 1)
    if not about.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        print(f"reading {asked['corpus']}", file=sys.stderr)
        counted = write_text(options.corpus, options.vocab, folder)
        with whole(about) as file:
            file.write(json.dumps(asked | counted) + "\n")
    text = json.loads(about.read_text())
    before = {key: text[key] for key in asked}
    require(before == asked, f"--folder {folder} holds {before}, now {asked}: choose another folder")
    return prepare(experiment.data), text


def write_text(corpus: str, vocab: int, folder: Path) -> dict:
    """Write text.txt, a line a document, and the tokenizer that has a token for each word with its leading space."""
    source = open_corpus(lm.DataConfig(corpus=corpus))
    counts: Counter[str] = Counter()
    for piece, _ in source.pieces():
        counts.update(WORD.findall(piece.lower()))
    require(bool(counts), f"--corpus {corpus}: no words in it")
    words = sorted(counts, key=lambda word: (-counts[word], word))[:vocab]
    known = frozenset(words)
    with whole(folder / "text.txt") as file:
        for number, (piece, opens) in enumerate(source.pieces()):
            file.write("\n" if opens and number else "")
            file.writelines(f" {word}" for word in WORD.findall(piece.lower()) if word in known)
    texts = [bytes((byte,)) for byte in range(256)] + [f" {word}".encode() for word in words]
    ranks = {base64.b64encode(text).decode(): rank for rank, text in enumerate(texts)}
    special = {tokenizers.END_OF_TEXT: len(texts)}
    made = {"kind": "tiktoken", "name": "words", "pattern": tokenizers.WORD_PATTERN, "special": special, "ranks": ranks}
    tokenizers.save(tokenizers.from_json(made), folder / "tokenizer.json")
    kept = sum(counts[word] for word in words)
    return {"words": counts.total(), "different": len(counts), "kept": kept, "known": len(words)}


def experiment_of(options, seed: int, steps: int) -> lm.Experiment:
    """The transformer's run."""
    data = {"data.corpus": f"{options.folder / 'text.txt'}", "data.tokenizer": f"{options.folder / 'tokenizer.json'}"}
    name = f"{options.minutes:g}min-seed{seed}"
    return lm.replace(BASE, data | {"train.steps": steps, "train.seed": seed, "name": name})


def lines(tokens: np.ndarray, eot: int | None, words: Sequence[str]) -> Iterator[str]:
    """The same tokens as lines of words, a line a document."""
    starts = np.arange(0, len(tokens), LINE) if eot is None else np.flatnonzero(tokens == eot)
    for part in np.split(np.asarray(tokens), starts):
        if line := " ".join(words[token] for token in part if token != eot):
            yield line


# --- word2vec --------------------------------------------------------------------------------------------------------
def has_gensim() -> bool:
    return importlib.util.find_spec("gensim") is not None


class Word2Vec:
    """gensim's, on the tokens that the transformer trains on."""

    def __init__(self, data: Prepared, folder: Path):
        tokens, eot = data.train.tokens, data.train.eot
        words = [data.tokenizer.decode([token]).strip() for token in range(data.tokenizer.n_vocab)]
        seen = np.bincount(tokens, minlength=len(words))
        self.counts = {words[t]: int(seen[t]) for t in np.flatnonzero(seen) if t != eot}
        self.file = folder / "lines.txt"
        if not self.file.is_file():
            with whole(self.file) as file:
                file.writelines(line + "\n" for line in lines(tokens, eot, words))

    def train(self, epochs: int, seed: int) -> tuple[probe.Space, float]:
        """The vectors, frequent words first, and the seconds that training took. Threads make it vary a little."""
        from gensim.models import Word2Vec

        cores = len(os.sched_getaffinity(0))
        model = Word2Vec(vector_size=BASE.model.width, seed=seed, workers=cores, epochs=epochs, **WORD2VEC)
        model.build_vocab_from_freq(self.counts)
        start = time.perf_counter()
        model.train(corpus_file=str(self.file), total_words=sum(self.counts.values()), epochs=epochs)
        seconds = time.perf_counter() - start
        return probe.Space("input", tuple(model.wv.index_to_key), model.wv.vectors), seconds


# --- as much as fits in the time -------------------------------------------------------------------------------------
def make_plan(data: Prepared, options) -> dict:
    """Epochs and steps that fit in the minutes, by a measured epoch and measured steps; the first plan is kept."""
    file = options.folder / f"plan-{options.minutes:g}min.json"
    if file.is_file():
        return json.loads(file.read_text())
    budget, plan = 60 * options.minutes, {}
    if has_gensim():
        print("timing an epoch of word2vec", file=sys.stderr)
        plan["epoch_seconds"] = Word2Vec(data, options.folder).train(1, 0)[1]
        plan["epochs"] = max(1, round(budget / plan["epoch_seconds"]))
    print("timing steps of the transformer", file=sys.stderr)
    e = lm.replace(experiment_of(options, 0, 1), {"model.vocab": data.tokenizer.n_vocab})
    program, n, seconds = lm.bench.Program(e), 1, 0.0
    while seconds < min(20.0, budget / 10):
        n, start = 2 * n, time.perf_counter()
        program.run(n)
        seconds = time.perf_counter() - start
    plan |= {"step_seconds": seconds / n, "steps": max(1, round(budget * n / seconds))}
    plan["tokens"] = plan["steps"] * e.batch_tokens
    plan["train_tokens"] = data.train.count
    with whole(file) as out:
        out.write(json.dumps(plan) + "\n")
    return plan


def trained(data: Prepared, plan: dict, options) -> tuple[dict[str, list], dict[str, list]]:
    """For each of the two a list of spaces for every seed, all of the same words; and the seconds of training."""
    spaces: dict[str, list] = {name: [] for name in NAMES}
    seconds: dict[str, list] = {name: [] for name in NAMES}
    if "epochs" in plan:
        word2vec = Word2Vec(data, options.folder)
        for seed in options.seeds:
            space, took = kept(options.folder / f"word2vec-{options.minutes:g}min-seed{seed}.npz",
                               lambda seed=seed: word2vec.train(plan["epochs"], seed))  # fmt: skip
            spaces["word2vec"].append([space])
            seconds["word2vec"].append(took)
    else:
        print("word2vec is left out: pip install gensim, and choose another --folder", file=sys.stderr)
        del spaces["word2vec"], seconds["word2vec"]
    for seed in options.seeds:
        run = lm.train(experiment_of(options, seed, plan["steps"]), folder=options.folder, display=lm.Display())
        if max(run.steps()) < plan["steps"]:
            raise SystemExit("stopped; the same command goes on from there")
        seconds["transformer"].append(run.metrics()[-1]["seconds"])
        spaces["transformer"].append(probe.spaces_of(lm.load(run), tokens=options.tokens))
    return shared(spaces), seconds


def kept(file: Path, make) -> tuple[probe.Space, float]:
    """What `make` makes, from the file where it was made before."""
    if not file.is_file():
        space, seconds = make()
        with whole(file, "wb") as target:
            np.savez(target, words=space.words, vectors_VD=space.vectors_VD, seconds=seconds)
    with np.load(file) as held:
        return probe.Space("input", tuple(held["words"].tolist()), held["vectors_VD"]), float(held["seconds"])


def shared(spaces: dict[str, list]) -> dict[str, list]:
    """The words that all of them have; each space as it is, centred and whitened."""
    everything = [space for seeds in spaces.values() for some in seeds for space in some]
    common = set.intersection(*(set(space.words) for space in everything))

    def variants(space: probe.Space) -> list[probe.Space]:
        rows = [i for i, word in enumerate(space.words) if word in common]
        space = probe.Space(space.name, tuple(space.words[i] for i in rows), space.vectors_VD[rows], space.about)
        return [space, probe.centred(space), probe.whitened(space)]

    return {
        name: [[variant for space in some for variant in variants(space)] for some in seeds]
        for name, seeds in spaces.items()
    }


# --- scores ----------------------------------------------------------------------------------------------------------
def half(sections: Sequence[probe.Section], which: int) -> list[probe.Section]:
    """Questions that ask for every other pair: 0 for those that choose, 1 for the others."""
    return [
        dataclasses.replace(section, questions_Q2=section.questions_Q2[section.questions_Q2[:, 1] % 2 == which])
        for section in sections
    ]


def score(spaces: dict[str, list], sections: list[probe.Section], options) -> dict:
    """Every space on all questions (`all`), the chosen ones on the half that did not choose (`rows`)."""
    found: dict = {"all": [], "rows": [], "chosen": {}, "wordsim": [], "seeds": options.seeds}
    for name, seeds in spaces.items():
        print(f"scoring {name}", file=sys.stderr)
        choosing = [probe.suite(some, half(sections, 0), samples=1).totals for some in seeds]
        means = {scores[0].space: statistics.mean(one.accuracy for one in scores)
                 for scores in zip(*choosing, strict=True)}  # fmt: skip
        chosen = found["chosen"][name] = max(means, key=means.__getitem__)
        for seed, some in zip(options.seeds, seeds, strict=True):
            whole_suite = probe.suite(some, sections, samples=1)
            [best] = [space for space in some if space.name == chosen]
            other = probe.suite(best, half(sections, 1))
            for key, suite in (("all", whole_suite), ("rows", other)):
                for one in suite.sections + suite.totals:
                    found[key].append({"model": name, "seed": seed} | dataclasses.asdict(one))
            if options.wordsim:
                for one in probe.similarity(some, options.wordsim):
                    row = {"space": one.space, "rho": one.rho, "interval": one.interval, "kept": one.kept}
                    found["wordsim"].append({"model": name, "seed": seed, "dropped": one.dropped} | row)
        found["searched"] = len(seeds[0][0].words)
    return found


def over_seeds(rows: Sequence[dict], number: str) -> str:
    """The mean, with the standard deviation where there are several seeds."""
    values = [row[number] for row in rows if row[number] is not None]
    if not values:
        return "-"
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{spread}"


def pick(rows: Sequence[dict], **wanted) -> list[dict]:
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def described(found: dict) -> str:
    """Markdown: what was read, the chosen spaces by section, every space."""
    text, plan, models = found["text"], found["plan"], list(found["chosen"])
    told = {
        "word2vec": lambda: f"{plan['epochs']} epochs",
        "transformer": lambda: f"{plan['steps']:,} steps, {plan['tokens'] / plan['train_tokens']:.2f} epochs",
    }
    out = [
        f"{text['words']:,} words, {text['known']:,} of {text['different']:,} different ones known, which are"
        f" {text['kept'] / text['words']:.1%} of the text; both search the same {found['searched']:,}.",
        *(f"{name}: {told[name]()}, {', '.join(f'{s:.0f}' for s in found['seconds'][name])} s." for name in models),
        "", "Chosen by half of the questions, reported on the other half:", "",
    ]  # fmt: skip
    titles = [f"{name}, {found['chosen'][name]} | not excluded | only c | offset cosine" for name in models]
    out += [f"| section | kept | dropped | {' | '.join(titles)} |", f"|---|{'---|' * (2 + 4 * len(models))}"]
    for section in dict.fromkeys(row["name"] for row in found["rows"]):
        cells = [pick(found["rows"], name=section, model=name) for name in models]
        numbers = [over_seeds(rows, number) for rows in cells for number in NUMBERS if number != "only_b"]
        out.append(f"| {section} | {cells[0][0]['kept']:,} | {cells[0][0]['dropped']:,} | {' | '.join(numbers)} |")
    columns = [name for name in ("total", *FOREMOST) if pick(found["all"], name=name)]
    similar = ["similarity, Spearman"] * bool(found["wordsim"])
    out += ["", "All questions, every space:", "", f"| model | space | {' | '.join(columns + similar)} |"]
    out.append(f"|{'---|' * (2 + len(columns + similar))}")
    for name, space in dict.fromkeys((row["model"], row["space"]) for row in found["all"]):
        here = dict(model=name, space=space)
        cells = [over_seeds(pick(found["all"], name=column, **here), "accuracy") for column in columns]
        cells += [over_seeds(pick(found["wordsim"], **here), "rho") for _ in similar]
        out.append(f"| {name} | {space} | {' | '.join(cells)} |")
    return "\n".join(out)


def draw(found: dict, path: Path) -> None:
    """A bar for each of the two in every section, its interval, and what the nearest word to c alone would give."""
    sections = [name for name in dict.fromkeys(row["name"] for row in found["rows"])
                if any(row["kept"] for row in pick(found["rows"], name=name))]  # fmt: skip
    with probe.canvas(path, figsize=(9, 1.9 + 0.47 * len(sections))) as axes:
        for i, (model, space) in enumerate(found["chosen"].items()):
            shift = 0.4 * (i - (len(found["chosen"]) - 1) / 2)
            for y, section in enumerate(sections):
                rows = pick(found["rows"], name=section, model=model)
                values = [row["accuracy"] for row in rows]
                low, high = (min(values), max(values)) if len(rows) > 1 else rows[0]["interval"] or (values[0],) * 2
                mean, label = statistics.mean(values), f"{model}, {space}" if y == 0 else None
                axes.barh(y + shift, mean, 0.38, color=f"C{i}", label=label)
                axes.plot([low, high], [y + shift] * 2, color="0.1", linewidth=1.4, solid_capstyle="butt")
                only = statistics.mean(row["only_c"] for row in rows)
                label = "nearest to c alone" if i == y == 0 else None
                axes.plot(only, y + shift, "D", color="0.1", markersize=4, markerfacecolor="white", label=label)
                place = (max(high, mean, only), y + shift)
                axes.annotate(f"{mean:.2f}", place, (5, 0), textcoords="offset points", va="center", fontsize=9)
        chance = 1 / found["searched"]
        axes.axvline(chance, color="0.4", linestyle="--", linewidth=1, label=f"chance: 1 in {found['searched']:,}")
        kept = [pick(found["rows"], name=name)[0]["kept"] for name in sections]
        axes.set_yticks(range(len(sections)), [f"{s} ({n:,})" for s, n in zip(sections, kept, strict=True)])
        axes.set(xlim=(-0.005, None), xlabel="share of analogies right, query words excluded")
        title = f"{found['minutes']:g} minutes each, the same {found['text']['kept'] / 1e6:.3g} million words"
        axes.set_title(title, fontsize=12)
        axes.margins(y=0.01)
        axes.grid(False, axis="y")
        axes.invert_yaxis()
        axes.figure.legend(loc="outside lower center", ncols=2, fontsize=10)


if __name__ == "__main__":
    try:
        main()
    except lm.UserError as error:
        print(f"google_set: {error}", file=sys.stderr)
        sys.exit(2)
