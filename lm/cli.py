"""The `lm` command: finds the verb's module, runs it, and tells a user's mistake on one line."""

import importlib
import os
import sys

from lm.errors import UserError, nearest, out_of_memory

USAGE = """lm: a laboratory for small language models

  lm train   CONFIG [--model.layers 4 ...]   train or resume; --dry-run shows the cost and trains nothing
  lm sample  RUN --prompt TEXT               continue a text
  lm eval    RUN [--text FILE]               loss, perplexity, bits per byte
  lm probe   RUN analogy king man woman      what its words mean, what goes on inside (`lm probe` lists all)
  lm runs    [A B ...]                       a table of the runs; two or more compared
  lm plan    CONFIG --minutes 15 | --flops 1e13   the design of a scaling sweep, with predicted standard errors
  lm sweep   CONFIG [--grid KEY=A,B ...]     many runs: branches of trunks, packs, one points.csv
  lm plot    RUN... | POINTS.csv [--out ...] loss curves; scaling figures of a table
  lm bench   train CONFIG | decode RUN       speed, what limits it, and peers where installed
  lm data    list | prepare | kingdom        corpora and token files
  lm tokenizer train | show                  encodings
  lm fit     POINTS.csv --law LAW            scaling laws with intervals

CONFIG is a name in configs/ or a path to a .py file; RUN a directory or its name under runs/.
`lm VERB --help` explains every option; every verb takes --json. Start with: lm train quickstart
"""
VERBS = {
    "train": "train", "sample": "sample", "eval": "evaluate", "runs": "runs", "plot": "plot", "data": "data",
    "tokenizer": "tokenizer", "bench": "bench", "plan": "plan", "sweep": "sweep", "fit": "fit",
    "probe": "probe",
}  # fmt: skip
"""Each verb's module in lm.commands, imported only when it is used: `lm --help` should not wait for JAX."""


def main(arguments: list[str] | None = None) -> int:
    """Entry point. Exit status 0, or 2 with one line on standard error when the input was wrong."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    verb, *rest = arguments
    try:
        if verb not in VERBS:
            raise UserError(f"{verb}: no such verb{nearest(verb, VERBS)} (`lm --help` lists them)")
        importlib.import_module(f"lm.commands.{VERBS[verb]}").run(rest)
        sys.stdout.flush()
    except UserError as error:
        print(f"lm: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:  # NumPy's and XLA's, of which the latter needs no import of JAX
        if (said := out_of_memory(error)) is None:
            raise
        print(f"lm: {said}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("lm: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read our output has gone: `lm runs | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:  # the disk, the network: nothing that a traceback would help with
        print(f"lm: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
