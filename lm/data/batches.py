"""Batches: which tokens step s trains on, as a pure function of (token file, seed, step, shape). W: windows.

A pass over the file visits every window once, in an order given by a Feistel network: a permutation that is computed
one element at a time, so any step can be found at once and nothing needs saving. The order knows nothing of devices or
processes.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np

from lm.data.tokens import TokenFile
from lm.errors import require
from lm.limits import Count
from lm.typed import Range, coerce

ROUNDS = 6
"""Four rounds make a Feistel network hard to tell from random; two more for the narrow halves of small files."""
RESIDENT_BYTES = 256 << 20
"""Token files up to this size are meant to live on the device."""
Seed = Annotated[int, Range(least=0, below=2**64)]
Columns = dict[str, np.ndarray]
"""Arrays by the field of a Batch that they become."""


@np.errstate(over="ignore")  # the arithmetic is modulo 2^64; NumPy warns of it for scalars
def mix(x: np.ndarray) -> np.ndarray:
    """splitmix64's finaliser (Steele et al. 2014): every bit of the result depends on every bit of x. uint64."""
    x = np.asarray(x, np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def epoch_key(seed: int, epoch: np.ndarray) -> np.ndarray:
    """uint64 key of each epoch. Mixing the seed first keeps (seed, epoch + 1) apart from (seed + 1, epoch)."""
    return mix(mix(seed % 2**64) ^ np.asarray(epoch, np.uint64))


def permute(index: np.ndarray, n: int, key: np.ndarray) -> np.ndarray:
    """Where a keyed permutation of range(n) sends each index, in O(1) memory.

    index: integers in [0, n), any shape; key: uint64, one for all or one each (different keys, different permutations).
    Returns int64 of index's shape.
    """
    half = np.uint64(max(1, ((n - 1).bit_length() + 1) // 2))
    mask = (np.uint64(1) << half) - np.uint64(1)
    values = np.array(index, np.uint64)
    keys = np.broadcast_to(np.asarray(key, np.uint64), values.shape)
    # The network permutes a power of four that is at least n, and less than four times n but for n = 1. Cycle walking:
    # what lands outside [0, n) goes through again until it lands inside, which keeps it a permutation.
    outside = np.ones(values.shape, bool)
    while outside.any():
        left, right = values[outside] >> half, values[outside] & mask
        for number in range(ROUNDS):
            left, right = right, left ^ (mix(right ^ mix(keys[outside] + np.uint64(number))) & mask)
        values[outside] = (left << half) | right
        outside = values >= np.uint64(n)
    return values.astype(np.int64)


@dataclass(frozen=True)
class Batches:
    """Training batches from a token file. Raises UserError when it is shorter than one window, and for odd numbers.

    A window is context + 1 tokens: what the model reads, and each next token. Windows start at multiples of `context`,
    so a pass predicts each token once. From the second pass on all windows are shifted by a seeded offset and wrap
    around the end of the file: later passes cut the text elsewhere.

    In k pieces, a step reads one of each window of its k steps (those from a multiple of k on): as many tokens, from k
    times as many places, and after the k steps what they would have read whole.
    """

    file: TokenFile
    context: int
    """T, tokens the model reads."""
    batch: int
    """B, windows in a step."""
    seed: int
    pieces: int = 1
    """k, which divides T."""

    def __post_init__(self):
        for name, hint in (("context", Count), ("batch", Count), ("seed", Seed), ("pieces", Count)):
            object.__setattr__(self, name, coerce(getattr(self, name), hint, name))
        require(
            self.file.count > self.context,
            f"{self.file.count:,} training tokens are fewer than one window of model.context {self.context} + 1;"
            " lower --model.context or give more text",
        )

    @property
    def windows(self) -> int:
        """Windows in one pass over the file."""
        return (self.file.count - 1) // self.context

    @property
    def epoch_tokens(self) -> int:
        """Tokens predicted in one pass over the file."""
        return self.windows * self.context

    @property
    def resident(self) -> bool:
        """Whether the file is small enough to put on the device and gather windows there."""
        return self.file.count * np.dtype(self.file.dtype).itemsize <= RESIDENT_BYTES

    def store(self) -> np.ndarray:
        """The whole file in memory, uint16 or uint32 [count]: window i of a step is tokens[(start + i) % count]."""
        return np.array(self.file.tokens)

    def starts(self, step: int, k: int) -> np.ndarray:
        """First token of every window, or piece, of the k steps from `step`: int64 [k, B pieces], in [0, count)."""
        turn = (step + np.arange(k)) % self.pieces
        epoch, index = _places(step + np.arange(k) - turn, self.batch, self.pieces * self.batch, self.windows)
        key = epoch_key(self.seed, epoch)
        offset = np.where(epoch == 0, 0, (mix(~key) % np.uint64(self.context)).astype(np.int64))
        begin = turn[:, None] * (self.context // self.pieces)
        return (permute(index, self.windows, key) * self.context + offset + begin) % self.file.count

    def dispatch(self, step: int, n: int, size: int) -> np.ndarray | dict[str, np.ndarray]:
        """What a program of at most `size` steps reads for the n from `step`, int32.

        Of a resident file, places [size, B] in it; otherwise {"tokens_BU": tokens [size, B, T+1]}, zeros after the
        n-th step. In pieces, of B k rows and T/k + 1 tokens.
        """
        if self.resident:
            return self.starts(step, size).astype(np.int32)
        tokens = np.zeros((size, self.pieces * self.batch, self.context // self.pieces + 1), np.int32)
        tokens[:n] = self.at(step, n)
        return {"tokens_BU": tokens}

    def at(self, step: int, k: int | None = None) -> np.ndarray:
        """The tokens of one step, int32 [B, T+1], or of the k steps from `step`, int32 [k, B, T+1]; see `dispatch`."""
        starts = self.starts(step, 1 if k is None else k)
        places = (starts[..., None] + np.arange(self.context // self.pieces + 1)) % self.file.count
        tokens = np.asarray(self.file.tokens[places], np.int32)
        return tokens[0] if k is None else tokens


@dataclass(frozen=True)
class ExampleBatches:
    """Training batches of examples that are laid out. Raises UserError for odd numbers.

    A pass visits every example once, and every pass in another order.
    """

    columns: Columns
    """What lm.data.layout makes of a file: the fields of a Batch, each with N rows."""
    batch: int
    """B, rows in a step."""
    seed: int

    def __post_init__(self):
        for name, hint in (("batch", Count), ("seed", Seed)):
            object.__setattr__(self, name, coerce(getattr(self, name), hint, name))

    @property
    def context(self) -> int:
        """Places that a row takes in the model: T tokens, and I vectors before them where no encoder reads those."""
        T, vectors_BIE = self.columns["tokens_BU"].shape[1] - 1, self.columns.get("vectors_BIE")
        return T if vectors_BIE is None or "source_BS" in self.columns else T + vectors_BIE.shape[1]

    @property
    def windows(self) -> int:
        """N, the examples, which are the rows in one pass."""
        return len(self.columns["tokens_BU"])

    @property
    def epoch_tokens(self) -> int:
        """Places in one pass, padding included, as a step counts them."""
        return self.windows * self.context

    @property
    def resident(self) -> bool:
        """Whether the columns are small enough to put on the device and gather rows there."""
        return sum(column.nbytes for column in self.columns.values()) <= RESIDENT_BYTES

    def store(self) -> Columns:
        """All columns: row i of a step is column[row]."""
        return self.columns

    def rows(self, step: int, k: int) -> np.ndarray:
        """The example in every row of the k steps from `step`: int64 [k, B], in [0, N)."""
        epoch, index = _places(step + np.arange(k), self.batch, self.batch, self.windows)
        return permute(index, self.windows, epoch_key(self.seed, epoch))

    def dispatch(self, step: int, n: int, size: int) -> np.ndarray | Columns:
        """What a program of at most `size` steps reads for the n from `step`.

        Of resident columns, rows int32 [size, B]; otherwise the columns [size, B, ...], zeros after the n-th step.
        """
        if self.resident:
            return self.rows(step, size).astype(np.int32)
        columns = {name: np.zeros((size, self.batch, *x.shape[1:]), x.dtype) for name, x in self.columns.items()}
        for name, column in self.at(step, n).items():
            columns[name][:n] = column
        return columns

    def at(self, step: int, k: int | None = None) -> Columns:
        """The columns of one step, [B, ...], or of the k steps from `step`, [k, B, ...]."""
        rows = self.rows(step, 1 if k is None else k)
        return {name: column[rows[0] if k is None else rows] for name, column in self.columns.items()}


def _places(steps: np.ndarray, batch: int, rows: int, windows: int) -> tuple[np.ndarray, np.ndarray]:
    """The pass of so many rows from the first of each step on, and their places in that pass: int64 [k, rows]."""
    return np.divmod(steps[:, None] * batch + np.arange(rows), windows)


class Feed:
    """Reads ahead in a thread, while the device works.

    read(step, n) gives what the n steps from `step` read. feed(step, n) answers (m, read(step, m)), where m is n, or
    less where less was read ahead; any step may be asked for, and what `ahead` announced is there already.
    """

    def __init__(self, read: Callable[[int, int], Any]):
        self.read = read
        self.thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="feed")
        self.expected: tuple[int, int] | None = None
        self.coming: Future | None = None

    def __call__(self, step: int, n: int) -> tuple[int, Any]:
        if self.expected and self.expected[0] == step:
            return min(n, self.expected[1]), self.coming.result()  # raises here what was raised in the thread
        return n, self.read(step, n)

    def ahead(self, step: int, n: int) -> None:
        """Begin to read what will be asked for next."""
        self.expected = step, n
        self.coming = self.thread.submit(self.read, step, n)

    def close(self) -> None:
        """Stop the thread. Safe to call again."""
        self.thread.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> "Feed":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def validation_windows(file: TokenFile, context: int, tokens: int) -> Columns:
    """About `tokens` predictions of a file, in windows spread evenly over it, whose start is not like the rest.

    All of the file where `tokens` is enough; each token after the first is then a target once, and none ever is twice.
    Returns tokens_BU, int32 [W, T+1], and weights_BT, float32 [W, T]: 1 for a target, 0 for the padding of the last
    window.
    Raises UserError for a file of fewer than two tokens.
    """
    for name, value in (("context", context), ("tokens", tokens)):
        coerce(value, Count, name)
    require(
        file.count >= 2,
        f"validation needs at least 2 tokens, there are {file.count}; raise --data.validation or give more text",
    )
    last = file.count - 1
    windows = -(-last // context)
    wanted = min(windows, -(-tokens // context))
    place = (np.arange(wanted) * windows // wanted)[:, None] * context + np.arange(context + 1)
    padded = np.where(place <= last, file.tokens[np.minimum(place, last)], 0).astype(np.int32)
    return {"tokens_BU": padded, "weights_BT": (place[:, 1:] <= last).astype(np.float32)}
