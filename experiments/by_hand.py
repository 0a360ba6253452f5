"""Do the transformer's exercises for pencil and paper come out of the code that trains?

python experiments/by_hand.py          15 seconds on two CPU cores
Works through Professor Tom Yeh's exercises ("AI by Hand": attention weighting and feed-forward network, self-attention,
softmax, temperature), the causal mask and byte pairs, in the library's own layers. Prints every intermediate value and
stops at the first that is not what pencil and paper give: exactly, or to 1e-12 in float64. Draws
experiments/figures/by_hand.svg. Expected: exit status 0. What is usually said along with them: by_hand_claims.py.
"""

import argparse
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from flax import nnx
from matplotlib.figure import Figure

import lm
from lm.figures import STYLE, save
from lm.model import ACTIVATIONS, Attention, FeedForward, KeysValues, Mask, Places, Taps, attend
from lm.sample import choose

FIGURE = Path(__file__).parent / "figures" / "by_hand.svg"


def matrix(text: str, of: Callable = int) -> np.ndarray:
    """Rows apart by semicolons: a small matrix as one would write it down."""
    rows = [[of(cell) for cell in row.split()] for row in text.split(";")]
    return np.array(rows, dtype=object if of is Fraction else None)


# The inputs of Professor Tom Yeh's exercises; columns are positions. SHEET, ATTENTION, WORDS and SOFTMAX are from his
# spreadsheets (github.com/ImagineAILab/ai-by-hand-excel, MIT licence, (c) 2024 Tom Yeh). Of BLOCK, A and the first row
# of X follow from the published text; the rest is as in a port in the public domain (github.com/jeremy-london/
# solve-by-hand), but for W1[0, 2]: with PORT there, the network's first cell is 10, and the text says 11.
BLOCK = dict(
    X=matrix("5 6 0 7 0; 0 2 4 0 3; 1 0 1 1 0"),
    A=matrix("1 0 0 0 1; 1 1 0 0 0; 0 1 1 0 0; 0 0 1 1 0; 0 0 0 1 1"),
    W1=matrix("1 -1 1; 1 1 0; 0 1 1; -1 1 1"), b1=np.array([1, 0, 1, 0]),
    W2=matrix("1 0 0 -1; 0 1 1 0; 0 0 1 -1"), b2=np.array([0, 0, 1]),
)  # fmt: skip
SHEET = dict(
    X=matrix("0 1 0 1 1; 1 0 1 2 -1; 1 1 1 3 2; -1 1 0 0 1"),
    A=matrix("1 1 0 1 0; 1 0 1 1 0; 0 0 1 1 0; 0 1 0 0 1; 0 1 1 0 1"),
    W1=matrix("1 1 1 1; 0 0 2 1; 1 -1 1 1"), b1=np.array([3, 4, -1]),
    W2=matrix("1 2 1; -1 0 0; 1 1 1; 0 0 -1"), b2=np.array([-1, 7, 2, -1]),
)  # fmt: skip
ATTENTION = dict(
    X=matrix("2 0 0 2; 0 1 0 0; 0 2 1 0; 0 0 1 1; 2 0 0 0; 1 0 1 1"),
    Wq=matrix("1 1 0 0 0 0; 0 1 0 1 0 0; 0 0 1 0 1 1"),
    Wk=matrix("0 0 1 0 0 0; 0 1 0 0 0 0; 1 0 0 0 0 -1"),
    Wv=matrix("10 0 0 0 0 0; 0 0 0 10 0 0; 0 10 0 0 0 0"),
)
WORDS, LOGITS, TEMPERATURE = ("who", "where", "why", "what", "how"), np.array([2.5, 1.0, 5.2, 3.1, 2.15]), 2
SOFTMAX = ([1, 0, 1, 5], [1, 3, 1, 2, 3, 2])
PORT = 0


def main() -> None:
    work(__doc__, SECTIONS, draw, FIGURE)


def work(description: str, sections: Sequence[Callable], draw: Callable[[], Figure], default: Path) -> None:
    """Run a script of exercises: each section under the first line of its docstring, then the figure."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--figure", type=Path, default=default)
    options = parser.parse_args()
    for section in sections:
        print(f"\n=== {section.__doc__.splitlines()[0]}")
        section()
    save(draw(), options.figure)
    print(f"\nevery value is as by hand; {options.figure}")


# --- the library's layers, with matrices as on paper: columns are positions ------------------------------------------
def weigh(X: np.ndarray, A: np.ndarray) -> np.ndarray:
    """X A by the library's attention: the values are X's columns, and A stands where softmax's weights would."""
    (H, S), T = X.shape, A.shape[1]
    with jax.enable_x64(True):
        taps = Taps(edits={"attention.weights": lambda weights, layer: jnp.asarray(A.T, float)[None, None]})
        seen = KeysValues(jnp.zeros((1, S, H)), jnp.asarray(X.T, float)[None])
        return np.asarray(attend(jnp.zeros((1, 1, 1, T, H)), [seen], [jnp.ones((1, T, S), bool)], taps))[0, 0, 0].T


def feed_forward(Z, W1, b1, W2, b2) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(H, R, Y) = (W1 Z + b1, relu(H), W2 R + b2) by the library's feed-forward layer."""
    c = lm.ModelConfig(width=W1.shape[1], feedforward=len(W1), heads=1, positions="none", activation="relu", bias=True)
    with jax.enable_x64(True):
        layer, taps = FeedForward(c, nnx.Rngs(0)), Taps(read=["mlp.hidden"])
        for linear, W, b in ((layer.inner, W1, b1), (layer.outer, W2, b2)):
            linear.kernel[...], linear.bias[...] = W.T, b
        x_BTD = jnp.asarray(Z.T, float)[None]
        made = layer.inner(x_BTD), layer(x_BTD, taps), taps.values["mlp.hidden"]
    H, Y, R = (np.asarray(y_BTD)[0].T for y_BTD in made)
    return H, R, Y


def self_attention(X, Wq, Wk, Wv, rule: Callable | None = None, causal: bool = False) -> dict:
    """Q, K, V, A and Z by the library's attention layer, one head: queries and keys d_k wide, values d_v.

    rule(S) is what goes into softmax, for the scores S = K^T Q as exact integers in float64; without a rule, what the
    library makes of them, in float32. Softmax runs down columns: column j is what query j gives each key. causal: query
    j sees keys up to j; else every query sees all. The library's heads are of one width, so the narrower of the two is
    filled up with rows of zeros, which add nothing to scores, and are cut off again.
    """
    (d_k, D), d_v, T = Wq.shape, len(Wv), X.shape[1]
    H = max(d_k, d_v)
    c = lm.ModelConfig(width=D, heads=1, head_width=H, positions="none", qk_norm=False, attention="plain")
    with jax.enable_x64(True):

        def edit(scores, layer):  # the library's are float32, divided by sqrt(H): integers again after rounding
            return rule(jnp.round(scores.astype(float) * H**0.5))

        def scale(scores, layer):
            return scores * (H / d_k) ** 0.5

        edits = {"attention.scores": edit if rule else scale} if rule or H > d_k else {}
        names = [f"attention.{name}" for name in ("query", "key", "value", "weights", "heads")]
        layer, taps = Attention(c, nnx.Rngs(0)), Taps(read=names, edits=edits)
        for linear, W in ((layer.query, Wq), (layer.key, Wk), (layer.value, Wv)):
            linear.kernel[...] = np.pad(W.T, ((0, 0), (0, H - len(W))))
        layer(jnp.asarray(X.T, float)[None], Places(jnp.arange(T)[None]), Mask(causal=causal), None, None, taps)
        made = [np.asarray(taps.values[name]).reshape(T, -1).T for name in names]
    rows = d_k, d_k, d_v, T, d_v
    return {name: values[:count] for name, values, count in zip("QKVAZ", made, rows, strict=True)}


# --- the same, plainly, for numbers of any kind ----------------------------------------------------------------------
def plain_attention(Q, K, V, scale: Callable, power: Callable, causal: bool = False) -> dict:
    """Attention by its formula, for fractions too. scale: scores to exponents F; power: exponents to E."""
    S = K.T @ Q
    F = scale(S)
    E = power(F) * (np.triu(np.ones(S.shape, int)) if causal else 1)
    A = E / E.sum(axis=0)
    return dict(S=S, F=F, E=E, A=A, Z=V @ A)


def three_to_the(F: np.ndarray) -> np.ndarray:
    """3 to the power of each integer, as fractions: 3^-1 = 1/3."""
    return np.vectorize(lambda exponent: Fraction(3) ** int(exponent), otypes=[object])(F)


def same(actual, expected, tolerance: float = 1e-12) -> None:
    """Raises AssertionError where values differ by more than the tolerance."""
    np.testing.assert_allclose(np.asarray(actual, float), np.asarray(expected, float), rtol=0, atol=tolerance)


def beside(**matrices) -> None:
    """Print matrices next to each other, as on paper."""
    blocks = []
    for name, values in matrices.items():
        cells = [[_cell(x) for x in row] for row in np.atleast_2d(values)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        rows = [" ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in cells]
        block = [name, *rows]
        blocks.append([line.ljust(max(map(len, block))) for line in block])
    height = max(map(len, blocks))
    padded = [block + [" " * len(block[0])] * (height - len(block)) for block in blocks]
    print("\n".join("     ".join(line).rstrip() for line in zip(*padded, strict=True)) + "\n")


def _cell(x) -> str:
    if isinstance(x, str | Fraction):
        return str(x)
    return str(round(float(x))) if abs(x - round(float(x))) < 1e-12 else f"{x:.4f}"


# --- the exercises ---------------------------------------------------------------------------------------------------
def transformer_block() -> None:
    """Attention weighting mixes positions, the feed-forward network mixes features."""
    X, A, *network = BLOCK.values()
    Z = weigh(X, A)
    beside(X=X, A=A, Z=Z)
    same(Z, X + np.roll(X, -1, axis=1))  # A's ones: Z1 = X1 + X2, Z2 = X2 + X3, ... Z5 = X5 + X1
    same(Z[0], [11, 6, 7, 7, 5])
    assert (Z[1, 3], Z[2, 4]) == (3, 1)
    W1, b1, W2, b2 = network
    H, R, Y = feed_forward(Z, *network)
    beside(W1=W1, b1=b1[:, None], H=H, R=R)
    beside(W2=W2, b2=b2[:, None], Y=Y)
    same(H, W1 @ Z + b1[:, None])
    same(R, np.maximum(H, 0))
    same(Y, W2 @ R + b2[:, None])
    assert H[0, 0] == 11 and Y.shape == X.shape
    # The port gives 10 there. Among -1, 0 and 1, which the others are, one change of one number makes it 11.
    row = np.append(W1[0], b1[0]) * [1, 1, 0, 1] + [0, 0, PORT, 0]
    features = np.append(Z[:, 0], 1)
    changes = [(i, x) for i in range(4) for x in (-1, 0, 1) if row @ features + (x - row[i]) * features[i] == 11]
    assert row @ features == 10 and changes == [(2, 1)]
    print(f"H[1,1] is 11, as the text says; a public port of the exercise, with {PORT} for W1[1,3], has 10.")


def spreadsheet_block() -> None:
    """The spreadsheet's block of four features, with a ReLU after both layers."""
    X, A, *network = SHEET.values()
    Z = weigh(X, A)
    H, R, Y = feed_forward(Z, *network)
    Y = np.asarray(ACTIVATIONS["relu"](Y))
    beside(X=X, A=A, Z=Z, R=R, Y=Y)
    same(R, H)  # nothing was negative
    same(Y, matrix("23 49 45 29 47; 0 0 0 0 0; 18 36 34 22 35; 0 0 0 0 0"))


def self_attention_in_fractions() -> None:
    """Self-attention without a calculator: floor(x/2) for x / sqrt(3), and 3^x for e^x."""
    paper_rule = lambda S: jnp.floor(S / 2) * math.log(3)  # noqa: E731  softmax of x ln 3 is 3^x / sum 3^x
    made = self_attention(**ATTENTION, rule=paper_rule)
    Q, K, V = (made[name].astype(int) for name in "QKV")
    beside(**ATTENTION)
    beside(Q=Q, K=K, V=V)
    paper = plain_attention(Q, K, V, lambda S: S // 2, three_to_the)
    beside(**{"S = K^T Q": paper["S"], "F = floor(S/2)": paper["F"], "E = 3^F": paper["E"], "A": paper["A"]})
    beside(**{"Z = V A": paper["Z"], "Z, the library's": made["Z"]})
    assert (
        paper["Z"] == matrix("180/23 90/7 180/11 10/3; 50/23 25/7 50/11 5/3; 135/23 45/14 15/11 15/2", Fraction)
    ).all()
    assert (paper["A"].sum(axis=0) == 1).all()
    same(made["A"], paper["A"])
    same(made["Z"], paper["Z"])


def self_attention_exactly() -> None:
    """The same with sqrt(3) and e, as the library attends; and what a dot product is not."""
    made = self_attention(**ATTENTION, rule=lambda S: S / math.sqrt(3))
    Q, K, V, A, Z = made.values()
    plain = plain_attention(Q, K, V, lambda S: S / math.sqrt(3), np.exp)
    beside(**{"S": plain["S"], "A": A, "Z": Z})
    same(A, plain["A"])
    same(Z, plain["Z"])
    same(self_attention(**ATTENTION)["Z"], Z, 1e-5)  # nothing edited: the library's own scale, in float32
    # The score is a cosine times both lengths: only for unit vectors does "near 1" mean "the same direction".
    lengths = np.linalg.norm(K, axis=0)[:, None] * np.linalg.norm(Q, axis=0)
    beside(**{"score / lengths = cosine": plain["S"] / lengths})
    assert plain["S"][0, 3] == 1 and plain["S"][0, 3] / lengths[0, 3] < 0.5


def softmax_in_fractions() -> None:
    """Softmax to base 3 is softmax of x ln 3: every base is e at another temperature."""
    for x, by_hand in zip(SOFTMAX, ("3 1 3 243", "1 9 1 3 9 3"), strict=True):
        E = three_to_the(np.array(x))
        y = E / E.sum()
        beside(**{"x": x, "3^x / sum": y})
        total = sum(map(int, by_hand.split()))
        assert (y == [Fraction(int(part), total) for part in by_hand.split()]).all()
        with jax.enable_x64(True):
            same(jax.nn.softmax(jnp.array(x) * math.log(3)), y)


def causal_mask() -> None:
    """The causal mask: query j weighs keys 1 to j, by what is left of the scores."""
    rule = lambda S: jnp.floor(S / 2) * math.log(3)  # noqa: E731
    everything, masked = (self_attention(**ATTENTION, rule=rule, causal=causal) for causal in (False, True))
    seen = np.triu(np.ones((4, 4)))  # columns are queries: above the diagonal is the past
    beside(**{"A, all seen": everything["A"], "A, causal": masked["A"], "Z, causal": masked["Z"]})
    same(masked["A"], everything["A"] * seen / (everything["A"] * seen).sum(axis=0))  # the rest renormalised
    assert (masked["A"][seen == 0] == 0).all()  # exactly, not nearly
    X = ATTENTION["X"] + np.array([0, 0, 0, 5])  # another last token
    changed = self_attention(**(ATTENTION | {"X": X}), rule=rule, causal=True)
    assert (changed["Z"][:, :3] == masked["Z"][:, :3]).all() and (changed["Z"][:, 3] != masked["Z"][:, 3]).any()


def temperature() -> None:
    """Temperature T turns probabilities into their powers 1/T, renormalised: the order stays, entropy grows."""
    temperatures = (0.25, 0.5, 1, TEMPERATURE, 4, 100)
    p = {T: probabilities(T) for T in temperatures}
    beside(**{"": [[word] for word in WORDS]}, **{f"T = {T}": p[T][:, None] for T in temperatures})
    for T in temperatures:
        same(p[T], p[1] ** (1 / T) / np.sum(p[1] ** (1 / T)))
        assert (np.argsort(p[T]) == np.argsort(LOGITS)).all()
    entropies = [-np.sum(p[T] * np.log(p[T])) for T in temperatures]
    beside(**{"entropy, nats": entropies})
    assert all(a < b for a, b in pairwise(entropies)) and entropies[-1] < math.log(len(WORDS))
    order = np.argsort(-p[TEMPERATURE])
    drawn = WORDS[order[np.searchsorted(np.cumsum(p[TEMPERATURE][order]), 0.45)]]
    print(f"T = {TEMPERATURE}, likeliest first: a uniform number of 0.45 draws {drawn!r}.")
    assert drawn == "why"


def probabilities(T: float) -> np.ndarray:
    """What the library's sampler draws WORDS with at this temperature, in float64."""
    with jax.enable_x64(True):
        unseen = jnp.zeros((1, len(LOGITS)), bool)
        spread = lambda weights, tokens: jnp.zeros(len(LOGITS)).at[tokens[0]].set(weights[0])  # noqa: E731
        weights_V = choose(spread, jnp.asarray(LOGITS)[None], lm.Sampler(temperature=T).settings(), unseen)
    return np.asarray(weights_V) / np.asarray(weights_V).sum()


# --- byte pairs ------------------------------------------------------------------------------------------------------
def byte_pairs() -> None:
    """low, lower, lowest: {low, e, r, s, t} is the vocabulary after exactly two merges, neither one nor three."""
    words = ("low", "lower", "lowest")
    for merges, (pair, count, pieces) in enumerate(merge_by_merge([*map(list, words)]), 1):
        print(f"{merges}. {'+'.join(pair):8}{count}x   {'   '.join(' '.join(word) for word in pieces)}")
        trained = lm.tokenizer.build(lm.DataConfig(tokenizer="bpe", vocab=256 + merges + 1), words)
        theirs = [[trained.decode([token]) for token in trained.encode_ordinary(word)] for word in words]
        assert pieces == theirs, f"the library's tokenizer has {theirs}"
        in_use = {piece for word in pieces for piece in word}
        assert (in_use == {"low", "e", "r", "s", "t"}) == (merges == 2)
    # With a mark at the ends of words, "low" and the mark never join before "low" and "e", which occur twice.
    vocabularies = [{p for w in pieces for p in w} for *_, pieces in merge_by_merge([[*word, "_"] for word in words])]
    assert {"low", "_", "e", "r", "s", "t"} in vocabularies and {"low_", "e", "r", "s", "t"} not in vocabularies
    print('With "_" for a word\'s end: {low, _, e, r, s, t} after two; {low_, e, r, s, t} never.')


def merge_by_merge(words: list[list[str]]) -> Iterator[tuple[tuple[str, str], int, list[list[str]]]]:
    """Byte-pair encoding: (pair, its count, the words after merging it) until nothing is left to merge.

    Of equally frequent pairs, the one that is oldest: characters by code point, then pieces in order of making.
    """
    age = {piece: i for i, piece in enumerate(sorted({piece for word in words for piece in word}))}
    while counts := Counter(pair for word in words for pair in pairwise(word)):
        pair = min(counts, key=lambda pair: (-counts[pair], age[pair[0]], age[pair[1]]))
        age.setdefault("".join(pair), len(age))
        words = [_joined(word, pair) for word in words]
        yield pair, counts[pair], words


def _joined(word: Sequence[str], pair: tuple[str, str]) -> list[str]:
    made = []
    for piece in word:
        if made and (made[-1], piece) == pair:
            made[-1] += piece
        else:
            made.append(piece)
    return made


SECTIONS = (
    transformer_block, spreadsheet_block, self_attention_in_fractions, self_attention_exactly, softmax_in_fractions,
    causal_mask, temperature, byte_pairs,
)  # fmt: skip


# --- the figure ------------------------------------------------------------------------------------------------------
def draw() -> Figure:
    """Attention weights in fractions, all seen and causal; and what temperature does."""
    with matplotlib.rc_context(STYLE | {"font.size": 15, "axes.grid": False}):
        figure = Figure(figsize=(15, 4.9), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)
        whole, masked, bars = figure.subplots(1, 3, width_ratios=(1, 1, 1.3))
        draw_weights(whole, masked)
        draw_temperature(bars)
    return figure


def draw_weights(*axes) -> None:
    rule = lambda S: jnp.floor(S / 2) * math.log(3)  # noqa: E731
    for axis, causal in zip(axes, (False, True), strict=True):
        A = self_attention(**ATTENTION, rule=rule, causal=causal)["A"]
        axis.imshow(A, cmap="Blues", vmin=0, vmax=1.15)
        for (i, j), weight in np.ndenumerate(A):
            text = str(Fraction(weight).limit_denominator(100)) if weight else "0"
            axis.text(j, i, text, ha="center", va="center", color="white" if weight > 0.6 else "black", fontsize=15)
        axis.set(xticks=range(4), yticks=range(4), xticklabels=range(1, 5), yticklabels=range(1, 5))
        axis.set(
            xlabel="query", ylabel="key", title="Causal: no key after its query" if causal else "Attention by hand"
        )
        axis.tick_params(length=0)


def draw_temperature(axis) -> None:
    order = np.argsort(-LOGITS)
    for i, T in enumerate((0.5, 1, 2, 4)):
        places = np.arange(len(order)) + 0.2 * (i - 1.5)
        axis.bar(places, probabilities(T)[order], 0.2, label=f"T = {T}", color=f"C{i}")
    axis.set(xticks=range(len(order)), xticklabels=[WORDS[i] for i in order], ylabel="probability")
    axis.set_title("Temperature keeps the order")
    axis.legend(frameon=False)
    axis.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    main()
