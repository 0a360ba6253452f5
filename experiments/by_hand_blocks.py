"""Several heads, position-wise layers, batch norm beside layer norm, residual connections: by pencil and paper.

python experiments/by_hand_blocks.py          30 seconds on two CPU cores
Goes on where by_hand.py stops, with small whole numbers and the library's own layers: attention of several heads, a
feed-forward layer that knows no positions, batch norm beside layer norm and RMS norm, and blocks with residual
connections and without. Prints every intermediate value and stops at the first that is not what pencil and paper give.
Draws experiments/figures/by_hand_blocks.svg. Expected: exit status 0. Where a tutorial says what does not hold, that
heads are averaged, the section says what does.
"""

import math
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from by_hand import BLOCK, beside, feed_forward, matrix, plain_attention, same, self_attention, three_to_the, work
from flax import nnx
from matplotlib.figure import Figure
from norms_model import BatchNorm, Study

import lm
from lm.figures import STYLE
from lm.model import Attention, FeedForward, Mask, Norm, Places, Taps

FIGURE = Path(__file__).parent / "figures" / "by_hand_blocks.svg"
HEADS = dict(
    X=matrix("1 0 2; 0 1 0; 1 1 0; 0 2 1"),
    Wq=matrix("1 0 0 0; 0 1 0 0; 0 0 1 0; 0 0 0 1"),
    Wk=matrix("0 0 1 0; 1 0 0 0; 0 1 0 0; 0 0 1 0"),
    Wv=matrix("3 0 0 0; 0 3 0 0; 0 0 6 0; 0 0 0 6"),
    Wo=matrix("1 0 0 1; 0 1 1 0; 1 1 0 0; 0 0 1 -1"),
)
"""Two heads of width 2 in a stream of width 4: the first two rows of Wq, Wk and Wv are the first head's."""
FEATURES = matrix("3 3 1 1; 10 -10 10 -10; 4 4 6 6; 0 2 2 0")
"""Four features of four tokens: two sentences of two."""
OTHER = matrix("0 0 4 0; 0 0 4 0; 0 0 4 0; 0 0 4 0")
"""What is added to the third token to make another second sentence."""


def main() -> None:
    work(__doc__, SECTIONS, draw, FIGURE)


def base_three(S):
    """What goes into softmax so that it is 3^S / sum 3^S."""
    return S * math.log(3)


# --- several heads ---------------------------------------------------------------------------------------------------
def multi_head(X, Wq, Wk, Wv, Wo, heads: int, rule: Callable) -> tuple[np.ndarray, np.ndarray]:
    """Z, the heads' mixtures one above the other, and Y = Wo Z, by the library's layer; see self_attention."""
    D, T = X.shape
    H = len(Wq) // heads
    c = lm.ModelConfig(width=D, heads=heads, head_width=H, positions="none", qk_norm=False, attention="plain")

    def edit(scores, layer):
        return rule(jnp.round(scores.astype(float) * H**0.5))

    with jax.enable_x64(True):
        layer, taps = Attention(c, nnx.Rngs(0)), Taps(read=["attention.heads"], edits={"attention.scores": edit})
        for linear, W in ((layer.query, Wq), (layer.key, Wk), (layer.value, Wv), (layer.out, Wo)):
            linear.kernel[...] = W.T
        x_BTD, here = jnp.asarray(X.T, float)[None], Places(jnp.arange(T)[None])
        out_BTD, *_ = layer(x_BTD, here, Mask(causal=False), None, None, taps)
    return np.asarray(taps.values["attention.heads"]).reshape(T, -1).T, np.asarray(out_BTD)[0].T


def several_heads() -> None:
    """Two heads are two attentions side by side, stacked and projected: Y = W1 Z1 + W2 Z2, no average of Z1 and Z2."""
    X, Wq, Wk, Wv, Wo = HEADS.values()
    Z, Y = multi_head(**HEADS, heads=2, rule=base_three)
    one, two = (self_attention(X, Wq[h], Wk[h], Wv[h], base_three) for h in (slice(0, 2), slice(2, 4)))
    beside(X=X, Wq=Wq, Wk=Wk, Wv=Wv, Wo=Wo)
    for name, head in (("1", one), ("2", two)):
        Q, K, V = (head[name].astype(int) for name in "QKV")
        exact = plain_attention(Q, K, V, lambda S: S, three_to_the)
        beside(**{"head " + name: [[""]], "Q": Q, "K": K, "V": V, "S": exact["S"], "A": exact["A"], "Z": exact["Z"]})
        same(head["Z"], exact["Z"])
    same(Z, np.vstack([one["Z"], two["Z"]]))
    same(Y, Wo @ Z)
    W1, W2 = Wo[:, :2], Wo[:, 2:]
    same(Y, W1 @ one["Z"] + W2 @ two["Z"])
    # "A weighted average of eight attention vectors" is 2 wide here, where a word's vector is 4. As a map into those it
    # is Wo with blocks a W and (1 - a) W, of one matrix. These two blocks are no multiples of each other:
    assert np.linalg.matrix_rank([W1.ravel(), W2.ravel()]) == 2
    mean = (one["Z"] + two["Z"]) / 2
    _, averaged = multi_head(X, Wq, Wk, Wv, np.hstack([W1 / 2, W1 / 2]), heads=2, rule=base_three)
    same(averaged, W1 @ mean)
    # An average forgets which head found what. Let them change places, and only Y shows it.
    swapped = W1 @ two["Z"] + W2 @ one["Z"]
    beside(**{"mean of Z1, Z2": mean, "W1 mean": averaged, "Y": Y, "Y, heads swapped": swapped})
    same((two["Z"] + one["Z"]) / 2, mean)
    assert np.abs(swapped - Y).max() > 1
    print("A head's output is a weighted average, of values; the heads' outputs are stacked and projected.")


def position_by_position() -> None:
    """The feed-forward layer knows no positions: permuting them commutes with it, exactly."""
    X, _, *network = BLOCK.values()
    order = np.array([3, 0, 4, 2, 1])
    _, _, Y = feed_forward(X, *network)
    _, _, permuted = feed_forward(X[:, order], *network)
    beside(**{"X": X, "Y": Y, "X, permuted": X[:, order], "Y of that": permuted})
    same(permuted, Y[:, order], 0)
    for position in range(X.shape[1]):  # each position alone gives what it gives among the others
        _, _, alone = feed_forward(X[:, [position]], *network)
        same(alone, Y[:, [position]], 0)
    # Attention that sees all commutes too, having positions only as features; a causal mask ends that.
    X, Wq, Wk, Wv, _ = HEADS.values()
    order = np.array([2, 0, 1])
    for causal in (False, True):
        Z, moved = (self_attention(x, Wq[:2], Wk[:2], Wv[:2], base_three, causal)["Z"] for x in (X, X[:, order]))
        commutes = np.allclose(moved, Z[:, order], rtol=0, atol=1e-12)
        print(f"attention, {'causal' if causal else 'all seen'}: {'commutes' if commutes else 'does not commute'}")
        assert commutes != causal


# --- norms and residuals ---------------------------------------------------------------------------------------------
def norms_of(X, rows: int) -> dict[str, np.ndarray]:
    """Layer norm, RMS norm and batch norm of tokens in columns, which are so many sentences of equal length."""
    c = Study(width=len(X), heads=1, norm_epsilon=1e-9)
    x_BTD = jnp.asarray(X.T, jnp.float32).reshape(rows, -1, len(X))
    made = {name: Norm(c, c.width, "D", kind)(x_BTD) for name, kind in (("layer", "layernorm"), ("RMS", "rmsnorm"))}
    made["batch"] = BatchNorm(c)(x_BTD, Taps(), "")
    return {name: np.asarray(y_BTD).reshape(-1, len(X)).T for name, y_BTD in made.items()}


def batch_norm() -> None:
    """Layer norm goes down a column, a token's features; batch norm along a row, all tokens of the batch."""
    X = FEATURES.astype(float)
    made = norms_of(X, rows=2)
    beside(**{"X": X, **{f"{name} norm": Y for name, Y in made.items()}})
    same(made["batch"], matrix("1 1 -1 -1; 1 -1 1 -1; -1 -1 1 1; -1 1 1 -1"), 1e-6)
    same(made["batch"], (X - X.mean(axis=1, keepdims=True)) / X.std(axis=1, keepdims=True), 1e-6)
    same(made["layer"], (X - X.mean(axis=0)) / X.std(axis=0), 1e-6)
    same(made["RMS"], X / np.sqrt((X**2).mean(axis=0)), 1e-6)
    same(norms_of(X.T, rows=2)["batch"].T, made["layer"], 1e-6)  # one is the other of the transposed matrix
    # The second sentence becomes another, or is followed by padding: layer norm of the first stays, to the bit.
    padded = np.hstack([X, np.zeros((4, 4))])
    for name, changed in (
        ("another neighbour", norms_of(X + OTHER, rows=2)),
        ("padding of zeros", norms_of(padded, 4)),
    ):
        first = {f"{kind}, first sentence": changed[kind][:, :2] for kind in changed}
        print(f"{name}:")
        beside(**first)
        same(changed["layer"][:, :2], made["layer"][:, :2], 0)
        same(changed["RMS"][:, :2], made["RMS"][:, :2], 0)
        assert np.abs(changed["batch"][:, :2] - made["batch"][:, :2]).max() > 0.1
    same(norms_of(padded, 4)["batch"][0, :2], (3 - 1) / math.sqrt(10 / 4 - 1), 1e-6)  # 3 3 1 1 0 0 0 0


def stack(X, W, layers: int, residual: bool) -> tuple[np.ndarray, np.ndarray]:
    """What leaves so many blocks that each give relu(W x), added to x or not; and its derivative by the first token."""
    D = len(X)
    c = lm.ModelConfig(width=D, feedforward=D, heads=1, positions="none", activation="relu")
    with jax.enable_x64(True):
        layer = FeedForward(c, nnx.Rngs(0))
        layer.inner.kernel[...], layer.outer.kernel[...] = jnp.asarray(W.T, float), jnp.eye(D)

        def passed(x_TD):
            for _ in range(layers):
                x_TD = layer(x_TD[None], Taps())[0] + (x_TD if residual else 0)
            return x_TD

        x_TD = jnp.asarray(X.T, float)
        jacobian_DTD = jax.jacobian(lambda x_TD: passed(x_TD)[0])(x_TD)
        return np.asarray(passed(x_TD)).T, np.asarray(jacobian_DTD[:, 0])


def residual_connections() -> None:
    """With residual connections a stack passes (I + W)^L, without them W^L: what it passes, and its gradient."""
    X, W, eye = matrix("1 2; 3 1; 1 4"), matrix("0 1 0; 0 0 2; 0 0 0"), np.eye(3)
    for layers in (1, 2, 3, 6):
        made = {residual: stack(X, W, layers, residual) for residual in (True, False)}
        (Y, J), (lost, no_gradient) = made[True], made[False]
        beside(**{f"L={layers}: Y": Y, "dY/dX": J, "without: Y": lost, "dY/dX, without": no_gradient})
        same(J, np.linalg.matrix_power(eye + W, layers))
        same(no_gradient, np.linalg.matrix_power(W, layers))
        # Every way through the stack: k of L blocks, in C(L, k) orders; that through none is the identity.
        same(J, sum(math.comb(layers, k) * np.linalg.matrix_power(W, k) for k in range(layers + 1)))
    assert not lost.any() and not no_gradient.any()  # W W W = 0: after three blocks nothing is left
    for gain in (0.5, 2.0):
        J, alone = (stack(np.ones((1, 1)), np.array([[gain]]), 8, residual)[1][0, 0] for residual in (True, False))
        print(f"eight blocks of gain {gain:g}: gradient {alone:g} without residual connections, {J:g} with")
        assert (J, alone) == ((1 + gain) ** 8, gain**8)
    # In the transformer: blocks that add nothing pass what enters, and its gradient, to the bit.
    c = lm.ModelConfig(layers=3, width=4, heads=1, context=2, vocab=5)
    model, tokens_BT = lm.build(c), jnp.array([[1, 2]])

    def passed(added_D):
        edits = {name: lambda out, layer: 0 * out for name in ("attention.out", "mlp.out")}
        taps = Taps(["residual.after"], edits | {"embedding": lambda x_BTD, layer: x_BTD + added_D})
        model.hidden(model.init(0), lm.Inputs(tokens_BT), taps=taps)
        return taps.values["residual.after"][-1, 0, 0]

    same(passed(jnp.zeros(4)), model.init(0)["embedding"][1], 0)
    same(jax.jacobian(passed)(jnp.zeros(4)), np.eye(4), 0)


SECTIONS = (several_heads, position_by_position, batch_norm, residual_connections)


# --- the figure ------------------------------------------------------------------------------------------------------
def draw() -> Figure:
    """The same tokens under layer norm and batch norm, also beside other neighbours; gradients by depth."""
    other = FEATURES + OTHER
    panels = {
        "Layer norm": norms_of(FEATURES, 2)["layer"],
        "Batch norm": norms_of(FEATURES, 2)["batch"],
        "Batch norm, other neighbour": norms_of(other, 2)["batch"],
    }
    with matplotlib.rc_context(STYLE | {"font.size": 14, "axes.grid": False}):
        figure = Figure(figsize=(17, 4.4), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)
        *matrices, depth = figure.subplots(1, 4, width_ratios=(1, 1, 1, 1.35))
        for axis, (title, Y) in zip(matrices, panels.items(), strict=True):
            draw_matrix(axis, Y, title)
        draw_depth(depth)
    return figure


def draw_matrix(axis, Y: np.ndarray, title: str) -> None:
    """Tokens in columns, the first sentence's framed."""
    axis.imshow(Y, cmap="RdBu_r", vmin=-2.5, vmax=2.5)
    for (i, j), value in np.ndenumerate(Y):
        axis.text(j, i, f"{value:.2f}".removesuffix(".00"), ha="center", va="center", fontsize=13)
    axis.add_patch(matplotlib.patches.Rectangle((-0.47, -0.47), 2, len(Y) - 0.06, fill=False, linewidth=2))
    axis.set(xticks=range(4), xticklabels=range(1, 5), yticks=range(4), yticklabels=range(1, 5), title=title)
    axis.set(xlabel="token", ylabel="feature")
    axis.tick_params(length=0)


def draw_depth(axis) -> None:
    layers = range(1, 9)
    for gain, colour in ((0.5, "C0"), (2.0, "C3")):
        for residual in (True, False):
            sizes = [stack(np.ones((1, 1)), np.array([[gain]]), L, residual)[1][0, 0] for L in layers]
            label = f"gain {gain:g}, {'with' if residual else 'without'} residual"
            axis.plot(layers, sizes, "o" + ("-" if residual else "--"), color=colour, label=label)
    axis.set(yscale="log", ylim=(2e-3, 1e7), xlabel="blocks L", ylabel="gradient")
    axis.set_title("(1 + gain)^L with, gain^L without")
    axis.legend(frameon=False, fontsize=11)


if __name__ == "__main__":
    main()
