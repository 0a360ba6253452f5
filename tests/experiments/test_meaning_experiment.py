"""Twins differ in what tells the meaning; probes find a planted meaning where it can be known, and nowhere else."""

import sys

import jax
import numpy as np
import pytest

import lm

SCRIPT = "meaning"
WORD, PAIRS = "bank", 60


@pytest.fixture(scope="module")
def planted(script):
    """Untrained models of one block, causal and both ways, in which the vectors of what tells the word's two meanings
    point opposite ways: attention at random mixes some of it into every place that sees such a thing."""
    data = lm.DataConfig(tokenizer="words", vocab=512)
    tokenizer = lm.tokenizer.build(data, [script.corpus(2000)])
    things = " ".join(script.THINGS[WORD]).split()
    telling = np.array([tokenizer.encode_ordinary(f" {thing}")[0] for thing in things])
    sign_R1 = np.repeat([[-1.0], [1.0]], len(things) // 2, axis=0)
    shape = dict(layers=1, width=64, heads=2, context=24, vocab=tokenizer.n_vocab, mask_token=True)

    def model(mask: str, objective: str) -> lm.Trained:
        config = lm.ModelConfig(mask=mask, positions="learned", zero_init=False, **shape)
        params = lm.build(config).init(0)
        direction_D = jax.random.normal(jax.random.key(1), (64,))
        params["embedding"] = params["embedding"].at[telling].add(sign_R1 * direction_D)
        return lm.Trained(params, tokenizer, lm.Experiment(model=config, train=lm.TrainConfig(objective=objective)), 0)

    return {"causal": model("causal", "next_token"), "both ways": model("full", "masked")}


def test_a_thing_tells_one_meaning_of_one_word(script):
    things = [thing for two in script.THINGS.values() for some in two for thing in some.split()]
    endings = [ending for two in script.ENDINGS.values() for some in two for ending in some.split()]
    assert len(things) == 72 == len(set(things)) and len(endings) == 36 == len(set(endings))
    assert not set(things) & {*script.HOMONYMS, *endings}


@pytest.mark.parametrize("turned", ["told", "other"])
def test_twins_differ_in_one_meaning(script, planted, turned):
    """In one thing, and in the ending where the word's own meaning turns; the tokens are cut before it."""
    for where in script.SENTENCES:
        seen, held_out = (script.twins(WORD, where, PAIRS, s, turned) for s in (script.SEEN, script.HELD_OUT))
        for first, second in zip(seen[::2], seen[1::2], strict=True):
            pair = list(zip(first.split()[:-2], second.split()[:-2], strict=True))
            changed = [(a, b) for a, b in pair if a != b]
            (one,), word = changed, WORD if turned == "told" else "pupil"
            assert [one[i] in script.THINGS[word][i].split()[script.SEEN] for i in (0, 1)] == [True, True]
        things = {thing for two in script.THINGS.values() for some in two for thing in some.split()}
        assert not things & set(" ".join(seen).split()) & set(" ".join(held_out).split())
        rows_RT = script.tokens(planted["causal"], seen + held_out)
        assert rows_RT.shape == (4 * PAIRS, len(seen[0].split()) - 1)
        assert planted["causal"].tokenizer.decode([rows_RT[0, -1]]) == " was"


def test_a_meaning_is_read_where_it_is_told_and_nowhere_else(script, planted):
    """What cannot be known is read as by tossing a coin, exactly: twins have the same state there."""

    def read(model: str, where: str, place: str, **options) -> list[float]:
        curve = script.Curve("", where, place, **options)
        return script.read_levels(planted[model], WORD, curve, PAIRS).tolist()

    assert read("causal", "before", "word")[0] == 0.5 and read("causal", "before", "word")[1] > 0.75
    assert read("causal", "behind", "word") == [0.5, 0.5]
    assert read("causal", "behind", "was")[0] == 0.5 and read("causal", "behind", "was")[1] > 0.75
    assert read("both ways", "behind", "word")[0] == 0.5 and read("both ways", "behind", "word")[1] > 0.75
    assert abs(read("causal", "before", "word", turned="other")[1] - 0.5) < 0.25  # nothing was planted for it
    by_place_T = script.read_places(planted["causal"], WORD, "behind", PAIRS)
    assert by_place_T[:7] == [0.5] * 7 and 0.6 < by_place_T[7] < by_place_T[10]  # either thing tells it


def test_probes_trained_on_shuffled_labels_know_nothing(script):
    rng = np.random.default_rng(0)
    labels_R = np.tile([0, 1], 500)
    x_RD = rng.normal(size=(1000, 4)) + labels_R[:, None]
    assert script.accuracy(x_RD, x_RD, labels_R, labels_R) == pytest.approx(
        0.841, abs=0.02
    )  # P(z < 1), half of 2 apart
    assert abs(script.accuracy(x_RD, x_RD, rng.permutation(labels_R), labels_R) - 0.5) < 0.2


@pytest.mark.slow
def test_a_little_of_it_trains_and_draws(script, monkeypatch, tmp_path, capsys):
    arguments = ["--steps", "2", "--pairs", "5", "--seeds", "0", "1", "--figure", str(tmp_path / "out.svg")]
    monkeypatch.setattr(sys, "argv", [SCRIPT, *arguments])
    script.main()
    rows = [
        line for line in capsys.readouterr().out.splitlines() if line.startswith("| at the word, context behind it")
    ]
    assert rows[0].count("0.500 +- 0.000") == script.LAYERS + 1
    assert (tmp_path / "out.svg").is_file()
