"""Every kind of file reads as the same documents, in bounded pieces; what cannot be read is refused by name."""

import functools
import gzip
import hashlib
import http.server
import itertools
import json
import lzma
import os
import random
import re
import sysconfig
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lm.config import DataConfig
from lm.data import corpora, readers
from lm.data.corpora import CORPORA, open_corpus
from lm.errors import UserError

DOCUMENTS = ["One.\nTwo.\n", "naïve – 東京 🙂\n", "last, without a line's end"]
SEPARATOR = "<|endoftext|>"


def documents(path, **settings):
    return list(open_corpus(DataConfig(corpus=str(path), **settings)).documents())


# --- the same documents from every kind of file ----------------------------------------------------------------------
def zstd(data):
    return pytest.importorskip("zstandard").compress(data)


COMPRESSORS = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress, ".zst": zstd}


@pytest.mark.parametrize("packed", COMPRESSORS)
@pytest.mark.parametrize("kind", [".txt", ".md", ".jsonl"])
def test_every_format_gives_the_same_documents(kind, packed, tmp_path):
    if kind == ".jsonl":
        text = "".join(json.dumps({"id": 1, "text": text}) + "\n" for text in DOCUMENTS)
    else:
        text = f"{SEPARATOR}\n".join(DOCUMENTS[:2]) + SEPARATOR + DOCUMENTS[2]
    path = tmp_path / f"a{kind}{packed}"
    path.write_bytes(COMPRESSORS[packed](text.encode()))
    assert documents(path) == DOCUMENTS


def test_parquet_gives_the_same_documents(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table({"body": [*DOCUMENTS[:1], None, *DOCUMENTS[1:]], "id": [1, 2, 3, 4]})
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    assert documents(tmp_path / "a.parquet", text_field="body") == DOCUMENTS
    with pytest.raises(UserError, match=r"a\.parquet: no field 'text' among body, id; set --data\.text-field"):
        documents(tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"field 'id' is int64, not text"):
        documents(tmp_path / "a.parquet", text_field="id")


@pytest.mark.parametrize("kind", ["string", "large_string", "string_view", "dictionary", "large dictionary", "nested"])
def test_every_parquet_column_of_text_is_read(kind, tmp_path):
    """Categories are dictionaries; a field within records is named by its path."""
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    text = pyarrow.array([*DOCUMENTS[:2], None, DOCUMENTS[2]])
    types = {
        "large_string": pyarrow.large_string(),
        "string_view": pyarrow.string_view(),
        "dictionary": pyarrow.dictionary(pyarrow.int32(), pyarrow.string()),
        "large dictionary": pyarrow.dictionary(pyarrow.int32(), pyarrow.large_string()),
    }
    text = text.cast(types[kind]) if kind in types else text
    column = pyarrow.StructArray.from_arrays([text], ["body"]) if kind == "nested" else text
    parquet.write_table(pyarrow.table({"meta": column}), tmp_path / "a.parquet")
    assert documents(tmp_path, text_field="meta.body" if kind == "nested" else "meta") == DOCUMENTS


def test_a_field_within_records_is_named_by_its_path(tmp_path):
    records = [{"id": i, "meta": {"deep": {"text": text}}} for i, text in enumerate(DOCUMENTS)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    assert documents(tmp_path, text_field="meta.deep.text") == DOCUMENTS
    with pytest.raises(UserError, match=r"no field 'text' among id, meta\.deep; set --data\.text-field"):
        documents(tmp_path)
    (tmp_path / "a.jsonl").write_text('{"a.b": "by its own name", "a": {"b": "by its path"}}')
    assert documents(tmp_path, text_field="a.b") == ["by its own name"]


def test_a_line_of_json_ends_where_json_lines_end(tmp_path):
    """U+2028 and its like end no line of a .jsonl file, though str.splitlines says so."""
    text = "one\u2028two\u0085three\x0cfour"
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": text}, ensure_ascii=False) + "\r\n", newline="")
    assert documents(tmp_path) == [text]


def test_several_zstd_frames_are_one_file(tmp_path):
    (tmp_path / "a.txt.zst").write_bytes(zstd(b"first, ") + zstd(b"second"))
    assert documents(tmp_path / "a.txt.zst") == ["first, second"]


def test_a_byte_order_mark_is_not_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfhello")
    (tmp_path / "b.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "world"}')
    assert documents(tmp_path) == ["hello", "world"]


# --- separators ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\n<|>\nb\n", ["a\n", "b\n"]),  # alone on its line: takes the line's end
        ("a\r\n<|>\r\nb", ["a\r\n", "b"]),
        ("a<|>b", ["a", "b"]),
        ("a<|>\nb", ["a", "\nb"]),  # not alone: the line's end is text
        ("<|>\na\n<|>\n\n<|>\nb<|>", ["a\n", "b"]),  # blank documents are dropped
        (" \n\t", []),
        ("no separator", ["no separator"]),
    ],
)
def test_where_documents_divide(text, expected):
    assert list(readers.split(iter([text]), "<|>")) == [(document, True) for document in expected]


@settings(deadline=None)
@given(
    parts=st.lists(st.sampled_from(["<|>", "<", "|>", "\n", "\r\n", "\r", "a", "bcd", " "]), max_size=30),
    cuts=st.lists(st.integers(0, 60), max_size=20),
    size=st.integers(1, 7),
    separator=st.sampled_from(["<|>", ""]),
)
@example(parts=["a\n<|>\r\nb"], cuts=[5], size=7, separator="<|>")  # the line's end comes after the separator,
@example(parts=["a\n<|>\r\nb"], cuts=[6], size=7, separator="<|>")  # or half of it does
def test_streaming_equals_whole(parts, cuts, size, separator):
    """Wherever the stream is chopped, the pieces are the same, and join to the same documents."""
    text = "".join(parts)
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    chunks = [text[a:b] for a, b in itertools.pairwise(edges)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "PIECE", size)
        whole, streamed = (list(readers.split(iter(source), separator)) for source in ([text], chunks))
    assert streamed == whole
    assert all(0 < len(piece) <= size for piece, _ in whole)


@settings(deadline=None)
@given(st.lists(st.sampled_from(["<|>", "<", "|>", "\n", "\r\n", "\r", "a", "bcd", " "]), max_size=30).map("".join))
def test_documents_are_what_a_regular_expression_says(text):
    expected = [part for part in re.split(r"(?m:^)<\|>(?:\r?\n)?|<\|>", text) if part.strip()]
    assert list(readers.split(iter([text]), "<|>")) == [(document, True) for document in expected]


def test_no_separator_makes_a_file_one_document(tmp_path):
    (tmp_path / "a.txt").write_text(f"x{SEPARATOR}y")
    assert documents(tmp_path / "a.txt", separator="") == [f"x{SEPARATOR}y"]


def test_a_large_document_comes_in_pieces(tmp_path):
    text = "0123456789" * 250_000
    (tmp_path / "a.txt").write_text(text)
    pieces = list(open_corpus(DataConfig(corpus=str(tmp_path))).pieces())
    assert [opens for _, opens in pieces] == [True, False, False]
    assert max(len(piece) for piece, _ in pieces) == readers.PIECE
    assert documents(tmp_path) == [text]


# --- which files -----------------------------------------------------------------------------------------------------
def test_folders_and_globs_take_supported_files_in_order(tmp_path):
    for name in ("b.txt", "a/z.md", "a/.hidden.txt", ".git/x.txt", "a/image.png", "c.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    assert documents(tmp_path) == ["a/z.md", "b.txt", "c.py"]
    assert documents(tmp_path / "*.txt") == ["b.txt"]
    assert documents(tmp_path / "**/*.md") == ["a/z.md"]


def test_linked_folders_are_read_once_and_circles_end(tmp_path, capsys):
    """What is left out is said, with the reason."""
    for name in ("corpus/real/a.txt", "elsewhere/b.txt", "corpus/picture.png", "corpus/.hidden/c.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    links = {"linked": "../elsewhere", "again": "real", "real/circle": "..", "gone.txt": "nowhere"}
    for name, target in links.items():
        (tmp_path / "corpus" / name).symlink_to(target)
    os.mkfifo(tmp_path / "corpus/pipe.txt")
    assert documents(tmp_path / "corpus") == ["elsewhere/b.txt", "corpus/real/a.txt"]
    for glob in ("corpus/**", "corpus/**/*.txt", "corpus/[rl]*", "*/**/?.txt"):
        assert sorted(documents(tmp_path / glob)) == ["corpus/real/a.txt", "elsewhere/b.txt"]
    said = capsys.readouterr().err
    for part in (
        "1 hidden (.hidden)", "1 broken links (gone.txt)", "1 pipes and devices (pipe.txt)",
        "1 files of other kinds (picture.png)", "2 links to folders that are read already",
    ):  # fmt: skip
        assert part in said
    documents(tmp_path / "corpus")
    assert not capsys.readouterr().err, "once a process"


def test_documents_can_be_read_again_and_the_manifest_tells_a_change(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    corpus = open_corpus(DataConfig(corpus=str(tmp_path)))
    assert list(corpus.documents()) == list(corpus.documents()) == ["one"]
    before = corpus.manifest()
    assert before == corpus.manifest() and before[0][:2] == (str(tmp_path / "a.txt"), 3)
    (tmp_path / "a.txt").write_text("other")
    assert corpus.manifest() != before


def test_the_standard_library_is_python_alone(tmp_path, monkeypatch):
    """Whatever is installed, tested, compiled or configured on this machine does not count."""
    wanted = ["LICENSE.txt", "abc.py", "json/__init__.py"]
    others = [
        "site-packages/x.py", "dist-packages/x.py", "test/x.py", "json/tests/x.py", "idlelib/idle_test/x.py",
        "__pycache__/x.py", "config-3.11/x.py", "_sysconfigdata_x.py", "sitecustomize.py", "x.so",
    ]  # fmt: skip
    for name in wanted + others:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "latin.py").write_bytes("# -*- coding: latin-1 -*-\nx = 'é'".encode("latin-1"))
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    assert list(open_corpus(DataConfig(corpus="stdlib")).documents()) == wanted


def test_the_standard_library_of_this_python():
    corpus = open_corpus(DataConfig())
    assert corpus.name == "stdlib"
    assert 5e6 < sum(size for _, size, _ in corpus.manifest()) < 30e6


# --- what is refused -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("corpus", "message"),
    [
        ("shakespear", "no such corpus; did you mean shakespeare?"),
        ("missing/a.txt", "data.corpus missing/a.txt: no such file or folder"),
        ("missing/*.txt", "data.corpus missing/*.txt: no files match"),
        ("shakespeare", "not on this machine; fetch its 1.1 MB: lm data prepare shakespeare --download"),
    ],
)
def test_unknown_corpora_are_refused(corpus, message):
    with pytest.raises(UserError, match=re.escape(message)):
        open_corpus(DataConfig(corpus=corpus))


def test_folders_and_files_without_text_are_refused(tmp_path):
    with pytest.raises(UserError, match="no text files in this folder"):
        open_corpus(DataConfig(corpus=str(tmp_path)))
    for name in ("a.docx", "a.parquet.gz", "a.gz"):
        (tmp_path / name).write_text("x")
        with pytest.raises(UserError, match=rf"{name}: cannot read this kind of file; one of \.txt"):
            open_corpus(DataConfig(corpus=str(tmp_path / name)))
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(UserError, match="nothing but empty files"):
        open_corpus(DataConfig(corpus=str(tmp_path / "a.txt")))


PADDING = readers.CHUNK - 1  # the fault, or the character it is in, straddles two chunks


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"text\x00more", "a.txt is not text: a NUL byte at offset 4"),
        ("a.txt", b"x" * PADDING + b"\xe2\x82x", f"a.txt is not UTF-8 text: byte 0xe2 at offset {PADDING}"),
        ("a.txt", b"cut \xe2\x82", "a.txt is not UTF-8 text: byte 0xe2 at offset 4"),
        ("a.txt.gz", gzip.compress(b"hello" * 99, mtime=0)[:-9], "a.txt.gz is damaged"),
        ("a.txt.gz", b"not compressed", "a.txt.gz is damaged"),
        ("a.txt.xz", lzma.compress(b"hello" * 99)[:-9], "a.txt.xz is damaged"),
        (
            "a.jsonl",
            b'{"text": "x"}\n{"body": "y", "id": 1}',
            "a.jsonl, line 2: no field 'text' among body, id; set --da",
        ),
        ("a.jsonl", b'\n{"text": "x"', "a.jsonl, line 2: not JSON"),
        ("a.jsonl", b'["x"]', "a.jsonl, line 1: expected a JSON object"),
        ("a.jsonl", b'{"text": 3}', "a.jsonl, line 1: field 'text' is int, not text"),
        ("a.jsonl", b'{"text": "x"}\n{"text": "\xff"}', "a.jsonl is not UTF-8 text: line 2, offset 24"),
        ("a.jsonl", b'{"text": ' + b"[" * 200_000, "a.jsonl, line 1: not JSON (maximum recursion depth"),
        ("a.jsonl", b'{"text": {"x": 1}}', "a.jsonl, line 1: field 'text' is dict, not text"),
        ("a.jsonl", json.dumps({"x" * 90 + str(i): i for i in range(9)}).encode(), "...; set --data.text-field"),
        ("a.parquet", b"not parquet", "a.parquet is not a parquet file"),
    ],
)
def test_binary_and_damaged_files_are_refused(name, content, message, tmp_path):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=re.escape(message)):
        documents(tmp_path)


@pytest.mark.parametrize("packed", [".gz", ".xz", ".zst"])
def test_a_flipped_bit_is_refused_or_changes_nothing(packed, tmp_path):
    """Each byte of a packed file damaged in turn: one sentence, whatever its library raises, or the same text."""
    rng, path = random.Random(0), tmp_path / f"a.txt{packed}"
    text = "".join(rng.choice("abcdefgh \n") for _ in range(300))
    whole = COMPRESSORS[packed](text.encode())
    refused = 0
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes((whole[place] ^ 1 << rng.randrange(8),)) + whole[place + 1 :])
        try:
            read = "".join(readers.read_text(path))
        except UserError as error:
            assert str(path) in str(error)
            refused += 1
        else:
            assert read == text or packed == ".zst"  # which has no checksum here
    assert refused > len(whole) // 2 or packed == ".zst"


def test_parquet_with_text_that_is_not_utf_8_names_the_row(tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    offsets, values = pyarrow.py_buffer(np.array([0, 2, 4], np.int32)), pyarrow.py_buffer(b"ok\xff\xfe")
    column = pyarrow.StringArray.from_buffers(2, offsets, values)
    parquet.write_table(pyarrow.table({"text": column}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a\.parquet is not UTF-8 text: row 2, byte 0"):
        documents(tmp_path)


def test_a_line_that_is_too_long_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "LINE", 1 << 20)
    (tmp_path / "a.jsonl").write_text('{"text": "' + "x" * (1 << 20) + '"}')
    with pytest.raises(UserError, match="line 1 is longer than 1 MiB"):
        documents(tmp_path)


@pytest.mark.parametrize("content", [zstd(b"hello" * 99)[:-3], b"not compressed"])
def test_damaged_zstd_is_refused(content, tmp_path):
    (tmp_path / "a.txt.zst").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.txt\.zst is damaged"):
        documents(tmp_path)


# --- fetching --------------------------------------------------------------------------------------------------------
@pytest.fixture
def shakespeare(tmp_path, monkeypatch):
    """The corpus `shakespeare` on a server of one's own, with a sha256 that a test chooses."""
    origin = tmp_path / "served" / "input.txt"
    origin.parent.mkdir()
    origin.write_bytes(b"First Citizen:\n")
    handler = functools.partial(Quiet, directory=origin.parent)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    def at(sha256):
        url = f"http://127.0.0.1:{server.server_port}/input.txt"
        monkeypatch.setitem(CORPORA, "shakespeare", replace(CORPORA["shakespeare"], url=url, sha256=sha256))
        return origin

    yield at
    server.shutdown()
    server.server_close()


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files without a word; of one that is called cut it promises more than there is."""

    def log_message(self, *_):
        pass

    def send_header(self, keyword, value):
        if keyword == "Content-Length" and (Path(self.directory) / "cut").exists():
            value = str(int(value) + 100)
        super().send_header(keyword, value)


def files_in(folder):
    return sorted(file.name for file in Path(folder).rglob("*") if file.is_file())


def test_fetch_checks_and_keeps_a_corpus(shakespeare):
    shakespeare(hashlib.sha256(b"First Citizen:\n").hexdigest())
    seen = []
    file = corpora.fetch("shakespeare", lambda done, total: seen.append((done, total)))
    assert seen[-1] == (15, 15)
    assert file == CORPORA["shakespeare"].file
    assert documents("shakespeare") == ["First Citizen:\n"]


def test_a_wrong_checksum_leaves_nothing(shakespeare):
    shakespeare("0" * 64)
    with pytest.raises(UserError, match="expected 000000000000…"):
        corpora.fetch("shakespeare")
    assert files_in(corpora.cache_folder()) == []


def test_without_a_known_checksum_the_first_fetch_sets_it(shakespeare):
    origin = shakespeare(None)
    file = corpora.fetch("shakespeare")
    file.unlink()
    origin.write_bytes(b"Second Citizen:\n")
    with pytest.raises(UserError, match="it was changed or cut"):
        corpora.fetch("shakespeare")
    assert not file.exists()


def test_an_unreachable_source_says_so(shakespeare):
    shakespeare(None).unlink()
    with pytest.raises(UserError, match=r"could not be fetched .*check the network"):
        corpora.fetch("shakespeare")
    assert files_in(corpora.cache_folder()) == []


def test_a_connection_that_breaks_off_says_so(shakespeare):
    """And leaves nothing; a server that is not there says the same."""
    (shakespeare(None).parent / "cut").touch()
    with pytest.raises(UserError, match=r"could not be fetched .*check the network"):
        corpora.fetch("shakespeare")
    assert files_in(corpora.cache_folder()) == []
    CORPORA["shakespeare"] = replace(CORPORA["shakespeare"], url="http://127.0.0.1:9/input.txt")  # put back at the end
    with pytest.raises(UserError, match=r"127.0.0.1.*could not be fetched .*check the network"):
        corpora.fetch("shakespeare")


def test_where_the_cache_is(monkeypatch):
    monkeypatch.setenv("LM_CACHE", "/here")
    monkeypatch.setenv("XDG_CACHE_HOME", "/there")
    assert corpora.cache_folder() == Path("/here")
    monkeypatch.delenv("LM_CACHE")
    assert corpora.cache_folder() == Path("/there/lm")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert corpora.cache_folder() == Path.home() / ".cache/lm"
