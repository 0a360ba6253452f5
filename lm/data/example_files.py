"""Files of examples, read into memory: what is shown to a model, and what it is to answer.

N: examples of a file, I: vectors of an example (rows of an image, frames of a sound), E: numbers in a vector.
"""

import csv
import hashlib
import io
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lm.data import readers
from lm.errors import UserError, require
from lm.limits import IsFile
from lm.tokenizer import well_formed

TEXTS = {
    "source/target": ("source", "target"),
    "prompt/completion": ("prompt", "completion"),
    "text/label": ("text", "label"),
    "chosen/rejected": ("chosen", "rejected"),
    "messages": ("messages",),
}
"""Kinds of examples that are text, and the fields of each; chosen/rejected may have a prompt."""
Chat = list[dict[str, str]]
"""Messages, each a role and a content; the last is the assistant's."""
ARRAYS = ("images", "frames")
"""Kinds of examples that are arrays, and their names in an .npz file."""
ANSWERS = ("targets", "labels", "captions")
"""Names in an .npz file of what is to be answered to each."""
TABLES = (".tsv", ".csv", ".jsonl")
SUPPORTED = ".tsv .csv .jsonl, these also as .gz .xz .zst, .parquet .npz"


@dataclass
class Examples:
    """The examples of a file in its order; every list has an entry for each of the N."""

    name: str
    kind: str
    """One of TEXTS or ARRAYS."""
    sources: list[str] = field(default_factory=list)
    """What is shown: source, prompt or text; empty for arrays and preferences without a prompt."""
    targets: list[str] = field(default_factory=list)
    """What is answered: target, completion, label, caption, or the answer that was chosen."""
    rejected: list[str] = field(default_factory=list)
    """The answers that were not chosen; empty for other kinds."""
    vectors: list[np.ndarray] = field(default_factory=list)
    """What is shown of arrays, float32 [I, E] each; empty for text."""
    chats: list[Chat] = field(default_factory=list)
    """Chats, be they messages or made by `as_chats`; empty for other kinds."""
    rejected_chats: list[Chat] = field(default_factory=list)
    """Those of `chats` with the answer that was not chosen."""

    def __len__(self) -> int:
        return len(self.targets or self.chats)

    def take(self, chosen: np.ndarray) -> "Examples":
        """The examples at these places, in the order of the places."""
        lists = ("sources", "targets", "rejected", "vectors", "chats", "rejected_chats")
        taken = {name: [values[i] for i in chosen] if (values := getattr(self, name)) else [] for name in lists}
        return Examples(self.name, self.kind, **taken)

    def texts(self) -> Iterator[str]:
        """Every text, shown or to be answered."""
        chats = itertools.chain(self.chats, self.rejected_chats)
        said = (message[part] for chat in chats for message in chat for part in ("role", "content"))
        return itertools.chain(self.sources, self.targets, self.rejected, said)

    def digest(self) -> str:
        """sha256 of all that is in them, with 0xFF, which UTF-8 never contains, before each text."""
        digest = hashlib.sha256(f"{self.kind} {len(self)}".encode())
        for text in self.texts():
            digest.update(b"\xff" + text.encode())
        for chat in self.chats:
            digest.update(f"{len(chat)} ".encode())
        for vectors_IE in self.vectors:
            digest.update(f"{vectors_IE.shape}".encode() + vectors_IE.tobytes())
        return digest.hexdigest()

    def shown(self) -> Iterator[bytes]:
        """The bytes of what each example shows, by which the same is told to be the same; a preference without a
        prompt shows the chosen answer, a chat what is said before its first answer."""
        if self.chats:
            return (_before_answer(chat) for chat in self.chats)
        if self.vectors:
            return (vectors_IE.tobytes() for vectors_IE in self.vectors)
        return (text.encode() for text in self.sources or self.targets)


def as_chats(examples: Examples) -> Examples:
    """The same with every example a chat: what is shown is the user's message, an answer the assistant's.

    Raises UserError for arrays, and for answers to nothing.
    """
    if examples.chats:
        return examples
    kind = f"data.template: {examples.name} holds {examples.kind}"
    require(not examples.vectors, f"{kind}, which no template writes; leave it out")
    require(bool(examples.sources), f"{kind} without a prompt, which a chat has; leave it out")

    def asked(answers: list[str]) -> list[Chat]:
        pairs = zip(examples.sources, answers, strict=True) if answers else ()
        return [[dict(role="user", content=q), dict(role="assistant", content=a)] for q, a in pairs]

    chats, rejected = asked(examples.targets), asked(examples.rejected)
    return Examples(examples.name, examples.kind, chats=chats, rejected_chats=rejected)


def _before_answer(chat: Chat) -> bytes:
    said = itertools.takewhile(lambda message: message["role"] != "assistant", chat)
    return b"\xff".join(f"{message['role']}\n{message['content']}".encode() for message in said)


def read_examples(path: str | Path, *, option: str = "data.examples") -> Examples:
    """All examples of a .tsv, .csv, .jsonl, .parquet or .npz file; lm.data.examples says what stands in them.

    option: what to call the path in an error. Raises UserError, with the row where there is one, for files that cannot
    be read, fields that are missing or are not text, and examples with nothing to show or nothing to answer.
    """
    path, kind = file_of_examples(path, option)
    with readers.refusing(path):
        if kind == ".npz":
            return _arrays(path)
        rows = {".jsonl": _json_rows, ".parquet": _parquet_rows, ".csv": _csv_rows, ".tsv": _tsv_rows}[kind](path)
        return _texts(path, rows)


def file_of_examples(path: str | Path, option: str) -> tuple[Path, str]:
    """The file at a path, and the suffix that decides how it is read (.tsv for a.tsv.xz).

    Raises UserError where there is none, and for kinds of files that are not supported.
    """
    path = Path(path).expanduser()
    IsFile().check(path, option)
    kind = suffix(path)
    require(kind is not None, f"{path}: cannot read examples from this kind of file; one of {SUPPORTED}")
    return path, kind


def suffix(path: Path) -> str | None:
    """The suffix that decides how a file is read (.tsv for a.tsv.xz), or None when it is not supported."""
    kind = path.suffix.lower()
    if kind in readers.COMPRESSED:
        kind = Path(path.stem).suffix.lower()
        return kind if kind in TABLES else None
    return kind if kind in (*TABLES, ".parquet", ".npz") else None


# --- text ------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Fields:
    """Which fields of a row are read."""

    kind: str
    names: tuple[str, ...]
    """Those of the kind, and `prompt` first where preferences have one."""


Row = tuple[str, _Fields, Sequence[Any]]
"""Where a row stands, for errors; its fields, and their values."""


def _texts(path: Path, rows: Iterable[Row]) -> Examples:
    """The examples of rows, which must all be of one kind."""
    examples, first = None, None
    for where, fields, values in rows:
        if examples is None:
            examples, first = Examples(str(path), fields.kind), fields
        there, before = " ".join(fields.names), " ".join(first.names)
        require(fields == first, f"{where}: its fields are {there}, those of the rows before it are {before}")
        if fields.kind == "messages":
            examples.chats.append(_chat(where, *values))
            continue
        texts = dict(zip(fields.names, map(_text, itertools.repeat(where), fields.names, values), strict=True))
        if fields.kind == "chosen/rejected":
            examples.sources += [texts["prompt"]] if "prompt" in texts else []
            examples.targets.append(texts["chosen"])
            examples.rejected.append(texts["rejected"])
        else:
            source, target = fields.names
            examples.sources.append(texts[source])
            examples.targets.append(texts[target])
    require(examples is not None, f"{path}: no examples in it")
    return examples


def _text(where: str, name: str, value: Any) -> str:
    """A field as text. Raises UserError where it is none, or blank."""
    if name in ("label", *ANSWERS):
        value = _label(value)
    what = "empty (null)" if value is None else f"{type(value).__name__}, not text"
    what = str(value) if isinstance(value, float) and not math.isfinite(value) else what
    require(isinstance(value, str), f"{where}: {name} is {what}")
    require(bool(value) and not value.isspace(), f"{where}: {name} is blank; {_WHY.get(name, 'nothing to learn')}")
    return well_formed(value)


_WHY = dict.fromkeys(
    ("source", "prompt", "text"), "a text that answers nothing is no example: learn it as a corpus (data.corpus)"
)


def _chat(where: str, messages: Any) -> Chat:
    """A field as a chat. Raises UserError where it is none, and where nothing is answered last."""
    listed = isinstance(messages, list) and bool(messages)
    require(listed, f"{where}: messages is no list of objects with a role and a content")
    chat = []
    for number, message in enumerate(messages, 1):
        there = f"{where}, message {number}"
        require(isinstance(message, dict), f"{there}: no object with a role and a content")
        chat.append({part: _text(there, part, message.get(part)) for part in ("role", "content")})
    last = chat[-1]["role"]
    require(last == "assistant", f"{where}: the last message is the {last[:20]}'s; an example ends in the assistant's")
    return chat


def _label(value: Any) -> Any:
    """A label that is a number, as text: 3, 0.5, true. Any other value as it is."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return str(value)
    return value


def _fields(where: str, names: Sequence[str]) -> _Fields:
    """What the fields of a row make it. Raises UserError for those that make it nothing, or two things."""
    kinds = [kind for kind, needed in TEXTS.items() if set(needed) <= set(names)]
    if not kinds:
        for there, missing in (*TEXTS.values(), *(pair[::-1] for pair in TEXTS.values())):
            require(there not in names, f"{where}: {there} but no {missing} among the fields {readers.listed(names)}")
        known = "; ".join(" and ".join(needed) for needed in TEXTS.values())
        raise UserError(f"{where}: no examples among the fields {readers.listed(names)}; expected {known}")
    require(len(kinds) == 1, f"{where}: the fields of {' and of '.join(kinds)}; leave one out")
    (kind,) = kinds
    used = TEXTS[kind]
    if kind == "chosen/rejected" and "prompt" in names:
        used = ("prompt", *used)
    for name in used:
        require(names.count(name) == 1, f"{where}: {names.count(name)} fields are called {name}")
    return _Fields(kind, used)


def _tsv_rows(path: Path) -> Iterator[Row]:
    lines = io.StringIO(readers.read_text(path), newline="")  # which breaks lines at \n, \r\n and \r alone
    return _table_rows(path, (line.rstrip("\r\n").split("\t") for line in lines))


def _csv_rows(path: Path) -> Iterator[Row]:
    text = readers.read_text(path)
    before = csv.field_size_limit(max(len(text), 1))  # it is the process's
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        rows = list(reader)
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: not CSV ({error})") from error
    finally:
        csv.field_size_limit(before)
    return _table_rows(path, rows)


def _table_rows(path: Path, rows: Iterable[list[str]]) -> Iterator[Row]:
    """The rows of a table; the first says what its columns are, or is the first of source and target."""
    fields, columns, width = None, (0, 1), 0
    for number, cells in enumerate(rows, 1):
        where = f"{path}, row {number}"
        if len(cells) <= 1 and not "".join(cells).strip():  # a blank line
            continue
        if fields is None:
            width = len(cells)
            names = [cell.strip().lower() for cell in cells]
            if _FIELDS & set(names):
                fields = _fields(where, names)
                columns = tuple(names.index(name) for name in fields.names)
                continue
            expected = "expected source and target, or a first row with the names of the columns"
            require(width in (2, 3), f"{where}: {_columns(width)}; {expected}")
            fields = _Fields("source/target", TEXTS["source/target"])
        require(len(cells) == width, f"{where}: {_columns(len(cells))}, the first row has {width}")
        yield where, fields, [cells[column] for column in columns]


_FIELDS = set(itertools.chain.from_iterable(TEXTS.values()))


def _columns(count: int) -> str:
    return f"{count} column" if count == 1 else f"{count} columns"


def _json_rows(path: Path) -> Iterator[Row]:
    for number, record in readers.jsonl_records(path, _record):
        where = f"{path}, row {number}"
        fields = _fields(where, list(record))
        yield where, fields, [record[name] for name in fields.names]


def _record(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON. Raises ValueError where a name is there twice, which JSON leaves open."""
    record = dict(pairs)
    if len(record) < len(pairs):
        raise ValueError("a field is there twice")
    return record


def _parquet_rows(path: Path) -> Iterator[Row]:
    from pyarrow import types

    with readers.open_parquet(path) as file:
        schema = file.schema_arrow
        fields = _fields(str(path), schema.names)
        for name in fields.names:
            kind = schema.field(name).type
            number = types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)
            fits = readers.is_text(kind) or types.is_null(kind) or (name == "label" and number)
            fits = types.is_list(kind) if name == "messages" else fits
            require(fits, f"{path}: {name} is {str(kind)[:40]}, not text")
        for number, values in readers.parquet_rows(path, file, list(fields.names)):
            yield f"{path}, row {number}", fields, values


# --- arrays ----------------------------------------------------------------------------------------------------------
def _arrays(path: Path) -> Examples:
    arrays = _load(path)
    kind, answers = (_one(path, list(arrays), names) for names in (ARRAYS, ANSWERS))
    targets, array = arrays[answers], arrays[kind]
    N = len(array) if array.ndim else 0
    require(N > 0, f"{path}: no examples in it: {kind} has the shape {array.shape}")
    require(targets.shape == (N,), f"{path}: {kind} has {N} examples, {answers} the shape {targets.shape}")
    vectors_NIE = _vectors(path, kind, array)
    counts = np.full(N, vectors_NIE.shape[1])
    if kind == "frames" and "frame_counts" in arrays:
        counts = _counts(path, arrays["frame_counts"], vectors_NIE)
    examples = Examples(str(path), kind)
    for number, (vectors_IE, count) in enumerate(zip(vectors_NIE, counts, strict=True), 1):
        finite = np.isfinite(vectors_IE[:count]).all()
        require(bool(finite), f"{path}, row {number}: {kind} holds a number that is NaN, infinite or beyond float32")
        examples.vectors.append(vectors_IE[:count])
    for number, value in enumerate(targets, 1):
        where = f"{path}, row {number}"
        examples.targets.append(_text(where, answers, _plain(where, value)))
    return examples


def _load(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file that are examples. NumPy and the zip file tell of damage by errors of any kind."""
    wanted = (*ARRAYS, *ANSWERS, "frame_counts")
    try:
        with np.load(path, allow_pickle=False) as file:
            twice = [name for name in wanted if file.files.count(name) > 1]
            arrays = {name: file[name] if name in wanted else None for name in file.files}
    except Exception as error:
        said = " ".join(str(error).split())[:120] or type(error).__name__
        raise UserError(f"{path} is no .npz file of numbers and text, or is damaged: {said}") from error
    require(not twice, f"{path}: several arrays are called {' and '.join(twice)}")
    for name in wanted:
        no_array = name in arrays and not isinstance(arrays[name], np.ndarray)
        require(not no_array, f"{path}: {name} is no array")  # but another file in the zip
    return arrays


def _one(path: Path, there: list[str], names: tuple[str, ...]) -> str:
    """The one of the names that is there."""
    found = [name for name in names if name in there]
    wanted = f"expected one of {', '.join(names)}"
    require(len(found) == 1, f"{path}: {' and '.join(found) or 'none'} among {readers.listed(there)}; {wanted}")
    return found[0]


def _vectors(path: Path, kind: str, array: np.ndarray) -> np.ndarray:
    """Frames, or images as vectors of a row of pixels each, channel beside channel: float32 [N, I, E]."""
    shapes = "[N, height, width] or [N, height, width, channels]" if kind == "images" else "[N, I, E]"
    fits = (array.ndim in (3, 4) if kind == "images" else array.ndim == 3) and array.size > 0
    require(fits, f"{path}: {kind} has the shape {array.shape}, expected {shapes}")
    require(array.dtype.kind in "biuf", f"{path}: {kind} is {array.dtype}, expected real numbers")
    with np.errstate(over="ignore"):
        vectors_NIE = array.reshape(*array.shape[:2], -1).astype(np.float32)
    return vectors_NIE + np.float32(0)  # no negative zeros: what is equal has equal bytes


def _counts(path: Path, counts: np.ndarray, vectors_NIE: np.ndarray) -> np.ndarray:
    N, most, _ = vectors_NIE.shape
    fits = counts.shape == (N,) and counts.dtype.kind in "iu"
    require(fits, f"{path}: frame_counts is {counts.dtype} {counts.shape}, expected a whole number for each of {N}")
    wrong = np.flatnonzero((counts < 1) | (counts > most))
    require(not len(wrong), f"{path}, row {wrong[:1].sum() + 1}: frame_counts must be from 1 to the {most} frames")
    return counts


def _plain(where: str, value: Any) -> Any:
    """An entry of an array as Python has it; bytes are UTF-8."""
    value = value.item()
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise UserError(f"{where}: the text is not UTF-8") from error
    return value
