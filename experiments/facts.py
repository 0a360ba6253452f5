"""Where does a small model keep its facts, and can one of them be changed alone?

python experiments/facts.py RUN [RUN ...] --facts facts.jsonl    about a minute a run on two CPU cores
Facts are lines {"relation", "subject", "prompt", "answer", "seen"}, as `lm data kingdom` writes them; runs of several
seeds give the spread. Prints
  completion    answers that come first, for phrasings that the corpus has and has not
  ablation      loss on the answers with each layer's attention or feed-forward layer off, and with all of a kind off
  trace         where restoring one clean state brings a corrupted subject's answer back (Meng et al. 2022)
  edit          a rank-one change of one feed-forward layer, for several facts, with what it left alone: for the
                subject's last token (Meng et al.) and for the prompt's last, in each layer; beside the best place of
                the trace, the same change without the covariance of the other keys
and draws experiments/figures/facts.svg of the first run. Expected: experiments/RESULTS.md.
"""

import argparse
import dataclasses
from collections import defaultdict
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import lm
from lm import probe
from lm.figures import STYLE, save

FIGURE = Path(__file__).parent / "figures" / "facts.svg"
TESTS = ("edited prompt", "other phrasings", "same subject, other facts", "same relation, others", "other relations")
"""What an edit is judged by: the first two should follow it, the rest stay as they were."""
WITHOUT = "that, without covariance"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="runs trained on a corpus that states these facts")
    parser.add_argument("--facts", required=True, help="a facts.jsonl")
    parser.add_argument("--most", type=int, default=1200, help="facts used at most: all of some subjects")
    parser.add_argument("--traces", type=int, default=24, help="facts traced")
    parser.add_argument("--edits", type=int, default=8, help="facts edited")
    parser.add_argument("--samples", type=int, default=10, help="draws of noise in a trace")
    parser.add_argument("--figure", type=Path, default=FIGURE)
    options = parser.parse_args()
    facts = probe.read_facts(options.facts)
    subjects = list(dict.fromkeys(fact.subject for fact in facts))
    kept = set(subjects[:: -(-len(facts) // options.most)])  # every phrasing of some, rather than some phrasings
    facts = [fact for fact in facts if fact.subject in kept]

    studies = []
    for name in options.runs:
        print(f"\n=== {name} ===")
        studies.append(study(lm.load(name), facts, options))
    if len(studies) > 1:
        print_spread(studies)
    print(draw(studies[0], options.figure))


@dataclasses.dataclass
class Study:
    """Everything found in one model."""

    table: list[dict]
    """From `probe.summary`."""
    ablation: probe.Ablation
    clean: float
    corrupted: float
    effects: dict[str, np.ndarray]
    """{kind: [layers, places]}, mean over traces."""
    site: str
    """The edit in the feed-forward layer and at the token whose restoration gives back the most."""
    edits: dict[str, dict[str, float]]
    """{edit: {test: share of answers that are as they should be}}."""


def study(m: lm.Trained, facts: list, options) -> Study:
    completions = probe.complete(m, facts)
    table = probe.summary(completions)
    print_completions(table)
    ablation = ablate(m, facts)

    known = [c.fact for c in completions if c.correct]
    if not known:
        raise SystemExit("the model completes none of these facts: nothing to trace or edit")
    spread = known[:: -(-len(known) // options.traces)]
    traces = [probe.trace(m, f.prompt, f.subject, f.answer, samples=options.samples) for f in spread]
    effects = probe.average_effects(traces)
    clean, corrupted = (float(np.mean([getattr(t, which) for t in traces])) for which in ("clean", "corrupted"))
    print_effects(effects, len(traces), clean, corrupted)

    found_LP = effects["mlp"][:, [probe.PLACES.index("subject, last"), probe.PLACES.index("last token")]]
    layer, place = np.unravel_index(np.nanargmax(found_LP), found_LP.shape)
    site = int(layer), ("subject", "last")[place]
    edits = edit(m, facts, [f for f in known if f.seen], site, options.edits)
    return Study(table, ablation, clean, corrupted, effects, name_of(*site), edits)


def name_of(layer: int, at: str) -> str:
    return f"layer {layer}, {at} token" if at == "last" else f"layer {layer}, {at}"


# --- the four questions ----------------------------------------------------------------------------------------------
def print_completions(table: list[dict]) -> None:
    print("\ncompletion: the answer comes first / is the likeliest of the relation's answers")
    print(f"{'relation':<24}{'phrasing':>9}{'facts':>7}{'first':>8}{'of answers':>12}{'probability':>13}")
    for r in table:
        share = f"{r['choice_accuracy']:.3f} of {r['choices']}" if r["choices"] else f"{r['choice_accuracy']:.3f}"
        seen = "seen" if r["seen"] else "unseen"
        print(f"{r['relation']:<24}{seen:>9}{r['facts']:>7}{r['accuracy']:>8.3f}{share:>12}{r['probability']:>13.3f}")


def ablate(m: lm.Trained, facts: list) -> "probe.Ablation":
    """Zero ablation, returned, and mean ablation beside it: what the answers lose without a layer."""
    parts = [part for part in probe.every_part(m) if part.kind != "head"]
    batch = probe.fact_rows(m, facts)
    zero, mean = (probe.ablate(m, batch, parts, how=how) for how in ("zero", "mean"))
    print("\nablation: loss on the answers, nats per token, and how often they come first")
    print(f"{'off':<24}{'by zero':>10}{'first':>8}{'by mean':>10}{'first':>8}")
    print(f"{'nothing':<24}{zero.base:>10.3f}{zero.base_accuracy:>8.3f}{mean.base:>10.3f}{mean.base_accuracy:>8.3f}")
    for row in zip(parts, zero.loss_A, zero.accuracy_A, mean.loss_A, mean.accuracy_A, strict=True):
        print("{!s:<24}{:>10.3f}{:>8.3f}{:>10.3f}{:>8.3f}".format(*row))
    return zero


def print_effects(effects: dict[str, np.ndarray], count: int, clean: float, corrupted: float) -> None:
    print(f"\ntrace: mean over {count} facts; p(answer) {clean:.3f} clean, {corrupted:.3f} with the subject corrupted")
    there = [i for i in range(len(probe.PLACES)) if np.isfinite(effects["mlp"][:, i]).any()]
    print(f"{'restored':<24}" + "".join(f"{probe.PLACES[i]:>20}" for i in there))
    for kind, effect_LP in effects.items():
        for row, effect_P in enumerate(effect_LP):
            place = "embedding" if kind == "residual" and row == 0 else f"layer {row - (kind == 'residual')}"
            print(f"{kind + ', ' + place:<24}" + "".join(f"{x:>+20.3f}" for x in effect_P[there]))


def edit(m: lm.Trained, facts: list, editable: list, site: tuple[int, str], count: int) -> dict[str, dict[str, float]]:
    """Share of answers that are as they should be after edits of `count` facts, for each way to edit; before, too.

    An edit gives one fact, in one phrasing of the corpus, another answer of its relation. It should then be the answer
    in other phrasings of the fact, and of nothing else: of other facts, only those that were right before count.
    """
    rng = np.random.default_rng(0)
    chosen = [editable[i] for i in rng.permutation(len(editable))[:count]]
    answers = defaultdict(set)
    for fact in facts:
        answers[fact.relation].add(fact.answer)
    new = [str(rng.choice(sorted(answers[fact.relation] - {fact.answer}))) for fact in chosen]
    covariance_LFF = probe.key_covariance(m, probe.corpus_rows(m))
    ways = {
        name_of(i, at): dict(layer=i, at=at, covariance_FF=covariance_FF)
        for i, covariance_FF in enumerate(covariance_LFF)
        for at in ("subject", "last")
    }
    ways[WITHOUT] = dict(layer=site[0], at=site[1], covariance_FF=np.eye(covariance_LFF.shape[-1]))
    pairs = list(zip(chosen, new, strict=True))
    before = [c.correct for c in probe.complete(m, facts)]
    results = {"before": judge(facts, before, [(m, *pair) for pair in pairs])}
    for name, options in ways.items():
        try:
            edited = [probe.edit_fact(m, f.prompt, f.subject, answer, **options).model for f, answer in pairs]
        except lm.UserError as error:  # the last layer's subject reaches nothing
            print(f"{name}: {error}")
            continue
        results[name] = judge(facts, before, [(e, *pair) for e, pair in zip(edited, pairs, strict=True)])
    print(f"\nedit: {len(chosen)} facts, each alone, best at {name_of(*site)} by the trace; shares as they should be")
    print(f"{'':<26}" + "".join(f"{test:>27}" for test in TESTS))
    for name, shares in results.items():
        print(f"{name:<26}" + "".join(f"{shares[test]:>27.3f}" for test in TESTS))
    return results


def judge(facts: list, before: list[bool], edits: list[tuple]) -> dict[str, float]:
    """Mean over edits (model, fact, new answer) of each of TESTS; NaN where no fact is of that kind."""
    kept = defaultdict(list)
    for m, fact, answer in edits:
        same = [(f.relation, f.subject) == (fact.relation, fact.subject) for f in facts]
        wanted = [dataclasses.replace(f, answer=answer) if s else f for f, s in zip(facts, same, strict=True)]
        for c, s, was in zip(probe.complete(m, wanted), same, before, strict=True):
            if s:
                kept[TESTS[0] if c.fact.prompt == fact.prompt else TESTS[1]].append(c.correct)
            elif was:
                other = 2 if c.fact.subject == fact.subject else 3 if c.fact.relation == fact.relation else 4
                kept[TESTS[other]].append(c.correct)
    return {test: float(np.mean(kept[test])) if kept[test] else float("nan") for test in TESTS}


# --- all together ----------------------------------------------------------------------------------------------------
def print_spread(studies: list[Study]) -> None:
    print(f"\n=== {len(studies)} runs, mean and standard deviation ===")
    numbers = {
        f"first, phrasing {name}": lambda s, seen=seen: next(
            (r["accuracy"] for r in s.table if r["relation"] == "all" and r["seen"] == seen), None
        )
        for name, seen in (("seen", True), ("unseen", False))
    }
    last = {"attention": "all attention", "mlp": "all feed-forward"}
    for kind, name in last.items():
        index = [part.kind == kind and part.layer is None for part in studies[0].ablation.parts].index(True)
        numbers[f"loss without {name}"] = lambda s, index=index: float(s.ablation.loss_A[index])
    for test in TESTS:
        numbers[f"edit: {test}"] = lambda s, test=test: s.edits[s.site][test]
    for name, of in numbers.items():
        values = [of(s) for s in studies]
        if None not in values:
            print(f"{name:<36}{np.mean(values):>8.3f} +- {np.std(values, ddof=1):.3f}")


def draw(s: Study, path: Path) -> Path:
    """Completion, ablation and edits above; the averaged trace below."""
    with plt.rc_context(STYLE | {"font.size": 9, "axes.grid": False}):
        figure = plt.figure(figsize=(11, 7.2), layout="constrained")
        above, below = figure.subfigures(2, 1, height_ratios=[1.15, 1])
        first, second, third = above.subplots(1, 3)
        _draw_completions(first, s.table)
        _draw_ablation(second, s.ablation)
        _draw_edits(third, s.edits, s.site)
        _draw_trace(below, s)
        save(figure, path)
    return path


def _draw_completions(axes, table: list[dict]) -> None:
    relations = [r["relation"] for r in table if r["seen"]] or [r["relation"] for r in table]
    for shift, seen, label in ((-0.2, True, "phrasing in the corpus"), (0.2, False, "phrasing not in the corpus")):
        rows = {r["relation"]: r["accuracy"] for r in table if r["seen"] == seen}
        at = [i + shift for i, relation in enumerate(relations) if relation in rows]
        axes.barh(at, [rows[relation] for relation in relations if relation in rows], height=0.36, label=label)
    axes.set_yticks(range(len(relations)), relations)
    axes.invert_yaxis()
    axes.set(xlim=(0, 1), xlabel="share of answers that come first", title="facts completed")
    axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.4, -0.16), ncols=1)


def _draw_ablation(axes, ablation) -> None:
    L = 1 + max(part.layer for part in ablation.parts if part.layer is not None)
    for shift, kind, label, colour in ((-0.2, "attention", "attention", "C2"), (0.2, "mlp", "feed-forward", "C3")):
        losses = {
            p.layer: x - ablation.base for p, x in zip(ablation.parts, ablation.loss_A, strict=True) if p.kind == kind
        }
        bars = axes.barh(
            np.arange(L + 1) + shift, [losses[i] for i in (*range(L), None)], 0.36, label=label, color=colour
        )
        axes.bar_label(bars, fmt="%+.2f", padding=2, fontsize=8)
    axes.set_yticks(range(L + 1), [*(f"layer {i}" for i in range(L)), "all layers"])
    axes.invert_yaxis()
    axes.margins(x=0.2)
    axes.set(xlabel="nats per answer token, zero ablation", title="loss added by switching off")
    axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)


def _draw_edits(axes, edits: dict[str, dict[str, float]], site: str) -> None:
    layer = site.split(",")[0]
    shown = {"before": "before", f"{layer}, last token": "at the last token", f"{layer}, subject": "at the subject"}
    for place, (name, label) in enumerate(shown.items()):
        at = np.arange(len(TESTS)) + 0.27 * (place - 1)
        shares = edits.get(name, dict.fromkeys(TESTS, 0.0))  # the last layer's subject cannot be edited
        axes.barh(at, [shares[test] for test in TESTS], 0.25, label=label, color=("0.75", "C0", "C4")[place])
    axes.set_yticks(range(len(TESTS)), [test.replace(", ", ",\n") for test in TESTS])
    axes.invert_yaxis()
    axes.axhline(1.5, color="0.5", linewidth=0.8, linestyle=":")
    axes.set(
        xlim=(0, 1),
        xlabel="share that follows (above) or stays (below)",
        title=f"one fact edited in {layer}",
    )
    axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.3, -0.16), ncols=3, columnspacing=1)


def _draw_trace(figure, s: Study) -> None:
    names = {"residual": "residual stream", "mlp": "feed-forward output", "attention": "attention output"}
    there = [i for i in range(len(probe.PLACES)) if np.isfinite(s.effects["residual"][:, i]).any()]
    widths = [value.shape[0] for value in s.effects.values()]
    panels = figure.subplots(1, 3, sharey=True, width_ratios=widths)
    most = max(np.nanmax(value) for value in s.effects.values())
    for axes, (kind, effect_LP) in zip(panels, s.effects.items(), strict=True):
        image = axes.imshow(effect_LP[:, there].T, cmap="Blues", vmin=0, vmax=most, aspect="auto")
        for (row, place), value in np.ndenumerate(effect_LP[:, there]):
            colour = "white" if value > 0.6 * most else "black"
            axes.text(row, place, f"{round(value, 2) + 0.0:.2f}", ha="center", va="center", fontsize=8, color=colour)
        ticks = ["emb", *range(widths[0] - 1)] if kind == "residual" else range(len(effect_LP))
        axes.set_xticks(range(len(effect_LP)), ticks)
        axes.set(xlabel="layer", title=f"{names[kind]} restored")
        axes.spines[:].set_visible(False)
        axes.tick_params(left=False)
    panels[0].set_yticks(range(len(there)), [probe.PLACES[i] for i in there])
    figure.colorbar(image, ax=panels, label="p(answer) given back", aspect=20, pad=0.01)
    figure.suptitle(
        f"p(answer) is {s.clean:.2f}, {s.corrupted:.2f} with the subject corrupted; what one state restored gives back"
    )


if __name__ == "__main__":
    main()
