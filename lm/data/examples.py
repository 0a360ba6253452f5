"""Examples: what is shown to a model and what it is to answer, from files to tokens on disk.

A file is read by its suffix: .tsv .csv .jsonl (these also as .gz .xz .zst), .parquet or .npz. Its fields decide what
its rows are; other fields are allowed, and left alone.

source, target          a translation, a question and its answer
prompt, completion      a text, and how it goes on; nothing stands between the two
text, label             a class; in .jsonl and .parquet also a number or a truth value, which is written as text
chosen, rejected        two answers of which the first is better; with or without a prompt
messages                a chat: a list of objects with a role (system, user, assistant) and a content, the last of them
                        the assistant's (.jsonl and .parquet)
images                  arrays [N, height, width] or [N, height, width, channels]: a row of pixels is one vector, which
                        stands in place of a token; `patches` cuts images into squares, to be saved as frames
frames                  arrays [N, I, E] of vectors, of which the first frame_counts [N] are real, or all

.tsv    cells have tabs between them, and quotes are characters like others
.csv    commas, and quotes as in RFC 4180
        In both the first row names the columns. Where it holds no name of a field, it is an example like the others:
        source, target, and perhaps a third column that is left alone (an attribution).
.jsonl  an object a line
.npz    images or frames, and beside them targets, labels or captions [N], texts or numbers. The numbers of images and
        frames are learnt from as they are: scale them to about 1 before.
Blank lines are left out. Rows are counted from 1 in errors, blank ones and the first included.

Tokens are kept as those of a corpus are. What shows the same (the same source, prompt, text or array; where there is no
prompt, the same chosen answer; in chats, all before the first answer) is held out together or not at all.

A template (data.template) makes tokens of chats, as lm.tokenizer.ChatFormat says; where it is set, also of the other
kinds of text: what is shown is the user's message, an answer the assistant's.

N: examples of a file, M: tokens or vectors of all of them, E: numbers in a vector.
"""

import functools
import hashlib
import itertools
import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from lm import tokenizer as tokenizers
from lm.config import DataConfig
from lm.data import readers
from lm.data.corpora import cache_folder
from lm.data.example_files import Chat, Examples, as_chats, file_of_examples, read_examples, suffix
from lm.data.temporary import clear_abandoned, make_whole
from lm.data.tokens import BUCKETS, Prepared, Report, bucket, hold_out, keeping, token_folder, tokenizer_key
from lm.errors import UserError, require, tell
from lm.files import whole
from lm.tokenizer import PLAIN, ChatFormat, Tokenizer, chat_format

VERSION = 1
"""Part of every key: raise it when the same file and settings would become other tokens."""


@dataclass(frozen=True)
class Ragged:
    """A stretch of tokens or vectors for each of N examples, one after the other."""

    flat: np.ndarray
    """Tokens [M], uint16 or uint32, or vectors [M, E], float32."""
    offsets: np.ndarray
    """Where each begins in `flat`, and where the last ends: int64 [N + 1]."""

    @property
    def lengths(self) -> np.ndarray:
        """Tokens or vectors of each example, int64 [N]."""
        return np.diff(self.offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, i: int) -> np.ndarray:
        """Those of example i."""
        return self.flat[self.offsets[i] : self.offsets[i + 1]]


@dataclass(frozen=True)
class ExampleFile:
    """Examples on disk, as tokens and vectors."""

    path: Path
    """The folder of its arrays."""
    kind: str
    """source/target, prompt/completion, text/label, chosen/rejected, messages, images or frames."""
    count: int
    """Tokens of the targets, each with an end of text; of chats, those that are the assistant's."""
    bytes: int
    """UTF-8 bytes of the targets."""
    documents: int
    """N, the number of examples."""
    eot: int
    """The end-of-text token, which stands in no array but those of chats."""
    sha256: str
    """Digest of the arrays."""

    @cached_property
    def targets(self) -> Ragged:
        """Tokens of what is to be answered, or of the answer that was chosen; written by a template, of the whole chat.
        Memory-mapped, as all arrays are."""
        return self._ragged("targets")

    @cached_property
    def learnt(self) -> Ragged | None:
        """Which tokens of `targets` are the assistant's, bool; None for what no template wrote."""
        return self._ragged("learnt")

    @cached_property
    def rejected_learnt(self) -> Ragged | None:
        """The same of `rejected`."""
        return self._ragged("rejected_learnt")

    @cached_property
    def sources(self) -> Ragged | None:
        """Tokens of what is shown; None for arrays, and for preferences without a prompt."""
        return self._ragged("sources")

    @cached_property
    def rejected(self) -> Ragged | None:
        """Tokens of the answers that were not chosen; None for other kinds."""
        return self._ragged("rejected")

    @cached_property
    def vectors(self) -> Ragged | None:
        """What is shown of images and frames; None for other kinds."""
        return self._ragged("vectors")

    def _ragged(self, name: str) -> Ragged | None:
        paths = (self.path / f"{name}.npy", self.path / f"{name}_offsets.npy")
        return Ragged(*(np.load(path, mmap_mode="r") for path in paths)) if paths[0].is_file() else None


@dataclass(frozen=True)
class PreparedExamples(Prepared):
    """Examples ready to train on."""

    train: ExampleFile
    validation: ExampleFile


def prepare_examples(data: DataConfig, *, cache: Path | None = None, report: Report | None = None) -> PreparedExamples:
    """The tokens of `data.examples`, made now or found where an earlier call left them.

    cache: folder to keep them in, cache_folder() by default; report: called as the work goes on.
    The tokenizer is built from the texts of the training part, shown and answered. Held out for validation:
    data.validation_corpus, another file of the same kind, else about the fraction data.validation of the examples,
    chosen by a hash of what they show.
    A file's examples are in memory while they are prepared, and never again.
    Raises UserError for files that cannot be read or divided, and for a cache that cannot be written.
    """
    require(data.examples is not None, "data.examples is not set: name a file of examples")
    cache = cache_folder() if cache is None else Path(cache)
    main, _ = file_of_examples(data.examples, "data.examples")
    other = file_of_examples(data.validation_corpus, "data.validation_corpus")[0] if data.validation_corpus else None
    job = _Job(data, main, other, _file_digest(main), other and _file_digest(other), report or _quietly)
    with keeping(cache):
        clear_abandoned(cache / "tokens")
        folder = token_folder(cache, main.name, job.key())
        return _open(folder) or make_whole(folder, functools.partial(_fill, job), _open)


def patches(images: np.ndarray, size: int) -> np.ndarray:
    """Images cut into squares of `size` x `size` pixels: a vector for each square, row by row, and in it pixel by
    pixel, row by row.

    images: [N, height, width] or [N, height, width, channels], any type.
    Returns [N, (height / size) (width / size), size * size * channels] of the same type.
    Raises UserError where the squares do not cover the images.
    """
    N, height, width, *channels = images.shape
    fits = size >= 1 and height % size == 0 and width % size == 0
    require(fits, f"images of {height} x {width} pixels cannot be cut into patches of {size} x {size}")
    rows, columns = height // size, width // size
    squares = images.reshape(N, rows, size, columns, size, *channels).swapaxes(2, 3)
    return squares.reshape(N, rows * columns, -1)


# --- make ------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Job:
    """What tokens are made of."""

    data: DataConfig
    main: Path
    other: Path | None
    """The validation file, where one is asked for."""
    main_digest: str
    other_digest: str | None
    report: Report

    @property
    def template(self) -> str | None:
        """The text of the template that was asked for."""
        return None if self.data.template is None else tokenizers.read_template(self.data.template)

    def key(self) -> str:
        """Digest of everything that decides the tokens."""
        main = [suffix(self.main), self.main_digest]
        validation = [suffix(self.other), self.other_digest] if self.other else self.data.validation
        settings = ["examples", VERSION, main, tokenizer_key(self.data), validation]
        settings += [self.template] if self.template else []
        return hashlib.sha256(json.dumps(settings).encode()).hexdigest()


def _quietly(stage: str, done: int, total: int | None) -> None:
    pass


def _file_digest(path: Path) -> str:
    with readers.refusing(path), open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fill(job: _Job, made: Path) -> None:
    """Write both parts, the tokenizer and the sidecar."""
    main = _read(job.main, job.main_digest, "data.examples", job.report)
    if job.other:
        train, held = main, _read(job.other, job.other_digest, "data.validation_corpus", job.report)
        _compare(train, held)
    else:
        held_N = _held_out(main, job.data.validation)
        train, held = main.take(np.flatnonzero(~held_N)), main.take(np.flatnonzero(held_N))
    parts = {"train": train, "validation": held}
    if job.template:
        parts = {part: as_chats(examples) for part, examples in parts.items()}
    tokenizer = _tokenizer(job.data, *parts.values(), job.template)
    chats = chat_format(tokenizer, job.template) if main.chats or job.template else None
    sidecar: dict[str, Any] = {
        part: _write(examples, tokenizer, chats, made / part, job.report) for part, examples in parts.items()
    }
    tokenizers.save(tokenizer, made / "tokenizer.json")
    digests = {"corpus": main.digest(), "tokenizer": tokenizers.digest(tokenizer)}
    sidecar["hashes"] = digests | {"validation": sidecar["validation"]["sha256"]}
    sidecar["template"] = chats.template if chats else None
    with whole(made / "examples.json") as file:
        json.dump(sidecar, file, indent=1)


def _read(path: Path, digest: str, option: str, report: Report) -> Examples:
    report("reading", 0, path.stat().st_size)
    examples = read_examples(path, option=option)
    require(_file_digest(path) == digest, f"{option} {path} changed while it was being read; run again")
    report("reading", path.stat().st_size, path.stat().st_size)
    return examples


def _compare(train: Examples, held: Examples) -> None:
    """Refuse a validation file of another kind, and tell how many of its examples training shows too."""
    if held.name == train.name:  # one file on either side, for its own sake
        return

    def kind(examples: Examples) -> str:
        widths = f" of vectors of {examples.vectors[0].shape[1]} numbers" if examples.vectors else ""
        prompts = " with prompts" if examples.rejected and examples.sources else ""
        return examples.kind + widths + prompts

    same = f"data.validation_corpus {held.name} has {kind(held)}, data.examples {kind(train)}"
    require(kind(train) == kind(held), f"{same}; both must be of one kind")
    seen = set(map(_fingerprint, train.shown()))
    shared = sum(_fingerprint(shown) in seen for shown in held.shown())
    if shared:
        tell(f"{held.name}: {shared:,} of {len(held):,} examples show what training examples show too")


def _fingerprint(shown: bytes) -> bytes:
    return hashlib.blake2b(shown, digest_size=16).digest()


def _held_out(examples: Examples, fraction: float) -> np.ndarray:
    """Whether each example is held out, bool [N]: all that show the same are on one side."""
    buckets_N = np.array([bucket(shown) for shown in examples.shown()])
    sizes = np.bincount(buckets_N, minlength=BUCKETS)
    same = f"its {len(buckets_N):,} examples all show the same; give another file as data.validation_corpus"
    require(np.count_nonzero(sizes) > 1, f"data.examples {examples.name}: {same}")
    return np.isin(buckets_N, hold_out(sizes, fraction))


def _tokenizer(data: DataConfig, train: Examples, held: Examples, template: str | None) -> Tokenizer:
    """The tokenizer, built from the training part alone; but an alphabet covers the held-out text too, as it does for
    a corpus, and what a template adds."""
    texts = [train, held] if data.tokenizer == "chars" else [train]
    added = [template or PLAIN] if train.chats else []
    return tokenizers.build(data, itertools.chain(added, (text for examples in texts for text in examples.texts())))


def _write(
    examples: Examples, tokenizer: Tokenizer, chats: ChatFormat | None, folder: Path, report: Report
) -> dict[str, Any]:
    """Write the arrays of one part. Returns the fields of its ExampleFile but the path."""
    folder.mkdir()
    dtype = np.dtype(np.uint16 if tokenizer.n_vocab <= 1 << 16 else np.uint32)
    total = sum(len(text) for text in examples.texts())
    done, digest = 0, hashlib.sha256()
    for name in ("sources", "targets", "rejected"):
        if texts := getattr(examples, name):
            tokens = {text: tokenizers.encode(tokenizer, text).astype(dtype) for text in set(texts)}
            _save(folder, name, [tokens[text] for text in texts], digest)
            done += sum(map(len, texts))
            report("tokens", done, total)
    answers = {"targets": ("learnt", examples.chats), "rejected": ("rejected_learnt", examples.rejected_chats)}
    for name, (flags, written) in answers.items():
        if written:
            made = [_learnt(chats, chat, f"{examples.name}, example {i}") for i, chat in enumerate(written, 1)]
            _save(folder, name, [np.array(tokens, dtype) for tokens, _ in made], digest)
            _save(folder, flags, [np.array(own, bool) for _, own in made], digest)
            done += sum(len(message["content"]) for chat in written for message in chat)
            report("tokens", done, total)
    if examples.vectors:
        _save(folder, "vectors", examples.vectors, digest)
    N, answers = len(examples), np.load(folder / "targets.npy")
    if examples.chats:
        answers = answers[np.load(folder / "learnt.npy")]
        count, size = len(answers), int(tokenizers.token_bytes(tokenizer)[answers].sum())
    else:
        count, size = len(answers) + N, sum(len(text.encode()) for text in examples.targets)
    fields = dict(kind=examples.kind, count=count, bytes=size, documents=N, eot=tokenizer.eot_token)
    return fields | {"sha256": digest.hexdigest()}


def _learnt(chats: ChatFormat, chat: Chat, where: str) -> tuple[list[int], list[bool]]:
    """The tokens of a chat, and which of them are the assistant's."""
    try:
        return chats.learnt(chat)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def _save(folder: Path, name: str, stretches: list[np.ndarray], digest) -> None:
    """Write a Ragged; the bytes are on the disk, not only on their way."""
    offsets = np.cumsum([0, *map(len, stretches)], dtype=np.int64)
    for called, array in ((name, np.concatenate(stretches)), (f"{name}_offsets", offsets)):
        digest.update(array.tobytes())
        with open(folder / f"{called}.npy", "wb") as file:
            np.save(file, array)
            file.flush()
            os.fsync(file.fileno())


def _open(folder: Path) -> PreparedExamples | None:
    """What was prepared in `folder`, or None when it is not there or not whole."""
    try:
        sidecar = json.loads((folder / "examples.json").read_text())
        parts = {}
        for part in ("train", "validation"):
            file = parts[part] = ExampleFile(path=folder / part, **sidecar[part])
            named = (file.sources, file.targets, file.rejected, file.vectors, file.learnt, file.rejected_learnt)
            arrays = [array for array in named if array is not None]
            if file.targets is None or any(
                len(array) != file.documents or array.offsets[-1] != len(array.flat) for array in arrays
            ):
                return None
        tokenizer, hashes = tokenizers.load(folder / "tokenizer.json"), sidecar["hashes"]
        same = tokenizers.digest(tokenizer) == hashes["tokenizer"]
        made = PreparedExamples(**parts, tokenizer=tokenizer, hashes=hashes, template=sidecar.get("template"))
        return made if same else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
