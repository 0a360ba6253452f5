"""Models and data with a tokenizer that came with a model: what else in lm reads text asks it nothing it cannot say."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from tokenizer_cases import TEXTS, theirs

from lm import tokenizer as tokenizers
from lm.config import DataConfig, Experiment, ModelConfig
from lm.data import supply, tokens
from lm.evaluation import evaluate
from lm.exchange.tokenizers import from_texts
from lm.model.api import build
from lm.model.trained import Trained
from lm.probe import rows
from lm.sample.generate import Generator, Sample
from lm.sample.prompts import readings
from lm.sample.text import Continuation
from lm.tokenizer import HuggingFaceTokenizer

pytest.importorskip("tokenizers", reason="needs the extra exchange")
KINDS = ["byte-level", "Prepend"]  # without and with a space and a token before a text


@pytest.fixture(scope="module", params=KINDS)
def little(request):
    """L=1, D=8, T=16 and random parameters, with 7 rows more than there are tokens."""
    config = json.dumps({"eos_token": "</s>", "bos_token": "<s>"})
    tokenizer = from_texts({"tokenizer.json": theirs(request.param), "tokenizer_config.json": config})
    c = ModelConfig(layers=1, width=8, heads=1, context=16, vocab=tokenizer.n_vocab + 7, dtype="float32")
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: np.float32(rng.normal(size=leaf.shape)), build(c).shapes())
    return Trained(params, tokenizer, Experiment(model=c), step=0)


def test_a_text_is_opened_as_its_makers_did(little):
    begins = little.tokenizer.prefix == [1]
    assert rows.beginning(little) == ([1] if begins else [2])  # <s>, or the end of the text before
    assert rows.encode(little, "the if")[1:] == little.tokenizer.encode_ordinary("the if")
    assert little.tokenizer.decode(rows.continuation(little, "the")).strip() == "the"
    assert rows.continuation(little, "the") == list(little.tokenizer.encode_within(" the"))


@pytest.mark.parametrize("text", ["the if", "if the", "self, if. the", "é if"])
def test_words_of_a_text_are_found_in_its_tokens(little, text):
    """The space that stands before a text's first word is none of the text."""
    touched_T, encoded = rows.places(little, text, "if"), np.array(rows.encode(little, text))
    assert little.tokenizer.decode_bytes(encoded[touched_T].tolist()).decode().strip() == "if"


def test_a_prompt_is_opened_and_what_a_model_writes_is_text(little):
    """Numbers beyond the vocabulary too, which write nothing; a first word keeps its space, for it goes on."""
    tokenizer, vocab = little.tokenizer, little.model.config.vocab
    read = [reading.tokens for reading in readings(little, ["the if", ""])]
    assert read[0] == tokenizer.prefix + tokenizer.encode_ordinary("the if")
    assert read[1] == (tokenizer.prefix or [tokenizer.eot_token])
    written = Continuation(tokenizer)
    for token in [*tokenizer.encode_within(" é日 if"), vocab - 1, *tokenizer.encode_within(" the")]:
        written.push(token, -1.0)
    written.finish()
    assert written.text == " é日 if the"
    assert tokenizers.spell(tokenizer, [vocab - 1, tokenizer.eot_token]) == ["", "</s>"]


def test_a_text_is_scored(little):
    text = "the if for"
    score = evaluate(little, text)
    encoded = little.tokenizer.encode_ordinary(text)
    assert score.tokens == len(encoded) and score.bytes == len(text) + (little.tokenizer.prefix == [1])
    row = [tokenizers.opening(little.tokenizer), *encoded]
    logits_TV = np.asarray(little.apply([row])[0][0], np.float64)
    logprobs_TV = logits_TV - np.logaddexp.reduce(logits_TV, axis=-1, keepdims=True)
    np.testing.assert_allclose(score.loss, -logprobs_TV[np.arange(len(encoded)), encoded].mean(), rtol=1e-5)


def test_training_reads_it(little, tmp_path, monkeypatch):
    """Large corpora too, of which the parts of a document are not encoded apart where a space is put before each."""
    (tmp_path / "text.txt").write_text(TEXTS[0])
    tokenizers.save(little.tokenizer, tmp_path / "tokenizer.json")
    data = DataConfig(corpus=str(tmp_path / "text.txt"), tokenizer=str(tmp_path / "tokenizer.json"))
    whole = supply.prepare(data)
    written = np.concatenate([whole.train.tokens, whole.validation.tokens]).tolist()
    assert little.tokenizer.decode(written).replace(" ", "") == TEXTS[0].replace(" ", "")
    monkeypatch.setattr(tokens, "LARGE", 1000)
    monkeypatch.setattr(tokenizers, "SLICE", 500)
    monkeypatch.setenv("LM_CACHE", str(tmp_path / "cache"))
    parts = supply.prepare(data)
    np.testing.assert_array_equal(parts.train.tokens[:], whole.train.tokens)
    assert bool(parts.train.shards) == tokenizers.independent(little.tokenizer)


def test_a_chat_is_answered(little, lm, monkeypatch):
    """What a user says is laid out by the model's template, and its special tokens are tokens."""
    asked = []

    def answer(m, prompts, *_, **settings):
        asked.append((prompts, settings["max_tokens"]))
        return [Sample("", "yes", [], [], [], "length") for _ in prompts]

    template = "{% for m in messages %}<|user|>{{ m.content }}{% endfor %}</s>"
    special = dict(special=little.tokenizer.special, ends=little.tokenizer.ends, chat_template=template)
    chatting = dataclasses.replace(little, tokenizer=HuggingFaceTokenizer(little.tokenizer.files, 2, **special))
    monkeypatch.setattr("lm.sample.generate.generate", answer)
    monkeypatch.setattr("lm.commands.sample._generator", lambda o: Generator(chatting))
    status, out, _ = lm("sample", "any", "--chat", "--prompt", "if", "--json")
    assert status == 0 and json.loads(out)["samples"][0]["text"] == "yes"
    (prompt,), room = asked[0]
    assert (prompt[0], prompt[-1]) == (3, 2) and chatting.tokenizer.decode(prompt[1:-1]) == "if"
    assert room == 16 - (len(prompt) - 1)
    monkeypatch.setattr("lm.commands.sample._generator", lambda o: Generator(little))
    assert lm("sample", "any", "--chat")[::2] == (
        2,
        "lm: this tokenizer has no chat template: its model is not made for chats\n",
    )
    assert lm("sample", "any", "--chat", "--beam", "2")[::2] == (2, "lm: --chat: leave out --source and --beam\n")
