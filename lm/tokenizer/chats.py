"""Chats as text, by the Jinja template that came with a model: rendered in a sandbox, as `transformers` does it."""

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any

from lm.errors import UserError


def render(
    template: str, messages: Sequence[Mapping[str, Any]], special: Mapping[str, str], *, generation: bool = True
) -> str:
    """The text of a chat.

    messages: objects with a role (system, user, assistant) and a content. special: texts of special tokens by name.
    generation: ends where the assistant's next words begin. Raises UserError where the template refuses.
    """
    try:
        import jinja2
    except ImportError as error:
        raise UserError("chats need the package jinja2: pip install 'lm-lab[exchange]'") from error

    try:
        made = _environment().from_string(template)
        return made.render(
            messages=messages, tools=None, documents=None, add_generation_prompt=generation, **dict(special)
        )
    except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError, RecursionError) as error:
        raise UserError(f"its chat template does not take these messages ({str(error)[:150]})") from error


def _environment():
    """Jinja without access to anything but what it is handed, and with what templates expect of `transformers`."""
    import jinja2
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
