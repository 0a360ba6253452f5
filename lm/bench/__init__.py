"""How fast training and generation go, against what the machine can do and against peers, measured side by side.

Each public name is imported when first used: the PyTorch peer needs no JAX, and starts without it.
"""

import importlib

_HOMES = {
    "train": "lm.bench.training.train", "decode": "lm.bench.decoding.decode", "Program": "lm.bench.training.Program",
    "compare": "lm.bench.rounds.compare", "Contestant": "lm.bench.rounds.Contestant",
    "Spread": "lm.bench.rounds.Spread", "Timing": "lm.bench.rounds.Timing", "Bench": "lm.bench.results.Bench",
    "TrainBench": "lm.bench.results.TrainBench", "DecodeBench": "lm.bench.results.DecodeBench",
    "Peer": "lm.bench.results.Peer", "Absent": "lm.bench.results.Absent",
    "torch_trainer": "lm.bench.torch_peer.trainer", "matmul_limits": "lm.bench.machine.matmul_limits",
    "fastest": "lm.bench.machine.fastest", "peak_flops": "lm.hardware.peak_flops",
    "training_rates": "lm.bench.rates.training_rates", "AnyText": "lm.bench.decoding.AnyText",
    "estimate_sweep": "lm.bench.sweeps.estimate",
}  # fmt: skip
__all__ = list(_HOMES)


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'lm.bench' has no attribute {name!r}")
    home, _, member = _HOMES[name].rpartition(".")
    return getattr(importlib.import_module(home), member)


def __dir__():
    return sorted(__all__)
