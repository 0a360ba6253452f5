"""The translator and the cells come out as by hand, are lm's own encoder-decoder and torch's cells by formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from close import assert_close

import lm
from lm.figures import save

SCRIPT = "by_hand_ancestors"
SECTIONS = ("encoder_decoder", "rnn_cell", "lstm_cell")


def test_every_section_is_run_here(script):
    assert tuple(section.__name__ for section in script.SECTIONS) == SECTIONS


@pytest.mark.parametrize("name", SECTIONS)
def test_sections_hold(script, name, capsys):
    """Each asserts its own values: in fractions, by closed forms, to the bit where it says so."""
    getattr(script, name)()
    assert len(capsys.readouterr().out) > 100


@pytest.mark.parametrize(
    ("section", "exercise", "entry", "where"),
    [
        ("encoder_decoder", "TRANSLATOR", "source", (1, 0)),
        ("encoder_decoder", "TRANSLATOR", "head", (1, 1)),
        ("rnn_cell", "RNN", "b", 0),
        ("lstm_cell", "LSTM", "b", 2),
    ],
)
def test_another_number_stops_them(script, monkeypatch, section, exercise, entry, where):
    values = getattr(script, exercise)
    changed = values[entry].copy()
    changed[where] -= 40
    monkeypatch.setattr(script, exercise, values | {entry: changed})
    with pytest.raises(AssertionError):
        getattr(script, section)()


def test_a_source_in_another_order_is_the_same_memory_in_another_order(script):
    """A decoder sees a source as a set whose members carry their places: their order in memory changes nothing."""
    encoder = script.TRANSLATOR["encoder"]
    X = script.TRANSLATOR["source"] + script.TRANSLATOR["places"]
    rules = dict(scale=lambda S: S // 2, power=script.three_to_the, norm=lambda X: X)
    fractions = np.vectorize(script.Fraction, otypes=[object])
    M, moved = (script.plain_block(fractions(x), encoder, **rules) for x in (X, X[:, [2, 0, 1]]))
    assert (moved == M[:, [2, 0, 1]]).all()
    queries = fractions(script.TRANSLATOR["target"] + np.hstack([script.TRANSLATOR["places"], [[0]] * 5]))
    left, right = (script.plain_block(queries, script.TRANSLATOR["decoder"], **rules, M=m) for m in (M, moved))
    assert (left == right).all()


def test_the_formulas_are_lms_encoder_decoder(script):
    """With norms, biases and learned places, random parameters: logits by formula in float64, within 1e-6."""
    shape = dict(layers=1, width=8, heads=1, feedforward=12, context=6, positions="learned", qk_norm=False)
    shape |= dict(activation="relu", norm="layernorm", zero_init=False, vocab=9, vocab_multiple=1)
    c = lm.ModelConfig(**shape, encoder=lm.EncoderConfig(**shape))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32) * 0.5, lm.build(c).init(0))
    source, target = np.array([[3, 1, 4]]), np.array([[0, 5, 2, 6]])
    inputs = lm.Inputs(jnp.asarray(target), source=lm.Inputs(jnp.asarray(source)))
    logits_BTV, _ = lm.build(c).apply(params, inputs)

    def weights(block: dict, decodes: bool) -> dict:
        """The output projection goes into the values: Wo (V A) = (Wo V) A. Each norm's scale into what reads it."""
        made = {}
        for names, layer in (("W", "attention"), ("C", "cross"))[: 1 + decodes]:
            kernel = {name: np.asarray(block[layer][name]["kernel"][0], float) for name in block[layer]}
            scale = np.asarray(block[f"{layer}_norm"]["scale"][0], float)
            read = scale if layer == "attention" else 1.0
            made[f"{names}q"] = kernel["query"].T * scale
            made[f"{names}k"], made[f"{names}v"] = kernel["key"].T * read, (kernel["value"] @ kernel["out"]).T * read
        feedforward = {name: np.asarray(block["feedforward"][name]["kernel"][0], float) for name in ("inner", "outer")}
        made["W1"] = feedforward["inner"].T * np.asarray(block["feedforward_norm"]["scale"][0], float)
        return made | {"W2": feedforward["outer"].T, "b1": np.zeros(12), "b2": np.zeros(8)}

    def norm(X):
        return (X - X.mean(axis=0)) / np.sqrt(X.var(axis=0) + c.norm_epsilon)

    def entering(tree: dict, tokens: np.ndarray) -> np.ndarray:
        return (tree["embedding"][tokens] + tree["position"][: len(tokens)]).T.astype(float)

    rules = dict(scale=lambda S: S / 8**0.5, power=np.exp, norm=norm)
    encoder = params["encoder"]
    M = script.plain_block(entering(encoder, source[0]), weights(encoder["blocks"], False), **rules)
    M = norm(M) * encoder["final_norm"]["scale"][:, None]
    X = script.plain_block(entering(params, target[0]), weights(params["blocks"], True), **rules, M=M)
    logits = params["head"].T @ (norm(X) * params["final_norm"]["scale"][:, None])
    assert_close(logits_BTV[0], logits.T, relative=2e-6)


@pytest.mark.parity
@pytest.mark.parametrize("cell", ["rnn", "lstm"])
def test_the_formulas_are_torchs_cells(script, cell):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(1)
    rows = 3 if cell == "rnn" else 12
    X, W, U, b = rng.normal(size=(3, 6)), rng.normal(size=(rows, 3)), rng.normal(size=(rows, 3)), rng.normal(size=rows)
    theirs = {"rnn": torch.nn.RNN, "lstm": torch.nn.LSTM}[cell](3, 3, dtype=torch.float64)
    with torch.no_grad():
        for name, value in (("weight_ih_l0", W), ("weight_hh_l0", U), ("bias_ih_l0", b), ("bias_hh_l0", 0 * b)):
            getattr(theirs, name).copy_(torch.tensor(value))
        h_TD, last = theirs(torch.tensor(X.T))
    made = script.plain_rnn(X, W, U, b) if cell == "rnn" else script.plain_lstm(X, W, U, b)
    np.testing.assert_allclose(made["h"], h_TD.numpy().T, rtol=0, atol=1e-12)
    if cell == "lstm":
        np.testing.assert_allclose(made["c"][:, -1], last[1][0].numpy(), rtol=0, atol=1e-12)


def test_the_figure_has_the_fractions(script, tmp_path):
    figure = script.draw()
    texts = [text.get_text() for axis in figure.axes for text in axis.texts]
    assert texts == ["9/13", "1/5", "1/13", "1/13", "1/5", "9/13", "3/13", "3/5", "3/13"]
    assert figure.axes[1].lines[0].get_ydata().round(12).tolist() == [1, 1, 1, 1, 0]
    save(figure, tmp_path / "ancestors.svg")
    assert (tmp_path / "ancestors.svg").stat().st_size > 10_000
