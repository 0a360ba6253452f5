"""Do tiny models obey a scaling law that says beforehand what a model of more than four times the compute will reach?

python experiments/scaling_cpu.py                                  bytes of stdlib: 20 minutes on two idle CPU cores
python experiments/scaling_cpu.py --corpus PATH --minutes 60 --runs runs/other
python experiments/scaling_cpu.py --show                           what is there already; trains nothing

1. Plans sizes and token counts for the time, at a measured rate (--rate gives one instead), 2 seeds each.
2. Pilots four learning rates at three widths; a power law in the width through the three best is the rate of all runs.
3. Trains the design: a trunk a size, a cooldown branch at each token count, one pass over the text.
4. Fits Hoffmann et al.'s three approaches, each counting parameters and FLOPs in three ways.
5. Chooses the compute-optimal model of 4.1 times the largest fitted compute, and seals what it will reach in
   prediction-*.json. Only then trains it, and scores the prediction.
Stopped, the same command goes on. Prints tables, draws experiments/figures/scaling_cpu.svg. Expected: RESULTS.md.
"""

import argparse
import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scaling_report import EXACT, KAPLAN, SEALED, law_of, rule, show

import lm
from lm.data import Batches, cache_folder, prepare
from lm.errors import UserError
from lm.hardware import keep_compiled_programs
from lm.scaling import read_points, write_prediction
from lm.sweep import (
    Board,
    Design,
    Rates,
    Row,
    Rules,
    Size,
    from_design,
    grid,
    jobs_of,
    plan,
    size,
    sweep,
    trunk_rows,
)
from lm.training import with_vocabulary

FARTHER = 4.1
"""Compute of the held-out run over the largest fitted one's."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """What all runs have in common, and what is varied."""

    experiment: lm.Experiment
    widths: tuple[int, ...]
    learning_rates: tuple[float, ...]
    """Of the pilot; ascending."""
    rules: Rules
    minutes: float
    name: str


CPU = Setting(
    experiment=lm.Experiment(
        model=lm.ModelConfig(context=128, tied=True),
        data=lm.DataConfig(corpus="stdlib", tokenizer="bytes", validation=0.05),
        schedule=lm.ScheduleConfig(name="wsd", warmup="15%"),
        train=lm.TrainConfig(
            log_every=100, eval_every="100%", checkpoint_every="100%", eval_tokens=1 << 18, keep=1
        ),
    ),
    widths=(24, 32, 40, 48, 56, 64, 80),
    learning_rates=(0.004, 0.008, 0.016, 0.032),
    rules=Rules(tokens_per_parameter=(8, 500), spacing=math.sqrt(2), batch_tokens=1024),
    minutes=20, name="scaling_cpu",
)  # fmt: skip
"""A vocabulary of bytes and a tied head keep embeddings from outweighing the rest. The warm-up is 15% of a trunk's
shortest run. Small batches, so that the larger sizes make 400 steps at a compute where they are too large: a valley has
two sides."""


# --- 1: what to train ------------------------------------------------------------------------------------------------
def designed(s: Setting, o: argparse.Namespace) -> tuple[Design, int]:
    """The sweep, planned now or by an earlier call, and the tokens of one pass over the text."""
    e = lm.replace(s.experiment, {"data.corpus": o.corpus})
    with lm.Display() as display:
        data = prepare(e.data, report=display.stage)
        e = with_vocabulary(e, data)
        epoch = Batches(data.train, context=e.model.context, batch=1, seed=0).epoch_tokens
        file = o.runs / "design.json"
        if file.is_file():
            print(f"the design is that of {file}")
            return Design.read(file), epoch
        sizes = [size(e.model, width, head_width=s.rules.head_width) for width in s.widths]
        if o.rate:
            rates = Rates((1.0,), (o.rate,))
        else:
            rates = lm.bench.training_rates(e, sizes[::3], runs=o.seeds, display=display)
    design = divided(s, e, sizes, rates, o, epoch)
    design.write(file)
    return design, epoch


def divided(s: Setting, e: lm.Experiment, sizes: Sequence[Size], rates: Rates, o, epoch: int) -> Design:
    """The largest design that leaves time for the pilot and the held-out run, and text for the latter."""
    seconds = 60 * o.minutes
    for share in np.geomspace(0.8, 0.1, 16):
        design = plan(
            e, seconds=share * seconds / o.seeds, rates=rates, corpus_tokens=epoch, sizes=sizes, rules=s.rules
        )
        ahead = design.target  # the optimum of four times the largest compute
        held_out = o.seeds * ahead["flops"] / rates.at(ahead["params"])
        tried = sum(len(s.learning_rates) * row.flops / rates.at(row.params_total) for row in pilots(design))
        if o.seeds * design.seconds + held_out + tried <= seconds and ahead["tokens"] <= epoch:
            return design
    raise UserError(f"--minutes {o.minutes}: too few for a sweep and a run of {FARTHER} times its largest; give more")


def pilots(design: Design) -> list[Row]:
    """The shortest rows of three trunks: the smallest size, the middle one, and one between that and the largest.

    The rate matters most where most of the compute is, but piloting the largest size would cost too much of it.
    """
    trunks: dict[str, Row] = {}
    for row in design.rows:
        trunks.setdefault(row.trunk, row)
    rows = list(trunks.values())
    return [rows[i] for i in sorted({0, len(rows) // 2, 3 * len(rows) // 4})]


# --- 2: the learning rate --------------------------------------------------------------------------------------------
def piloted(s: Setting, design: Design, folder: Path) -> tuple[float, float]:
    """The rule that pilots at three widths give: see `rule`."""
    e = lm.settings.from_dict(design.experiment)
    tried = "optimizer.learning_rate=" + ",".join(map(repr, s.learning_rates))
    made = from_design(e, dataclasses.replace(design, rows=tuple(pilots(design))))
    return rule(read_points(trained(grid(made, [tried]), folder)))


# --- 3: training -----------------------------------------------------------------------------------------------------
def trained(experiments: Sequence[lm.Experiment], folder: Path) -> Path:
    """Train what is not trained yet; returns the table of points."""
    result = sweep(jobs_of(experiments), folder, board=Board())
    if result.stopped:
        raise SystemExit("stopped; the same command goes on from there")
    for name, why in result.failed.items():
        print(f"without {name}, which failed: {why}")
    if result.points is None:
        raise SystemExit("nothing was trained")
    return result.points


def seeded(design: Design, rate: tuple[float, float], seeds: int) -> list[lm.Experiment]:
    """Every row with every seed, at the rate of its width."""
    k, p = rate
    made = from_design(lm.settings.from_dict(design.experiment), design)
    made = [lm.replace(e, {"optimizer.learning_rate": float(f"{k * e.model.width**-p:.3g}")}) for e in made]
    return grid(made, ["train.seed=" + ",".join(map(str, range(seeds)))])


# --- 4: the held-out run ---------------------------------------------------------------------------------------------
def held_out(s: Setting, design: Design, law: lm.scaling.Law, epoch: int, file: Path) -> Design:
    """A design of one row: the compute-optimal model FARTHER than all fitted ones, as its own trunk would end.

    Of widths whose run is long enough and needs no text twice, the one nearest in size to the law's optimum, as deep as
    the largest that was fitted: what one more layer buys, models without it cannot tell.
    """
    if file.is_file():
        return Design.read(file)
    e = lm.settings.from_dict(design.experiment)
    flops = FARTHER * law.data.flops.max()
    wanted = float(law.optimum(flops)["params"][0])
    unit, layers = s.rules.head_width, max(design.rows, key=lambda row: row.params_total).layers
    sizes = [size(e.model, width, layers, unit) for width in range(unit, 2 * max(s.widths) + 1, unit // 2)]
    ends = [trunk_rows(one, flops, e, s.rules, epoch, None) for one in sizes]
    ends = [rows for rows in ends if rows and rows[-1].flops >= 4 * law.data.flops.max()]
    if not ends:
        raise SystemExit(f"one pass over the text is too short for a run of {flops:.2e} FLOPs; give more text")
    rows = min(ends, key=lambda rows: abs(math.log(rows[-1].params_total / wanted)))
    warmup = {"schedule.warmup": from_design(e, dataclasses.replace(design, rows=tuple(rows)))[-1].schedule.warmup}
    found = dataclasses.replace(
        design, rows=(rows[-1],), experiment=lm.settings.to_dict(lm.replace(e, warmup)), warnings=()
    )
    found.write(file)
    return found


def seal(laws: dict[str, lm.scaling.Law], row: Row, folder: Path) -> None:
    """Write down what each law predicts for the row, once, before it is trained."""
    params = {EXACT: row.params_total, KAPLAN: row.params_nonembedding}
    for count, name in SEALED.items():
        if not (folder / name).exists():
            write_prediction(laws[count], folder / name, [{"params": params[count], "tokens": row.tokens}])
        print(f"sealed before training: {name}, SHA-256 {json.loads((folder / name).read_text())['sha256']}")


# --- all of it --------------------------------------------------------------------------------------------------------
def study(s: Setting, o: argparse.Namespace) -> None:
    """All steps, or what is left of them."""
    design, epoch = designed(s, o)
    print(design.table())
    rate = piloted(s, design, o.runs / "pilot")
    print(f"learning rate = {rate[0]:.4g} width^-{rate[1]:.3f}")
    swept = trained(seeded(design, rate, o.seeds), o.runs / "sweep")
    laws = {count: law_of(swept, count) for count in SEALED}
    last = held_out(s, design, laws[EXACT], epoch, o.runs / "held-out.json")
    seal(laws, last.rows[0], o.runs)
    trained(seeded(last, rate, o.seeds), o.runs / "held-out")


def main(s: Setting, doc: str | None) -> None:
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    corpus = s.experiment.data.corpus
    parser.add_argument("--corpus", default=corpus, help="a named corpus, or a file, folder or glob")
    parser.add_argument("--minutes", type=float, default=s.minutes, help="of this machine, pilot and held-out included")
    parser.add_argument("--rate", type=float, help="FLOP/s of all seeds side by side, instead of measuring")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--runs", type=Path, default=Path("runs") / s.name)
    parser.add_argument("--show", action="store_true", help="only show what there is")
    parser.add_argument("--figure", type=Path, default=Path(__file__).parent / "figures" / f"{s.name}.svg")
    o = parser.parse_args()
    keep_compiled_programs(cache_folder() / "programs")
    try:
        if not o.show:
            study(s, o)
        show(o.runs, o.figure)
    except UserError as error:
        raise SystemExit(f"{parser.prog}: {error}") from error


if __name__ == "__main__":
    main(CPU, __doc__)
