"""What is usually said about transformers, said exactly: what holds, when, and by how much.

python experiments/by_hand_claims.py          40 seconds on two CPU cores
Each section is a claim of a tutorial: sinusoids, layer norm, the variance of scores, where the parameters are, what a
KV cache saves, what is quadratic in attention. Prints tables from the library's own layers, counts and clocks, and
stops where the exact statement fails. Draws experiments/figures/by_hand_claims.svg. Expected: exit status 0.
"""

import argparse
import functools
import math
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from by_hand import SHEET, beside, same
from flax import nnx
from matplotlib.figure import Figure

import lm
from lm.figures import save
from lm.model import FeedForward, KeysValues, Mask, Norm, Places, Taps, attend_among, project, rotate, sinusoids
from lm.sample import generate_naive

FIGURE = Path(__file__).parent / "figures" / "by_hand_claims.svg"
MODELS = {
    "quick start": lm.ModelConfig(layers=4, width=128, heads=4, vocab=2048),
    "Llama 15M": lm.ModelConfig.llama("15M"),
    "GPT-2 124M": lm.ModelConfig.gpt2("124M"),
    "GPT-2 350M": lm.ModelConfig.gpt2("350M"),
    "GPT-2 1.6B": lm.ModelConfig.gpt2("1558M"),
    "Llama 1B": lm.ModelConfig.llama("1B"),
}
DECODED = (16, 64, 256)
"""Tokens generated, with the cache and without."""
LENGTHS = (256, 512, 1024, 2048, 4096)
"""Sequences whose attention is timed, in a block of this width and so many heads."""
WIDTH, HEADS = 64, 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--figure", type=Path, default=FIGURE)
    options = parser.parse_args()
    made = {}
    for section in SECTIONS:
        print(f"\n=== {section.__doc__.splitlines()[0]}")
        made[section] = section()
    figure = draw(made[parameters], made[kv_cache], made[quadratic_attention])
    save(figure, options.figure)
    print(f"\nevery statement holds; {options.figure}")


# --- positions, norms, scores -----------------------------------------------------------------------------------------
def sinusoidal_positions() -> None:
    """Sinusoidal positions: moving by k tokens is one rotation, the same wherever one stands."""
    D, T, k = 6, 64, 3
    frequencies = 10_000.0 ** (-np.arange(0, D, 2) / D)
    R = np.zeros((D, D))
    for i, angle in enumerate(k * frequencies):
        R[2 * i : 2 * i + 2, 2 * i : 2 * i + 2] = [[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]
    P = np.asarray(sinusoids(jnp.arange(T)[None], D), float)[0].T
    beside(**{"P, positions 0 to 4": P[:, :5], f"R, a move by {k}": R, f"R P = P from {k} on": (R @ P)[:, :4]})
    same(R @ R.T, np.eye(D))
    same(R @ P[:, :-k], P[:, k:], 2e-5)  # the library's phases are float32
    angles = np.arange(T) * frequencies[:, None]
    exact = np.stack([np.sin(angles), np.cos(angles)], axis=1).reshape(D, T)
    same(R @ exact[:, :-k], exact[:, k:])
    # So products know the distance, but not who comes first; rotary positions know that too.
    apart = np.arange(T)[:, None] - np.arange(T)
    same(P.T @ P, np.cos(apart[..., None] * frequencies).sum(axis=-1), 2e-5)
    q, k = np.random.default_rng(0).standard_normal((2, D))
    turned = (rotate(jnp.tile(x, (1, T, 1, 1)).reshape(1, T, 1, D), jnp.arange(T)[None], frequencies) for x in (q, k))
    q, k = map(np.asarray, turned)
    scores = q[0, :, 0] @ k[0, :, 0].T
    rows = {f"from {p} to": [scores[p, p + 5], scores[p + 5, p]] for p in (0, 20, 50)}
    beside(
        **{"rotary q.k": [["5 later"], ["5 earlier"]]}, **{name: np.array(row)[:, None] for name, row in rows.items()}
    )
    same(scores[1:, 1:], scores[:-1, :-1], 2e-5)
    assert abs(scores[0, 5] - scores[5, 0]) > 0.1


def layer_norm() -> None:
    """Layer norm: every position gets mean 0 and variance v / (v + epsilon); RMSNorm leaves the mean in."""
    X, c = SHEET["X"].astype(float), lm.ModelConfig(norm_epsilon=1e-5)
    layer, rms = (
        lambda x, k=kind: np.asarray(Norm(c, 4, "D", k)(jnp.asarray(x.T))).T for kind in ("layernorm", "rmsnorm")
    )
    beside(**{"X": X, "layer norm": layer(X), "RMSNorm": rms(X)})
    v = X.var(axis=0)
    same(layer(X).mean(axis=0), 0, 1e-6)
    same(layer(X).var(axis=0), v / (v + 1e-5), 1e-6)
    same(rms(X) * np.sqrt((X**2).mean(axis=0) + 1e-5), X, 1e-6)
    same(layer(X + 7), layer(X), 2e-6)  # offsets do not get through, sizes only as far as epsilon is felt
    same(layer(10 * X) * np.sqrt(v + 1e-7), layer(X) * np.sqrt(v + 1e-5), 2e-6)
    assert np.abs(rms(X + 7) - rms(X)).max() > 0.5


def variance_of_scores() -> None:
    """var(q.k) = d_k if all features are independent, of mean 0 and variance 1; whatever their distribution."""
    rng, n, sizes = np.random.default_rng(0), 20_000, (3, 16, 64, 256)
    table = {
        name: [] for name in ("d_k", "var, normal", "var, +-1", "var, k = q", "var of cosine x d", "p(1-p)", "scaled")
    }
    for d in sizes:
        q, k, q1, k1 = (*rng.standard_normal((2, n, d)), *rng.choice([-1.0, 1.0], (2, n, d)))
        normal, signs, own = (q * k).sum(axis=1), (q1 * k1).sum(axis=1), (q * q).sum(axis=1)
        cosine = normal / np.linalg.norm(q, axis=1) / np.linalg.norm(k, axis=1)
        open_ = [_openness(scores.reshape(-1, 16)) for scores in (normal, normal / math.sqrt(d))]
        row = d, normal.var(), signs.var(), own.var(), cosine.var() * d, *open_
        for column, value in zip(table.values(), row, strict=True):
            column.append([value])
        # Five standard errors of a variance, from the fourth moments: 9 for products of normals, 1 for signs.
        assert abs(normal.var() / d - 1) < 5 * math.sqrt((2 + 6 / d) / n)
        assert abs(signs.var() / d - 1) < 5 * math.sqrt((2 - 2 / d) / n)
        assert abs(own.var() / (2 * d) - 1) < 5 * math.sqrt((2 + 12 / d) / n)  # chi squared: a dependent pair has more
        assert abs(cosine.var() * d - 1) < 5 * math.sqrt(2 * (d - 1) / (d + 2) / n)  # 1/sqrt(D) for random directions
    beside(**table)
    unscaled, scaled = (np.ravel(table[name]) for name in ("p(1-p)", "scaled"))
    # Softmax's gradient goes through p (1 - p): unscaled it dies as d grows, scaled it stays.
    assert (np.diff(unscaled) < 0).all() and unscaled[-1] < 0.2 and np.ptp(scaled) < 0.03


def _openness(scores: np.ndarray) -> float:
    """Mean over rows of sum p (1 - p), the trace of softmax's Jacobian: 0 when one weight has everything."""
    p = np.exp(scores - scores.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    return float((p * (1 - p)).sum(axis=1).mean())


# --- where the parameters are ----------------------------------------------------------------------------------------
def parameters() -> dict[str, dict[str, int]]:
    """MLPs hold 2/3 of the blocks' matrices, and most of a tied model only if V < 4 L D (without its norms)."""
    counts = {name: parts(c) for name, c in MODELS.items()}
    table = {"": [[name] for name in MODELS]} | {title: [] for title in ("parameters", "V", "half at V =")}
    table |= {title: [] for title in ("embeddings %", "attention %", "MLP %", "MLP % of blocks")}
    for name, c in MODELS.items():
        n = counts[name]
        total, tables = sum(n.values()), 1 if c.tied else 2
        half = (n["MLP"] - n["attention"] - n["norms"] - n["positions"]) / (tables * c.width)
        assert (n["MLP"] > total / 2) == (half > c.V)
        shares = [(n["embeddings"] + n["positions"]) / total, n["attention"] / total, n["MLP"] / total]
        shares.append(n["MLP"] / (n["MLP"] + n["attention"]))
        row = [f"{total:,}", f"{c.V:,}", f"{half:,.0f}", *(f"{100 * share:.1f}" for share in shares)]
        for column, cell in zip(list(table.values())[1:], row, strict=True):
            column.append([cell])
    beside(**table)
    # Width D, F = 4 D, as many key heads as query heads, no biases: 8 of 12 L D^2, and the boundary to one entry of V.
    for L, D in ((1, 16), (2, 16), (3, 32)):
        for tied, tables in ((True, 1), (False, 2)):
            boundary = (4 * L * D - (2 * L + 1)) / tables  # 2 L + 1 norms of D scales
            for V in (math.ceil(boundary) - 1, math.ceil(boundary), math.floor(boundary) + 1):
                shape = dict(layers=L, width=D, heads=2, context=8, vocab=V, vocab_multiple=1, tied=tied, qk_norm=False)
                n = parts(lm.ModelConfig(**shape))
                assert (2 * n["MLP"] > sum(n.values())) == (boundary > V)
                assert (n["MLP"], n["attention"]) == (8 * L * D * D, 4 * L * D * D)
    print("tied, F = 4 D: MLPs are the majority when V + 2 L + 1 < 4 L D; untied, when 2 V + 2 L + 1 < 4 L D.")
    return counts


def parts(c: lm.ModelConfig) -> dict[str, int]:
    """How many parameters each part of the model has, counted from its arrays."""
    of = {"embedding": "embeddings", "head": "embeddings", "position": "positions"}
    of |= {"attention": "attention", "feedforward": "MLP"}
    counts = dict.fromkeys([*of.values(), "norms"], 0)
    for path, leaf in jax.tree.leaves_with_path(lm.build(c).shapes()):
        names = [key.key for key in path if key.key != "blocks"]
        counts[of.get(names[0], "norms")] += math.prod(leaf.shape)
    return counts


# --- what a cache saves ----------------------------------------------------------------------------------------------
def flops_of_reading(model: lm.LanguageModel, tokens: int) -> dict[str, float]:
    """Matrix products of reading so many tokens at once, by part."""
    return {part: tokens * flops for part, flops in model.cost(tokens).products.items()}


def kv_cache() -> dict[str, list[float]]:
    """Over n tokens a cache saves a factor (n + 1)/2 of the projections and (n + 2)/3 of attention, for memory."""
    made = {name: [] for name in ("n", "FLOPs, cached", "FLOPs, without", "ratio", "s, cached", "s, without", "times")}
    for n in DECODED:
        c = lm.ModelConfig(layers=4, width=128, heads=4, context=n, vocab=256, tied=True, zero_init=False)
        read = functools.partial(flops_of_reading, lm.build(c))
        cached, without = read(n), Counter()  # each token read once; or all tokens so far, for each token
        for t in range(1, n + 1):
            without.update(read(t))
        for part, flops in cached.items():
            factor = (n + 2) / 3 if part == "attention scores and values" else (n + 1) / 2
            assert math.isclose(without[part] / flops, factor)
        seconds = decoding_seconds(c, n)
        flops = sum(cached.values()), sum(without.values())
        row = [n, *flops, flops[1] / flops[0], *seconds, seconds[1] / seconds[0]]
        for column, value in zip(made.values(), row, strict=True):
            column.append(value)
    memory = [f"{2 * c.layers * c.K * c.H * n * 4 / 1e3:,.0f}" for n in DECODED]
    shown = {name: [[f"{x:.3g}"] for x in column] for name, column in made.items()}
    beside(**shown, **{"cache, kB": [[kilobytes] for kilobytes in memory]})
    assert made["times"][-1] > 2  # the clock agrees, on any machine
    return made


def decoding_seconds(c: lm.ModelConfig, n: int) -> tuple[float, float]:
    """Seconds (see `fastest`) for n greedy tokens by lm.generate and by its plain path, which must be the same tokens.

    The plain path is one program for all lengths, so it reads all of the context each time, twice what it needs.
    """
    m = lm.Trained(lm.build(c).init(0), lm.bench.AnyText(c.vocab, 1), lm.Experiment(model=c), step=0)
    prompt = m.tokenizer.encode_ordinary("")
    cached = lambda: lm.generate(m, [""], lm.Sampler(temperature=0), max_tokens=n)[0].tokens  # noqa: E731
    plain = lambda: generate_naive(m, prompt, n)[0]  # noqa: E731
    assert cached() == plain()
    return fastest(cached), fastest(plain, 2)


def fastest(run: Callable, rounds: int = 5) -> float:
    """Seconds of the quickest of so many turns: what others do on the machine only ever adds.

    On a CPU those of all its cores together, which whoever else computes there does not take.
    """
    clock = time.process_time if jax.default_backend() == "cpu" else time.perf_counter
    seconds = []
    for _ in range(rounds):
        start = clock()
        jax.block_until_ready(run())
        seconds.append(clock() - start)
    return min(seconds)


# --- what is quadratic -----------------------------------------------------------------------------------------------
def quadratic_attention() -> dict[str, list[float]]:
    """Of a block's work only scores and mixing grow as T^2, and they outgrow the rest at T = 12 D."""
    D, crossing = WIDTH, 12 * WIDTH - 1
    model = lm.build(lm.ModelConfig(layers=1, width=D, heads=HEADS, vocab=1))

    def quadratic(T: int) -> float:
        return flops_of_reading(model, T)["attention scores and values"]

    def linear(T: int) -> float:
        block = flops_of_reading(model, T)
        return block["attention projections"] + block["feed-forward"]

    assert quadratic(crossing) == linear(crossing) and quadratic(crossing + 1) > linear(crossing + 1)
    assert quadratic(LENGTHS[-1]) == 2 * D * LENGTHS[-1] * (LENGTHS[-1] + 1)  # pairs the mask lets through
    made = {name: [] for name in ("T", "FLOPs, T^2", "FLOPs, rest", "ms, T^2", "ms, rest")}
    for T in LENGTHS:
        attend, rest = block_parts(T)
        row = T, quadratic(T), linear(T), 1e3 * fastest(attend), 1e3 * fastest(rest)
        for column, value in zip(made.values(), row, strict=True):
            column.append(value)
    beside(**{name: [[f"{x:.4g}"] for x in column] for name, column in made.items()})
    grown, rest = (made[name][-1] / made[name][-3] for name in ("ms, T^2", "ms, rest"))
    print(f"width {D}: as many FLOPs as the rest at T = {crossing}.", end=" ")
    print(f"Four times as long takes {grown:.1f} times as long to attend, {rest:.1f} times for the rest.")
    assert grown > 1.5 * rest
    return made


def block_parts(T: int) -> tuple[Callable, Callable]:
    """Compiled: how T tokens attend to each other, and a block's projections with its feed-forward layer."""
    rng = np.random.default_rng(0)
    normal = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)  # noqa: E731
    q, k, v = normal(1, HEADS, 1, T, WIDTH // HEADS), normal(HEADS, T, WIDTH // HEADS), normal(HEADS, T, WIDTH // HEADS)
    x, w, out = normal(1, T, WIDTH), normal(WIDTH, 3 * WIDTH), normal(WIDTH, WIDTH)
    layer = FeedForward(lm.ModelConfig(width=WIDTH, heads=HEADS, zero_init=False), nnx.Rngs(0))
    places = jnp.arange(T)[None]
    attend = jax.jit(lambda q, k, v: attend_among(q, KeysValues(k, v), Places(places), Mask(), Taps()))
    rest = jax.jit(lambda x, w, out: (project(x, w), project(x, out), layer(x, Taps())))
    jax.block_until_ready((attend(q, k, v), rest(x, w, out)))
    return lambda: attend(q, k, v), lambda: rest(x, w, out)


SECTIONS = (sinusoidal_positions, layer_norm, variance_of_scores, parameters, kv_cache, quadratic_attention)


# --- the figure ------------------------------------------------------------------------------------------------------
def draw(counts: dict, cache: dict, growth: dict) -> Figure:
    """A move of sinusoids as a rotation; shares of parameters; the cache's savings; attention's growth."""
    with matplotlib.rc_context({"font.size": 14}):
        figure = Figure(figsize=(12, 10), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)
        (circle, shares), (saved, grown) = figure.subplots(2, 2)
        draw_rotation(circle)
        draw_shares(shares, counts)
        saved.plot(cache["n"], cache["ratio"], "o--", color="0.5", label="FLOPs")
        saved.plot(cache["n"], cache["times"], "s-", color="C0", label="time, measured")
        saved.set(xscale="log", yscale="log", xlabel="tokens generated", ylabel="without cache / with cache")
        saved.set_title("What a KV cache saves")
        for name, colour in (("T^2", "C3"), ("rest", "C0")):
            label = "scores and mixing" if name == "T^2" else "projections and MLP"
            times, flops = np.array(growth[f"ms, {name}"]), np.array(growth[f"FLOPs, {name}"])
            grown.plot(growth["T"], times, "o-", color=colour, label=label)
            grown.plot(growth["T"], flops * times[-1] / flops[-1], "--", color=colour, alpha=0.6)
        grown.set(
            xscale="log",
            yscale="log",
            xlabel="tokens in the sequence",
            ylabel="ms of all cores (dashed: FLOPs, scaled)",
        )
        grown.set_title("What is quadratic in attention")
        for axis, ticks in ((saved, cache["n"]), (grown, growth["T"])):
            axis.set_xticks(ticks, [str(tick) for tick in ticks])
            axis.minorticks_off()
            axis.legend(frameon=False)
        for axis in (circle, shares, saved, grown):
            axis.spines[["top", "right"]].set_visible(False)
    return figure


def draw_rotation(axis) -> None:
    """Two features at positions 0 to 8, and two moves by three tokens."""
    P = np.asarray(sinusoids(jnp.arange(9)[None], 16), float)[0]
    y, x = P[:, 2], P[:, 3]  # a sine and its cosine
    around = np.linspace(0, 2 * np.pi, 200)
    axis.plot(np.cos(around), np.sin(around), color="0.85")
    axis.plot(x, y, "o", color="C0", markersize=9)
    for p in range(9):
        axis.annotate(str(p), (1.13 * x[p], 1.13 * y[p]), ha="center", va="center")
    for i, (start, radius) in enumerate(((0, 0.8), (5, 0.6)), 1):
        turned = np.linspace(*np.arctan2(y[[start, start + 3]], x[[start, start + 3]]), 50)
        axis.plot(radius * np.cos(turned), radius * np.sin(turned), color=f"C{i}", linewidth=3)
        for end in (start, start + 3):
            axis.plot([0, x[end]], [0, y[end]], color=f"C{i}", linewidth=1)
    axis.set(xlim=(-1.3, 1.3), ylim=(-1.3, 1.3), aspect="equal", xlabel="cosine feature", ylabel="sine feature")
    axis.set_title("Three tokens on: the same rotation anywhere")


def draw_shares(axis, counts: dict) -> None:
    left = np.zeros(len(counts))
    for part, colour in (("MLP", "C0"), ("attention", "C1"), ("embeddings", "0.75")):
        own = [n[part] + (n["positions"] if part == "embeddings" else 0) for n in counts.values()]
        share = 100 * np.array(own) / [sum(n.values()) for n in counts.values()]
        axis.barh(list(counts), share, left=left, color=colour, label=part)
        left += share
    axis.axvline(50, color="black", linewidth=1, linestyle=":")
    axis.set(xlim=(0, 100), xlabel="% of parameters", title="Where the parameters are")
    axis.invert_yaxis()
    axis.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.4, -0.14), ncols=3)


if __name__ == "__main__":
    main()
