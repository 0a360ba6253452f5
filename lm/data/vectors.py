"""Word vectors in files: word2vec's text and binary formats, GloVe's and fastText's, read by gensim.

A text file has a line for each word, the word and its numbers; word2vec and fastText (.vec) put a line with the count
and the width before them, GloVe does not. A .bin is word2vec's, or a model of fastText's, of which the vectors of whole
words are read. Each may be packed by gzip.
"""

import dataclasses
import gzip
import logging
import re
import struct
from pathlib import Path

import numpy as np

from lm.errors import UserError, require

FORMATS = {".txt": False, ".vec": False, ".bin": True}
"""Suffixes of files of word vectors, and whether they are binary; each may be followed by .gz."""
FASTTEXT = struct.pack("<i", 793_712_314)
"""How a fastText model begins."""
HEADER = re.compile(rb"\s*\d+\s+\d+\s*")


@dataclasses.dataclass(frozen=True, eq=False)
class WordVectors:
    """Words in the order of their file, the most frequent first as a rule, and a float32 vector for each."""

    words: tuple[str, ...]
    vectors_VD: np.ndarray


def suffix(path: Path) -> str:
    """The suffix that says a file's format, .gz aside."""
    return Path(path.stem if path.suffix == ".gz" else path.name).suffix


def read_vectors(file: Path, *, limit: int | None = None, option: str = "") -> WordVectors:
    """Read a file of one of the FORMATS; a word that comes twice has its first vector.

    limit: read so many words at most, the first. option: what asked for the file, for errors.
    Raises UserError where the file is damaged, or holds nothing or numbers that are not finite, and without gensim.
    """
    named = f"{option} {file}".strip()
    try:
        from gensim.models import KeyedVectors
        from gensim.models.fasttext import load_facebook_vectors
    except ImportError as error:
        asked = f"word vectors in {option}" if option else "files of word vectors"
        raise UserError(f"{asked} need the package gensim: pip install -e '.[vectors]'") from error
    log = logging.getLogger("gensim")
    level, problem = log.level, None
    log.setLevel(logging.ERROR)  # it would tell of every word that is there twice
    kind = "word2vec's text format or GloVe's"
    try:
        with (gzip.open if file.suffix == ".gz" else open)(file, "rb") as opened:
            beginning = opened.readline(1 << 16)
        if beginning.startswith(FASTTEXT):
            kind = "a fastText model"
            read = load_facebook_vectors(str(file))
        else:
            is_binary = FORMATS[suffix(file)]
            kind = "word2vec's binary format" if is_binary else kind
            # Words cut within a character, as word2vec itself writes some, keep what is left of them.
            read = KeyedVectors.load_word2vec_format(
                str(file), binary=is_binary, unicode_errors="replace", datatype=np.float32, limit=limit,
                no_header=not (is_binary or HEADER.fullmatch(beginning)),
            )  # fmt: skip
        found = WordVectors(tuple(read.index_to_key[:limit]), np.asarray(read.vectors[: len(read)][:limit], np.float32))
    except Exception as error:  # whatever the libraries below make of damaged files
        problem = f"{type(error).__name__}: {error}"
    finally:
        log.setLevel(level)
    require(problem is None, f"{named} is damaged, or not {kind} ({problem})")
    require(len(found.words) > 0 and found.vectors_VD.shape[1] > 0, f"{named} holds no vectors")
    require(bool(np.isfinite(found.vectors_VD).all()), f"{named}: some vectors are not finite")
    return found
