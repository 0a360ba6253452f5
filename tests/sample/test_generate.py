"""What a caller of `generate` may rely on."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sample_cases import ALPHABET, Letters, little

from lm.errors import UserError
from lm.model.api import LanguageModel
from lm.sample import generate as module
from lm.sample.decoding import decode, prefill
from lm.sample.generate import Generator, Sample, generate
from lm.sample.samplers import Sampler
from lm.tokenizer import ByteTokenizer

# Between 17 and 32 tokens a row, and one or two rows, almost everywhere below: so few programs are compiled.
M = little()
WARM = Sampler(temperature=1.2)


def test_changing_settings_compiles_nothing():
    """One program for reading and one for decoding serve every sampler, seed, stop string and similar length."""
    generate(M, ["ab", "c"], max_tokens=20)
    compiled = decode._cache_size(), prefill._cache_size()
    for sampler in (
        Sampler(temperature=0), Sampler(temperature=2), Sampler(top_k=3), Sampler(top_p=0.5), Sampler(min_p=0.1),
        Sampler(repetition_penalty=1.5), Sampler(0.5, 10, 0.9, 0.01, 1.1),
    ):  # fmt: skip
        generate(M, ["ab", "c"], sampler, max_tokens=20)
    generate(M, ["abcdefgh", ""], seed=2**31, max_tokens=16, stop="q", on_text=lambda row, text: None)
    assert (decode._cache_size(), prefill._cache_size()) == compiled


def test_a_row_does_not_depend_on_the_rest_of_the_batch():
    """Row 1 is the same beside short and long, ended and unended, neighbours, alone or not in its number of samples."""
    alone = generate(M, ["x", "The"], WARM, max_tokens=17)[1]
    for prompts in (["a much longer", "The"], ["y", "The", "z"], ["", "The"]):
        assert _alike(generate(M, prompts, WARM, max_tokens=17)[1], alone)
    assert _alike(generate(M, ["The"], WARM, max_tokens=17, samples=2)[1], alone)


def _alike(a: Sample, b: Sample) -> bool:
    """Equal but for rounding: products over more rows may add in another order."""
    logprobs = pytest.approx(b.logprobs, rel=1e-5, abs=1e-5)  # of logits of size one
    return dataclasses.replace(a, logprobs=[]) == dataclasses.replace(b, logprobs=[]) and a.logprobs == logprobs


def test_prompts_may_be_tokens():
    """They are read as they stand, and go on as the text they spell; the prompt of a sample is always text."""
    tokens = [ALPHABET.index(letter) for letter in "The"]
    by_text, by_tokens = (generate(M, [prompt, "x"], WARM, max_tokens=17) for prompt in ("The", tokens))
    assert by_text == by_tokens
    for wrong in ([65], [-1], ["T"]):
        with pytest.raises(UserError, match="no token"):
            generate(M, [wrong], max_tokens=1)


@pytest.mark.parametrize("array", [jnp.array, np.array])
def test_parameters_changed_in_place_are_used_at_once(array):
    """The layout made for one call serves no other, be the tree changed or a NumPy array's contents."""
    m = little()
    m.params["head"] = array(m.params["head"])
    before = generate(m, ["Cheese"], Sampler(temperature=0), max_tokens=12)
    if array is np.array:
        m.params["head"] *= -1
    else:
        m.params["head"] = -m.params["head"]
    after = generate(m, ["Cheese"], Sampler(temperature=0), max_tokens=12)
    fresh = dataclasses.replace(m, params=jax.tree.map(jnp.array, m.params))
    assert before != after == generate(fresh, ["Cheese"], Sampler(temperature=0), max_tokens=12)


def test_a_generator_lays_parameters_out_once(monkeypatch):
    """Calls of one row share a layout, several rows have another, and both say what the model says."""
    generator, laid_out = Generator(M), []
    lay_out = LanguageModel.lay_out
    monkeypatch.setattr(LanguageModel, "lay_out", lambda *args: laid_out.append(args[2]) or lay_out(*args))
    for prompts in (["ab"], ["c"], ["ab", "c"], ["c", "ab"]):
        assert generate(generator, prompts, max_tokens=5, seed=3) == generate(M, prompts, max_tokens=5, seed=3)
    assert laid_out == [1, 1, 1, 2, 2, 2], "each generate(M) lays out anew, the generator once a kind"


def test_the_seed_and_the_row_decide():
    """The same seed repeats; other seeds and further samples of a prompt differ."""
    first = generate(M, ["The"], WARM, max_tokens=17, samples=2, seed=5)
    assert generate(M, ["The"], WARM, max_tokens=17, samples=2, seed=5) == first
    others = generate(M, ["The"], WARM, max_tokens=17, samples=2, seed=6)
    assert len({sample.text for sample in first + others}) == 4


def test_a_sample_taken_as_prompt_goes_on_as_it_did():
    """Each draw depends on the place in the row, not on where the prompt ended."""
    (whole,) = generate(M, ["The"], WARM, max_tokens=28)
    (rest,) = generate(M, ["The" + whole.text[:8]], WARM, max_tokens=20)
    assert rest.text == whole.text[8:]


@pytest.mark.parametrize("past_context", ["error", "slide"])
def test_chunks_change_nothing(monkeypatch, past_context):
    """A token at a time, a few, or as many as there is room for; sliding within a chunk included."""
    n = 28 if past_context == "error" else 50
    ask = dict(max_tokens=n, past_context=past_context, samples=2)
    whole = generate(M, ["The"], WARM, **ask)
    for size in (1, 3, 8):
        monkeypatch.setattr(module, "WATCHED", size)
        assert generate(M, ["The"], WARM, **ask, on_text=lambda row, text: None) == whole


def test_an_empty_prompt_starts_a_document():
    """As the token files do: from the end of the text before."""
    told = dataclasses.replace(M, tokenizer=Letters(end=ALPHABET.index("7")))
    (empty,), (spelled,) = generate(told, [""], WARM, max_tokens=20), generate(M, ["7"], WARM, max_tokens=20)
    assert empty.tokens == spelled.tokens and empty.prompt == ""


def test_the_end_of_text_ends_a_row_and_is_not_text():
    """The row's neighbours go on; the row is what it would be if nothing ended, up to there."""
    free, other = generate(M, ["The", "q"], WARM, max_tokens=20)
    end = next(t for t in free.tokens[5:] if t not in other.tokens and ALPHABET[t] not in "Theq")
    at = free.tokens.index(end)
    told = dataclasses.replace(M, tokenizer=Letters(end))
    row, neighbour = generate(told, ["The", "q"], WARM, max_tokens=20)
    assert (row.tokens, row.text, row.ended) == (free.tokens[:at], free.text[:at], "end of text")
    assert row.logprobs == free.logprobs[:at]
    assert neighbour == other and other.ended == "length"


@pytest.mark.parametrize("at", [0, 3, 6, 15])
def test_a_stop_string_over_tokens_and_chunks_cuts_the_text(at):
    """Four tokens long, it starts at the beginning, inside a chunk of 8, across its border, or in the second."""
    (free,) = generate(M, ["The"], WARM, max_tokens=24)
    stop = free.text[at : at + 4]
    assert free.text.index(stop) == at
    (cut,) = generate(M, ["The"], WARM, max_tokens=24, stop=["never this", stop])
    assert (cut.text, cut.tokens, cut.logprobs) == (free.text[:at], free.tokens[:at], free.logprobs[:at])
    assert cut.ended == "stop"
    assert generate(M, ["The"], WARM, max_tokens=24, stop=stop) == [cut]  # a string alone is one stop string


def test_a_stopped_row_stays_stopped_while_others_go_on():
    """Chunks later its neighbour is still being made, and nothing is added to it."""
    first, second = generate(M, ["The", "q"], WARM, max_tokens=28)
    stop = next(first.text[i : i + 3] for i in range(20) if first.text[i : i + 3] not in second.text)
    assert generate(M, ["The", "q"], WARM, max_tokens=28, stop=stop)[1] == second
    stopped = generate(M, ["The", "q"], WARM, max_tokens=28, stop=stop)[0]
    assert stopped.text == first.text[: first.text.index(stop)] and stopped.ended == "stop"


def test_pieces_shown_join_to_the_text():
    """Random bytes are mostly broken characters, and some whole ones of several bytes: both come out the same."""
    m = little(ByteTokenizer())
    shown = ["", ""]

    def on_text(row, piece):
        assert piece
        shown[row] += piece

    samples = generate(m, ["é"], Sampler(temperature=5.0), max_tokens=30, samples=2, on_text=on_text)
    assert shown == [sample.text for sample in samples]
    assert [sample.text for sample in samples] == [m.tokenizer.decode(sample.tokens) for sample in samples]


def test_the_repetition_penalty_counts_the_prompt_and_what_was_made():
    """Left to itself the model repeats its prompt's letters; under a large penalty no letter comes twice."""
    (free,) = generate(M, ["q"], Sampler(temperature=0), max_tokens=20)
    prompt = "".join(dict.fromkeys(free.text[:8]))
    (again,) = generate(M, [prompt], Sampler(temperature=0), max_tokens=20)
    assert set(again.text) & set(prompt), "nothing to avoid: the test says little"
    (varied,) = generate(M, [prompt], Sampler(temperature=0, repetition_penalty=100), max_tokens=20)
    assert len(set(prompt + varied.text)) == len(prompt) + 20


def test_the_context_can_be_filled_to_the_last_token():
    """The last token made is not read, so a context of 32 gives 32 - 4 + 1 tokens after a prompt of 4, and no more."""
    (full,) = generate(M, ["Four"], WARM, max_tokens=29)
    assert len(full.tokens) == 29
    with pytest.raises(
        UserError, match=r"'Four' is 4 tokens, .* context 32: max_tokens 30 must be at most 29, or .*slide"
    ):
        generate(M, ["Four"], WARM, max_tokens=30)
    (slid,) = generate(M, ["Four"], WARM, max_tokens=30, past_context="slide")
    assert slid.tokens[:29] == full.tokens


def test_nothing_is_made_before_an_error():
    shown = []
    with pytest.raises(
        UserError, match=r"is 40 tokens, the model's context 32: shorten it, or choose past_context slide"
    ):
        generate(M, ["fine", "w" * 40], max_tokens=4, on_text=lambda row, text: shown.append(text))
    assert shown == []


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (dict(max_tokens=0), "max_tokens 0: must be at least 1"),
        (dict(samples=0), "samples 0: must be at least 1"),
        (dict(seed=-1), "seed -1: must be at least 0"),
        (dict(seed=2**32), r"seed 4294967296: must be .* below 2\^32"),
        (dict(seed=0.5), "seed 0.5: expected int"),
        (dict(max_tokens=2.5), "max_tokens 2.5: expected int"),
        (dict(max_tokens=float("inf")), "max_tokens inf: expected int"),
        (dict(samples=True), "samples True: expected int"),
        (dict(samples=1 << 20), "1,048,576 rows .*: at most 65,536 at once"),
        (dict(prompts=["a", 5]), "prompt 5: expected a string"),
        (dict(stop=[b"x"]), "stop b'x': expected a string"),
        (dict(stop=["", "x"]), "stop: an empty string"),
        (dict(past_context="wrap"), "past_context 'wrap': 'error' or 'slide'"),
        (dict(prompts="Hello"), r"prompts 'Hello': one text where a list is due; write \['Hello'\]"),
    ],
)
def test_mistakes_are_named(ask, message):
    with pytest.raises(UserError, match=message):
        generate(**(dict(m=M, prompts=["a"]) | ask))


def test_the_tokenizer_must_be_the_models():
    with pytest.raises(UserError, match="the tokenizer has 257 tokens, the model 65"):
        generate(dataclasses.replace(M, tokenizer=ByteTokenizer()), ["a"])


def test_no_prompts_no_samples():
    assert generate(M, []) == []
