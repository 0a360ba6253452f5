"""GGUF files, llama.cpp's: read as what is Published, and written from it.

Names of tensors are the library's own (`gguf.get_tensor_name_map`), values are dequantized by it. What a file or a
configuration says that is not understood, or that llama.cpp would compute otherwise, is refused by name.
"""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lm.errors import UserError, require
from lm.exchange.gguf_families import ARCHITECTURES, FAMILIES, Architecture
from lm.exchange.gguf_reader import library, open_file, telling
from lm.exchange.gguf_rope import llama3_rope
from lm.exchange.gguf_traits import plain, same
from lm.exchange.published import Published
from lm.exchange.shapes import HARMLESS, UNUSED
from lm.files import whole
from lm.typed import shown

NEUTRAL = {
    "expert_count": 0,
    "expert_used_count": 0,
    "attention.causal": True,
    "pooling_type": 0,
    "tensor_data_layout": "Meta AI original pth",
}
"""Keys that may stand in a file as long as they say nothing."""
UNTOLD = ("vocab_size", "mm.tokens_per_image")
"""Keys that say nothing of what is computed: the embedding's rows count, and pictures are in another file."""
DTYPES = {"f32": "F32", "f16": "F16", "q8_0": "Q8_0"}


# --- read -------------------------------------------------------------------------------------------------------------
def read(path: str | Path) -> Published:
    """The model of a GGUF file, as config.json, transformers' tensor names and tokenizer.json would have it.

    Tensors are float32, dequantized when they are looked up; the file must stay as it is until then. texts has
    gguf.json too: the file's `general` keys and its types of tensors. Raises UserError, which names what the file has
    that is not understood: an architecture, a key, a tensor; and for a file that is damaged.
    """
    with telling(path):
        reader = open_file(path)
        fields = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
        name, infos = fields.get("general.architecture"), {info.name: info for info in reader.tensors}
        _check_kind(fields, infos, name)
        a = ARCHITECTURES[name]
        config = _config(a, name, fields, infos)
        tensors = Dequantized(a, config, _places(a, name, fields[f"{name}.block_count"], infos))
        types = Counter(info.tensor_type.name for info in infos.values())
        general = {key: value for key, value in fields.items() if key.startswith("general.")}
        texts = {"gguf.json": json.dumps({**general, "types": types}), **_tokenizer_texts(fields)}
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return Published(config, tensors, texts, {Path(path).name: digest})


def _check_kind(fields: dict[str, Any], infos: dict[str, Any], name: str | None) -> None:
    """Refuse what is no whole language model of an architecture that is known."""
    kind, parts = fields.get("general.type", "model"), fields.get("split.count", 1)
    require(kind == "model", f"general.type {kind}: not a model")
    require(parts <= 1, f"split.count {parts}: one of several parts; merge them first (llama-gguf-split --merge)")
    known = ", ".join(sorted(ARCHITECTURES))
    require(name in ARCHITECTURES, f"general.architecture {shown(name)}: not known here (known: {known})")
    layers = fields.get(f"{name}.block_count")
    require(isinstance(layers, int) and 0 < layers <= len(infos), f"{name}.block_count {layers}: not its layers")


def _config(a: Architecture, name: str, fields: dict[str, Any], infos: dict[str, Any]) -> dict[str, Any]:
    """config.json, every key of the architecture's having been understood."""
    prefix, shapes = f"{name}.", {key: tuple(info.shape.tolist()[::-1]) for key, info in infos.items()}
    left = {key.removeprefix(prefix): _one(value) for key, value in fields.items() if key.startswith(prefix)}
    left = {key: value for key, value in left.items() if key not in UNTOLD}
    config: dict[str, Any] = {"model_type": a.family}
    for key, setting in a.keys.items():
        if key == "attention.head_count_kv":
            left.setdefault(key, left.get("attention.head_count"))
        value = left.pop(key, None)
        require(
            isinstance(value, int | float) and value > 0, f"{prefix}{key} {shown(value)}: expected a number above 0"
        )
        config[setting] = plain(value) if isinstance(value, float) else value
    for setting, value in a.fixed.items():
        config[setting] = value[0] if isinstance(value, tuple) else value
    embedding = "token_embd.weight"
    require(embedding in shapes and len(shapes[embedding]) == 2, f"{embedding}: no such tensor")
    config["vocab_size"] = shapes[embedding][0]
    config["tie_word_embeddings"] = _tied(infos)
    for trait in a.traits:
        trait.read(left, config, shapes)
    if "rope_freqs.weight" in infos and a.rescaled:
        config["rope_parameters"] = _llama3(config, infos["rope_freqs.weight"])
    for end in ("bos", "eos", "padding"):
        config[f"{end[:3]}_token_id"] = fields.get(f"tokenizer.ggml.{end}_token_id")
    unknown = next((key for key, value in left.items() if key not in NEUTRAL or value != NEUTRAL[key]), "")
    require(not unknown, f"{prefix}{unknown} {shown(left.get(unknown))}: a key that is not known here")
    return config


def _one(value: Any) -> Any:
    """A value that is given for each layer, once where all are equal; windows differ."""
    numbers = isinstance(value, list) and value and not isinstance(value[0], bool | str)
    return value[0] if numbers and len(set(value)) == 1 else value


def _tied(infos: dict[str, Any]) -> bool:
    """Whether the head is the embedding: it is not in the file, or a copy."""
    head, embedding = infos.get("output.weight"), infos["token_embd.weight"]
    if head is None:
        return True
    return head.tensor_type == embedding.tensor_type and np.array_equal(head.data, embedding.data)


def _llama3(config: dict[str, Any], info) -> dict[str, Any]:
    """The scaling that a file keeps as what frequencies are divided by."""
    rope = config.get("rope_parameters", {})
    require(rope.get("rope_type") == "default", "rope_freqs.weight: beside another scaling")
    factors = library().quants.dequantize(info.data, info.tensor_type)
    if np.all(factors == 1):
        return rope
    found = llama3_rope(rope["rope_theta"], factors)
    require(found is not None, "rope_freqs.weight: not the scaling of Llama 3.1")
    return rope | found


class Place(NamedTuple):
    """Where a tensor is: one of the file, and which third of its rows if three were put together."""

    info: Any
    third: int | None = None


def _places(a: Architecture, name: str, layers: int, infos: dict[str, Any]) -> dict[str, Place]:
    """transformers' name: where in the file, every tensor of the file having been found a place."""
    places, left = {}, set(infos) - ({"rope_freqs.weight"} if a.rescaled else set())
    for module, theirs in _modules(a, name, layers).items():
        fused = f"{theirs.rpartition('.')[0]}.attn_qkv"
        third = {"q_proj": 0, "k_proj": 1, "v_proj": 2}.get(module.rpartition(".")[2])
        for leaf in ("weight", "bias"):
            if f"{theirs}.{leaf}" in infos:
                places[f"{module}.{leaf}"] = Place(infos[f"{theirs}.{leaf}"])
            elif third is not None and f"{fused}.{leaf}" in infos:
                places[f"{module}.{leaf}"] = Place(infos[f"{fused}.{leaf}"], third)
        required = module.rpartition(".")[2] not in a.optional
        require(not required or f"{module}.weight" in places, f"{theirs}.weight: no such tensor")
    left -= {place.info.name for place in places.values()}
    require(not left, f"{min(left, default='')}: a tensor that a {a.family} has no place for")
    if "output.weight" in infos and _tied(infos):
        places = {ours: place for ours, place in places.items() if place.info.name != "output.weight"}
    for kind in {place.info.tensor_type for place in places.values()}:
        _, size = library().GGML_QUANT_SIZES[kind]
        _dequantize(np.zeros((1, size), np.uint8), kind)
    return places


def _dequantize(data: np.ndarray, kind) -> np.ndarray:
    try:
        return library().quants.dequantize(data, kind)
    except NotImplementedError as error:
        raise UserError(f"tensors of type {kind.name}: the package gguf does not dequantize them") from error


def _modules(a: Architecture, name: str, layers: int) -> dict[str, str]:
    """transformers' modules of all layers, and the library's names of them; without a head where it knows of none."""
    gguf = library()
    number = next(number for number, known in gguf.MODEL_ARCH_NAMES.items() if known == name)
    names = gguf.get_tensor_name_map(number, layers)
    ours = [m.format(layer) for m in a.modules for layer in (range(layers) if "{}" in m else (0,))]
    return {module: names.get_name(module) for module in ours if names.get_name(module)}


class Dequantized(Mapping):
    """Tensors by transformers' names, float32, made from the file whenever one is looked up."""

    def __init__(self, a: Architecture, config: dict[str, Any], places: dict[str, Place]):
        self._architecture, self._config, self._places = a, config, places

    def __getitem__(self, name: str) -> np.ndarray:
        info, third = self._places[name]
        value = np.asarray(_dequantize(info.data, info.tensor_type), np.float32)
        if third is not None:
            H = self._config["hidden_size"] // self._config["num_attention_heads"]
            N, K = self._config["num_attention_heads"], self._config["num_key_value_heads"]
            value = np.split(value, [N * H, (N + K) * H])[third]
        return _changed(self._architecture, self._config, name, value, reading=True)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def _changed(a: Architecture, config: Mapping[str, Any], name: str, x: np.ndarray, *, reading: bool) -> np.ndarray:
    """A tensor as `transformers` shapes it from the file's (reading), or the file's from that."""
    module = name.split(".")[-2]
    if a.interleaved and module in ("q_proj", "k_proj"):
        heads = config["num_attention_heads" if module == "q_proj" else "num_key_value_heads"]
        require(len(x) % (2 * heads) == 0, f"{name} has {len(x)} rows for {heads} heads")
        halves = (len(x) // heads // 2, 2) if reading else (2, len(x) // heads // 2)
        return x.reshape(heads, *halves, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)
    if a.one_more and module.endswith("norm"):
        return x - 1 if reading else x + 1
    if a.family == "gpt2" and module.startswith("c_"):
        return x.T
    if module == "query_key_value":  # of each head, or one after the other
        parts = (3, config["num_attention_heads"])
        parts = parts if reading else parts[::-1]
        return x.reshape(*parts, -1, *x.shape[1:]).swapaxes(0, 1).reshape(x.shape)
    return x


def _tokenizer_texts(fields: dict[str, Any]) -> dict[str, str]:
    """tokenizer.json and what stands beside it."""
    if fields.get("tokenizer.ggml.model", "none") == "none":
        return {}
    from lm.exchange.gguf_tokenizer import from_gguf

    return from_gguf(fields)


# --- write ------------------------------------------------------------------------------------------------------------
def write(
    published: Published, path: str | Path, *, about: Mapping[str, str] | None = None, dtype: str = "f32"
) -> None:
    """A GGUF file that llama.cpp computes as `transformers` would, whole or not at all.

    about: the file's `general` keys, such as name, description and license. dtype: of matrices whose rows it divides;
    f32, f16 or q8_0. Raises UserError, which says what llama.cpp would compute otherwise or has no place for.
    """
    gguf = library()
    require(dtype in DTYPES, f"dtype {dtype}: {', '.join(DTYPES)}")
    name = _architecture(published.config)
    a = ARCHITECTURES[name]
    fields = _fields(a, published.config)
    tensors = _sources(a, name, published, fields["block_count"])
    factors = fields.pop("rope_freqs", None)
    kind = gguf.GGMLQuantizationType[DTYPES[dtype]]
    writer = gguf.GGUFWriter(None, name)
    for key, value in (about or {}).items():
        writer.add_string(f"general.{key}", value)
    writer.add_file_type({"f32": 0, "f16": 1, "q8_0": 7}[dtype])
    for key, value in fields.items():
        _add(writer, f"{name}.{key}", value)
    rows = len(tensors["token_embd.weight"]())
    for key, value in {f"{name}.vocab_size": rows, **_tokenizer_fields(published, rows)}.items():
        _add(writer, key, value)
    if factors is not None:
        tensors["rope_freqs.weight"] = lambda: factors
    _save(writer, tensors, path, kind)


def objection(config: Mapping[str, Any]) -> str | None:
    """Why a model of this config.json is not written; None where llama.cpp computes it as `transformers` does."""
    try:
        _fields(ARCHITECTURES[_architecture(config)], config)
    except UserError as error:
        return str(error)
    return None


def _architecture(config: Mapping[str, Any]) -> str:
    family = config.get("model_type")
    require(family in FAMILIES, f"model_type {family}: llama.cpp has no such architecture, or computes it otherwise")
    return FAMILIES[family]


def _fields(a: Architecture, config: Mapping[str, Any]) -> dict[str, Any]:
    """The architecture's keys, every key of config.json having been understood."""
    left = dict(config)
    for key in ("model_type", "vocab_size", "tie_word_embeddings"):  # said by the architecture and the tensors
        left.pop(key, None)
    fields: dict[str, Any] = {}
    for key, setting in a.keys.items():
        if setting == "num_key_value_heads":
            left.setdefault(setting, config.get("num_attention_heads"))
        require(left.get(setting) is not None, f"config.json has no {setting}")
        fields[key] = left.pop(setting)
    for setting, value in a.fixed.items():
        found = left.pop(setting, value[0] if isinstance(value, tuple) else value)
        require(
            same(found, value), f"{setting} {found}: llama.cpp computes a {a.family} with {value}, whatever a file says"
        )
    for trait in a.traits:
        trait.write(left, fields)
    require(a.rescaled or "rope_freqs" not in fields, f"rope_type llama3: llama.cpp has it not for a {a.family}")
    left = {key: value for key, value in left.items() if key not in HARMLESS and value not in UNUSED}
    unknown = next((key for key in left if not key.endswith(("dropout", "_pdrop"))), "")
    require(not unknown, f"{unknown} {left.get(unknown)}: llama.cpp has no place for it")
    return fields


def _tokenizer_fields(published: Published, rows: int) -> dict[str, Any]:
    """The `tokenizer` keys of a file whose embedding has so many rows."""
    if "tokenizer.json" not in published.texts:
        return {"tokenizer.ggml.model": "none"}
    from lm.exchange.gguf_tokenizer import to_gguf
    from lm.exchange.tokenizers import from_texts

    return to_gguf(from_texts(published.texts), rows)


def _sources(a: Architecture, name: str, published: Published, layers: int) -> dict[str, Any]:
    """The file's names of tensors, and what makes each: a function, so that one copy exists at a time."""
    left, sources = set(published.tensors), {}

    def source(ours: str):
        return lambda: _changed(a, published.config, ours, published.tensors[ours], reading=False)

    for module, theirs in _modules(a, name, layers).items():
        if theirs == "output" and (published.config.get("tie_word_embeddings") or f"{module}.weight" not in left):
            left.discard(f"{module}.weight")
            if a.own_head:
                sources["output.weight"] = source(f"{a.modules[0]}.weight")
            continue
        required = module.rpartition(".")[2] not in a.optional
        require(not required or f"{module}.weight" in left, f"{module}.weight: no such tensor")
        for leaf in ("weight", "bias"):
            if f"{module}.{leaf}" in left:
                left.discard(f"{module}.{leaf}")
                sources[f"{theirs}.{leaf}"] = source(f"{module}.{leaf}")
    require(not left, f"{min(left, default='')}: llama.cpp has no place for this tensor of a {a.family}")
    return sources


def _add(writer, key: str, value: Any) -> None:
    """A key of the type that its value has; numbers of 32 bits."""
    for kind, add in (
        (bool, writer.add_bool),
        (int, writer.add_uint32),
        (float, writer.add_float32),
        (str, writer.add_string),
        (list, writer.add_array),
    ):
        if isinstance(value, kind):
            return add(key, value)
    raise TypeError(f"{key}: {type(value)}")


def _save(writer, tensors: dict[str, Any], path: str | Path, kind) -> None:
    """Header, keys, the tensors' list, and the tensors one by one."""
    gguf, kinds = library(), {}
    for name, make in tensors.items():
        shape = make().shape
        block, _ = gguf.GGML_QUANT_SIZES[kind]
        small = len(shape) < 2 or shape[-1] % block
        kinds[name] = gguf.GGMLQuantizationType.F32 if small else kind
        size = math.prod(gguf.quants.quant_shape_to_byte_shape(shape, kinds[name]))
        writer.add_tensor_info(name, shape, np.dtype(np.float32), size, raw_dtype=kinds[name])
    with whole(path, "wb") as file:
        writer.write_header_to_file(Path(file.name))
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, make in tensors.items():
            value = np.ascontiguousarray(make(), np.float32)
            converted = gguf.quants.quantize(value, kinds[name])
            require(bool(np.isfinite(value).all()), f"{name} has values that are not finite")
            writer.write_tensor_data(converted)
        writer.close()
