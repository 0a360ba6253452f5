"""lm probe RUN attention | lens | facts | ablate | trace | loss: the inside of a trained model."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from lm.arguments import parse
from lm.commands.common import Checkpoint, Json, print_json
from lm.commands.probe import load_model
from lm.errors import printable, require
from lm.limits import Count, Positive, Seed, Whole

Text = Annotated[str, tyro.conf.Positional]
File = Annotated[Path, tyro.conf.Positional]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Common:
    """What every action takes."""

    cached: bool = False
    """Read token by token through the KV cache, as generation does; the result is the same."""
    figure: Path | None = None
    """Also draw it: .png, .svg or .pdf."""
    checkpoint: Checkpoint = "latest"
    json: Json = False


def _start(options: type, action: str, run: str, arguments: list[str]) -> tuple[Any, Any]:
    """Options and model."""
    o = parse(options, arguments, f"lm probe RUN {action}")
    return o, load_model(run, o.checkpoint, o.figure)


def _show(o, result: dict[str, Any], *tables) -> None:
    """The tables, or with --json the result alone."""
    if o.figure is not None:
        result["figure"] = str(o.figure)
    if o.json:
        print_json(result)
        return
    from lm.console import console

    shown = console(soft_wrap=True)
    for table in (*tables, *([] if o.figure is None else [str(o.figure)])):
        shown.print(printable(table) if isinstance(table, str) else table)


def _table(title: str, *columns: str, left: int = 1):
    """A plain table; all columns but the first `left` hold numbers."""
    from rich.table import Table
    from rich.text import Text

    title = Text(printable(title))
    table = Table(title=title, title_justify="left", title_style="", box=None, pad_edge=False, header_style="bold")
    for place, column in enumerate(columns):
        table.add_column(Text(printable(column)), justify="left" if place < left else "right", no_wrap=True)
    return table


def _row(table, *cells) -> None:
    from rich.text import Text

    table.add_row(*(Text(printable(str(cell))) for cell in cells))


# --- attention -------------------------------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class AttentionOptions(Common):
    """Where each head looks on a text: scores of every head, or one head's pattern."""

    text: Text
    """The text to read."""
    layer: Whole | None = None
    """Show this layer alone."""
    head: Whole | None = None
    """Show this head alone."""
    seed: Seed = 0
    """Of the random tokens of the induction score."""


def attention(run: str, arguments: list[str]) -> None:
    o, m = _start(AttentionOptions, "attention", run, arguments)
    from lm.probe.attention import attention_patterns, head_scores, induction, uniform_weights

    c = m.experiment.model
    require(o.layer is None or 0 <= o.layer < c.layers, f"--layer {o.layer}: the model has layers 0 to {c.layers - 1}")
    require(o.head is None or 0 <= o.head < c.heads, f"--head {o.head}: the model has heads 0 to {c.heads - 1}")
    patterns = attention_patterns(m, o.text, cached=o.cached)
    twice = induction(m, seed=o.seed, cached=o.cached)
    scores = head_scores(patterns.weights_LNTS) | {"induction": twice.scores_LN}
    uniform = head_scores(uniform_weights(m, len(patterns.labels))) | {"induction": twice.uniform_L[:, None]}
    chosen = [
        (layer, head)
        for layer in (range(c.layers) if o.layer is None else [o.layer])
        for head in (range(c.heads) if o.head is None else [o.head])
    ]
    if o.figure is not None:
        from lm.probe.figures_inside import attention_grid

        attention_grid(patterns, o.figure, layer=o.layer, head=o.head, titles=_kinds(scores, uniform, chosen))
    names = ("previous", "first", "diagonal", "induction", "entropy")
    result = {
        "tokens": patterns.labels,
        "heads": [
            {"layer": layer, "head": head} | {name: float(scores[name][layer, head]) for name in names}
            for layer, head in chosen
        ],
        "uniform": [{"layer": i} | {name: float(uniform[name][i, 0]) for name in names} for i in range(c.layers)],
        "induction": {"length": twice.length, "first_nats": twice.first_nats, "second_nats": twice.second_nats},
    }
    if o.layer is not None:
        result["weights"] = [patterns.weights_LNTS[place].tolist() for place in chosen]
    _show(o, result, *_attention_tables(patterns, scores, uniform, chosen, twice))


def _attention_tables(patterns, scores, uniform, chosen, twice):
    names = ("previous", "first", "diagonal", "induction", "entropy")
    columns = ("head", "previous", "first", "itself", "induction", "entropy")
    table = _table("mean attention weight on the token before, the first, itself; entropy in nats", *columns)
    for layer, head in chosen:
        _row(table, f"{layer}.{head}", *(f"{scores[name][layer, head]:.3f}" for name in names))
    for layer in sorted({layer for layer, _ in chosen}):
        _row(table, f"{layer}, if uniform", *(f"{uniform[name][layer, 0]:.3f}" for name in names))
    line = (
        f"{twice.length} random tokens twice: {twice.first_nats:.3f} nats per token the first time,"
        f" {twice.second_nats:.3f} the second"
    )
    if len(chosen) > 1:
        return table, line
    (place,) = chosen
    looks = _table("where each token looks", "token", "most", "", "then", "", "then", "", left=7)
    for t, weights_S in enumerate(patterns.weights_LNTS[place]):
        order = weights_S[: t + 1].argsort()[::-1][:3]
        _row(looks, patterns.labels[t], *(cell for s in order for cell in (patterns.labels[s], f"{weights_S[s]:.3f}")))
    return table, line, looks


def _kinds(scores, uniform, chosen) -> dict[tuple[int, int], str]:
    """What a head is, where it is clearly something: half its weight or more, and twice what chance gives."""
    kinds = {}
    for place in chosen:
        named = {name: scores[name][place] for name in ("previous", "first", "diagonal", "induction")}
        best = max(named, key=named.get)
        if named[best] >= 0.5 and named[best] >= 2 * uniform[best][place[0], 0]:
            kinds[place] = f"{best} {named[best]:.2f}"
    return kinds


# --- lens and loss ---------------------------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class LensOptions(Common):
    """What the model would predict after each layer: rank and probability of the token that came, and the likeliest."""

    text: Text
    """The text to read."""
    answer: str | None = None
    """Also say what each part adds to the logit of this word after the text."""
    other: str | None = None
    """With --answer: against the logit of this word."""


def lens(run: str, arguments: list[str]) -> None:
    o, m = _start(LensOptions, "lens", run, arguments)
    require(o.answer is not None or o.other is None, "--other: against which --answer?")
    from lm.probe.lens import logit_lens

    seen = logit_lens(m, o.text, cached=o.cached)
    if o.figure is not None:
        from lm.probe.figures_inside import lens_map

        lens_map(seen, o.figure)
    T = len(seen.labels)
    title = "token most expected next, (rank of the one that came); the last row's is not known"
    table = _table(title, "after reading", *seen.entries, "p(came)", left=1 + len(seen.entries))
    for t in range(T):
        ranks = [f" ({seen.rank_ET[e, t]})" if t < T - 1 else "" for e in range(len(seen.entries))]
        came = f"{seen.probability_ET[-1, t]:.4f}" if t < T - 1 else ""
        _row(table, seen.labels[t], *(seen.top[e][t] + ranks[e] for e in range(len(seen.entries))), came)
    summary = _table("mean over positions", "entry", "nats", "median rank", "first", "KL to the model's own, nats")
    entries = []
    for e, name in enumerate(seen.entries):
        probability_T, rank_T = seen.probability_ET[e, :-1], seen.rank_ET[e, :-1]
        entries.append({
            "entry": name, "loss": float(-_log(probability_T).mean()), "kl": float(seen.kl_ET[e].mean()),
            "top": seen.top[e], "top_probability": seen.top_probability_ET[e].tolist(),
            "rank": rank_T.tolist(), "probability": probability_T.tolist(),
        })  # fmt: skip
        row = entries[-1]
        first = f"{(rank_T == 1).mean():.3f}"
        _row(summary, name, f"{row['loss']:.3f}", f"{sorted(rank_T)[len(rank_T) // 2]}", first, f"{row['kl']:.3f}")
    result, tables = {"tokens": seen.labels, "entries": entries}, [table, "", summary]
    if o.answer is not None:
        result["attribution"] = _attribution(o, m, tables)
    _show(o, result, *tables)


def _attribution(o, m, tables: list) -> dict[str, Any]:
    from lm.probe.attribution import attribute_logits

    parts = attribute_logits(m, o.text, o.answer, o.other, cached=o.cached)
    what = " over that of ".join(parts.first)
    table = _table(f"what adds to the logit of {what} after the text: {parts.total:+.3f} in all", "part", "")
    named = {"embedding": parts.embedding}
    for layer, heads_N in enumerate(parts.heads_LN):
        named |= {f"layer {layer} head {head}": value for head, value in enumerate(heads_N)}
        named[f"layer {layer} feed-forward"] = parts.mlp_L[layer]
    for name, value in (named | ({"biases": parts.biases} if m.experiment.model.bias else {})).items():
        _row(table, name, f"{value:+.3f}")
    tables += ["", table]
    listed = {"heads": parts.heads_LN.tolist(), "mlp": parts.mlp_L.tolist()}
    return {"first": parts.first, "total": parts.total, "embedding": parts.embedding, "biases": parts.biases} | listed


def _log(probability):
    import numpy as np

    return np.log(np.maximum(probability, 1e-45))


@dataclasses.dataclass(frozen=True)
class LossOptions(Common):
    """How surprised the model is by each token of a text."""

    text: Text
    """The text to read."""


def loss(run: str, arguments: list[str]) -> None:
    o, m = _start(LossOptions, "loss", run, arguments)
    from lm.probe.lens import token_losses

    losses = token_losses(m, o.text, cached=o.cached)
    if o.figure is not None:
        from lm.probe.figures_inside import loss_text

        loss_text(losses, o.figure)
    table = _table("", "token", "expected", "with p", "nats", "rank", left=2)
    pairs = zip(losses.labels, losses.expected, losses.expected_probability, losses.nats, losses.rank, strict=True)
    for label, expected, probability, nats, rank in pairs:
        _row(table, label, expected, f"{probability:.3f}", f"{nats:.3f}", rank)
    bits = float(losses.nats.sum() / 0.6931471805599453 / max(1, losses.bytes.sum()))
    mean = float(losses.nats.mean())
    result = {
        "loss": mean, "bits_per_byte": bits, "tokens": losses.labels, "nats": losses.nats.tolist(),
        "rank": losses.rank.tolist(), "expected": losses.expected,
        "expected_probability": losses.expected_probability.tolist(),
    }  # fmt: skip
    _show(o, result, table, f"{mean:.4f} nats per token, {bits:.4f} bits per byte, {len(losses.nats)} tokens")


# --- facts -----------------------------------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class FactsOptions(Common):
    """How a model completes the facts of a .jsonl file, phrasings of the corpus and others apart."""

    file: File
    """Facts, an object a line: relation, subject, prompt, answer, seen."""


def facts(run: str, arguments: list[str]) -> None:
    o, m = _start(FactsOptions, "facts", run, arguments)
    from lm.probe.facts import complete, read_facts, summary

    completions = complete(m, read_facts(o.file), cached=o.cached)
    rows = summary(completions)
    if o.figure is not None:
        from lm.probe.figures_inside import facts_bars

        facts_bars(rows, o.figure)
    columns = ("relation", "phrasing", "facts", "first", "best of", "answers", "probability", "median rank")
    table = _table(
        "first: the answer is the likeliest continuation; best of: of all the relation's answers", *columns, left=2
    )
    for r in rows:
        _row(
            table, r["relation"], "seen" if r["seen"] else "unseen", r["facts"], f"{r['accuracy']:.3f}",
            f"{r['choice_accuracy']:.3f}", r["choices"] or "", f"{r['probability']:.3f}", f"{r['median_rank']:g}",
        )  # fmt: skip
    each = [
        dataclasses.asdict(c.fact)
        | {"correct": c.correct, "rank": c.rank, "probability": c.probability, "chosen": c.chosen}
        for c in completions
    ]
    _show(o, {"relations": rows, "facts": each}, table)


# --- interventions ---------------------------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class AblateOptions(Common):
    """How much worse the model gets with a head, an attention or a feed-forward layer switched off."""

    text: Text = ""
    """The text whose tokens are scored; or --facts."""
    facts: Path | None = None
    """Score the answers to these facts instead."""
    how: Literal["zero", "mean"] = "zero"
    """What stands in for the output: nothing, or its mean over the same tokens."""
    parts: Literal["all", "layers", "heads"] = "all"
    """What to switch off, one at a time."""


def ablate(run: str, arguments: list[str]) -> None:
    o, m = _start(AblateOptions, "ablate", run, arguments)
    require(bool(o.text) != (o.facts is not None), "ablate what? A TEXT, or --facts FILE")
    from lm.probe import interventions
    from lm.probe.facts import fact_rows, read_facts

    parts = [
        part
        for part in interventions.every_part(m)
        if o.parts == "all" or (part.kind == "head") == (o.parts == "heads")
    ]
    given = o.text if o.facts is None else fact_rows(m, read_facts(o.facts))
    ablation = interventions.ablate(m, given, parts, how=o.how, cached=o.cached)
    if o.figure is not None:
        from lm.probe.figures_inside import ablation_bars

        ablation_bars(ablation, o.figure, how=o.how)
    what = "the tokens" if o.facts is None else "the answers' tokens"
    table = _table(
        f"loss on {what} with a part off ({o.how} ablation), nats per token", "off", "loss", "change", "first"
    )
    _row(table, "nothing", f"{ablation.base:.4f}", "", f"{ablation.base_accuracy:.3f}")
    rows = []
    for part, value, accuracy in zip(parts, ablation.loss_A.tolist(), ablation.accuracy_A.tolist(), strict=True):
        change = value - ablation.base
        _row(table, part, f"{value:.4f}", f"{change:+.4f}", f"{accuracy:.3f}")
        rows.append(dataclasses.asdict(part) | {"loss": value, "change": change, "accuracy": accuracy})
    result = {"loss": ablation.base, "accuracy": ablation.base_accuracy, "how": o.how, "parts": rows}
    _show(o, result, table)


@dataclasses.dataclass(frozen=True)
class TraceOptions(Common):
    """Corrupt the subject, restore one state at a time, and see where the answer comes back (Meng et al. 2022)."""

    text: Text
    """A prompt that the answer completes."""
    subject: str
    """Words of the prompt whose embeddings are corrupted."""
    answer: str
    other: str | None = None
    """Corrupt by putting in this other subject, of as many tokens, instead of noise."""
    noise: Positive = 3.0
    """In standard deviations of the subject's embeddings."""
    samples: Count = 10
    """Draws of noise to average over."""
    window: Count = 1
    """Layers of attention or feed-forward output restored together."""
    seed: Seed = 0


def trace(run: str, arguments: list[str]) -> None:
    o, m = _start(TraceOptions, "trace", run, arguments)
    from lm.probe import interventions

    options = {name: getattr(o, name) for name in ("other", "noise", "samples", "window", "seed", "cached")}
    made = interventions.trace(m, o.text, o.subject, o.answer, **options)
    if o.figure is not None:
        from lm.probe.figures_inside import traced

        traced(made, o.figure)
    L = m.experiment.model.layers
    names = {"residual": ["embedding", *map(str, range(L))], "mlp": list(map(str, range(L)))}
    tables = [f"p({o.answer}) {made.clean:.4f} clean, {made.corrupted:.4f} with {o.subject} corrupted"]
    words = {"residual": "the residual stream", "mlp": "the feed-forward output", "attention": "the attention output"}
    for kind, value_LT in made.restored.items():
        title = f"p({o.answer}) with {words[kind]} restored at one token, after layer"
        table = _table(title, "token", *names.get(kind, names["mlp"]))
        for t, label in enumerate(made.labels):
            _row(table, label + ("*" if made.corrupted_T[t] else ""), *(f"{p:.4f}" for p in value_LT[:, t]))
        tables += ["", table]
    result = {
        "tokens": made.labels, "subject": made.corrupted_T.tolist(), "clean": made.clean, "corrupted": made.corrupted,
        **{kind: value_LT.tolist() for kind, value_LT in made.restored.items()},
    }  # fmt: skip
    _show(o, result, *tables)
