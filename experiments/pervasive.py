"""Is a 2-D convolution over source x target ("pervasive attention") worth it, against an encoder-decoder?

python experiments/pervasive.py --data FOLDER                          5 minutes on two CPU cores
python experiments/pervasive.py --data FOLDER --seconds 5 --seeds 0    half a minute, to see that it works

FOLDER holds fra-eng.train.tsv.xz and fra-eng.valid.tsv, English and French in columns (tatoeba.org, through
manythings.org/anki). Elbayad, Besacier and Verbeek (2018, "Pervasive Attention: 2D Convolutional Neural Networks for
Sequence-to-Sequence Prediction") put both words at each cell of a grid, let convolutions that are causal along the
target re-read every pair of places, and take the maximum over the source. Trains that and lm's encoder-decoder on pairs
of at most 10 tokens a side: as many parameters, the same batches in the same order, the same optimizer, and the same
processor time (what else the machine does is not counted), in alternating turns. Draws nats per target token on
held-out pairs against time and against pairs read.
Expected: the encoder-decoder ahead at equal time; see experiments/RESULTS.md.

Axes, beside the README's: C channels of a cell of the grid, U tokens of a target with end-of-text at both ends.
"""

import argparse
import dataclasses
import json
import lzma
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from matplotlib import ticker

import lm
from lm.errors import require
from lm.figures import STYLE, plt, save
from lm.files import whole

FIGURE = Path(__file__).parent / "figures" / "pervasive.svg"
LONGEST, BATCH, TURN, SCORED = 10, 64, 5, 10
"""Tokens a side at most, pairs in a step, steps in a turn, and how often a model is judged while it learns."""
NAMES = ("pervasive attention", "encoder-decoder")
RATES = {"pervasive attention": 5e-3, "encoder-decoder": 5e-3}
"""The peak rate of each."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder with the pairs of sentences")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--seconds", type=float, default=60, help="processor time of each model")
    parser.add_argument("--vocab", type=int, default=2048)
    parser.add_argument("--runs", type=Path, default=Path("runs/pervasive"), help="where each seed's result is kept")
    parser.add_argument("--figure", type=Path, default=FIGURE)
    options = parser.parse_args()
    tokenizer, train, held_out = read(options.data, options.vocab)
    print(f"{len(train.source_count_B):,} pairs to learn from, {len(held_out.source_count_B):,} held out", flush=True)
    results = []
    for seed in options.seeds:
        file = options.runs / f"{options.vocab}-entries-{options.seconds:g}-s-seed-{seed}.json"
        if not file.is_file():
            file.parent.mkdir(parents=True, exist_ok=True)
            result = contest(tokenizer.n_vocab, train, held_out, seed, options.seconds)
            with whole(file) as out:
                json.dump(result, out)
        results.append(json.loads(file.read_text()))
        print(table(results[-1:]), flush=True)
    print(table(results))
    save(draw(results), options.figure)
    print(options.figure)


# --- the model -------------------------------------------------------------------------------------------------------
class Pervasive(nnx.Module):
    """Convolutions over the grid of target x source (Elbayad et al. 2018, section 3), each layer's output appended.

    Layer norm stands where the paper has batch norm, which would let a cell read other sentences and later words.
    vocab: entries, of both languages. width: of a word's vector. growth: channels that each layer adds. rows: how many
    target places, its own and those before, a kernel sees; it sees 2 rows - 1 source places, its own in the middle.
    """

    def __init__(self, vocab: int, width: int, layers: int, growth: int, rows: int, rngs: nnx.Rngs):
        channels = [2 * width + growth * layer for layer in range(layers + 1)]
        kernel, padding = (rows, 2 * rows - 1), ((rows - 1, 0), (rows - 1, rows - 1))
        self.source, self.target = (nnx.Embed(vocab, width, rngs=rngs) for _ in range(2))
        self.first_norm = nnx.LayerNorm(2 * width, rngs=rngs)
        self.layers = nnx.List([nnx.Conv(C, growth, kernel, padding=padding, rngs=rngs) for C in channels[:-1]])
        self.norms = nnx.List([nnx.LayerNorm(growth, rngs=rngs) for _ in self.layers])
        self.out = nnx.Linear(channels[-1], width, kernel_init=nnx.initializers.zeros, rngs=rngs)

    def __call__(self, source_BS: jax.Array, count_B: jax.Array, tokens_BT: jax.Array) -> jax.Array:
        """Logits [B, T, V] of the token after each of the target's, count_B of the source's tokens being real."""
        (B, S), T = source_BS.shape, tokens_BT.shape[1]
        real_B1S1 = (jnp.arange(S) < count_B[:, None])[:, None, :, None]
        sources_BTSD = jnp.broadcast_to(self.source(source_BS)[:, None], (B, T, S, self.source.features))
        targets_BTSD = jnp.broadcast_to(self.target(tokens_BT)[:, :, None], sources_BTSD.shape)
        x_BTSC = self.first_norm(jnp.concatenate([targets_BTSD, sources_BTSD], axis=-1))
        for layer, norm in zip(self.layers, self.norms, strict=True):
            added_BTSC = nnx.relu(norm(layer(jnp.where(real_B1S1, x_BTSC, 0))))
            x_BTSC = jnp.concatenate([x_BTSC, added_BTSC], axis=-1)
        pooled_BTC = jnp.max(jnp.where(real_B1S1, x_BTSC, -jnp.inf), axis=2)
        return self.target.attend(self.out(pooled_BTC))


def encoder_decoder(vocab: int) -> lm.ModelConfig:
    """The baseline: lm's defaults (rotary positions, pre-norm, squared ReLU), and two blocks on either side."""
    encoder = lm.EncoderConfig(layers=2, width=64, heads=4, context=LONGEST, vocab=vocab)
    return lm.ModelConfig(layers=2, width=64, heads=4, context=LONGEST + 1, vocab=vocab, tied=True, encoder=encoder)


def pervasive(vocab: int, seed: int) -> Pervasive:
    """Of as many parameters, within 2%."""
    return Pervasive(vocab, width=64, layers=5, growth=36, rows=2, rngs=nnx.Rngs(seed))


def logits_of_pervasive(graph: nnx.GraphDef) -> Callable:
    """A function of parameters and a batch's source, counts and target so far, to logits [B, T, V]."""

    def logits(params, source_BS, count_B, tokens_BT):
        return nnx.merge(graph, params)(source_BS, count_B, tokens_BT)

    return logits


def logits_of_encoder_decoder(model: lm.LanguageModel) -> Callable:
    """The same of lm's."""

    def logits(params, source_BS, count_B, tokens_BT):
        source = lm.Inputs(source_BS, count_B=count_B)
        return model.apply(params, lm.Inputs(tokens_BT, source=source))[0]

    return logits


# --- the pairs -------------------------------------------------------------------------------------------------------
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Pairs:
    """Translations: a source's tokens and how many they are; a target's between two end-of-text, and how many."""

    source_BS: np.ndarray
    source_count_B: np.ndarray
    target_BU: np.ndarray
    target_count_B: np.ndarray

    def take(self, rows: np.ndarray) -> "Pairs":
        return jax.tree.map(lambda x: x[rows], self)


def read(folder: Path, vocab: int) -> tuple[lm.tokenizer.Tokenizer, Pairs, Pairs]:
    """The tokenizer, which both languages share, and the pairs to learn from and to be judged by."""
    texts = []
    for name, opener in (("fra-eng.train.tsv.xz", lzma.open), ("fra-eng.valid.tsv", open)):
        require(
            (folder / name).is_file(), f"--data {folder}: has no {name}; a folder with pairs of sentences is needed"
        )
        with opener(folder / name, "rt", encoding="utf-8") as file:
            texts.append([line.rstrip("\n").split("\t")[:2] for line in file])
    # A pair is one text. Of texts in turn English and French, the tokenizer's sample would be the English ones alone.
    tokenizer = lm.tokenizer.build(lm.DataConfig(tokenizer="bpe", vocab=vocab), map("\n".join, texts[0]))
    return tokenizer, *(encode(tokenizer, pairs) for pairs in texts)


def encode(tokenizer: lm.tokenizer.Tokenizer, pairs: list[list[str]]) -> Pairs:
    """Those with at most LONGEST tokens on either side, padded on the right with end-of-text."""
    encoded = [tuple(map(tokenizer.encode_ordinary, pair)) for pair in pairs]
    kept = [pair for pair in encoded if max(map(len, pair)) <= LONGEST]
    end = tokenizer.eot_token

    def rows(side: int, before: list[int], width: int) -> np.ndarray:
        return np.array([(before + pair[side] + [end] * width)[:width] for pair in kept], np.int32)

    counts = np.array([[len(source), len(target) + 1] for source, target in kept], np.int32)
    return Pairs(rows(0, [], LONGEST), counts[:, 0], rows(1, [end], LONGEST + 2), counts[:, 1])


def batches(pairs: Pairs, seed: int) -> Iterator[Pairs]:
    """Passes over the pairs, each in another order that depends on the seed alone."""
    rng = np.random.default_rng(seed)
    while True:
        order = rng.permutation(len(pairs.source_count_B))
        for rows in np.split(order[: len(order) // BATCH * BATCH], len(order) // BATCH):
            yield pairs.take(rows)


# --- training --------------------------------------------------------------------------------------------------------
def nats_and_tokens(logits: Callable, params, pairs: Pairs) -> tuple[jax.Array, jax.Array]:
    """Summed -log p of the real target tokens, their end-of-text included, and their number."""
    inputs_BT, targets_BT = pairs.target_BU[:, :-1], pairs.target_BU[:, 1:]
    weights_BT = jnp.arange(targets_BT.shape[1]) < pairs.target_count_B[:, None]
    logits_BTV = logits(params, pairs.source_BS, pairs.source_count_B, inputs_BT)
    nats_BT = optax.softmax_cross_entropy_with_integer_labels(logits_BTV, targets_BT)
    return jnp.sum(nats_BT * weights_BT), jnp.sum(weights_BT)


class Learner:
    """A model in training: what it has read, and its curve of (processor seconds, pairs, held-out nats)."""

    def __init__(self, logits: Callable, params, rate: float, pairs: Pairs, seed: int):
        self.params, self.rate, self.batches = params, rate, batches(pairs, seed)
        self.spent, self.steps, self.curve = 0.0, 0, []
        self.optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam(b2=0.98))
        self.state = self.optimizer.init(params)

        def update(params, state, pairs, rate):
            def loss(params):
                nats, count = nats_and_tokens(logits, params, pairs)
                return nats / count

            directions, state = self.optimizer.update(jax.grad(loss)(params), state)
            return optax.apply_updates(params, jax.tree.map(lambda x: -rate * x, directions)), state

        first = pairs.take(np.arange(BATCH))
        self.update = jax.jit(update).lower(params, self.state, first, jnp.float32(0)).compile()
        self.score = jax.jit(lambda params, pairs: nats_and_tokens(logits, params, pairs))

    def turn(self, seconds: float) -> None:
        """A few steps: the rate rises for a twentieth of the seconds, then falls to zero at their end."""
        begin = time.process_time()
        for pairs in [next(self.batches) for _ in range(TURN)]:
            rate = self.rate * min(20 * (self.spent / seconds + 0.002), 1 - self.spent / seconds)
            self.params, self.state = self.update(self.params, self.state, pairs, jnp.float32(rate))
        jax.block_until_ready(self.params)
        self.steps += TURN
        self.spent += time.process_time() - begin

    def judge(self, held_out: Pairs) -> None:
        nats, count = self.score(self.params, held_out)
        self.curve.append((self.spent, self.steps * BATCH, float(nats / count)))

    def record(self) -> dict:
        """The curve, the number of parameters, and what XLA plans for a step: temporary bytes, and FLOPs."""
        parameters = sum(leaf.size for leaf in jax.tree.leaves(self.params))
        memory, cost = self.update.memory_analysis().temp_size_in_bytes, self.update.cost_analysis()["flops"]
        return {"curve": self.curve, "parameters": parameters, "bytes": memory, "flops": cost}


def learners(vocab: int, train: Pairs, seed: int, rates: dict[str, float] = RATES) -> dict[str, Learner]:
    """Both models with fresh parameters, compiled."""
    graph, state = nnx.split(pervasive(vocab, seed))
    model = lm.build(encoder_decoder(vocab))
    made = {
        "pervasive attention": (logits_of_pervasive(graph), nnx.to_pure_dict(state)),
        "encoder-decoder": (logits_of_encoder_decoder(model), model.init(seed)),
    }
    return {name: Learner(logits, params, rates[name], train, seed) for name, (logits, params) in made.items()}


def contest(vocab: int, train: Pairs, held_out: Pairs, seed: int, seconds: float) -> dict[str, dict]:
    """Train both for the same processor seconds, in turns so that a machine that slows down slows both."""
    both = learners(vocab, train, seed)
    for learner in both.values():
        learner.judge(held_out)
    while (learner := min(both.values(), key=lambda learner: learner.spent)).spent < seconds:
        learner.turn(seconds)
        if learner.spent >= len(learner.curve) * seconds / SCORED:
            learner.judge(held_out)
    return {name: learner.record() for name, learner in both.items()}


# --- what is shown ---------------------------------------------------------------------------------------------------
def table(results: list[dict[str, dict]]) -> str:
    """Markdown: what each model has and reaches, mean and standard deviation over seeds."""
    lines = [
        "| model | parameters | processor ms a step | MB a step | GFLOP a step | pairs read | nats per target token |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in NAMES:
        some = [result[name] for result in results]
        seconds, pairs, nats = np.array([one["curve"][-1] for one in some]).T
        ms = 1e3 * seconds / (pairs / BATCH)
        spread = [np.std(x, ddof=1) if len(x) > 1 else np.nan for x in (ms, nats)]
        lines.append(
            f"| {name} | {some[0]['parameters']:,} | {ms.mean():.0f} +- {spread[0]:.0f} | {some[0]['bytes'] / 1e6:.0f} "
            f"| {some[0]['flops'] / 1e9:.1f} | {pairs.mean():,.0f} | {nats.mean():.3f} +- {spread[1]:.3f} |"
        )
    return "\n".join(lines)


def draw(results: list[dict[str, dict]]):
    """Held-out nats against seconds and against pairs, a line for each seed."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained", sharey=True)
    for i, name in enumerate(NAMES):
        curves = [np.array(result[name]["curve"][1:]).T for result in results]
        label = f"{name}, {np.mean([nats[-1] for *_, nats in curves]):.2f} at the end"
        for seconds, pairs, nats in curves:
            style = dict(color=f"C{i}", linewidth=1.2, marker="o", markersize=3, label=label)
            axes[0].plot(seconds, nats, **style)
            axes[1].plot(pairs / 1000, nats, **style)
            label = None
    axes[0].set(xlabel="processor seconds of training", ylabel="nats per target token, held out")
    axes[1].set(xlabel="thousand pairs read", xscale="log")
    axes[1].xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axes[1].xaxis.set_major_formatter("{x:g}")
    axes[1].xaxis.set_minor_formatter(ticker.NullFormatter())
    axes[0].legend()
    figure.suptitle(f"English to French, at most {LONGEST} tokens a side, {len(results)} seeds", fontsize=13)
    return figure


if __name__ == "__main__":
    try:
        main()
    except lm.UserError as error:
        raise SystemExit(f"pervasive: {error}") from None
