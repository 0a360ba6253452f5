"""Our models in others' forms: a Hugging Face folder or a GGUF file, with what they are said beside them."""

import contextlib
import dataclasses
import importlib.metadata
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lm.config import ModelConfig
from lm.errors import UserError, require
from lm.exchange import folding, gguf, huggingface, shapes, tensors, tokenizers
from lm.exchange.checking import ALIKE, ALIKE_IN_LLAMA, NONE, Check, check_folder, check_gguf
from lm.exchange.families import FAMILIES, Family
from lm.exchange.gguf_tokenizer import to_gguf
from lm.exchange.published import Published
from lm.model.trained import Trained

SAMPLES = (
    "", "hello !", " leading, trailing ", "a\n\n\nb\tc", "naïve café ² ½", "don't 12345 x=1;", "<|endoftext|>", "नमस्ते",
    "東京 🙂", "  two  spaces   three    four",
)  # fmt: skip
"""Texts that every exported tokenizer is tried on, beside the run's own words."""


@dataclasses.dataclass(frozen=True)
class Exported:
    """Where a model was written, as which family, what was said otherwise, and how its logits were checked."""

    path: Path
    family: str
    parameters: int
    foldings: tuple[str, ...]
    check: Check


@dataclasses.dataclass(frozen=True)
class Form:
    """A model as a family says it: the shape that was said, and how it came to that."""

    family: Family
    shape: ModelConfig
    foldings: tuple[folding.Folding, ...]
    config: dict[str, Any]
    tensors: dict[str, np.ndarray]


def export_folder(m: Trained, folder: str | Path, *, family: str | None = None, check: bool = True) -> Exported:
    """Write a folder for `AutoModelForCausalLM` and `AutoTokenizer`, whole or not at all.

    family: the model type to write, by default the first that says what the model is. check: compare what
    `transformers` reads of it, where that is installed. Raises UserError where no family computes the model, with the
    settings that stand in the way, and where its tokenizer would cut text otherwise.
    """
    published, form = publish(m, family)
    huggingface.write(published, folder)
    checked = check_folder(Path(folder), m.model, m.params) if check else NONE
    with _removing(Path(folder)):
        checked.require_alike(ALIKE, "nothing is exported")
    return _exported(Path(folder), form, checked)


def export_gguf(m: Trained, path: str | Path, *, dtype: str = "f32", check: bool = True) -> Exported:
    """Write a GGUF file that llama.cpp computes rightly, whole or not at all.

    dtype: of its matrices: f32, f16 or q8_0. check: compare what llama.cpp computes, where it is installed. Raises
    UserError, with the reason, for what llama.cpp would compute otherwise.
    """
    require(not Path(path).exists(), f"{path} is there already: choose another, or remove it")
    to_gguf(m.tokenizer)  # refuses characters and words by those names, which their published form has not
    published, form = publish(m, None, for_gguf=True)
    about = {"name": _name(m), "description": _summary(m)}
    gguf.write(published, path, about=about, dtype=dtype)
    checked = check_gguf(Path(path), m.model, m.params) if check else NONE
    with _removing(Path(path)):
        checked.require_alike(ALIKE_IN_LLAMA if dtype == "f32" else math.inf, "nothing is exported")
    return _exported(Path(path), form, checked)


@contextlib.contextmanager
def _removing(path: Path) -> Iterator[None]:
    """Remove what was written where it is refused after all."""
    try:
        yield
    except UserError:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        raise


def _exported(path: Path, form: Form, check: Check) -> Exported:
    count = sum(x.size for x in form.tensors.values())
    return Exported(path, form.family.model_type, count, tuple(f.name for f in form.foldings), check)


def publish(m: Trained, family: str | None = None, *, for_gguf: bool = False) -> tuple[Published, Form]:
    """The model as it is written, and the form that it has there; see `export_folder`."""
    require(isinstance(m.experiment.model, ModelConfig), "only transformers have a form that others read")
    c, params = folding.without_base(m.experiment.model, jax.device_get(m.params))
    form = _form(c, params, _preferred(m, family), for_gguf)
    texts = tokenizers.to_texts(m.tokenizer, c.context)
    samples = [*SAMPLES, *_own_words(m)]
    odd = tokenizers.differing(m.tokenizer, texts, [text for text in samples if _encodes(m, text)])
    require(not odd, f"its tokenizer cuts {str(odd[:1])[:60]} otherwise in Hugging Face's form: not exported")
    ids = {**tokenizers.token_ids(m.tokenizer), "dtype": "float32"}
    return Published(form.config | ids, form.tensors, texts | {"README.md": card(m, form)}), form


def _preferred(m: Trained, asked: str | None) -> list[Family]:
    """The families to try, in order: the one asked for, or the one that it came from and then all."""
    if asked is not None:
        return [shapes.family(asked)]
    came = m.run.source.get("family") if m.run else None
    return sorted(FAMILIES.values(), key=lambda f: f.model_type != came)


def _form(c: ModelConfig, params: dict, families: list[Family], for_gguf: bool) -> Form:
    """The form with the fewest foldings, in the first of the families that has one.

    Raises UserError where there is none, with what stands in the way in the family that comes nearest.
    """
    reasons = []
    for shape, chosen in folding.equivalents(c):
        for f in families:
            try:
                config = shapes.write(f, shape)
                objection = gguf.objection(config) if for_gguf else None
                require(objection is None, objection)
                theirs = tensors.to_theirs(f, config, shape, folding.folded(c, params, chosen))
            except UserError as error:
                reasons.append(str(error))
            else:
                return Form(f, shape, chosen, config, theirs)
    nearest = min(reasons, key=lambda reason: reason.count("model."))
    raise UserError(f"no {'architecture of llama.cpp' if for_gguf else 'family'} computes this model: {nearest}")


def _encodes(m: Trained, text: str) -> bool:
    """Whether the tokenizer has tokens for all of a text: an alphabet may not."""
    try:
        m.tokenizer.encode_ordinary(text)
    except UserError:
        return False
    return True


def _own_words(m: Trained) -> list[str]:
    """What a hundred tokens from all over the vocabulary write, one after the other."""
    tokens = np.linspace(0, m.tokenizer.n_vocab - 1, 100).astype(int)
    return [m.tokenizer.decode([int(token) for token in tokens if token != m.tokenizer.eot_token])]


# --- what is said of it ----------------------------------------------------------------------------------------------
def _summary(m: Trained) -> str:
    """The run, its step and its loss in one sentence; where it came from, if from elsewhere."""
    if m.run and m.run.source:
        return f"{_name(m)}, a {m.run.source['family']} imported from {m.run.source['path']}"
    records = m.run.metrics() if m.run else []
    losses = [record["val_loss"] for record in records if record["step"] == m.step and "val_loss" in record]
    loss = f", validation loss {losses[-1]:.4f} nats/token" if losses else ""
    return f"{_name(m)} at step {m.step:,}, trained on {m.experiment.data.learnt}{loss}"


def _name(m: Trained) -> str:
    return m.run.name if m.run else m.experiment.name


def card(m: Trained, form: Form) -> str:
    """A model card: what it is, what it was trained on, how well it does, and how it was said in the family's terms."""
    record, source = (m.run.record, m.run.source) if m.run else ({}, {})
    lines = [
        ("written by", f"lm {importlib.metadata.version('lm-lab')}"),
        ("step", f"{m.step:,}"),
        ("parameters", f"{m.model.parameter_count()[0]:,}"),
        ("architecture", f"{form.family.architecture} ({form.family.model_type})"),
        ("said otherwise", "; ".join(folding.name for folding in form.foldings)),
        ("tokenizer", m.tokenizer.name),
        ("context", f"{m.experiment.model.context:,} tokens"),
        ("corpus", "" if source else m.experiment.data.learnt),
        ("imported from", source.get("path", "")),
        ("fingerprint", record.get("fingerprint", "")),
    ]
    table = "\n".join(f"| {name} | {value} |" for name, value in lines if value)
    return f"# {_name(m)}\n\n{_summary(m)}.\n\n| | |\n|---|---|\n{table}\n"
