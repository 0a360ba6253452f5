"""How fast generation goes: `lm.generate` itself, greedy, on random weights, beside the machine's limits and peers."""

import time
from pathlib import Path

import numpy as np

from lm.bench import machine
from lm.bench.peers import decoding_peers, gather
from lm.bench.profile import make_folder
from lm.bench.profile import profile as profiled
from lm.bench.results import DecodeBench, describe, peers_of
from lm.bench.rounds import Contestant, check_turns, compare
from lm.bench.training import with_vocabulary
from lm.config import Experiment, ModelConfig
from lm.errors import require
from lm.model import transformer
from lm.run import Model
from lm.sample.generate import generate
from lm.sample.samplers import Sampler
from lm.scaling.flops import forward_flops
from lm.training.display import Display

TOKENS, PROMPT_TOKENS = 256, 16


def decode(
    of: Experiment | Model,
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

    of: an experiment, for random weights, or what `lm.load` returns. tokens: by default 256, or what the context holds.
    peers: also time transformers and llama.cpp, where installed, decoding a GPT-2 of the same shape.
    The rest as in `train`.
    """
    e = with_vocabulary(of if isinstance(of, Experiment) else of.experiment)
    c = e.model
    tokens = _checked(c, batch, tokens, prompt_tokens)
    params = transformer.init(c, e.train.seed) if isinstance(of, Experiment) else of.params
    check_turns(rounds, seconds)
    if profile:
        make_folder(profile)
    with display or Display(quiet=True) as display:
        display.stage("compiling", 0, None)
        ours = Generation(Model(params, AnyText(c.vocab, prompt_tokens), e, 0), batch, tokens)
        read = bytes_per_step(c, batch, tokens, prompt_tokens)
        limits, copying = machine.matmul_limits(str(transformer.compute_dtype(c))), machine.copy_limit()
        reading = machine.read_limits(read)
        entries = decoding_peers(c, batch, tokens, AnyText(c.vocab, prompt_tokens).encode_ordinary("")) if peers else []
        others, absent = gather(entries, display)
        contestants = [Contestant("lm", ours.run), *others, *(x.contestant for x in (*limits, *reading, copying))]
        report = lambda done, total: display.stage("timing", done, total)  # noqa: E731
        timings = compare(contestants, seconds, rounds, report=report)
        operations = profiled(lambda: ours.run(timings[0].units), profile) if profile else []
    rates, bandwidth = timings[0].seconds.per(batch * tokens), machine.fastest(reading, timings)
    return DecodeBench(
        what=f"decoding, {describe(c, f'batch {batch}, {tokens} tokens after {prompt_tokens}')}",
        tokens_per_second=rates.median, quartiles=(rates.low, rates.high), rounds=rounds,
        batch=batch, tokens=tokens, prompt_tokens=prompt_tokens, compile_seconds=ours.compile_seconds,
        flops_per_second=rates.median * flops_per_token(c, tokens, prompt_tokens),
        peak_flops_per_second=machine.fastest(limits, timings),
        bytes_per_step=read, bytes_per_second=rates.median / batch * read, read_bytes_per_second=bandwidth,
        utilization=rates.median / batch * read / bandwidth,
        copied_bytes_per_second=machine.fastest([copying], timings),
        peers=peers_of([one.name for one in others], timings, batch * tokens), absent=absent, operations=operations,
    )  # fmt: skip


class Generation:
    """Calls of lm.generate; a unit of work is batch x tokens tokens."""

    def __init__(self, m: Model, batch: int, tokens: int):
        self.m, self.batch, self.tokens = m, batch, tokens
        start = time.perf_counter()
        self.run(1)
        first = time.perf_counter() - start
        start = time.perf_counter()
        self.run(1)
        self.compile_seconds = max(0.0, first - (time.perf_counter() - start))

    def run(self, n: int) -> None:
        for _ in range(n):
            made = generate(self.m, ["prompt"], Sampler(temperature=0), max_tokens=self.tokens, samples=self.batch)
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


def bytes_per_step(c: ModelConfig, batch: int, tokens: int, prompt_tokens: int) -> float:
    """Bytes that one step must read at least: the parameters once, in the compute dtype, and what the cache holds.

    A table that is only looked up in (positions, an embedding that is not the head) counts nothing.
    """
    itemsize = np.dtype(transformer.compute_dtype(c)).itemsize
    looked_up = (0 if c.tied else c.V * c.width) + (c.context * c.width if c.positions == "learned" else 0)
    params = transformer.parameter_count(c)[0] - looked_up
    return itemsize * (params + batch * 2 * c.K * c.H * sum(_held(c, tokens, prompt_tokens)))


def flops_per_token(c: ModelConfig, tokens: int, prompt_tokens: int) -> float:
    """Matrix-product FLOPs of a generated token, at the lengths met."""
    attention = {"attention scores and values": 4 * c.heads * c.H * sum(_held(c, tokens, prompt_tokens))}
    return sum((forward_flops(c) | attention).values())


def _held(c: ModelConfig, tokens: int, prompt_tokens: int) -> list[float]:
    """Mean number of keys each layer's query sees."""
    seen = prompt_tokens + np.arange(tokens)
    return [float(np.minimum(seen, window or seen).mean()) for window in c.windows]


def _checked(c: ModelConfig, batch: int, tokens: int | None, prompt_tokens: int) -> int:
    """How many tokens to make; refuses what the context has no room for."""
    require(batch >= 1, f"--batch {batch}: must be at least 1")
    room = c.context - prompt_tokens
    require(
        1 <= prompt_tokens and room >= 1,
        f"--prompt-tokens {prompt_tokens}: must be at least 1 and below model.context {c.context}",
    )
    tokens = min(TOKENS, room) if tokens is None else tokens
    require(
        1 <= tokens <= room,
        f"--tokens {tokens}: must be between 1 and {room}, what model.context {c.context} leaves after the prompt",
    )
    return tokens
