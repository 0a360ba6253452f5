"""Files of text, read as a stream of documents in bounded memory.

A document arrives in pieces of at most PIECE characters, each with a flag that says whether it opens a document; so a
file of any size can be read, and almost every document is one piece.
"""

import codecs
import gzip
import io
import itertools
import json
import lzma
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

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
    try:
        if kind == ".parquet":
            yield from _records(_parquet_texts(path, text_field))
        elif kind == ".jsonl":
            yield from _records(_jsonl_texts(path, text_field))
        else:
            yield from split(_characters(path), separator)
    except (EOFError, gzip.BadGzipFile, lzma.LZMAError) as error:
        raise UserError(f"{path} is damaged: {error}; fetch or compress it again") from error
    except FileNotFoundError as error:
        raise UserError(f"{path} is gone; it was there when the corpus was opened") from error
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
            return io.BufferedReader(_Zstd(path), CHUNK)
        case _:
            return open(path, "rb")


class _Zstd(io.RawIOBase):
    """A .zst file's bytes, frame after frame. (The package's own reader takes a truncated file for a whole one.)"""

    def __init__(self, path: Path):
        import zstandard

        self.library = zstandard
        self.file = open(path, "rb")  # noqa: SIM115, closed in close()
        self.frame, self.ready = None, memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while not self.ready:
            between = self.frame is None or self.frame.eof
            packed = (self.frame.unused_data if self.frame and between else b"") or self.file.read(1 << 16)
            if not packed and between:
                return 0
            if not packed:
                raise EOFError("compressed file ended before its end marker")
            if between:
                self.frame = self.library.ZstdDecompressor().decompressobj()
            try:
                self.ready = memoryview(self.frame.decompress(packed))
            except self.library.ZstdError as error:
                raise EOFError(str(error)) from error
        count = min(len(buffer), len(self.ready))
        buffer[:count] = self.ready[:count]
        self.ready = self.ready[count:]
        return count

    def close(self) -> None:
        self.file.close()
        super().close()


# --- plain text ------------------------------------------------------------------------------------------------------
def _characters(path: Path) -> Iterator[str]:
    """The file decoded from UTF-8 in chunks, without a byte-order mark."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset = 0
    with open_bytes(path) as file:
        while True:
            chunk = file.read(CHUNK)
            zero = chunk.find(0)
            require(zero < 0, f"{path} is not text: a NUL byte at offset {offset + zero}")
            pending = len(decoder.getstate()[0])
            try:
                text = decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError as error:
                at = offset - pending + error.start
                raise UserError(
                    f"{path} is not UTF-8 text: byte 0x{error.object[error.start]:02x} at offset {at}"
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
    """A document, or the rest of one, in pieces. Nothing of a blank document: a document opens with a piece that is not
    blank, which can be told without having seen its end."""
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
def _records(texts: Iterator[str]) -> Iterator[Piece]:
    return itertools.chain.from_iterable(map(cut, texts))


def _jsonl_texts(path: Path, field: str) -> Iterator[str]:
    offset = 0
    with open_bytes(path) as file:
        for number, line in enumerate(file, start=1):
            try:
                record = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8")) if line.strip() else None
            except UnicodeDecodeError as error:
                raise UserError(f"{path} is not UTF-8 text: line {number}, offset {offset + error.start}") from error
            except ValueError as error:
                raise UserError(f"{path}, line {number}: not JSON ({error})") from error
            offset += len(line)
            if record is None:
                continue
            require(isinstance(record, dict), f"{path}, line {number}: expected a JSON object, got {line[:40]!r}")
            require(
                field in record,
                f"{path}, line {number}: no field {field!r} among {', '.join(record) or 'none'}; set --data.text-field",
            )
            text = record[field]
            require(
                text is None or isinstance(text, str),
                f"{path}, line {number}: field {field!r} is {type(text).__name__}, not text; set --data.text-field",
            )
            yield well_formed(text or "")


def _parquet_texts(path: Path, field: str) -> Iterator[str]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(f"{path}: reading parquet needs pyarrow: pip install -e '.[parquet]'") from error
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            require(field in names, f"{path}: no field {field!r} among {', '.join(names)}; set --data.text-field")
            kind = file.schema_arrow.field(field).type
            require(
                pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind),
                f"{path}: field {field!r} is {kind}, not text; set --data.text-field",
            )
            for group in range(file.num_row_groups):
                for rows in file.iter_batches(batch_size=256, row_groups=[group], columns=[field]):
                    yield from (text or "" for text in rows.column(0).to_pylist())
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"{path} is not a parquet file: {error}") from error
