"""What small acts wait for: the modules they import, and the programs they compile."""

import shutil
import subprocess
import sys

from lm.cli import VERBS

HEAVY = {"jax", "flax", "optax", "orbax", "numpy", "scipy", "sklearn", "matplotlib", "tiktoken", "torch"}
IMPORTS = f"""
import sys
from contextlib import suppress
from lm.cli import main
for verb in {sorted(VERBS)}:
    with suppress(SystemExit):
        main([verb, "--help"])
    print(verb, *{HEAVY} & set(sys.modules), file=sys.stderr)
main(["runs"])
print("runs", *{HEAVY} & set(sys.modules), file=sys.stderr)
"""
PROGRAMS = """
import sys
import jax
from lm.cli import main
programs, missed = [], []
def note(event, seconds, fun_name="", **_):
    if event == "/jax/core/compile/backend_compile_duration":
        programs.append(fun_name)
jax.monitoring.register_event_duration_secs_listener(note)
jax.monitoring.register_event_listener(lambda event, **_: missed.append(event) if event.endswith("_misses") else None)
main(sys.argv[1:])
print(*programs, len(missed), file=sys.stderr)
"""


def last_lines(code: str, *arguments: str) -> list[str]:
    """What a process of its own says on standard error."""
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stderr.splitlines()


def test_help_and_a_table_of_runs_wait_for_no_library(workplace, tiny_run):
    """NumPy is read for the table alone, with the tokenizers."""
    shutil.copytree(tiny_run.path, workplace / "runs" / "tiny")
    assert last_lines(IMPORTS) == [*sorted(VERBS), "runs numpy"]


def test_a_second_sample_compiles_nothing(lm, tiny_run):
    """Of three programs each is read from the cache, once, though the text comes in three pieces."""
    arguments = ("sample", str(tiny_run.path), "--prompt", "the", "--max-tokens", "12")
    assert lm(*arguments)[0] == 0
    assert last_lines(PROGRAMS, *arguments) == ["jit(_lay_out) jit(prefill) jit(decode) 0"]
