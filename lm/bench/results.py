"""What a bench found, as plain dataclasses and as a table."""

import dataclasses
from collections.abc import Sequence

import jax
from rich.table import Table

from lm.bench.profile import Operation
from lm.bench.rounds import Spread, Timing
from lm.config import ModelBase, ModelConfig
from lm.console import as_text
from lm.model.api import build
from lm.tables import facts, table


@dataclasses.dataclass(frozen=True)
class Peer:
    """Another program doing the same work in the same rounds."""

    name: str
    tokens_per_second: float
    ratio: Spread
    """lm's tokens per second over the peer's, round by round: above 1, lm is faster."""


@dataclasses.dataclass(frozen=True)
class Absent:
    """A peer that did not take part."""

    name: str
    why: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bench:
    """What training and decoding have in common; rates are medians over the rounds, limits measured in the same run."""

    what: str
    tokens_per_second: float
    quartiles: tuple[float, float]
    """Of tokens_per_second."""
    flops_per_second: float
    peak_flops_per_second: float
    """The fastest matrix product."""
    copied_bytes_per_second: float
    compile_seconds: float
    rounds: int
    peers: list[Peer]
    absent: list[Absent]
    operations: list[Operation]
    """The costliest ones, when a profile was asked for."""

    def facts(self) -> list[tuple[str, str]]:
        """What stands below the table of contestants."""
        return []

    def table(self) -> str:
        """Text for a person."""
        operations = ["", self._operations()] if self.operations else []
        return as_text(self.what, "", self._contestants(), "", facts(self.facts()), *operations, width=120)

    def _contestants(self) -> Table:
        low, high = self.quartiles
        rows = [("lm", rate(self.tokens_per_second), "", f"{rate(low)} to {rate(high)} tokens/s")]
        for peer in self.peers:
            r = peer.ratio
            spread = f"{r.low:.2f}x to {r.high:.2f}x"
            rows.append((peer.name, rate(peer.tokens_per_second), f"{r.median:.2f}x", spread))
        rows += [(absent.name, "-", "", absent.why) for absent in self.absent]
        return table(("", "tokens/s", "lm is faster by", f"quartiles of {self.rounds}"), rows)

    def _operations(self) -> Table:
        rows = [(o.name, o.kind, o.count, f"{o.seconds:.4f}", f"{o.share:.1%}") for o in self.operations]
        return table(("operation", "what it is", "times", "seconds", "of the time"), rows, left=2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainBench(Bench):
    """Throughput of the training program."""

    utilization: float
    """flops_per_second over peak_flops_per_second."""
    flops_per_token: float
    steps_per_second: float
    memory_bytes: int | None
    """Arguments and temporaries of the compiled program, as XLA plans them; None where it does not say."""
    memory_peak_bytes: int | None
    """Most the accelerator has held in this process, the limits' arrays included; None on CPU."""

    def facts(self) -> list[tuple[str, str]]:
        rows = [
            ("steps a second", f"{self.steps_per_second:,.2f}"),
            ("FLOP/s", f"{si(self.flops_per_second)} ({si(self.flops_per_token)} a token, exact)"),
            ("fastest matrix product, FLOP/s", si(self.peak_flops_per_second)),
            ("utilization", f"{self.utilization:.1%} of it"),
            ("copying memory", f"{si(self.copied_bytes_per_second)}B/s"),
            ("compiling", f"{self.compile_seconds:.1f} s"),
        ]
        if self.memory_bytes is not None:
            rows.append(("memory", f"{si(self.memory_bytes)}B"))
        if self.memory_peak_bytes is not None:
            rows.append(("memory, peak on the device", f"{si(self.memory_peak_bytes)}B"))
        return rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecodeBench(Bench):
    """Throughput of generation, prompts and all."""

    utilization: float
    """tokens_per_second over what reading the parameters and the cache once a token would allow."""
    batch: int
    tokens: int
    prompt_tokens: int
    bytes_per_step: float
    """Parameters and held cache, read once for all rows of a step."""
    bytes_per_second: float
    read_bytes_per_second: float
    """The fastest reading of as many bytes over and over."""

    def facts(self) -> list[tuple[str, str]]:
        return [
            ("reads", f"{si(self.bytes_per_second)}B/s ({si(self.bytes_per_step)}B a step of {self.batch} tokens)"),
            ("fastest reading of so much", f"{si(self.read_bytes_per_second)}B/s"),
            ("utilization", f"{self.utilization:.1%} of it"),
            ("copying memory", f"{si(self.copied_bytes_per_second)}B/s"),
            ("FLOP/s", si(self.flops_per_second)),
            ("fastest matrix product, FLOP/s", si(self.peak_flops_per_second)),
            ("first call, compiling", f"{self.compile_seconds:.1f} s"),
        ]


def peers_of(names: Sequence[str], timings: Sequence[Timing], tokens_per_unit: float) -> list[Peer]:
    """The timed peers; `names` are theirs among the timings."""
    return [Peer(t.name, tokens_per_unit / t.seconds.median, t.ratio) for t in timings if t.name in names]


def describe(c: ModelBase, rest: str) -> str:
    """A model's shape, what is done with it and where, on one line."""
    device = jax.devices()[0]
    where = device.device_kind if device.platform != "cpu" else "cpu"
    heads = f" N={c.heads}" if isinstance(c, ModelConfig) else ""
    shape = f"{c.layers} layers, D={c.width}{heads} T={c.context} V={c.V}"
    return f"{shape}, {rest}, on {where} in {build(c).precision}"


def rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:,.1f}"


def si(value: float) -> str:
    """1.23e9 as `1.23 G`."""
    for prefix in ("", "k", "M", "G", "T", "P"):
        if value < 1000:
            return f"{value:.3g} {prefix}"
        value /= 1000
    return f"{value * 1e15:.3g} "
