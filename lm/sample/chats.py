"""Chats with a trained model: messages in, the assistant's next words out, by the template that it was trained with."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from lm.errors import UserError, require
from lm.files import whole
from lm.model.trained import Trained
from lm.sample.generate import Generator, Sample, generate
from lm.sample.samplers import Sampler
from lm.tokenizer import ChatFormat, chat_format
from lm.tokenizer.chats import Message


def format_of(m: Trained) -> ChatFormat:
    """How chats with a model are written. Raises UserError for one that was made for none."""
    template = m.experiment.data.template or getattr(m.tokenizer, "chat_template", None)
    made = "its examples were no chats, and it came with no template: train one with --data.examples CHATS.jsonl"
    require(template is not None, f"{m.run.path if m.run else 'this model'} does not chat: {made}")
    return chat_format(m.tokenizer, template)


def reply(
    m: Trained | Generator,
    chats: Sequence[Sequence[Message]],
    sampler: Sampler = Sampler(),  # noqa: B008  (frozen)
    *,
    max_tokens: int | None = None,
    seed: int = 0,
    samples: int = 1,
    stop: Sequence[str] = (),
    on_text: Callable[[int, str], None] | None = None,
) -> list[Sample]:
    """What the assistant says next in each chat, without the tokens that end an answer.

    max_tokens: at most; None: as many as the context has room for. Otherwise as `generate`. Raises UserError for a
    model made for no chats, messages that its template refuses, and a chat that fills the context.
    """
    generator = m if isinstance(m, Generator) else Generator(m)
    m = generator.trained
    written = format_of(m)
    asked = [written.asked(chat) for chat in chats]
    if max_tokens is None:
        context, longest = m.model.config.context, max(map(len, asked), default=0)
        require(longest <= context, f"the chat is {longest:,} tokens by now, the model's context {context:,}: be brief")
        max_tokens = context - longest + 1
    return generate(
        generator, asked, sampler, max_tokens=max_tokens, seed=seed, samples=samples, stop=(*stop, *written.stop),
        ends=written.ends, on_text=on_text,
    )  # fmt: skip


SPARE = 32
"""Tokens of the context that an answer shall have room for; for that, the oldest of a conversation is forgotten."""


@dataclasses.dataclass
class Conversation:
    """What a user and a model have said so far. Everything random is a function of the seed and of how many answers
    there were.

    messages: those said, the system's first where there is one. forgotten: how many of them the model no longer reads,
    because its context is full.
    """

    generator: Generator
    sampler: Sampler
    system: str | None = None
    seed: int = 0
    max_tokens: int | None = None
    messages: list[Message] = dataclasses.field(default_factory=list)
    forgotten: int = 0

    def say(self, text: str, on_text: Callable[[str], None] = lambda _: None) -> str:
        """Say something; returns the answer. on_text: called with each piece of it.

        Interrupted (KeyboardInterrupt), the answer is what there was of it. Raises UserError, having kept nothing of
        it, for what does not fit the context.
        """
        said: list[str] = []

        def show(_, piece: str) -> None:
            said.append(piece)
            on_text(piece)

        self.messages.append({"role": "user", "content": text})
        try:
            chat = self._read()
            answers = sum(message["role"] == "assistant" for message in self.messages)
            [made] = reply(
                self.generator,
                [chat],
                self.sampler,
                max_tokens=self._room(chat),
                seed=self.seed + answers,
                on_text=show,
            )
            answer = made.text
        except KeyboardInterrupt:
            answer = "".join(said)
        except UserError:
            self.messages.pop()
            raise
        self.messages.append({"role": "assistant", "content": answer})
        return answer

    def save(self, path: str | Path) -> None:
        """Write the conversation as a file of examples with one chat, from which a model can learn."""
        with whole(path) as file:
            file.write(json.dumps({"messages": [*self._instructions(), *self.messages]}, ensure_ascii=False) + "\n")

    def _instructions(self) -> list[Message]:
        return [] if self.system is None else [{"role": "system", "content": self.system}]

    def _read(self) -> list[Message]:
        """What of it the model reads: the latest, from a user's message on, that leaves room for an answer."""
        written, context = format_of(self.generator.trained), self.generator.trained.model.config.context
        begins = [i for i, message in enumerate(self.messages) if message["role"] == "user"]
        for begin in begins:
            chat = [*self._instructions(), *self.messages[begin:]]
            tokens = len(written.asked(chat))
            if tokens + SPARE <= context:
                self.forgotten = begin
                return chat
        require(tokens <= context, f"that is {tokens:,} tokens, the model's context {context:,}: say less")
        self.forgotten = begins[-1]
        return chat

    def _room(self, chat: list[Message]) -> int:
        """Tokens that an answer may have."""
        trained = self.generator.trained
        room = trained.model.config.context - len(format_of(trained).asked(chat)) + 1
        return room if self.max_tokens is None else min(room, self.max_tokens)
