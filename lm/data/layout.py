"""Examples as the rows that a model learns from: tokens, and weights 1 on what is to be answered and its end of text.

EOT is the end-of-text token; it also fills a row up to U tokens, where it has no weight. U is model.context + 1, less I
where vectors stand before the tokens: model.context counts both.

model           source and target, text and label       prompt and completion       images and frames
decoder-only    EOT source EOT target EOT               EOT prompt completion EOT   vectors, then EOT target EOT
with encoder    it reads source EOT; then EOT target EOT                            it reads vectors EOT; EOT target EOT

A chat stands as its template wrote it; learnt is what is the assistant's. Packed, a row holds several, each a document
of its own. A preference is two such rows, or EOT prompt answer EOT twice, the better answer first.

Columns have the names of a Batch's fields, and N rows:
tokens_BU                        the rows above; the target at place t is tokens_BU[:, t + 1]
start_B, count_B                 the targets start <= t < count are learnt; they are the answer and its end of text
weights_BT                       chats: 1 for targets that are learnt, which may be several stretches
segments_BT                      chats that are packed: the number of the chat that each token read is of
rejected_BU, rejected_weights_BT preferences: the same of the answer that was not chosen
source_BS, source_count_B        what the encoder reads, S = model.encoder.context, and how much of it is real
vectors_BIE, vectors_count_B     I is the most vectors that an example of the file has; float32, zeros after the count
open_B                           decoder-only: the places that are all read at once, vectors included, when the answer
                                 is about to be written; the last token of what is shown is read by the first step
                                 of writing and is not among them
"""

import numpy as np

from lm.config import ModelBase
from lm.data import sequences
from lm.data.batches import Columns, epoch_key, permute
from lm.data.examples import ExampleFile, Ragged
from lm.errors import require, tell
from lm.limits import Count
from lm.typed import coerce


def lay_out_examples(
    file: ExampleFile, model: ModelBase, *, packing: bool = False, learn_prompts: bool = False
) -> tuple[Columns, int]:
    """The examples of a file as rows for a model, and how many are left out because they do not fit its contexts, which
    is told.

    packing: several chats to a row. learn_prompts: what is shown is learnt too. Raises UserError where none fits, for
    vectors of another width than the model takes, and for a packing of what is no chat.
    """
    written = file.learnt is not None or file.kind == "chosen/rejected"
    require(written or not packing, f"data.packing: {file.kind} are a row each; only chats are packed")
    require(not written or model.encoder is None, f"model.encoder: {file.kind} have no source apart; leave it out")
    if file.vectors is not None:
        _require_vectors(file, model)
    needs = sequences.needs(file, model) if written else _needs(file, model)
    chosen = np.flatnonzero(np.all([needed_N <= context for context, needed_N in needs.values()], axis=0))
    require(len(chosen) > 0, _nothing_fits(needs))
    if left := file.documents - len(chosen):
        contexts = " and ".join(f"{name} {context}" for name, (context, _) in needs.items())
        tell(f"{left:,} of {file.documents:,} {file.path.name} examples do not fit {contexts} and are left out")
    if written:
        columns = sequences.columns(file, model, chosen, packing=packing, learn_prompts=learn_prompts)
    else:
        columns = _columns(file, model, chosen)
        if learn_prompts:
            columns["start_B"] = np.zeros_like(columns["start_B"])
    return columns, left


def validation_rows(
    file: ExampleFile, model: ModelBase, tokens: int, *, packing: bool = False, learn_prompts: bool = False
) -> Columns:
    """Rows of a file with about `tokens` targets to predict, in order: the same sample of it every time.

    All that fit the model where `tokens` is enough. (A sample, for every n-th of classes in turn might be one class.)
    Raises UserError as lay_out_examples does.
    """
    tokens = coerce(tokens, Count, "tokens")
    columns, _ = lay_out_examples(file, model, packing=packing, learn_prompts=learn_prompts)
    if "weights_BT" in columns:
        targets_N = columns["weights_BT"].sum(axis=1)
    else:
        targets_N = columns["count_B"] - columns["start_B"]
    N, total = len(targets_N), int(targets_N.sum())
    wanted = min(N, -(-N * tokens // total))
    rows = np.sort(permute(np.arange(wanted), N, epoch_key(0, 0)))
    return {name: column[rows] for name, column in columns.items()}


def _separated(file: ExampleFile) -> int:
    """1 where an end of text stands between what is shown and the answer, 0 for a completion and after vectors."""
    return int(file.sources is not None and file.kind != "prompt/completion")


def _needs(file: ExampleFile, model: ModelBase) -> dict[str, tuple[int, np.ndarray]]:
    """Each context that examples must fit, by its setting, and how many places [N] they take in it. The end of text
    after an answer is only predicted."""
    answers_N = 1 + file.targets.lengths
    shown_N = np.full_like(answers_N, _vectors_before(file)) if file.sources is None else file.sources.lengths
    encoder = model.encoder
    if encoder is None:
        return {"model.context": (model.context, shown_N + _separated(file) + answers_N)}
    return {"model.context": (model.context, answers_N), "model.encoder.context": (encoder.context, shown_N + 1)}


def _vectors_before(file: ExampleFile) -> int:
    """I, the most vectors that an example has; each row has room for as many."""
    return 0 if file.vectors is None else int(file.vectors.lengths.max())


def _columns(file: ExampleFile, model: ModelBase, chosen: np.ndarray) -> Columns:
    """The rows of the chosen examples."""
    N, answers_N = len(chosen), file.targets.lengths[chosen]
    encoder = model.encoder
    places = model.context if encoder is not None else model.context - _vectors_before(file)
    tokens_BU = np.full((N, places + 1), file.eot, np.int32)
    start_N = np.zeros(N, np.int64)
    columns = {"tokens_BU": tokens_BU}
    if encoder is None and file.sources is not None:
        start_N = file.sources.lengths[chosen] + _separated(file)
        _write(tokens_BU, np.ones(N, np.int64), file.sources, chosen)
    _write(tokens_BU, start_N + 1, file.targets, chosen)
    columns |= {"start_B": start_N, "count_B": start_N + answers_N + 1}
    if encoder is not None:
        columns |= _encoded(file, encoder, chosen)
    if file.vectors is not None:
        columns |= _vectors(file, chosen)
    if encoder is None:
        columns["open_B"] = columns["vectors_count_B"] if file.vectors is not None else start_N
    return {name: column if column.dtype == np.float32 else column.astype(np.int32) for name, column in columns.items()}


def _encoded(file: ExampleFile, encoder: ModelBase, chosen: np.ndarray) -> Columns:
    """What the encoder reads: source EOT, or an EOT alone after vectors."""
    N = len(chosen)
    if file.sources is None:
        return {"source_BS": np.full((N, 1), file.eot), "source_count_B": np.ones(N, np.int64)}
    source_BS = np.full((N, encoder.context), file.eot)
    _write(source_BS, np.zeros(N, np.int64), file.sources, chosen)
    return {"source_BS": source_BS, "source_count_B": file.sources.lengths[chosen] + 1}


def _vectors(file: ExampleFile, chosen: np.ndarray) -> Columns:
    """What stands before the tokens, or is what the encoder reads."""
    vectors_BIE = np.zeros((len(chosen), _vectors_before(file), file.vectors.flat.shape[1]), np.float32)
    _write(vectors_BIE, np.zeros(len(chosen), np.int64), file.vectors, chosen)
    return {"vectors_BIE": vectors_BIE, "vectors_count_B": file.vectors.lengths[chosen]}


def _write(rows: np.ndarray, column_N: np.ndarray, part: Ragged, chosen: np.ndarray) -> None:
    """Write the stretch of each chosen example into its row of `rows`, from the column that is its own."""
    lengths_N = part.lengths[chosen]
    row = np.repeat(np.arange(len(chosen)), lengths_N)
    within = np.arange(len(row)) - np.repeat(np.cumsum(lengths_N) - lengths_N, lengths_N)
    rows[row, column_N[row] + within] = part.flat[part.offsets[chosen][row] + within]


def _require_vectors(file: ExampleFile, model: ModelBase) -> None:
    """Refuse vectors that the model cannot take in."""
    E, encoder = file.vectors.flat.shape[1], model.encoder
    reader, name = (model, "model.vectors") if encoder is None else (encoder, "model.encoder.vectors")
    taken = reader.vectors
    require(taken == E, f"{name} {taken}: the {file.kind} are vectors of {E} numbers; set --{name} {E}")


def _nothing_fits(needs: dict[str, tuple[int, np.ndarray]]) -> str:
    """Which contexts are too small, and what the examples need."""
    alone = [name for name, (context, needed_N) in needs.items() if (needed_N > context).all()]
    small = {name: needs[name] for name in alone or needs}
    told = "; ".join(
        f"{name} {context}: the shortest needs {needed_N.min():,}, the longest {needed_N.max():,}"
        for name, (context, needed_N) in small.items()
    )
    return f"none of {len(needs['model.context'][1]):,} examples fits {told}; raise --{' and --'.join(small)}"
