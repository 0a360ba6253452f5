"""Learning-rate schedules: a fraction of the peak for every step, a pure function of traced numbers."""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def cosine(left: jax.Array, h: dict) -> jax.Array:
    """Half a cosine from the peak to the final fraction (Loshchilov and Hutter 2017)."""
    return h["final"] + (1 - h["final"]) * 0.5 * (1 - jnp.cos(jnp.pi * left))


def linear(left: jax.Array, h: dict) -> jax.Array:
    """A straight line from the peak to the final fraction."""
    return h["final"] + (1 - h["final"]) * left


def constant(left: jax.Array, h: dict) -> jax.Array:
    """The peak throughout."""
    return jnp.ones_like(left)


def wsd(left: jax.Array, h: dict) -> jax.Array:
    """The peak, then a straight line to the final fraction over the last `decay` steps (Hu et al. 2024)."""
    decaying = jnp.clip(left * (h["total"] - h["warmup"]) / jnp.maximum(h["decay"], 1), 0, 1)
    return linear(decaying, h)


SCHEDULES: dict[str, Callable[[jax.Array, dict], jax.Array]] = {
    "cosine": cosine, "linear": linear, "constant": constant, "wsd": wsd,
}  # fmt: skip


def rate(name: str, step: jax.Array, h: dict) -> jax.Array:
    """Fraction of the peak rate that update number `step` (from 0) uses.

    h: total, warmup and decay in steps, final as a fraction; all traced, so a longer run compiles nothing. Warm-up is
    linear and its last step is the first at the peak. Each schedule sees the part of the run after warm-up that is
    left, from 1 down to 0.
    """
    step = step.astype(jnp.float32)
    left = (h["total"] - step) / jnp.maximum(h["total"] - h["warmup"], 1)
    warm = (step + 1) / jnp.maximum(h["warmup"], 1)
    return jnp.where(step < h["warmup"], warm, SCHEDULES[name](jnp.clip(left, 0, 1), h))
