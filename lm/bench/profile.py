"""Where the time goes, operation by operation: a trace by JAX's profiler, added up."""

import gzip
import json
import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax

from lm.errors import UserError

TOP = 15
KINDS = {
    "ynn": "matrix product or fusion (YNNPACK)", "dot": "matrix product", "gemm": "matrix product",
    "cublas": "matrix product", "custom-call": "library call", "convolution": "convolution", "copy": "copy",
    "transpose": "copy", "slice": "slice", "scatter": "scatter", "gather": "gather", "reduce": "reduction",
    "broadcast": "fill", "while": "loop", "call": "call", "conditional": "branch", "sort": "sort",
}  # fmt: skip
"""What a part of an operation's name says it is; the first that fits."""


@dataclass(frozen=True)
class Operation:
    """All operations of one name, but for the number at its end."""

    name: str
    kind: str
    count: int
    seconds: float
    """Its own, summed over threads; operations inside it (a loop's) not counted."""
    share: float
    """Of the wall time; with several threads they may add up to more than 1."""


def profile(run: Callable[[], object], folder: Path) -> list[Operation]:
    """Trace `run`, which blocks until done, into `folder`; the costliest operations."""
    make_folder(folder)
    with jax.profiler.trace(str(folder), create_perfetto_trace=True), jax.profiler.TraceAnnotation("lm.bench"):
        run()
    newest = max(folder.rglob("perfetto_trace.json.gz"), key=lambda file: file.stat().st_mtime)
    with gzip.open(newest, "rt") as file:
        trace = json.load(file)
    return summarize(trace["traceEvents"] if isinstance(trace, dict) else trace)


def make_folder(folder: Path) -> None:
    """Make it, or say why not; for callers too, who time for long before they trace."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--profile {folder}: {error.strerror}") from error


def summarize(events: list[dict], top: int = TOP) -> list[Operation]:
    """The `top` operations by own time among a trace's events; the wall time is that of the event `lm.bench`."""
    whole = [e for e in events if e.get("ph") == "X"]
    wall = sum(e["dur"] for e in whole if e["name"] == "lm.bench")
    own, count = defaultdict(float), defaultdict(int)
    for event, microseconds in own_times([e for e in whole if "hlo_op" in e.get("args", {})]):
        name = re.sub(r"([._]\d+)+(\.clone)?$", "", event["args"]["hlo_op"])
        own[name] += microseconds
        count[name] += 1
    longest = sorted(own, key=own.__getitem__, reverse=True)[:top]
    return [
        Operation(
            name=name, kind=kind(name), count=count[name], seconds=own[name] / 1e6, share=own[name] / max(wall, 1e-9),
        )
        for name in longest
    ]  # fmt: skip


def own_times(events: list[dict]) -> list[tuple[dict, float]]:
    """Each event with its duration less that of the events directly inside it on the same thread."""
    own = {id(e): e["dur"] for e in events}
    stacks = defaultdict(list)
    for e in sorted(events, key=lambda e: (e["ts"], -e["dur"])):
        stack = stacks[e["pid"], e["tid"]]
        while stack and stack[-1]["ts"] + stack[-1]["dur"] <= e["ts"]:
            stack.pop()
        if stack:
            own[id(stack[-1])] -= e["dur"]
        stack.append(e)
    return [(e, max(0.0, own[id(e)])) for e in events]


def kind(name: str) -> str:
    """What an operation is, from its name."""
    said = next((what for part, what in KINDS.items() if part in name), None)
    if "fusion" in name and not name.startswith("ynn"):
        return f"fusion with a {said}" if said else "fusion"
    return said or "elementwise"
