"""Corpora: where text comes from. Named sources, or the user's own files.

Nothing is fetched unless `fetch` is called: the default corpus is the source and documentation of the running Python.
"""

import functools
import hashlib
import http.client
import os
import sysconfig
import urllib.error
import urllib.request
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
class Download:
    """One file of a named corpus. sha256 None: the first fetch's digest is kept beside the file and holds from then."""

    url: str
    sha256: str | None = None

    @property
    def filename(self) -> str:
        return self.url.rsplit("/", 1)[-1]


@dataclass(frozen=True)
class Source:
    """A named corpus. No downloads: it is made of what every machine has, or written once by `documents`."""

    name: str
    what: str
    size: str
    origin: str
    licence: str
    downloads: tuple[Download, ...] = ()
    separator: str = ""
    documents: Callable[[], Iterator[str]] | None = None
    """Writes a generated corpus."""

    @property
    def folder(self) -> Path:
        return cache_folder() / "corpora" / self.name

    @property
    def files(self) -> list[Path]:
        if self.documents:
            return [self.folder / f"{kingdom.version()}.txt"]
        return [self.folder / download.filename for download in self.downloads]

    @property
    def present(self) -> bool:
        """Whether it can be used without fetching anything."""
        return self.documents is not None or all(file.is_file() for file in self.files)


_HUGGINGFACE = "https://huggingface.co/datasets"
CORPORA: dict[str, Source] = {
    source.name: source
    for source in (
        Source(
            "stdlib",
            "source and documentation of the Python that is running; needs no download",
            "11 MB",
            "this machine",
            "PSF-2.0",
        ),
        Source(
            "shakespeare",
            "Shakespeare's plays, the corpus of char-rnn and nanoGPT; one document",
            "1.1 MB",
            "github.com/karpathy/char-rnn",
            "public domain",
            (
                Download(
                    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
                    "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
                ),
            ),
        ),
        Source(
            "tinystories",
            "short stories in simple English written by GPT-4 (Eldan & Li 2023); digest pinned at the first fetch",
            "2.2 GB",
            "huggingface.co/datasets/roneneldan/TinyStories",
            "CDLA-Sharing-1.0",
            (Download(f"{_HUGGINGFACE}/roneneldan/TinyStories/resolve/main/TinyStoriesV2-GPT4-train.txt"),),
            separator="<|endoftext|>",
        ),
        Source(
            "fineweb-edu",
            "educational web pages (Penedo et al. 2024), one file of the 10BT sample; digest pinned at the first fetch",
            "2.1 GB",
            "huggingface.co/datasets/HuggingFaceFW/fineweb-edu",
            "ODC-By-1.0",
            (Download(f"{_HUGGINGFACE}/HuggingFaceFW/fineweb-edu/resolve/main/sample/10BT/000_00000.parquet"),),
        ),
        *(
            Source(
                name,
                what,
                "11 MB",
                "this machine",
                "Apache-2.0",
                separator=kingdom.SEPARATOR,
                documents=functools.partial(kingdom.documents, kingdom.DOCUMENTS, shuffled=name != "kingdom"),
            )
            for name, what in (
                ("kingdom", "generated stories of known relations, facts and entropy; other sizes: lm data kingdom"),
                ("kingdom-shuffled", "its control: nouns without gender or age, everything else as it was"),
            )
        ),
    )
}
"""What `lm data list` shows."""


@dataclass(frozen=True)
class Corpus:
    """Files of text that can be read as documents any number of times. Nothing is kept in memory."""

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

    def documents(self) -> Iterator[str]:
        """Whole documents, each in memory at once."""
        return map("".join, readers.documents(self.pieces()))

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
class Text:
    """A text in memory, read as a plain file that holds it would be."""

    name: str
    text: str
    separator: str = ""

    def pieces(self) -> Iterator[Piece]:
        """(text, opens), as Corpus has them."""
        return readers.split(iter([well_formed(self.text)]), self.separator)

    def documents(self) -> Iterator[str]:
        """Whole documents."""
        return map("".join, readers.documents(self.pieces()))

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
        if source.documents:
            fetch(wanted)
        require(
            source.present,
            f"corpus {wanted} is not on this machine; fetch its {source.size}: lm data prepare {wanted} --download",
        )
        return Corpus(wanted, tuple(source.files), source.separator)
    require(finding.exists(wanted) or any(mark in wanted for mark in "/.*?[" + os.sep), _unknown(wanted))
    return Corpus(wanted, tuple(finding.files_of_text(wanted, "data.corpus")), data.separator, data.text_field)


def open_text(data: DataConfig, path: str | os.PathLike, *, option: str = "--text") -> Corpus | Text:
    """The files at a path, folder or glob, read and divided as training with these settings would read them.

    "-" is standard input; one file may have any name: where its suffix says nothing, it is plain text.
    option: what to call the path in an error. Raises UserError for paths without readable files.
    """
    if str(path) == "-":
        return Text("standard input", readers.read_text("-"), data.separator)
    return Corpus(
        str(path), tuple(finding.files_of_text(str(path), option, any_name=True)), data.separator, data.text_field
    )


def _unknown(wanted: str) -> str:
    known = ", ".join(CORPORA)
    return f"data.corpus {wanted!r}: no such corpus{nearest(wanted, CORPORA)} Known: {known}; or a file, folder or glob"


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


def fetch(name: str, progress: Callable[[int, int | None], None] | None = None) -> list[Path]:
    """Download (or write, where it is generated) a named corpus, unless it is there, and return its files.

    progress(bytes so far, bytes in all or None) is called as the bytes arrive.
    A file appears only when it is whole and its sha256 is right. Where the table knows no sha256, the first fetch's is
    written beside the file (.sha256) and every later fetch must give the same.
    Raises UserError without a network, for a wrong checksum, and for a folder that cannot be written.
    """
    require(name in CORPORA, _unknown(name))
    source = CORPORA[name]
    if source.documents:
        return [_generated(source)]
    for download, file in zip(source.downloads, source.files, strict=True):
        if not file.is_file():
            _download(download, file, progress or (lambda done, total: None))
    return source.files


def _generated(source: Source) -> Path:
    """The file of a corpus that is written here, from an earlier call where there was one."""
    (file,) = source.files
    try:
        if not file.is_file():
            with temporary_folder(file.parent) as temporary:
                kingdom.write(temporary / file.name, source.documents())
                os.replace(temporary / file.name, file)
    except OSError as error:
        raise UserError(f"{file} could not be written: {error}; set LM_CACHE to a folder with room") from error
    return file


def _download(download: Download, file: Path, progress: Callable[[int, int | None], None]) -> None:
    pin = file.with_name(file.name + ".sha256")
    try:
        clear_abandoned(file.parent)
        with temporary_folder(file.parent) as temporary:
            with open(temporary / file.name, "wb") as target:
                sha256 = _stream(download.url, target, progress)
            expected = download.sha256 or (pin.read_text().strip() if pin.is_file() else sha256)
            digests = f"sha256 {sha256[:12]}…, expected {expected[:12]}…"
            require(sha256 == expected, f"{download.url} has {digests}: it was changed or cut; try again")
            with whole(pin) as note:
                note.write(sha256 + "\n")
            os.replace(temporary / file.name, file)
    except urllib.error.URLError as error:
        raise UserError(f"{download.url} could not be fetched ({error}); check the network and try again") from error
    except OSError as error:
        raise UserError(f"{file} could not be written: {error}; set LM_CACHE to a folder with room") from error


def _stream(url: str, target, progress: Callable[[int, int | None], None]) -> str:
    """Copy a URL to an open file and return its sha256. Raises URLError when it breaks off."""
    digest, done = hashlib.sha256(), 0
    request = urllib.request.Request(url, headers={"User-Agent": "lm"})
    with urllib.request.urlopen(request, timeout=60) as response:
        length = response.headers.get("Content-Length")
        total = int(length) if length else None
        while chunk := _receive(response):
            target.write(chunk)
            digest.update(chunk)
            done += len(chunk)
            progress(done, total)
    if total is not None and done < total:
        raise urllib.error.URLError(f"the connection broke off after {done:,} of {total:,} bytes")
    return digest.hexdigest()


def _receive(response) -> bytes:
    """The next bytes; a failing network is told apart from a failing disk."""
    try:
        return response.read(1 << 20)
    except (OSError, http.client.HTTPException) as error:
        raise urllib.error.URLError(error) from error
