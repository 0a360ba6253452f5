"""What the decoder came from, by pencil and paper: an encoder-decoder that translates, and recurrent cells.

python experiments/by_hand_ancestors.py          20 seconds on two CPU cores
Goes on where by_hand_blocks.py stops, with small whole numbers and the library's own layers: a whole encoder-decoder
from the three words of a source to the probabilities of a target's, and the cells of an RNN and an LSTM. Prints every
intermediate value and stops at the first that is not what pencil and paper give. Draws
experiments/figures/by_hand_ancestors.svg. Expected: exit status 0.
"""

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from by_hand import beside, feed_forward, matrix, plain_attention, same, self_attention, three_to_the, work
from flax import nnx
from matplotlib.figure import Figure

import lm
from lm.figures import STYLE
from lm.model import CrossAttention, Taps, recurrent

FIGURE = Path(__file__).parent / "figures" / "by_hand_ancestors.svg"
SOURCE, TARGET = ("le", "chat", "noir"), ("<s>", "the", "black", "cat")
TRANSLATOR = dict(
    source=matrix("1 0 0; 0 1 0; 0 0 1; 0 0 0; 0 0 0"), target=matrix("0 1 0 0; 0 0 0 1; 0 0 1 0; 0 0 0 0; 0 0 0 0"),
    places=matrix("0 0 0; 0 0 0; 0 0 0; 1 0 -1; 0 1 0"),
    encoder=dict(
        Wq=matrix("0 1 0 0 0; 0 0 1 0 0"), Wk=matrix("0 0 2 0 0; 0 2 0 0 0"),
        Wv=matrix("0 0 0 0 0; 0 15 0 0 0; 0 0 15 0 0; 0 0 0 0 0; 0 0 0 0 0"),
        W1=matrix("0 -1 1 0 0; 0 1 -1 0 0"), b1=np.array([-4, -4]),
        W2=matrix("0 0; 0 0; 0 0; -1 1; -1 1"), b2=np.zeros(5, int),
    ),
    decoder=dict(
        Wq=matrix("0 0 0 1 0; 0 0 0 0 1"), Wk=matrix("0 0 0 2 0; 0 0 0 0 2"), Wv=-4 * np.diag([1, 1, 1, 0, 0]),
        Cq=matrix("0 0 0 1 0; 0 0 0 0 1"), Ck=matrix("0 0 0 2 0; 0 0 0 0 2"),
        Cv=matrix("3 0 0 0 0; 0 -1 1 0 0; 0 1 -1 0 0; 0 0 0 0 0; 0 0 0 0 0"),
        W1=np.eye(3, 5, dtype=int), b1=np.zeros(3, int), W2=np.eye(5, 3, dtype=int), b2=np.zeros(5, int),
    ),
    head=matrix("0 0 0 0 0; 1 0 0 0 0; 0 0 1 0 0; 0 1 0 0 0"),
)  # fmt: skip
"""One block each, one head, no norms. Features: article, noun, adjective, and places as points a quarter turn apart."""


RNN = dict(X=matrix("1 0 1 1 0; 1 1 0 1 0"), W=matrix("1 0; 1 -1"), U=matrix("0 1; 1 0"), b=np.array([0, 0]))
OPEN = 40
"""A sum whose sigmoid is 1 to the last digit, and that of its negative nearly 0."""
LSTM = dict(
    X=matrix("1 0 0 0 0; 0 0 0 1 0"),
    W=OPEN * matrix("2 0; 2 0; 0 0; 0 0; 1 0; 1 0; 0 2; 0 2"),
    U=-3 * OPEN * matrix("0 0; 0 0; 1 0; 0 0; 0 0; 0 0; 0 0; 0 0"),
    b=OPEN * np.array([-1, -1, 1, 0, 0, 0, -1, -1]),
)
"""Rows two by two: the input, forget, cell and output gates of two cells. The tokens: store, wait, wait, read, wait."""


def main() -> None:
    work(__doc__, SECTIONS, draw, FIGURE)


# --- a translator ----------------------------------------------------------------------------------------------------
def thirds(S):
    """The exercises' rule for scores: 3^floor(S/2) where softmax has e^(S / sqrt(d_k))."""
    return jnp.floor(S / 2) * math.log(3)


def cross_attention(X, M, Wq, Wk, Wv, rule: Callable) -> dict:
    """A and Z of queries from X, keys and values from M, by the library's cross-attention; see self_attention."""
    D, H = len(X), max(len(Wq), len(Wv))
    encoder = lm.EncoderConfig(width=len(M), heads=1, positions="none")
    c = lm.ModelConfig(width=D, heads=1, head_width=H, positions="none", qk_norm=False, encoder=encoder)

    def edit(scores, layer):
        return rule(jnp.round(scores.astype(float) * H**0.5))

    with jax.enable_x64(True):
        layer = CrossAttention(c, nnx.Rngs(0))
        taps = Taps(read=["cross.weights", "cross.heads"], edits={"cross.scores": edit})
        for linear, W in ((layer.query, Wq), (layer.key, Wk), (layer.value, Wv)):
            linear.kernel[...] = np.pad(W.T, ((0, 0), (0, H - len(W))))
        seen_BTS = jnp.ones((1, X.shape[1], M.shape[1]), bool)
        layer(jnp.asarray(X.T, float)[None], layer.remember(jnp.asarray(M.T, float)[None]), seen_BTS, taps)
    A, Z = (np.asarray(taps.values[f"cross.{name}"]).reshape(X.shape[1], -1).T for name in ("weights", "heads"))
    return dict(A=A, Z=Z[: len(Wv)])


def translated(source: Sequence[int], target: Sequence[int]) -> dict:
    """Every intermediate value of the library's layers, from the numbers of the words to the probabilities of the next.

    X what enters, A and Z of each attention, X1, X2, X3 the stream after each part, M what the encoder made.
    """
    encoder, decoder, places = (TRANSLATOR[name] for name in ("encoder", "decoder", "places"))
    X = TRANSLATOR["source"][:, source] + places[:, : len(source)]
    attended = self_attention(X, *(encoder[name] for name in ("Wq", "Wk", "Wv")), thirds)
    X1 = X + attended["Z"]
    H, _, Y = feed_forward(X1, *(encoder[name] for name in ("W1", "b1", "W2", "b2")))
    M = X1 + Y
    made = {"encoder": {"X": X, "A": attended["A"], "Z": attended["Z"], "X1": X1, "H": H, "M": M}}
    X = TRANSLATOR["target"][:, target] + places[:, : len(target)]
    attended = self_attention(X, *(decoder[name] for name in ("Wq", "Wk", "Wv")), thirds, causal=True)
    X1 = X + attended["Z"]
    crossed = cross_attention(X1, M, *(decoder[name] for name in ("Cq", "Ck", "Cv")), thirds)
    X2 = X1 + crossed["Z"]
    _, _, Y = feed_forward(X2, *(decoder[name] for name in ("W1", "b1", "W2", "b2")))
    X3 = X2 + Y
    logits = TRANSLATOR["head"] @ X3
    with jax.enable_x64(True):
        p = np.asarray(jax.nn.softmax(np.floor(logits + 1e-9) * math.log(3), axis=0))
    made["decoder"] = {"X": X, "A": attended["A"], "X1": X1, "across": crossed["A"], "Z": crossed["Z"], "X2": X2}
    return made | {"head": {"X3": X3, "logits": logits, "p": p}}


def plain_block(X, W: dict, scale: Callable, power: Callable, norm: Callable, M=None) -> np.ndarray:
    """What leaves a block, by formulas alone: of an encoder, or with M of a decoder that reads it."""

    def project(names: str, queries, others):
        Wq, Wk, Wv = (W[f"{names}{letter}"] for letter in "qkv")
        return Wq @ queries, Wk @ others, Wv @ others

    read = norm(X)
    X = X + plain_attention(*project("W", read, read), scale, power, causal=M is not None)["Z"]
    if M is not None:
        X = X + plain_attention(*project("C", norm(X), M), scale, power)["Z"]
    return X + W["W2"] @ np.maximum(W["W1"] @ norm(X) + W["b1"][:, None], 0) + W["b2"][:, None]


def encoder_decoder() -> None:
    """A whole encoder-decoder: "le chat noir" to "the", "black": the cross-attention finds them in English order."""
    made = translated([0, 1, 2], [0, 1])
    named = {"": [["article"], ["noun"], ["adjective"], ["place, x"], ["place, y"]]}
    beside(**named, **{" ".join(SOURCE): TRANSLATOR["source"], "places": TRANSLATOR["places"]})
    beside(**named, **made["encoder"])
    beside(**named, **made["decoder"])
    beside(
        **{"": [[word] for word in TARGET]},
        **{name: made["head"][name] for name in ("logits", "p")},
        X3=made["head"]["X3"],
    )
    # The same in fractions, by formulas alone.
    exact = {name: np.vectorize(Fraction, otypes=[object])(TRANSLATOR[name]) for name in ("source", "target", "places")}
    rules = dict(scale=lambda S: S // 2, power=three_to_the, norm=lambda X: X)
    M = plain_block(exact["source"] + exact["places"], TRANSLATOR["encoder"], **rules)
    assert (M == matrix("1 0 0; 5 4 9; 5 9 4; 1 -1 0; 0 0 1")).all()  # chat and noir have changed places
    X3 = plain_block(exact["target"][:, :2] + exact["places"][:, :2], TRANSLATOR["decoder"], **rules, M=M)
    E = three_to_the(TRANSLATOR["head"] @ X3 // 1)
    p = E / E.sum(axis=0)
    beside(**{"": [[word] for word in TARGET], "p, in fractions": p})
    assert (p == matrix("3/256 9/740; 243/256 1/740; 9/256 729/740; 1/256 1/740", Fraction)).all()
    for ours, by_formula in ((made["encoder"]["M"], M), (made["head"]["X3"], X3), (made["head"]["p"], p)):
        same(ours, by_formula)
    same(made["decoder"]["across"], matrix("9/13 1/5; 1/13 1/5; 3/13 3/5", Fraction))
    # Word by word it goes on to the end, and no probability depends on a word after it.
    words = [0]
    for _ in SOURCE:
        words.append(int(translated([0, 1, 2], words)["head"]["p"][:, -1].argmax()))
    print(" ".join(SOURCE), "->", " ".join(TARGET[word] for word in words[1:]))
    assert words == [0, 1, 2, 3]
    same(translated([0, 1, 2], [0, 3])["head"]["p"][:, 0], made["head"]["p"][:, 0], 0)
    assert np.abs(translated([0, 2, 1], [0, 1])["encoder"]["M"] - made["encoder"]["M"]).max() > 1


# --- recurrent cells -------------------------------------------------------------------------------------------------
def sigmoid(x):
    """1 / (1 + e^-x)."""
    return 1 / (1 + np.exp(-x))


def plain_rnn(X, W, U, b) -> dict[str, np.ndarray]:
    """Sums and h after each token, [D, T], by the formula (Elman 1990)."""
    h, sums, made = np.zeros(len(U)), [], []
    for x in X.T:
        sums.append(W @ x + U @ h + b)
        h = np.tanh(sums[-1])
        made.append(h)
    return dict(sums=np.stack(sums, axis=1), h=np.stack(made, axis=1))


def gradients_by_token(h) -> list[tuple[np.ndarray, float]]:
    """After each token of an RNN, dh/dh0 and its norm: a product of diag(1 - h h) U."""
    J, made = np.eye(len(h)), []
    for column in h.T:
        J = np.diag(1 - column * column) @ RNN["U"] @ J
        made.append((J, float(np.linalg.norm(J, 2))))
    return made


def plain_lstm(X, W, U, b) -> dict[str, np.ndarray]:
    """Gates, c and h after each token, [D, T] each, by the formulas (Hochreiter and Schmidhuber 1997, Gers 2000)."""
    D = len(W) // 4
    h, c, made = np.zeros(D), np.zeros(D), {name: [] for name in "ifgoch"}
    for x in X.T:
        i, f, g, o = np.split(W @ x + U @ h + b, 4)  # torch's order: input, forget, cell, output
        i, f, g, o = sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o)
        c = f * c + i * g
        h = o * np.tanh(c)
        for name, value in zip("ifgoch", (i, f, g, o, c, h), strict=True):
            made[name].append(value)
    return {name: np.stack(values, axis=1) for name, values in made.items()}


def by_library(cell: str, X, W, U, b, start=None) -> dict[str, jax.Array]:
    """h after each token and, of an LSTM, c, [D, T], by the library's layer of cells. start: h before them, or 0."""
    D, made = len(X), {"h": [], "c": []}
    layer = recurrent.Layer(lm.RecurrentConfig(width=D, cell=cell), nnx.Rngs(0))
    layer.input.kernel[...], layer.input.bias[...], layer.recurrent[...] = W.T, b, U.T
    h_BD = jnp.zeros((1, D)) if start is None else start[None]
    memory = recurrent.Memory(h_BD, jnp.zeros((1, D)) if cell == "lstm" else None)
    for x in X.T:
        _, memory = layer(jnp.asarray(x[None, None], jnp.float32), memory, None, None)
        made["h"].append(memory.h_LBD[0])
        made["c"] += [] if memory.c_LBD is None else [memory.c_LBD[0]]
    return {name: jnp.stack(values, axis=1) for name, values in made.items() if values}


def rnn_cell() -> None:
    """An RNN's cell: h = tanh(W x + U h + b), and a gradient that each token multiplies by (1 - h h) U."""
    made = plain_rnn(**RNN)
    beside(**{name: values if values.ndim > 1 else values[:, None] for name, values in RNN.items()}, **made)
    same(made["sums"][:, 0], [1, 0])  # the first token: h was 0
    same(made["h"][0, 0], (math.e**2 - 1) / (math.e**2 + 1))
    same(by_library("rnn", **RNN)["h"], made["h"], 1e-6)
    jacobians, sizes = zip(*gradients_by_token(made["h"]), strict=True)
    J = jacobians[-1]
    by_autodiff = jax.jacobian(lambda start: by_library("rnn", **RNN, start=start)["h"][:, -1])(jnp.zeros(2))
    beside(**{"dh/dh0 at the end": J, "its norm by token": sizes})
    same(by_autodiff, J, 1e-6)
    assert sizes[-1] < 0.2 * sizes[0]


def lstm_cell() -> None:
    """An LSTM's cell: a gate that stays open carries what was stored through any number of tokens, gradient 1."""
    made = plain_lstm(**LSTM)
    beside(**{"": [[word] for word in ("store", "read")], "X": LSTM["X"], "b, by gate": LSTM["b"].reshape(4, 2).T})
    beside(**{"": [["cell 1"], ["cell 2"]]}, **made)
    same(made["c"], matrix("1 1 1 1 0; 1 1/2 1/4 1/8 1/16", Fraction))  # kept until it is read, or halved by each token
    same(made["h"], np.outer(np.tanh([1, 1 / 8]), [0, 0, 0, 1, 0]))
    found = by_library("lstm", **LSTM)
    for name in "ch":
        same(found[name], made[name], 1e-6)
    # The library's cell alone, in float64; its gradient by what was stored three tokens ago is the product of f.
    with jax.enable_x64(True):
        sums = (LSTM["W"] @ LSTM["X"] + LSTM["b"][:, None]).T[:4]  # until the first h that is not 0

        def last(c):
            for gates in sums[1:]:
                _, c = recurrent.lstm(jnp.asarray(gates, float)[None], c)
            return c[0]

        c = jnp.asarray(made["c"][:, :1].T)
        same(last(c), made["c"][:, 3])
        same(jax.jacobian(last)(c)[:, 0], np.diag([1, 1 / 8]))


SECTIONS = (encoder_decoder, rnn_cell, lstm_cell)


# --- the figure ------------------------------------------------------------------------------------------------------
def draw() -> Figure:
    """What the translator's words attend to; what an LSTM's cells keep; what is left of an RNN's gradient."""
    with matplotlib.rc_context(STYLE | {"font.size": 14, "axes.grid": False}):
        figure = Figure(figsize=(15, 4.9), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)
        words, kept, left = figure.subplots(1, 3)
        draw_words(words)
        draw_kept(kept)
        draw_left(left)
    return figure


def draw_words(axis) -> None:
    A = translated([0, 1, 2], [0, 1, 2])["decoder"]["across"]
    axis.imshow(A, cmap="Blues", vmin=0, vmax=1.15)
    for (i, j), weight in np.ndenumerate(A):
        text = str(Fraction(weight).limit_denominator(100))
        axis.text(j, i, text, ha="center", va="center", color="white" if weight > 0.6 else "black")
    axis.set(xticks=range(3), xticklabels=[f"{TARGET[i]}\n→ {TARGET[i + 1]}" for i in range(3)])
    axis.set(yticks=range(3), yticklabels=SOURCE, title="Cross-attention by hand")
    axis.tick_params(length=0)


def draw_kept(axis) -> None:
    made = plain_lstm(**LSTM)
    tokens = range(1, made["c"].shape[1] + 1)
    for cell, name in enumerate(("open", "half open")):
        axis.plot(tokens, made["c"][cell], "o-", color=f"C{cell}", label=f"cell, forget gate {name}")
        axis.plot(tokens, made["h"][cell], "s--", color=f"C{cell}", alpha=0.6, label="what it gives")
    axis.set(xticks=list(tokens), xticklabels=("store", "wait", "wait", "read", "wait"), title="What an LSTM keeps")
    axis.set(ylim=(-0.05, 1.65), yticks=(0, 0.25, 0.5, 0.75, 1))
    axis.legend(frameon=False, fontsize=11, loc="upper left")


def draw_left(axis) -> None:
    sizes = [size for _, size in gradients_by_token(plain_rnn(**RNN)["h"])]
    axis.plot(range(1, len(sizes) + 1), sizes, "o-", color="C3")
    axis.set(xticks=range(1, len(sizes) + 1), xlabel="tokens read since", ylabel="norm of dh/dh0")
    axis.set(ylim=(0, 1.05), title="What is left of an RNN's gradient")


if __name__ == "__main__":
    main()
