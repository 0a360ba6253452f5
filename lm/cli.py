"""The `lm` command: finds the verb's module, runs it, and tells a user's mistake on one line."""

import gc
import importlib
import os
import sys

from lm import __version__, processes
from lm.errors import UserError, nearest, notices_wait, one_line, out_of_memory, require

USAGE = """lm: a laboratory for small language models

  lm train   CONFIG|runs/NAME [--model.layers 4 ...]   train or resume; --dry-run shows the cost and trains nothing
  lm sample  RUN --prompt TEXT               continue a text
  lm chat    RUN                             talk with a model that learnt from chats
  lm eval    RUN [--text FILE]               loss, perplexity, bits per byte
  lm probe   RUN analogy king man woman      what its words mean, what goes on inside (`lm probe` lists all)
  lm import  FOLDER|FILE --name NAME         a model that others trained: Hugging Face, GGUF (docs/exchange.md)
  lm export  RUN --to hf FOLDER | gguf FILE  ours, for transformers and llama.cpp
  lm merge   RUN --name NAME                 a run of adapters becomes one that stands alone
  lm harness RUN --tasks blimp ...           tasks of lm-evaluation-harness (--include-path FOLDER: of one's own)
  lm runs    [A B ...]                       a table of the runs; two or more compared
  lm plan    CONFIG --minutes 15 | --flops 1e13   the design of a scaling sweep, with predicted standard errors
  lm sweep   CONFIG [--grid KEY=A,B ...]     many runs: branches of trunks, packs, one points.csv
                                             --part 0/4 | --on slurm | --status: on a cluster (docs/clusters.md)
  lm plot    RUN... | POINTS.csv [--out ...] loss curves; scaling figures of a table
  lm bench   train CONFIG | decode RUN       speed, what limits it, and peers where installed
  lm data    list | prepare | kingdom        corpora and token files
  lm tokenizer train | show                  encodings
  lm fit     POINTS.csv --law LAW            scaling laws with intervals

CONFIG is a name in configs/ or a path to a .py file; RUN a directory or its name under runs/.
`lm VERB --help` explains every option; every verb takes --json. Start with: lm train quickstart

Exit status: 0 done; 1 some runs of a sweep failed, or nobody reads the output; 2 wrong input, told on one line;
75 a run was stopped and saved, and the same command goes on with it; 130 interrupted with nothing to save.
"""
VERBS = {
    "train": "train", "sample": "sample", "chat": "chat", "eval": "evaluate", "runs": "runs", "plot": "plot",
    "data": "data", "tokenizer": "tokenizer", "bench": "bench", "plan": "plan", "sweep": "sweep", "fit": "fit",
    "probe": "probe", "harness": "harness", "import": "importing", "export": "exporting",
    "merge": "merge",
}  # fmt: skip
"""Each verb's module in lm.commands, imported only when it is used: `lm --help` should not wait for JAX."""


def main(arguments: list[str] | None = None) -> int:
    """Entry point. Returns the exit status that USAGE explains; a mistake is told on one line of standard error."""
    _complete_streams()
    arguments = sys.argv[1:] if arguments is None else arguments
    said = None
    try:
        with notices_wait():
            status = _run(arguments)
            sys.stdout.flush()
    except BrokenPipeError:  # whoever read our output has gone: `lm runs | head`
        status = 1
    except KeyboardInterrupt:
        said, status = "interrupted", 130
    except (UserError, OSError, MemoryError, RuntimeError) as error:
        if (told := _told(error)) is None:
            raise
        said, status = one_line(told, arguments), 2
    if said is not None and processes.speaks(said):
        print(f"lm: {said}", file=sys.stderr)
    _drop_unwritten()
    if said is not None:
        processes.leave(status, said)
    return status


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    if arguments[0] == "--version":
        print(f"lm {__version__}")
        return 0
    for argument in arguments:
        is_text = "\0" not in argument and argument.encode(errors="replace").decode() == argument
        require(is_text, f"{argument}: not UTF-8 text")
    verb, *rest = arguments
    require(verb in VERBS, f"{verb}: no such verb{nearest(verb, VERBS)} (`lm --help` lists them)")
    os.environ["JAX_ENABLE_X64"] = "0"  # parameters and losses are float32, whatever other programs want
    gc.set_threshold(10_000, 10, 10)  # libraries and programs are 200,000 objects that stay: seldom look through them
    return importlib.import_module(f"lm.commands.{VERBS[verb]}").run(rest) or 0


def _told(error: Exception) -> str | None:
    """An error's message, with the file that an error of the operating system names; None for a defect."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError):
        said = error.strerror or str(error)
        return f"{error.filename}: {said}" if error.filename else said
    return out_of_memory(error)  # NumPy's and XLA's, of which the latter needs no import of JAX


def _complete_streams() -> None:
    """Open closed standard streams to nowhere, before another file gets their number.

    Standard output escapes what its encoding cannot spell.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
            setattr(sys, name, os.fdopen(number, "w" if number else "r", closefd=False))
    if hasattr(sys.stdout, "reconfigure"):  # not what a notebook or a test puts there
        sys.stdout.reconfigure(errors="backslashreplace")


def _drop_unwritten() -> None:
    """Forget what standard output could not take, or Python would fail on it once more at its end."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
