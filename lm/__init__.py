"""lm: a laboratory for small language models in JAX. The public names; each is imported when first used."""

import importlib

__version__ = "0.1.0"

_HOMES = {
    "Experiment": "lm.config", "ModelConfig": "lm.config", "DataConfig": "lm.config", "OptimizerConfig": "lm.config",
    "ScheduleConfig": "lm.config", "TrainConfig": "lm.config", "UserError": "lm.errors", "Diverged": "lm.errors",
    "load_experiment": "lm.settings", "replace": "lm.settings", "Run": "lm.run", "Model": "lm.run", "load": "lm.run",
    "train": "lm.training.loop", "train_pack": "lm.training.loop", "Transformer": "lm.model.transformer",
    "KVCache": "lm.model.cache",
    "Sampler": "lm.sample.samplers", "generate": "lm.sample.generate", "Sample": "lm.sample.generate",
    "evaluate": "lm.evaluation", "loss_curves": "lm.plot", "Display": "lm.training.display",
}  # fmt: skip
__all__ = [*_HOMES, "bench", "data", "model", "probe", "sample", "scaling", "sweep", "tokenizer"]


def __getattr__(name: str):
    # Importing JAX takes a second: `lm --help` and a refused typo should not wait for it.
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name in __all__:
        return importlib.import_module(f"lm.{name}")
    raise AttributeError(f"module 'lm' has no attribute {name!r}")


def __dir__():
    return sorted(__all__)
