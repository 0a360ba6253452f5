"""llama.cpp as the engine of sampling: its logits, and all else as with our own parameters."""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from lm.config import Experiment
from lm.errors import require, tell
from lm.exchange import gguf, shapes
from lm.exchange.gguf_reader import telling
from lm.exchange.llama_cpp import Decoder, Entry
from lm.exchange.outgoing import export_gguf
from lm.exchange.tokenizers import from_texts
from lm.model.trained import Trained
from lm.run import load
from lm.sample.decoding import CHUNK, Decoding, Made, Request
from lm.sample.filters import sample
from lm.sample.generate import Generator, Row


class LlamaGenerator(Generator):
    """A GGUF file in the place of parameters: `generate` takes its logits, and all else is as with our own."""

    def __init__(self, m: Trained, path: str | Path, *, threads: int | None = None):
        super().__init__(m)
        self.path, self.threads = path, threads
        self._decoder, self._size = None, (0, 0)

    def read(self, rows: list[Row], capacity: int, seen_BV: jax.Array) -> Decoding:
        """Each row read but for its last token."""
        if self._size != (len(rows), capacity):
            self._decoder = Decoder(self.path, len(rows), capacity, threads=self.threads)
            self._size = len(rows), capacity
        self._decoder.forget()
        entries = [
            Entry(r, position, token, False)
            for r, row in enumerate(rows)
            for position, token in enumerate(row.reading.tokens[:-1])
        ]
        if entries:
            self._decoder.read(entries)
        return Decoding(
            memory=[row.held for row in rows],
            seen_BV=seen_BV,
            token_B=np.array([row.reading.tokens[-1] for row in rows], np.int32),
            place_B=np.array([row.place for row in rows], np.int32),
            done_B=np.zeros(len(rows), bool),
        )

    def decode(self, now: Decoding, request: Request) -> tuple[Decoding, Made]:
        """Up to `request.count` more tokens of every row that is not done, drawn as our own are."""
        B, positions = len(now.token_B), list(now.memory)
        tokens_TB, logprobs_TB = np.zeros((CHUNK, B), np.int32), np.zeros((CHUNK, B), np.float32)
        count_B, token_B, done_B = np.zeros(B, np.int32), np.array(now.token_B), np.array(now.done_B)
        seen_BV, logits_BV, steps = now.seen_BV, np.zeros(now.seen_BV.shape, np.float32), 0
        while steps < request.count and not done_B.all():
            going = np.flatnonzero(~done_B)
            entries = [Entry(int(r), positions[r], int(token_B[r]), True) for r in going]
            logits_BV[going, : self._decoder.vocab] = self._decoder.read(entries)[:, : logits_BV.shape[1]]
            drawn = _draw(logits_BV, request, now.place_B + steps, seen_BV, self.trained.model.config.vocab)
            seen_BV, (token_B, logprobs_TB[steps]) = drawn[0], map(np.array, drawn[1:])
            tokens_TB[steps] = token_B
            count_B += ~done_B
            for r in going:
                positions[r] += 1
            done_B |= np.isin(token_B, request.end)
            steps += 1
        after = dataclasses.replace(
            now, memory=positions, seen_BV=seen_BV, token_B=token_B, place_B=now.place_B + steps, done_B=done_B
        )
        return after, Made(steps, tokens_TB, logprobs_TB, count_B)


def generator(run: str, checkpoint: str = "latest") -> LlamaGenerator:
    """What samples from a GGUF file, or from one written of a run, whose place is beside its checkpoints.

    Raises UserError where there is no such run, and the reason where llama.cpp does not compute its model.
    """
    if Path(run).suffix == ".gguf":
        return LlamaGenerator(described(run), run)
    m = load(run, checkpoint)
    return LlamaGenerator(m, exported(m))


def described(path: str | Path) -> Trained:
    """The shape and the tokenizer of a GGUF file, without its parameters."""
    published = gguf.read(path)
    with telling(path):
        require("tokenizer.json" in published.texts, "the file has no tokenizer")
        return Trained({}, from_texts(published.texts), Experiment(model=shapes.read(published.config)), step=0)


def exported(m: Trained) -> Path:
    """The GGUF file of a run's checkpoint, which is written where it is not there yet."""
    path = m.run.path / f"{m.step}.gguf"
    if not path.exists():
        made = export_gguf(m, path)
        tell(f"wrote {path} for llama.cpp: {made.family}, {made.check}")
    return path


@functools.partial(jax.jit, static_argnames=("vocab",))
def _draw(logits_BV, request: Request, place_B, seen_BV, vocab: int):
    """Tokens drawn by the keys that `lm.sample.decoding.decode` draws by, and their log-probabilities."""
    rows_B = jnp.arange(len(logits_BV))
    logits_BV = jnp.where(jnp.arange(logits_BV.shape[1]) < vocab, logits_BV, -1e30)
    keys_B = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(request.seed), rows_B)
    token_B, logprob_B = sample(jax.vmap(jax.random.fold_in)(keys_B, place_B), logits_BV, request.settings, seen_BV)
    return seen_BV.at[rows_B, token_B].set(True), token_B, logprob_B
