"""Corpora: where text comes from. Named sources, or the user's own files.

Nothing is fetched unless `fetch` is called: the default corpus is the source and documentation of the running Python.
"""

import functools
import os
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lm.config import DataConfig
from lm.data import finding, kingdom, readers
from lm.data.readers import Piece
from lm.data.temporary import clear_abandoned, temporary_folder
from lm.errors import UserError, nearest, require
from lm.files import whole
from lm.tokenizer import well_formed


@dataclass(frozen=True)
class Source:
    """A named corpus: fetched from `url`, written once by `documents`, or made of what every machine has."""

    name: str
    what: str
    size: str
    origin: str
    licence: str
    url: str | None = None
    sha256: str | None = None
    """Digest of the file at `url`; None: the first fetch's is kept beside the file and holds from then."""
    separator: str = ""
    documents: Callable[[], Iterator[str]] | None = None
    """Writes a generated corpus."""

    @property
    def file(self) -> Path | None:
        """Where its text is kept, once it is there; None for the standard library."""
        name = f"{kingdom.version()}.txt" if self.documents else self.url and self.url.rsplit("/", 1)[-1]
        return cache_folder() / "corpora" / self.name / name if name else None

    @property
    def present(self) -> bool:
        """Whether it can be used without fetching anything."""
        return self.url is None or self.file.is_file()


_HUGGINGFACE = "https://huggingface.co/datasets"
_KINGDOMS = {
    "kingdom": "generated stories of known relations, facts and entropy; other sizes: lm data kingdom",
    "kingdom-shuffled": "its control: nouns without gender or age, everything else as it was",
}
_SOURCES = (
    Source(
        name="stdlib",
        what="source and documentation of the Python that is running; needs no download",
        size="11 MB", origin="this machine", licence="PSF-2.0",
    ),
    Source(
        name="shakespeare",
        what="Shakespeare's plays, the corpus of char-rnn and nanoGPT; one document",
        size="1.1 MB", origin="github.com/karpathy/char-rnn", licence="public domain",
        url="https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
        sha256="86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
    ),
    Source(
        name="tinystories",
        what="short stories in simple English written by GPT-4 (Eldan & Li 2023); digest pinned at the first fetch",
        size="2.2 GB", origin="huggingface.co/datasets/roneneldan/TinyStories", licence="CDLA-Sharing-1.0",
        url=f"{_HUGGINGFACE}/roneneldan/TinyStories/resolve/main/TinyStoriesV2-GPT4-train.txt",
        separator="<|endoftext|>",
    ),
    Source(
        name="fineweb-edu",
        what="educational web pages (Penedo et al. 2024), a file of the 10BT sample; digest pinned at the first fetch",
        size="2.1 GB", origin="huggingface.co/datasets/HuggingFaceFW/fineweb-edu", licence="ODC-By-1.0",
        url=f"{_HUGGINGFACE}/HuggingFaceFW/fineweb-edu/resolve/main/sample/10BT/000_00000.parquet",
    ),
    *(
        Source(
            name=name, what=what, size="11 MB", origin="this machine", licence="Apache-2.0",
            separator=kingdom.SEPARATOR,
            documents=functools.partial(kingdom.documents, kingdom.DOCUMENTS, shuffled=name != "kingdom"),
        )
        for name, what in _KINGDOMS.items()
    ),
)  # fmt: skip
CORPORA: dict[str, Source] = {source.name: source for source in _SOURCES}
"""What `lm data list` shows."""


class _Documents:
    """Text that is read as documents any number of times."""

    def documents(self) -> Iterator[str]:
        """Whole documents, each in memory at once."""
        return map("".join, readers.documents(self.pieces()))


@dataclass(frozen=True)
class Corpus(_Documents):
    """Files of text. Nothing is kept in memory."""

    name: str
    files: tuple[Path, ...]
    separator: str = ""
    text_field: str = "text"
    skip_binary: bool = False
    """Leave out files that are not UTF-8 text, instead of refusing them."""

    def pieces(self) -> Iterator[Piece]:
        """(text, opens): documents in pieces of at most a million characters; `opens` marks a document's first."""
        for file in self.files:
            pieces = readers.read(file, separator=self.separator, text_field=self.text_field)
            yield from _all_or_nothing(pieces) if self.skip_binary else pieces

    @property
    def size(self) -> int | None:
        """Bytes to read, or None where decompressing or parsing makes that another number than the text's."""
        plain = all(file.suffix.lower() not in (*readers.COMPRESSED, *readers.RECORDS) for file in self.files)
        return sum(size for _, size, _ in self.manifest()) if plain else None

    def manifest(self) -> list[tuple[str, int, int]]:
        """(path, bytes, mtime_ns) of every file: unchanged manifest, unchanged text."""
        stats = [(file, file.stat()) for file in self.files]
        return [(str(file), stat.st_size, stat.st_mtime_ns) for file, stat in stats]


@dataclass(frozen=True)
class Text(_Documents):
    """A text in memory, read as a plain file that holds it would be."""

    name: str
    text: str
    separator: str = ""

    def pieces(self) -> Iterator[Piece]:
        """(text, opens), as Corpus has them."""
        return readers.split(iter([well_formed(self.text)]), self.separator)

    @property
    def size(self) -> int:
        """Bytes of UTF-8."""
        return len(well_formed(self.text).encode())


def _all_or_nothing(pieces: Iterator[Piece]) -> list[Piece]:
    """A small file's pieces, none of them when it is not text."""
    try:
        return list(pieces)
    except UserError:
        return []


# --- open ------------------------------------------------------------------------------------------------------------
def open_corpus(data: DataConfig, corpus: str | None = None) -> Corpus:
    """The corpus that `data.corpus` (or `corpus`) names, or the files at that path, folder or glob.

    Raises UserError for unknown names, sources that were not fetched yet, and paths without readable files.
    """
    wanted = data.corpus if corpus is None else corpus
    if wanted == "stdlib":
        return Corpus("stdlib", tuple(_stdlib_files()), skip_binary=True)
    if wanted in CORPORA:
        source = CORPORA[wanted]
        get = f"fetch its {source.size}: lm data prepare {wanted} --download"
        require(source.present, f"corpus {wanted} is not on this machine; {get}")
        return Corpus(wanted, (fetch(wanted),), source.separator)
    is_path = os.path.exists(os.path.expanduser(wanted)) or any(mark in wanted for mark in "/.*?[" + os.sep)
    require(is_path, _unknown(wanted))
    return _files(data, wanted, "data.corpus")


def open_text(data: DataConfig, path: str | os.PathLike, *, option: str = "--text") -> Corpus | Text:
    """The files at a path, folder or glob, read and divided as training with these settings would read them.

    "-" is standard input; one file may have any name: where its suffix says nothing, it is plain text.
    option: what to call the path in an error. Raises UserError for paths without readable files.
    """
    if str(path) == "-":
        return Text("standard input", readers.read_text("-"), data.separator)
    return _files(data, str(path), option, any_name=True)


def _files(data: DataConfig, path: str, option: str, **options) -> Corpus:
    return Corpus(path, tuple(finding.files_of_text(path, option, **options)), data.separator, data.text_field)


def _unknown(wanted: str) -> str:
    known = f"known: {', '.join(CORPORA)}; or a file, folder or glob"
    return f"data.corpus {wanted!r}: no such corpus{nearest(wanted, CORPORA)} ({known})"


_NOT_STDLIB = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}


def _stdlib_files() -> list[Path]:
    """Python's own .py, .rst and .txt files: the same for two identical Pythons, whatever is installed in them."""
    root = Path(sysconfig.get_path("stdlib"))
    files = []
    for folder, folders, names in os.walk(root):
        # config-* and _sysconfigdata* hold the paths of the machine Python was built on; sites write sitecustomize.
        folders[:] = [name for name in folders if name not in _NOT_STDLIB and not name.startswith("config-")]
        for name in names:
            local = name.startswith(("_sysconfigdata", "sitecustomize", "usercustomize"))
            if name.endswith((".py", ".rst", ".txt")) and not local:
                files.append(Path(folder, name))
    return sorted(files, key=lambda file: file.relative_to(root).parts)


# --- fetch -----------------------------------------------------------------------------------------------------------
def cache_folder() -> Path:
    """Where fetched corpora and prepared tokens are kept: $LM_CACHE, else $XDG_CACHE_HOME/lm, else ~/.cache/lm."""
    if own := os.environ.get("LM_CACHE"):
        return Path(os.path.expanduser(own))
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared) / "lm"
    home = os.path.expanduser("~")
    require(home != "~", "this user has no home folder to keep tokens and programs in; set LM_CACHE to a folder")
    return Path(home) / ".cache" / "lm"


Progress = Callable[[int, int | None], None]
"""progress(bytes so far, bytes in all or None)"""


def fetch(name: str, progress: Progress | None = None) -> Path | None:
    """Download (or write, where it is generated) a named corpus, unless it is there, and return its file.

    The standard library is there already, and is no single file: None.

    progress: called as the bytes arrive.
    A file appears only when it is whole and its sha256 is right. Where the table knows no sha256, the first fetch's is
    written beside the file (.sha256) and every later fetch must give the same.
    Raises UserError without a network, for a wrong checksum, and for a folder that cannot be written.
    """
    require(name in CORPORA, _unknown(name))
    source = CORPORA[name]
    file = source.file
    if file is None or file.is_file():
        return file
    try:
        clear_abandoned(file.parent)
        with temporary_folder(file.parent) as temporary:
            if source.documents:
                kingdom.write(temporary / file.name, source.documents())
            else:
                _download(source, temporary / file.name, progress or (lambda done, total: None))
            os.replace(temporary / file.name, file)
    except OSError as error:
        raise UserError(f"{file} could not be written: {error}; set LM_CACHE to a folder with room") from error
    return file


class _Bar:
    """What pooch takes for a bar of progress."""

    def __init__(self, progress: Progress):
        self.progress, self.done, self.total = progress, 0, 0

    def update(self, size: int) -> None:
        self.done += size
        self.progress(min(self.done, self.total or self.done), self.total or None)

    def reset(self) -> None:
        """Pooch counts whole chunks, and corrects itself at the end where it knows the size."""
        self.done = 0 if self.total else self.done

    def close(self) -> None:
        pass


def _download(source: Source, target: Path, progress: Progress) -> None:
    """Fetch a corpus to `target`, and check its digest."""
    import pooch
    import requests

    pooch.get_logger().setLevel("WARNING")
    headers = {"User-Agent": "lm", "Accept-Encoding": "identity"}  # so that bytes are counted as they are kept
    get = pooch.HTTPDownloader(progressbar=_Bar(progress), chunk_size=1 << 20, timeout=60, headers=headers)
    try:
        pooch.retrieve(source.url, known_hash=None, fname=target.name, path=target.parent, downloader=get)
    except requests.RequestException as error:
        raise UserError(f"{source.url} could not be fetched ({error}); check the network and try again") from error
    sha256, pin = pooch.file_hash(target), source.file.with_name(source.file.name + ".sha256")
    expected = source.sha256 or (pin.read_text().strip() if pin.is_file() else sha256)
    digests = f"sha256 {sha256[:12]}…, expected {expected[:12]}…"
    require(sha256 == expected, f"{source.url} has {digests}: it was changed or cut; try again")
    with whole(pin) as note:
        note.write(sha256 + "\n")
