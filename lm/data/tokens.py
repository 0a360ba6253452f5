"""Text to tokens on disk: read a corpus, hold some of it out, build the tokenizer, write two memory-mapped files.

Of a large corpus the files are shards, which several processes encode: the tokens are the same.

What was prepared once is found again by what it was made of, the text itself included. Layout of a token file: with
several documents, each is preceded by the end-of-text token and the file ends with one (EOT doc EOT doc EOT), so every
document starts from EOT and its end is predicted; a corpus of one document has none at all.
"""

import contextlib
import functools
import hashlib
import itertools
import json
import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from lm import tokenizer as tokenizers
from lm.config import DataConfig
from lm.data import readers
from lm.data.corpora import Corpus, cache_folder, open_corpus
from lm.data.readers import Piece
from lm.data.temporary import clear_abandoned, make_resumable, make_whole, temporary_folder
from lm.data.token_files import Shard, TokenFile, Writer, digest_files, token_dtype
from lm.data.workers import SHARD, cores, cut, encode_shards
from lm.errors import UserError, require
from lm.files import whole
from lm.tokenizer import Tokenizer

VERSION = 1
"""Part of every key: raise it when the same text and settings would become other tokens."""

LARGE = 2 * SHARD
"""Bytes of text above which a corpus is written in shards, and by worker processes."""

Report = Callable[[str, int, int | None], None]
"""report(stage, bytes done, bytes in all or None); stages: reading, tokenizer, tokens."""


@dataclass(frozen=True)
class Prepared:
    """A corpus ready to train on."""

    train: TokenFile
    validation: TokenFile
    tokenizer: Tokenizer
    hashes: dict[str, str]
    """corpus: sha256 of its text; tokenizer: its digest; validation: sha256 of the held-out tokens."""
    template: str | None = None
    """Of examples that a template wrote: its text."""


def prepare_corpus(
    data: DataConfig, *, cache: Path | None = None, report: Report | None = None, workers: int | None = None
) -> Prepared:
    """The tokens of `data.corpus`, made now or found where an earlier call left them.

    cache: folder to keep them in, cache_folder() by default; report: called as the work goes on.
    workers: processes that encode a corpus of more than LARGE bytes, by default as many as there are cores; the result
    is the same for any number. Such a corpus, where this is interrupted, goes on at the shard that was not finished.
    Held out for validation: data.validation_corpus, else about the fraction data.validation of the bytes: whole
    documents chosen by a hash of their text (so duplicates stay together, and every machine chooses alike), or the end
    of a corpus of one document. Memory stays bounded whatever the size of the corpus.
    Raises UserError for corpora that cannot be read or divided, and for a cache that cannot be written.
    """
    cache = cache_folder() if cache is None else Path(cache)
    report = report or (lambda stage, done, total: None)
    corpus = open_corpus(data)
    other = open_corpus(data, data.validation_corpus) if data.validation_corpus else None
    with keeping(cache):
        for folder in (cache / "tokens", cache / "scans", *(cache / "corpora").glob("*")):
            clear_abandoned(folder)
        main = _scanned(corpus, 0.0 if other else data.validation, cache, report)
        job = _Job(data, main, other and _scanned(other, 0.0, cache, report), report)
        folder = token_folder(cache, corpus.name, job.key())
        return _open(folder) or _make(job, folder, workers)


@contextlib.contextmanager
def keeping(cache: Path) -> Iterator[None]:
    """Say that the cache cannot be written."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot keep tokens in {cache}: {error.strerror or error}; set LM_CACHE to a folder with room"
        ) from error


def token_folder(cache: Path, name: str, key: str) -> Path:
    """Where tokens of a corpus are kept. The name is for people; the key, a digest in hex, is what counts."""
    slug = re.sub(r"[^A-Za-z0-9]+", "-", Path(name).name).strip("-")[:32]
    return cache / "tokens" / f"{slug or 'corpus'}-{key[:16]}"


def tokenizer_key(data: DataConfig) -> Any:
    """What decides the tokenizer, beside the text: JSON values."""
    if tokenizers.is_path(data.tokenizer):
        return tokenizers.digest(tokenizers.load(data.tokenizer))
    if data.tokenizer == "words":
        return [data.tokenizer, data.vocab, tokenizers.WORD_PATTERN]  # it was another, not the same in all scripts
    return [data.tokenizer, data.vocab if data.tokenizer == "bpe" else None]


# --- scan: one reading that settles what the corpus holds and which part is held out ---------------------------------
BUCKETS = 1 << 16


@dataclass(frozen=True)
class Scan:
    """What one reading of a corpus found."""

    sha256: str
    """Digest of its documents, with 0xFF, which UTF-8 never contains, where each begins."""
    bytes: int
    characters: int
    documents: int
    held_out: tuple[int, ...]
    """Buckets whose documents are the validation set, when there are several documents."""
    cut: int
    """Characters before the validation set, when there is one document."""


@dataclass
class _Scanned:
    """A corpus and its scan."""

    corpus: Corpus
    scan: Scan
    unchanged: bool = False
    """Whether the last complete reading of its documents found the text that was scanned."""

    def documents(self, report: Report, all_held_out: bool) -> Iterator[tuple[bool, Iterator[str]]]:
        """(held out, pieces) of every document; a document must be read before the next is asked for."""
        digest, self.unchanged = hashlib.sha256(), False
        divided = _divide(self.watched("tokens", report, digest), self.scan)
        for (held_out, _), document in itertools.groupby(divided, key=itemgetter(0, 1)):
            yield held_out or all_held_out, map(itemgetter(2), document)
        self.unchanged = digest.hexdigest() == self.scan.sha256

    def watched(self, stage: str, report: Report, digest=None) -> Iterator[tuple[str, bytes, bool]]:
        """The corpus's pieces, as `_watch` gives them."""
        return _watch(self.corpus, stage, self.scan.bytes, report, digest)


def bucket(encoded: bytes) -> int:
    """A document's bucket, from the UTF-8 of its first piece."""
    return int.from_bytes(hashlib.blake2b(encoded, digest_size=2, person=b"lm.validation").digest())


def hold_out(sizes: np.ndarray, fraction: float) -> tuple[int, ...]:
    """Buckets to hold out of those with these bytes: in order while they fit the fraction; at least one, never all."""
    budget = fraction * float(sizes.sum())
    occupied, chosen = np.flatnonzero(sizes), []
    for candidate in occupied:
        if sizes[candidate] <= budget:
            chosen.append(int(candidate))
            budget -= sizes[candidate]
    return tuple(chosen) or (int(occupied[sizes[occupied].argmin()]),)


def _scan(corpus: Corpus, fraction: float, report: Report) -> Scan:
    digest, sizes = hashlib.sha256(), np.zeros(BUCKETS, np.int64)
    characters = documents = place = 0
    for text, encoded, opens in _watch(corpus, "reading", None, report, digest):
        if opens:
            documents += 1
            place = bucket(encoded)
        sizes[place] += len(encoded)
        characters += len(text)
    require(documents > 0, f"data.corpus {corpus.name}: no text in it, only blank")
    held_out, cut = (), characters
    if fraction and documents > 1:
        same = f"its {documents} documents are all the same; give a data.validation_corpus"
        require(np.count_nonzero(sizes) > 1, f"data.corpus {corpus.name}: {same}")
        held_out = hold_out(sizes, fraction)
    elif fraction:
        require(characters > 1, f"data.corpus {corpus.name}: one character cannot be divided; give more text")
        cut = min(max(int(characters * (1 - fraction)), 1), characters - 1)
    found = dict(bytes=int(sizes.sum()), characters=characters, documents=documents, held_out=held_out, cut=cut)
    return Scan(digest.hexdigest(), **found)


def _watch(
    corpus: Corpus, stage: str, total: int | None, report: Report, digest=None
) -> Iterator[tuple[str, bytes, bool]]:
    """A corpus's pieces with their UTF-8, which goes into the digest; reported every few megabytes and at the end."""
    done = reported = given_back = 0
    for text, opens in corpus.pieces():
        encoded = text.encode()
        if digest:
            digest.update(b"\xff" * opens + encoded)
        yield text, encoded, opens
        done += len(encoded)
        if done - reported >= 4_000_000:
            report(stage, done, total)
            reported = done
        if done - given_back >= SHARD:
            readers.give_back_memory()
            given_back = done
    report(stage, done, done)


def _scanned(corpus: Corpus, fraction: float, cache: Path, report: Report) -> _Scanned:
    """A corpus with its scan, from an earlier call when no file changed its size or time since.

    A file written within the last two seconds could change once more under the same time stamp: of those nothing is
    remembered.
    """
    manifest = corpus.manifest()
    key = [VERSION, manifest, corpus.separator, corpus.text_field, fraction]
    path = cache / "scans" / f"{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]}.json"
    settled = time.time_ns() - max(changed for _, _, changed in manifest) > 2_000_000_000
    if settled:
        try:
            values = json.loads(path.read_text())
            return _Scanned(corpus, Scan(**values | {"held_out": tuple(values["held_out"])}))
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            pass  # not there, or damaged: read again
    scan = _scan(corpus, fraction, report)
    if settled:
        with temporary_folder(path.parent) as temporary:
            (temporary / path.name).write_text(json.dumps(asdict(scan)))
            os.replace(temporary / path.name, path)
    return _Scanned(corpus, scan)


# --- lay out ---------------------------------------------------------------------------------------------------------
def lay_out(tokenizer: Tokenizer, pieces: Iterable[Piece], *, end_of_text: bool) -> Iterator[Iterator[np.ndarray]]:
    """The tokens of documents as training lays them out: streams of uint32 arrays, in bounded memory.

    end_of_text: one stream in which an end-of-text token precedes every document, or what the makers of a model from
    elsewhere put there; otherwise a stream for each document.
    A stream must be read before the next is asked for.
    """
    encoded = (tokenizers.encode_pieces(tokenizer, document) for document in readers.documents(pieces))
    if not end_of_text:
        return encoded
    opening = [np.array([tokenizers.opening(tokenizer)], np.uint32)]
    return iter([itertools.chain.from_iterable(itertools.chain(opening, document) for document in encoded)])


# --- make ------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Job:
    """What tokens are made of."""

    data: DataConfig
    main: _Scanned
    other: _Scanned | None
    """The validation corpus, where one is asked for."""
    report: Report

    @property
    def sources(self) -> list[_Scanned]:
        """What is read, in order."""
        return [self.main, self.other] if self.other else [self.main]

    @property
    def bytes(self) -> int:
        """UTF-8 bytes of all text."""
        return sum(source.scan.bytes for source in self.sources)

    @property
    def ends(self) -> dict[str, bool]:
        """Whether a side's documents are divided by ends of text."""
        return {"train": self.main.scan.documents > 1, "validation": self.sources[-1].scan.documents > 1}

    def key(self) -> str:
        """Digest of everything that decides the tokens."""
        data, tokenizer = self.data, tokenizer_key(self.data)
        validation = self.other.scan.sha256 if self.other else data.validation
        settings = [VERSION, self.main.scan.sha256, tokenizer, validation, data.separator, data.text_field]
        if data.tokenizer in ("words", "bpe") and self.main.scan.characters > 2 * tokenizers.SAMPLE:
            settings.append("trained on a sample by hash")  # it was every n-th unit of the text
        return hashlib.sha256(json.dumps(settings).encode()).hexdigest()

    def tokenizer(self) -> Tokenizer:
        """The tokenizer, built from the training part alone.

        Except that an alphabet covers the held-out text too, which could not be written otherwise, and says no more
        about it than which characters occur.
        """
        watched = self.main.watched("tokenizer", self.report)
        if self.data.tokenizer == "chars":
            held_out = self.other.corpus.pieces() if self.other else ()
            return tokenizers.build(self.data, (part[0] for part in itertools.chain(watched, held_out)))
        training = (text for held_out, _, text in _divide(watched, self.main.scan) if not held_out)
        return tokenizers.build(self.data, training)


def _divide(pieces: Iterable[tuple[str, bytes, bool]], scan: Scan) -> Iterator[tuple[bool, int, str]]:
    """(held out, number of the document, text) for every piece of a corpus."""
    number, held_out, at = 0, False, 0
    chosen = frozenset(scan.held_out)
    for text, encoded, opens in pieces:
        if scan.documents > 1:
            if opens:
                number, held_out = number + 1, bucket(encoded) in chosen
            yield held_out, number, text
            continue
        here = min(max(scan.cut - at, 0), len(text))
        at += len(text)
        yield from ((held_out, 0, part) for held_out, part in ((False, text[:here]), (True, text[here:])) if part)


def _make(job: _Job, folder: Path, workers: int | None) -> Prepared:
    """Make the folder of tokens: two files in this process, or shards where the corpus is large.

    Not shards by a tokenizer to which the parts of a document are no texts of their own (sentencepiece's).
    """
    in_order = tokenizers.is_path(job.data.tokenizer) and not tokenizers.independent(job.tokenizer())
    if job.bytes <= LARGE or in_order:
        return make_whole(folder, functools.partial(_fill, job, job.tokenizer()), _open)
    return make_resumable(folder, functools.partial(_fill_with_shards, job, workers or cores()), _open)


def _fill(job: _Job, tokenizer: Tokenizer, made: Path) -> None:
    """Write both token files, the tokenizer and the sidecar."""
    with open(made / "train.bin", "wb") as train_file, open(made / "validation.bin", "wb") as validation_file:
        train = Writer(train_file, tokenizer, end_of_text=job.ends["train"])
        held = Writer(validation_file, tokenizer, end_of_text=job.ends["validation"])
        for source in job.sources:
            for held_out, document in source.documents(job.report, all_held_out=source is job.other):
                (held if held_out else train).document(document)
        _require_unchanged(job, made.parents[2])
        sidecar = {"train": train.finish(), "validation": held.finish()}
    tokenizers.save(tokenizer, made / "tokenizer.json")
    _describe(job, tokenizer, made, sidecar)


def _fill_with_shards(job: _Job, workers: int, made: Path) -> None:
    """Write the tokenizer, the shards of both sides and the sidecar; what is there already is kept."""
    if not (made / "tokenizer.json").is_file():
        tokenizers.save(job.tokenizer(), made / "tokenizer.json")
    for side in job.ends:
        (made / side).mkdir(exist_ok=True)
    tokenizer, documents = tokenizers.load(made / "tokenizer.json"), Counter()
    texts = cut(_parts(job, documents), {side for side, ends in job.ends.items() if ends})
    notes = encode_shards(texts, made, workers, lambda done: job.report("tokens", done, job.bytes))
    _require_unchanged(job, made.parents[1])
    sides = {side: [notes[name] for name in sorted(notes) if name.startswith(side)] for side in job.ends}
    eot = {side: tokenizer.eot_token if ends else None for side, ends in job.ends.items()}
    sidecar = {}
    for side, parts in sides.items():
        shards = [Shard(Path(note["name"]).name, note["count"], note["sha256"]) for note in parts]
        count, size = (sum(note[what] for note in parts) for what in ("count", "bytes"))
        fields = dict(count=count, bytes=size, documents=documents[side], eot=eot[side])
        digest = digest_files([made / side / shard.name for shard in shards])
        fields |= {"dtype": token_dtype(tokenizer).name, "sha256": digest}
        sidecar[side] = fields | {"shards": list(map(asdict, shards))}
    _describe(job, tokenizer, made, sidecar)


def _parts(job: _Job, documents: Counter) -> Iterator[tuple[str, str, bool]]:
    """(side, text, whether it opens a document after an end of text): the corpus in parts that encode independently.

    documents: counts those of each side on the way.
    """
    for source in job.sources:
        for held_out, document in source.documents(lambda *_: None, all_held_out=source is job.other):
            side = "validation" if held_out else "train"
            documents[side] += 1
            opens = job.ends[side]
            for text in tokenizers.slices(document, tokenizers.SLICE):
                yield side, text, opens
                opens = False


def _require_unchanged(job: _Job, cache: Path) -> None:
    """Refuse what was read just now where it was not what was scanned."""
    if not all(source.unchanged for source in job.sources):
        shutil.rmtree(cache / "scans", ignore_errors=True)  # some file lies about its time
        raise UserError(f"data.corpus {job.main.corpus.name} changed while it was being read; run again")


def _describe(job: _Job, tokenizer: Tokenizer, made: Path, sidecar: dict[str, Any]) -> None:
    """Write the sidecar, with the digests of what the tokens were made of."""
    digests = {"corpus": job.main.scan.sha256, "tokenizer": tokenizers.digest(tokenizer)}
    sidecar["hashes"] = digests | {"validation": sidecar["validation"]["sha256"]}
    with whole(made / "tokens.json") as file:
        json.dump(sidecar, file, indent=1)


def _open(folder: Path) -> Prepared | None:
    """What was prepared in `folder`, or None when it is not there or not whole."""
    try:
        sidecar = json.loads((folder / "tokens.json").read_text())
        parts = {}
        for part in ("train", "validation"):
            fields = sidecar[part] | {"shards": tuple(Shard(**shard) for shard in sidecar[part].get("shards", ()))}
            path = folder / (part if fields["shards"] else f"{part}.bin")
            parts[part] = TokenFile(path=path, **fields)
            if not parts[part].whole:
                return None
        tokenizer, hashes = tokenizers.load(folder / "tokenizer.json"), sidecar["hashes"]
        same = tokenizers.digest(tokenizer) == hashes["tokenizer"]
        return Prepared(**parts, tokenizer=tokenizer, hashes=hashes) if same else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
