"""How fast generation goes: `lm.generate` itself, greedy, on random weights, beside the machine's limits and peers."""

import functools
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from lm.bench import machine
from lm.bench.peers import decoding_peers, gather
from lm.bench.profile import make_folder
from lm.bench.profile import profile as profiled
from lm.bench.results import DecodeBench, describe, peers_of
from lm.bench.rounds import Contestant, check_turns, compare
from lm.bench.training import with_random_vocabulary
from lm.config import Experiment, ModelConfig
from lm.errors import require
from lm.model.api import LanguageModel, build
from lm.model.trained import Trained
from lm.sample.generate import Generator, generate
from lm.sample.samplers import Sampler
from lm.training.display import Display

TOKENS, PROMPT_TOKENS = 256, 16
PEERS = "; peers are GPT-2s of the same shape"
"""Said where there are any."""


def decode(
    subject: Experiment | Trained,
    *,
    batch: int = 1,
    tokens: int | None = None,
    prompt_tokens: int = PROMPT_TOKENS,
    rounds: int = 5,
    seconds: float = 2.0,
    peers: bool = True,
    profile: Path | None = None,
    display: Display | None = None,
) -> DecodeBench:
    """Time generations of `tokens` tokens for each of `batch` rows, and in the same rounds what limits them.

    subject: an experiment, for random weights, or what `lm.load` returns. tokens: by default 256, or what the context
    holds. peers: also time transformers and llama.cpp, where installed, decoding a GPT-2 of the same shape.
    The rest as in `train`.
    """
    e = with_random_vocabulary(subject if isinstance(subject, Experiment) else subject.experiment)
    c, model = e.model, build(e.model)
    tokens = _checked(c.context, batch, tokens, prompt_tokens)
    params = model.init(e.train.seed) if isinstance(subject, Experiment) else subject.params
    check_turns(rounds, seconds)
    if profile:
        make_folder(profile)
    with display or Display(quiet=True) as display:
        display.stage("compiling", 0, None)
        ours = Generation(Trained(params, AnyText(c.vocab, prompt_tokens), e, step=0), batch, tokens)
        read = bytes_per_step(model, batch, tokens, prompt_tokens)
        limits, copying = machine.matmul_limits(str(model.dtype)), machine.copy_limit()
        reading = machine.read_limits(read)
        prompt = AnyText(c.vocab, prompt_tokens).encode_ordinary("")
        entries = decoding_peers(c, batch, tokens, prompt) if peers and isinstance(c, ModelConfig) else []
        others, absent = gather(entries, display)
        contestants = [Contestant("lm", ours.run), *others, *(x.contestant for x in (*limits, *reading, copying))]
        report = functools.partial(display.stage, "timing")
        timings = compare(contestants, seconds, rounds, report=report)
        operations = profiled(lambda: ours.run(timings[0].units), profile) if profile else []
    rates, bandwidth = timings[0].seconds.per(batch * tokens), machine.fastest(reading, timings)
    said = PEERS if others else ""
    return DecodeBench(
        what=f"decoding, {describe(c, f'batch {batch}, {tokens} tokens after {prompt_tokens}')}{said}",
        tokens_per_second=rates.median, quartiles=(rates.low, rates.high), rounds=rounds,
        batch=batch, tokens=tokens, prompt_tokens=prompt_tokens, compile_seconds=ours.compile_seconds,
        flops_per_second=rates.median * flops_per_token(model, tokens, prompt_tokens),
        peak_flops_per_second=machine.fastest(limits, timings),
        bytes_per_step=read, bytes_per_second=rates.median / batch * read, read_bytes_per_second=bandwidth,
        utilization=rates.median / batch * read / bandwidth,
        copied_bytes_per_second=machine.fastest([copying], timings),
        peers=peers_of([one.name for one in others], timings, batch * tokens), absent=absent, operations=operations,
    )  # fmt: skip


class Generation:
    """Calls of lm.generate; a unit of work is batch x tokens tokens."""

    def __init__(self, m: Trained, batch: int, tokens: int):
        self.generator, self.batch, self.tokens = Generator(m), batch, tokens
        start = time.perf_counter()
        self.run(1)
        first = time.perf_counter() - start
        start = time.perf_counter()
        self.run(1)
        self.compile_seconds = max(0.0, first - (time.perf_counter() - start))

    def run(self, n: int) -> None:
        greedy = Sampler(temperature=0)
        for _ in range(n):
            made = generate(self.generator, ["prompt"], greedy, max_tokens=self.tokens, samples=self.batch)
        require(all(len(sample.tokens) == self.tokens for sample in made), "a row ended early")


class AnyText:
    """A tokenizer's face on a vocabulary without text: any prompt is the same tokens, no token ends a text."""

    name = "none"
    eot_token = -1

    def __init__(self, n_vocab: int, prompt_tokens: int):
        self.n_vocab, self.prompt_tokens = n_vocab, prompt_tokens

    def encode_ordinary(self, text: str) -> list[int]:
        return np.random.default_rng(0).integers(self.n_vocab, size=self.prompt_tokens).tolist()

    def decode_bytes(self, tokens) -> bytes:
        return b"." * len(tokens)

    def decode(self, tokens) -> str:
        return self.decode_bytes(tokens).decode()


def bytes_per_step(model: LanguageModel, batch: int, tokens: int, prompt_tokens: int) -> float:
    """Bytes that one step must read at least: the parameters once, in the compute dtype, and what the state holds.

    A table that is only looked up in (positions, an embedding that is not the head) counts nothing.
    """
    leaves = model.with_axes(model.shapes())
    looked_up = [("T", "D")] if model.tied else [("T", "D"), ("V", "D")]
    params = sum(leaf.size for leaf, axes in leaves if axes not in looked_up)
    remembered = _mean_while_decoding(lambda length: model.cost(length).remembered, tokens, prompt_tokens)
    return model.dtype.itemsize * (params + batch * remembered)


def flops_per_token(model: LanguageModel, tokens: int, prompt_tokens: int) -> float:
    """Matrix-product FLOPs of a generated token, at the lengths met."""
    return _mean_while_decoding(lambda length: model.cost(length).forward_flops, tokens, prompt_tokens)


def _mean_while_decoding(mean_of: Callable[[int], float], tokens: int, prompt_tokens: int) -> float:
    """Mean over the steps that make `tokens` tokens, of what is known as a mean over sequences of a certain length.

    The first step reads the prompt's last token.
    """
    before, after = prompt_tokens - 1, prompt_tokens - 1 + tokens
    return (after * mean_of(after) - (before * mean_of(before) if before else 0)) / tokens


def _checked(context: int, batch: int, tokens: int | None, prompt_tokens: int) -> int:
    """How many tokens to make; refuses what the context has no room for."""
    require(batch >= 1, f"--batch {batch}: must be at least 1")
    room = context - prompt_tokens
    require(
        1 <= prompt_tokens and room >= 1,
        f"--prompt-tokens {prompt_tokens}: must be at least 1 and below model.context {context}",
    )
    tokens = min(TOKENS, room) if tokens is None else tokens
    require(
        1 <= tokens <= room,
        f"--tokens {tokens}: must be between 1 and {room}, what model.context {context} leaves after the prompt",
    )
    return tokens
