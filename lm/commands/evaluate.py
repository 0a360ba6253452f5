"""lm eval RUN: loss, perplexity and bits per byte of a text; several runs and texts make a table."""

import dataclasses
import functools
from typing import Annotated, Any

import tyro

from lm.arguments import parse
from lm.commands.common import Checkpoint, Json, prepare_jax, print_json
from lm.errors import require

KEYS = ("loss", "perplexity", "bits_per_byte", "tokens", "bytes")


@dataclasses.dataclass(frozen=True)
class Options:
    """Loss, perplexity and bits per byte of texts under trained models, each token scored once."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Directories of runs, or their names under runs/."""
    text: tuple[str, ...] = ()
    """Files, folders or globs, read and divided into documents as training reads them; - is standard input. Without
    any, each run's whole validation split."""
    stride: int | None = None
    """Tokens scored per window; smaller than the context (the default) gives each token more to go by."""
    text_field: Annotated[str | None, tyro.conf.arg(name="data.text-field")] = None
    """Field of a .jsonl or .parquet record that holds the text; the run's own by default."""
    checkpoint: Checkpoint = "latest"
    json: Json = False


def run(arguments: list[str]) -> None:
    o = parse(Options, arguments, "lm eval")
    require(bool(o.runs), "which run? A directory or its name under runs/: lm eval quickstart (`lm runs` lists them)")
    require(o.text.count("-") <= 1, "--text -: standard input can be read once")
    prepare_jax()
    rows = _scores(o)
    single = len(rows) == 1
    if o.json:
        print_json({key: rows[0][key] for key in KEYS} if single else {"scores": rows})
    elif single:
        r = rows[0]
        print(f"{r['run']} at step {r['step']} on {r['text']}: {r['tokens']:,} tokens, {r['bytes']:,} bytes")
        print(f"loss {r['loss']:.4f} nats/token, perplexity {r['perplexity']:.3f}, {r['bits_per_byte']:.4f} bits/byte")
    else:
        print(_table(rows), end="")


def _scores(o: Options) -> list[dict[str, Any]]:
    """A row for every run and text. Every text is opened before the first is scored."""
    from lm.data.corpora import Text, open_text
    from lm.evaluation import evaluate, evaluate_validation
    from lm.run import Run, load
    from lm.training.display import Display

    data = [Run(run).experiment.data for run in o.runs]
    if o.text_field is not None:
        data = [dataclasses.replace(settings, text_field=o.text_field) for settings in data]
    opened = {path: open_text(data[0], path) for path in o.text}  # standard input can be read once
    rows = []
    for run, settings in zip(o.runs, data, strict=True):
        m = load(run, o.checkpoint)
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


def _table(rows: list[dict[str, Any]]) -> str:
    from lm.console import as_text
    from lm.tables import table

    titles = ("run", "text", "step", "tokens", "bytes", "loss", "perplexity", "bits/byte")
    forms = dict(step=",", tokens=",", bytes=",", loss=".4f", perplexity=".3f", bits_per_byte=".4f")
    cells = [[r["run"], r["text"], *(format(r[key], form) for key, form in forms.items())] for r in rows]
    return as_text(table(titles, cells, left=("run", "text")), width=150)
