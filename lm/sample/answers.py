"""Answers to a file of examples: what a model says to each source, beside what should have been said."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lm.data.examples import ExampleFile
from lm.errors import require
from lm.limits import Count
from lm.model.trained import Trained
from lm.sample.beam import WU, beam_search
from lm.sample.chats import format_of
from lm.sample.generate import Generator, generate
from lm.sample.prompts import readings
from lm.sample.samplers import Sampler
from lm.sample.scores import accuracy, bleu, chrf, confusion
from lm.typed import coerce

TRANSLATIONS = ("source/target",)
"""Kinds of examples to which many answers are right, compared by BLEU and chrF; of others one is right or not."""


@dataclasses.dataclass(frozen=True)
class Answers:
    """The likeliest answer to everything that a file shows, once, and all that the file answers to it."""

    kind: str
    """The file's; see lm.data.examples."""
    shown: Sequence[Any]
    """Texts, those of chats with all that their template adds, or vectors [I, E]."""
    answers: Sequence[str]
    references: Sequence[Sequence[str]]

    def scores(self) -> dict[str, Any]:
        """BLEU and chrF with their signatures, or accuracy with its interval of 95% and, of at most 50 labels, the
        table of confusions."""
        if self.kind in TRANSLATIONS:
            scores = {"bleu": bleu(self.answers, self.references), "chrf": chrf(self.answers, self.references)}
            values = {name: score.value for name, score in scores.items()}
            return values | {f"{name}_signature": score.signature for name, score in scores.items()}
        answers, labels = self.pairs()
        right = accuracy(answers, labels)
        scores = {"accuracy": right.value, "accuracy_low": right.low, "accuracy_high": right.high}
        if len(set(labels)) <= 50:
            names, counts_RC = confusion(answers, labels)
            scores["confusion"] = {"names": names, "counts": counts_RC.tolist()}
        return scores

    def pairs(self) -> tuple[list[str], list[str]]:
        """An answer and what it should have been, for every example of the file."""
        each = [(said, right) for said, texts in zip(self.answers, self.references, strict=True) for right in texts]
        return [said for said, _ in each], [right for _, right in each]


def answer_examples(
    m: Trained,
    file: ExampleFile,
    *,
    beam: int | None = None,
    length_penalty: float = WU,
    most: int | None = None,
    batch: int = 64,
    report: Callable[[int, int | None], None] | None = None,
) -> Answers:
    """Answer what a file of examples shows, greedily or by a beam search.

    most: how many answers at most, of what is shown spread evenly over the file. report(answers so far, answers in
    all) is called after each batch. What does not fit the model's contexts is left out.
    """
    require(file.kind != "chosen/rejected", "examples chosen/rejected: two answers to choose from have no right one")
    batch, generator = coerce(batch, Count, "batch"), Generator(m)
    each = [(shown, texts) for shown, texts in _shown(m, file) if _fits(m, file, shown)]
    require(bool(each), f"no example of {file.path.name} fits the model's contexts")
    if most is not None and most < len(each):
        each = [each[place] for place in np.linspace(0, len(each) - 1, coerce(most, Count, "most")).round().astype(int)]
    ending = {}
    if file.learnt is not None:
        written = format_of(m)
        require(
            beam is None or written.ends == (m.tokenizer.eot_token,), "--beam: a search ends at the end of text alone"
        )
        ending = {"stop": written.stop, "ends": written.ends}
    answers: list[str] = []
    for some in (each[start : start + batch] for start in range(0, len(each), batch)):
        asked = _asked(file, [shown for shown, _ in some])
        context = m.model.config.context
        room = context - max(reading.held for reading in readings(m, **asked))
        if beam is None:
            made = generate(generator, sampler=Sampler(temperature=0), max_tokens=room, **asked, **ending)
        else:
            found = beam_search(generator, beam=beam, length_penalty=length_penalty, max_tokens=room, **asked)
            made = [hypotheses[0] for hypotheses in found]
        answers += [sample.text for sample in made]
        if report:
            report(len(answers), len(each))
    told = [m.tokenizer.decode(shown) if isinstance(shown, list) else shown for shown, _ in each]
    return Answers(file.kind, told, answers, [texts for _, texts in each])


def _shown(m: Trained, file: ExampleFile) -> list[tuple[Any, list[str]]]:
    """What the file shows, each once and in order, with all that it answers to it; of a chat, the last answer."""
    if file.learnt is not None:
        written, asked = format_of(m), {}
        for i in range(file.documents):
            tokens, own = np.asarray(file.targets[i]), np.asarray(file.learnt[i])
            begin = int(np.flatnonzero(~own).max()) + 1
            asked.setdefault(tuple(tokens[:begin].tolist()), []).append(written.said(tokens[begin:].tolist()))
        return [(list(tokens), texts) for tokens, texts in asked.items()]
    texts = [m.tokenizer.decode(file.targets[i].tolist()) for i in range(file.documents)]
    if file.vectors is not None:
        return [(np.asarray(file.vectors[i]), [text]) for i, text in enumerate(texts)]
    found: dict[str, list[str]] = {}
    for i, text in enumerate(texts):
        found.setdefault(m.tokenizer.decode(file.sources[i].tolist()), []).append(text)
    return list(found.items())


def _asked(file: ExampleFile, shown: Sequence[Any]) -> dict[str, Any]:
    """What is shown as arguments of `generate`."""
    if file.learnt is not None:
        return {"prompts": shown}
    if file.vectors is not None:
        return {"prompts": [""] * len(shown), "vectors": shown}
    if file.kind == "prompt/completion":
        return {"prompts": shown}
    return {"prompts": [""] * len(shown), "sources": shown}


def _fits(m: Trained, file: ExampleFile, shown: Any) -> bool:
    """Whether something that is shown leaves room for an answer."""
    c = m.model.config
    if file.learnt is not None:
        return len(shown) < c.context
    if file.vectors is not None:
        return len(shown) + 2 <= (c if c.encoder is None else c.encoder).context
    tokens = len(m.tokenizer.encode_ordinary(shown))
    return tokens + 2 < c.context if c.encoder is None else tokens + 1 <= c.encoder.context
