"""What experiments/borrowed.py found, told as tables and drawn."""

import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.stats import binomtest

from lm import probe

LEVEL = 0.9
"""Coverage of the intervals."""
BELOW = dict(loc="upper center", bbox_to_anchor=(0.5, -0.14))
"""Where legends stand: curves and marks are everywhere else."""
NUMBERS = {
    "accuracy": "words left out", "accuracy_unexcluded": "not left out", "only_c": "c alone", "only_b": "b alone",
    "shuffled": "pairs shuffled",
}  # fmt: skip
GROUPS = (("SmolLM2", "total"), ("word2vec", "total"), ("SmolLM2", "family"), ("word2vec", "family"),
          ("kingdom", "total"))  # fmt: skip


def wilson(right: Sequence[bool]) -> tuple[float, float]:
    """The interval of a share, of LEVEL (Wilson 1927)."""
    interval = binomtest(int(sum(right)), len(right)).proportion_ci(LEVEL, method="wilson")
    return float(interval.low), float(interval.high)


def pick(rows: Sequence[dict], **wanted) -> list[dict]:
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def over_seeds(rows: Sequence[dict], number: str) -> str:
    """The mean and, of several seeds, their standard deviation."""
    values = [row[number] for row in rows if row[number] is not None]
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{spread}" if values else "-"


def described(found: dict) -> str:
    """Markdown: analogies by section, king - man + woman, facts and BLiMP by layer."""
    out = [f"| vectors | questions | kept | {' | '.join(NUMBERS.values())} | offset cosine |", "|---" * 9 + "|"]
    for model, name in dict.fromkeys((row["model"], row["name"]) for row in found["analogies"]):
        rows = pick(found["analogies"], model=model, name=name)
        interval = rows[0]["interval"]
        numbers = [over_seeds(rows, number) for number in (*NUMBERS, "offset_cosine")]
        if len(rows) == 1 and interval:
            numbers[0] += f" ({interval[0]:.3f} to {interval[1]:.3f})"
        out.append(f"| {model} | {name} | {rows[0]['kept']:,} | {' | '.join(numbers)} |")
    for one in found["examples"]:
        said = {
            key: ", ".join(f"{word} {score:.2f}" for word, score in one[key]) for key in ("left out", "not left out")
        }
        left, alone = f"not left out: {said['not left out']}", f"b alone {one['only b']}, c alone {one['only c']}"
        out.append(f"\nking - man + woman, {one['model']}: {said['left out']}; {left}; {alone}")
    out += ["", "| facts of | after layer | first | interval | other subjects' | median rank |", "|---" * 6 + "|"]
    for row in pick(found["facts"], seed=0):
        alike = pick(found["facts"], model=row["model"], entry=row["entry"])
        numbers = [over_seeds(alike, number) for number in ("first", "others first", "median rank")]
        numbers.insert(1, " to ".join(f"{x:.3f}" for x in row["interval"]))
        about = f"{row['model']} ({row['facts']}) | {row['entry']} of {row['layers']}"
        out.append(f"| {about} | {' | '.join(numbers)} |")
    entries = list(dict.fromkeys(row["entry"] for row in found["blimp"]))
    out += ["", f"| BLiMP, after layer | {' | '.join(map(str, entries))} |", "|---" * (1 + len(entries)) + "|"]
    for name in dict.fromkeys(row["paradigm"] for row in found["blimp"]):
        shares = [f"{np.mean(row['right']):.2f}" for row in pick(found["blimp"], paradigm=name)]
        out.append(f"| {name} | {' | '.join(shares)} |")
    means = [pooled(found["blimp"], entry) for entry in entries]
    out.append(f"| all | {' | '.join(f'{mean:.3f} ({low:.3f} to {high:.3f})' for mean, (low, high) in means)} |")
    return "\n".join(out)


def pooled(rows: Sequence[dict], entry: int) -> tuple[float, tuple[float, float]]:
    """The share of all pairs that are right after an entry, and its interval."""
    right = [one for row in pick(rows, entry=entry) for one in row["right"]]
    return float(np.mean(right)), wilson(right)


def draw(found: dict, path: Path) -> None:
    """Draw the analogies with their controls, and facts and BLiMP by depth."""
    with probe.canvas(path, 1, 3, figsize=(17, 6), width_ratios=(1.25, 1, 1)) as axes:
        draw_analogies(axes[0], found["analogies"])
        draw_facts(axes[1], found["facts"])
        draw_blimp(axes[2], found["blimp"])


def draw_analogies(axis, rows: Sequence[dict]) -> None:
    groups = [group for group in GROUPS if pick(rows, model=group[0], name=group[1])]
    marks = {"accuracy": "o", "accuracy_unexcluded": "s", "only_c": "D", "only_b": "^", "shuffled": "x"}
    for i, (number, label) in enumerate(NUMBERS.items()):
        for y, (model, name) in enumerate(groups):
            here = pick(rows, model=model, name=name)
            values = [row[number] for row in here]
            low, high = (min(values), max(values)) if len(values) > 1 else (values[0],) * 2
            if number == "accuracy" and len(values) == 1 and here[0]["interval"]:
                low, high = here[0]["interval"]
            at = y + 0.15 * (i - 2)
            axis.plot([low, high], [at, at], color=f"C{i}", linewidth=1.5)
            shown = dict(label=label) if y == 0 else {}
            axis.plot(statistics.mean(values), at, marks[number], color=f"C{i}", markersize=7, **shown)
    kept = [pick(rows, model=model, name=name)[0]["kept"] for model, name in groups]
    names = {"total": "all", "family": "family"}
    labels = [f"{model}, {names[name]}\n({n:,} questions)" for (model, name), n in zip(groups, kept, strict=True)]
    axis.set_yticks(range(len(groups)), labels)
    axis.set(xlim=(-0.03, 1.03), xlabel="share of answers right", title="king - man + woman, and all such")
    axis.grid(False, axis="y")
    axis.invert_yaxis()
    axis.legend(**BELOW, ncols=3, fontsize=9.5, columnspacing=1.2)


def draw_facts(axis, rows: Sequence[dict]) -> None:
    titles = {"SmolLM2": "SmolLM2: capitals", "kingdom": "kingdom: its facts"}
    for i, model in enumerate(dict.fromkeys(row["model"] for row in rows)):
        several = pick(rows, model=model)
        entries = sorted({row["entry"] for row in several})
        depth = [entry / several[0]["layers"] for entry in entries]
        mean, others = ([statistics.mean(row[key] for row in pick(several, entry=entry)) for entry in entries]
                        for key in ("first", "others first"))  # fmt: skip
        bands = [pick(several, entry=entry) for entry in entries]
        low, high = ([end(row["interval"][k] for row in band) for band in bands] for k, end in ((0, min), (1, max)))
        axis.plot(depth, mean, "o-", color=f"C{i}", markersize=4, label=f"{titles[model]} ({several[0]['facts']})")
        axis.fill_between(depth, low, high, color=f"C{i}", alpha=0.2, linewidth=0)
        axis.plot(depth, others, ":", color=f"C{i}", label="another subject's answer")
    axis.set(xlim=(0, 1), ylim=(-0.02, 1.02), xlabel="depth: layers passed, of all", title="facts by the logit lens")
    axis.set_ylabel("share of answers that come first")
    axis.legend(**BELOW, ncols=1, fontsize=9.5)


def draw_blimp(axis, rows: Sequence[dict]) -> None:
    entries = sorted({row["entry"] for row in rows})
    if not entries:
        return
    depth = [entry / rows[0]["layers"] for entry in entries]
    for i, name in enumerate(dict.fromkeys(row["paradigm"] for row in rows)):
        shares = [np.mean(row["right"]) for row in pick(rows, paradigm=name)]
        axis.plot(depth, shares, color=f"C{i}", linewidth=1, alpha=0.6, label=name.replace("_", " "))
    means = [pooled(rows, entry) for entry in entries]
    axis.plot(depth, [mean for mean, _ in means], "o-", color="0.1", linewidth=2, markersize=5, label="all of them")
    axis.fill_between(
        depth, *zip(*(interval for _, interval in means), strict=True), color="0.1", alpha=0.2, linewidth=0
    )
    axis.axhline(0.5, color="0.4", linestyle="--", linewidth=1)
    axis.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="depth: layers passed, of all", title="SmolLM2: BLiMP by early exit")
    axis.set_ylabel("share of pairs right")
    axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=9.5)
