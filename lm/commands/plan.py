"""lm plan CONFIG --minutes 15 | --flops 1e13: the design of a scaling sweep, with predicted standard errors."""

import dataclasses
import functools
import math
import re
import shlex
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from lm import settings
from lm.arguments import parse, parse_train
from lm.commands.common import Json, prepare_jax, print_json, split
from lm.config import Experiment
from lm.errors import UserError, require

if TYPE_CHECKING:
    from lm.sweep import Design, Rules  # import JAX, for which a typing mistake should not wait


@dataclasses.dataclass(frozen=True)
class Options:
    """Plan a sweep of a CONFIG's model over sizes and token counts: lm plan CONFIG --minutes 15 --data.corpus PATH

    CONFIG builds one `experiment` with a vocabulary of at most 1,024 entries: bytes, characters, few words. `lm plan`
    alone says which of the named ones that is.
    """

    minutes: float | None = None
    """What the sweep may take on this machine; a rate is measured unless given."""
    flops: float | None = None
    """Exact training FLOPs of the whole sweep."""
    rate: float | None = None
    """FLOP/s, instead of measuring."""
    sizes: tuple[str, ...] = ()
    """Just these, as width x layers: 32x2 64x3 96x4."""
    tokens_per_parameter: tuple[float, float] = (15.0, 480.0)
    """Least and most."""
    ratios: tuple[float, ...] = ()
    """Every size at these tokens per parameter, instead of along lines of equal compute."""
    least_steps: int = 400
    """Shorter runs are left out."""
    cooldown: float = 0.15
    """Fraction of each run's steps in which the rate falls."""
    noise: float | None = None
    """Standard deviation of ln loss between seeds."""
    shared_noise: float = 0.5
    """Fraction of its variance that branches of one trunk share."""
    target: float | None = None
    """FLOPs to extrapolate to: make the error there smallest."""
    pilot: Path | None = None
    """Points of earlier runs: take the law and the noise from a fit of them."""
    out: Path | None = None
    """Write the design to this file, for lm sweep."""
    json: Json = False


def run(arguments: list[str]) -> None:
    if not arguments:
        raise UserError(f"which config? lm plan CONFIG --minutes 15; {_taken(others=True)}")
    config, own, rest = split("plan", Options, arguments)
    o = parse(Options, own, "lm plan CONFIG")
    rules, sizes = _checked(o)
    e = parse_train([config, *rest]).experiment
    from lm.sweep import pilot_law, unplannable

    if why := unplannable(e):
        raise UserError(f"{config}: {why}; {_taken()}")
    prepare_jax()
    from lm.training.display import Display

    with Display() as display:
        if o.pilot:
            display.stage(f"fitting {o.pilot}", 0, None)
        assumed = pilot_law(o.pilot) if o.pilot else {}
        design = _plan(o, e, rules, sizes, assumed | ({} if o.noise is None else {"noise": o.noise}), display)
    if o.out:
        design.write(o.out)
    if o.json:
        print_json(design.to_json())
        return
    print(design.table(), end="")
    if o.out:
        print(f"\nNext:\n  {shlex.join(['lm', 'sweep', str(o.out), '--dry-run'])}    what it takes here\n"
              f"  {shlex.join(['lm', 'sweep', str(o.out)])}")  # fmt: skip
    else:
        print(f"\nNext:\n  {shlex.join(['lm', 'plan', *arguments, '--out', 'sweep.json'])}    keep it")


def _checked(o: Options) -> tuple["Rules", list[tuple[int, int]]]:
    """The rules and the sizes as (width, layers), once every option is found to be possible."""
    require(o.minutes is not None or o.flops is not None, "which budget? Give --minutes 15 or --flops 1e13")
    for name in ("minutes", "flops", "rate", "noise", "target"):
        value = getattr(o, name)
        require(value is None or 0 < 60 * value < math.inf, f"--{name} {value}: must be positive and finite")
    require(0 <= o.shared_noise < 1, f"--shared-noise {o.shared_noise}: a fraction from 0 up and below 1")
    sizes = [_size(word) for word in o.sizes]
    twice = next((word for word, size in zip(o.sizes, sizes, strict=True) if sizes.count(size) > 1), None)
    require(twice is None, f"--sizes {twice} is given twice")
    require(o.pilot is None or o.pilot.is_file(), f"--pilot {o.pilot}: no such file")
    if o.out:
        _check_out(o.out)
    from lm.sweep import Rules

    return Rules(o.tokens_per_parameter, o.ratios, least_steps=o.least_steps, cooldown=o.cooldown), sizes


def _check_out(out: Path) -> None:
    """Refuse now what could not be written at the end, or would take the place of something else."""
    require(out.suffix == ".json", f"--out {out}: a design is written as .json")
    require(not out.is_dir(), f"--out {out}: a folder")
    from lm.sweep import Design

    if out.is_file() and out.stat().st_size:
        try:
            Design.read(out)
        except UserError as error:
            raise UserError(f"--out: {error}; give another name, or remove it") from error
    parent = next(folder for folder in out.absolute().parents if folder.exists())
    try:
        with tempfile.TemporaryFile(dir=parent):
            pass
    except OSError as error:
        raise UserError(f"--out {out}: cannot write to {parent}: {error.strerror}") from error


def _taken(others: bool = False) -> str:
    """Which named configurations can be planned; with `others`, also why the rest cannot."""
    from lm.sweep import unplannable

    takes, refused = [], []
    for name in sorted({file.stem for folder in settings.config_folders() for file in folder.glob("*.py")}):
        try:
            why = unplannable(settings.load_experiment(name))
        except UserError as error:
            why = str(error)
        takes += [] if why else [name]
        refused += [f"{name} ({why.split(':')[0]})"] if why else []
    told = f"it takes {', '.join(takes) or 'none of configs/'}"
    return f"{told}; not {', '.join(refused)}" if refused and others else told


def _plan(o: Options, e: Experiment, rules: "Rules", sizes: list[tuple[int, int]], assumed: dict, display) -> "Design":
    """The design. A rate is measured only once the budget is known to be possible at the machine's peak."""
    from lm.data.batches import Batches
    from lm.data.supply import prepare
    from lm.sweep import Rates, plan, size
    from lm.training.loop import with_vocabulary

    data = prepare(e.data, report=display.stage)
    e = with_vocabulary(e, data)
    epoch = Batches(data.train, context=e.model.context, batch=1, seed=0).epoch_tokens
    chosen = [size(e.model, width, layers) for width, layers in sizes]
    seconds = None if o.minutes is None else 60 * o.minutes
    planned = functools.partial(
        plan, e, flops=o.flops, seconds=seconds, corpus_tokens=epoch, sizes=chosen, rules=rules,
        shared_noise=o.shared_noise, target=o.target, **assumed,
    )  # fmt: skip
    display.stage("planning", 0, None)
    if o.rate is not None or seconds is None:
        return planned(rates=None if o.rate is None else Rates((1.0,), (o.rate,)))
    from lm.bench.rates import sizes_to_measure, training_rates
    from lm.hardware import peak_flops
    from lm.model.api import build

    peak, _ = peak_flops(str(build(e.model).product_dtype))
    planned(rates=Rates((1.0,), (2 * peak,)))  # more than any training reaches: what is impossible now stays so
    measured = chosen[:: max(1, len(chosen) - 1)] or sizes_to_measure(e, seconds, rules)
    return planned(rates=training_rates(e, measured, display=display))


MOST_WIDE, MOST_LAYERS = 1 << 16, 1 << 10


def _size(word: str) -> tuple[int, int]:
    """Width and layers of a size given as a word such as 64x3."""
    match = re.fullmatch(r"([1-9][0-9]{0,5})x([1-9][0-9]{0,4})", word)
    require(match is not None, f"--sizes {word}: width x layers, such as 64x3")
    width, layers = int(match[1]), int(match[2])
    require(
        width <= MOST_WIDE and layers <= MOST_LAYERS, f"--sizes {word}: at most {MOST_WIDE} wide, {MOST_LAYERS} layers"
    )
    return width, layers
