"""Beam search against all sequences there are, a plain search, greedy decoding and the full pass."""

import dataclasses
import itertools
import json

import jax
import numpy as np
import pytest
from close import assert_close
from sample_cases import ALPHABET, Letters, little

from lm.config import EncoderConfig, Experiment, RecurrentConfig
from lm.errors import UserError
from lm.model.api import Inputs, build
from lm.model.trained import Trained
from lm.run import load
from lm.sample import beam as module
from lm.sample.beam import beam_search, score_texts, search_errors
from lm.sample.decoding import full_logits
from lm.sample.generate import generate, generate_naive
from lm.sample.samplers import Sampler
from lm.tokenizer import CharTokenizer

EXPONENTS = [0.0, 0.6, 1.0, 2.5]


def of_four(architecture: str) -> Trained:
    """Random parameters over a, b, c and the end of text: V = 4, padded to 8."""
    if architecture == "transformer":
        return little(CharTokenizer("abc"))
    c, rng = RecurrentConfig(layers=2, width=16, context=32, vocab=4, dtype="float32"), np.random.default_rng(1)
    draw = jax.tree.map(lambda leaf: jax.numpy.asarray(rng.normal(size=leaf.shape) * 0.7, "float32"), build(c).shapes())
    return Trained(draw, CharTokenizer("abc"), Experiment(model=c), step=0)


FOUR = {name: of_four(name) for name in ("transformer", "lstm")}


def likelihoods(m: Trained, prompt: list[int], most: int) -> dict[tuple[int, ...], float]:
    """The log-probability of every continuation: those that end, and those of the greatest length. By full passes."""
    end = m.tokenizer.eot_token
    letters = [token for token in range(end + 1) if token != end]
    whole = list(itertools.product(letters, repeat=most))
    rows = np.array([[*prompt, *sequence] for sequence in whole], np.int32)
    logits = np.asarray(full_logits(m.model, m.params, rows), np.float64)[:, len(prompt) - 1 :, : end + 1]
    logprobs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    found = {}
    for row, sequence in enumerate(whole):
        for n in range(most + 1):
            begun = sum(logprobs[row, t, sequence[t]] for t in range(n))
            if n == most:
                found[sequence] = begun
            else:
                found[*sequence[:n], end] = begun + logprobs[row, n, end]
    return found


def ranked(found: dict[tuple[int, ...], float], exponent: float) -> list[tuple[tuple[int, ...], float]]:
    """Sequences by score, (Wu et al. 2016, eq. 14) written out."""
    scores = {sequence: nats / (((5 + len(sequence)) / 6) ** exponent) for sequence, nats in found.items()}
    return sorted(scores.items(), key=lambda item: -item[1])


def with_end(m: Trained, hypothesis) -> tuple[int, ...]:
    return (*hypothesis.tokens, *([m.tokenizer.eot_token] if hypothesis.ended == "end of text" else []))


@pytest.mark.parametrize("exponent", EXPONENTS)
@pytest.mark.parametrize("architecture", FOUR)
def test_a_wide_beam_finds_what_trying_everything_finds(architecture, exponent):
    """V = 4 and at most 5 tokens: 364 continuations, in the same order, of two prompts at once."""
    m, prompts = FOUR[architecture], ["ab", "cabbac"]
    found = beam_search(m, prompts, beam=400, length_penalty=exponent, max_tokens=5)
    for prompt, hypotheses in zip(prompts, found, strict=True):
        expected = ranked(likelihoods(m, m.tokenizer.encode_ordinary(prompt), 5), exponent)
        assert len(expected) == len(hypotheses) == 3**5 + sum(3**n for n in range(5))
        scores = dict(expected)
        assert {with_end(m, h) for h in hypotheses} == set(scores)
        assert_close([h.score for h in hypotheses], [score for _, score in expected], relative=1e-5)
        assert_close([h.score for h in hypotheses], [scores[with_end(m, h)] for h in hypotheses], relative=1e-5)
        assert with_end(m, hypotheses[0]) == expected[0][0]


def plain_search(m: Trained, prompt: list[int], beam: int, exponent: float, most: int) -> list:
    """The same search over lists, by full passes, always to the greatest length: (sequence, score), best first."""
    end = m.tokenizer.eot_token
    alive, finished = [((), 0.0)], []
    for made in range(1, most + 1):
        grown = []
        for sequence, nats in alive:
            logits = np.asarray(full_logits(m.model, m.params, np.array([[*prompt, *sequence]], np.int32)))[0, -1]
            logits = logits[: m.model.config.vocab].astype(np.float64)
            logprobs = logits - np.log(np.exp(logits).sum())
            grown += [((*sequence, token), nats + logprob) for token, logprob in enumerate(logprobs)]
        grown = sorted(grown, key=lambda item: -item[1])[:beam]
        ended = [item for item in grown if item[0][-1] == end or made == most]
        alive = [item for item in grown if item not in ended]
        finished += [(sequence, nats / ((5 + made) / 6) ** exponent) for sequence, nats in ended]
    return sorted(finished, key=lambda item: -item[1])[:beam]


@pytest.mark.parametrize("exponent", [0.0, 1.0, 3.0])
@pytest.mark.parametrize("beam", [1, 2, 3, 5])
def test_stopping_early_loses_nothing(beam, exponent):
    """A search over lists that never stops early keeps the same hypotheses; a large penalty favours late ones."""
    m = FOUR["lstm"]
    (found,) = beam_search(m, ["ab"], beam=beam, length_penalty=exponent, max_tokens=9)
    expected = plain_search(m, m.tokenizer.encode_ordinary("ab"), beam, exponent, 9)
    assert [with_end(m, h) for h in found] == [sequence for sequence, _ in expected]
    assert_close([h.score for h in found], [score for _, score in expected], relative=1e-5)


def chain(probability: np.ndarray) -> Trained:
    """A model whose next token depends on the last alone: row of a, b, c, the end; column of the next.

    With all else zero, what the head reads is the token's vector, a unit vector that the norm makes sqrt(D) = 4 long.
    """
    m = FOUR["transformer"]
    params = jax.tree.map(np.zeros_like, jax.device_get(m.params))
    params["final_norm"]["scale"] += 1
    params["embedding"][:4, :4] = np.eye(4)
    params["head"][:4, :4] = np.log(probability) / 4
    return dataclasses.replace(m, params=params)


def test_it_does_not_stop_before_a_longer_one_wins():
    """After two tokens both kept ones score more than the living one, whose further tokens cost nothing.

    A search that compares with its present score, or ends with the W-th finished one, returns the two short ones.
    """
    never = 1e-9
    m = chain(np.array([[never, 0.4, 0.1, 0.5], [never, never, 0.45, 0.55], [never, never, 1, never], [0.25] * 4]))
    ((best, second),) = beam_search(m, ["a"], beam=2, length_penalty=2.0, max_tokens=9)
    assert (best.text, best.ended, second.text, second.ended) == ("b" + "c" * 8, "length", "", "end of text")
    assert_close(best.logprob, np.log(0.4 * 0.45), relative=1e-4)
    assert_close(best.score, np.log(0.4 * 0.45) / (14 / 6) ** 2, relative=1e-4)
    assert_close(second.score, np.log(0.5), relative=1e-4)


@pytest.mark.parametrize("beam", [1, 2])
def test_it_stops_when_nothing_better_can_come(beam, monkeypatch):
    """Without a penalty a search is over when the last of those kept has ended, if all others are less likely."""
    m, steps, search = FOUR["lstm"], [], module.search

    def counting(*args, **options):
        found, made = search(*args, **options)
        steps.append(int(made))
        return found, made

    monkeypatch.setattr(module, "search", counting)
    for prompt in ("ab", "ca", "b", "ccb", "aabb", "acb"):
        (found,) = beam_search(m, [prompt], beam=beam, length_penalty=0, max_tokens=25)
        if beam == 1 and found[0].ended == "end of text":
            assert steps[-1] == len(found[0].tokens) + 1
    assert 1 < min(steps) < 25


M = little(Letters(end=ALPHABET.index("P")))
RAGGED = ["", "q", "The ", "Two households"]


def test_a_beam_of_one_is_greedy():
    """Tokens, log-probabilities and endings are those of generate at temperature 0, and of the naive loop."""
    found = beam_search(M, RAGGED, beam=1, max_tokens=16)
    greedy = generate(M, RAGGED, Sampler(temperature=0), max_tokens=16)
    assert {sample.ended for sample in greedy} == {"length", "end of text"}, "both endings should be met"
    for (hypothesis,), sample in zip(found, greedy, strict=True):
        fields = {field.name for field in dataclasses.fields(sample)} - {"logprobs"}
        assert all(getattr(hypothesis, name) == getattr(sample, name) for name in fields)
        assert_close(hypothesis.logprobs, sample.logprobs, relative=1e-5)
        start = M.tokenizer.encode_ordinary(sample.prompt) or [M.tokenizer.eot_token]
        tokens, logprobs = generate_naive(M, start, 16)
        assert list(with_end(M, hypothesis)) == tokens
        assert_close(hypothesis.logprob, sum(logprobs), relative=1e-5)


@pytest.mark.parametrize("architecture", FOUR)
def test_the_score_is_the_sum_of_the_full_pass(architecture):
    """Beam 3 through the state, and one pass over prompt and continuation; the end counts as a token."""
    m = FOUR[architecture]
    ended = [
        h for h in beam_search(m, ["abc"], beam=6, length_penalty=0.8, max_tokens=8)[0] if h.ended == "end of text"
    ]
    assert len(ended) > 1
    known = score_texts(m, ["abc"] * len(ended), [h.text for h in ended], length_penalty=0.8)
    for hypothesis, other in zip(ended, known, strict=True):
        assert hypothesis.tokens == other.tokens and other.ended == "end of text"
        assert_close(hypothesis.logprobs, other.logprobs, relative=1e-5)
        assert_close(hypothesis.logprob, other.logprob, relative=1e-5)
        assert_close(hypothesis.score, other.logprob / ((5 + len(hypothesis.tokens) + 1) / 6) ** 0.8, relative=1e-5)


def test_a_row_does_not_depend_on_its_neighbours():
    """Beside shorter and longer prompts, searched longer and shorter."""
    alone = beam_search(M, ["The "], beam=3, max_tokens=16)[0]
    for prompts in (["The ", "q"], ["Two households", "The "], ["", "The ", "z", "No"]):
        beside = beam_search(M, prompts, beam=3, max_tokens=16)[prompts.index("The ")]
        assert [h.tokens for h in beside] == [h.tokens for h in alone]
        assert_close([h.score for h in beside], [h.score for h in alone], relative=1e-5)


def test_padding_is_never_chosen_and_equals_keep_their_order():
    """Of 72 entries 65 are tokens; where all are equally likely, the first tokens of the first hypotheses are taken."""
    flat = dataclasses.replace(M, params=jax.tree.map(jax.numpy.zeros_like, M.params))
    (found,) = beam_search(flat, ["q"], beam=70, length_penalty=0, max_tokens=1)
    assert [with_end(flat, h) for h in found] == [(token,) for token in range(65)]
    (found,) = beam_search(flat, ["q"], beam=3, length_penalty=0, max_tokens=2)
    assert [h.tokens for h in found] == [[0, 0], [0, 1], [0, 2]]
    assert_close([h.logprob for h in found], [-2 * np.log(65)] * 3, relative=1e-6)


def test_search_errors_are_counted():
    """Greedy misses what a wide beam finds; the wide beam misses none of all sequences, nor of itself."""
    m, prompts = FOUR["lstm"], ["ab", "ca", "b", "ccb", "aabb", "acb"]
    options = dict(length_penalty=0.0, max_tokens=5)
    wide, greedy = (beam_search(m, prompts, beam=beam, **options) for beam in (400, 1))
    best = [hypotheses[0] for hypotheses in wide]
    missed = sum(h[0].tokens != b.tokens for h, b in zip(greedy, best, strict=True))
    assert search_errors(greedy, best) == missed > 0
    assert search_errors(wide, best) == search_errors(wide, [h[0] for h in greedy]) == 0
    for text in ("", "a", "abca", "ccc"):
        assert search_errors(wide, score_texts(m, prompts, [text] * len(prompts), length_penalty=0.0)) == 0


def test_one_program_serves_penalties_and_similar_lengths():
    """Nor does another prompt of a similar length compile anything."""
    beam_search(M, ["The "], beam=3, max_tokens=16)
    compiled = module.search._cache_size(), module.prefill._cache_size()
    for prompt, exponent, most in (("q", 0.0, 5), ("Two", 1.5, 16), ("", 0.6, 1)):
        beam_search(M, [prompt], beam=3, length_penalty=exponent, max_tokens=most)
    assert (module.search._cache_size(), module.prefill._cache_size()) == compiled


@pytest.mark.parametrize(
    "prompts, options, message",
    [
        (["a"], dict(beam=0), "beam 0: must be at least 1"),
        (["a"], dict(length_penalty=-0.5), "length_penalty -0.5: must be at least 0"),
        (["a"], dict(max_tokens=0), "max_tokens 0"),
        ("abc", {}, "one text where a list is due"),
        (
            ["a" * 20],
            dict(max_tokens=14),
            "the longest prompt is 20 tokens, the model's context 32: max_tokens 14 must",
        ),
        (["a"] * 70, dict(beam=1000), "70,000 hypotheses"),
    ],
)
def test_what_makes_no_sense_is_refused(prompts, options, message):
    with pytest.raises(UserError, match=message):
        beam_search(M, prompts, **options)


def test_no_prompts_no_hypotheses():
    assert beam_search(M, []) == []


# --- sources ---------------------------------------------------------------------------------------------------------
SOURCED = {
    "encoder": little(CharTokenizer("abc"), encoder=EncoderConfig(layers=1, width=8, heads=2, context=18)),
    "prefix": little(CharTokenizer("abc"), mask="prefix"),
    "causal": little(CharTokenizer("abc")),
}


def with_source(name: str, source: str, answer: tuple[int, ...]) -> float:
    """The log-probability of an answer's tokens by one pass without any padding, laid out by hand."""
    m, end = SOURCED[name], 3
    shown = m.tokenizer.encode_ordinary(source)
    before = [end] if name == "encoder" else [end, *shown, end]
    inputs = Inputs(
        np.array([[*before, *answer]], np.int32),
        source=Inputs(np.array([[*shown, end]], np.int32)) if name == "encoder" else None,
        open_B=np.array([len(before) - 1]) if name == "prefix" else None,
    )
    logits = np.asarray(m.model.apply(m.params, inputs)[0], np.float64)[0, len(before) - 1 : -1, :4]
    logprobs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return logprobs[np.arange(len(answer)), list(answer)].sum()


@pytest.mark.parametrize("name", SOURCED)
def test_a_source_is_answered(name):
    """Every answer of at most 3 tokens, to ragged sources: what is found is scored as by a full pass, all are found."""
    m, sources = SOURCED[name], ["abc", "ccbacabbacbcaabba", ""]
    found = beam_search(m, [""] * 3, sources=sources, beam=40, length_penalty=0.7, max_tokens=3)
    for source, hypotheses in zip(sources, found, strict=True):
        assert len(hypotheses) == 3**3 + 1 + 3 + 9
        for h in (*hypotheses[:3], hypotheses[-1]):
            answer = with_end(m, h)
            assert_close(h.logprob, with_source(name, source, answer), relative=1e-5)
            assert_close(h.score, h.logprob / ((5 + len(answer)) / 6) ** 0.7, relative=1e-6)
    ended = [next(h for h in hypotheses if h.ended == "end of text") for hypotheses in found]
    known = score_texts(m, [""] * 3, [h.text for h in ended], sources=sources, length_penalty=0.7)
    assert_close([h.score for h in known], [h.score for h in ended], relative=1e-5)
    assert len({hypotheses[0].logprob for hypotheses in found}) == 3, "the source should sway the answer"


def test_a_prompt_begins_the_answer_to_a_source():
    m = SOURCED["encoder"]
    (found,) = beam_search(m, ["ba"], sources=["abc"], beam=2, length_penalty=0, max_tokens=4)
    for h in found:
        whole, begun = (with_source("encoder", "abc", answer) for answer in ((1, 0, *with_end(m, h)), (1, 0)))
        assert_close(h.logprob, whole - begun, relative=1e-5)


@pytest.mark.parametrize(
    "prompts, sources, message",
    [
        (["a"], None, "this model answers a source: give sources"),
        (["a"], ["a", "b"], "2 sources and 1 prompts"),
        (["a"], "a", "sources 'a': one text where a list is due"),
        ([""], ["a" * 18], "the longest source is 19 tokens with its end, the encoder's context 18"),
    ],
)
def test_sources_that_do_not_fit_are_refused(prompts, sources, message):
    with pytest.raises(UserError, match=message):
        beam_search(SOURCED["encoder"], prompts, sources=sources, max_tokens=3)


# --- lm sample --beam ------------------------------------------------------------------------------------------------
def test_the_command_searches(tiny_run, lm):
    """One prompt is shown with its best continuation, several one by one; JSON has all that was kept."""
    m = load(tiny_run)
    options = ("--beam", 3, "--length-penalty", 1.5, "--max-tokens", 6)
    (the,), (the_again, a) = (
        [hypotheses[0].text for hypotheses in beam_search(m, prompts, beam=3, length_penalty=1.5, max_tokens=6)]
        for prompts in (["the"], ["the", "a"])
    )
    assert lm("sample", tiny_run.path, "--prompt", "the", *options) == (0, f"the{the}\n", "")
    expected = f"--- 1 of 2 ---\nthe{the_again}\n--- 2 of 2 ---\na{a}\n"
    assert lm("sample", tiny_run.path, "--prompt", "the", "a", *options) == (0, expected, "")
    _, out, _ = lm("sample", tiny_run.path, "--prompt", "the", "a", *options, "--json")
    samples = json.loads(out)["samples"]
    assert [sample["prompt"] for sample in samples] == ["the"] * 3 + ["a"] * 3
    keys = {"prompt", "text", "tokens", "token_texts", "logprobs", "ended", "logprob", "score"}
    assert all(set(sample) == keys for sample in samples)
    assert [sample["score"] for sample in samples[:3]] == sorted((s["score"] for s in samples[:3]), reverse=True)


@pytest.mark.parametrize(
    "options",
    [("--temperature", 0.5), ("--top-k", 3), ("--samples", 2), ("--stop", "x"), ("--past-context", "slide")],
)
def test_a_search_and_a_drawing_do_not_mix(tiny_run, lm, options):
    status, out, error = lm("sample", tiny_run.path, "--beam", 2, *options)
    assert (status, out) == (2, "") and error.startswith("lm: --beam draws nothing: leave out --temperature, ")
    assert error.count("\n") == 1


def test_a_penalty_needs_a_beam(tiny_run, lm):
    status, out, error = lm("sample", tiny_run.path, "--length-penalty", 1)
    assert (status, out, error) == (2, "", "lm: --length-penalty is of a search: give --beam as well\n")
