"""Rotary positions (Su et al. 2021) as a table: how fast each pair of a head's entries turns, in every layer.

A pair that does not turn has frequency 0. So heads that are rotated in part, layers that know no place, rescaled
contexts and bases that differ among layers are rows of one table, and one program serves them all.
"""

import math

import jax
import jax.numpy as jnp

from lm.config import ModelConfig


def rotate(x_BTNH: jax.Array, positions_BT: jax.Array, frequencies_R: jax.Array) -> jax.Array:
    """Turn the pair (i, i + H/2) of each head by position * frequencies_R[i]; R = H/2 pairs, phases in float32."""
    angles = positions_BT[..., None, None].astype(jnp.float32) * frequencies_R
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    a, b = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x_BTNH.dtype)


def _layers_differ(c: ModelConfig) -> bool:
    """Whether the layers' rows of the table are not all the same."""
    return c.rotary_skips is not None or (c.rotary_base_windowed is not None and len(c.layers_by_window) > 1)


def frequencies(c: ModelConfig) -> jax.Array:
    """The table in radians a token, float32: [L, H/2], or [H/2] where all layers have one row.

    The program that uses it computes it: a constant is fused otherwise in one program than in another, and runs of a
    pack would not have the bits of the runs alone.
    """
    if not _layers_differ(c):
        return _row(c, windowed=None not in c.layers_by_window)
    rows = {windowed: _row(c, windowed) for windowed in (False, True)}
    return jnp.stack([
        jnp.zeros_like(rows[False]) if c.rotary_skips and (layer + 1) % c.rotary_skips == 0
        else rows[window is not None]
        for layer, window in enumerate(c.windows)
    ])  # fmt: skip


def _row(c: ModelConfig, windowed: bool) -> jax.Array:
    """A layer's frequencies: base^(-2i/n) of the n entries that are rotated, then zeros."""
    own = windowed and c.rotary_base_windowed is not None
    base, half = c.rotary_base_windowed if own else c.rotary_base, c.H // 2
    turning = round(c.rotary_fraction * half)
    row_R = base ** (-jnp.arange(turning, dtype=jnp.float32) / turning)
    row_R = row_R if own else _rescaled(c, row_R)
    return row_R if turning == half else jnp.pad(row_R, (0, half - turning))


def _rescaled(c: ModelConfig, row_R: jax.Array) -> jax.Array:
    """Frequencies for a context longer than was trained on, as c.rotary_scaling says."""
    if c.rotary_scaling == "none":
        return row_R
    if c.rotary_scaling == "linear":
        return row_R / c.rotary_factor
    low, high = c.rotary_band
    turns_R = row_R * (c.rotary_context / (2 * math.pi))
    kept_R = jnp.clip((turns_R - low) / (high - low), 0, 1)
    return (1 - kept_R) * row_R / c.rotary_factor + kept_R * row_R
