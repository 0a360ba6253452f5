"""Why not characters? And what does temperature do to a text?

python experiments/tokens.py                                   5 minutes on two CPU cores, no download
python experiments/tokens.py --flops 1e10 --seeds 0            a minute, to see that it works

Bytes, characters and byte pairs (512, 1,024 and 4,096 entries) train the same blocks with the same FLOPs on the same
text, and are scored on the same held-out text in bits per byte. Blocks are equal, tables of tokens are not: a larger
vocabulary pays for its head, counted in FLOPs, with fewer steps. Characters are trained with four times the context
too, which covers more text than the byte pairs' does. Expected: byte pairs ahead.

Then the model of 1,024 entries continues held-out text at several temperatures, and its continuations are compared with
the real ones: distinct n-grams, repetition, and the loss of the model on either. Figures with their spread:
experiments/RESULTS.md, and experiments/figures/tokens.svg. Runs are kept in --runs; what is there is not trained again.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import lm
from lm.data import prepare
from lm.figures import STYLE, plt, save
from lm.files import whole

FIGURE = Path(__file__).parent / "figures" / "tokens.svg"
BLOCKS = dict(layers=2, width=64, heads=4)
CONTEXT, BATCH = 128, 4
LONGER = 4
ENCODINGS = {
    "bytes": {"data.tokenizer": "bytes"},
    "characters": {"data.tokenizer": "chars"},
    "characters, context x 4": {
        "data.tokenizer": "chars", "model.context": LONGER * CONTEXT, "train.batch": BATCH // LONGER,
    },
    "BPE 512": {"data.tokenizer": "bpe", "data.vocab": 512},
    "BPE 1024": {"data.tokenizer": "bpe", "data.vocab": 1024},
    "BPE 4096": {"data.tokenizer": "bpe", "data.vocab": 4096},
}  # fmt: skip
WRITER = "BPE 1024"
"""The encoding of the model that writes."""
TEMPERATURES = (0, 0.25, 0.5, 0.75, 1, 1.25, 1.5)
PROMPT, WRITTEN = 16, 96
"""Tokens that are read of a held-out text, and that are made after them."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", default="stdlib", help="a text, or a corpus that lm knows")
    parser.add_argument("--flops", type=float, nargs="+", default=[2e11], help="of training, for each run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--bytes", type=int, default=100_000, help="of held-out text that is scored")
    parser.add_argument("--rows", type=int, default=48, help="continuations at each temperature")
    parser.add_argument("--runs", type=Path, default=Path("runs/tokens"))
    parser.add_argument("--figure", type=Path, default=FIGURE)
    options = parser.parse_args()
    scored, written = [], []
    for flops in sorted(options.flops, reverse=True):
        for encoding in ENCODINGS:
            runs = train(encoding, flops, options)
            scored += [score(encoding, flops, run, options) for run in runs]
            if encoding == WRITER and flops == max(options.flops):
                written += [record for run in runs for record in write(lm.load(run), options.rows)]
    print(table_of_encodings(scored), table_of_temperatures(written), sep="\n\n")
    save(draw(scored, written), options.figure)
    print(options.figure)


# --- encodings -------------------------------------------------------------------------------------------------------
def experiment(encoding: str, corpus: str, flops: float) -> lm.Experiment:
    """As many steps as these FLOPs allow: of matrix products, forward and backward, the head's included."""
    e = lm.Experiment(
        name=f"{encoding}-{flops:.2g}".replace(",", "").replace(" ", "-"),
        model=lm.ModelConfig(context=CONTEXT, **BLOCKS),
        data=lm.DataConfig(corpus=corpus, validation=0.04),
        optimizer=lm.OptimizerConfig(learning_rate=6e-3),
        schedule=lm.ScheduleConfig(name="wsd", decay="60%"),
        train=lm.TrainConfig(batch=BATCH, eval_every="100%", checkpoint_every="100%", eval_tokens=1024),
    )
    e = lm.replace(e, ENCODINGS[encoding])
    known = lm.replace(e, {"model.vocab": prepare(e.data).tokenizer.n_vocab})
    step = lm.build(known.model).cost().training_flops * e.batch_tokens
    return lm.replace(e, {"train.steps": max(1, round(flops / step))})


def train(encoding: str, flops: float, options: argparse.Namespace) -> list[lm.Run]:
    e = experiment(encoding, options.corpus, flops)
    pack = [lm.replace(e, {"name": f"{e.name}-{seed}", "train.seed": seed}) for seed in options.seeds]
    runs = lm.train_pack(pack, folder=options.runs)
    if not all(run.finished for run in runs):
        raise SystemExit(75)  # stopped and saved: the same command goes on
    return runs


def held_out(corpus: str, size: int) -> str:
    """The first `size` bytes of the held-out text, which is the same whatever the encoding."""
    data = prepare(lm.DataConfig(corpus=corpus, validation=0.04, tokenizer="bytes"))
    return data.tokenizer.decode(data.validation.tokens[:size].tolist())


def score(encoding: str, flops: float, run: lm.Run, options: argparse.Namespace) -> dict:
    """What a run had and read, and its bits per byte on the held-out text; every token has half a context before it."""
    e, record = run.experiment, run.record
    known = run.path / f"scored-{options.bytes}.json"
    if not known.exists():
        found = lm.evaluate(lm.load(run), held_out(options.corpus, options.bytes), stride=e.model.context // 2)
        with whole(known) as file:
            json.dump(dict(bits=found.bits_per_byte, bytes=found.bytes, tokens=found.tokens), file)
    found = json.loads(known.read_text())
    steps = record["steps"]["total"]
    return dict(
        encoding=encoding, flops=flops, bits=found["bits"], scored=found["bytes"],
        bytes_per_token=found["bytes"] / found["tokens"], params_total=record["params_total"],
        params_nonembedding=record["params_nonembedding"], steps=steps, context=e.model.context,
        tokens=steps * e.batch_tokens, spent=steps * e.batch_tokens * record["flops_per_token"],
        seconds=run.metrics()[-1]["seconds"],
    )  # fmt: skip


# --- temperature -----------------------------------------------------------------------------------------------------
def distinct(rows: Sequence[Sequence[int]], n: int) -> float:
    """Different n-grams over all n-grams of the rows (Li et al. 2016, section 5)."""
    grams = [gram for row in rows for gram in ngrams(row, n)]
    return len(set(grams)) / len(grams)


def repetition(rows: Sequence[Sequence[int]], n: int = 4) -> float:
    """The share of n-grams that stood in the same row before."""
    repeated = [len(ngrams(row, n)) - len(set(ngrams(row, n))) for row in rows]
    return sum(repeated) / sum(len(ngrams(row, n)) for row in rows)


def ngrams(row: Sequence[int], n: int) -> list[tuple[int, ...]]:
    return list(zip(*(row[i:] for i in range(n)), strict=False))


def measures(rows: Sequence[Sequence[int]], nats: float, size: int) -> dict:
    """nats: of all the rows by the model itself, at temperature 1. size: the bytes that they stand for."""
    return {f"distinct-{n}": distinct(rows, n) for n in (1, 2, 3)} | {
        "repetition": repetition(rows), "bits": nats / np.log(2) / size,
    }  # fmt: skip


def write(m: lm.Trained, rows: int) -> list[dict]:
    """Continue held-out text at every temperature, and compare with how it really goes on (temperature "real")."""
    tokens = prepare(m.experiment.data).validation.tokens
    windows = tokens[: len(tokens) // CONTEXT * CONTEXT].reshape(-1, CONTEXT)[:, : PROMPT + WRITTEN].astype(np.int32)
    windows = windows[(windows != m.tokenizer.eot_token).all(axis=1)]  # within a document
    if len(windows) < rows:
        raise lm.UserError(f"--rows {rows}: the held-out text has {len(windows)} windows within one document")
    tokens_BU = windows[:: len(windows) // rows][:rows]
    logits_BTV = np.asarray(m.apply(tokens_BU)[0], np.float64)[:, PROMPT - 1 : -1]
    real_BT = tokens_BU[:, PROMPT:]
    top_BT = logits_BTV.max(axis=-1)
    log_z_BT = top_BT + np.log(np.exp(logits_BTV - top_BT[..., None]).sum(axis=-1))
    nats = (log_z_BT - np.take_along_axis(logits_BTV, real_BT[..., None], axis=-1)[..., 0]).sum()
    lengths_V = lm.tokenizer.token_bytes(m.tokenizer)
    seed = m.experiment.train.seed
    records = [dict(temperature="real", seed=seed) | measures(real_BT.tolist(), nats, int(lengths_V[real_BT].sum()))]
    prompts = [m.tokenizer.decode(row.tolist()) for row in tokens_BU[:, :PROMPT]]
    generator = lm.Generator(m)
    for temperature in TEMPERATURES:
        sampler = lm.Sampler(temperature=temperature)
        made = lm.generate(generator, prompts, sampler, max_tokens=WRITTEN, seed=seed, past_context="slide")
        size = sum(int(lengths_V[sample.tokens].sum()) for sample in made)
        found = measures([sample.tokens for sample in made], -sum(sum(sample.logprobs) for sample in made), size)
        records.append(dict(temperature=temperature, seed=seed) | found)
    return records


# --- what is printed and drawn ---------------------------------------------------------------------------------------
def grouped(records: list[dict], *keys: str) -> dict[tuple, list[dict]]:
    groups = defaultdict(list)
    for record in records:
        groups[tuple(record[key] for key in keys)].append(record)
    return groups


def mean_and_spread(records: list[dict], key: str, form: str = ".3f") -> str:
    values = np.array([record[key] for record in records], float)
    return f"{values.mean():{form}} ± {values.std(ddof=1) if len(values) > 1 else np.nan:{form}}"


def table_of_encodings(scored: list[dict]) -> str:
    """Markdown: a row for each encoding and budget; mean and standard deviation over seeds."""
    columns = (
        "encoding", "FLOPs spent", "parameters (without tables)", "steps", "bytes a token", "text read, MB",
        "bytes in view", "bits a byte", "seconds of training",
    )  # fmt: skip
    rows = [columns, ("---",) * len(columns)]
    for (encoding, _), some in grouped(scored, "encoding", "flops").items():
        one, width = some[0], some[0]["bytes_per_token"]
        parameters = f"{one['params_total']:,} ({one['params_nonembedding']:,})"
        text = f"{width:.2f}", f"{one['tokens'] * width / 1e6:.2f}", f"{one['context'] * width:.0f}"
        found = mean_and_spread(some, "bits", ".4f"), mean_and_spread(some, "seconds", ".1f")
        rows.append((encoding, f"{one['spent']:.2e}", parameters, f"{one['steps']:,}", *text, *found))
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def table_of_temperatures(written: list[dict]) -> str:
    keys = ("distinct-1", "distinct-2", "distinct-3", "repetition", "bits")
    lines = ["| temperature | " + " | ".join(keys) + " |", "|---" * 6 + "|"]
    for (temperature,), some in grouped(written, "temperature").items():
        lines.append(f"| {temperature} | " + " | ".join(mean_and_spread(some, key) for key in keys) + " |")
    return "\n".join(lines)


def draw(scored: list[dict], written: list[dict]):
    """Bits per byte of each encoding; diversity, repetition and loss against temperature, beside the real text's."""
    with plt.rc_context(STYLE | {"font.size": 11}):
        figure, (bits, variety, loss) = plt.subplots(
            1, 3, figsize=(14, 4.6), layout="constrained", width_ratios=(1.2, 1, 1)
        )
        figure.get_layout_engine().set(w_pad=0.15)
    names = list(ENCODINGS)[::-1]
    for i, ((flops,), some) in enumerate(grouped(scored, "flops").items()):
        places = [names.index(record["encoding"]) + 0.12 * (1 - 2 * i) for record in some]
        label = f"{flops:.1e} FLOPs"
        bits.plot([record["bits"] for record in some], places, "o", color=f"C{i}", label=label, markersize=6, alpha=0.8)
    bits.set(yticks=range(len(names)), yticklabels=names, xlabel="bits a byte, held-out text (a dot a seed)")
    bits.set_title("equal FLOPs, equal blocks")
    bits.legend()
    made = [record for record in written if record["temperature"] != "real"]
    real = [record for record in written if record["temperature"] == "real"]
    for panel, keys in ((variety, ("distinct-1", "distinct-2", "distinct-3", "repetition")), (loss, ("bits",))):
        for i, key in enumerate(keys):
            values_RE = np.array([[record[key] for record in some] for some in grouped(made, "seed").values()])
            label = {"bits": "on its own text", "repetition": "repeated 4-grams"}.get(key, key)
            panel.plot(TEMPERATURES, values_RE.mean(axis=0), "o-", color=f"C{i}", label=label, markersize=4)
            panel.fill_between(TEMPERATURES, values_RE.min(axis=0), values_RE.max(axis=0), color=f"C{i}", alpha=0.15)
            panel.axhline(np.mean([record[key] for record in real]), color=f"C{i}", linestyle=":")
        panel.set_xlabel("temperature (0: greedy)")
        panel.legend(fontsize=10)
    variety.set(ylabel="share of n-grams", ylim=(0, 1), title="variety; dotted: the real text")
    loss.set(ylabel="the model's loss, bits a byte", title="loss; dotted: on the real text")
    return figure


if __name__ == "__main__":
    main()
