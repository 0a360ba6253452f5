"""Tables and the figure of sound.py, from what it kept: scores, and the examples of a seed."""

from pathlib import Path

import numpy as np
import sound_signals as signals

from lm.figures import STYLE, plt


def summary(part: str, results: list[dict]) -> dict[str, dict[str, np.ndarray]]:
    """By method and measure, the values [seeds]."""
    scores = [result["scores"] for result in results if result["part"] == part]
    return {
        name: {what: np.array([one[name][what] for one in scores]) for what in measures}
        for name, measures in scores[0].items()
    }


def cell(values: np.ndarray) -> str:
    """Mean and standard deviation of a measure's values [seeds]."""
    spread = f" ± {values.std(ddof=1):.3f}" if len(values) > 1 else ""
    return f"{values.mean():.3f}{spread}"


def table(part: str, results: list[dict]) -> str:
    """Markdown: mean and standard deviation over seeds."""
    methods = summary(part, results)
    measures = list(dict.fromkeys(what for values in methods.values() for what in values))
    lines = [f"| {part} | {' | '.join(measures)} |", "|---" * (1 + len(measures)) + "|"]
    for name, values in methods.items():
        lines.append(f"| {name} | {' | '.join(cell(values[what]) if what in values else '' for what in measures)} |")
    return "\n".join(lines)


def draw(results: list[dict], runs: Path, seed: int) -> plt.Figure:
    """A row of panels for each part: an example of the first seed, and the scores of all of them."""
    parts = [part for part in PANELS if any(result["part"] == part for result in results)]
    with plt.rc_context({**STYLE, "font.size": 11}):
        figure, axes = plt.subplots(
            len(parts), 3, figsize=(15, 4.2 * len(parts)), layout="constrained", squeeze=False, width_ratios=(1.2, 1, 1)
        )
        for row, part in zip(axes, parts, strict=True):
            PANELS[part](row, summary(part, results), runs, seed)
    return figure


def bars(axis, values: dict[str, dict[str, np.ndarray]], groups: dict[str, str], label: str) -> None:
    """A group of bars for each measure, in it a bar for each method, and a point for each seed."""
    width = 0.8 / len(values)
    for index, (name, measures) in enumerate(values.items()):
        for place, what in enumerate(groups):
            x = place + (index - (len(values) - 1) / 2) * width
            axis.bar(x, measures[what].mean(), 0.9 * width, color=f"C{index}", label=None if place else name)
            axis.plot(np.full(len(measures[what]), x), measures[what], "k.", markersize=3)
    axis.set_xticks(range(len(groups)), groups.values())
    axis.set(ylabel=label, ylim=(0, axis.get_ylim()[1] * 1.45))
    axis.grid(False, axis="x")
    axis.legend(fontsize=9, loc="upper right", ncols=2 if len(values) > 2 else 1)


def draw_speech(row, values, runs: Path, seed: int) -> None:
    held, answers = np.load(runs / f"speech-held-{seed}.npz"), np.load(runs / f"speech-answers-{seed}.npz")
    shown = 2  # of three digits
    frames_IE = held["frames"][shown, : held["frame_counts"][shown]]
    row[0].imshow(frames_IE.T, origin="lower", aspect="auto", cmap="magma", extent=(0, 10 * len(frames_IE), 0, 24))
    row[0].grid(False)
    voice, said, heard = held["voices"][shown], held["captions"][shown], answers["decoder-only"][shown]
    row[0].set(xlabel="ms", ylabel="mel band")
    row[0].set_title(f"“{said}”, answered “{heard}” (voice {voice})", fontsize=10)
    names = sorted(set(held["voices"]))
    for index, (name, some) in enumerate((name, answers[name]) for name in ("logistic regression", "decoder-only")):
        right = sorted(np.mean((some == held["captions"])[held["voices"] == voice]) for voice in names)
        row[1].plot(range(1, len(names) + 1), right, "o-", color=f"C{(1, 2)[index]}", label=name, markersize=4)
    row[1].set(title="each held-out voice, first seed", xlabel="voices, worst first", ylabel="answers right")
    row[1].set_ylim(0, 1.03)
    row[1].legend(fontsize=9)
    bars(row[2], values, {"1 digit": "1 digit", "2 digits": "2 digits", "3 digits": "3 digits"}, "answers right")
    row[2].set_yticks(np.linspace(0, 1, 6))
    row[2].set_title("spoken digits, voices held out")


def draw_vowel(row, values, runs: Path, seed: int) -> None:
    waves = np.load(runs / f"vowel-waves-{seed}.npz")
    truth_T, continued_T = waves["truth"][0], waves["continued"][0]
    ms = 1000 * np.arange(2 * signals.BEGINNING) / signals.RATE
    row[0].plot(ms, truth_T[: 2 * signals.BEGINNING], color="0.6", label="truth")
    row[0].plot(ms[signals.BEGINNING :], continued_T[: signals.BEGINNING], color="C0", label="continued")
    row[0].axvline(ms[signals.BEGINNING], color="k", linewidth=0.8, linestyle=":")
    row[0].set(title="a held-out vowel, continued from the dotted line", xlabel="ms", ylabel="signal")
    row[0].legend(fontsize=9, loc="upper right", ncols=2)
    for name, wave_T, color in (("truth", truth_T, "0.6"), ("continued", continued_T, "C0")):
        row[1].plot(*signals.spectrum(wave_T[-signals.CONTINUED // 2 :]), color=color, label=name)
    row[1].set(title="its spectrum, 125 ms later", xlabel="Hz", ylabel="dB")
    row[1].legend(fontsize=9)
    shown = {name: measures for name, measures in values.items() if "bits a sample" in measures}
    for index, (name, measures) in enumerate(shown.items()):
        bits = measures["bits a sample"]
        row[2].barh(index, bits.mean(), color="C0" if name == "transformer" else "0.75")
        row[2].plot(bits, np.full(len(bits), index), "k.", markersize=3)
        row[2].text(bits.max() + 0.1, index, f"{bits.mean():.2f}", va="center")
    row[2].set_yticks(range(len(shown)), shown)
    row[2].set(title="vowels held out", xlabel="bits a sample", xlim=(0, 9))
    row[2].grid(False, axis="y")


def draw_series(row, values, runs: Path, seed: int) -> None:
    for axis, kind in zip(row, ("seasonal", "chaotic"), strict=False):
        drawn = np.load(runs / f"series-{kind}-{seed}.npz")
        series_T, paths_WT = drawn["series"][1], drawn["paths"][1]
        asked = np.arange(signals.HISTORY, signals.HISTORY + signals.HORIZON)
        low_T, median_T, high_T = np.quantile(paths_WT, (0.1, 0.5, 0.9), axis=0)
        axis.plot(np.arange(72, len(series_T)), series_T[72:], color="0.5", label="truth")
        axis.plot(asked, median_T, color="C0", label="median of paths")
        axis.fill_between(asked, low_T, high_T, color="C0", alpha=0.25, label="middle 80%")
        axis.set(title=f"{kind}, held out", xlabel="step", ylabel="standard deviations")
        axis.legend(fontsize=9, loc="upper left")
        axis.set_ylim(axis.get_ylim()[0], axis.get_ylim()[1] + 1.2)
    bars(row[2], values, {f"{kind}, MASE": kind for kind in signals.SERIES}, "MASE of 24 values (less is better)")
    row[2].set_title("forecasts of series held out")


PANELS = {"speech": draw_speech, "vowel": draw_vowel, "series": draw_series}
