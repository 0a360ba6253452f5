"""The summary of a training: its validation figure beside honest baselines, a sample, what to type next."""

import dataclasses
from typing import Any, NamedTuple

from lm.data.batches import validation_windows
from lm.data.sequences import prompts
from lm.data.supply import prepare
from lm.errors import UserError
from lm.evaluation import baselines, open_examples
from lm.model.trained import Trained
from lm.run import RUNS, Run, load
from lm.sample.answers import answer_examples
from lm.sample.chats import format_of
from lm.sample.generate import generate
from lm.sample.samplers import Sampler
from lm.training.display import feedback_text
from lm.training.objectives import LANGUAGE

SAMPLE_TOKENS = 200


class Shown(NamedTuple):
    """Lines that a model wrote, and what they are."""

    title: str
    lines: list[str]


@dataclasses.dataclass(frozen=True)
class Summary:
    """Holds the last figures of a run and what to compare them with."""

    run: Run
    record: dict[str, Any]
    baselines: dict[str, float]
    sample: "Shown | None"

    def json(self) -> dict[str, Any]:
        """Returns the keys that other programs may rely on, and the baselines."""
        facts = self.run.record
        r = self.record
        names = (
            "step", "tokens", "loss", "val_loss", "val_bits_per_byte", "seconds", "tokens_per_second", "data_wait",
        )  # fmt: skip
        return {
            "run": str(self.run.path),
            **{name: r.get(name) for name in names},
            "params_total": facts["params_total"],
            "params_nonembedding": facts["params_nonembedding"],
            "flops_exact": self.run.flops(r),
            "baselines": self.baselines,
        }

    def text(self) -> str:
        """Lays it out for a person."""
        r, run = self.record, self.run
        name = run.name if run.folder == RUNS else run.path
        lines = [""]
        if "val_bits_per_byte" in r:
            total = self.run.record["steps"]["total"]
            lines += [
                f"{self.run.path}, step {r['step']} of {total}, {r['seconds']:.0f} s of training, "
                f"{r.get('data_wait', 0):.2%} of it waiting for data",
                f"validation text   {r['val_bits_per_byte']:6.3f} bits/byte   this model",
            ]
        elif figures := feedback_text(r):
            lines += [
                f"{self.run.path}, step {r['step']} of {self.run.record['steps']['total']}, {r['seconds']:.0f} s",
                figures,
            ]
        if self.baselines:
            lines += [
                f"                  {self.baselines['xz']:6.3f} bits/byte   xz -9e on the same text",
                f"                  {self.baselines['uniform']:6.3f} bits/byte   guessing tokens uniformly",
            ]
        if self.sample is not None:
            lines += ["", self.sample.title, "", *("  | " + line for line in self.sample.lines)]
        lines += ["", "Next:", *(f"  {command:<56}{what}" for command, what in self._next(name).items())]
        return "\n".join(lines) + "\n"

    def _next(self, name) -> dict[str, str]:
        """Returns commands to type next, and what each does."""
        e, look = self.run.experiment, {f"lm plot {name} --out loss.png": "look at its loss"}
        if e.train.objective == "masked":
            start = {f"lm train CONFIG --train.start {name}": "begin another run with its parameters"}
            return {f"lm eval {name}": "score what was held out"} | start | look
        if e.train.objective == "reward":
            judged = f"lm train policy --train.start RUN --data.examples FILE --feedback.reward {name}"
            return {judged: "have it reward a policy"} | look
        if e.data.examples is not None and (e.data.template or e.train.objective not in LANGUAGE):
            talk = f"lm chat {name}" if e.data.template else f'lm sample {name} --prompt "TEXT"'
            score = {f"lm eval {name}": "score what was held out"} if e.train.objective in LANGUAGE else {}
            return {talk: "talk with it"} | score | look
        if e.data.examples is not None:
            asked = {f'lm sample {name} --source "TEXT" --beam 4': "answer a text"} if e.model.vectors is None else {}
            return asked | {f"lm eval {name}": "answer what was held out, and score the answers"} | look
        return {
            f'lm sample {name} --prompt "The " --temperature 0.8': "continue a text",
            f"lm eval {name} --text FILE": "score any text",
        } | look


def summary(run: Run, *, sample: bool = True) -> Summary:
    """Gathers a run's last figures, the baselines on its validation text and, if asked for, a sample."""
    e, records = run.experiment, run.metrics()
    record: dict[str, Any] = {}
    for entry in records:  # the newest of each: the last line may hold only a part
        record |= entry
    sample = sample and bool(run.steps()) and e.model.mask != "full"
    if e.data.examples is not None:
        show = {"reward": None, "preference": _replies, "policy": _replies}.get(e.train.objective, _answers)
        return Summary(run, record, {}, show(run) if sample and show else None)
    data = prepare(e.data)
    held_out = validation_windows(data.validation, e.model.context, e.train.eval_tokens)
    scored = held_out["tokens_BU"][:, 1:][held_out["weights_BT"] > 0]
    text = data.tokenizer.decode_bytes(scored[scored != data.tokenizer.eot_token].tolist())
    compared = baselines(text, data.tokenizer.n_vocab, len(scored))
    return Summary(run, record, compared, _sample(run) if sample else None)


def _sample(run: Run) -> Shown:
    """Continues nothing, or a line break where the model never saw a document begin."""
    m = load(run)
    prompt = "" if run.record["documents"] > 1 else _line_break(m)
    tokens = min(SAMPLE_TOKENS, run.experiment.model.context - 1)
    [made] = generate(m, [prompt], Sampler(temperature=0.8), max_tokens=tokens)
    return Shown("A sample (temperature 0.8):", made.text.splitlines())


def _answers(run: Run) -> Shown:
    """Answers a few of the examples that were held out."""
    m = load(run)
    made = answer_examples(m, open_examples(m), most=5)
    lines = [
        f"{shown if isinstance(shown, str) else f'{len(shown)} vectors'} -> {answer} ({' or '.join(right[:2])})"
        for shown, answer, right in zip(made.shown, made.answers, made.references, strict=True)
    ]
    return Shown("Likeliest answers to what was held out (and what is right):", [line[:160] for line in lines])


def _replies(run: Run) -> Shown:
    """Goes on with a few of the prompts that were held out."""
    m = load(run)
    asked = [tokens for tokens, _ in prompts(open_examples(m), m.tokenizer, run.experiment.data.template)[:3]]
    ends = format_of(m).ends if run.experiment.data.template else ()
    room = min(SAMPLE_TOKENS, run.experiment.model.context - max(map(len, asked)))
    made = generate(m, asked, Sampler(temperature=0.8), max_tokens=room, ends=ends)
    lines = [f"{sample.prompt.splitlines()[-1]} -> {sample.text}" for sample in made]
    return Shown("What it says to prompts that were held out (temperature 0.8):", [line[:160] for line in lines])


def _line_break(m: Trained) -> str:
    """Returns a line break, or the first character of an alphabet that has none."""
    try:
        m.tokenizer.encode_ordinary("\n")
    except UserError:
        return m.tokenizer.decode([0])
    return "\n"
