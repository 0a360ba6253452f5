"""facts FILE: facts completed, in phrasings that the corpus has and has not."""

import dataclasses
import functools
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from lm.errors import UserError, printable, require, shorten
from lm.model.trained import Trained
from lm.probe import anatomy
from lm.probe.drawing import BARS, canvas
from lm.probe.lines import QUOTED, numbered_lines, refuse_unless
from lm.probe.options import InsideOptions, Report
from lm.probe.passes import forward
from lm.probe.rows import CHUNK, TokenRows, continuation, encode, rows
from lm.tables import table


@dataclasses.dataclass(frozen=True)
class Options(InsideOptions):
    """How a model completes the facts of a .jsonl file, phrasings of the corpus and others apart."""

    file: Annotated[Path, tyro.conf.Positional]
    """Facts, an object a line: relation, subject, prompt, answer, seen."""

    def check(self) -> None:
        read_facts(self.file)


@dataclasses.dataclass(frozen=True)
class Fact:
    """`prompt answer` is true of `subject`."""

    relation: str
    subject: str
    prompt: str
    answer: str
    seen: bool = True
    """Whether the corpus states this fact in this phrasing."""


def read_facts(path: str | Path) -> list[Fact]:
    """Read the facts of a .jsonl file. Raises UserError, with the line, for a file that holds something else."""
    known = {field.name: field.type for field in dataclasses.fields(Fact)}
    facts = []
    for number, line in numbered_lines(path):
        expected = f"a fact is an object with {', '.join(known)}"
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            why = "nested too deeply" if isinstance(error, RecursionError) else error
            raise UserError(f"{path}, line {number}: not JSON ({why}); {expected}") from error
        complete = isinstance(values, dict) and known.keys() - {"seen"} <= values.keys()
        refuse_unless(complete, path, number, expected, line)
        fact = Fact(**{name: values[name] for name in known if name in values})
        words = (fact.relation, fact.subject, fact.prompt, fact.answer)
        are_words = all(isinstance(word, str) and word.strip() for word in words) and isinstance(fact.seen, bool)
        expected = "relation, subject, prompt and answer are words, seen is true or false"
        refuse_unless(are_words, path, number, expected, line)
        facts.append(fact)
    require(bool(facts), f"{path} holds no facts")
    return facts


@dataclasses.dataclass(frozen=True)
class Completion:
    """How a model completes one prompt."""

    fact: Fact
    correct: bool
    """Every token of the answer is the one that the model holds most likely."""
    rank: int
    """The rank of the answer's first token in the whole vocabulary; 1 is first."""
    logprob: float
    """log p of the whole answer, nats."""
    chosen: str
    """The likeliest of the relation's answers, whole sequences compared."""

    @property
    def probability(self) -> float:
        """The probability of the whole answer."""
        return float(np.exp(self.logprob))


def complete(m: Trained, facts: Sequence[Fact], *, cached: bool = False) -> list[Completion]:
    """Find each answer's probability and rank, and which of all answers to the relation's facts is the likeliest."""
    anatomy.predicts_next(m.model)
    require(len(facts) > 0, "no facts to complete")
    answers = {fact.relation: [] for fact in facts}
    for fact in facts:
        if fact.answer not in answers[fact.relation]:
            answers[fact.relation].append(fact.answer)
    encoded = {answer: continuation(m, answer) for group in answers.values() for answer in group}
    asked = [(_prompt(m, fact), encoded[answer]) for fact in facts for answer in answers[fact.relation]]
    logp, ranks = _score_answers(m, asked, cached)

    completions, at = [], 0
    for fact in facts:
        group = answers[fact.relation]
        here, true = slice(at, at + len(group)), at + group.index(fact.answer)
        chosen, at = group[int(np.argmax([sum(tokens) for tokens in logp[here]]))], here.stop
        correct = all(rank == 1 for rank in ranks[true])
        completions.append(
            Completion(fact=fact, correct=correct, rank=ranks[true][0], logprob=float(sum(logp[true])), chosen=chosen)
        )
    return completions


def _prompt(m: Trained, fact: Fact) -> list[int]:
    """Encode the prompt. Raises UserError for a fact that is longer than the model's context."""
    tokens, context = encode(m, fact.prompt.rstrip()), m.model.config.context
    length = len(tokens) + len(continuation(m, fact.answer))
    prompt = shorten(fact.prompt, QUOTED)
    require(length <= context, f"the fact {prompt!r} has {length} tokens, the model's context holds {context}")
    return tokens


def _score_answers(m: Trained, asked: list[tuple[list[int], list[int]]], cached: bool):
    """Score answers: [log p of each token of the answer] and [their ranks] for each (prompt, answer).

    Answers to one prompt that differ in their last token alone share a pass, which in many vocabularies is all of them.
    """
    read = {(*prompt, *answer[:-1]): None for prompt, answer in asked}
    row_of = {sequence: row for row, sequence in enumerate(read)}
    wanted = defaultdict(list)
    for index, (prompt, answer) in enumerate(asked):
        wanted[row_of[(*prompt, *answer[:-1])]].append(index)

    logp, ranks = [[] for _ in asked], [[] for _ in asked]
    depth = max(len(answer) for _, answer in asked)
    batch = rows(m, [(*sequence, 0) for sequence in read])  # what is read for comes in place of the zero
    for number, chunk in enumerate(batch.chunks(CHUNK)):
        last_B = chunk.length_B - 2
        logp_BTV = np.asarray(_last_logp(m.model, m.params, chunk.tokens_BT, last_B, depth, cached))
        for row, logp_TV in enumerate(logp_BTV, number * len(last_B)):
            for index in wanted[row]:
                answer = asked[index][1]
                for token, logp_V in zip(answer, logp_TV[depth - len(answer) :], strict=True):
                    logp[index].append(float(logp_V[token]))
                    ranks[index].append(int((logp_V >= logp_V[token]).sum()))
    return logp, ranks


@functools.partial(jax.jit, static_argnums=(0, 4, 5))
def _last_logp(model, params, tokens_BT, last_B, depth: int, cached: bool):
    """log p of what follows each of the `depth` tokens up to the row's last, [B, depth, V]."""
    logits_BTV, _ = forward(model, params, tokens_BT, cached=cached)
    places_BT = last_B[:, None] - jnp.arange(depth - 1, -1, -1)
    return jax.nn.log_softmax(jnp.take_along_axis(logits_BTV, places_BT[..., None], axis=1))


def fact_rows(m: Trained, facts: Sequence[Fact]) -> TokenRows:
    """Lay prompts with their answers out as rows; the answers' tokens are what counts. For `ablate`."""
    prompts = [_prompt(m, fact) for fact in facts]
    pairs = zip(prompts, facts, strict=True)
    return rows(m, [prompt + continuation(m, fact.answer) for prompt, fact in pairs], [len(p) for p in prompts])


def summary(completions: Sequence[Completion]) -> list[dict]:
    """Average over each relation's phrasings that the corpus has and has not, then over those of all relations."""
    averages = []
    for relation in [*dict.fromkeys(c.fact.relation for c in completions), None]:
        of_relation = [c for c in completions if relation in (c.fact.relation, None)]
        for seen in (True, False):
            group = [c for c in of_relation if c.fact.seen == seen]
            if group:
                averages.append({
                    "relation": relation or "all", "seen": seen, "facts": len(group),
                    "accuracy": float(np.mean([c.correct for c in group])),
                    "choice_accuracy": float(np.mean([c.chosen == c.fact.answer for c in group])),
                    "choices": len({c.fact.answer for c in of_relation}) if relation else None,
                    "probability": float(np.mean([c.probability for c in group])),
                    "median_rank": float(np.median([c.rank for c in group])),
                })  # fmt: skip
    return averages


# --- for the command, and the figure ---------------------------------------------------------------------------------
def run(m: Trained, o: Options) -> Report:
    """Complete every fact of the file."""
    completions = complete(m, read_facts(o.file), cached=o.cached)
    averages = summary(completions)
    each = [
        dataclasses.asdict(c.fact)
        | {"correct": c.correct, "rank": c.rank, "probability": c.probability, "chosen": c.chosen}
        for c in completions
    ]
    columns = ("relation", "phrasing", "facts", "first", "best of", "answers", "probability", "median rank")
    cells = [
        (r["relation"], "seen" if r["seen"] else "unseen", str(r["facts"]), r["accuracy"], r["choice_accuracy"],
         str(r["choices"] or ""), r["probability"], f"{r['median_rank']:g}") for r in averages
    ]  # fmt: skip
    title = "first: the answer is the likeliest continuation; best of: of all the relation's answers"
    shown = table(columns, cells, title=title, left=2)
    return Report({"relations": averages, "facts": each}, [shown], lambda out: facts_bars(averages, out))


def facts_bars(averages: Sequence[dict], out: Path) -> Path:
    """Draw accuracy by relation for phrasings that the corpus has and has not; from `lm.probe.summary`."""
    relations = list(dict.fromkeys(row["relation"] for row in averages))
    with canvas(out, style=BARS, figsize=(2.2 + 1.1 * len(relations), 3.6)) as axes:
        for shift, seen, label in ((-0.2, True, "phrasing in the corpus"), (0.2, False, "phrasing not in the corpus")):
            accuracy = {row["relation"]: row["accuracy"] for row in averages if row["seen"] == seen}
            if accuracy:
                at = [relations.index(relation) + shift for relation in accuracy]
                colour = "C0" if seen else "C1"
                bars = axes.bar(at, list(accuracy.values()), width=0.36, color=colour, label=label)
                axes.bar_label(bars, fmt="%.2f", padding=2, fontsize=9)
        axes.set_xticks(range(len(relations)), [printable(relation).replace(" ", "\n") for relation in relations])
        axes.set_ylim(0, 1.08)
        axes.set_ylabel("answers that come first")
        axes.grid(axis="x", visible=False)
        axes.figure.legend(loc="outside upper center", ncols=2)
    return out
