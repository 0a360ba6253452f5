"""Word vectors are the model's own rows and states: against plain loops, one word and one place at a time."""

import re

import jax
import numpy as np
import pytest
from close import assert_close, relative_error
from probe_cases import little

from lm import tokenizer as tokenizers
from lm.config import DataConfig
from lm.errors import UserError
from lm.probe import contextual, neighbours, spaces_of, vocabulary

TEXT = "a king saw the Queen of a kingdom and the king saw a king , then the queen saw the old king of the kingdoms . "


@pytest.fixture(scope="module")
def words():
    return tokenizers.build(DataConfig(tokenizer="words", vocab=300), [TEXT])


@pytest.fixture(scope="module")
def pairs():
    """Byte pairs that know ` king` and ` the` whole, ` kingdom` and most others in pieces."""
    return tokenizers.build(DataConfig(tokenizer="bpe", vocab=272), [" king the" * 50 + TEXT])


def test_a_word_is_one_token_with_its_space(words, pairs):
    known = vocabulary(words)
    assert {"king", "Queen", "queen", "kingdoms"} <= set(known) and "," not in known
    assert all(words.decode(tokens) == f" {word}" and len(tokens) == 1 for word, tokens in known.items())
    assert "kingdom" not in vocabulary(pairs, ["kingdom"])
    assert vocabulary(pairs, ["kingdom"], pieces="mean")["kingdom"] == tuple(pairs.encode_ordinary(" kingdom"))


def test_the_case_rule_keeps_pieces_from_doubling_a_word(pairs):
    """Under fold ` king` stands for King; exactly, King is another word, of several tokens."""
    assert "King" not in vocabulary(pairs, ["King"], pieces="mean", case="fold")
    assert len(vocabulary(pairs, ["King"], pieces="mean", case="exact")["King"]) > 1
    with pytest.raises(UserError, match="no word is a single token of tokenizer bytes"):
        vocabulary(tokenizers.ByteTokenizer())
    with pytest.raises(UserError, match="pieces 'all': single"):
        vocabulary(pairs, pieces="all")


def test_input_and_unembedding_are_the_models_matrices(pairs):
    m = little(pairs)
    rows = {"input": np.asarray(m.params["embedding"]), "unembedding": np.asarray(m.params["head"]).T}
    for space in spaces_of(m, ["input", "unembedding"], words=["kingdom", "queen"], pieces="mean"):
        vector = dict(zip(space.words, space.vectors_VD, strict=True))
        for word in ("king", "kingdom", "queen"):
            tokens = pairs.encode_ordinary(f" {word}")
            assert_close(vector[word], rows[space.name][tokens].mean(0), relative=1e-6)


def test_tied_models_have_one_matrix_and_say_so(words):
    m = little(words, tied=True)
    found = spaces_of(m, text=TEXT)
    assert [space.name for space in found] == ["input", "contextual.1", "contextual.2"]
    assert "one matrix" in found[0].about
    first, second = spaces_of(m, ["input", "unembedding"])
    np.testing.assert_array_equal(first.vectors_VD, second.vectors_VD)
    names = [space.name for space in spaces_of(little(words), text=TEXT)]
    assert names == ["input", "unembedding", "contextual.1", "contextual.2"]


def plain_contexts(m, text: str, word: str, rows: list[list[int]]) -> np.ndarray:
    """[L, D]: the mean over the word's places in rows of tokens, found by writing out each row and looking for the
    word with a space before and no letter behind."""
    states = []
    for row in rows:
        _, taps = m.apply(np.array([row]), taps=("residual.after",))
        after_LTD = np.asarray(taps["residual.after"])[:, 0]
        ends = np.cumsum([len(m.tokenizer.decode([token])) for token in row])
        text = m.tokenizer.decode(row)
        for match in re.finditer(rf" {word}(?!\w)", text):
            inside = [i for i, end in enumerate(ends) if match.start() < end <= match.end()]
            if inside[0] > 0 and match.end() < len(text):
                states.append(after_LTD[:, inside].mean(1))
    return np.mean(states, axis=0)


@pytest.mark.parametrize("kind", ["words", "pairs"])
def test_contextual_vectors_are_means_over_places(kind, request):
    """` king` in ` kingdom` does not count, the window's first word and its last neither; pieces are averaged."""
    encoding = request.getfixturevalue(kind)
    m, known = little(encoding), vocabulary(encoding, ["kingdom", "saw", "old"], pieces="mean", case="exact")
    tokens = [encoding.eot_token, *encoding.encode_ordinary(TEXT)]  # as training lays a document out
    T = min(m.experiment.model.context, len(tokens))
    count = -(-len(tokens) // T)
    starts = np.linspace(0, len(tokens) - T, count).astype(int)
    rows = [tokens[start : start + T] for start in starts]
    made = contextual(m, known, text=TEXT)
    for word in ("king", "kingdom", "saw", "the"):
        expected_LD = plain_contexts(m, TEXT, word, rows)
        for space, vector_D in zip(made, expected_LD, strict=True):
            assert_close(space.vectors_VD[space.words.index(word)], vector_D, relative=1e-5, what=word)
    assert "places" in made[0].about and "missing" not in made[0].words


def test_no_context_crosses_documents_where_training_had_none(words):
    """With packing, a word's states in the second document are those of the document alone."""
    m = little(words, packing=True)
    eot = words.eot_token
    first, second = ([eot, *words.encode_ordinary(text)] for text in (" the old saw", " a king saw the queen of a"))
    both, alone = (contextual_of_tokens(m, words, row) for row in ([*first, *second], second))
    king = [space.vectors_VD[space.words.index("king")] for space in (both, alone)]
    assert_close(*king, relative=1e-5)
    loose = contextual_of_tokens(little(words), words, [*first, *second])
    assert relative_error(loose.vectors_VD[loose.words.index("king")], king[0]) > 1e-3


def contextual_of_tokens(m, encoding, tokens):
    """The last layer's space of tokens that no text could write."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lm.probe.contexts._tokens", lambda m, text: np.array(tokens))
        return contextual(m, vocabulary(encoding))[-1]


def test_long_texts_are_read_in_part_and_in_batches(words, monkeypatch):
    """So many tokens from windows spread evenly; the batch does not show."""
    m, known = little(words), vocabulary(words)
    text = TEXT * 40
    whole = contextual(m, known, text=text)[1]
    monkeypatch.setattr("lm.probe.contexts.BATCH_TOKENS", 96)
    seen = []
    cut = contextual(m, known, text=text, report=lambda done, total: seen.append((done, total)))[1]
    assert_close(whole.vectors_VD, cut.vectors_VD, relative=1e-5)
    assert seen[-1][0] == seen[-1][1] and len(seen) > 1
    assert "in 72 tokens" in contextual(m, known, text=text, tokens=60)[0].about


def test_what_cannot_be_is_said(words):
    m = little(words)
    with pytest.raises(UserError, match=r"space inputs: no such space; did you mean input\?"):
        spaces_of(m, ["inputs"])
    with pytest.raises(UserError, match="contextual spaces need a text"):
        spaces_of(m, ["contextual.1"])
    with pytest.raises(UserError, match=r"none of the \d+ words stands in the text"):
        spaces_of(m, ["contextual"], text="xyzzy, plugh!")
    with pytest.raises(UserError, match="a text of 0 tokens"):
        spaces_of(m, ["contextual"], text="")


def test_a_chosen_space_is_the_one_that_answers(words):
    m = little(words)
    assert neighbours(m, "king", space="unembedding").space == "unembedding"
    assert neighbours(m, "king", space="contextual", text=TEXT).space == "contextual.2"
    assert jax.tree.leaves(m.params)  # the model is left as it was
