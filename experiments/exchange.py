"""Do models survive the journey: from transformers into lm, and from lm into transformers and llama.cpp?

python experiments/exchange.py            2 minutes on two CPU cores; needs the extras parity, exchange and llama
Expected: every family's logits agree with transformers' within 2e-5 on the way in and on the way out; llama.cpp agrees
within 1e-4 where a file is written, and where it computes a family otherwise or not at all the export says so; figure
experiments/figures/exchange.svg

Tiny random models of every family (two to six layers, heads 6 on 2, weights away from 0 and 1), 48 tokens, float32.
"""

import argparse
import dataclasses
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
from exchange_models import CASES, their_model

import lm
from lm import figures
from lm.errors import UserError
from lm.exchange import export_folder, export_gguf, import_model, tokenizers
from lm.tokenizer import ByteTokenizer

WAYS = {"into lm": "C0", "out to transformers": "C1", "out to llama.cpp": "C2"}


@dataclasses.dataclass(frozen=True)
class Journey:
    """Largest differences between logits by way, None where a library is not installed, or the reason for a refusal."""

    case: str
    differences: dict[str, float | str | None]

    def row(self) -> str:
        """A line of the table."""
        cells = [f"{d:.1e}" if isinstance(d, float) else d or "not compared" for d in self.differences.values()]
        return f"| {self.case} | {' | '.join(cells)} |"


def travel(case: str, place: Path) -> Journey:
    """One model in, and out again both ways."""
    folder, name = place / "theirs", case.replace(",", "").replace(" ", "-")
    model = their_model(case)
    model.save_pretrained(folder)
    for file, text in tokenizers.to_texts(ByteTokenizer(), 2048).items():
        (folder / file).write_text(text)
    made = import_model(folder, name, folder=place / "runs")
    m = lm.load(made.run)
    out = export_folder(m, place / "ours")
    try:
        file = export_gguf(m, place / "ours.gguf").check.largest_difference
    except UserError as error:
        file = "refused: " + str(error).removeprefix("no architecture of llama.cpp computes this model: ")
    found = made.check.largest_difference, out.check.largest_difference, file
    return Journey(case, dict(zip(WAYS, found, strict=True)))


def draw(journeys: list[Journey], out: Path) -> None:
    """A row for each model, a dot for each way; a cross where a file is refused."""
    with plt.rc_context(figures.STYLE):
        figure, axes = plt.subplots(figsize=(7.6, 0.27 * len(journeys) + 1.6))
        for offset, (way, colour) in zip((-0.22, 0, 0.22), WAYS.items(), strict=True):
            dots = [(j.differences[way], row + offset) for row, j in enumerate(journeys)]
            there = [(max(d, 1e-8), row) for d, row in dots if isinstance(d, float)]
            refused = [row for d, row in dots if isinstance(d, str)]
            if there:
                axes.scatter(*zip(*there, strict=True), color=colour, s=20, label=way)
            axes.scatter([2e-8] * len(refused), refused, color=colour, marker="x", s=22)
            for row in refused:
                axes.text(2.8e-8, row, "refused", color=colour, fontsize=8, va="center")
        axes.axvline(2e-5, color="0.4", linewidth=1, linestyle="--")
        axes.set(xscale="log", xlim=(1e-8, 1e-2), ylim=(len(journeys) - 0.4, -0.6))
        axes.set_xlabel("largest difference between logits (dashed: 2e-5)", fontsize=10)
        axes.set_yticks(range(len(journeys)), [j.case for j in journeys], fontsize=9)
        axes.tick_params(axis="x", labelsize=9)
        figure.legend(loc="upper center", fontsize=9, ncols=3)
        figure.tight_layout(rect=(0, 0, 1, 0.975))
        figures.save(figure, out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=list(CASES), help="only these")
    parser.add_argument("--figure", type=Path, default=Path("experiments/figures/exchange.svg"))
    options = parser.parse_args()
    journeys = []
    print(f"| model | {' | '.join(WAYS)} |\n|---|---|---|---|")
    for case in options.cases:
        with tempfile.TemporaryDirectory() as place:
            journeys.append(travel(case, Path(place)))
        print(journeys[-1].row(), flush=True)
    draw(journeys, options.figure)


if __name__ == "__main__":
    main()
