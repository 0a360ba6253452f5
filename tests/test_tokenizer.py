"""Tokenizers write every text, read it back, and come back exactly from their file."""

import base64
import itertools
import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm import tokenizer as tokenizers
from lm.config import DataConfig
from lm.errors import UserError
from lm.tokenizer import building

TEXTS = [Path(json.__file__).read_text(), Path(re.__file__).read_text(), "naïve café – 東京 🙂 don't 12345\r\n\n  x"]
KINDS = {
    kind: tokenizers.build(DataConfig(tokenizer=kind, vocab=600), TEXTS) for kind in ("bytes", "chars", "words", "bpe")
}
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]))
BYTE_LEVEL = ["bytes", "words", "bpe"]


@pytest.fixture(params=KINDS)
def tokenizer(request):
    return KINDS[request.param]


@pytest.mark.parametrize("kind", BYTE_LEVEL)
@settings(deadline=None)
@given(text=ANY_TEXT | st.sampled_from(["", "<|endoftext|>", " \n" * 50, "the " * 9, "\x00"]))
def test_any_text_survives_a_round_trip(kind, text):
    """Words and pieces never seen in training are written in bytes; nothing is lost, nothing is special."""
    tokenizer = KINDS[kind]
    tokens = tokenizers.encode(tokenizer, text)
    assert tokens.dtype == np.uint32
    assert tokens.tolist() == tokenizer.encode_ordinary(text)
    assert tokenizer.eot_token not in tokens
    assert tokenizer.decode(tokens.tolist()) == text
    assert tokenizer.decode_bytes(tokens.tolist()) == text.encode()


@settings(deadline=None)
@given(text=st.text(st.sampled_from(KINDS["chars"].alphabet)))
def test_characters_survive_a_round_trip(text):
    tokenizer = KINDS["chars"]
    tokens = tokenizers.encode(tokenizer, text)
    assert len(tokens) == len(text)
    assert tokens.tolist() == [sorted(set("".join(TEXTS))).index(character) for character in text]
    assert tokenizer.decode(tokens.tolist()) == text


@pytest.mark.parametrize("character", ["\x07", "Ω", "𝔘"])  # below, between and beyond the alphabet's code points
def test_a_character_outside_the_alphabet_is_named(character):
    with pytest.raises(UserError, match=re.escape(f"{character!r} (U+{ord(character):04X}) is not among the")):
        tokenizers.encode(KINDS["chars"], f"def {character}")


@settings(deadline=None)
@given(text=ANY_TEXT, cuts=st.lists(st.integers(0, 100)), limit=st.integers(1, 12))
def test_slices_are_the_text_and_do_not_depend_on_its_pieces(text, cuts, limit):
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[a:b] for a, b in itertools.pairwise(edges)]
    sliced = list(tokenizers.slices(pieces, limit))
    assert "".join(sliced) == text
    assert all(0 < len(part) <= limit for part in sliced)
    assert sliced == list(tokenizers.slices([text], limit))


WORDS = st.lists(st.sampled_from(["the", "a!", "\nx", "\n\n  don't", "12345", "é--", "  2", "king's"]), max_size=60)


@pytest.mark.parametrize("kind", ["words", "bpe"])
@settings(deadline=None)
@given(text=WORDS.map(" ".join))
def test_slicing_does_not_show_in_the_tokens(kind, text):
    """A space after a non-space in every sixteen characters suffices: slices encode to the tokens of the whole."""
    parts = tokenizers.slices([text], 16)
    assert [token for part in parts for token in KINDS[kind].encode_ordinary(part)] == KINDS[kind].encode_ordinary(text)


def test_long_text_is_sliced_and_stays_whole():
    """tiktoken alone gives up on a million spaces before a word (its regular expression's stack overflows)."""
    for text in (" " * 1_000_000 + "x", "\n" * 300_000, "日" * 300_000, "a" * 300_000):
        for kind in ("words", "bpe"):
            assert KINDS[kind].decode(tokenizers.encode(KINDS[kind], text).tolist()) == text


def test_lone_surrogates_become_the_replacement_character():
    """JSON can spell them (\\ud800); UTF-8 cannot. A pair is the character it stands for."""
    for kind in BYTE_LEVEL:
        tokens = tokenizers.encode(KINDS[kind], "a\ud800b\ud83d\ude42").tolist()
        assert KINDS[kind].decode(tokens) == "a\ufffdb🙂"


def test_sizes(tokenizer):
    """data.vocab counts the end-of-text token, which is the last; bytes has 257 and chars its alphabet and one."""
    expected = {"bytes": 257, "chars": len(set("".join(TEXTS))) + 1, "words": 600, "bpe": 600}[tokenizer.name]
    assert tokenizer.n_vocab == expected
    assert tokenizer.eot_token == expected - 1
    assert tokenizer.decode([tokenizer.eot_token]) == "<|endoftext|>"


def test_token_bytes_add_up_to_the_text(tokenizer):
    lengths = tokenizers.token_bytes(tokenizer)
    assert lengths.shape == (tokenizer.n_vocab,) and lengths.dtype == np.int32
    assert lengths[tokenizer.eot_token] == 0
    text = "".join(TEXTS)
    assert lengths[tokenizers.encode(tokenizer, text)].sum() == len(text.encode())


def test_rebuilt_from_its_file_alone(tokenizer, tmp_path):
    tokenizers.save(tokenizer, tmp_path / "tokenizer.json")
    assert [file.name for file in tmp_path.iterdir()] == ["tokenizer.json"]
    again = tokenizers.load(tmp_path / "tokenizer.json")
    assert tokenizers.to_json(again) == tokenizers.to_json(tokenizer)
    assert tokenizers.digest(again) == tokenizers.digest(tokenizer)
    assert (again.name, again.n_vocab, again.eot_token) == (tokenizer.name, tokenizer.n_vocab, tokenizer.eot_token)
    for text in TEXTS:
        assert again.encode_ordinary(text) == tokenizer.encode_ordinary(text)


def test_a_path_is_a_tokenizer_setting(tmp_path):
    tokenizers.save(KINDS["bpe"], tmp_path / "own.json")
    again = tokenizers.build(DataConfig(tokenizer=str(tmp_path / "own.json")), iter(()))
    assert tokenizers.digest(again) == tokenizers.digest(KINDS["bpe"])


def test_training_is_deterministic_and_digests_tell_tokenizers_apart():
    for kind in ("words", "bpe"):
        again = tokenizers.build(DataConfig(tokenizer=kind, vocab=600), iter(TEXTS))
        assert tokenizers.digest(again) == tokenizers.digest(KINDS[kind])
    assert len({tokenizers.digest(tokenizer) for tokenizer in KINDS.values()}) == len(KINDS)


def test_merges_are_the_most_frequent_pairs():
    """By hand: in 'abababab cab' the first merge is a+b (five times)."""
    bpe = tokenizers.build(DataConfig(tokenizer="bpe", vocab=258), ["abababab cab"])
    assert bpe.decode_bytes([256]) == b"ab"
    words = tokenizers.build(DataConfig(tokenizer="words", vocab=259), ["to be or not to be to"])
    assert [words.decode_bytes([token]) for token in (256, 257)] == [b" be", b" to"]  # twice each; ties by spelling


def test_fewer_entries_when_the_text_holds_no_more():
    assert tokenizers.build(DataConfig(tokenizer="bpe", vocab=4096), ["ab ab"]).n_vocab == 256 + 2 + 1  # ab, " ab"


def test_the_training_sample_is_spread_over_the_text_and_bounded():
    texts = [f"{i:04d}" * 250 for i in range(1000)]  # a million characters
    sample = building._sample(iter(texts), 100_000)
    assert 50_000 <= sum(map(len, sample)) <= 100_000
    numbers = [int(text[:4]) for text in sample]
    assert numbers == sorted(numbers) and numbers[0] < 100 and numbers[-1] > 900
    assert building._sample(iter(texts), 10_000_000) == texts
    assert building._sample(iter(texts), 600_000) == texts[::2]  # as it always was for twice the limit


@pytest.mark.parametrize("period", [2, 3, 8])
def test_a_periodic_stream_keeps_all_its_kinds_in_the_sample(period):
    sample = building._sample((f"{i % period}" * 1000 for i in range(4000)), 400_000)
    kept = np.bincount([int(text[0]) for text in sample])
    assert kept.sum() == 400 and kept.min() > 0.6 * 400 / period


def test_text_is_read_only_by_kinds_that_are_made_from_it():
    def unread():
        raise AssertionError("bytes need no text")
        yield

    assert tokenizers.build(DataConfig(tokenizer="bytes"), unread()).n_vocab == 257


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("byts", "no such tokenizer; did you mean bytes?"),
        ("gpt-2", "did you mean gpt2?"),
        ("missing/tokenizer.json", "no tokenizer file missing/tokenizer.json"),
    ],
)
def test_unknown_settings_are_refused(setting, message):
    with pytest.raises(UserError, match=re.escape(message)):
        tokenizers.build(DataConfig(tokenizer=setting), ())


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"kind": "runes"}', '{"kind": "tiktoken"}', '{"kind": "bytes"'])
def test_a_file_that_is_no_tokenizer_is_refused(text, tmp_path):
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(UserError, match=r"tokenizer\.json is not a saved tokenizer"):
        tokenizers.load(tmp_path / "tokenizer.json")


# --- damaged files, and patterns that lose text ----------------------------------------------------------------------
ALPHABET = {base64.b64encode(bytes((byte,))).decode(): byte for byte in range(256)}
SOUND = {"kind": "tiktoken", "name": "own", "pattern": "(?s:.)", "special": {"<|endoftext|>": 256}, "ranks": ALPHABET}


def without(token):
    return {key: rank for key, rank in ALPHABET.items() if key != token}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ranks": ALPHABET | {"YQ==": -1}}, "rank -1: must be a whole number from 0 to"),
        ({"ranks": ALPHABET | {"YQ==": 1 << 40}}, "rank 1099511627776: must be a whole number"),
        ({"ranks": ALPHABET | {"YQ==": "97"}}, "rank 97: must be a whole number"),
        ({"ranks": ALPHABET | {"YQ==": True}}, "rank True: must be a whole number"),
        ({"ranks": {"YQ==": 0, "Yg==": 0}}, "rank 0 is that of two tokens"),
        ({"special": {"<|endoftext|>": 97}}, "rank 97 is that of two tokens"),
        ({"ranks": without("YQ==")}, "1 of the 256 bytes have no token, the first of them 0x61"),
        ({"ranks": {}}, "256 of the 256 bytes have no token"),
        ({"ranks": ALPHABET | {"YWI=": 258}}, "no token has rank 257"),
        ({"ranks": ALPHABET | {"": 257}}, "one of its tokens is empty"),
        ({"ranks": ALPHABET | {"YR==": 257}}, "two of its tokens are the same"),
        ({"ranks": ALPHABET | {"Y": 257}}, "not base64"),
        ({"special": {"<end>": 256}}, "its special tokens lack <|endoftext|>"),
        ({"special": None}, "its 'special' must be an object"),
        ({"name": 5}, "its 'name' must be a string"),
        ({"pattern": "((("}, "its pattern is not a regular expression"),
        ({"pattern": "zzz"}, "its pattern leaves out"),
        ({"pattern": "."}, "its pattern leaves out"),  # takes no line ends
        ({"pattern": ""}, "its pattern cannot cut this text"),  # tiktoken panics over empty matches
        ({"pattern": "a*"}, "its pattern cannot cut this text"),
        ({"pattern": "(?=a)|(?s:.)"}, "its pattern cannot cut this text"),
        ({"kind": ["tiktoken"]}, "one of bytes, chars, tiktoken, hf"),
        ({"kind": "chars", "alphabet": "aba"}, "its alphabet holds a character twice"),
        ({"kind": "chars", "alphabet": ""}, "its alphabet must be a string of characters"),
        ({"kind": "chars", "alphabet": ["a"]}, "its alphabet must be a string of characters"),
        ({"kind": "chars", "alphabet": "a\ud800"}, "half a character"),
    ],
)
def test_a_damaged_tokenizer_is_one_sentence(change, message, tmp_path, capfd):
    """And nothing on standard error: where tiktoken panics, Rust prints a page of its stack."""
    assert tokenizers.from_json(SOUND).decode([97]) == "a"
    (tmp_path / "tokenizer.json").write_text(json.dumps(SOUND | change))
    with pytest.raises(UserError, match=re.escape(message)) as refused:
        tokenizers.load(tmp_path / "tokenizer.json")
    assert len(str(refused.value)) < 400 and capfd.readouterr() == ("", "")


def test_json_nested_too_deep_is_no_tokenizer(tmp_path):
    (tmp_path / "tokenizer.json").write_text('{"kind": ' + "[" * 200_000)
    with pytest.raises(UserError, match="is not a saved tokenizer: maximum recursion depth exceeded"):
        tokenizers.load(tmp_path / "tokenizer.json")


@pytest.mark.parametrize(
    ("pattern", "text", "message"),
    [
        (r"(?s:[^Ω])", "before Ω after", "its pattern leaves out 2 of 15 bytes of the text"),
        (r"(?:a|aa)+(?!.)(?<=b)|(?s:.)", "a" * 100, "its pattern gives up on this text"),
    ],
)
def test_text_is_never_lost(pattern, text, message):
    """A character that nothing matches, and a match that takes too long: both pass the trial when it is loaded."""
    own = tokenizers.from_json(SOUND | {"pattern": pattern})
    assert own.decode(tokenizers.encode(own, "Plain text.").tolist()) == "Plain text."
    with pytest.raises(UserError, match=re.escape(message)):
        tokenizers.encode(own, text)


def test_numbers_without_a_token_stand_for_nothing():
    """Published encodings have gaps below their special tokens, which a model may choose all the same."""
    own = tokenizers.from_json(SOUND | {"special": {"<|endoftext|>": 260}})
    assert tokenizers.spell(own, [97, 258, 260, 0xC3]) == ["a", "", "<|endoftext|>", "\\xc3"]


def test_a_published_encoding_out_of_reach_says_what_to_do(monkeypatch, tmp_path):
    def offline(url):
        raise ConnectionError("no network")

    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("tiktoken.load.read_file", offline)
    with pytest.raises(UserError, match=r"r50k_base: not on this machine.*set TIKTOKEN_CACHE_DIR"):
        tokenizers.build(DataConfig(tokenizer="r50k_base"), ())


@pytest.mark.skipif("LM_DATA" not in os.environ, reason="LM_DATA names no folder with published encodings")
def test_gpt2_as_published_and_rebuilt_without_the_network(monkeypatch, tmp_path):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(Path(os.environ["LM_DATA"]) / "tokenizers/tiktoken_cache"))
    gpt2 = tokenizers.build(DataConfig(tokenizer="gpt2"), ())
    assert (gpt2.n_vocab, gpt2.eot_token) == (50257, 50256)
    assert tokenizers.encode(gpt2, "The king and the queen.").tolist() == [464, 5822, 290, 262, 16599, 13]
    tokenizers.save(gpt2, tmp_path / "tokenizer.json")
    monkeypatch.setattr("tiktoken.load.read_file", lambda url: pytest.fail("used the network"))
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")
    again = tokenizers.load(tmp_path / "tokenizer.json")
    assert tokenizers.digest(again) == tokenizers.digest(gpt2)
    text = "".join(TEXTS) * 20  # long enough to be sliced
    assert tokenizers.encode(again, text).tolist() == gpt2.encode_ordinary(text)


def test_nothing_heavy_is_imported_at_the_top():
    """`lm --help` must not wait for tiktoken, let alone JAX."""
    import subprocess

    heavy = {"jax", "tiktoken", "rustbpe", "tokenizers", "jinja2", "regex"}
    code = f"import sys, lm.tokenizer; print({heavy} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"
