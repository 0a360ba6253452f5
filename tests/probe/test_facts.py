"""Facts from a file, and their answers' probabilities and ranks against plain full passes."""

import json

import numpy as np
import pytest
from inside_cases import HARD, lively

from lm import probe
from lm.errors import UserError
from lm.probe.rows import encode, places

M = lively(**HARD)
FACTS = [
    probe.Fact("plays", "anna", "anna plays", "chess", True),
    probe.Fact("plays", "bob", "bob plays", "go", True),
    probe.Fact("plays", "bob", "the game of bob is", "go", False),
    probe.Fact("lives", "anna", "anna lives in", "rome", True),
    probe.Fact("lives", "bob", "bob lives in", "roma", False),
]


def plain(prompt, answer):
    """(log p of each token of the answer, ranks) from one uncached pass over prompt and answer."""
    start = len(encode(M, prompt))
    losses = probe.token_losses(M, f"{prompt} {answer}")
    return -losses.nats[start - 1 :], losses.rank[start - 1 :]


@pytest.mark.parametrize("cached", [False, True])
def test_completions_are_those_of_full_passes(cached):
    """Every answer of the relation is compared by the log-probability of all its tokens."""
    completions = probe.complete(M, FACTS, cached=cached)
    games, places = ["chess", "go"], ["rome", "roma"]
    for fact, completion in zip(FACTS, completions, strict=True):
        logp, ranks = plain(fact.prompt, fact.answer)
        assert completion.fact is fact
        assert completion.logprob == pytest.approx(logp.sum(), rel=1e-3)
        assert completion.probability == pytest.approx(np.exp(logp.sum()), rel=1e-2, abs=0)
        assert completion.rank == ranks[0] and completion.correct == (ranks == 1).all()
        totals = {a: plain(fact.prompt, a)[0].sum() for a in (games if fact.relation == "plays" else places)}
        assert completion.chosen == max(totals, key=totals.get)


def test_a_greedy_continuation_is_correct():
    """What the model itself goes on with has rank 1 in every token; another answer has not."""
    from lm.sample.generate import generate_naive

    prompt = encode(M, "anna plays") + M.tokenizer.encode_ordinary(" ")
    made, _ = generate_naive(M, prompt, 3)
    answer = M.tokenizer.decode(made)
    assert answer.strip() == answer and "<" not in answer, "choose another prompt for this test"
    # The space before the answer is the fact's own: it must be the first choice too for the whole to be.
    fact = probe.Fact("plays", "anna", "anna plays", answer)
    (completion,) = probe.complete(M, [fact])
    _, ranks = plain("anna plays", answer)
    assert (ranks[1:] == 1).all() and completion.correct == (ranks[0] == 1)
    assert completion.chosen == answer


def test_the_summary_counts_relations_and_phrasings():
    completions = probe.complete(M, FACTS)
    table = probe.summary(completions)
    assert [(row["relation"], row["seen"], row["facts"]) for row in table] == [
        ("plays", True, 2), ("plays", False, 1), ("lives", True, 1), ("lives", False, 1), ("all", True, 3),
        ("all", False, 2),
    ]  # fmt: skip
    assert table[0]["choices"] == table[1]["choices"] == 2
    assert table[-1]["probability"] == pytest.approx(
        np.mean([completions[2].probability, completions[4].probability]), abs=0
    )
    chosen = [c.chosen == c.fact.answer for c in completions]
    assert table[-2]["choice_accuracy"] == pytest.approx(np.mean([chosen[0], chosen[1], chosen[3]]))
    assert table[0]["median_rank"] == np.median([completions[0].rank, completions[1].rank])


def test_a_fact_longer_than_the_context_is_named():
    long = probe.Fact("plays", "anna", "anna plays the game that is played by all", "go")
    for probing in (probe.complete, probe.fact_rows):
        with pytest.raises(UserError, match=r"the fact 'anna plays the game that.*has 45 tokens.*context holds 32"):
            probing(M, [*FACTS, long])


def test_rows_of_facts_score_the_answers():
    batch = probe.fact_rows(M, FACTS)
    for row, fact in enumerate(FACTS):
        scored = batch.tokens_BT[row][batch.scored_BT[row]]
        assert M.tokenizer.decode(scored) == f" {fact.answer}"
    ablation = probe.ablate(M, batch, [probe.Part("mlp", 0)])
    logp = [plain(fact.prompt, fact.answer)[0] for fact in FACTS]
    assert ablation.base == pytest.approx(-np.concatenate(logp).mean(), rel=1e-3)


# --- reading and places ----------------------------------------------------------------------------------------------
def test_facts_survive_their_file(tmp_path):
    file = tmp_path / "facts.jsonl"
    lines = [json.dumps(vars(fact)) for fact in FACTS]
    file.write_text("\n".join([*lines[:2], "", *lines[2:]]) + "\n")
    assert probe.read_facts(file) == FACTS
    odd = [probe.Fact("plays", "anna", "anna\u2028\x85 plays", "chess"), *FACTS]  # ends of lines, for some
    lines = [json.dumps(vars(fact), ensure_ascii=False) for fact in odd]
    file.write_bytes(("\ufeff" + "\r\n".join(lines)).encode())
    assert probe.read_facts(file) == odd


@pytest.mark.parametrize(
    "line", ["{", "[]", '"fact"', "3", '{"relation": "plays"}', json.dumps(vars(FACTS[0]) | {"answer": " "}),
             json.dumps(vars(FACTS[0]) | {"seen": "yes"}), json.dumps(vars(FACTS[0]) | {"prompt": 3}),
             "[" * 100_000, '{"relation": ' + "9" * 5000 + "}", json.dumps(vars(FACTS[0]) | {"answer": None}),
             '{"' + "k" * 5000 + '": 1}', "nan"],
)  # fmt: skip
def test_a_line_that_is_no_fact_is_named(tmp_path, line):
    file = tmp_path / "facts.jsonl"
    file.write_text(json.dumps(vars(FACTS[0])) + "\n" + line)
    with pytest.raises(UserError, match=r"facts\.jsonl, line 2: ") as refusal:
        probe.read_facts(file)
    assert len(str(refusal.value)) < 400


def test_no_facts_are_refused(tmp_path):
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    for name, why in (
        ("empty", "holds no facts"),
        ("binary", "line 1: not UTF-8"),
        ("none", "cannot read .*No such file"),
    ):
        with pytest.raises(UserError, match=why):
            probe.read_facts(tmp_path / name)


def test_places_are_whole_words_wherever_they_stand():
    """The space before a word belongs to no one in a vocabulary of characters."""
    touched_T = places(M, "an anna saw anna", "anna")
    assert touched_T.nonzero()[0].tolist() == [4, 5, 6, 7, 13, 14, 15, 16]
    with pytest.raises(UserError, match="'ann' is not in"):
        places(M, "an anna saw anna", "ann")
