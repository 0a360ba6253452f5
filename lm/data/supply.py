"""What training, evaluation and probes read, whether it comes from a corpus or from a file of examples."""

import dataclasses
import functools
from pathlib import Path

from lm.config import DataConfig, ModelBase
from lm.data.batches import Batches, Columns, ExampleBatches, validation_windows
from lm.data.examples import ExampleFile, prepare_examples
from lm.data.layout import lay_out_examples, validation_rows
from lm.data.tokens import Prepared, Report, TokenFile, prepare_corpus
from lm.errors import require


def prepare(data: DataConfig, *, cache: Path | None = None, report: Report | None = None) -> Prepared:
    """The tokens of `data.examples` where that is set, else of `data.corpus`, made now or found where an earlier call
    left them; see `prepare_examples` and `prepare_corpus`."""
    make = prepare_corpus if data.examples is None else prepare_examples
    return make(data, cache=cache, report=report)


def prepare_again(data: DataConfig, folder: Path, hashes: dict[str, str]) -> Prepared:
    """What a run was trained on, read again from where it came from.

    data, hashes: as the run recorded them. folder: the run's, whose tokenizer is used where the setting makes another
    by now. Raises UserError where the text has changed, and for a model that others trained.
    """
    require(bool(hashes["corpus"]), f"{folder} was imported, and knows no text of its own; give --text FILE")
    made = prepare(data)
    if made.hashes["corpus"] == hashes["corpus"] and made.hashes["tokenizer"] != hashes["tokenizer"]:
        made = prepare(dataclasses.replace(data, tokenizer=str(folder / "tokenizer.json")))
    same = made.hashes.items() <= hashes.items()
    require(same, f"{data.learnt} has changed since {folder} was trained on it; give --text FILE")
    return made


def open_batches(
    file: TokenFile | ExampleFile, data: DataConfig, model: ModelBase, *, batch: int, seed: int
) -> Batches | ExampleBatches:
    """Training batches of so many rows, laid out for the model. Raises UserError where nothing fits its context."""
    if isinstance(file, ExampleFile):
        return ExampleBatches(_laid_out(file, model, data.packing, data.learn_prompts), batch=batch, seed=seed)
    return Batches(file, context=model.context, batch=batch, seed=seed)


@functools.lru_cache(maxsize=1)
def _laid_out(file: ExampleFile, model: ModelBase, packing: bool, learn_prompts: bool) -> Columns:
    """Made once for a run's description and its training, and for all runs of a pack, which only read it."""
    return lay_out_examples(file, model, packing=packing, learn_prompts=learn_prompts)[0]


def held_out(file: TokenFile | ExampleFile, data: DataConfig, model: ModelBase, tokens: int) -> Columns:
    """About `tokens` targets of a file as columns, the same every time: what validation scores."""
    if isinstance(file, ExampleFile):
        return validation_rows(file, model, tokens, packing=data.packing, learn_prompts=data.learn_prompts)
    return validation_windows(file, model.context, tokens)
