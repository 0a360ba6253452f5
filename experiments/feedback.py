"""Feedback with a known optimum: how near do policy gradients, preferences and best-of-n come to it?

python experiments/feedback.py                                       10 minutes on two CPU cores, no download
python experiments/feedback.py --seeds 0 --steps 10 --texts 512      a minute, to see that it works

A small model says a sentence of the generated corpus; it is worth 1 where WORDS are in it, else 0. With p0 the share of
such sentences before, every policy that makes p of them costs at least
    KL = p ln(p / p0) + (1 - p) ln((1 - p) / (1 - p0))   nats a text,
and E[reward] - beta KL is greatest at p = p0 e^(1/beta) / (1 - p0 + p0 e^(1/beta)): each method is measured against the
truth. Compared, for three betas and every seed:
    policy gradient     lm train policy, by the reward itself and by one that was learnt from preferences
    preferences         DPO with labels drawn from sigma(r1 - r2), which have the same optimum, and with hard labels
                        (the better is always chosen), which have none
    best of n           draws n answers from the start and keeps a best one, at ln n - (n - 1) / n nats at most
Prints a markdown table, draws experiments/figures/feedback.svg. Expected: experiments/RESULTS.md.
"""

import argparse
import dataclasses
import json
import math
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import lm
from lm.data import kingdom
from lm.errors import require
from lm.figures import STYLE, check_format, plt, save
from lm.files import whole
from lm.training import Measured, measure, train_pack

FIGURE = Path(__file__).parent / "figures" / "feedback.svg"
PROMPT, WORDS, LENGTH = "Say:", ("she", "her", "herself"), 24
BETAS = (0.25, 0.5, 1.0)
BEST_OF = (2, 4, 8, 16)
REWARD = f"""
import re

def reward(answer):
    return float(bool(set(re.findall("[a-z]+", answer.lower())) & {set(WORDS)!r}))
"""
METHODS = {
    "policy": "policy gradient", "judged": "policy gradient, learnt reward", "drawn": "DPO, labels drawn",
    "hard": "DPO, hard labels",
}  # fmt: skip
COLOURS = dict(zip(METHODS, ("C2", "C0", "C1", "C3"), strict=True))
BASE = lm.Experiment(
    name="base",
    model=lm.ModelConfig(layers=2, width=64, heads=2, context=32, tied=True),
    data=lm.DataConfig(tokenizer="words"),
    optimizer=lm.OptimizerConfig(name="muon", learning_rate=6e-3, matrix_learning_rate=0.02),
    schedule=lm.ScheduleConfig(name="wsd", warmup="2%", decay="60%"),
    train=lm.TrainConfig(steps=600, batch=64, eval_every="100%", checkpoint_every="100%"),
)
AFTER = {
    "optimizer.name": "adamw", "optimizer.weight_decay": 0.0, "schedule.name": "linear", "schedule.warmup": "5%",
    "train.eval_every": "100%", "train.checkpoint_every": "100%", "train.eval_tokens": 2048,
}  # fmt: skip
DPO = {"train.objective": "preference", "train.batch": 64, "train.steps": "2 epochs", "optimizer.learning_rate": 3e-4}
JUDGE = DPO | {"train.objective": "reward", "optimizer.learning_rate": 1e-3}
POLICY = {
    "train.objective": "policy", "train.batch": 96, "feedback.group": 96, "feedback.max_tokens": LENGTH,
    "optimizer.learning_rate": 1e-3,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Point:
    """What a policy does that was made by a method."""

    method: str
    beta: float
    seed: int
    measured: Measured


@dataclasses.dataclass(frozen=True)
class Found:
    """All that was measured. best: the reward of best-of-n, by n."""

    p0: float
    points: list[Point]
    best: dict[int, float]


# --- the truth -------------------------------------------------------------------------------------------------------
def least_divergence(p: float, p0: float) -> float:
    """The least KL in nats at which p of the answers are rewarded, where p0 were."""
    parts = ((p, p0), (1 - p, 1 - p0))
    return sum(a * math.log(a / b) for a, b in parts if a > 0)


def best_reward(beta: float, p0: float) -> float:
    """The reward at which reward - beta KL is greatest."""
    return p0 * math.exp(1 / beta) / (1 - p0 + p0 * math.exp(1 / beta))


def worth(p: float, divergence: float, beta: float) -> float:
    """What is made great."""
    return p - beta * divergence


# --- the methods -----------------------------------------------------------------------------------------------------
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--steps", type=int, default=80, help=f"of policy gradients, {POLICY['train.batch']} answers each"
    )
    parser.add_argument(
        "--texts", type=int, default=4096, help="pairs of a preference file, and texts of a measurement"
    )
    parser.add_argument("--figure", type=Path, default=FIGURE)
    o = parser.parse_args()
    require(o.steps >= 1 and o.texts >= 128, "--steps and --texts: at least 1 and 128")
    check_format(o.figure, "--figure")
    with tempfile.TemporaryDirectory() as folder:
        found = run(Path(folder), o.seeds, o.steps, o.texts)
    print(table(found))
    draw(found, o.figure)
    print(o.figure)


def run(folder: Path, seeds: Sequence[int], steps: int, texts: int) -> Found:
    """Train every policy and measure it."""
    show = lm.Display()
    base = lm.load(lm.train(base_experiment(folder), folder=folder, display=show))
    judge_by = folder / "reward.py"
    with whole(judge_by) as file:
        file.write(REWARD)
    reward = rewarded(judge_by)
    said = speak(base, 2 * texts, seed=10**6)
    rewards = np.array([reward(text) for text in said])
    p0, points = float(rewards.mean()), []
    for seed in seeds:
        pairs = write_preferences(folder, seed, said, rewards)
        judge = lm.train(after(base, f"judge{seed}", seed, pairs["drawn"], JUDGE), folder=folder, display=show)
        policy = POLICY | {"train.steps": steps}
        ways = {
            "policy": (folder / "prompts.jsonl", policy | {"feedback.reward": f"{judge_by}:reward"}),
            "judged": (folder / "prompts.jsonl", policy | {"feedback.reward": str(judge.path)}),
            "drawn": (pairs["drawn"], DPO),
            "hard": (pairs["hard"], DPO),
        }
        for method, (examples, how) in ways.items():
            each = [after(base, f"{method}{seed}-{b}", seed, examples, how | {"feedback.beta": b}) for b in BETAS]
            for beta, made in zip(BETAS, train_pack(each, folder=folder, display=show), strict=True):
                m = measure(lm.load(made), base, PROMPT, reward, texts=texts, max_tokens=LENGTH, seed=seed)
                points.append(Point(method, beta, seed, m))
                show.say(f"{METHODS[method]}, beta {beta}, seed {seed}: reward {m.reward:.3f}, KL {m.divergence:.3f}")
    best = {n: float(rewards[: len(rewards) // n * n].reshape(-1, n).max(axis=1).mean()) for n in BEST_OF}
    return Found(p0, points, best)


def base_experiment(folder: Path) -> lm.Experiment:
    """The start: it says sentences of the corpus. Its examples all show the same, and so do those of prompts.jsonl."""
    sentences = {
        s.strip() + "." for text in kingdom.documents(6000) for s in text.split(".") if 2 < len(s.split()) < 16
    }
    rows = [{"prompt": PROMPT, "completion": " " + sentence} for sentence in sorted(sentences)]
    rows = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]
    held = len(rows) // 20
    for name, some in (("train", rows[held:]), ("held", rows[:held]), ("prompts", rows[: POLICY["train.batch"]])):
        write(folder / f"{name}.jsonl", some)
    data = dataclasses.replace(
        BASE.data, examples=str(folder / "train.jsonl"), validation_corpus=str(folder / "held.jsonl")
    )
    return dataclasses.replace(BASE, data=data)


def after(base, name: str, seed: int, examples: Path, how: dict) -> lm.Experiment:
    """What goes on from the base."""
    run, own = base.run, {"name": name, "train.seed": seed, "train.start": str(base.run.path)}
    own |= {"data.examples": str(examples), "data.validation_corpus": str(examples)}
    return lm.settings.replace(run.experiment, AFTER | how | own | {"data.tokenizer": str(run.path / "tokenizer.json")})


def rewarded(file: Path):
    """The function that the reward's file defines."""
    variables: dict = {}
    exec(compile(file.read_text(), str(file), "exec"), variables)
    return variables["reward"]


def speak(m, texts: int, seed: int) -> list[str]:
    """What a model says."""
    parts = [min(512, texts - begin) for begin in range(0, texts, 512)]
    drawn = (lm.generate(m, [PROMPT], max_tokens=LENGTH, seed=seed + i, samples=n) for i, n in enumerate(parts))
    return [sample.text for some in drawn for sample in some]


def write_preferences(folder: Path, seed: int, said: list[str], rewards: np.ndarray) -> dict[str, Path]:
    """Pairs of what the base said, with labels drawn, and those of unequal rewards with hard ones; files by their name.

    A label is drawn with probability sigma(r1 - r2), so that an optimum of DPO is that of reward - beta KL.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(said)).reshape(-1, 2)
    rows: dict[str, list[dict]] = {"drawn": [], "hard": []}
    for i, j in order:
        first = rng.random() < 1 / (1 + math.exp(rewards[j] - rewards[i]))
        better, worse = (i, j) if first else (j, i)
        rows["drawn"].append({"prompt": PROMPT, "chosen": said[better], "rejected": said[worse]})
        if rewards[i] != rewards[j]:
            better, worse = (i, j) if rewards[i] > rewards[j] else (j, i)
            rows["hard"].append({"prompt": PROMPT, "chosen": said[better], "rejected": said[worse]})
    files = {name: folder / f"{name}{seed}.jsonl" for name in rows}
    for name, file in files.items():
        write(file, [row for row in rows[name] if row["chosen"].strip() and row["rejected"].strip()])
    return files


def write(path: Path, rows: list[dict]) -> None:
    with whole(path) as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


# --- what is shown ---------------------------------------------------------------------------------------------------
def table(found: Found) -> str:
    """A row for each method and beta: means over seeds, and the range of the reward."""
    lines = [
        f"p0 = {found.p0:.3f}",
        "",
        "| method | beta | reward (range of seeds) | optimum | KL (nats) | least at it | reward - beta KL, less best |",
        "|---|---|---|---|---|---|---|",
    ]
    for method, name in METHODS.items():
        for beta in BETAS:
            of = [p.measured for p in found.points if (p.method, p.beta) == (method, beta)]
            if not of:
                continue
            rewards, p = [m.reward for m in of], statistics.fmean(m.reward for m in of)
            divergence, optimum = statistics.fmean(m.divergence for m in of), best_reward(beta, found.p0)
            share = worth(p, divergence, beta) - worth(optimum, least_divergence(optimum, found.p0), beta)
            lines.append(
                f"| {name} | {beta:g} | {p:.3f} ({min(rewards):.3f} to {max(rewards):.3f}) | {optimum:.3f} "
                f"| {divergence:.3f} | {least_divergence(min(p, 1 - 1e-9), found.p0):.3f} | {share:+.3f} |"
            )
    for n, p in found.best.items():
        most = math.log(n) - (n - 1) / n
        lines.append(
            f"| best of {n} | | {p:.3f} | | at most {most:.3f} | {least_divergence(min(p, 1 - 1e-9), found.p0):.3f} | |"
        )
    return "\n".join(lines)


def draw(found: Found, path: Path) -> None:
    """The frontier and the policies: reward over KL; of hard labels, whose KL is far out, beside it."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(7.2, 4.6))
        p = np.linspace(found.p0, 1 - 1e-6, 400)
        axes.plot([least_divergence(x, found.p0) for x in p], p, color="0.3", label="least KL for the reward")
        for beta, mark in zip(BETAS, "sD^", strict=True):
            optimum = best_reward(beta, found.p0)
            axes.plot(least_divergence(optimum, found.p0), optimum, "*", color="0.1", markersize=13, zorder=5)
            for method, name in METHODS.items():
                of = [q.measured for q in found.points if (q.method, q.beta) == (method, beta)]
                label = name if beta == BETAS[0] else None
                axes.plot(
                    [m.divergence for m in of], [m.reward for m in of], mark, color=COLOURS[method], alpha=0.75,
                    markersize=6, label=label,
                )  # fmt: skip
        most = [math.log(n) - (n - 1) / n for n in found.best]
        axes.plot(most, list(found.best.values()), "x", color="0.5", label=f"best of {', '.join(map(str, found.best))}")
        marks = ", ".join(
            f"{name} {beta:g}" for name, beta in zip(("squares", "diamonds", "triangles"), BETAS, strict=True)
        )
        axes.set(
            xscale="symlog", xlabel="KL from the start (nats a text)", ylabel="reward (share of answers)",
            title=f"Stars: the optima for beta; {marks}",
        )  # fmt: skip
        axes.legend(loc="lower right", fontsize=8)
        save(figure, path)


if __name__ == "__main__":
    main()
