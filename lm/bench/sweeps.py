"""What a sweep will cost here: its runs' FLOPs at measured rates, and the programs that it has to compile."""

import dataclasses
import json
import operator
import time
from collections.abc import Sequence
from typing import Any

from lm import evaluation, settings
from lm import tokenizer as tokenizers
from lm.bench.rounds import Contestant, calibrate, timed
from lm.bench.training import Program
from lm.config import Experiment
from lm.data.batches import validation_windows
from lm.data.supply import prepare
from lm.data.tokens import Prepared
from lm.errors import UserError
from lm.model.api import build
from lm.sweep.jobs import MOST_PACKED, Job, added_steps, packs, parted, trunks
from lm.sweep.planning import Rates
from lm.training.context import flops_per_token, stages
from lm.training.display import Display

MEASURE_SECONDS = 1.0


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Seconds are at the rates measured just now, of the machine as busy as it was."""

    runs: list[dict[str, Any]]
    """Each run in the order of training: name, trunk, params_total, steps, branch_step, tokens, flops; flops_added and
    seconds are what it adds once those of its trunk are there, its evaluations included."""
    flops: float
    flops_without_trunks: float
    """Had every run been trained from scratch."""
    programs: int
    """Shapes of which nothing that was compiled for another can be used."""
    compile_seconds: float
    """Of all programs, none of which was kept from an earlier time."""
    seconds: float
    """In all."""
    side_by_side: int
    """Most runs that train at once, at whose rate the seconds are."""
    note: str | None
    """What keeps runs from sharing their steps."""


def estimate(jobs: Sequence[Job], *, most: int = MOST_PACKED, display: Display | None = None) -> Estimate:
    """Time the smallest and the largest model of a sweep, as many runs side by side as it would train, and count.

    most: runs side by side. Programs are compiled afresh where JAX keeps none (jax_compilation_cache_dir None).
    """
    found = trunks(jobs)
    groups = packs(found, most)
    with display or Display(quiet=True) as display:
        rates = _measured(groups, display)
    listed = [_row(job, steps, trunk, rates) for trunk in found for job, steps in added_steps(trunk)]
    programs = len({(program(job.experiment), s.pieces) for job in jobs for s in stages(job.experiment, job.steps)})
    compiling = programs * rates.setup_seconds
    flops, seconds = (sum(row[key] for row in listed) for key in ("flops_added", "seconds"))
    return Estimate(
        runs=listed, flops=flops, flops_without_trunks=sum(row["flops"] for row in listed), programs=programs,
        compile_seconds=compiling, seconds=compiling + seconds, side_by_side=max(map(len, groups)), note=parted(jobs),
    )  # fmt: skip


def _row(job: Job, steps: int, trunk: Sequence[Job], rates: Rates) -> dict[str, Any]:
    """One run; its evaluations are forward passes, a third of a training step."""
    e, added = job.experiment, job.flops - job.flops_until(job.steps.total - steps)
    evaluations = 1 + steps // min(job.steps.eval_every, job.steps.checkpoint_every)
    scored = evaluations * e.train.eval_tokens * flops_per_token(e.model, e.model.context) / 3
    return dict(
        name=job.name, trunk=trunk[-1].name, params_total=job.params_total, steps=job.steps.total,
        branch_step=job.branch_step if len(trunk) > 1 else None, tokens=job.steps.total * e.batch_tokens,
        flops=job.flops, flops_added=added, seconds=(added + scored) / rates.at(job.params_total),
    )  # fmt: skip


def program(e: Experiment) -> str:
    """The same for runs that are compiled alike: all but what is traced, how long they are and what they write down."""
    free = settings.PACKABLE | settings.STAGED | settings.FREE - settings.COMPILED
    flat = settings.flatten(settings.to_dict(e))
    return json.dumps({key: value for key, value in flat.items() if key not in free})


def _measured(groups: Sequence[Sequence[Sequence[Job]]], display: Display) -> Rates:
    """Training FLOP/s at the smallest and the largest size, and the mean time until a program is ready."""
    size = operator.attrgetter("params_total")
    by_size = sorted(([trunk[-1] for trunk in group] for group in groups), key=lambda pack: (size(pack[0]), -len(pack)))
    ends = {size(pack[0]): pack for pack in (by_size[-1], by_size[0])}
    rates, setup = {}, {}
    for place, (params, pack) in enumerate(sorted(ends.items())):
        display.stage(f"compiling and timing {pack[0].name}", place, len(ends))
        try:
            rates[params], setup[params] = _measure(pack)
        except (RuntimeError, MemoryError) as error:  # what XLA raises, out of memory above all
            said = " ".join(str(error).split())[:200]
            raise UserError(f"{pack[0].name}: {len(pack)} side by side do not run here: {said}") from error
    return Rates(tuple(map(float, rates)), tuple(rates.values()), sum(setup.values()) / len(setup))


def _measure(pack: Sequence[Job]) -> tuple[float, float]:
    """FLOP/s of a pack's training steps, and seconds that it takes to compile them and the evaluation."""
    data = prepare(pack[0].experiment.data)
    start = time.perf_counter()
    program = Program(*[_tame(job) for job in pack])
    ready = time.perf_counter() - start
    n = calibrate(Contestant(pack[0].name, program.run), MEASURE_SECONDS)
    seconds = timed(Contestant(pack[0].name, program.run), n, time.perf_counter)
    e = pack[0].experiment
    rate = len(pack) * e.batch_tokens * flops_per_token(e.model, e.model.context) * n / seconds
    first, again = (_evaluated(pack[0].experiment, data, program.pack.state(0).params) for _ in range(2))
    return rate, ready + max(first - again, 1e-3)


def _tame(job: Job) -> Experiment:
    """The job's experiment on whole windows, at rates that random tokens do not make diverge: the same program."""
    rates = dict.fromkeys(("optimizer.learning_rate", "optimizer.matrix_learning_rate"), 1e-6)
    steps = {"train.steps": job.steps.total, "schedule.warmup": job.steps.warmup, "schedule.decay": job.steps.decay}
    return settings.replace(job.experiment, rates | steps | {"schedule.context_start": None})


def _evaluated(e: Experiment, data: Prepared, params: dict) -> float:
    """Seconds to score one batch of windows, as training evaluates."""
    batch, chunk = e.train.batch // e.train.accumulation, e.train.loss_chunk
    tokens = min(e.train.eval_tokens, batch * e.model.context)
    windows = validation_windows(data.validation, e.model.context, tokens)
    start = time.perf_counter()
    evaluation.score_columns(
        build(e.model), params, windows, tokenizers.token_bytes(data.tokenizer),
        eot=data.tokenizer.eot_token if e.data.packing else None, batch=batch, chunk=chunk,
    )  # fmt: skip
    return time.perf_counter() - start
