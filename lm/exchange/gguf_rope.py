"""Rotary positions in GGUF files and in config.json: base, linear scaling, Llama 3.1's, and the part that is turned."""

import math

import numpy as np

from lm.errors import require
from lm.exchange.gguf_traits import Fields, Shapes, Trait, head_width, plain


def _take_rope(left: Fields) -> tuple[Fields, Fields | None]:
    """Rotary settings of config.json, in transformers 5's form or the older: of full layers, and of windowed ones."""
    found = left.pop("rope_parameters", None) or {}
    legacy = left.pop("rope_scaling", None) or {}
    bases = [left.pop(name, None) for name in ("rope_theta", "rotary_emb_base")]
    parts = [left.pop(name, None) for name in ("partial_rotary_factor", "rotary_pct")]
    windowed_base = left.pop("rope_local_base_freq", None)
    windowed = None if windowed_base is None else {"rope_theta": windowed_base}
    if "full_attention" in found or "sliding_attention" in found:
        windowed, found = found.get("sliding_attention"), found.get("full_attention", {})
    base = next((base for base in bases if base is not None), 10000.0)
    part = next((part for part in parts if part is not None), 1.0)
    return {"rope_theta": base, "partial_rotary_factor": part} | legacy | found, windowed


def _read_rope(left: Fields, config: Fields, shapes: Shapes) -> None:
    """Base and linear scaling, of rotary positions that turn all of a head."""
    base, kind = plain(left.pop("rope.freq_base", 10000.0)), left.pop("rope.scaling.type", "linear")
    factors = [left.pop(name, None) for name in ("rope.scaling.factor", "rope.scale_linear")]
    factor = plain(next((factor for factor in factors if factor), 1.0))
    left.pop("rope.scaling.original_context_length", None)  # of yarn, which is refused
    turning = left.pop("rope.scaling.finetuned", True) or config["model_type"] != "granite"
    require(turning, "rope.scaling.finetuned False: a granite without rotary positions is not known here")
    require(kind in ("linear", "none"), f"rope.scaling.type {kind}: not known here")
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": base}
    if kind == "linear" and factor != 1:
        config["rope_parameters"] |= {"rope_type": "linear", "factor": factor}
    turned, H = left.pop("rope.dimension_count", head_width(config)), head_width(config)
    require(turned == H, f"rope.dimension_count {turned}: llama.cpp turns all {H} of a head in this family")


def _read_partial_rope(left: Fields, config: Fields, shapes: Shapes) -> None:
    """The same, of which a head's first entries alone may be turned."""
    turned, H = left.pop("rope.dimension_count", head_width(config)), head_width(config)
    _read_rope(left, config, shapes)
    config["rope_parameters"]["partial_rotary_factor"] = _part(turned, H)


def _part(turned: int, H: int) -> float:
    """The fraction of H of which int(fraction * H) is `turned`, as `transformers` computes it."""
    fraction = turned / H
    return fraction if int(fraction * H) == turned else math.nextafter(fraction, 1)


def _write_rope(left: Fields, fields: Fields) -> None:
    _write_partial_rope(left, fields)
    turned, H = fields["rope.dimension_count"], fields["attention.key_length"]
    require(turned == H, f"partial_rotary_factor {turned / H}: llama.cpp turns all of a head in this family")


def _write_partial_rope(left: Fields, fields: Fields) -> None:
    H = fields["attention.key_length"]
    rope, windowed = _take_rope(left)
    if windowed is not None and fields.get("attention.sliding_window"):
        fields["rope.freq_base_swa"] = float(windowed.get("rope_theta", 10000.0))
        kind = windowed.get("rope_type", "default")
        require(kind == "default", f"rope_type {kind} of windowed layers: llama.cpp scales only the others")
    kind = rope.pop("rope_type", rope.pop("type", "default"))
    fields["rope.freq_base"] = float(rope.pop("rope_theta"))
    fields["rope.dimension_count"] = int(rope.pop("partial_rotary_factor") * H)
    if kind == "linear":
        fields["rope.scaling.type"], fields["rope.scaling.factor"] = "linear", float(rope.pop("factor"))
    elif kind == "llama3":
        fields["rope_freqs"] = llama3_factors(fields["rope.freq_base"], H, **{k: rope.pop(k) for k in LLAMA3})
    else:
        require(kind == "default", f"rope_type {kind}: not known here")
    rest = next((name for name, value in rope.items() if value is not None), "")
    require(not rest, f"rope_parameters.{rest}: not known here")


LLAMA3 = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


def llama3_factors(base: float, H: int, factor, low_freq_factor, high_freq_factor, original_max_position_embeddings):
    """What Llama 3.1 divides the frequencies of a head by, float32 [H/2]."""
    frequencies = 1 / np.float32(base) ** (np.arange(0, H, 2, dtype=np.float32) / np.float32(H))
    turns = original_max_position_embeddings * frequencies.astype(np.float64) / (2 * np.pi)  # within the old context
    smooth = np.clip((turns - low_freq_factor) / (high_freq_factor - low_freq_factor), 0, 1)
    return (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)


def llama3_rope(base: float, factors: np.ndarray) -> Fields | None:
    """The settings of Llama 3.1 that give these factors, or None: the file keeps only what they come to.

    Of the lower and upper limit and the old context only ratios show, so the lower is 1.
    """
    factor, H = float(factors.max()), 2 * len(factors)
    between = np.flatnonzero((factors > 1) & (factors < factor))
    turns = base ** (-2 * between / H) / (2 * np.pi)  # within one position
    smooth = (1 / factors[between].astype(np.float64) - 1 / factor) / (1 - 1 / factor)
    guesses = [(4.0, 8192), *((4.0, round((1 + 3 * s) / turn)) for s, turn in zip(smooth[:1], turns[:1], strict=True))]
    if len(between) > 1:
        slope, start = np.polyfit(turns, smooth, 1)
        guesses.append((round(1 - 1 / start, 3), round(-slope / start)))
    for high, old in guesses:
        values = dict(zip(LLAMA3, (plain(factor), 1.0, high, old), strict=True))
        if high > 1 and np.allclose(llama3_factors(base, H, **values), factors, rtol=2e-6, atol=0):
            return {"rope_type": "llama3", **values}
    return None


ROPE = Trait(_read_rope, _write_rope)
PARTIAL_ROPE = Trait(_read_partial_rope, _write_partial_rope)
