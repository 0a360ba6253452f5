"""lm sample RUN: continue a text, by drawing tokens or by a search for the likeliest."""

import dataclasses
import re
import time
from typing import Annotated, Literal

import tyro

from lm.arguments import parse
from lm.commands.common import Checkpoint, Json, RunName, prepare_jax, print_json
from lm.config import ONE_DEVICE, ParallelConfig
from lm.errors import require
from lm.limits import Count, Range
from lm.sample.samplers import Sampler

DEFAULT_TOKENS = 200
KEYS = ("prompt", "text", "tokens", "token_texts", "logprobs", "ended")


@dataclasses.dataclass(frozen=True)
class Options:
    """Continue a text with a trained model."""

    run: RunName
    """A run's directory, or its name under runs/."""
    sampler: Annotated[Sampler, tyro.conf.arg(name="")]
    prompt: tuple[str, ...] = ("",)
    """Text to continue; several, or the option again, make a batch; none starts a new document; - is standard input,
    as it is. One that begins like an option: --prompt=--x."""
    source: tuple[str, ...] = ()
    """Text to answer, by a model that was trained on examples: to translate, to name the class of; several make a
    batch."""
    chat: bool = False
    """Have a model answer that was trained on chats, or came with a template for them: a prompt is what a user says."""
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
    beam: Count | None = None
    """Draw nothing: search for the likeliest continuations, keeping this many at every token; 1 is greedy. The best of
    each prompt is shown, and --json lists all that were kept, best first."""
    length_penalty: Annotated[float | None, Range(least=0, most=5)] = None
    """With --beam, the exponent by which long continuations are favoured (Wu et al. 2016): 0 not at all; 0.6."""
    checkpoint: Checkpoint = "latest"
    engine: Literal["lm", "llama.cpp"] = "lm"
    """What computes the model: llama.cpp reads a GGUF file, which RUN may name; of a run one is written, once."""
    parallel: tyro.conf.FlagConversionOff[ParallelConfig] = ONE_DEVICE
    """Devices that the model is spread over, one by default: for a model larger than one of them."""
    json: Json = False

    def __post_init__(self):
        if self.engine == "llama.cpp":
            alone = self.beam is None and self.parallel == ONE_DEVICE
            require(alone, "--engine llama.cpp: leave out --beam and --parallel, which are this program's own")
        plain = not self.source and self.beam is None
        require(plain or not self.chat, "--chat: leave out --source and --beam")
        if self.beam is None:
            require(self.length_penalty is None, "--length-penalty is of a search: give --beam as well")
            return
        plain = self.sampler == Sampler() and self.samples == 1 and not self.stop and self.past_context == "error"
        drawing = "--temperature, --top-k, --top-p, --min-p, --repetition-penalty, --samples, --stop and --past-context"
        require(plain, f"--beam draws nothing: leave out {drawing}")


def run(arguments: list[str]) -> None:
    o = parse(Options, arguments, "lm sample")
    prompts = o.prompt * len(o.source) if o.source and len(o.prompt) == 1 else o.prompt
    o = dataclasses.replace(
        o, prompt=_texts(prompts, "prompt"), source=_texts(o.source, "source"), stop=tuple(map(unescape, o.stop))
    )
    prepare_jax()
    from lm.sample.generate import generate

    m = _generator(o)
    if o.beam is not None:
        return _search(m.trained, o)
    prompts, more = list(o.prompt), {"stop": o.stop}
    if o.chat:
        from lm.sample.chats import format_of

        written = format_of(m.trained)
        prompts = [written.asked([{"role": "user", "content": text}]) for text in o.prompt]
        more = {"stop": (*o.stop, *written.stop), "ends": written.ends}
    stream = not o.json and len(o.prompt) * o.samples == 1
    # The prompt comes with the first piece of text: nothing is printed before a refusal.
    shown = iter(() if o.chat else o.prompt)
    start = time.perf_counter()
    samples = generate(
        m,
        prompts,
        o.sampler,
        sources=list(o.source) or None,
        max_tokens=_default_tokens(m.trained, o, prompts) if o.max_tokens is None else o.max_tokens,
        seed=o.seed,
        samples=o.samples,
        **more,
        past_context=o.past_context,
        on_text=(lambda _, text: print(next(shown, ""), text, sep="", end="", flush=True)) if stream else None,
    )
    seconds = time.perf_counter() - start
    if o.json:
        _print_json(samples, KEYS, seconds)
    elif stream:
        print(next(shown, ""))
    else:
        _print(samples)


def _generator(o: Options):
    """The model, ready to generate."""
    if o.engine == "llama.cpp":
        from lm.exchange.engine import generator

        return generator(o.run, o.checkpoint)
    from lm.run import load
    from lm.sample.generate import Generator

    file = o.run.endswith(".gguf")
    require(not file, f"{o.run}: --engine llama.cpp samples from the file; lm import {o.run} --name NAME makes a run")
    return Generator(load(o.run, o.checkpoint, parallel=o.parallel))


def _search(m, o: Options) -> None:
    from lm.sample.beam import WU, beam_search

    start = time.perf_counter()
    found = beam_search(
        m,
        list(o.prompt),
        sources=list(o.source) or None,
        beam=o.beam,
        length_penalty=WU if o.length_penalty is None else o.length_penalty,
        max_tokens=_default_tokens(m, o, list(o.prompt)) if o.max_tokens is None else o.max_tokens,
    )
    if o.json:
        seconds = time.perf_counter() - start
        _print_json([h for hypotheses in found for h in hypotheses], (*KEYS, "logprob", "score"), seconds)
    elif len(found) == 1:
        print(found[0][0].prompt + found[0][0].text)
    else:
        _print([hypotheses[0] for hypotheses in found])


def _print(samples: list) -> None:
    for number, s in enumerate(samples, 1):
        print(f"--- {number} of {len(samples)} ---\n{s.prompt}{s.text}")


def _print_json(samples: list, keys: tuple[str, ...], seconds: float) -> None:
    rate = sum(len(s.tokens) for s in samples) / seconds
    print_json({"samples": [{key: getattr(s, key) for key in keys} for s in samples], "tokens_per_second": rate})


def _texts(texts: tuple[str, ...], option: str) -> tuple[str, ...]:
    """The texts of an option, with standard input in the place of -."""
    from lm.data.readers import read_text
    from lm.tokenizer import well_formed

    require(texts.count("-") <= 1, f"--{option} -: standard input can be read once")
    return tuple(read_text("-") if text == "-" else well_formed(text) for text in texts)


def unescape(text: str) -> str:
    r"""The text with \n, \t, \r, \\ and \uXXXX replaced by what they stand for; any other backslash stays."""
    plain = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\"}

    def meant(match: re.Match) -> str:
        return plain[match[1]] if match[1] else chr(int(match[2], 16))

    return re.sub(r"\\(?:([ntr\\])|u([0-9a-fA-F]{4}))", meant, text)


def _default_tokens(m, o: Options, prompts: list[str | list[int]]) -> int:
    """200, or what fits behind the longest prompt; a prompt that is itself too long is for `generate` to refuse."""
    from lm.sample.prompts import readings

    if o.past_context == "slide":
        return DEFAULT_TOKENS
    longest = max(reading.held for reading in readings(m, prompts, list(o.source) or None))
    return max(1, min(DEFAULT_TOKENS, m.experiment.model.context - longest))
