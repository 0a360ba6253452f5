"""A tokenizer is the same in a Hugging Face folder, in a GGUF file and here: by 300 hard strings, token for token."""

import functools
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from libraries import library
from tokenizer_cases import HINDI, STRINGS, TEXTS, ours, theirs

from lm import tokenizer as tokenizers
from lm.config import DataConfig
from lm.errors import UserError
from lm.exchange.tokenizers import differing, from_texts, to_texts, token_ids
from lm.probe.words import vocabulary
from lm.tokenizer import huggingface
from lm.tokenizer.chats import render

pytest.importorskip("tokenizers", reason="needs the extra exchange")
OURS = ["bytes", "chars", "words", "bpe"]
THEIRS = ["byte-level", "byte-level with a space first", "Prepend", "Prepend, spaces within tokens", "Metaspace",
          "Metaspace decoder", "WordLevel"]  # fmt: skip
FAMILIES = ["llama", "qwen3", "gpt2", "starcoder2"]
CONFIG = {"eos_token": "</s>", "bos_token": {"content": "<s>", "lstrip": False}, "tokenizer_class": "LlamaTokenizer"}


def folder(kind):
    """One of THEIRS as the files of a folder."""
    return {"tokenizer.json": theirs(kind), "tokenizer_config.json": json.dumps(CONFIG)}


@functools.cache
def imported(kind):
    return from_texts(folder(kind))


@functools.cache
def written(kind):
    """One of OURS, as it comes back from the folder it was written to."""
    return from_texts(to_texts(ours(kind), context=64))


@functools.cache
def as_it_is(kind):
    """What the package itself makes of one of THEIRS, special tokens being text."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(theirs(kind))
    tokenizer.encode_special_tokens = True
    return tokenizer


@pytest.fixture(scope="module")
def gpt2():
    if "LM_DATA" not in os.environ:
        pytest.skip("LM_DATA names no folder with published encodings")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", str(Path(os.environ["LM_DATA"]) / "tokenizers/tiktoken_cache"))
        return tokenizers.build(DataConfig(tokenizer="gpt2"), ())


# --- words -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("text", [f"{HINDI} ", "ReLU² is ½ good. ", "a\u200db \u0301x ", "naïve café, don't. "])
def test_every_word_learned_is_written(text):
    """One class of characters collects the pieces and cuts them: none is dead."""
    words = tokenizers.build(DataConfig(tokenizer="words", vocab=4096), [text * 50])
    written = set(tokenizers.encode(words, text * 50).tolist())
    assert words.n_vocab > 258 and set(range(256, words.n_vocab - 1)) <= written


def test_english_words_are_what_they_were():
    """And a vocabulary saved with the pattern before this one encodes as it did."""
    before = r" ?\w+| ?[^\w\s]+|\s+"
    text = "".join(character for character in "".join(TEXTS) if character.isascii())
    words = tokenizers.build(DataConfig(tokenizer="words", vocab=700), [text])
    counted = {piece for piece in re.findall(before, text) if len(piece) > 1}
    assert {words.decode([token]) for token in range(256, words.n_vocab - 1)} <= counted
    old = tokenizers.from_json(tokenizers.to_json(words) | {"pattern": before})
    assert tokenizers.encode(old, text).tolist() == tokenizers.encode(words, text).tolist()
    assert old.encode_ordinary("क\u093e") == old.encode_ordinary("क") + old.encode_ordinary("\u093e")


# --- out -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", [*OURS, "gpt2"])
def test_what_is_written_encodes_the_same(kind, request):
    tokenizer = request.getfixturevalue("gpt2") if kind == "gpt2" else ours(kind)
    texts = to_texts(tokenizer, context=64)
    again = from_texts(texts)
    assert differing(tokenizer, texts, STRINGS) == []
    assert (again.n_vocab, again.eot_token) == (tokenizer.n_vocab, tokenizer.eot_token)
    assert again.prefix == [] and token_ids(again) == token_ids(tokenizer)
    assert again.decode([again.eot_token]) == "<|endoftext|>"
    np.testing.assert_array_equal(tokenizers.token_bytes(again), tokenizers.token_bytes(tokenizer))
    tokens = [again.encode_ordinary(text) for text in STRINGS]
    assert [again.decode(row) for row in tokens] == STRINGS


@pytest.mark.parity
@pytest.mark.parametrize("kind", [*OURS, "gpt2"])
def test_transformers_encodes_the_same_in_every_family(kind, request, tmp_path):
    """By a family's own class it would put in that family's pattern: 271 of 300 for gpt2, 266 for qwen3."""
    transformers = library("transformers")
    tokenizer = request.getfixturevalue("gpt2") if kind == "gpt2" else ours(kind)
    expected = [tokenizer.encode_ordinary(text) for text in STRINGS]
    for name, text in to_texts(tokenizer, context=64).items():
        (tmp_path / name).write_text(text)
    for family in FAMILIES:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": family} | token_ids(tokenizer)))
        auto = transformers.AutoTokenizer.from_pretrained(tmp_path)
        assert auto(STRINGS).input_ids == expected, family
        assert [auto.decode(tokens) for tokens in expected] == STRINGS
        assert (auto.eos_token_id, auto.model_max_length) == (tokenizer.eot_token, 64)


def test_a_character_outside_the_alphabet_is_refused_there_too():
    """By a model that has no token for what is unknown: with BPE it would be left out without a word."""
    with pytest.raises(UserError, match="cannot write this text"):
        from_texts(to_texts(ours("chars"), 64)).encode_ordinary("a\U0001f9ff")


# --- in --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", THEIRS)
def test_what_came_with_a_model_encodes_as_it_did(kind):
    plain, tokenizer = as_it_is(kind), imported(kind)
    for text in STRINGS:
        expected = plain.encode(text, add_special_tokens=False).ids
        assert tokenizers.encode(tokenizer, text).tolist() == tokenizer.encode_ordinary(text) == expected
        assert tokenizer.decode(expected) == plain.decode(expected, skip_special_tokens=False)
    assert tokenizers.encode(tokenizer, "a \ud800").tolist() == tokenizer.encode_ordinary("a \ufffd")


def test_the_older_pair_of_files_is_read(gpt2):
    """GPT-2's own, as they were published, with OPT's habit of a token before every text."""
    cache = Path(os.environ["LM_DATA"]) / "tokenizers/tiktoken_cache"
    names = {"vocab.json": "6c7ea1a7e38e3a7f062df639a5b80947f075ffe6",
             "merges.txt": "6d1cbeee0f20b3d9449abfede4726ed8212e3aee"}  # fmt: skip
    texts = {name: (cache / file).read_text() for name, file in names.items()}
    config = {"eos_token": "<|endoftext|>", "bos_token": "<|endoftext|>", "add_bos_token": True}
    tokenizer = from_texts(texts | {"tokenizer_config.json": json.dumps(config)})
    assert [tokenizer.encode_ordinary(text) for text in STRINGS] == [gpt2.encode_ordinary(text) for text in STRINGS]
    assert (tokenizer.n_vocab, tokenizer.eot_token) == (50257, 50256) and tokenizer.prefix == [50256]


@pytest.mark.parametrize("kind", THEIRS)
def test_its_tokens_have_bytes(kind):
    """What they stand for, put together, is the text, after the space that some put before it."""
    tokenizer = imported(kind)
    lengths = tokenizers.token_bytes(tokenizer)
    assert lengths.shape == (tokenizer.n_vocab,) and not lengths[[tokenizer.eot_token, *tokenizer.control]].any()
    lossless = kind.startswith(("byte-level", "Prepend")) or kind == "Metaspace"
    for text in STRINGS if lossless else ["the if", "a for  not"]:
        tokens = tokenizer.encode_ordinary(text)
        whole = b"".join(tokenizers.bytes_of(tokenizer, token) for token in tokens)
        assert whole == tokenizer.decode_bytes(tokens) and lengths[tokens].sum() == len(whole)
        if lossless:
            read = text if "byte-level" in kind else text.replace("▁", " ")  # sentencepiece's way to write a space
            put = (read[:1] not in ("", " ") and kind != "byte-level") or (text != "" and kind.startswith("Prepend"))
            assert whole == b" " * put + read.encode()
    assert tokenizers.bytes_of(tokenizer, tokenizer.n_vocab + 5) == b""
    assert tokenizers.spell(tokenizer, [tokenizer.eot_token]) == [tokenizer.decode_bytes([2]).decode()]


@pytest.mark.parametrize("kind", ["byte-level", "Prepend", "bytes", "words", "bpe"])
@settings(deadline=None, max_examples=50)
@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁")))
def test_any_text_survives(kind, text):
    tokenizer = imported(kind) if kind in THEIRS else written(kind)
    tokens = tokenizers.encode(tokenizer, text)
    assert tokenizer.decode(tokens.tolist()) == text
    if kind not in THEIRS:
        assert tokens.tolist() == ours(kind).encode_ordinary(text)


@pytest.mark.parametrize("kind", THEIRS)
@settings(deadline=None, max_examples=20)
@given(text=st.lists(st.sampled_from(["the", "if a", "é日", "\n", "  x", "self.", "'s"]), max_size=40).map(" ".join))
def test_pieces_do_not_show(kind, text):
    """However a text arrives; where tokens may hold a word's end and a space, it is taken as a whole."""
    tokenizer = imported(kind)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(huggingface, "SLICE", 16)
        arrays = list(tokenizers.encode_pieces(tokenizer, [text[:7], text[7:9], text[9:]]))
    expected = as_it_is(kind).encode(text, add_special_tokens=False).ids
    assert [token for array in arrays for token in array.tolist()] == expected
    assert tokenizer.cuts == ("within" not in kind)


@pytest.mark.parametrize("kind", THEIRS)
def test_it_is_saved_whole(kind, tmp_path):
    tokenizer = imported(kind)
    tokenizers.save(tokenizer, tmp_path / "tokenizer.json")
    again = tokenizers.load(tmp_path / "tokenizer.json")
    assert tokenizers.digest(again) == tokenizers.digest(tokenizer) and again.name == "hf"
    assert vars(again)["special"] == {"eos_token": "</s>", "bos_token": "<s>"}
    assert again.encode_ordinary(TEXTS[0]) == tokenizer.encode_ordinary(TEXTS[0])
    files = to_texts(again, context=64)
    assert files | folder(kind) == files  # what came in goes out as it came
    assert json.loads(files["generation_config.json"]) == {"bos_token_id": 1, "eos_token_id": 2}


@pytest.mark.parametrize("kind", [kind for kind in THEIRS if "within" not in kind])
def test_words_are_looked_up_as_they_stand_in_a_sentence(kind):
    """Ġthe in one vocabulary, ▁the in another, the where words are all there is."""
    tokenizer = imported(kind)
    known = vocabulary(tokenizer, ["the", "if"], case="exact")
    words = {"byte-level": "Ġ{}", "WordLevel": "{}"}.get(kind.split(" with")[0], "▁{}")
    for word in ("the", "if"):
        assert known[word] == (tokenizer.vocabulary[words.format(word)],)
        assert tuple(tokenizers.encode_within(tokenizer, f" {word}")) == known[word]
    assert len(known) > 20


def test_what_opens_a_text_is_told():
    """By the post-processor: Llama's <s>. Otherwise a text begins after the end of the one before."""
    assert imported("Prepend").prefix == [1] and tokenizers.opening(imported("Prepend")) == 1
    for tokenizer in (imported("byte-level"), ours("bytes")):
        assert tokenizers.prefix(tokenizer) == [] and tokenizers.opening(tokenizer) == tokenizer.eot_token


def test_what_ends_a_text_is_looked_for_in_every_file():
    """The name of a token before numbers; all numbers end an answer."""
    alone, generation = {"tokenizer.json": theirs("byte-level")}, {"generation_config.json": '{"eos_token_id": [3, 2]}'}
    named = {"tokenizer_config.json": '{"eos_token": "</s>"}'}
    mapped = {"special_tokens_map.json": '{"eos_token": {"content": "<|user|>"}}'}
    for files, config, expected in [
        (alone, None, (2,)),  # by the usual name
        (alone, {"eos_token_id": 3}, (3,)),
        (alone | generation, {"eos_token_id": 0}, (3, 2)),
        (alone | generation | named, None, (2, 3)),
        (alone | mapped, None, (3,)),
        (alone | mapped | named, None, (2,)),
    ]:
        tokenizer = from_texts(files, config)
        assert (tokenizer.eot_token, tokenizer.ends) == (expected[0], expected)


def test_special_tokens_are_read_in_chats_alone():
    tokenizer = imported("byte-level")
    text = "<|user|>not</s>"
    assert not {2, 3} & set(tokenizer.encode_ordinary(text))
    marked = tokenizer.encode_marked(text)
    assert (marked[0], marked[-1]) == (3, 2) and tokenizer.decode(marked) == text
    assert not {2, 3} & set(tokenizer.encode_ordinary(text))  # and not from then on


TEMPLATE = """{%- if tools %}{{ tools | tojson }}{% endif %}{% for message in messages %}
    {% if message.role not in ["system", "user", "assistant"] %}
        {{ raise_exception("no such role: " + message.role) }}
    {% endif %}
    {% if message.role == "assistant" %}
{% generation %}{{ message.content | trim }}{% endgeneration %}{{ eos_token }}{% continue %}
    {% endif %}
{{ bos_token }}<|{{ message.role }}|>{{ message.content }}
{% endfor %}
{% if add_generation_prompt %}<|assistant|>{% endif %}"""
MESSAGES = [{"role": "user", "content": "hello  <b>&"}, {"role": "assistant", "content": " yes\n"},
            {"role": "user", "content": "é日"}]  # fmt: skip
TEMPLATES = [
    {"chat_template.jinja": TEMPLATE},
    {"tokenizer_config.json": json.dumps(CONFIG | {"chat_template": TEMPLATE})},
    {"tokenizer_config.json": json.dumps(CONFIG | {"chat_template": [{"name": "default", "template": TEMPLATE}]})},
]


def rendered(tokenizer, messages=MESSAGES, generation=True) -> str:
    return render(tokenizer.chat_template, messages, tokenizer.special, generation=generation)


@pytest.mark.parametrize("files", TEMPLATES, ids=["a file", "a setting", "several"])
def test_chats_are_rendered(files):
    tokenizer = from_texts(folder("byte-level") | files)
    expected = "<s><|user|>hello  <b>&\nyes</s><s><|user|>é日\n"
    assert rendered(tokenizer) == expected + "<|assistant|>"
    assert rendered(tokenizer, generation=False) == expected


@pytest.mark.parity
def test_chats_are_what_transformers_renders(tmp_path):
    transformers = library("transformers")
    config = {"eos_token": "</s>", "bos_token": "<s>", "tokenizer_class": "PreTrainedTokenizerFast"}
    files = folder("byte-level") | {"chat_template.jinja": TEMPLATE, "tokenizer_config.json": json.dumps(config)}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    auto = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for generation in (True, False):
        expected = auto.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=generation)
        assert rendered(from_texts(files), generation=generation) == expected


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (TEMPLATE, "no such role: devil"),
        ("{{ messages.__class__.__mro__ }}", "chat template"),  # out of the sandbox
        ("{% for", "chat template"),
        ("{{ messages[9].content.x }}", "chat template"),
        ("{{ 1 / 0 }}", "chat template"),
    ],
)
def test_chats_that_cannot_be_rendered_are_one_line(template, message):
    tokenizer = from_texts(folder("byte-level") | {"chat_template.jinja": template})
    with pytest.raises(UserError, match=message):
        rendered(tokenizer, [{"role": "devil", "content": "x"}])


def changed(**changes):
    """The tokenizer.json of byte-level BPE with other parts; `model` changes within the model."""
    made = json.loads(theirs("byte-level"))
    return json.dumps(made | changes | {"model": made["model"] | changes.get("model", {})})


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no tokenizer.json, nor vocab.json with merges.txt: a tokenizer.model alone is not read"),
        ({"tokenizer.json": "{"}, "tokenizer.json is no JSON"),
        ({"tokenizer.json": "[" * 100_000}, "tokenizer.json is no JSON"),
        ({"tokenizer.json": "[]"}, "tokenizer.json: expected a JSON object"),
        ({"tokenizer.json": "{}"}, "nothing ends a text"),
        ({"tokenizer.json": '{"model": []}'}, "nothing ends a text"),
        ({"tokenizer.json": '{"added_tokens": 5}'}, "nothing ends a text"),
        ({"tokenizer.json": '{"model": {"type": "Unigram"}, "added_tokens": [{"id": 0, "content": "</s>"}]}'},
         "a model of type Unigram"),
        ({"tokenizer.json": changed(model={"type": ["BPE"]})}, "a model of type"),
        ({"tokenizer.json": changed(model={"continuing_subword_prefix": "("})}, "marks the parts"),  # or abort
        ({"tokenizer.json": changed(decoder={"type": "Sequence", "decoders": [{}]})}, "tokenizer.json"),
        ({"tokenizer.json": changed(model={"dropout": 0.1})}, "draws its merges at random"),
        ({"tokenizer.json": changed(model={"merges": ["ab zz"]})}, "cannot be read"),
        ({"tokenizer.json": changed(model={"vocab": {"a": 1 << 30, "</s>": 2}, "merges": []})}, "numbered up to"),
        ({"tokenizer.json": changed(decoder={"type": "WordPiece", "prefix": "##", "cleanup": True})}, "WordPiece"),
        ({"tokenizer.json": changed(decoder={"type": "Nonsense"})}, "cannot be read"),
        ({"tokenizer.json": changed(normalizer=5)}, "cannot be read"),
        ({"tokenizer.json": theirs("byte-level"), "tokenizer_config.json": "no"}, "tokenizer_config.json is no JSON"),
        ({"tokenizer.json": theirs("byte-level"), "generation_config.json": '{"eos_token_id": 99999}',
          "tokenizer_config.json": '{"eos_token": 5}'}, "is none of its"),
    ],
)  # fmt: skip
def test_what_is_no_tokenizer_is_one_line(files, message, capfd):
    with pytest.raises(UserError, match=re.escape(message)) as refused:
        from_texts(files)
    assert len(str(refused.value)) < 400 and capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "change",
    [{"files": {}}, {"files": {"tokenizer.json": 5}}, {"special": [5]}, {"ends": ["2"]}, {"end_of_text": True},
     {"end_of_text": -1}, {"chat_template": 5}, {"files": {"tokenizer.json": "{}"}}],
)  # fmt: skip
def test_a_damaged_file_of_it_is_one_line(change, tmp_path):
    (tmp_path / "tokenizer.json").write_text(json.dumps(imported("byte-level").to_json() | change))
    with pytest.raises(UserError, match="is not a saved tokenizer") as refused:
        tokenizers.load(tmp_path / "tokenizer.json")
    assert len(str(refused.value)) < 400


def test_a_folders_own_file_is_told_from_ours(tmp_path):
    (tmp_path / "tokenizer.json").write_text(theirs("byte-level"))
    with pytest.raises(UserError, match="it is Hugging Face's: bring it in with its folder, by `lm import`"):
        tokenizers.load(tmp_path / "tokenizer.json")
