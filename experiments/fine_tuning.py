"""What does fine-tuning on questions teach a small model, in which words, and what does it forget? Full and by LoRA.

python experiments/fine_tuning.py                              8 minutes on two CPU cores, no download
python experiments/fine_tuning.py --seeds 0 --steps 100        a minute and a half, to see that it works

Trains configs/kingdom.py, whose corpus states facts, then fine-tunes it on questions about that world (`lm data
questions`): all parameters, or adapters of rank 1, 4 and 16. Asked are questions that were not trained on, of facts
that the corpus states: in phrasings that were trained on, and in others; and a model that read no corpus.
Beside accuracy: what a fresh text of the corpus costs afterwards, in nats per token more than before, and the bytes of
a checkpoint's parameters. Prints tables, draws experiments/figures/fine_tuning.svg. Expected: experiments/RESULTS.md.
"""

import argparse
import dataclasses
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import lm
from lm.data import kingdom
from lm.data.kingdom import questions
from lm.evaluation import open_examples
from lm.figures import STYLE, check_format, plt, save
from lm.training import train_pack

FIGURE = Path(__file__).parent / "figures" / "fine_tuning.svg"
WAYS = {
    "all parameters": {"optimizer.learning_rate": 1e-3},
    **{f"rank {rank}": {"optimizer.lora": rank, "optimizer.learning_rate": 5e-3} for rank in (1, 4, 16)},
}
UNREAD = "no corpus before"
SETTINGS = {
    "optimizer.name": "adamw", "optimizer.weight_decay": 0.0, "schedule.name": "linear", "schedule.warmup": "5%",
    "data.packing": True, "train.steps": "6 epochs", "train.batch": 8, "train.eval_every": "100%",
    "train.checkpoint_every": "100%",
}  # fmt: skip
SPLITS = {"held_out": "phrasing trained on", "rephrased": "phrasing held out"}
FRESH = 400
"""Documents of another seed, which no model has read."""


@dataclasses.dataclass(frozen=True)
class Tuned:
    """A fine-tuned model. right: share of right answers, by split and kind of question."""

    way: str
    seed: int
    right: dict[str, dict[str, float]]
    forgot: float
    """Nats per token that fresh text of the corpus costs more than before."""
    size: int
    """Bytes of a checkpoint's parameters."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=1000, help="of pretraining")
    parser.add_argument("--figure", type=Path, default=FIGURE)
    o = parser.parse_args()
    check_format(o.figure, "--figure")
    with tempfile.TemporaryDirectory() as folder:
        found = run(Path(folder), o.seeds, o.steps)
    print(table(found))
    draw(found, o.figure)
    print(o.figure)


def run(folder: Path, seeds: Sequence[int], steps: int) -> list[Tuned]:
    """Pretrain, fine-tune in every way, ask."""
    show, asked = lm.Display(), questions.export(folder / "questions")
    e = lm.settings.replace(lm.load_experiment("kingdom"), {"train.steps": steps, "train.eval_every": "100%"})
    base = lm.load(lm.train(e, folder=folder, display=show))
    unread = lm.load(lm.train(lm.settings.replace(e, {"name": "unread", "train.steps": 1, "schedule.warmup": 0}),
                              folder=folder, display=show))  # fmt: skip
    text = f"{kingdom.SEPARATOR}\n".join(kingdom.documents(FRESH, seed=1))
    before, found = lm.evaluate(base, text).loss, []
    for way, how, start in [*((way, how, base) for way, how in WAYS.items()), (UNREAD, WAYS["all parameters"], unread)]:
        each = [tuned(start, f"{way} {seed}".replace(" ", "-"), asked[0], how | {"train.seed": seed}) for seed in seeds]
        for seed, made in zip(seeds, train_pack(each, folder=folder, display=show), strict=True):
            m = lm.load(made)
            right = {split: ask(m, folder / "questions" / f"{split}.jsonl") for split in SPLITS}
            forgot = lm.evaluate(m, text).loss - before
            found.append(Tuned(way, seed, right, forgot, parameter_bytes(made)))
            shares = ", ".join(f"{split} {right[split]['all']:.3f}" for split in SPLITS)
            show.say(f"{way}, seed {seed}: {shares}; {forgot:+.3f} nats per token of the corpus")
    return found


def tuned(start, name: str, examples: Path, how: dict) -> lm.Experiment:
    """What goes on from a model. The questions that are held out are asked afterwards, so all of these are learnt."""
    own = {
        "name": name, "train.start": str(start.run.path), "data.examples": str(examples),
        "data.validation_corpus": str(examples.with_name("held_out.jsonl")),
        "data.tokenizer": str(start.run.path / "tokenizer.json"),
    }  # fmt: skip
    return lm.settings.replace(start.experiment, SETTINGS | how | own)


def ask(m, path: Path) -> dict[str, float]:
    """The share of right answers by kind, and of "all"."""
    by_kind = defaultdict(list)
    answers = lm.sample.answer_examples(m, open_examples(m, str(path)))
    split = questions.questions()[path.stem]
    kinds = {f"user:\n{question.prompt}\n": question.kind for question in split}
    for shown, (said, right) in zip(answers.shown, answers.pairs(), strict=True):
        [kind] = {kind for words, kind in kinds.items() if words in shown}
        for name in (kind, "all"):
            by_kind[name].append(said.strip() == right)
    return {kind: float(np.mean(right)) for kind, right in by_kind.items()}


def parameter_bytes(made) -> int:
    """Of the latest checkpoint, as it lies on the disk."""
    folder = made.checkpoint_folder / str(made.reached) / "params"
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


# --- what is shown ---------------------------------------------------------------------------------------------------
def each(found: Sequence[Tuned], way: str, value) -> tuple[float, float, float]:
    """Mean, least and greatest over seeds."""
    values = [value(one) for one in found if one.way == way]
    return statistics.fmean(values), min(values), max(values)


def table(found: Sequence[Tuned]) -> str:
    """By way of tuning, then by kind of question."""
    ways = list(dict.fromkeys(one.way for one in found))
    lines = [
        "| fine-tuned | right, "
        + " | right, ".join(SPLITS.values())
        + " | corpus, nats per token more | parameters kept |",
        "|---|---|---|---|---|",
    ]
    for way in ways:
        shares = []
        for split in SPLITS:
            mean, low, high = each(found, way, lambda one, split=split: one.right[split]["all"])
            shares.append(f"{mean:.3f} ({low:.3f} to {high:.3f})")
        forgot, low, high = each(found, way, lambda one: one.forgot)
        size = each(found, way, lambda one: one.size)[0]
        lines.append(
            f"| {way} | {' | '.join(shares)} | {forgot:+.3f} ({low:+.3f} to {high:+.3f}) | {size / 1e3:,.0f} kB |"
        )
    kinds = list(dict.fromkeys(kind for one in found for kind in one.right["held_out"] if kind != "all"))
    lines += ["", "| question | " + " | ".join(f"{way}, {s}" for way in ways for s in ("seen", "new")) + " |"]
    lines.append("|---" * (1 + 2 * len(ways)) + "|")
    for kind in sorted(kinds):
        cells = [
            f"{each(found, way, lambda one, split=split, kind=kind: one.right[split][kind])[0]:.2f}"
            for way in ways
            for split in SPLITS
        ]
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(found: Sequence[Tuned], path: Path) -> None:
    """Shares of right answers in both kinds of phrasings, and what was forgotten."""
    ways = list(dict.fromkeys(one.way for one in found))
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.8), width_ratios=(3, 2), layout="constrained")
        place = np.arange(len(ways))
        for offset, (split, label) in zip((-0.2, 0.2), SPLITS.items(), strict=True):
            means = [each(found, way, lambda one, split=split: one.right[split]["all"]) for way in ways]
            spread = np.array([(mean - low, high - mean) for mean, low, high in means]).T
            left.bar(place + offset, [mean for mean, _, _ in means], 0.38, yerr=spread, label=label)
        left.set(ylabel="share of right answers", ylim=(0, 1))
        left.legend()
        means = [each(found, way, lambda one: one.forgot) for way in ways if way != UNREAD]
        spread = np.array([(mean - low, high - mean) for mean, low, high in means]).T
        right.bar(place[: len(means)], [mean for mean, _, _ in means], 0.6, yerr=spread, color="0.5")
        right.set(ylabel="nats per token of the corpus, more than before")
        for axes, names in ((left, ways), (right, [way for way in ways if way != UNREAD])):
            axes.set_xticks(np.arange(len(names)), names, rotation=20, ha="right")
        save(figure, path)


if __name__ == "__main__":
    main()
