"""Files of text, read as a stream of documents in bounded memory.

A document arrives in pieces of at most PIECE characters, each with a flag that says whether it opens a document; so a
file of any size can be read, and almost every document is one piece.
"""

import codecs
import contextlib
import ctypes
import gzip
import io
import itertools
import json
import lzma
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from operator import itemgetter
from pathlib import Path
from typing import Any, BinaryIO

from lm.errors import UserError, require
from lm.tokenizer import well_formed

PLAIN = (".txt", ".md", ".py", ".rst")
RECORDS = (".jsonl", ".parquet")
COMPRESSED = (".gz", ".xz", ".zst")
SUPPORTED = ".txt .md .py .rst .jsonl .parquet, the former also as .gz .xz .zst"

PIECE = 1 << 20
"""Characters in every piece of a document but its last."""
CHUNK = 1 << 20
"""Bytes read at once."""
LINE = 1 << 28
"""Bytes of the longest line of a .jsonl file: its JSON is in memory at once."""

Piece = tuple[str, bool]
"""Text, and whether it opens a document."""


def suffix(path: Path) -> str | None:
    """The suffix that decides how a file is read (.txt for a.txt.gz), or None when it is not supported."""
    kind, packed = path.suffix.lower(), False
    if kind in COMPRESSED:
        kind, packed = Path(path.stem).suffix.lower(), True
    supported = kind in PLAIN or (kind in RECORDS and not (packed and kind == ".parquet"))
    return kind if supported else None


def read(path: Path, *, separator: str, text_field: str) -> Iterator[Piece]:
    """The documents of one file, blank ones left out.

    separator: stands between documents of plain text; "" makes the file one document.
    text_field: field of a .jsonl or .parquet record that holds the text.
    Raises UserError for binary or damaged files and records without the field.
    """
    kind = suffix(path)
    with refusing(path):
        if kind in RECORDS:
            texts = (_parquet_texts if kind == ".parquet" else _jsonl_texts)(path, text_field)
            yield from itertools.chain.from_iterable(map(cut, texts))
        else:
            with open_bytes(path) as file:
                yield from split(_characters(file, path), separator)


def read_text(path: Path | str) -> str:
    """All of one file of text: decoded, without a byte-order mark, otherwise as it is; "-" is standard input.

    Raises UserError for binary, damaged and unreadable files.
    """
    if str(path) == "-":
        return "".join(_characters(sys.stdin.buffer, "standard input"))
    path = Path(path)
    with refusing(path), open_bytes(path) as file:
        return "".join(_characters(file, path))


def documents(pieces: Iterable[Piece]) -> Iterator[Iterator[str]]:
    """The pieces of each document in turn; a document must be read before the next is asked for."""

    def numbered():
        number = 0
        for text, opens in pieces:
            number += opens
            yield number, text

    for _, document in itertools.groupby(numbered(), key=itemgetter(0)):
        yield (text for _, text in document)


@contextlib.contextmanager
def refusing(path: Path) -> Iterator[None]:
    """Say what is wrong with a file that cannot be read."""
    try:
        yield
    except (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError) as error:
        raise UserError(f"{path} is damaged: {error}; fetch or compress it again") from error
    except FileNotFoundError as error:
        raise UserError(f"cannot read {path}: no such file") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error


def open_bytes(path: Path) -> BinaryIO:
    """The file's bytes, decompressed."""
    match path.suffix.lower():
        case ".gz":
            return gzip.open(path)
        case ".xz":
            return lzma.open(path)
        case ".zst":
            return io.BufferedReader(_Stream(_zstd_frames(path)), CHUNK)
        case _:
            return open(path, "rb")


def _zstd_frames(path: Path) -> Iterator[bytes]:
    """A .zst file's bytes, frame after frame. (The package's own reader takes a truncated file for a whole one.)"""
    import zstandard

    frame = None
    with open(path, "rb") as file:
        while packed := (frame.unused_data if frame and frame.eof else b"") or file.read(1 << 16):
            if frame is None or frame.eof:
                frame = zstandard.ZstdDecompressor().decompressobj()
            try:
                yield frame.decompress(packed)
            except zstandard.ZstdError as error:
                raise EOFError(str(error)) from error
    if frame and not frame.eof:
        raise EOFError("compressed file ended before its end marker")


class _Stream(io.RawIOBase):
    """Bytes that arrive in chunks, as a file to read."""

    def __init__(self, chunks: Iterator[bytes]):
        self.chunks, self.ready = chunks, b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while not self.ready:
            chunk = next(self.chunks, None)
            if chunk is None:
                return 0
            self.ready = memoryview(chunk)
        count = min(len(buffer), len(self.ready))
        buffer[:count], self.ready = self.ready[:count], self.ready[count:]
        return count


def give_back_memory() -> None:
    """Let the system have what is free: glibc keeps it in pieces, 40 MB more with every GB of text that is read."""
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


# --- plain text ------------------------------------------------------------------------------------------------------
def _characters(file: BinaryIO, name: Path | str) -> Iterator[str]:
    """The file decoded from UTF-8 in chunks, without a byte-order mark."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset = 0
    while True:
        chunk = file.read(CHUNK)
        zero = chunk.find(0)
        require(zero < 0, f"{name} is not text: a NUL byte at offset {offset + zero}")
        pending = len(decoder.getstate()[0])
        try:
            text = decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            at = offset - pending + error.start
            raise UserError(
                f"{name} is not UTF-8 text: byte 0x{error.object[error.start]:02x} at offset {at}"
            ) from error
        yield text.removeprefix("\ufeff") if offset == 0 else text
        offset += len(chunk)
        if not chunk:
            return


def split(chunks: Iterator[str], separator: str) -> Iterator[Piece]:
    """Cut a stream of text into documents at a separator; alone on its line, the separator takes the line's end along.

    Where the chunks begin and end does not show in the result.
    """
    # text[start:] is what is still to be given out; one character before it is kept to know where a line begins.
    text, start, opens = "", 0, True
    for chunk, last in _with_last(chunks):
        text, start = text[max(start - 1, 0) :] + chunk, min(start, 1)
        known = len(text) if last else len(text) - len("\r\n")  # a separator must show whether its line ends after it
        while separator:
            found = text.find(separator, start)
            if found < 0 or found + len(separator) > known:
                break
            yield from cut(text[start:found], opens)
            start, opens = found + len(separator), True
            if found == 0 or text[found - 1] == "\n":
                start += next(len(end) for end in ("\r\n", "\n", "") if text.startswith(end, start))
        settled = len(text) - (0 if last else len(separator) + len("\r\n"))
        while settled - start > PIECE:
            piece, start = text[start : start + PIECE], start + PIECE
            if not (opens and piece.isspace()):
                yield piece, opens
                opens = False
    yield from cut(text[start:], opens)


def cut(text: str, opens: bool = True) -> Iterator[Piece]:
    """A document, or the rest of one, in pieces; of a blank document none.

    A document opens with a piece that is not blank, which can be told without having seen its end.
    """
    for start in range(0, len(text), PIECE):
        piece = text[start : start + PIECE]
        if not (opens and piece.isspace()):
            yield piece, opens
            opens = False


def _with_last(chunks: Iterator[str]) -> Iterator[tuple[str, bool]]:
    """Each chunk with whether it is the last; an empty stream is one empty chunk."""
    chunks = iter(chunks)
    previous = next(chunks, "")
    for chunk in chunks:
        yield previous, False
        previous = chunk
    yield previous, True


# --- records ---------------------------------------------------------------------------------------------------------
def jsonl_records(path: Path, hook: Callable[[list], dict] | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """The number of the line, from 1, and the JSON object for every line of a .jsonl file that is not blank.

    hook: makes an object of its (name, value) pairs; a ValueError refuses it.
    Raises UserError for lines that are no JSON object, or too long.
    """
    offset = 0
    with open_bytes(path) as file:
        for number in itertools.count(1):
            line, where = file.readline(LINE + 1), f"{path}, line {number}"
            require(len(line) <= LINE, f"{where} is longer than {LINE >> 20} MiB; is it JSON lines?")
            if not line:
                return
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                record = json.loads(text, object_pairs_hook=hook) if line.strip() else None
            except UnicodeDecodeError as error:
                raise UserError(f"{path} is not UTF-8 text: line {number}, offset {offset + error.start}") from error
            except (ValueError, RecursionError) as error:
                raise UserError(f"{where}: not JSON ({error})") from error
            offset += len(line)
            if line.strip():
                require(isinstance(record, dict), f"{where}: expected a JSON object, got {line[:40]!r}")
                yield number, record


def _jsonl_texts(path: Path, field: str) -> Iterator[str]:
    for number, record in jsonl_records(path):
        where = f"{path}, line {number}"
        value = _inside(record, field, where)
        kind = type(value).__name__
        known = value is None or isinstance(value, str)
        require(known, f"{where}: field {field!r} is {kind}, not text; set --data.text-field")
        yield well_formed(value or "")


def _inside(record: dict[str, Any], field: str, where: str) -> Any:
    """A record's field: by its name, or by a path of names with dots between them."""
    value: Any = record
    for name in [field] if field in record else field.split("."):
        if not isinstance(value, dict) or name not in value:
            nested = ([f"{outer}.{inner}" for inner in part] if isinstance(part, dict) and part else [outer]
                      for outer, part in record.items())  # fmt: skip
            raise UserError(_no_field(where, field, list(itertools.chain.from_iterable(nested))))
        value = value[name]
    return value


def _no_field(where: Path | str, field: str, names: list[str]) -> str:
    """`field` is not among `names`, of which as many are named as fit a line."""
    return f"{where}: no field {field!r} among {listed(names)}; set --data.text-field"


def listed(names: Iterable[str]) -> str:
    """Names with commas between them, as many as fit a line."""
    known = ", ".join(names) or "none"
    return known if len(known) <= 120 else known[:117] + "..."


@contextlib.contextmanager
def open_parquet(path: Path) -> Iterator[Any]:
    """The file, to be read by Arrow, which tells of damage by errors of any kind: here they are UserErrors."""
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(f"{path}: reading parquet needs pyarrow: pip install -e '.[parquet]'") from error
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            yield file
    except UserError:
        raise
    except Exception as error:
        said = " ".join(str(error).split())[:120]
        raise UserError(f"{path} is not a parquet file, or is damaged: {said or type(error).__name__}") from error


def parquet_rows(path: Path, file: Any, columns: list[str]) -> Iterator[tuple[int, list[Any]]]:
    """The number of the row, from 1, and what it has in these columns, for every row of an open parquet file."""
    number = 0
    for group in range(file.num_row_groups):
        for rows in file.iter_batches(batch_size=256, columns=columns, row_groups=[group]):
            for values in zip(*rows.columns, strict=True):
                number += 1
                try:
                    yield number, [value.as_py() for value in values]
                except UnicodeDecodeError as error:
                    raise UserError(f"{path} is not UTF-8 text: row {number}, byte {error.start}") from error


def _parquet_texts(path: Path, field: str) -> Iterator[str]:
    with open_parquet(path) as file:
        names = _names(path, file, field)
        for _, (text,) in parquet_rows(path, file, [".".join(names)]):
            for name in names[1:]:
                text = text and text[name]
            yield text or ""


def _names(path: Path, file, field: str) -> list[str]:
    """The names that lead to a field of text: one, or a path into nested records."""
    from pyarrow import types

    schema = kind = file.schema_arrow
    names = [field] if field in schema.names else field.split(".")
    for name in names:
        index = kind.get_field_index(name) if kind is schema or types.is_struct(kind) else -1
        require(index >= 0, _no_field(path, field, [file.schema.column(i).path for i in range(len(file.schema))]))
        kind = kind.field(index).type
    require(is_text(kind), f"{path}: field {field!r} is {kind}, not text; set --data.text-field")
    return names


def is_text(kind: Any) -> bool:
    """Whether values of an Arrow type are text."""
    from pyarrow import types

    kind = kind.value_type if types.is_dictionary(kind) else kind
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
