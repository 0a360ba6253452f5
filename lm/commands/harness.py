"""lm harness RUN --tasks ...: a trained model in EleutherAI's lm-evaluation-harness."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from lm.arguments import parse
from lm.commands.common import Checkpoint, Json, RunName, prepare_jax, print_json
from lm.commands.sample import unescape
from lm.config import ONE_DEVICE, ParallelConfig
from lm.errors import require
from lm.limits import Count, MaybeCount, Seed, Whole


@dataclasses.dataclass(frozen=True)
class Options:
    """Tasks of the evaluation harness (lm-eval), run with a trained model. What they find is kept in the run's
    directory and shown by `lm runs`. Nothing is downloaded unless asked for."""

    run: RunName
    """A run's directory, or its name under runs/."""
    tasks: tuple[str, ...] = ()
    """Names of tasks, groups or tags, the harness's own and those under --include-path, or files of tasks."""
    include_path: Path | None = None
    """A folder of tasks of one's own (.yaml); experiments/harness_tasks has some for files on this machine."""
    limit: MaybeCount = None
    """Of each task the first so many documents only."""
    fewshot: Annotated[int | None, Whole] = None
    """Examples before each question, where a task leaves that open."""
    prefix: str | None = None
    r"""What stands before texts that nothing precedes, a text of one token (\n for a line's end); by default the end of
    text, which a model that was trained on one text never saw."""
    unknown: Literal["refuse", "skip"] = "refuse"
    """Characters that the model's alphabet lacks: refuse to go on, or skip them and count how many there were."""
    gen_kwargs: tuple[str, ...] = ()
    """Settings in place of tasks' own generation_kwargs: max_gen_toks=64 temperature=0.7."""
    seed: Seed = 0
    """Of what is drawn at random where a task generates by a temperature."""
    batch: Count = 32
    """Requests at once."""
    download: bool = False
    """Let tasks fetch their data from the Hugging Face hub."""
    checkpoint: Checkpoint = "latest"
    parallel: tyro.conf.FlagConversionOff[ParallelConfig] = ONE_DEVICE
    """Devices that the model is spread over, one by default: for a model larger than one of them."""
    json: Json = False


def run(arguments: list[str]) -> None:
    o = parse(Options, arguments, "lm harness")
    require(bool(o.tasks), "which tasks? lm harness RUN --tasks blimp (--include-path FOLDER for tasks of one's own)")
    generation = dict(_setting(text) for text in o.gen_kwargs)
    quiet = {"TQDM_DISABLE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "TOKENIZERS_PARALLELISM": "false"}
    offline = {} if o.download else dict.fromkeys(("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_EVALUATE_OFFLINE"), "1")
    os.environ |= quiet | offline  # before those libraries are imported, which read them then
    prepare_jax()
    from lm.exchange.harness import HarnessModel
    from lm.exchange.tasks import keep, measure
    from lm.run import load
    from lm.training.display import Display

    m = load(o.run, o.checkpoint, parallel=o.parallel)
    prefix = None if o.prefix is None else unescape(o.prefix)
    with Display() as display:
        model = HarnessModel(
            m, prefix=prefix, unknown=o.unknown, batch_size=o.batch, seed=o.seed, report=display.stage
        )  # fmt: skip
        record = measure(
            model, o.tasks, include=o.include_path, limit=o.limit, fewshot=o.fewshot, generation=generation
        )  # fmt: skip
    file = keep(m.run, record)
    if o.json:
        print_json({"run": m.run.name, "file": str(file)} | record)
    else:
        _print(m.run.name, record)
        print(file)


def _setting(text: str) -> tuple[str, Any]:
    """A setting of --gen-kwargs: its name, and its value as JSON, or as the text that it is."""
    name, equals, value = text.partition("=")
    require(bool(name and equals), f"--gen-kwargs {text}: a name and a value, such as max_gen_toks=64")
    try:
        return name, json.loads({"True": "true", "False": "false", "None": "null"}.get(value, value))
    except ValueError:
        return name, unescape(value)


def _print(run: str, record: dict[str, Any]) -> None:
    """Tell what was found, and what must be known to judge it."""
    from lm.table import number
    from lm.tables import show, table

    rows = [
        (task, metric, number(value), number(values["stderr"].get(metric)),
         f"{record['documents'][task]:,}" if task in record["documents"] else "", record["fewshot"].get(task, ""))
        for task, values in record["tasks"].items()
        for metric, value in values.items() if metric != "stderr"
    ]  # fmt: skip
    titles = ("task", "metric", "value", "stderr", "documents", "few-shot")
    of = f"the first {record['limit']:,} documents of each task" if record["limit"] else "all documents"
    parts = [f"{run} at step {record['step']}, lm-eval {record['lm_eval']}, {of}", "", table(titles, rows, left=2)]
    if any(metric == "bits_per_byte" for _, metric, *_ in rows):
        parts.append(
            "bits_per_byte is the harness's: each document alone, its last window reaching back to a whole context; lm"
            " eval lays documents end to end and cuts that into windows, where long documents cost a little more"
        )
    if record["cut"]:
        parts.append(f"{record['cut']:,} requests were longer than the context, and lost their beginning")
    if record["skipped_characters"]:
        parts.append(f"{record['skipped_characters']:,} characters that the alphabet lacks were left out")
    show(*parts)
