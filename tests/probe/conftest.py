"""Most of these tests' time is compilation, and what a program computes is the same without polish."""

import jax
import pytest


@pytest.fixture(autouse=True)
def quick_compilation():
    """Compile without most optimisations, in this folder alone."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
