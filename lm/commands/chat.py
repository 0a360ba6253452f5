"""lm chat RUN: talk with a model that was trained on chats, or came with a template for them."""

import contextlib
import dataclasses
import sys
from collections.abc import Callable
from typing import Annotated

import tyro

from lm.arguments import parse
from lm.commands.common import Checkpoint, Json, RunName, prepare_jax, print_json
from lm.errors import UserError, nearest, require
from lm.limits import Count
from lm.sample.samplers import Sampler

HELP = """/temperature 0.8   how varied the answers are; 0 always says the likeliest
/system TEXT       what the model is told before the conversation, which begins anew; without TEXT, nothing
/new               begin anew
/save FILE.jsonl   write the conversation, as an example to learn from
/quit              leave, as Ctrl-D does; Ctrl-C stops an answer
"""


@dataclasses.dataclass(frozen=True)
class Options:
    """Talk with a model in the terminal. Lines that begin with / are commands: /help lists them."""

    run: RunName
    """A run's directory, or its name under runs/."""
    sampler: Annotated[Sampler, tyro.conf.arg(name="")]
    system: str | None = None
    """What the model is told before the conversation."""
    max_tokens: Count | None = None
    """Tokens of an answer at most; None: as many as the context has room for."""
    seed: int = 0
    """The same seed gives the same answers."""
    checkpoint: Checkpoint = "latest"
    json: Json = False


def run(arguments: list[str]) -> None:
    o = parse(Options, arguments, "lm chat")
    prepare_jax()
    from lm.run import load
    from lm.sample.chats import Conversation, format_of
    from lm.sample.generate import Generator

    m = load(o.run, o.checkpoint)
    format_of(m).closing  # noqa: B018  (refused now, or not at all)
    talk = Conversation(Generator(m), o.sampler, o.system, o.seed, o.max_tokens)
    show = (lambda piece: None) if o.json else (lambda piece: print(piece, end="", flush=True))
    if sys.stdin.isatty():
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  (lines that are typed can be edited, and come back by the arrow keys)
        print(f"{m!r}; /help lists commands, Ctrl-D leaves", file=sys.stderr)
    for line in lines():
        try:
            if line.startswith("/"):
                if line.split()[0] == "/quit":
                    break
                command(talk, line)
                continue
            before = talk.forgotten
            talk.say(line, show)
            show("\n")
            if talk.forgotten > before:
                print("(the model's context is full: it no longer reads the oldest messages)", file=sys.stderr)
        except UserError as error:
            if not sys.stdin.isatty():
                raise
            print(error, file=sys.stderr)
    if o.json:
        print_json({"run": m.run.name, "system": talk.system, "messages": talk.messages})


def lines():
    """What is typed, line by line, blank ones left out, until the input ends; Ctrl-C forgets the line."""
    prompt = "> " if sys.stdin.isatty() else ""
    while True:
        try:
            line = input(prompt).strip()
        except EOFError:
            if prompt:
                print()
            return
        except KeyboardInterrupt:
            if not prompt:
                raise
            print()
            continue
        if line:
            yield line


def command(talk, line: str) -> None:
    """Do what a line that begins with / asks for. Raises UserError for what is no command."""
    word, _, rest = line.partition(" ")
    require(word in COMMANDS, f"{word}: no such command{nearest(word, COMMANDS)}; /help lists them")
    COMMANDS[word](talk, rest.strip())


def _temperature(talk, rest: str) -> None:
    try:
        value = float(rest)
    except ValueError as error:
        raise UserError(f"/temperature {rest}: expected a number, such as 0.8") from error
    talk.sampler = dataclasses.replace(talk.sampler, temperature=value)


def _system(talk, rest: str) -> None:
    talk.system = rest or None
    _new(talk, "")


def _new(talk, _: str) -> None:
    talk.messages, talk.forgotten = [], 0


def _save(talk, rest: str) -> None:
    require(bool(rest), "/save: to which file? /save chat.jsonl")
    talk.save(rest)
    print(f"{len(talk.messages)} messages in {rest}", file=sys.stderr)


def _help(_, __: str) -> None:
    print(HELP, end="", file=sys.stderr)


COMMANDS: dict[str, Callable] = {
    "/temperature": _temperature, "/system": _system, "/new": _new, "/save": _save, "/help": _help,
}  # fmt: skip
