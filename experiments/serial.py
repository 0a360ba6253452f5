"""Are recurrent networks slow, and LSTMs slower still? The length of the chain of products, and the time of a step.

python experiments/serial.py                     2 minutes on two CPU cores, nothing else running; no download
python experiments/serial.py --rounds 1 --lengths 16 32

The models of experiments/recurrent.py, of equal size. Counted is the longest chain of matrix products that must wait
for each other in a forward pass; timed is a training step at batch 1 and 64, the models in alternating turns. Expected:
the chain is L T + 1 products long in a recurrent network and 6 L + 1 in a transformer. Prints a table and draws
experiments/figures/serial.svg.
"""

import argparse
import itertools
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib import ticker
from recurrent import MODELS, OPEN, markdown, remembered

import lm
from lm.bench import Contestant, Program, Spread, compare
from lm.figures import STYLE, plt, save
from lm.model import Inputs, LanguageModel

FIGURE = Path(__file__).parent / "figures" / "serial.svg"
NAMES = [name for name in reversed(MODELS) if name != OPEN]
"""The transformer first, with which the others are compared; another bias takes the same time."""
BATCHES = (1, 64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[32, 128, 512], help="of sequences, in tokens")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.2, help="length of a turn")
    parser.add_argument("--runs", type=Path, default=Path("runs/serial"), help="where results are kept")
    parser.add_argument("--figure", type=Path, default=FIGURE)
    options = parser.parse_args()
    chains = {(name, T): chain(shape(name, T), T) for name in NAMES for T in options.lengths}
    times = {}
    for batch, T in itertools.product(BATCHES, options.lengths):
        key = [batch, T, options.rounds, options.seconds]
        records = remembered(options.runs / "results.jsonl", key, partial(measure, batch, T, options))
        times |= {(one["name"], batch, T): one for one in records}
    print(table(chains, times))
    save(draw(chains, times, options.lengths), options.figure)
    print(options.figure)


def shape(name: str, T: int) -> LanguageModel:
    return lm.build(replace(MODELS[name], context=T, vocab=64))


def measure(batch: int, T: int, options: argparse.Namespace) -> list[dict]:
    """The seconds of each model's training step, and their ratio to the transformer's in the same round."""
    contestants = []
    for name in NAMES:
        e = lm.Experiment(model=shape(name, T).config, train=lm.TrainConfig(batch=batch))
        contestants.append(Contestant(name, Program(e).run))
    timings = compare(contestants, options.seconds, options.rounds)
    return [dict(name=one.name, seconds=quartiles(one.seconds), ratio=quartiles(one.ratio)) for one in timings]


def quartiles(spread: Spread) -> list[float]:
    """Median, lower and upper quartile over the rounds."""
    return [spread.median, spread.low, spread.high]


# --- the serial chain ------------------------------------------------------------------------------------------------
def chain(model: LanguageModel, T: int) -> int:
    """How many matrix products of a forward pass over T tokens must wait for each other, in the program as written."""

    def logits(params, tokens_BT):
        return model.apply(params, Inputs(tokens_BT))[0]

    traced = jax.make_jaxpr(logits)(model.shapes(), jnp.zeros((1, T), jnp.int32))
    return max(depths(traced.jaxpr, [0] * len(traced.jaxpr.invars)))


def depths(jaxpr, before: list[int]) -> list[int]:
    """The longest chain of products behind each output, from those behind each input."""
    depth = dict(zip(jaxpr.invars, before, strict=True))

    def behind(values) -> list[int]:
        return [0 if hasattr(x, "val") else depth.get(x, 0) for x in values]  # literals and constants have none

    for equation in jaxpr.eqns:
        inputs, inner = behind(equation.invars), equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
        if equation.primitive.name == "scan":
            outputs = depths_of_loop(equation.params, inputs)
        elif inner is not None:
            outputs = depths(getattr(inner, "jaxpr", inner), inputs)
        else:
            product = equation.primitive.name == "dot_general"
            outputs = [max(inputs, default=0) + product] * len(equation.outvars)
        depth.update(zip(equation.outvars, outputs, strict=True))
    return behind(jaxpr.outvars)


def depths_of_loop(params: dict, before: list[int]) -> list[int]:
    """The same through a scan: what one iteration carries on is behind the next."""
    fixed = params["num_consts"]
    carried = fixed + params["num_carry"]
    constants, carry, scanned = before[:fixed], before[fixed:carried], before[carried:]
    deepest = [0] * (len(params["jaxpr"].jaxpr.outvars) - len(carry))
    for _ in range(params["length"]):
        made = depths(params["jaxpr"].jaxpr, [*constants, *carry, *scanned])
        carry = made[: len(carry)]
        deepest = [max(pair) for pair in zip(deepest, made[len(carry) :], strict=True)]
    return [*carry, *deepest]


# --- what is printed and drawn ---------------------------------------------------------------------------------------
def table(chains: dict[tuple, int], times: dict[tuple, dict]) -> str:
    """Markdown: medians over the rounds, quartiles of the ratio within a round."""
    rows = [("model", "batch", "T", "chain of products", "ms a step", "time over the transformer's (quartiles)")]
    for (name, batch, T), one in times.items():
        ratio = "{:.2f} ({:.2f} to {:.2f})".format(*one["ratio"])
        rows.append((name, batch, T, f"{chains[name, T]:,}", f"{1e3 * one['seconds'][0]:.2f}", ratio))
    return markdown(*rows)


def draw(chains: dict[tuple, int], times: dict[tuple, dict], lengths: list[int]):
    """The chain against T, and for each batch the time of a token."""
    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(1, 3, figsize=(14, 4.4), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.15)
    panels[2].sharey(panels[1])
    for name in NAMES:
        color, label = f"C{list(MODELS).index(name)}", name.split(",")[0]
        style = "o-" if name == NAMES[-1] else "s--"  # two have the same chain
        panels[0].plot(lengths, [chains[name, T] for T in lengths], style, color=color, label=label)
        for panel, batch in zip(panels[1:], BATCHES, strict=True):
            micro_TE = [np.array(times[name, batch, T]["seconds"]) * 1e6 / (batch * T) for T in lengths]
            middle, low, high = np.transpose(micro_TE)
            panel.plot(lengths, middle, "o-", color=color, label=label)
            panel.fill_between(lengths, low, high, color=color, alpha=0.2, linewidth=0)
            panel.set_title(f"training, batch {batch}")
    for panel in panels:
        panel.set(xscale="log", yscale="log", xticks=lengths, xticklabels=lengths, xlabel="T, tokens in a sequence")
        panel.minorticks_off()
        panel.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_major_formatter(ticker.StrMethodFormatter("{x:,.0f}"))
    panels[0].set(ylabel="matrix products", title="longest chain, forward")
    panels[1].set_ylabel("microseconds a token")
    panels[0].legend()
    return figure


if __name__ == "__main__":
    main()
