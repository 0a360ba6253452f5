"""Examples come back from files as they were written, what shows the same stays on one side, and only answers count."""

import csv
import gzip
import json
import lzma
import zipfile
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from killed import kill

from lm.config import DataConfig
from lm.data import (
    ExampleBatches,
    lay_out_examples,
    patches,
    prepare_examples,
    read_examples,
    validation_rows,
)
from lm.data.examples import _open
from lm.errors import UserError

IN_A_FOLDER = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=9).filter(
    str.strip
)
LINE = TEXT.map(lambda text: "".join(c for c in text if c not in "\t\r\n")).filter(str.strip)
FIELDS = {
    "source/target": ("source", "target"),
    "prompt/completion": ("prompt", "completion"),
    "text/label": ("text", "label"),
    "chosen/rejected": ("prompt", "chosen", "rejected"),
}


# --- writing the files, each by its own library ----------------------------------------------------------------------
def write_tsv(path, names, rows):
    path.write_text("".join("\t".join(row) + "\n" for row in [names, *rows]), newline="")


def write_csv(path, names, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([names, *rows])


def write_jsonl(path, names, rows):
    path.write_text("".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows))


def write_parquet(path, names, rows):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    columns = list(zip(*rows, strict=True)) or [()] * len(names)
    table = pyarrow.table(dict(zip(names, map(list, columns), strict=True)))
    parquet.write_table(table, path, row_group_size=3)


WRITERS = {"tsv": write_tsv, "csv": write_csv, "jsonl": write_jsonl, "parquet": write_parquet}
PACKERS = {"gz": gzip.compress, "xz": lzma.compress, "zst": zstandard.compress}


def pairs(path, rows, names=("source", "target")):
    """A file of rows, written by what its suffix says."""
    WRITERS[path.suffix[1:]](path, names, rows)
    return path


# --- reading ---------------------------------------------------------------------------------------------------------
@IN_A_FOLDER
@given(data=st.data(), kind=st.sampled_from(sorted(FIELDS)), suffix=st.sampled_from(sorted(WRITERS)))
def test_rows_come_back_as_they_were_written(data, kind, suffix, tmp_path):
    """Whatever is in them, in any order of the columns, beside a column that is left alone."""
    fields = FIELDS[kind]
    row = st.tuples(*[LINE if suffix == "tsv" else TEXT] * (len(fields) + 1))
    rows = data.draw(st.lists(row, min_size=1, max_size=7))
    order = data.draw(st.permutations(range(len(fields) + 1)))
    names = [(*fields, "other")[i] for i in order]
    found = read_examples(pairs(tmp_path / f"a.{suffix}", [[row[i] for i in order] for row in rows], names))
    assert found.kind == kind
    columns = [list(column) for column in zip(*rows, strict=True)]
    assert found.sources == columns[0] and found.targets == columns[1]
    assert found.rejected == (columns[2] if kind == "chosen/rejected" else [])


@pytest.mark.parametrize("suffix", ["tsv", "csv", "jsonl"])
@pytest.mark.parametrize("packed", sorted(PACKERS))
def test_packed_files_are_read_like_plain_ones(suffix, packed, tmp_path):
    plain = pairs(tmp_path / f"a.{suffix}", [("ein Löwe", "a lion"), ("zwei", "two")])
    path = tmp_path / f"b.{suffix}.{packed}"
    path.write_bytes(PACKERS[packed](plain.read_bytes()))
    assert vars(read_examples(path)) == vars(read_examples(plain)) | {"name": str(path)}


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("attribution", [[], ["CC-BY 2.0"]])
@pytest.mark.parametrize("suffix", ["tsv", "csv"])
def test_tables_without_names_are_pairs(end, mark, attribution, suffix, tmp_path):
    """With or without a third column; blank lines are none, and of tabs quotes are characters."""
    between = "\t" if suffix == "tsv" else ","
    lines = [between.join([a, b, *attribution]) for a, b in [("Go.", "Va !"), ("Hi.", "Salut !")]]
    (tmp_path / f"a.{suffix}").write_text(mark + end.join([*lines[:1], "", *lines[1:]]) + end, newline="")
    found = read_examples(tmp_path / f"a.{suffix}")
    assert (found.kind, found.sources, found.targets) == ("source/target", ["Go.", "Hi."], ["Va !", "Salut !"])
    (tmp_path / "q.tsv").write_text('He said "no".\t"non"\n')
    found = read_examples(tmp_path / "q.tsv")
    assert (found.sources, found.targets) == (['He said "no".'], ['"non"'])


def test_long_cells_and_names_of_any_case(tmp_path):
    long = "many words, " * 20_000
    found = read_examples(pairs(tmp_path / "a.csv", [(long, "yes")], [" Text", "LABEL "]))
    assert (found.kind, found.sources) == ("text/label", [long])


def test_labels_that_are_numbers_become_text(tmp_path):
    rows = [("a", 3), ("b", True), ("c", 0.5), ("d", "x")]
    found = read_examples(pairs(tmp_path / "a.jsonl", rows, ("text", "label")))
    assert found.targets == ["3", "true", "0.5", "x"]
    for labels, wanted in (([7, -1], ["7", "-1"]), ([True, False], ["true", "false"])):
        path = pairs(tmp_path / "a.parquet", list(zip("ab", labels, strict=True)), ("text", "label"))
        assert read_examples(path).targets == wanted
        np.savez(tmp_path / "a.npz", images=np.ones((2, 1, 1)), labels=np.array(labels))
        assert read_examples(tmp_path / "a.npz").targets == wanted


REFUSED = {
    "few.tsv": ("a\tb\nc\n", r"few\.tsv, row 2: 1 column, the first row has 2"),
    "many.tsv": ("a\tb\nc\td\te\n", r"row 2: 3 columns, the first row has 2"),
    "comma.csv": ("text,label\nwell, well,good\n", r"row 2: 3 columns, the first row has 2"),
    "one.csv": ("hello\n", r"row 1: 1 column; expected source and target, or a first row with the names"),
    "wide.tsv": ("a\tb\tc\td\n", r"row 1: 4 columns; expected source and target"),
    "half.csv": ("text,klass\na,b\n", r"row 1: text but no label among the fields text, klass"),
    "other.csv": ("id,completion\na,b\n", r"row 1: completion but no prompt among the fields id, completion"),
    "two.csv": ("text,label,source,target\na,b,c,d\n", r"row 1: the fields of source/target and of text/label"),
    "twice.csv": ("text,text,label\na,b,c\n", r"row 1: 2 fields are called text"),
    "quote.csv": ('a,"b\nc,d\n', r"quote\.csv, line 2: not CSV \(unexpected end of data\)"),
    "target.tsv": ("a\tb\n\nc\t \n", r"row 3: target is blank; nothing to learn"),
    "source.tsv": ("a\tb\n\tc\n", r"row 2: source is blank; a text that answers nothing is no example: learn it as a"),
    "names.tsv": ("source\ttarget\n\n", r"names\.tsv: no examples in it"),
    "empty.csv": ("", r"empty\.csv: no examples in it"),
    "empty.jsonl": ("\n", r"empty\.jsonl: no examples in it"),
    "no.jsonl": ('{"a": 1, "b": 2}\n', r"row 1: no examples among the fields a, b; expected source and target; prompt"),
    "none.jsonl": ("{}\n", r"row 1: no examples among the fields none"),
    "again.jsonl": ('{"text": "a", "label": "b", "label": "c"}\n', r"line 1: not JSON \(a field is there twice\)"),
    "list.jsonl": ("[1]\n", r"line 1: expected a JSON object"),
    "json.jsonl": ('{"source": "a", "target": "b"}\n{"source"\n', r"line 2: not JSON"),
    "null.jsonl": ('{"text": null, "label": 1}\n', r"row 1: text is empty \(null\)"),
    "label.jsonl": ('{"text": "a", "label": null}\n', r"row 1: label is empty \(null\)"),
    "nan.jsonl": ('{"text": "a", "label": NaN}\n', r"row 1: label is nan"),
    "list2.jsonl": ('{"text": "a", "label": [1]}\n', r"row 1: label is list, not text"),
    "number.jsonl": ('{"source": "a", "target": 3}\n', r"row 1: target is int, not text"),
    "blank.jsonl": ('{"text": "a", "label": ""}\n', r"row 1: label is blank; nothing to learn"),
    "kinds.jsonl": (
        '{"text": "a", "label": "b"}\n{"source": "a", "target": "b"}\n',
        r"row 2: its fields are source target, those of the rows before it are text label",
    ),
    "prompt.jsonl": (
        '{"chosen": "a", "rejected": "b"}\n{"prompt": "c", "chosen": "a", "rejected": "b"}\n',
        r"row 2: its fields are prompt chosen rejected, those of the rows before it are chosen rejected",
    ),
    "same.jsonl": ('{"chosen": "a", "prompt": "b"}\n', r"row 1: chosen but no rejected|prompt but no completion"),
    "nul.tsv": ("a\tb\0\n", r"is not text: a NUL byte at offset 3"),
    "a.parquet": ("no parquet", r"a\.parquet is not a parquet file, or is damaged"),
    "a.npz": ("no zip", r"a\.npz is no \.npz file of numbers and text, or is damaged"),
    "a.txt": ("a\tb\n", r"a\.txt: cannot read examples from this kind of file; one of \.tsv \.csv"),
    "a.npz.gz": ("a", r"cannot read examples from this kind of file"),
}


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_is_no_example_is_refused_with_its_row(name, tmp_path):
    content, message = REFUSED[name]
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        read_examples(tmp_path / name)


def test_paths_that_are_no_files_and_damaged_files_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"data\.examples .*/no\.tsv: no such file"):
        read_examples(tmp_path / "no.tsv")
    with pytest.raises(UserError, match=r"data\.validation_corpus .*: is a folder"):
        read_examples(tmp_path, option="data.validation_corpus")
    (tmp_path / "a.tsv.gz").write_bytes(gzip.compress(b"a\tb\n" * 500)[:-9])
    with pytest.raises(UserError, match=r"a\.tsv\.gz is damaged"):
        read_examples(tmp_path / "a.tsv.gz")
    (tmp_path / "a.tsv").write_bytes(b"a\t\xff\n")
    with pytest.raises(UserError, match="is not UTF-8 text: byte 0xff at offset 2"):
        read_examples(tmp_path / "a.tsv")


@pytest.mark.parametrize("wrong", [("text", "b" * 900, "label"), ("text", "label", "b" * 900), ("b" * 900,) * 3])
def test_little_of_the_input_is_repeated(wrong, tmp_path):
    with pytest.raises(UserError) as error:
        read_examples(pairs(tmp_path / "a.jsonl", [("a", "b", 3)] * 2 + [("", 1, 2)], wrong))
    assert "b" * 200 not in str(error.value)


def test_a_column_of_another_type_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"a\.parquet: target is int64, not text"):
        read_examples(pairs(tmp_path / "a.parquet", [("a", 1)]))
    with pytest.raises(UserError, match=r"a\.parquet, row 2: target is empty \(null\)"):
        read_examples(pairs(tmp_path / "a.parquet", [("a", "b"), ("c", None)]))
    with pytest.raises(UserError, match=r"a\.parquet: no examples in it"):
        read_examples(pairs(tmp_path / "a.parquet", [("a", "b")][:0], ("text", "label")))


# --- arrays ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("answers", ["targets", "labels", "captions"])
@pytest.mark.parametrize("shape", [(5, 3, 4), (5, 3, 4, 2)])
def test_images_are_vectors_of_a_row_of_pixels(answers, shape, tmp_path):
    images = np.random.default_rng(0).integers(0, 255, shape).astype(np.uint8)
    np.savez(
        tmp_path / "a.npz", images=images, ids=np.arange(9), **{answers: np.array(["null", "eins", "zwei"] + ["ß"] * 2)}
    )
    found = read_examples(tmp_path / "a.npz")
    assert (found.kind, found.sources, found.targets) == ("images", [], ["null", "eins", "zwei", "ß", "ß"])
    for image, vectors_IE in zip(images, found.vectors, strict=True):
        assert vectors_IE.dtype == np.float32
        assert [row.tolist() for row in vectors_IE] == [np.ravel(row).tolist() for row in image]


def test_frames_are_as_many_as_are_counted(tmp_path):
    """What stands after them may be anything."""
    frames = np.random.default_rng(0).normal(size=(3, 4, 2))
    frames[0, 2:] = np.nan
    np.savez(tmp_path / "a.npz", frames=frames, frame_counts=[2, 4, 1], targets=[b"a", b"b", b"c"])
    found = read_examples(tmp_path / "a.npz")
    assert [len(vectors) for vectors in found.vectors] == [2, 4, 1] and found.targets == ["a", "b", "c"]
    for wanted, vectors in zip(frames, found.vectors, strict=True):
        assert (vectors == wanted[: len(vectors)].astype(np.float32)).all()


ONES, TWO = np.ones((2, 3, 4)), ["a", "b"]
REFUSED_ARRAYS = {
    "nan": (dict(images=np.where(np.arange(2)[:, None, None], np.nan, ONES), labels=TWO), r"row 2: images holds a num"),
    "huge": (dict(frames=ONES * 1e300, labels=TWO), r"row 1: frames holds a number that is NaN, infinite or beyond f"),
    "lengths": (dict(images=ONES, labels=[1, 2, 3]), r"images has 2 examples, labels the shape \(3,\)"),
    "axes": (dict(images=ONES, labels=[[1], [2]]), r"images has 2 examples, labels the shape \(2, 1\)"),
    "flat": (dict(images=np.ones((2, 3)), labels=TWO), r"images has the shape \(2, 3\), expected \[N, height, width\]"),
    "channels": (dict(frames=np.ones((2, 3, 4, 1)), labels=TWO), r"shape \(2, 3, 4, 1\), expected \[N, I, E\]"),
    "none": (dict(images=ONES[:0], labels=TWO[:0]), r"no examples in it: images has the shape \(0, 3, 4\)"),
    "nothing": (dict(images=np.ones((2, 0, 4)), labels=TWO), r"images has the shape \(2, 0, 4\)"),
    "complex": (dict(images=ONES * 1j, labels=TWO), r"images is complex128, expected real numbers"),
    "words": (dict(images=np.full((2, 3, 4), "a"), labels=TWO), r"images is <U1, expected real numbers"),
    "object": (dict(images=ONES, labels=np.array(TWO, object)), r"Object arrays cannot be loaded"),
    "blank": (dict(images=ONES, captions=["a", " "]), r"row 2: captions is blank; nothing to learn"),
    "unknown": (dict(pictures=ONES, labels=TWO), r"none among pictures, labels; expected one of images, frames"),
    "unanswered": (dict(images=ONES, y=TWO), r"none among images, y; expected one of targets, labels, captions"),
    "both": (dict(images=ONES, labels=TWO, captions=TWO), r"labels and captions among images, labels, captions; exp"),
    "count": (
        dict(frames=ONES, labels=TWO, frame_counts=[1, 4]),
        r"row 2: frame_counts must be from 1 to the 3 frames",
    ),
    "counts": (
        dict(frames=ONES, labels=TWO, frame_counts=[1.0, 2.0]),
        r"frame_counts is float64 \(2,\), expected a who",
    ),
    "bytes": (dict(images=ONES, labels=[b"a", b"\xff"]), r"row 2: the text is not UTF-8"),
    "not": (dict(images=ONES, labels=[1, np.nan]), r"row 2: labels is nan"),
}


@pytest.mark.parametrize("name", sorted(REFUSED_ARRAYS))
def test_arrays_that_are_no_examples_are_refused(name, tmp_path):
    arrays, message = REFUSED_ARRAYS[name]
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(UserError, match=message):
        read_examples(tmp_path / "a.npz")


def test_a_zip_of_other_files_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as file:
        file.writestr("images", "no array")
        file.writestr("labels", "nor this")
    with pytest.raises(UserError, match="images is no array"):
        read_examples(tmp_path / "a.npz")


@pytest.mark.parametrize("channels", [[], [3]])
def test_patches_are_squares_row_by_row(channels):
    images = np.random.default_rng(0).normal(size=[2, 4, 6, *channels])
    cut = patches(images, 2)
    assert cut.shape == (2, 6, 4 * (channels or [1])[0])
    for n in range(2):
        squares = [images[n, y : y + 2, x : x + 2] for y in (0, 2) for x in (0, 2, 4)]
        assert [vector.tolist() for vector in cut[n]] == [square.ravel().tolist() for square in squares]
    assert (patches(images, 1).reshape(images.shape) == images).all()
    with pytest.raises(UserError, match="images of 4 x 6 pixels cannot be cut into patches of 4 x 4"):
        patches(images, 4)


# --- preparing -------------------------------------------------------------------------------------------------------
def texts(ragged, tokenizer):
    return [tokenizer.decode(ragged[i].tolist()) for i in range(len(ragged))]


def shown(file, tokenizer):
    return (
        texts(file.sources, tokenizer) if file.sources else [file.vectors[i].tobytes() for i in range(file.documents)]
    )


@IN_A_FOLDER
@given(
    rows=st.lists(st.tuples(st.text("ab", min_size=1, max_size=3), st.text("xyß", min_size=1, max_size=4)), min_size=2),
    fraction=st.floats(0.01, 0.99),
    kind=st.sampled_from(["source/target", "prompt/completion", "text/label"]),
)
def test_no_source_is_on_both_sides(rows, fraction, kind, tmp_path):
    """And every example is on one of them, in order; neither is empty."""
    path = pairs(tmp_path / "a.tsv", rows, FIELDS[kind])
    data = DataConfig(examples=str(path), validation=fraction)
    if len({source for source, _ in rows}) == 1:
        with pytest.raises(UserError, match=r"all show the same; give another file as data\.validation_corpus"):
            prepare_examples(data)
        return
    made = prepare_examples(data)
    sides = [
        list(zip(shown(file, made.tokenizer), texts(file.targets, made.tokenizer), strict=True))
        for file in (made.train, made.validation)
    ]
    assert all(sides) and Counter(sides[0] + sides[1]) == Counter(rows)
    train, held = ({source for source, _ in side} for side in sides)
    assert not train & held
    assert sides[0] == [row for row in rows if row[0] in train] and sides[1] == [row for row in rows if row[0] in held]
    for file, side in zip((made.train, made.validation), sides, strict=True):
        assert (file.kind, file.documents, file.eot) == (kind, len(side), made.tokenizer.eot_token)
        assert file.bytes == sum(len(target.encode()) for _, target in side)
        assert file.count == file.bytes + len(side)  # of bytes
        assert file.eot not in file.targets.flat


def test_about_the_fraction_is_held_out(tmp_path):
    rows = [(f"source {i // 3}", f"target {i}") for i in range(3000)]
    made = prepare_examples(DataConfig(examples=str(pairs(tmp_path / "a.tsv", rows)), validation=0.2))
    assert 0.18 < made.validation.documents / 3000 <= 0.2


@pytest.mark.parametrize("kind", ["images", "frames"])
def test_equal_arrays_stay_together(kind, tmp_path):
    """Whatever is said of them; also where one has a negative zero."""
    few = np.random.default_rng(0).integers(0, 2, (6, 2, 3)).astype(float)
    places = np.random.default_rng(1).integers(0, 6, 40)
    arrays = np.where(np.arange(40)[:, None, None] % 2, few[places], few[places] * -1.0 * -1.0 - 0.0)
    arrays[::2][arrays[::2] == 0] = -0.0
    np.savez(tmp_path / "a.npz", targets=np.arange(40), **{kind: arrays})
    made = prepare_examples(DataConfig(examples=str(tmp_path / "a.npz"), validation=0.3))
    train, held = (set(shown(file, None)) for file in (made.train, made.validation))
    assert train and held and not train & held and len(train) + len(held) == 6
    assert made.train.documents + made.validation.documents == 40


def test_preferences_keep_both_answers(tmp_path):
    rows = [(f"prompt {i // 2}", f"good {i}", f"bad {i}") for i in range(20)]
    for names in (("prompt", "chosen", "rejected"), ("note", "chosen", "rejected")):
        made = prepare_examples(DataConfig(examples=str(pairs(tmp_path / "a.csv", rows, names))))
        found = []
        for file in (made.train, made.validation):
            sources = texts(file.sources, made.tokenizer) if file.sources else [""] * file.documents
            answers = (texts(part, made.tokenizer) for part in (file.targets, file.rejected))
            found += zip(sources, *answers, strict=True)
        assert sorted(found) == sorted((a if names[0] == "prompt" else "", b, c) for a, b, c in rows)
        columns, _ = lay_out_examples(made.train, decoder(99))
        assert columns["tokens_BU"].shape == columns["rejected_BU"].shape


@pytest.mark.parametrize("kind", ["chars", "words", "bpe"])
def test_the_tokenizer_is_of_the_training_part(kind, tmp_path):
    """An alphabet covers what is held out too; words and pairs of it are not learnt from."""
    word = {i: "".join(chr(97 + int(c)) for c in f"{i:03}") for i in range(100)}
    rows = [(f"{word[i]} {word[i]} {chr(0x400 + i)}", "yes no") for i in range(100)]
    data = DataConfig(examples=str(pairs(tmp_path / "a.tsv", rows)), tokenizer=kind, vocab=900)
    made = prepare_examples(data)
    sources = [source for file in (made.train, made.validation) for source in texts(file.sources, made.tokenizer)]
    assert sorted(sources) == sorted(source for source, _ in rows)
    known = {made.tokenizer.decode([token]) for token in range(made.tokenizer.n_vocab)}
    held = {text.split()[0] for text in texts(made.validation.sources, made.tokenizer)}
    train = {text.split()[0] for text in texts(made.train.sources, made.tokenizer)}
    if kind == "words":
        assert train <= known and not held & known
    if kind == "bpe":
        assert not held & known


def test_another_file_validates(tmp_path, capsys):
    rows = [(f"source {i}", f"target {i}") for i in range(20)]
    train, held = pairs(tmp_path / "a.tsv", rows), pairs(tmp_path / "b.csv", [*rows[:2], ("é", "ü")])
    data = DataConfig(examples=str(train), validation_corpus=str(held), tokenizer="chars")
    made = prepare_examples(data)
    assert texts(made.train.sources, made.tokenizer) == [source for source, _ in rows]
    assert texts(made.validation.targets, made.tokenizer) == ["target 0", "target 1", "ü"]
    assert "2 of 3 examples show what training examples show too" in capsys.readouterr().err
    pairs(held, rows, ("text", "label"))
    with pytest.raises(UserError, match=r"b\.csv has text/label, data\.examples source/target; both must be of one k"):
        prepare_examples(data)


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_what_was_kept_is_what_is_made(tmp_path, monkeypatch):
    """Found by its contents wherever the file lies, made again where it was damaged, and in no other case."""
    rows = [(f"source {i}", f"target {i} " * (i % 5)) for i in range(1, 90) if i % 5]
    data = DataConfig(examples=str(pairs(tmp_path / "a.tsv", rows)), tokenizer="words")
    made = prepare_examples(data, cache=tmp_path / "one")
    folder = made.train.path.parent
    fresh = prepare_examples(data, cache=tmp_path / "two")
    assert contents(folder) == contents(fresh.train.path.parent) and made.hashes == fresh.hashes
    (tmp_path / "elsewhere").mkdir()
    moved = (tmp_path / "elsewhere" / "a.tsv", data.examples)
    moved[0].write_bytes((tmp_path / "a.tsv").read_bytes())
    with monkeypatch.context() as patch:
        patch.setattr("lm.data.examples.read_examples", None)
        found = prepare_examples(DataConfig(examples=str(moved[0]), tokenizer="words"), cache=tmp_path / "one")
    assert found.train == made.train and found.hashes == made.hashes
    before = contents(folder)
    (folder / "train" / "targets.npy").write_bytes(before[next(p for p in before if p.name == "targets.npy")][:-5])
    assert _open(folder) is None
    again = prepare_examples(data, cache=tmp_path / "one")
    assert again.train == made.train and contents(folder) == before
    others = [dict(tokenizer="chars"), dict(vocab=300), dict(validation=0.4)]
    hashes = [prepare_examples(DataConfig(**vars(data) | other)).train.path.parent.name for other in others]
    assert len({*hashes, folder.name}) == 4
    pairs(tmp_path / "a.tsv", rows[1:])
    assert prepare_examples(data, cache=tmp_path / "one").train.path.parent != folder


def test_a_packed_file_has_the_same_hash(tmp_path):
    plain = pairs(tmp_path / "a.tsv", [(f"source {i}", "yes") for i in range(9)])
    packed = tmp_path / "a.tsv.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    one, other = (prepare_examples(DataConfig(examples=str(path))) for path in (plain, packed))
    assert one.hashes == other.hashes and one.train.path != other.train.path


@pytest.mark.parametrize("place", ["tokens", "rename"])
def test_a_killed_preparation_is_made_again_to_the_same_bits(tmp_path, place):
    path = pairs(tmp_path / "a.tsv", [(f"source {i}", "yes") for i in range(9)])
    data = DataConfig(examples=str(path))
    kill(data, tmp_path / "killed", place)
    whole, again = (prepare_examples(data, cache=tmp_path / name) for name in ("whole", "killed"))
    assert contents(again.train.path.parent) == contents(whole.train.path.parent)
    assert [path.name[0] for path in (tmp_path / "killed" / "tokens").iterdir()] != ["."]


def test_a_cache_that_cannot_be_written_is_one_sentence(tmp_path):
    path = pairs(tmp_path / "a.tsv", [("a", "b"), ("c", "d")])
    with pytest.raises(UserError, match=r"cannot keep tokens in .*: Not a directory; set LM_CACHE"):
        prepare_examples(DataConfig(examples=str(path)), cache=path / "cache")


# --- layout ----------------------------------------------------------------------------------------------------------
def decoder(context, **fields):
    return SimpleNamespace(context=context, **{"encoder": None, "vectors": None} | fields)


def prepared(tmp_path, rows, kind="source/target"):
    """A training file of bytes with these rows."""
    path = pairs(tmp_path / "a.tsv", rows, FIELDS[kind])
    held = pairs(tmp_path / "b.tsv", rows[:1], FIELDS[kind])
    return prepare_examples(DataConfig(examples=str(path), validation_corpus=str(held))).train


ROWS = st.lists(st.tuples(st.text("ab", min_size=1, max_size=9), st.text("xy", min_size=1, max_size=9)), min_size=1)
EOT = 256


@IN_A_FOLDER
@given(
    rows=ROWS, context=st.integers(1, 20), kind=st.sampled_from(["source/target", "prompt/completion", "text/label"])
)
def test_rows_of_a_decoder(rows, context, kind, tmp_path):
    """Written out one by one: what has weight is the answer and its end of text, each once."""
    between = [] if kind == "prompt/completion" else [EOT]
    wanted = []
    for source, target in rows:
        before, after = [EOT, *source.encode(), *between], [*target.encode(), EOT]
        if len(before + after) <= context + 1:
            row = before + after + [EOT] * (context + 1 - len(before + after))
            wanted.append((row, len(before) - 1, len(before + after) - 1, after))
    file = prepared(tmp_path, rows, kind)
    if not wanted:
        longest = max(len(source + target) + len(between) + 1 for source, target in rows)
        with pytest.raises(UserError, match=rf"fits model\.context {context}: .* the longest needs|longest {longest}"):
            lay_out_examples(file, decoder(context))
        return
    columns, dropped = lay_out_examples(file, decoder(context))
    assert sorted(columns) == ["count_B", "open_B", "start_B", "tokens_BU"]
    assert {column.dtype for column in columns.values()} == {np.dtype(np.int32)}
    assert dropped == len(rows) - len(wanted)
    assert columns["tokens_BU"].tolist() == [row for row, *_ in wanted]
    assert columns["start_B"].tolist() == columns["open_B"].tolist() == [start for _, start, *_ in wanted]
    assert columns["count_B"].tolist() == [count for _, _, count, _ in wanted]
    for row, start, count, (*_, answer) in zip(
        columns["tokens_BU"], columns["start_B"], columns["count_B"], wanted, strict=True
    ):
        learnt = [int(row[t + 1]) for t in range(context) if start <= t < count]
        assert learnt == answer and learnt.count(EOT) == 1


@IN_A_FOLDER
@given(rows=ROWS, context=st.integers(1, 12), reads=st.integers(1, 12))
def test_rows_of_an_encoder_and_a_decoder(rows, context, reads, tmp_path):
    file = prepared(tmp_path, rows)
    model = decoder(context, encoder=decoder(reads))
    fit = [(a, b) for a, b in rows if len(a) + 1 <= reads and len(b) + 1 <= context]
    if not fit:
        with pytest.raises(UserError, match=r"none of \d+ examples fits"):
            lay_out_examples(file, model)
        return
    columns, dropped = lay_out_examples(file, model)
    assert sorted(columns) == ["count_B", "source_BS", "source_count_B", "start_B", "tokens_BU"]
    assert dropped == len(rows) - len(fit)
    source = [[*a.encode(), EOT] for a, _ in fit]
    row = [[EOT, *b.encode(), EOT] for _, b in fit]
    assert columns["source_BS"].tolist() == [r + [EOT] * (reads - len(r)) for r in source]
    assert columns["source_count_B"].tolist() == [len(r) for r in source]
    assert columns["tokens_BU"].tolist() == [r + [EOT] * (context + 1 - len(r)) for r in row]
    assert columns["start_B"].tolist() == [0] * len(fit) and columns["count_B"].tolist() == [len(r) - 1 for r in row]


def test_what_does_not_fit_is_told(tmp_path, capsys):
    file = prepared(tmp_path, [("a", "b"), ("a" * 9, "b" * 3), ("a", "c")])
    assert lay_out_examples(file, decoder(9))[1] == 1
    assert capsys.readouterr().err.endswith("lm: 1 of 3 train examples do not fit model.context 9 and are left out\n")


def test_the_context_to_raise_is_named(tmp_path):
    file = prepared(tmp_path, [("a" * 9, "b" * 3), ("a" * 7, "b" * 5)])
    with pytest.raises(
        UserError, match=r"2 examples fits model\.context 9: the shortest needs 14, the longest 14; rai"
    ):
        lay_out_examples(file, decoder(9))
    with pytest.raises(
        UserError, match=r"fits model\.encoder\.context 6: the shortest needs 8, the longest 10; raise -"
    ):
        lay_out_examples(file, decoder(9, encoder=decoder(6)))
    with pytest.raises(
        UserError, match=r"context 4: .* 4, the longest 6; model\.encoder\.context 9: .* 8, the longest 10; r"
    ):
        lay_out_examples(file, decoder(4, encoder=decoder(9)))


def test_vectors_stand_before_the_tokens(tmp_path):
    frames = np.random.default_rng(0).normal(size=(4, 5, 3)).astype(np.float32)
    np.savez(tmp_path / "a.npz", frames=frames, frame_counts=[1, 4, 2, 3], targets=["a", "bcd", "ef", "g" * 9])
    data = DataConfig(examples=str(tmp_path / "a.npz"), validation_corpus=str(tmp_path / "a.npz"))
    file = prepare_examples(data).train
    with pytest.raises(UserError, match=r"model\.vectors None: the frames are vectors of 3 numbers; set --model\.vect"):
        lay_out_examples(file, decoder(6))
    with pytest.raises(UserError, match=r"model\.encoder\.vectors 2: the frames are vectors of 3 numbers; set --model"):
        lay_out_examples(file, decoder(6, encoder=decoder(6, vectors=2)))
    own, encoded = decoder(10, vectors=3), decoder(6, encoder=decoder(5, vectors=3))  # of 10 places vectors take 4
    for model in (own, encoded):
        columns, dropped = lay_out_examples(file, model)
        assert dropped == 1
        assert columns["tokens_BU"].tolist() == [
            [EOT, 97, *[EOT] * 5], [EOT, 98, 99, 100, *[EOT] * 3], [EOT, 101, 102, *[EOT] * 4]
        ]  # fmt: skip
        batches = ExampleBatches(columns, batch=1, seed=0)
        assert batches.epoch_tokens == 3 * model.context
        assert columns["start_B"].tolist() == [0, 0, 0] and columns["count_B"].tolist() == [2, 4, 3]
        assert columns["vectors_BIE"].shape == (3, 4, 3) and columns["vectors_BIE"].dtype == np.float32
        assert columns["vectors_count_B"].tolist() == [1, 4, 2]
        for i, count in enumerate([1, 4, 2]):
            assert (columns["vectors_BIE"][i, :count] == frames[i, :count]).all()
            assert not columns["vectors_BIE"][i, count:].any()
    assert lay_out_examples(file, own)[0]["open_B"].tolist() == [1, 4, 2]
    assert "open_B" not in columns and columns["source_BS"].tolist() == [[EOT]] * 3
    assert columns["source_count_B"].tolist() == [1, 1, 1]


def test_vectors_take_places_of_the_context(tmp_path):
    np.savez(tmp_path / "a.npz", images=np.ones((2, 5, 3)), targets=["a", "bcd"])
    data = DataConfig(examples=str(tmp_path / "a.npz"), validation_corpus=str(tmp_path / "a.npz"))
    file = prepare_examples(data).train
    with pytest.raises(
        UserError, match=r"fits model\.context 6: the shortest needs 7, the longest 9; raise --model\.c"
    ):
        lay_out_examples(file, decoder(6, vectors=3))
    with pytest.raises(UserError, match=r"fits model\.encoder\.context 5: the shortest needs 6, the longest 6"):
        lay_out_examples(file, decoder(6, encoder=decoder(5, vectors=3)))
    assert lay_out_examples(file, decoder(7, vectors=3))[0]["tokens_BU"].tolist() == [[EOT, 97, EOT]]


def test_validation_rows_are_a_sample(tmp_path):
    """Of classes in turn all occur, from all over the file; and the same rows come again."""
    file = prepared(tmp_path, [(f"a{i}", "0123456789"[i % 10]) for i in range(700)], "text/label")
    columns, _ = lay_out_examples(file, decoder(20))
    every = validation_rows(file, decoder(20), 10**9)
    assert all((every[name] == columns[name]).all() for name in columns)
    some, again = (validation_rows(file, decoder(20), 140)["tokens_BU"] for _ in range(2))
    assert (some == again).all() and len(some) == 70 and len(np.unique(some, axis=0)) == 70
    places = [next(i for i, row in enumerate(columns["tokens_BU"]) if (row == one).all()) for one in some]
    assert places == sorted(places) and len({place % 10 for place in places}) == 10
    assert {place // 100 for place in places} == set(range(7))
    assert len(validation_rows(file, decoder(20), 1)["tokens_BU"]) == 1


# --- batches ---------------------------------------------------------------------------------------------------------
def columns_of(N):
    """Rows whose every field says which row it is."""
    n = np.arange(N, dtype=np.int32)
    return {"tokens_BU": np.repeat(n[:, None], 4, axis=1), "start_B": n, "vectors_BIE": np.float32(n[:, None, None])}


@settings(deadline=None)
@given(N=st.integers(1, 200), batch=st.integers(1, 9), seed=st.integers(0, 2**64 - 1), k=st.integers(1, 7))
def test_a_pass_visits_every_example_once(N, batch, seed, k):
    batches = ExampleBatches(columns_of(N), batch=batch, seed=seed)
    assert (batches.windows, batches.context, batches.epoch_tokens) == (N, 4, 4 * N)  # three tokens and a vector
    steps = -(-3 * N // (batch * k))
    parts = [batches.at(i * k, k) for i in range(steps)]
    assert parts[0]["tokens_BU"].shape == (k, batch, 4) and parts[0]["vectors_BIE"].shape == (k, batch, 1, 1)
    rows = np.concatenate([part["start_B"] for part in parts]).ravel()[: 3 * N].reshape(3, N)
    assert (np.sort(rows) == np.arange(N)).all()
    for part in parts:
        assert (part["tokens_BU"] == part["start_B"][..., None]).all()
        assert (part["vectors_BIE"] == part["start_B"][..., None, None]).all()
    assert all((batches.at(1)[name] == batches.at(0, 2)[name][1]).all() for name in batches.columns)


def test_passes_and_seeds_differ():
    orders = [
        ExampleBatches(columns_of(50), batch=50, seed=seed).at(step)["start_B"] for seed in (0, 1) for step in (0, 1)
    ]
    assert len({tuple(order) for order in orders}) == 4


def test_what_a_dispatch_reads_is_its_batches(monkeypatch):
    """Rows of resident columns; otherwise the columns themselves, followed by zeros."""
    batches = ExampleBatches(columns_of(30), batch=4, seed=1)
    rows = batches.dispatch(5, 2, 3)
    assert batches.resident and rows.dtype == np.int32 and rows.shape == (3, 4)
    wanted = batches.at(5, 2)
    for name, column in batches.store().items():
        assert (column[rows[:2]] == wanted[name]).all()
    monkeypatch.setattr("lm.data.batches.RESIDENT_BYTES", 30 * (4 + 1 + 1) * 4 - 1)
    assert not batches.resident
    for name, column in batches.dispatch(5, 2, 3).items():
        assert column.shape == (3, *wanted[name].shape[1:]) and column.dtype == wanted[name].dtype
        assert (column[:2] == wanted[name]).all() and not column[2:].any()


def test_odd_numbers_are_refused():
    with pytest.raises(UserError, match="batch 0: must be at least 1"):
        ExampleBatches(columns_of(3), batch=0, seed=0)
    with pytest.raises(UserError, match="seed -1"):
        ExampleBatches(columns_of(3), batch=1, seed=-1)
