"""What did the transformer replace: how far back does a recurrent network learn, and at what price?

python experiments/recurrent.py                              5 minutes on two CPU cores, no download
python experiments/recurrent.py --steps 16 --seeds 0         a minute or two, to see that it works

A tanh RNN, an LSTM whose forget gates start with a bias of 0 or of 1, and a transformer: two layers each, as many
parameters. Measured are the gradient of the last output by the input k tokens before, at the start and trained; the
longest gap over which each recalls a symbol; the loss on characters by tokens and by time; and an LSTM's loss where the
gradient is cut every k tokens. That they are slow is measured in experiments/serial.py. Expected: RNN and LSTM lose the
gradient with distance, and a forget bias of 1 delays that; yet trained, the RNN is the best of them on this text, and
what it recalls at all it recalls over gaps longer than it was trained on. Figures with their spread:
experiments/RESULTS.md, and experiments/figures/recurrent.svg. Each result is kept in --runs as it comes; what is there
is not computed again.

Letters beside the README's: C chunks of a window, R seeds, E evaluations, U tokens of a window (T + 1).
"""

import argparse
import itertools
import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import lm
from lm.bench import Contestant, Program, compare
from lm.data import prepare
from lm.figures import STYLE, plt, save
from lm.model import Inputs, LanguageModel, Taps, recurrent

FIGURE = Path(__file__).parent / "figures" / "recurrent.svg"
CONTEXT, BATCH = 128, 8
SYMBOLS, FILLERS = 8, 8
ASK = SYMBOLS + FILLERS
GAPS, BEYOND = (1, 2, 4, 8, 16, 32), (64, 128, 256)
"""Fillers between a symbol and its question: trained, and never trained."""
DISTANCES = (0, 1, 2, 4, 8, 16, 32, 64, 127)
CUTS = (1, 4, 16, 128)


@lm.register("lstm with open gates")
@dataclass(frozen=True)
class OpenLSTM(lm.RecurrentConfig):
    """An LSTM whose forget gates start half open: their bias is 0, where that of lm's own is 1."""


@lm.implements(OpenLSTM)
class OpenModel(recurrent.Recurrent):
    """The model of an OpenLSTM."""

    def __init__(self, c: OpenLSTM, rngs):
        super().__init__(c, rngs)
        self.blocks.input.bias[...] = jnp.zeros_like(self.blocks.input.bias[...])


OPEN, LSTM = "LSTM, forget bias 0", "LSTM, forget bias 1"
MODELS = {
    "tanh RNN": lm.RecurrentConfig(layers=2, width=70, cell="rnn", context=CONTEXT),
    OPEN: OpenLSTM(layers=2, width=38, context=CONTEXT),
    LSTM: lm.RecurrentConfig(layers=2, width=38, context=CONTEXT),
    "transformer": lm.ModelConfig(layers=2, width=32, heads=2, context=CONTEXT, zero_init=False),
}
RECALL_RATES = {"tanh RNN": 2e-3, OPEN: 1e-2, LSTM: 1e-2, "transformer": 5e-3}
TEXT_RATES = {"tanh RNN": 1e-2, OPEN: 3e-2, LSTM: 3e-2, "transformer": 6e-3}
"""Adam's: the best of those that experiments/RESULTS.md lists."""


def build(name: str, **changes) -> LanguageModel:
    return lm.build(replace(MODELS[name], **changes))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", default="kingdom", help="a text, or a corpus that lm knows")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=320, help="of the transformer on text; four times that on gaps")
    parser.add_argument("--rounds", type=int, default=5, help="of timing a step")
    parser.add_argument("--runs", type=Path, default=Path("runs/recurrent"), help="where runs and results are kept")
    parser.add_argument("--figure", type=Path, default=FIGURE)
    options = parser.parse_args()
    results = measure(options)
    print(tables(results))
    save(draw(results), options.figure)
    print(options.figure)


def measure(options: argparse.Namespace) -> dict[str, dict]:
    """Every part's records, by model or by cut."""

    def kept(part: str, name, compute: Callable[[], list[dict]]) -> list[dict]:
        key = [part, name, options.corpus, options.steps, options.seeds]
        return remembered(options.runs / "results.jsonl", key, compute)

    results: dict[str, dict] = {"recall": {}, "text": {}, "cut": {}}
    for name in MODELS:
        results["recall"][name] = kept("recall", name, partial(recall, name, options.seeds, 4 * options.steps))
    results["time"] = {one["name"]: one for one in kept("time", "step", partial(step_times, options.rounds))}
    every = max(1, options.steps // 8)
    for name in MODELS:
        steps = every * max(1, round(8 / results["time"][name]["ratio"]))  # as long as the transformer's take
        results["text"][name] = kept("text", name, partial(train_on_text, name, options, steps, every))
    for cut in CUTS:
        results["cut"][cut] = kept("cut", cut, partial(truncated, LSTM, cut, options))
    return results


def remembered(path: Path, key: list, compute: Callable[[], list[dict]]) -> list[dict]:
    """The records of a key in a file of JSON lines; where it has none they are computed, and added to it."""
    entries = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    for entry in entries:
        if entry["key"] == key:
            return entry["records"]
    records = compute()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps({"key": key, "records": records}) + "\n")
    return records


# --- gradients by distance -------------------------------------------------------------------------------------------
def gradient_by_distance(model: LanguageModel, params: dict, tokens_BT: jax.Array) -> np.ndarray:
    """The gradient of the last output by the input k tokens before, [T] for k = 0, 1, ..., relative to k = 0.

    Input is what enters the first layer, output what the head reads. The gradient of a random projection of the output
    has on average the squared length of the Jacobian's Frobenius norm: this is its root mean square over rows.
    """
    gradient_BTD = np.asarray(_gradient(model, params, tokens_BT), np.float64)  # float32 has no square of 1e-30
    size_T = np.sqrt(np.square(gradient_BTD).sum(axis=-1).mean(axis=0))[::-1]
    return size_T / size_T[0]


@partial(jax.jit, static_argnums=0)
def _gradient(model: LanguageModel, params: dict, tokens_BT: jax.Array) -> jax.Array:
    """[B, T, D]."""
    shape = *tokens_BT.shape, model.config.width
    weights_BD = jax.random.normal(jax.random.key(0), (shape[0], shape[2]))

    def output(added_BTD):
        taps = Taps(edits={"embedding": lambda x_BTD, layer: x_BTD + added_BTD})
        h_BTD, _ = model.hidden(params, Inputs(tokens_BT), taps=taps)
        return jnp.sum(h_BTD[:, -1] * weights_BD)

    return jax.grad(output)(jnp.zeros(shape))


# --- training with a loss of the study's own -------------------------------------------------------------------------
def fit(loss: Callable, params: dict, memory, steps: int, rate: float) -> dict:
    """The parameters after Adam, with a linear warm-up and a cosine to zero; gradients are clipped to 1.

    loss(params, memory, step) is a pair: the loss, and the memory that the next step is given.
    """
    schedule = optax.warmup_cosine_decay_schedule(0, rate, max(1, steps // 20), steps)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))

    def step(carried, i):
        params, state, memory = carried
        (_, memory), gradient = jax.value_and_grad(loss, has_aux=True)(params, memory, i)
        updates, state = optimizer.update(gradient, state)
        return (optax.apply_updates(params, updates), state, memory), None

    (params, *_), _ = jax.lax.scan(step, (params, optimizer.init(params), memory), jnp.arange(steps))
    return params


def for_each_seed(train: Callable, model: LanguageModel, seeds: list[int]) -> list:
    """train(params, seed) for fresh parameters of every seed, compiled once, as many at a time as there are cores."""
    program = jax.jit(train).lower(model.init(0), jnp.int32(0)).compile()
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        return list(threads.map(lambda seed: jax.device_get(program(model.init(seed), jnp.int32(seed))), seeds))


def token_nats(model: LanguageModel, params: dict, h_BTD: jax.Array, targets_BT: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(model.logits(params, h_BTD), targets_BT)


# --- recall ----------------------------------------------------------------------------------------------------------
def questions(key: jax.Array, gap_B: jax.Array, T: int) -> tuple[jax.Array, jax.Array]:
    """Rows [B, T] of questions, and what is right after each token, [B, T], -1 where nothing is asked.

    A question is a symbol, the row's gap of random fillers, and the token that asks for the symbol; after it comes the
    next, with another symbol. The last ends with the row, and what the first leaves over at the start is fillers.
    """
    fillers, symbols = jax.random.split(key)
    length_B1 = gap_B[:, None] + 2
    left_T = jnp.arange(T)[::-1]  # tokens from here to the end
    whole_BT = left_T // length_B1 < T // length_B1
    asks_BT, shows_BT = (whole_BT & (left_T % length_B1 == place) for place in (0, length_B1 - 1))
    symbol_BT = jax.random.randint(symbols, whole_BT.shape, 0, SYMBOLS)
    tokens_BT = jax.random.randint(fillers, whole_BT.shape, SYMBOLS, ASK)
    tokens_BT = jnp.where(asks_BT, ASK, jnp.where(shows_BT, symbol_BT, tokens_BT))
    shown_BT = jnp.take_along_axis(symbol_BT, jnp.maximum(jnp.arange(T) - length_B1 + 1, 0), axis=1)
    return tokens_BT, jnp.where(asks_BT, shown_BT, -1)


def recall(name: str, seeds: list[int], steps: int, rows: int = 64) -> list[dict]:
    """Train on GAPS, uniform in the logarithm, then ask after each gap and BEYOND: the share of answers that are right.

    Rows are longer than the longest gap: fillers come first, as a fresh state would recall what comes first for free.
    """
    T, T_beyond = GAPS[-1] + 18, BEYOND[-1] + 18
    model = build(name, context=T_beyond, vocab=ASK + 1)

    def train(params, seed):
        def loss(params, _, i):
            draw, ask = jax.random.split(jax.random.fold_in(jax.random.key(seed), i))
            gap_B = jnp.exp(jax.random.uniform(draw, (BATCH,), maxval=np.log(GAPS[-1] + 1))).astype(int)
            tokens_BT, right_BT = questions(ask, gap_B, T)
            h_BTD, _ = model.hidden(params, Inputs(tokens_BT))
            asked_BT = right_BT >= 0
            nats_BT = token_nats(model, params, h_BTD, jnp.maximum(right_BT, 0)) * asked_BT
            return jnp.mean(nats_BT.sum(axis=1) / asked_BT.sum(axis=1)), None

        params = fit(loss, params, None, steps, RECALL_RATES[name])

        def share_right(T, gap):
            tokens_BT, right_BT = questions(jax.random.key(gap), jnp.full(rows, gap), T)
            logits_BTV, _ = model.apply(params, Inputs(tokens_BT))
            return jnp.sum(logits_BTV.argmax(-1) == right_BT) / jnp.sum(right_BT >= 0)

        asked = ((T, GAPS), (T_beyond, BEYOND))
        return jnp.concatenate([jax.lax.map(partial(share_right, T), jnp.array(gaps)) for T, gaps in asked])

    made = for_each_seed(train, model, seeds)
    return [dict(seed=seed, share=share.tolist()) for seed, share in zip(seeds, made, strict=True)]


def longest(share: list[float], least: float = 0.75) -> int:
    """The longest gap up to which this share of the answers is right at every gap; 0 where it is at none."""
    held = np.cumprod(np.array(share) >= least)
    return int((GAPS + BEYOND)[held.sum() - 1]) if held.any() else 0


# --- text ------------------------------------------------------------------------------------------------------------
def text_experiment(name: str, corpus: str) -> lm.Experiment:
    """Characters, AdamW at a constant rate: every point of a curve is as good a place to stop as every other."""
    return lm.Experiment(
        name=name.replace(",", "").replace(" ", "-"),
        model=MODELS[name],
        data=lm.DataConfig(corpus=corpus, tokenizer="chars", validation=0.04),
        optimizer=lm.OptimizerConfig(learning_rate=TEXT_RATES[name]),
        schedule=lm.ScheduleConfig(name="constant"),
        train=lm.TrainConfig(batch=BATCH, eval_tokens=32_768, checkpoint_every="100%"),
    )


def step_times(rounds: int, seconds: float = 0.5) -> list[dict]:
    """The time of a training step on text, from its ratio to the transformer's in alternating turns."""
    contestants = []
    for name in reversed(MODELS):
        e = lm.Experiment(model=replace(MODELS[name], vocab=64), train=lm.TrainConfig(batch=BATCH))
        contestants.append(Contestant(name, Program(e).run))
    timings = compare(contestants, seconds, rounds)
    transformers = timings[0].seconds.median
    return [dict(name=one.name, seconds=transformers * one.ratio.median, ratio=one.ratio.median) for one in timings]


def train_on_text(name: str, options: argparse.Namespace, steps: int, every: int) -> list[dict]:
    """Each seed's validation loss by step, and its gradient by distance at the start and at the end."""
    e = lm.replace(text_experiment(name, options.corpus), {"train.steps": steps, "train.eval_every": every})
    pack = [lm.replace(e, {"name": f"{e.name}-{seed}", "train.seed": seed}) for seed in options.seeds]
    tokens_BT = jnp.array(prepare(e.data).validation.tokens[: 32 * CONTEXT].reshape(32, CONTEXT), jnp.int32)
    made = []
    for seed, run in zip(options.seeds, lm.train_pack(pack, folder=options.runs), strict=True):
        if not run.finished:
            raise SystemExit(75)  # stopped and saved: the same command goes on
        m = lm.load(run)
        scored = [record for record in run.metrics() if "val_loss" in record]
        gradients = {
            when: gradient_by_distance(m.model, params, tokens_BT)[list(DISTANCES)].tolist()
            for when, params in (("start", m.model.init(seed)), ("end", m.params))
        }
        curve = dict(step=[record["step"] for record in scored], nats=[record["val_loss"] for record in scored])
        made.append(dict(seed=seed, parameters=run.record["params_total"], **curve, **gradients))
    return made


# --- truncated back-propagation --------------------------------------------------------------------------------------
def window_nats(model: LanguageModel, params: dict, memory, tokens_BU: jax.Array, cut: int):
    """The mean loss over windows, and the memory after them; the gradient does not pass between chunks of `cut`."""
    B, U = tokens_BU.shape
    inputs_CBT, targets_CBT = (
        x_BT.reshape(B, (U - 1) // cut, cut).swapaxes(0, 1) for x_BT in (tokens_BU[:, :-1], tokens_BU[:, 1:])
    )

    def chunk(memory, tokens):
        inputs_BT, targets_BT = tokens
        h_BTD, memory = model.hidden(params, Inputs(inputs_BT), state=jax.lax.stop_gradient(memory))
        return memory, token_nats(model, params, h_BTD, targets_BT).mean()

    memory, nats_C = jax.lax.scan(chunk, memory, (inputs_CBT, targets_CBT))
    return nats_C.mean(), memory


def streams(tokens: jax.Array, starts_B: jax.Array, length: int) -> jax.Array:
    """length + 1 tokens from each start, [B, U]; after the last token comes the first."""
    return tokens[(starts_B[:, None] + jnp.arange(length + 1)) % len(tokens)]


def truncated(name: str, cut: int, options: argparse.Namespace) -> list[dict]:
    """Train on streams of text whose memory goes on from window to window: the validation loss in nats a character.

    Whatever `cut` is, tokens, updates and the reach of the memory are the same; only the reach of the gradient differs.
    """
    data = prepare(text_experiment(name, options.corpus).data)
    model = build(name, vocab=data.tokenizer.n_vocab)
    tokens, held = (jnp.array(part.tokens[:4_000_000], jnp.int32) for part in (data.train, data.validation))
    fresh = model.state(BATCH, CONTEXT)

    def train(params, seed):
        starts_B = jax.random.randint(jax.random.key(seed), (BATCH,), 0, len(tokens) - 1)

        def loss(params, memory, i):
            return window_nats(model, params, memory, streams(tokens, starts_B + i * CONTEXT, CONTEXT), cut)

        params = fit(loss, params, fresh, options.steps, TEXT_RATES[name])
        held_BU = streams(held, jnp.arange(BATCH) * len(held) // BATCH, 16 * CONTEXT)
        return window_nats(model, params, fresh, held_BU, CONTEXT)[0]

    losses = for_each_seed(train, model, options.seeds)
    return [dict(seed=seed, nats=float(nats)) for seed, nats in zip(options.seeds, losses, strict=True)]


# --- what is printed and drawn ---------------------------------------------------------------------------------------
def mean_and_spread(values, form: str) -> str:
    values = np.asarray(values, float)
    return f"{values.mean():{form}} ± {values.std(ddof=1) if len(values) > 1 else np.nan:{form}}"


def geometric_mean(size_RE) -> np.ndarray:
    return np.exp(np.log(np.maximum(size_RE, 1e-300)).mean(axis=0))


def markdown(*rows: tuple) -> str:
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


def tables(results: dict) -> str:
    """Markdown: gradients, recall, losses, cuts; mean and standard deviation over seeds."""
    gradients = [("gradient k tokens before", *DISTANCES[1:])]
    for when, (name, records) in itertools.product(("start", "end"), results["text"].items()):
        sizes = geometric_mean([record[when] for record in records])[1:]
        gradients.append((f"{name}, {when}", *(f"{x:.1e}" if x > 1e-290 else "0" for x in sizes)))
    recalls = [("recall after a gap of", *GAPS, *BEYOND, "longest gap, by seed")]
    for name, records in results["recall"].items():
        shares = [mean_and_spread(x, ".2f") for x in zip(*(record["share"] for record in records), strict=True)]
        recalls.append((name, *shares, ", ".join(str(longest(record["share"])) for record in records)))
    common = min(records[0]["step"][-1] for records in results["text"].values())
    read = f"nats a character after {common * BATCH * CONTEXT:,}"
    losses = [("text", "parameters", "ms a step", read, "after the same time", "characters by then")]
    for name, records in results["text"].items():
        at = [record["nats"][record["step"].index(common)] for record in records]
        last = mean_and_spread([record["nats"][-1] for record in records], ".4f")
        milliseconds = f"{1e3 * results['time'][name]['seconds']:.1f}"
        characters = f"{records[0]['step'][-1] * BATCH * CONTEXT:,}"
        parameters = f"{records[0]['parameters']:,}"
        losses.append((name, parameters, milliseconds, mean_and_spread(at, ".4f"), last, characters))
    cuts = [("gradient cut every", "nats a character")]
    for cut, records in results["cut"].items():
        cuts.append((cut, mean_and_spread([record["nats"] for record in records], ".4f")))
    return "\n\n".join(markdown(*rows) for rows in (gradients, recalls, losses, cuts))


def draw(results: dict):
    """Gradients at the start and trained, recall; loss by characters and by time, and with the gradient cut."""
    with plt.rc_context(STYLE | {"font.size": 11}):
        figure, panels = plt.subplots(2, 3, figsize=(14, 8.4), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.15, h_pad=0.15)
    colors = {name: f"C{i}" for i, name in enumerate(MODELS)}
    distances = np.array(DISTANCES[1:])
    for panel, when, title in zip(panels[0], ("start", "end"), ("at the start", "trained on text"), strict=False):
        for name, records in results["text"].items():
            size_RE = np.array([record[when][1:] for record in records])
            curves(panel, distances, size_RE, geometric_mean(size_RE), colors[name], marker="o", label=name)
        panel.set(xscale="log", yscale="log", ylim=(1e-10, 4), xticks=distances, xticklabels=distances)
        panel.set(xlabel="k, tokens before the last", ylabel="gradient of the last output; 1 at k = 0")
        panel.set_title(f"gradient by distance, {title}")
    panels[0, 0].legend(loc="lower left", fontsize=10)
    gaps, (loss, time, cuts) = panels[0, 2], panels[1]
    for name, records in results["recall"].items():
        share_RE = np.array([record["share"] for record in records])
        curves(gaps, GAPS + BEYOND, share_RE, share_RE.mean(axis=0), colors[name], marker="o")
    gaps.axhline(1 / SYMBOLS, color="black", linestyle=":")
    gaps.axvspan(GAPS[-1] * 2**0.5, BEYOND[-1] * 1.2, color="grey", alpha=0.15, linewidth=0)
    gaps.set(xscale="log", xticks=GAPS + BEYOND, xticklabels=GAPS + BEYOND, ylim=(0, 1.05))
    gaps.set(xlabel="tokens between (grey: not trained)", ylabel="share recalled (dotted: chance)")
    gaps.set_title("recall of a symbol")
    for name, records in results["text"].items():
        step_E, nats_RE = np.array(records[0]["step"][1:]), np.array([record["nats"][1:] for record in records])
        curves(loss, step_E * BATCH * CONTEXT / 1e3, nats_RE, nats_RE.mean(axis=0), colors[name])
        curves(time, step_E * results["time"][name]["seconds"], nats_RE, nats_RE.mean(axis=0), colors[name])
    loss.set(xlabel="thousand characters", ylabel="validation loss, nats a character", title="text, by tokens")
    time.set(xlabel="seconds of training", ylabel="validation loss, nats a character", title="text, by time")
    nats_RE = np.array([[record["nats"] for record in records] for records in results["cut"].values()]).T
    curves(cuts, CUTS, nats_RE, nats_RE.mean(axis=0), colors[LSTM], marker="o")
    cuts.set(xscale="log", xticks=CUTS, xticklabels=CUTS, title="LSTM, gradient cut")
    cuts.set(xlabel="every k tokens; the memory goes on", ylabel="validation loss, nats a character")
    for panel in (*panels[0], cuts):
        panel.minorticks_off()
    return figure


def curves(panel, x_E, y_RE, mean_E, color: str, **style) -> None:
    """A thin line for each seed, a thick one for their mean."""
    for y_E in y_RE:
        panel.plot(x_E, y_E, color=color, linewidth=0.6, alpha=0.7)
    panel.plot(x_E, mean_E, color=color, linewidth=1.8, markersize=4, **style)


if __name__ == "__main__":
    main()
