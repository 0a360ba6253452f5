"""What the keys of a config.json say in our settings: small rules, each of which reads and writes.

Families differ in which rules they follow. A rule reads its keys into settings of ModelConfig, and writes a ModelConfig
back into its keys; what it cannot say is lost then, and shows when the written keys are read again (families.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from lm.config import ModelConfig
from lm.errors import UserError, require
from lm.typed import shown

Settings = dict[str, Any]
REQUIRED = object()
"""The default of a key that must be there."""


class Keys:
    """A config.json that remembers which of its keys were read."""

    def __init__(self, config: Mapping[str, Any]):
        self.config, self.read = config, {"model_type"}

    def take(self, key: str, default: Any = REQUIRED) -> Any:
        """The value of a key, null included; the default where it is absent."""
        self.read.add(key)
        require(key in self.config or default is not REQUIRED, f"config.json lacks {key}")
        return self.config.get(key, default)

    def number(self, key: str, default: Any = REQUIRED) -> Any:
        """The value of a key that is a number or null; UserError for anything else."""
        value = self.take(key, default)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        require(is_number or value is None, f"config.json: {key} {shown(value)}: expected a number")
        return value


class Rule(Protocol):
    """Both directions of what some keys say."""

    def read(self, keys: Keys, known: Settings) -> Settings:
        """The settings that the keys say; known: those of the rules before."""

    def write(self, c: ModelConfig) -> dict[str, Any]:
        """The keys that say these settings, as far as they can."""


RESOLVED = {"kv_heads": "K", "head_width": "H", "feedforward": "F"}
"""Settings that may be None, and the property that says what they are then."""


@dataclass(frozen=True)
class Same:
    """A key that means what one of our settings means; default: what it is taken for where it is absent."""

    ours: str
    theirs: str
    default: Any = REQUIRED

    def read(self, keys: Keys, known: Settings) -> Settings:
        value = keys.take(self.theirs, self.default)
        if value is None and self.ours in known:  # said elsewhere
            return {}
        same = known.get(self.ours, value) == value
        require(same, f"config.json: {self.theirs} {shown(value)} is not supported, only {known.get(self.ours)}")
        return {self.ours: value}

    def write(self, c: ModelConfig) -> dict[str, Any]:
        return {self.theirs: getattr(c, RESOLVED.get(self.ours, self.ours))}


@dataclass(frozen=True)
class Only:
    """A key that changes the function, of which only these values are understood. It is written as the first, for which
    it is also taken where it is absent; written: whether `transformers` reads it at all."""

    theirs: str
    values: tuple[Any, ...]
    written: bool = True

    def read(self, keys: Keys, known: Settings) -> Settings:
        value = keys.take(self.theirs, self.values[0])
        expected = " or ".join(map(str, self.values))
        require(value in self.values, f"config.json: {self.theirs} {shown(value)} is not supported, only {expected}")
        return {}

    def write(self, c: ModelConfig) -> dict[str, Any]:
        return {self.theirs: self.values[0]} if self.written else {}


@dataclass(frozen=True)
class Unread:
    """Keys that published files have and nothing reads."""

    theirs: tuple[str, ...]

    def read(self, keys: Keys, known: Settings) -> Settings:
        keys.read.update(self.theirs)
        return {}

    def write(self, c: ModelConfig) -> dict[str, Any]:
        return {}


@dataclass(frozen=True)
class Choice:
    """A key whose values stand for values of one of our settings; the first that means a thing is written for it, and
    any where none does."""

    ours: str
    theirs: str
    meanings: Mapping[Any, Any]
    default: Any = REQUIRED

    def read(self, keys: Keys, known: Settings) -> Settings:
        value = keys.take(self.theirs, self.default)
        try:
            return {self.ours: self.meanings[value]}
        except (KeyError, TypeError) as error:
            expected = ", ".join(map(str, self.meanings))
            raise UserError(f"config.json: {self.theirs} {shown(value)} is not supported, only {expected}") from error

    def write(self, c: ModelConfig) -> dict[str, Any]:
        meant = getattr(c, self.ours)
        return {self.theirs: next((value for value, ours in self.meanings.items() if ours == meant), self.default)}


PLAIN = {
    "gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "gelu_fast": "gelu", "gelu": "gelu_exact", "relu": "relu",
    "relu2": "relu2",
}  # fmt: skip
GATED = {
    "silu": "swiglu", "swish": "swiglu", "gelu_pytorch_tanh": "geglu", "gelu_new": "geglu", "gelu": "geglu_exact",
    "relu": "reglu",
}  # fmt: skip


# --- biases ----------------------------------------------------------------------------------------------------------
QKV = frozenset({"query", "key", "value"})
ATTENTION = QKV | {"out"}
MLP = frozenset({"inner", "gate", "outer"})
NORMS = frozenset({"norms"})
HEAD = frozenset({"head"})


@dataclass(frozen=True)
class Biases:
    """Which maps have biases: `always` these, and those of each key that is true. Sets of names as above.

    Ours are everywhere, at queries, keys and values alone, or nowhere; where theirs are at fewer places than ours, the
    others are zero.
    """

    always: frozenset[str] = frozenset()
    flags: Mapping[str, tuple[bool, frozenset[str]]] | None = None

    def places(self, keys: Keys) -> frozenset[str]:
        """The maps that have biases."""
        found = self.always
        for key, (default, places) in (self.flags or {}).items():
            value = keys.take(key, default)
            require(isinstance(value, bool), f"config.json: {key} {shown(value)}: expected true or false")
            found |= places if value else frozenset()
        return found

    def read(self, keys: Keys, known: Settings) -> Settings:
        places = self.places(keys)
        inside = places - HEAD
        return {"bias": "qkv" if inside == QKV else bool(inside), "head_bias": "head" in places}

    def write(self, c: ModelConfig) -> dict[str, Any]:
        return {
            key: c.bias is True or (c.bias == "qkv" and places <= QKV)
            for key, (_, places) in (self.flags or {}).items()
        }


# --- windows ---------------------------------------------------------------------------------------------------------
def windows(layers: list[int | None]) -> Settings:
    """The settings that say each layer's window."""
    widths = {width for width in layers if width is not None}
    if not widths:
        return {}
    window = next(iter(widths))
    if None not in layers and len(widths) == 1:
        return {"window": window}
    for every in range(2, len(layers) + 1):
        if layers == [None if (i + 1) % every == 0 else window for i in range(len(layers))]:
            return {"window": window, "global_every": every}
    return {"layer_windows": tuple(width or 0 for width in layers)}


@dataclass(frozen=True)
class Windows:
    """`sliding_window`, and `layer_types` where layers differ.

    pattern: where layer_types is absent, every n-th layer sees all; 0, as Qwen: those before `max_window_layers` do;
    1: none does. switch: a key that must be true for windows to count. width: what an absent sliding_window is.
    """

    pattern: int = 1
    switch: str | None = None
    width: int | None = None
    pattern_key: str | None = None

    def read(self, keys: Keys, known: Settings) -> Settings:
        count, width = known["layers"], keys.number("sliding_window", self.width)
        types, first = keys.take("layer_types", None), 0  # absent and null are the same here
        on = self.switch is None or keys.take(self.switch, False)
        if self.pattern == 0:
            first = keys.number("max_window_layers", 28)
        every = keys.number(self.pattern_key, self.pattern) if self.pattern_key else self.pattern
        if types is None:
            types = [
                "full_attention" if i < first or (every > 1 and (i + 1) % every == 0) else "sliding_attention"
                for i in range(count)
            ]
        known_types = {"full_attention", "sliding_attention"}
        is_list = isinstance(types, list) and len(types) == count and set(types) <= known_types
        require(
            is_list, f"config.json: layer_types {shown(types)}: expected {' or '.join(sorted(known_types))} a layer"
        )
        if width is None or not on:
            require(self.pattern == 1 or not on or set(types) == {"full_attention"}, "config.json lacks sliding_window")
            return {}
        return windows([width if kind == "sliding_attention" else None for kind in types])

    def write(self, c: ModelConfig) -> dict[str, Any]:
        widths = {window for window in c.windows if window is not None}
        width = next(iter(widths)) if widths else None
        types = ["full_attention" if window is None else "sliding_attention" for window in c.windows]
        written = {"sliding_window": width}
        if self.pattern != 1:  # `transformers` wants a width there even where no layer has one
            written |= {"layer_types": types, "sliding_window": width or c.context}
        if self.switch:
            written |= {self.switch: width is not None}
        return written


@dataclass(frozen=True)
class NeoWindows:
    """GPT-Neo's: `attention_types`, a list of [kinds, repetitions], and `window_size`."""

    def read(self, keys: Keys, known: Settings) -> Settings:
        keys.take("attention_layers", None)  # the same, written out
        types, width = keys.take("attention_types", [[["global", "local"], 12]]), keys.number("window_size", 256)
        try:
            kinds = [kind for kinds, times in types for _ in range(times) for kind in kinds]
        except (TypeError, ValueError):
            kinds = []
        fits = len(kinds) == known["layers"] and set(kinds) <= {"global", "local"}
        require(fits, f"config.json: attention_types {shown(types)}: expected global or local a layer")
        return windows([width if kind == "local" else None for kind in kinds])

    def write(self, c: ModelConfig) -> dict[str, Any]:
        kinds = ["global" if window is None else "local" for window in c.windows]
        width = next((window for window in c.windows if window is not None), 256)
        return {"attention_types": [[kinds, 1]], "window_size": width}


# --- rotary positions ------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Rope:
    """Rotary positions, from `rope_parameters` or from `rope_theta` and `rope_scaling`, which say the same.

    theta, fraction: what they are where they are absent. local: the theta of layers with a window, where the family
    has one (also as `rope_local_base_freq`). by_type: whether rope_parameters are told for each kind of layer.
    """

    theta: float = 10_000.0
    fraction: float = 1.0
    local: float | None = None
    by_type: bool = False

    def read(self, keys: Keys, known: Settings) -> Settings:
        told = keys.take("rope_parameters", None) or {}
        fraction = keys.number("partial_rotary_factor", keys.number("rotary_pct", self.fraction))
        theta = keys.number("rope_theta", keys.number("rotary_emb_base", self.theta))
        rope = {"rope_theta": theta} | (keys.take("rope_scaling", None) or {})
        local = {"rope_theta": keys.number("rope_local_base_freq", self.local or theta)} if self.by_type else None
        require(isinstance(told, dict), f"config.json: rope_parameters {shown(told)}: expected an object")
        if self.by_type and ("full_attention" in told or "sliding_attention" in told):
            rope |= told.get("full_attention") or {}
            local |= told.get("sliding_attention") or {}
        else:
            rope |= told
        found = _rope_settings(rope, fraction)
        if local is not None:
            beside = _rope_settings(local, fraction)
            plain = beside == {"rotary_base": beside["rotary_base"], "rotary_fraction": beside["rotary_fraction"]}
            require(plain or beside == found, "config.json: layers with a window have rotary positions of another kind")
            if beside != found:
                found["rotary_base_windowed"] = beside["rotary_base"]
        return found

    def write(self, c: ModelConfig) -> dict[str, Any]:
        rope: dict[str, Any] = {"rope_type": "default" if c.rotary_scaling == "none" else c.rotary_scaling}
        rope["rope_theta"] = c.rotary_base
        if c.rotary_scaling != "none":
            rope["factor"] = c.rotary_factor
        if c.rotary_scaling == "llama3":
            low, high = c.rotary_band
            rope |= {"low_freq_factor": low, "high_freq_factor": high}
            rope["original_max_position_embeddings"] = c.rotary_context
        if self.by_type:
            base = c.rotary_base_windowed
            local = dict(rope) if base is None else {"rope_type": "default", "rope_theta": base}
            old = {} if self.local is None else {"rope_local_base_freq": local["rope_theta"]}
            written: dict[str, Any] = {"rope_parameters": {"full_attention": rope, "sliding_attention": local}} | old
        else:
            rope |= {"partial_rotary_factor": c.rotary_fraction} if self.fraction != 1 else {}
            written = {"rope_parameters": rope}
        if self.fraction != 1:
            written["partial_rotary_factor"] = c.rotary_fraction
        old = {key: value for key, value in rope.items() if key not in ("rope_theta", "partial_rotary_factor")}
        # As older versions wrote it, which know nothing of rope_parameters and would take 10,000 without a word.
        return written | {"rope_theta": c.rotary_base, "rope_scaling": None if c.rotary_scaling == "none" else old}


def _rope_settings(rope: Mapping[str, Any], fraction: float) -> Settings:
    """The settings that one object of rope_parameters says."""
    kind = rope.get("rope_type", rope.get("type", "default"))
    known = {
        "default": set(), "linear": {"factor"},
        "llama3": {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"},
    }  # fmt: skip
    require(kind in known, f"config.json: rope_type {shown(kind)} is not supported, only {', '.join(known)}")
    allowed = known[kind] | {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
    odd = sorted(set(rope) - allowed - {"original_max_position_embeddings"})
    require(not odd, f"config.json: {', '.join(odd)[:80]} in rope_parameters of type {kind} is not known")
    lacking = sorted(known[kind] - set(rope))
    require(not lacking, f"config.json: rope_parameters of type {kind} lack {', '.join(lacking)}")
    found = {"rotary_base": rope["rope_theta"], "rotary_fraction": rope.get("partial_rotary_factor", fraction)}
    if kind != "default":
        found |= {"rotary_scaling": kind, "rotary_factor": rope["factor"]}
    if kind == "llama3":
        found |= {"rotary_band": (rope["low_freq_factor"], rope["high_freq_factor"])}
        found |= {"rotary_context": rope["original_max_position_embeddings"]}
    return found


@dataclass(frozen=True)
class RotaryDim:
    """GPT-J's `rotary_dim`: how many entries of a head are rotated, at the base 10,000."""

    def read(self, keys: Keys, known: Settings) -> Settings:
        width, turned = known["width"] // known["heads"], keys.number("rotary_dim", 64)
        require(0 < turned <= width, f"config.json: rotary_dim {shown(turned)}: heads are {width} wide")
        return {"rotary_base": 10_000.0, "rotary_fraction": turned / width}

    def write(self, c: ModelConfig) -> dict[str, Any]:
        return {"rotary_dim": 2 * round(c.rotary_fraction * c.H / 2)}


@dataclass(frozen=True)
class Unrotated:
    """SmolLM 3's `no_rope_layers`, 0 where a layer rotates nothing; by default every fourth."""

    def read(self, keys: Keys, known: Settings) -> Settings:
        count, every = known["layers"], keys.number("no_rope_layer_interval", 4)
        flags = keys.take("no_rope_layers", None) or [int((i + 1) % every != 0) for i in range(count)]
        fits = isinstance(flags, list) and len(flags) == count and set(flags) <= {0, 1}
        require(fits, f"config.json: no_rope_layers {shown(flags)}: expected 0 or 1 for each layer")
        if all(flags):
            return {}
        skips = next((n for n in range(1, count + 1) if flags == [int((i + 1) % n != 0) for i in range(count)]), None)
        require(skips is not None, f"config.json: no_rope_layers {shown(flags)}: only every n-th may be 0")
        return {"rotary_skips": skips}

    def write(self, c: ModelConfig) -> dict[str, Any]:
        flags = [int(c.rotary_skips is None or (i + 1) % c.rotary_skips != 0) for i in range(c.layers)]
        return {"no_rope_layers": flags, "no_rope_layer_interval": c.rotary_skips or c.layers + 1}
