"""Rows of examples that stand as they were written, token by token: chats, and the two answers of a preference."""

import bisect
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lm.config import ModelBase
from lm.data.batches import Columns
from lm.data.examples import ExampleFile, Ragged
from lm.tokenizer import Tokenizer, chat_format


class _Written(NamedTuple):
    """Examples token by token."""

    tokens: list[np.ndarray]
    learnt: list[np.ndarray]
    """Which of them are to be learnt, bool."""


def needs(file: ExampleFile, model: ModelBase) -> dict[str, tuple[int, np.ndarray]]:
    """The model's context by its setting, and how many places [N] examples take in it: the last token of one is only
    predicted."""
    lengths_N = np.max([[len(tokens) for tokens in part.tokens] for part in _parts(file)], axis=0)
    return {"model.context": (model.context, lengths_N - 1)}


def columns(file: ExampleFile, model: ModelBase, chosen: np.ndarray, *, packing: bool, learn_prompts: bool) -> Columns:
    """The rows of the chosen examples; see lm.data.layout."""
    parts = [_Written([part.tokens[i] for i in chosen], [part.learnt[i] for i in chosen]) for part in _parts(file)]
    lengths = [len(tokens) for tokens in parts[0].tokens]
    packed = packing and len(parts) == 1
    rows = _packed(lengths, model.context + 1) if packed else [[i] for i in range(len(chosen))]
    made = _rows(parts[0], rows, model.context, file.eot, learn_prompts)
    if not packed:
        del made["segments_BT"]
    if len(parts) > 1:
        other = _rows(parts[1], rows, model.context, file.eot, learn_prompts)
        made |= {"rejected_BU": other["tokens_BU"], "rejected_weights_BT": other["weights_BT"]}
    return made


def answered(rows: Sequence[tuple[Sequence[int], int]], context: int, eot: int) -> Columns:
    """tokens_BU and weights_BT of answers that a model gave: rows of (tokens, how many of them are the prompt's)."""
    tokens_BU = np.full((len(rows), context + 1), eot, np.int32)
    weights_BT = np.zeros((len(rows), context), np.float32)
    for row, (tokens, asked) in enumerate(rows):
        tokens_BU[row, : len(tokens)] = tokens
        weights_BT[row, asked - 1 : len(tokens) - 1] = 1
    return {"tokens_BU": tokens_BU, "weights_BT": weights_BT}


def prompts(file: ExampleFile, tokenizer: Tokenizer, template: str | None) -> list[tuple[list[int], str]]:
    """What each example shows before its last answer, as a model reads it, and the text of that answer."""
    part, found = _parts(file)[0], []
    written = chat_format(tokenizer, template) if file.learnt is not None else None
    for tokens, own in zip(part.tokens, part.learnt, strict=True):
        begin = int(np.flatnonzero(~own).max()) + 1
        answer = tokens[begin:].tolist()
        found.append((tokens[:begin].tolist(), written.said(answer) if written else tokenizer.decode(answer[:-1])))
    return found


def _parts(file: ExampleFile) -> list[_Written]:
    """The examples, and those with the answers that were not chosen where there are such."""
    answers = [file.targets] if file.rejected is None else [file.targets, file.rejected]
    if file.learnt is None:
        return [_with_prompts(file, part) for part in answers]
    flags = [file.learnt] if file.rejected is None else [file.learnt, file.rejected_learnt]
    return [_Written(_list(tokens), _list(own)) for tokens, own in zip(answers, flags, strict=True)]


def _list(part: Ragged) -> list[np.ndarray]:
    return [np.asarray(part[i]) for i in range(len(part))]


def _with_prompts(file: ExampleFile, answers: Ragged) -> _Written:
    """EOT prompt answer EOT, of which the answer and its end are learnt."""
    end, tokens, learnt = np.array([file.eot]), [], []
    for i in range(len(answers)):
        shown = end if file.sources is None else np.concatenate([end, file.sources[i]])
        tokens.append(np.concatenate([shown, answers[i], end]))
        learnt.append(np.arange(len(tokens[-1])) >= len(shown))
    return _Written(tokens, learnt)


def _packed(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Examples by row, each row of at most `room` tokens: the longest first, into the fullest row that has room for it
    (best fit), so that few places are left empty."""
    rows: list[list[int]] = []
    free: list[tuple[int, int]] = []  # room left in a row and its number, in order
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        at = bisect.bisect_left(free, (lengths[i], 0))
        left, row = free.pop(at) if at < len(free) else (room, len(rows))
        if row == len(rows):
            rows.append([])
        rows[row].append(i)
        bisect.insort(free, (left - lengths[i], row))
    return rows


def _rows(part: _Written, rows: list[list[int]], context: int, eot: int, learn_prompts: bool) -> Columns:
    """tokens_BU, weights_BT and segments_BT: the examples of a row one after the other, then padding.

    What an example begins with is never learnt: it would be predicted from the one before.
    """
    B = len(rows)
    tokens_BU = np.full((B, context + 1), eot, np.int32)
    weights_BU = np.zeros((B, context + 1), np.uint8)
    segments_BU = np.zeros((B, context + 1), np.int32)
    for row, members in enumerate(rows):
        at = 0
        for number, i in enumerate(members):
            here = slice(at, at + len(part.tokens[i]))
            tokens_BU[row, here] = part.tokens[i]
            weights_BU[row, here] = 1 if learn_prompts else part.learnt[i]
            weights_BU[row, at] = 0
            segments_BU[row, here], at = number, here.stop
        segments_BU[row, at:] = len(members)
    return {"tokens_BU": tokens_BU, "weights_BT": weights_BU[:, 1:], "segments_BT": segments_BU[:, :-1]}
