"""The exercises come out as by hand, agree with every value of the exercises' file, and a wrong value stops them."""

import json
import math
import os
import random
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

import lm

SCRIPT = "by_hand"
SECTIONS = (
    "transformer_block", "spreadsheet_block", "self_attention_in_fractions", "self_attention_exactly",
    "softmax_in_fractions", "causal_mask", "temperature", "byte_pairs",
)  # fmt: skip


def test_every_section_is_run_here(script):
    assert tuple(section.__name__ for section in script.SECTIONS) == SECTIONS


@pytest.mark.parametrize("name", SECTIONS)
def test_sections_hold(script, name, capsys):
    """Each asserts its own values, in exact fractions or to 1e-12."""
    getattr(script, name)()
    assert len(capsys.readouterr().out) > 100


@pytest.mark.parametrize(
    ("section", "exercise", "entry", "where"),
    [
        ("transformer_block", "BLOCK", "W1", (0, 2)),
        ("transformer_block", "BLOCK", "X", (0, 0)),
        ("spreadsheet_block", "SHEET", "W2", (2, 1)),
        ("self_attention_in_fractions", "ATTENTION", "Wk", (2, 5)),
    ],
)
def test_another_number_stops_them(script, monkeypatch, section, exercise, entry, where):
    values = getattr(script, exercise)
    changed = values[entry].copy()
    changed[where] += 1
    monkeypatch.setattr(script, exercise, values | {entry: changed})
    with pytest.raises(AssertionError):
        getattr(script, section)()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("d_v", [1, 2, 5])
def test_values_may_be_of_another_width(script, d_v, causal):
    """Narrower or wider than keys: in fractions by a rule, and with the library's own 1/sqrt(d_k) in float32."""
    rng = np.random.default_rng(d_v)
    exercise = script.ATTENTION | {"Wv": rng.integers(-3, 4, (d_v, 6))}
    rule = lambda S: script.jnp.floor(S / 2) * math.log(3)  # noqa: E731
    made = script.self_attention(**exercise, rule=rule, causal=causal)
    Q, K, V = (made[name].astype(int) for name in "QKV")
    assert (V == exercise["Wv"] @ exercise["X"]).all() and Q.shape == (3, 4)
    exact = script.plain_attention(Q, K, V, lambda S: S // 2, script.three_to_the, causal)
    for name in "AZ":
        np.testing.assert_allclose(made[name], exact[name].astype(float), rtol=0, atol=1e-12)
    own, plain = script.self_attention(**exercise, causal=causal), lambda S: S / math.sqrt(3)
    expected = script.plain_attention(Q, K, V, plain, np.exp, causal)
    for name in "AZ":
        np.testing.assert_allclose(own[name], expected[name], rtol=0, atol=1e-5)


@pytest.mark.parity
@pytest.mark.parametrize("d_v", [1, 3, 5])
def test_self_attention_is_torchs(script, d_v):
    """torch.nn.functional.scaled_dot_product_attention, whose values may be of another width too."""
    torch = pytest.importorskip("torch")
    Wv = np.random.default_rng(d_v).integers(-3, 4, (d_v, 6))
    made = script.self_attention(**script.ATTENTION | {"Wv": Wv}, rule=lambda S: S / math.sqrt(3), causal=True)
    q, k, v = (torch.tensor(made[name].T[None]) for name in "QKV")
    z = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    np.testing.assert_allclose(made["Z"], z[0].numpy().T, rtol=0, atol=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_merges_are_the_trained_tokenizers(script, seed):
    """On random words with many ties and repeated letters: the same pieces after every merge."""
    rng = random.Random(seed)
    words = ["".join(rng.choices("ab", k=rng.randint(2, 6))) for _ in range(5)]
    for merges, (_, _, pieces) in enumerate(script.merge_by_merge([*map(list, words)]), 1):
        trained = lm.tokenizer.build(lm.DataConfig(tokenizer="bpe", vocab=257 + merges), words)
        assert pieces == [[trained.decode([t]) for t in trained.encode_ordinary(word)] for word in words]


def test_the_figure_has_the_fractions(script, tmp_path):
    for name in ("a.svg", "b.svg"):
        script.save(script.draw(), tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    texts = [text.get_text() for axis in script.draw().axes for text in axis.texts]
    assert {"9/46", "27/46", "9/13", "1/13"} <= set(texts)


# --- beside the file -------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def exercises():
    path = Path(os.environ.get("LM_DATA", "")) / "probes" / "ai_by_hand" / "exercises.json"
    if "LM_DATA" not in os.environ or not path.is_file():
        pytest.skip("needs LM_DATA with probes/ai_by_hand/exercises.json")
    return json.loads(path.read_text())


def exactly(made, expected) -> bool:
    """Integers as integers, fractions as fractions."""
    return (np.asarray(made) == np.vectorize(Fraction, otypes=[object])(expected)).all()


def test_the_block_is_the_files(script, exercises):
    """Everything, but for the one weight by which the text's first cell is 11 where the port's is 10."""
    file, block = exercises["seed_transformer_block"], script.BLOCK
    port, stated = file["ffn_port"], file["stated_in_seed"]
    assert exactly(block["X"], file["X"]) and exactly(block["A"], file["A"])
    Z = script.weigh(block["X"], block["A"])
    assert exactly(Z, file["Z"]) and exactly(Z[0], stated["Z_row1"])
    assert (Z[1, 3], Z[2, 4]) == (stated["Z_2_4"], stated["Z_3_5"])
    ours = script.feed_forward(Z, *(block[name] for name in ("W1", "b1", "W2", "b2")))
    assert ours[0][0, 0] == stated["H_1_1"] == 11
    W1 = block["W1"].copy()
    W1[0, 2] = script.PORT
    weights = W1, block["b1"], block["W2"], block["b2"]
    assert all(exactly(w, port[name]) for w, name in zip(weights, ("W1", "b1", "W2", "b2"), strict=True))
    theirs = script.feed_forward(Z, *weights)
    assert all(exactly(y, port[name]) for y, name in zip(theirs, "HRY", strict=True))
    for y, name in zip(ours, "HRY", strict=True):
        assert exactly(y[1:], port[name][1:])


def test_the_spreadsheets_block_is_the_files(script, exercises):
    file, sheet = exercises["excel_transformer_small"], script.SHEET
    assert all(exactly(sheet[name], file[name]) for name in sheet)
    Z = script.weigh(sheet["X"], sheet["A"])
    H, _, Y = script.feed_forward(Z, *(sheet[name] for name in ("W1", "b1", "W2", "b2")))
    assert exactly(Z, file["Z"]) and exactly(H, file["H"]) and exactly(np.maximum(Y, 0), file["Y"])


def test_self_attention_is_the_files(script, exercises):
    file = exercises["seed_self_attention"]
    assert all(exactly(script.ATTENTION[name], file[name]) for name in script.ATTENTION)
    made = script.self_attention(**script.ATTENTION, rule=lambda S: S / math.sqrt(3))
    assert all(exactly(made[name], file[name]) for name in "QKV")
    for name in "AZ":
        np.testing.assert_allclose(made[name], file["exact"][name], rtol=0, atol=1e-12)
    Q, K, V = (np.array(file[name]) for name in "QKV")
    paper, by_hand = script.plain_attention(Q, K, V, lambda S: S // 2, script.three_to_the), file["by_hand"]
    assert exactly(paper["S"], file["S"])
    assert all(exactly(paper[name], by_hand[name]) for name in "FEAZ")
    assert exactly(paper["E"].sum(axis=0), by_hand["column_sums"])


def test_softmax_and_temperature_are_the_files(script, exercises):
    for x, case in zip(script.SOFTMAX, exercises["softmax_base3"]["cases"], strict=True):
        E = script.three_to_the(np.array(x))
        assert x == case["x"] and exactly(E / E.sum(), case["y"])
    file = exercises["temperature_small"]
    assert list(script.WORDS) == file["vocab"] and script.LOGITS.tolist() == file["logits"]
    p = script.probabilities(file["T"])
    assert file["T"] == script.TEMPERATURE
    np.testing.assert_allclose(p, file["probs"], rtol=0, atol=1e-12)
    assert p.round(2).tolist() == file["probs_2dp"]
