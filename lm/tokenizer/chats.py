"""Chats as tokens: a Jinja template writes the messages, in a sandbox, as `transformers` does it.

What a template writes is cut where the assistant begins and ends to speak, and each piece becomes tokens by itself. So
an answer that is learnt is read, and written, in the same tokens when the model is asked.
"""

import dataclasses
import datetime
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lm.errors import UserError, require
from lm.tokenizer.encoding import encode_marked
from lm.tokenizer.simple import END_OF_TEXT, Tokenizer

Message = Mapping[str, Any]
"""An object with a role (system, user, assistant) and a content."""
PLAIN = """\
{{ eos_token }}{% for message in messages %}{{ message.role }}:
{{ message.content }}{{ eos_token if message.role == 'assistant' else '\n' }}{% endfor %}
{% if add_generation_prompt %}assistant:
{% endif %}"""
"""For a tokenizer that comes with no template: behind an end of text, each message below its role; an answer ends in an
end of text."""


@dataclasses.dataclass(frozen=True)
class ChatFormat:
    """How chats are written for a model: a template, and the tokenizer whose special tokens it spells.

    Raises UserError, when it is first used, for a template by which nothing could be learnt: one that does not take
    messages, sets nothing between question and answer, or nothing behind the answer.
    """

    tokenizer: Tokenizer
    template: str

    def asked(self, messages: Sequence[Message]) -> list[int]:
        """The tokens of a chat up to where the assistant's next words begin.

        Raises UserError where the template refuses the messages.
        """
        try:
            pieces = self._pieces(messages, answered=False)
        except _Rewritten:  # such a chat cannot be learnt, but it can be gone on with
            pieces = [(self._render(messages, generation=True), False)]
        return [token for number, (text, _) in enumerate(pieces) for token in self._encode(text, number)]

    def learnt(self, messages: Sequence[Message]) -> tuple[list[int], list[bool]]:
        """The tokens of a chat that ends in an answer, and which of them are the assistant's: its words, and the tokens
        that end them.

        Raises UserError where the template refuses the messages, for a chat in which the last word is not the
        assistant's, and for a template that writes an answer otherwise once more is said.
        """
        self.closing  # noqa: B018  (checks the template)
        last = messages[-1].get("role") if messages else "nobody"
        require(last == "assistant", f"the last word is the {last}'s, not the assistant's: nothing answers it")
        tokens, own = [], []
        for number, (text, learnt) in enumerate(self._pieces(messages, answered=True)):
            new = self._encode(text, number)
            tokens += new
            own += [learnt] * len(new)
        return tokens, own

    @functools.cached_property
    def closing(self) -> str:
        """What stands behind an answer."""
        question, answer = "Question?", "Answer."
        (opened, _), (said, _) = self._pieces([_user(question), _assistant(answer)], answered=True)
        between, _, behind = opened.partition(question)[2], *said.partition(answer)[1:]
        told = "its chat template has no tags"
        require(question in opened and answer in said, f"{told}: it does not write what is said")
        require(bool(between.strip()), f"{told}: nothing stands between a question and its answer")
        require(bool(behind.strip()), f"{told}: nothing ends an answer; write {{{{ eos_token }}}} behind it")
        return behind

    @functools.cached_property
    def ends(self) -> tuple[int, ...]:
        """The special token that ends an answer; none where words do."""
        first = self._encode(self.closing.lstrip(), 1)[0]
        special = first == self.tokenizer.eot_token or first in getattr(self.tokenizer, "control", ())
        return (first,) if special else ()

    @property
    def stop(self) -> tuple[str, ...]:
        """The words that end an answer, where no special token does."""
        return () if self.ends else (self.closing,)

    def said(self, tokens: Sequence[int]) -> str:
        """The text of an answer, of the tokens that were learnt of it: up to what ends it."""
        tokens = list(tokens)
        text = self.tokenizer.decode(tokens[: next((i for i, token in enumerate(tokens) if token in self.ends), None)])
        return text.removesuffix(self.closing)

    def _pieces(self, messages: Sequence[Message], *, answered: bool) -> list[tuple[str, bool]]:
        """The text of a chat, cut where the assistant begins and ends to speak, and whether a piece is its own.

        answered: it ends in an answer, instead of where one begins.
        """
        pieces, done = [], ""
        for number, message in enumerate(messages):
            if message.get("role") != "assistant":
                continue
            asked = self._render(messages[:number], generation=True)
            whole = self._render(messages[: number + 1], generation=False)
            if not (asked.startswith(done) and whole.startswith(asked)):
                raise _Rewritten(f"its chat template writes message {number + 1} otherwise once more is said")
            pieces += [(asked[len(done) :], False), (whole[len(asked) :], True)]
            done = whole
        if not answered:
            asked = self._render(messages, generation=True)
            if not asked.startswith(done):
                raise _Rewritten("its chat template writes what was said otherwise once more is said")
            pieces.append((asked[len(done) :], False))
        return pieces

    def _render(self, messages: Sequence[Message], *, generation: bool) -> str:
        return render(self.template, messages, self._special, generation=generation)

    @property
    def _special(self) -> Mapping[str, str]:
        own = {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT}
        return getattr(self.tokenizer, "special", own)

    def _encode(self, text: str, number: int) -> list[int]:
        """The tokens of a piece, by its number in the chat."""
        return encode_marked(self.tokenizer, text, within=number > 0)


class _Rewritten(UserError):
    """A chat's text does not begin as that of its first messages does."""


def _user(text: str) -> Message:
    return {"role": "user", "content": text}


def _assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


def chat_format(tokenizer: Tokenizer, template: str | None = None) -> ChatFormat:
    """How chats are written: by the template, else by the one that came with the tokenizer, else by PLAIN."""
    return ChatFormat(tokenizer, template or getattr(tokenizer, "chat_template", None) or PLAIN)


def read_template(setting: str) -> str:
    """The text that data.template asks for: "plain", a file's path, or the text of a template itself.

    Raises UserError where there is no such file.
    """
    if setting == "plain":
        return PLAIN
    if "{{" in setting or "{%" in setting:
        return setting
    try:
        return Path(setting).expanduser().read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        said = getattr(error, "strerror", None) or "not UTF-8"
        raise UserError(f"data.template {setting}: cannot read it ({said}); plain, or a file of Jinja") from error


def render(
    template: str, messages: Sequence[Mapping[str, Any]], special: Mapping[str, str], *, generation: bool = True
) -> str:
    """The text of a chat.

    messages: objects with a role (system, user, assistant) and a content. special: texts of special tokens by name.
    generation: ends where the assistant's next words begin. Raises UserError where the template refuses.
    """
    import jinja2  # which the command's help should not wait for

    try:
        return _compiled(template).render(
            messages=messages, tools=None, documents=None, add_generation_prompt=generation, **dict(special)
        )
    except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError, RecursionError) as error:
        raise UserError(f"its chat template does not take these messages ({str(error)[:150]})") from error


@functools.lru_cache(maxsize=8)
def _compiled(template: str):
    return _environment().from_string(template)


@functools.cache
def _environment():
    """Jinja without access to anything but what it is handed, and with what templates expect of `transformers`."""
    import jinja2.ext
    import jinja2.sandbox

    class Generation(jinja2.ext.Extension):
        """{% generation %} marks the assistant's words for training; here they are words as any."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser):
            line = next(parser.stream).lineno
            body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
            return jinja2.nodes.Scope(body, lineno=line)

    def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def raise_exception(message):
        raise jinja2.TemplateError(message)

    def strftime_now(form):
        return datetime.datetime.now().strftime(form)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = tojson
    environment.globals |= {"raise_exception": raise_exception, "strftime_now": strftime_now}
    return environment
