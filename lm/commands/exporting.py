"""lm export RUN --to hf FOLDER | gguf FILE | vectors FILE: our model in a form that others' programs read."""

import dataclasses
from pathlib import Path
from typing import Literal

from lm.arguments import parse
from lm.commands.common import Checkpoint, Json, RunName, prepare_jax, print_json
from lm.errors import nearest, require

FORMS = ("hf", "gguf", "vectors")


@dataclasses.dataclass(frozen=True)
class Options:
    """Write a trained model for transformers (hf FOLDER) or llama.cpp (gguf FILE), or its words' vectors for gensim and
    the embedding projector (vectors FILE)."""

    run: RunName
    """A run's directory, or its name under runs/."""
    to: tuple[str, Path] | None = None
    """hf FOLDER: for AutoModelForCausalLM and AutoTokenizer. gguf FILE: for llama.cpp. vectors FILE: word2vec's format
    (.txt, .vec, .bin, each also .gz), or the projector's tables (.tsv)."""
    family: str | None = None
    """The model type to write, where several would do: llama, qwen3 ... (hf)."""
    dtype: Literal["f32", "f16", "q8_0"] = "f32"
    """How matrices are kept (gguf)."""
    space: str = "input"
    """input, unembedding, or contextual.1 ... (after a block, averaged over the training text) (vectors)."""
    check: bool = True
    """Compare what transformers or llama.cpp computes of it, where that is installed."""
    checkpoint: Checkpoint = "latest"
    json: Json = False


def run(arguments: list[str]) -> None:
    o = parse(Options, arguments, "lm export")
    require(o.to is not None, "where to? --to hf FOLDER, --to gguf FILE, or --to vectors FILE")
    form, path = o.to
    require(form in FORMS, f"--to {form}: one of {', '.join(FORMS)}{nearest(form, FORMS)}")
    require(form == "hf" or o.family is None, "--family is for --to hf")
    require(form == "gguf" or o.dtype == "f32", "--dtype is for --to gguf")
    require(form == "vectors" or o.space == "input", "--space is for --to vectors")
    prepare_jax()
    if form == "vectors":
        return _vectors(o, path)
    from lm.exchange.outgoing import export_folder, export_gguf
    from lm.run import load

    m = load(o.run, o.checkpoint)
    if form == "hf":
        made = export_folder(m, path, family=o.family, check=o.check)
    else:
        made = export_gguf(m, path, dtype=o.dtype, check=o.check)
    if o.json:
        print_json({
            "path": str(made.path), "family": made.family, "parameters": made.parameters,
            "foldings": list(made.foldings), "checked_against": made.check.against,
            "largest_difference": made.check.largest_difference,
        })  # fmt: skip
        return
    folded = f" ({'; '.join(made.foldings)})" if made.foldings else ""
    print(f"{made.path}: {made.family}{folded}, {made.parameters:,} parameters, {made.check}")


def _vectors(o: Options, path: Path) -> None:
    """Write a space of the model's words."""
    from lm.exchange.vectors import write
    from lm.run import load

    files = [str(file) for file in write(load(o.run, o.checkpoint), path, o.space)]
    if o.json:
        print_json({"path": files[0], "files": files, "space": o.space})
    else:
        print(*files, sep="\n")
