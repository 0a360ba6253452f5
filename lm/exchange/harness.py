"""Our models in EleutherAI's lm-evaluation-harness, which scores models that answer three kinds of requests.

`HarnessModel` answers them; tasks.py beside this runs tasks with it. Later versions of the harness find it by
themselves, as the model `lm`; for this one, `python -m lm.exchange.harness` is its command with that model in it:
    python -m lm.exchange.harness --model lm --model_args run=quickstart --tasks blimp
"""

import contextlib
import functools
import importlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

from lm import tokenizer as tokenizers
from lm.errors import UserError, require, tell
from lm.evaluation import score_continuations
from lm.model.trained import Trained
from lm.run import load
from lm.sample.generate import Generator, generate
from lm.sample.samplers import Sampler

try:
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import model_registry
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ImportError as error:
    raise UserError("the evaluation harness needs the package lm-eval: pip install -e '.[harness]'") from error

NAME = "lm"
"""What the harness calls our models."""
MAX_TOKENS = 256
"""Tokens that are generated where a task does not say how many, as by the harness itself."""
Report = Callable[[str, int, int], None]
"""report(what, done, in all)."""


class HarnessModel(TemplateLM):
    """A trained model as the harness asks it.

    run: a run's directory or name, or a model in hand. prefix: one token's text, which stands before texts that nothing
    precedes; without it the end of text does. unknown: what becomes of characters that an alphabet lacks, "refuse" or
    "skip", which leaves them out and counts them. batch_size: requests at once. seed: of what is drawn at random.
    """

    def __init__(
        self,
        run: str | Trained,
        checkpoint: str = "latest",
        *,
        prefix: str | None = None,
        unknown: Literal["refuse", "skip"] = "refuse",
        batch_size: int | str = 32,
        seed: int = 0,
        report: Report | None = None,
        device: str | None = None,
        max_batch_size: int | None = None,
    ):
        super().__init__()
        require(unknown in ("refuse", "skip"), f"unknown {unknown!r}: refuse, or skip")
        self.m = run if isinstance(run, Trained) else load(run, checkpoint)
        self.unknown, self.seed = unknown, int(seed)
        self.batch_size = 32 if batch_size == "auto" else int(batch_size)
        self.report = report or (lambda what, done, total: None)
        self.skipped = 0
        """Characters left out."""
        self.cut = 0
        """Requests whose beginning did not fit the context."""
        self.prefix = prefix
        self._prefix = None if prefix is None else self._one_token(prefix)

    # --- what the harness wants to know ------------------------------------------------------------------------------
    @property
    def eot_token_id(self) -> int:
        return self.m.tokenizer.eot_token

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that nothing precedes: the beginning or the end of a text, as its makers had it.

        UserError where it would be a token never trained on.
        """
        if self._prefix is not None:
            return self._prefix
        run, begin = self.m.run, getattr(self.m.tokenizer, "bos_token", None)
        require(
            run is None or run.record["documents"] > 1,
            "some texts have nothing before them, and this model was trained on one text: it never saw the end-of-text "
            r"token that would stand there; say what does, such as a line's end: --prefix '\n'",
        )
        return self.eot_token_id if begin is None else begin

    @property
    def max_length(self) -> int:
        return self.m.model.config.context

    @property
    def tokenizer_name(self) -> str:
        return self.m.tokenizer.name

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_) -> list[int]:
        """The tokens of a text, behind those that its makers put before every text."""
        opening = [] if add_special_tokens is False else tokenizers.prefix(self.m.tokenizer)
        return [*opening, *tokenizers.encode(self.m.tokenizer, string).tolist()]

    def _one_token(self, prefix: str) -> int:
        tokens = self.tok_encode(prefix, add_special_tokens=False)
        require(len(tokens) == 1, f"prefix {prefix!r} is {len(tokens)} tokens of this model; give a text that is one")
        return tokens[0]

    # --- its requests ------------------------------------------------------------------------------------------------
    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log p, whether greedy decoding would say it) of each continuation of a context."""
        pairs = []
        for request in requests:
            with _named(request):
                context, continuation = map(self._known, request.args)
                require(bool(continuation), f"nothing of the answer {request.args[1]!r} is among the known characters")
                pairs.append(self._pair(context, continuation))
                longest = f"an answer of {len(pairs[-1][1])} tokens, the model's context is {self.max_length}"
                require(len(pairs[-1][1]) <= self.max_length, longest)
        return self._score(pairs, "scoring answers")

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log p of each text, of any length; see `windows`."""
        pairs, owners = [], []
        for number, request in enumerate(requests):
            with _named(request):
                some = self.windows(self.tok_encode(self._known(request.args[0]), add_special_tokens=False))
            pairs += some
            owners += [number] * len(some)
        sums = [0.0] * len(requests)
        for number, (logprob, _) in zip(owners, self._score(pairs, "scoring texts"), strict=True):
            sums[number] += logprob
        return sums

    def windows(self, tokens: list[int]) -> list[tuple[list[int], list[int]]]:
        """A text as (context, tokens to score): windows side by side, the last of which reaches back to be as long.

        `lm.evaluate` lays documents end to end and reaches back for none: tokens have less before them there.
        """
        if not tokens:
            return []
        windows = get_rolling_token_windows(tokens, self.prefix_token_id, self.max_length, 1)
        return [make_disjoint_window(window) for window in windows]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """What each prompt goes on with, up to a stop string or its length; prompts too long lose their beginning."""
        groups: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(number)
        texts, done = [""] * len(requests), 0
        for numbers in groups.values():
            with _named(requests[numbers[0]]):
                sampler, stop, most = generation(requests[numbers[0]].args[1])
                shorter = "; fewer with --gen-kwargs max_gen_toks=N"
                fits = f"up to {most} tokens are to be generated, the model's context is {self.max_length}{shorter}"
                require(most < self.max_length, fits)
            prompts = {number: self._prompt(requests[number], self.max_length - most) for number in numbers}
            longest_first = sorted(numbers, key=lambda number: -len(prompts[number]))
            for some in _batches(longest_first, self.batch_size):
                # Another seed for each batch: equal rows of two batches would draw alike.
                options = dict(stop=stop, max_tokens=most, seed=(self.seed + done) % 2**32)
                samples = generate(self._generator, [prompts[number] for number in some], sampler, **options)
                for number, sample in zip(some, samples, strict=True):
                    texts[number] = sample.text
                done += len(some)
                self.report("generating", done, len(requests))
        return texts

    @functools.cached_property
    def _generator(self) -> Generator:
        return Generator(self.m)

    def _prompt(self, request: Any, room: int) -> list[int]:
        with _named(request):
            tokens = self.tok_encode(self._known(request.args[0])) or [self.prefix_token_id]
        self.cut += len(tokens) > room
        return tokens[-room:]

    def _pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """The tokens of both, as the harness divides them: those of both together beyond as many as the context has."""
        if context:
            before, after = self._encode_pair(context, continuation)
            if not after:  # the context's last token took all of it in
                *before, last = self.tok_encode(context + continuation)
                after = [last]
            return before or [self.prefix_token_id], after
        tokens, prefix = self.tok_encode(continuation, add_special_tokens=False), self.prefix_token_id
        return (tokens[:1], tokens[1:]) if tokens[0] == prefix and len(tokens) > 1 else ([prefix], tokens)

    def _known(self, text: str) -> str:
        """The text, without the characters that an alphabet lacks where these are to be skipped."""
        if self.unknown == "refuse" or not (alphabet := getattr(self.m.tokenizer, "alphabet", "")):
            return text
        kept = "".join(filter(frozenset(alphabet).__contains__, text))
        self.skipped += len(text) - len(kept)
        return kept

    def _score(self, pairs: list[tuple[list[int], list[int]]], what: str) -> list[tuple[float, bool]]:
        return self._loglikelihood_tokens([(("", ""), *pair) for pair in pairs], what=what)

    def _loglikelihood_tokens(self, requests, what: str = "scoring", **_) -> list[tuple[float, bool]]:
        pairs = [(context, continuation) for _, context, continuation in requests]
        self.cut += sum(len(context) + len(continuation) > self.max_length + 1 for context, continuation in pairs)
        report = functools.partial(self.report, what)
        scores = score_continuations(self.m, pairs, batch=self.batch_size, report=report)
        return [(-score.nats, score.greedy) for score in scores]


# --- what tasks say of generating ------------------------------------------------------------------------------------
LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""Names for the most tokens to generate; the first that is there counts."""


def generation(settings: Mapping[str, Any]) -> tuple[Sampler, list[str], int]:
    """How to generate as a task's generation_kwargs say: the sampler, stop strings, and the most tokens.

    Greedy unless `do_sample` or a temperature says otherwise. Settings that are not understood are told of.
    """
    left = {name: value for name, value in settings.items() if value is not None}
    until = left.pop("until", [])
    stop = [text for text in ([until] if isinstance(until, str) else until) if text]
    lengths = [left.pop(name) for name in LENGTHS if name in left]
    drawn = left.pop("do_sample", None)
    temperature = left.pop("temperature", 1.0 if drawn else 0.0)
    chosen = {name: left.pop(name) for name in ("top_k", "top_p", "min_p", "repetition_penalty") if name in left}
    if chosen.get("top_k", 1) < 1:  # how others say that it is off
        del chosen["top_k"]
    for name, value in left.items():
        if (name, value) not in (("num_beams", 1), ("num_return_sequences", 1), ("use_cache", True)):
            tell(f"generation_kwargs {name}={value} does nothing here")
    sampler = Sampler(temperature=0.0 if drawn is False else float(temperature), **chosen)
    return sampler, stop, int(lengths[0]) if lengths else MAX_TOKENS


@contextlib.contextmanager
def _named(request: Any) -> Iterator[None]:
    """Name the task and the document in errors about a request."""
    try:
        yield
    except UserError as error:
        task, document = getattr(request, "task_name", None), getattr(request, "doc_id", None)
        raise UserError(f"task {task}, document {document}: {error}" if task else str(error)) from error


def _batches(numbers: list[int], size: int) -> Iterator[list[int]]:
    return (numbers[start : start + size] for start in range(0, len(numbers), size))


# --- the harness's own command ---------------------------------------------------------------------------------------
def register() -> None:
    """Have the harness know our models, where its version does not find them by itself."""
    importlib.import_module("lm_eval.models")  # its own first: it registers none where there is one already
    if NAME not in model_registry:
        model_registry.register(NAME, target=HarnessModel)


def main() -> None:
    """Run the harness's command."""
    from lm_eval.__main__ import cli_evaluate

    register()
    cli_evaluate()


if __name__ == "__main__":
    main()
