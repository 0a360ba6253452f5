"""What experiments/translate.py found: the table, the searches and the figure.

A result is a dict of one run; `outcome` there says what is in it. R: runs, E: evaluations in one.
"""

from collections.abc import Sequence

import numpy as np

from lm.figures import STYLE, VERBATIM, plt

PLACES = 10
"""Places of a target that are drawn; few are longer."""


def grouped(results: Sequence[dict]) -> dict[str, list[dict]]:
    """Results by model, those of runs that are not as long as the first apart."""
    groups: dict[str, list[dict]] = {}
    for result in results:
        length = "" if result["steps"] == results[0]["steps"] else f", {result['steps']:,} steps"
        groups.setdefault(result["model"] + length, []).append(result)
    return groups


def spread(values: Sequence[float], digits: int) -> str:
    """The mean, and the standard deviation where there are several."""
    mean = f"{np.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} +- {np.std(values, ddof=1):.{digits}f}"


def table(results: Sequence[dict]) -> str:
    """Markdown: a row for each model, mean and standard deviation over seeds."""
    heads = ["model", "parameters", "steps", "seconds", "nats a target token", "BLEU", "chrF", "tokens right"]
    heads += ["right behind a mistake: corrected", "left"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for name, some in grouped(results).items():
        cells = [name, f"{some[0]['parameters']:,}", f"{some[0]['steps']:,}"]
        for key, digits in (("seconds", 0), ("nats", 3), ("bleu", 1), ("chrf", 1), ("accuracy", 3)):
            cells.append(spread([result[key] for result in some], digits))
        shares = zip(*(result["behind_mistakes"] for result in some), strict=True)
        lines.append("| " + " | ".join([*cells, *(spread(share, 3) for share in shares)]) + " |")
    return "\n".join(lines)


def searches(results: Sequence[dict]) -> str:
    """A line for each run that was searched by beams: BLEU, and of how many sources each beam missed a likelier one."""
    lines = []
    for result in (result for result in results if "beams" in result):
        bleu = ", ".join(f"{beam}: {value:.1f}" for beam, value in result["beams"].items())
        one, four = result["missed"]
        missed = f"a beam of 1 missed {one}, one of 4 at least {four}, of {result['searched']}"
        lines.append(f"{result['run']}: BLEU by beam {bleu}; {missed}")
    return "\n".join([*lines, results[0]["signature"]])


# --- the figure ------------------------------------------------------------------------------------------------------
def draw(results: Sequence[dict], best: dict, look: tuple[list[str], list[str], np.ndarray]) -> plt.Figure:
    """Loss by seconds, BLEU, and of the best run right tokens by place and where it looks as it translates.

    look: tokens read and written, and the weights [T, S] of the ones for the others.
    """
    with plt.rc_context(STYLE | VERBATIM):
        figure, axes = plt.subplots(2, 2, figsize=(13, 9.5), layout="constrained")
        groups = grouped(results)
        draw_losses(axes[0, 0], groups)
        draw_scores(axes[0, 1], groups)
        draw_places(axes[1, 0], best)
        draw_look(axes[1, 1], *look)
    return figure


def draw_losses(axis: plt.Axes, groups: dict[str, list[dict]]) -> None:
    """A thin line for each run, a thick one for the mean of a model's; those of another length are dashed."""
    for name, some in groups.items():
        model, color = some[0]["model"], colors(groups)[some[0]["model"]]
        another = name != model and model in groups
        curves_RE3 = np.array([result["curve"] for result in some])
        for curve_E3 in curves_RE3:
            axis.plot(curve_E3[:, 1], curve_E3[:, 2], color=color, linewidth=0.5, alpha=0.6)
        mean_E3 = curves_RE3.mean(axis=0)
        line = dict(linestyle="--", label="_") if another else dict(label=name)
        axis.plot(mean_E3[:, 1], mean_E3[:, 2], color=color, linewidth=1.8, **line)
    axis.set(xscale="log", xlabel="seconds of training", ylabel="held-out loss, nats a target token")
    axis.legend(fontsize=9)


def colors(groups: dict[str, list[dict]]) -> dict[str, str]:
    """A colour for each model, whatever the length of its runs."""
    models = dict.fromkeys(some[0]["model"] for some in groups.values())
    return {model: f"C{i}" for i, model in enumerate(models)}


def draw_scores(axis: plt.Axes, groups: dict[str, list[dict]]) -> None:
    """BLEU of greedy answers: a bar for the mean, a dot for each run."""
    for i, some in enumerate(groups.values()):
        values = [result["bleu"] for result in some]
        axis.barh(i, np.mean(values), color=colors(groups)[some[0]["model"]], alpha=0.6)
        axis.plot(values, [i] * len(values), "k.", markersize=4)
        axis.text(max(values), i, f"  {np.mean(values):.1f}", va="center", fontsize=10)
    axis.set_yticks(range(len(groups)), groups, fontsize=9)
    axis.invert_yaxis()
    axis.margins(x=0.12)
    axis.set(xlabel="BLEU of greedy answers, all references")


def draw_places(axis: plt.Axes, result: dict) -> None:
    """Shares of targets right at a place: behind the reference's tokens, behind the model's, and up to there."""
    rows = [(r, o) for r, o in zip(result["right"], result["own"], strict=True) if o is not None]
    lines = {
        "reading the reference's tokens": lambda right, own, t: right[t],
        "reading its own": lambda right, own, t: own[t],
        "everything up to there": lambda right, own, t: all(right[: t + 1]),
    }
    for name, is_right in lines.items():
        shares = [np.mean([is_right(*row, t) for row in rows if len(row[0]) > t]) for t in range(PLACES)]
        axis.plot(range(1, PLACES + 1), shares, marker="o", markersize=4, label=name)
    axis.set(xlabel="place in the target", ylabel="share that is right", ylim=(0, 1))
    axis.set_title(f"{result['model']}, {result['steps']:,} steps", fontsize=11)
    axis.legend(fontsize=10)


def draw_look(axis: plt.Axes, read: list[str], written: list[str], weights_TS: np.ndarray) -> None:
    """Weights as colour: a row for each token written, a column for each token read."""
    image = axis.imshow(weights_TS, cmap="Blues", vmin=0, aspect="auto")
    axis.set_xticks(range(len(read)), read, rotation=45)
    axis.set_yticks(range(len(written)), written)
    axis.grid(False)
    axis.set(xlabel="token read", ylabel="token written")
    axis.set_title("cross-attention, last block, mean over heads", fontsize=11)
    axis.figure.colorbar(image, ax=axis, label="weight", shrink=0.8)
