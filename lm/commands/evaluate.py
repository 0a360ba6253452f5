"""lm eval RUN: the loss of a text, or what answers to examples are worth; of several runs and texts a table."""

import dataclasses
import functools
from pathlib import Path
from typing import Annotated, Any

import tyro

from lm.arguments import parse
from lm.commands.common import Checkpoint, Json, prepare_jax, print_json
from lm.config import ONE_DEVICE, ParallelConfig
from lm.errors import require
from lm.limits import Count

ABOUT = ("run", "step", "text")
KEYS = ("loss", "perplexity", "bits_per_byte", "tokens", "bytes")


@dataclasses.dataclass(frozen=True)
class Options:
    """Loss, perplexity and bits per byte of texts under trained models, each token scored once."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Directories of runs, or their names under runs/."""
    text: tuple[str, ...] = ()
    """Files, folders or globs, read and divided into documents as training reads them; - is standard input. Without
    any, each run's whole validation split."""
    examples: str | None = None
    """A file of examples to answer and score instead, by a model that was trained on such."""
    beam: Count | None = None
    """Answer examples by a beam search of this width; greedily without."""
    answers: Count = 1000
    """Examples to answer at most, spread evenly over the file; the loss is of all of them."""
    figure: Path | None = None
    """Draw which labels were answered by which."""
    stride: int | None = None
    """Tokens scored per window; smaller than the context (the default) gives each token more to go by."""
    text_field: Annotated[str | None, tyro.conf.arg(name="data.text-field")] = None
    """Field of a .jsonl or .parquet record that holds the text; the run's own by default."""
    checkpoint: Checkpoint = "latest"
    parallel: tyro.conf.FlagConversionOff[ParallelConfig] = ONE_DEVICE
    """Devices that the model is spread over, one by default: for a model larger than one of them."""
    json: Json = False


def run(arguments: list[str]) -> None:
    o = parse(Options, arguments, "lm eval")
    require(bool(o.runs), "which run? A directory or its name under runs/: lm eval quickstart (`lm runs` lists them)")
    require(o.text.count("-") <= 1, "--text -: standard input can be read once")
    prepare_jax()
    rows = _scores(o)
    single = len(rows) == 1
    if o.json:
        print_json({key: v for key, v in rows[0].items() if key not in ABOUT} if single else {"scores": rows})
    elif single:
        r = rows[0]
        print(f"{r['run']} at step {r['step']} on {r['text']}: {r['tokens']:,} tokens, {r['bytes']:,} bytes")
        print(f"loss {r['loss']:.4f} nats/token, perplexity {r['perplexity']:.3f}, {r['bits_per_byte']:.4f} bits/byte")
        print(_of_answers(r), end="")
    else:
        print(_table(rows), end="")


def _scores(o: Options) -> list[dict[str, Any]]:
    """A row for every run and text. Every text is opened before the first is scored."""
    from lm.data.corpora import Text, open_text
    from lm.evaluation import evaluate, evaluate_validation
    from lm.run import Run, load
    from lm.training.display import Display

    data = [Run(run).experiment.data for run in o.runs]
    by_example = [settings.examples is not None for settings in data]
    require(not (o.text and o.examples), "--text and --examples: give one of the two")
    for run, answers in zip(o.runs, by_example, strict=True):
        require(answers or not o.examples, f"--examples: {run} was trained on a corpus; give --text")
        require(not answers or not o.text, f"--text: {run} was trained on examples; give --examples FILE")
    if o.text_field is not None:
        data = [dataclasses.replace(settings, text_field=o.text_field) for settings in data]
    opened = {path: open_text(data[0], path) for path in o.text}  # standard input can be read once
    rows = []
    for run, settings in zip(o.runs, data, strict=True):
        m = load(run, o.checkpoint, parallel=o.parallel)
        if settings.examples is not None:
            rows.append(_examples(o, m))
            continue
        for path in o.text or (None,):
            with Display() as display:
                options = dict(stride=o.stride, report=functools.partial(display.stage, "scoring bytes"))
                if path is None:
                    name, score = f"the validation split of {settings.corpus}", evaluate_validation(m, **options)
                else:
                    own = {"separator": settings.separator}
                    own |= {} if isinstance(opened[path], Text) else {"text_field": settings.text_field}
                    text = dataclasses.replace(opened[path], **own)
                    name, score = text.name, evaluate(m, text, **options)
            about = {"run": m.run.name, "step": m.step, "text": name}
            rows.append(about | {key: getattr(score, key) for key in KEYS})
    return rows


def _examples(o: Options, m) -> dict[str, Any]:
    """What there is to say of the answers to a file of examples."""
    import numpy as np

    from lm.evaluation import evaluate_examples, open_examples
    from lm.sample.answers import answer_examples
    from lm.sample.scores import draw_confusion
    from lm.training.display import Display

    file = open_examples(m, o.examples)
    with Display() as display:
        score = evaluate_examples(m, file, report=functools.partial(display.stage, "scoring bytes"))
        about = {"run": m.run.name, "step": m.step, "text": o.examples or _held_out(m.experiment.data)}
        about |= {key: getattr(score, key) for key in KEYS}
        if file.kind == "chosen/rejected":  # neither of which is what a model should have said
            return about
        report = functools.partial(display.stage, "answering")
        made = answer_examples(m, file, beam=o.beam, most=o.answers, report=report)
    scores = made.scores()
    if o.figure is not None:
        require("confusion" in scores, f"--figure {o.figure}: draws at most 50 labels; these are {file.kind}")
        table = scores["confusion"]
        draw_confusion(table["names"], np.array(table["counts"]), o.figure, title=m.run.name)
        scores["figure"] = str(o.figure)
    return about | {"answers": len(made.answers)} | scores


def _held_out(data) -> str:
    return data.validation_corpus or f"what was held out of {data.learnt}"


def _of_answers(r: dict[str, Any]) -> str:
    """Lines about the answers to examples; none where a text was scored."""
    if "bleu" in r:
        return (
            f"{r['answers']:,} answers: BLEU {r['bleu']:.2f} ({r['bleu_signature']})\n"
            f"{'':>{len(str(r['answers']))}} chrF {r['chrf']:.2f} ({r['chrf_signature']})\n"
        )
    if "accuracy" in r:
        interval = f"95% interval {r['accuracy_low']:.3f} to {r['accuracy_high']:.3f}"
        drawn = f"{r['figure']}\n" if "figure" in r else ""
        return f"{r['answers']:,} answers, {r['accuracy']:.3f} of them right ({interval})\n{drawn}"
    return ""


def _table(rows: list[dict[str, Any]]) -> str:
    from lm.console import as_text
    from lm.tables import table

    titles = ["run", "text", "step", "tokens", "bytes", "loss", "perplexity", "bits/byte"]
    forms = dict(step=",", tokens=",", bytes=",", loss=".4f", perplexity=".3f", bits_per_byte=".4f")
    for key, title in (("bleu", "BLEU"), ("chrf", "chrF"), ("accuracy", "accuracy")):
        if any(key in r for r in rows):
            titles.append(title)
            forms[key] = ".3f" if key == "accuracy" else ".2f"
    cells = [
        [r["run"], r["text"], *(format(r[key], form) if key in r else "" for key, form in forms.items())] for r in rows
    ]
    return as_text(table(titles, cells, left=("run", "text")), width=150)
