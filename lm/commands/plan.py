"""lm plan CONFIG --minutes 15 | --flops 1e13: the design of a scaling sweep, with predicted standard errors."""

import dataclasses
import re
from pathlib import Path

from lm.arguments import parse, parse_train
from lm.commands.common import Json, prepare_jax, print_json, split
from lm.errors import require


@dataclasses.dataclass(frozen=True)
class Options:
    """Plan a sweep of a CONFIG's model over sizes and token counts: lm plan CONFIG --minutes 15 --data.corpus PATH"""

    minutes: float | None = None
    """Of this machine; a rate is measured unless given."""
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
    config, own, rest = split("plan", Options, arguments)
    o = parse(Options, own, "lm plan CONFIG")
    require(o.minutes is not None or o.flops is not None, "which budget? Give --minutes 15 or --flops 1e13")
    require(o.out is None or o.out.suffix == ".json", f"--out {o.out}: a design is written as .json")
    e = parse_train([config, *rest]).experiment
    prepare_jax()
    from lm.training.display import Display

    with Display() as display:
        design = _plan(o, e, display)
    if o.out:
        design.write(o.out)
    if o.json:
        print_json(design.to_json())
    else:
        print(design.table(), end="")
        print(f"Written to {o.out}; train it with: lm sweep {o.out}" if o.out else "", end="\n" if o.out else "")


def _plan(o: Options, e, display):
    from lm.data.batches import Batches
    from lm.data.tokens import prepare
    from lm.scaling.plan import Rates, Rules, fitted, plan, size
    from lm.training.loop import with_vocabulary

    rules = Rules(o.tokens_per_parameter, o.ratios, least_steps=o.least_steps, cooldown=o.cooldown)
    assumed = fitted(o.pilot) if o.pilot else {}
    if o.noise is not None:
        assumed["noise"] = o.noise
    data = prepare(e.data, report=display.stage)
    e = with_vocabulary(e, data)
    epoch = Batches(data.train, context=e.model.context, batch=1, seed=0).epoch_tokens
    sizes = [size(e.model, *_size(word)) for word in o.sizes]
    rates = None
    if o.rate is not None:
        require(o.rate > 0, f"--rate {o.rate}: FLOP/s, above 0")
        rates = Rates((1.0,), (o.rate,))
    elif o.minutes is not None:
        from lm.bench.rates import sizes_to_measure, training_rates

        measured = sizes[:: max(1, len(sizes) - 1)] or sizes_to_measure(e, 60 * o.minutes, rules)
        require(bool(measured), f"{o.minutes} minutes are too few for the smallest model; give more")
        rates = training_rates(e, measured, display=display)
    return plan(
        e, flops=o.flops, seconds=None if o.minutes is None else 60 * o.minutes, rates=rates, corpus_tokens=epoch,
        sizes=sizes, rules=rules, shared_noise=o.shared_noise, target=o.target, **assumed,
    )  # fmt: skip


def _size(word: str) -> tuple[int, int]:
    match = re.fullmatch(r"([1-9][0-9]*)x([1-9][0-9]*)", word)
    require(match is not None, f"--sizes {word}: width x layers, such as 64x3")
    return int(match[1]), int(match[2])
