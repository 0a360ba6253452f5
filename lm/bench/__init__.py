"""How fast training and generation go, against what the machine can do and against peers, measured side by side.

Each public name is imported when first used: the PyTorch peer needs no JAX, and starts without it.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "decoding": ["AnyText", "decode"],
        "machine": ["fastest", "matmul_limits"],
        "rates": ["peak_flops", "training_rates"],
        "results": ["Absent", "Bench", "DecodeBench", "Peer", "TrainBench"],
        "rounds": ["Contestant", "Spread", "Timing", "compare"],
        "torch_peer": ["TorchTransformer", "torch_optimizers", "torch_trainer"],
        "training": ["Program", "train"],
    },
)
