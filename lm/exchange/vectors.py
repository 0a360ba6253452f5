"""A model's spaces as files that others read: word2vec's formats, and the embedding projector's two tables."""

import contextlib
import gzip
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

import numpy as np

from lm.data.vectors import FORMATS, suffix
from lm.errors import require
from lm.files import whole
from lm.model.trained import Trained
from lm.probe.spaces import spaces_of
from lm.probe.words import Space

PROJECTOR = ".tsv"


def write(m: Trained | Space, path: str | Path, space: str = "input", **options) -> list[Path]:
    """Write the words of a space and their vectors; returns the files, of which each is there whole or not at all.

    space: input, unembedding, contextual.l. path: .txt and .vec are word2vec's text format and .bin its binary one,
    which may be packed (.gz); .tsv is the projector's table of vectors, and its words are in NAME.metadata.tsv beside
    it. Numbers come back to the bit. options: see `spaces_of`.
    Raises UserError for another suffix, a space that there is not, and words that such files cannot hold.
    """
    path = Path(path)
    known = (*FORMATS, PROJECTOR)
    formats = f"{', '.join(known)}, those of {', '.join(FORMATS)} also with .gz"
    require(
        suffix(path) in known and path.suffixes[-2:] != [PROJECTOR, ".gz"], f"{path}: its suffix is none of {formats}"
    )
    *_, chosen = spaces_of(m, [space], **options)
    wrong = next((word for word in chosen.words if not word or any(map(str.isspace, word))), None)
    require(wrong is None, f"space {chosen.name}: the word {wrong!r} holds a space, which ends a word in such files")
    if path.suffix == PROJECTOR:
        return _write_tables(chosen, path)
    with _opened(path) as file:
        file.write(f"{len(chosen.words)} {chosen.vectors_VD.shape[1]}\n".encode())
        for word, vector_D in _rows(chosen):
            if FORMATS[suffix(path)]:
                file.write(f"{word} ".encode() + vector_D.tobytes())
            else:
                file.write(f"{word} {_spelled(vector_D, ' ')}\n".encode())
    return [path]


def _write_tables(space: Space, path: Path) -> list[Path]:
    """Two tables without titles: a row of numbers for each word, and the words."""
    words = path.with_suffix(f".metadata{PROJECTOR}")
    with whole(path) as numbers_file, whole(words) as words_file:
        for word, vector_D in _rows(space):
            numbers_file.write(_spelled(vector_D, "\t") + "\n")
            words_file.write(f"{word}\n")
    return [path, words]


def _rows(space: Space) -> Iterable[tuple[str, np.ndarray]]:
    return zip(space.words, np.asarray(space.vectors_VD, "<f4"), strict=True)


def _spelled(vector_D: np.ndarray, separator: str) -> str:
    """Each number with as few digits as bring it back."""
    return separator.join(map(str, vector_D))


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """The file to write, packed where its name says so."""
    with whole(path, "wb") as file:
        if path.suffix == ".gz":
            with gzip.GzipFile(filename="", fileobj=file, mode="wb", mtime=0) as packed:
                yield packed
        else:
            yield file
