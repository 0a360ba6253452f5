"""The `lm` command: parses, calls one function per verb, prints. Heavy imports wait until a verb needs them."""

import dataclasses
import json as json_module
import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from lm.errors import UserError, nearest

USAGE = """lm: a laboratory for small language models

  lm train   CONFIG [--model.layers 4 ...]   train or resume; --dry-run shows the cost and trains nothing
  lm sample  RUN --prompt TEXT               continue a text
  lm eval    RUN [--text FILE]               loss, perplexity, bits per byte
  lm runs                                    a table of the runs
  lm plot    RUN... [--out FILE]             loss curves
  lm data    list | prepare                  corpora and token files
  lm tokenizer train | show                  encodings

CONFIG is a name in configs/ or a path to a .py file; RUN a directory or its name under runs/.
`lm VERB --help` explains every option; every verb takes --json. Start with: lm train quickstart
"""


def main(arguments: list[str] | None = None) -> int:
    """Entry point. Exit status: 0, or 2 with one line on standard error when the input was wrong."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    verb, *rest = arguments
    try:
        if verb not in VERBS:
            raise UserError(f"{verb}: no such verb{nearest(verb, VERBS)} (`lm --help` lists them)")
        VERBS[verb](rest)
        sys.stdout.flush()
    except UserError as error:
        print(f"lm: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("lm: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has gone: `lm runs | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


# --- verbs -----------------------------------------------------------------------------------------------------------
def train(arguments: list[str]) -> None:
    from lm.arguments import parse_train

    options = parse_train(arguments)
    _prepare_jax()
    from lm.training.display import Display

    if options.dry_run:
        from lm.training.dry_run import dry_run

        cost = dry_run(options.experiment, display=Display())
        _print_json(dataclasses.asdict(cost)) if options.json else print(cost.table(), end="")
        return

    from lm.training.loop import train as train_experiment
    from lm.training.report import summary

    run = train_experiment(options.experiment, display=Display())
    result = summary(run)
    if options.json:
        _print_json(result.json())
    else:
        print(result.text(), end="")


def sample(arguments: list[str]) -> None:
    import tyro

    from lm.arguments import parse
    from lm.sample.samplers import Sampler

    def options(
        run: Annotated[str, tyro.conf.Positional],
        sampler: Sampler = Sampler(),
        prompt: tuple[str, ...] = ("",),
        max_tokens: int = 200,
        samples: int = 1,
        seed: int = 0,
        stop: tuple[str, ...] = (),
        past_context: Literal["error", "slide"] = "error",
        checkpoint: str = "latest",
        json: bool = False,
    ):
        """Continue a text with a trained model.

        Args:
            run: A run's directory, or its name under runs/.
            prompt: Text to continue; several make a batch, none starts a new document.
            max_tokens: Tokens to generate at most.
            samples: Continuations of each prompt.
            seed: The same seed gives the same text.
            stop: End before any of these strings.
            past_context: When prompt and continuation exceed the model's context: refuse, or slide, which drops the
                oldest half and reads the rest again.
            checkpoint: latest, best (by validation loss), or a step.
            json: One JSON object on standard output, nothing else there.
        """
        return locals()

    _sample(**parse(options, arguments, "lm sample"))


def _sample(run, sampler, prompt, max_tokens, samples, seed, stop, past_context, checkpoint, json) -> None:
    import time

    _prepare_jax()
    from lm.run import load
    from lm.sample.generate import generate

    m = load(run, checkpoint)
    stream = not json and len(prompt) * samples == 1
    if stream:
        print(prompt[0], end="", flush=True)
    start = time.perf_counter()
    made = generate(
        m, list(prompt), sampler, max_tokens=max_tokens, seed=seed, samples=samples, stop=stop,
        past_context=past_context, on_text=(lambda _, text: print(text, end="", flush=True)) if stream else None,
    )  # fmt: skip
    rate = sum(len(s.tokens) for s in made) / (time.perf_counter() - start)
    if json:
        keys = ("prompt", "text", "tokens", "logprobs")
        _print_json({"samples": [{k: getattr(s, k) for k in keys} for s in made], "tokens_per_second": rate})
    elif stream:
        print()
    else:
        for number, s in enumerate(made, 1):
            print(f"--- {number} of {len(made)} ---\n{s.prompt}{s.text}")


def eval_(arguments: list[str]) -> None:
    import tyro

    from lm.arguments import parse

    def options(
        run: Annotated[str, tyro.conf.Positional],
        text: Path | None = None,
        stride: int | None = None,
        checkpoint: str = "latest",
        json: bool = False,
    ):
        """Loss, perplexity and bits per byte of a text under a trained model, each token scored once.

        Args:
            run: A run's directory, or its name under runs/.
            text: A UTF-8 text file; without it, the run's whole validation split.
            stride: Tokens scored per window; smaller than the context gives each token more context. Default: context.
            checkpoint: latest, best (by validation loss), or a step.
            json: One JSON object on standard output, nothing else there.
        """
        return locals()

    o = parse(options, arguments, "lm eval")
    _prepare_jax()
    from lm.evaluate import evaluate, evaluate_validation, read_text
    from lm.run import load
    from lm.training.display import Display

    m = load(o["run"], o["checkpoint"])
    with Display() as display:
        report = lambda done, total: display.stage("scoring windows", done, total)  # noqa: E731
        if o["text"] is None:
            score = evaluate_validation(m, stride=o["stride"], report=report)
        else:
            score = evaluate(m, read_text(o["text"]), stride=o["stride"], report=report)
    result = {name: getattr(score, name) for name in ("loss", "perplexity", "bits_per_byte", "tokens", "bytes")}
    if o["json"]:
        _print_json(result)
    else:
        what = o["text"] or f"the validation split of {m.experiment.data.corpus}"
        print(f"{m.run.name} at step {m.step} on {what}: {score.tokens:,} tokens, {score.bytes:,} bytes")
        print(
            f"loss {score.loss:.4f} nats/token, perplexity {score.perplexity:.3f}, {score.bits_per_byte:.4f} bits/byte"
        )


def runs(arguments: list[str]) -> None:
    from lm.arguments import parse

    def options(folder: Path = Path("runs"), json: bool = False):
        """A table of the runs.

        Args:
            folder: Where to look.
            json: One JSON object on standard output, nothing else there.
        """
        return locals()

    o = parse(options, arguments, "lm runs")
    from lm.table import runs_table

    rows, table = runs_table(o["folder"])
    _print_json({"runs": rows}) if o["json"] else print(table, end="")


def plot(arguments: list[str]) -> None:
    import tyro

    from lm.arguments import parse

    def options(
        runs: Annotated[tuple[str, ...], tyro.conf.Positional],
        out: Path = Path("loss.png"),
        x: Literal["step", "tokens", "seconds"] = "step",
        bits_per_byte: bool = False,
        json: bool = False,
    ):
        """Loss curves of one or several runs.

        Args:
            runs: Directories, or names under runs/.
            out: Figure to write: .png, .svg or .pdf.
            x: What runs along the horizontal axis.
            bits_per_byte: Plot validation in bits per byte: comparable between tokenizers.
            json: One JSON object on standard output, nothing else there.
        """
        return locals()

    o = parse(options, arguments, "lm plot")
    from lm.plot import loss_curves
    from lm.run import Run

    if not o["runs"]:
        raise UserError("which runs? `lm runs` lists them")
    made = [Run(name) for name in o["runs"]]
    loss_curves(made, o["out"], x=o["x"], bits_per_byte=o["bits_per_byte"])
    _print_json({"figure": str(o["out"]), "runs": [r.name for r in made]}) if o["json"] else print(o["out"])


def data(arguments: list[str]) -> None:
    action, rest = _action("data", arguments, ("list", "prepare"))
    from lm import data_command

    data_command.run(action, rest, _print_json)


def tokenizer(arguments: list[str]) -> None:
    action, rest = _action("tokenizer", arguments, ("train", "show"))
    from lm import data_command

    data_command.run(f"tokenizer-{action}", rest, _print_json)


VERBS = {
    "train": train, "sample": sample, "eval": eval_, "runs": runs, "plot": plot, "data": data, "tokenizer": tokenizer,
}  # fmt: skip


# --- shared ----------------------------------------------------------------------------------------------------------
def _action(verb: str, arguments: list[str], actions: tuple[str, ...]) -> tuple[str, list[str]]:
    """The second word of a verb that has several actions."""
    usage = f"lm {verb} {' | '.join(actions)}; `lm {verb} ACTION --help` explains each"
    if arguments and arguments[0] in actions:
        return arguments[0], arguments[1:]
    if arguments and arguments[0] in ("-h", "--help"):
        print(usage)
        raise SystemExit(0)
    raise UserError(f"{' '.join(arguments[:1]) or 'no action'}{nearest(' '.join(arguments[:1]), actions)} ({usage})")


def _print_json(value: dict[str, Any]) -> None:
    print(json_module.dumps(value))


def _prepare_jax() -> None:
    """Keep compiled programs between processes; say nothing of what the user cannot change."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    from lm.data.corpora import cache_folder
    from lm.hardware import keep_compiled_programs

    keep_compiled_programs(cache_folder() / "programs")
    import logging

    import absl.logging

    absl.logging.set_verbosity(absl.logging.ERROR)  # orbax narrates every save
    logging.getLogger("jax").setLevel(logging.ERROR)


if __name__ == "__main__":
    sys.exit(main())
