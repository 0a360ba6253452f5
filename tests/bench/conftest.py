"""Small limits, so that a bench in a test takes a moment; and GPT-2s of a few thousand parameters."""

import jax
import pytest

from lm.bench import machine
from lm.config import Experiment, ModelConfig, TrainConfig

SHAPE = dict(layers=2, width=32, heads=2, context=32, vocab=50, vocab_multiple=8)


@pytest.fixture(autouse=True)
def small_limits(monkeypatch):
    """Arrays of a test's size, and the session's cache of programs kept for the tests that follow."""
    monkeypatch.setattr(machine, "LARGE", 1 << 20)
    monkeypatch.setattr(machine, "CPU_SIZES", (64, 128))
    folder = jax.config.jax_compilation_cache_dir
    yield
    jax.config.update("jax_compilation_cache_dir", folder)


@pytest.fixture
def gpt2() -> Experiment:
    return Experiment(model=ModelConfig.gpt2("124M", **SHAPE), train=TrainConfig(batch=3))
