"""lm sample RUN: continue a text."""

import dataclasses
import re
import time
from typing import Literal

from lm.arguments import parse
from lm.commands.common import Checkpoint, Json, RunName, prepare_jax, print_json
from lm.errors import require
from lm.sample.samplers import Sampler

DEFAULT_TOKENS = 200


@dataclasses.dataclass(frozen=True)
class Options:
    """Continue a text with a trained model."""

    run: RunName
    """A run's directory, or its name under runs/."""
    sampler: Sampler
    prompt: tuple[str, ...] = ("",)
    """Text to continue; several, or the option again, make a batch; none starts a new document; - is standard input,
    as it is. One that begins like an option: --prompt=--x."""
    max_tokens: int | None = None
    """Tokens to generate at most; by default 200, or fewer where the model's context has no room for so many."""
    samples: int = 1
    """Continuations of each prompt."""
    seed: int = 0
    """The same seed gives the same text."""
    stop: tuple[str, ...] = ()
    r"""End before any of these strings, in which \n, \t, \r, \\ and \uXXXX stand for what they do in JSON."""
    past_context: Literal["error", "slide"] = "error"
    """When prompt and continuation exceed the model's context: refuse, or slide: drop the oldest half, read on."""
    checkpoint: Checkpoint = "latest"
    json: Json = False


def run(arguments: list[str]) -> None:
    o = parse(Options, arguments, "lm sample")
    o = dataclasses.replace(o, prompt=_texts(o.prompt), stop=tuple(map(unescape, o.stop)))
    prepare_jax()
    from lm.run import load
    from lm.sample.generate import generate

    m = load(o.run, o.checkpoint)
    stream = not o.json and len(o.prompt) * o.samples == 1
    shown = iter(o.prompt)  # the prompt comes with the first piece of text: nothing is printed before a refusal
    start = time.perf_counter()
    samples = generate(
        m,
        list(o.prompt),
        o.sampler,
        max_tokens=_default_tokens(m, o) if o.max_tokens is None else o.max_tokens,
        seed=o.seed,
        samples=o.samples,
        stop=o.stop,
        past_context=o.past_context,
        on_text=(lambda _, text: print(next(shown, ""), text, sep="", end="", flush=True)) if stream else None,
    )
    seconds = time.perf_counter() - start
    if o.json:
        keys = ("prompt", "text", "tokens", "token_texts", "logprobs", "ended")
        rate = sum(len(s.tokens) for s in samples) / seconds
        print_json({"samples": [{k: getattr(s, k) for k in keys} for s in samples], "tokens_per_second": rate})
    elif stream:
        print(next(shown, ""))
    else:
        for number, s in enumerate(samples, 1):
            print(f"--- {number} of {len(samples)} ---\n{s.prompt}{s.text}")


def _texts(prompts: tuple[str, ...]) -> tuple[str, ...]:
    """The prompts, with standard input in the place of -."""
    from lm.data.readers import read_text
    from lm.tokenizer import well_formed

    require(prompts.count("-") <= 1, "--prompt -: standard input can be read once")
    return tuple(read_text("-") if prompt == "-" else well_formed(prompt) for prompt in prompts)


def unescape(text: str) -> str:
    r"""The text with \n, \t, \r, \\ and \uXXXX replaced by what they stand for; any other backslash stays."""
    plain = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\"}

    def meant(match: re.Match) -> str:
        return plain[match[1]] if match[1] else chr(int(match[2], 16))

    return re.sub(r"\\(?:([ntr\\])|u([0-9a-fA-F]{4}))", meant, text)


def _default_tokens(m, o: Options) -> int:
    """200, or what fits behind the longest prompt; a prompt that is itself too long is for `generate` to refuse."""
    from lm import tokenizer as tokenizers

    if o.past_context == "slide":
        return DEFAULT_TOKENS
    longest = max(len(tokenizers.encode(m.tokenizer, prompt)) for prompt in o.prompt)
    return max(1, min(DEFAULT_TOKENS, m.experiment.model.context - longest))
