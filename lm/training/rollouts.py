"""Rollouts: what a policy learns from, answers that it draws itself to the prompts of a file of examples.

A step's rollouts are a pure function of (seed, step, parameters): prompts come in the order in which examples do, each
answered `feedback.group` times by the cached sampler at temperature 1, and are made anew where a run is resumed.

An answer's return from place t on is G_t = reward - beta (KL of the places after t), with the exact KL(pi || pi_ref) of
each place's distribution; an advantage is G_t less its mean over the other answers to the same prompt (Kool et al.
2019, "Buy 4 REINFORCE samples"), which does not depend on what was drawn at t. So with the KL of place t itself, which
the objective differentiates, the gradient is that of E[reward] - beta KL(pi || pi_ref) of whole texts, without bias.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import numpy as np

from lm import processes
from lm.config import Experiment
from lm.data.batches import Columns, epoch_key, mix, permute
from lm.data.examples import ExampleFile
from lm.data.sequences import answered, prompts
from lm.errors import require, tell
from lm.model.api import build
from lm.model.loss import Batch
from lm.model.trained import Trained
from lm.sample.generate import Generator, Sample, generate
from lm.sample.prompts import readings
from lm.sample.samplers import Sampler
from lm.tokenizer import Tokenizer, chat_format
from lm.training.objectives import Divergence, token_divergence
from lm.training.rewards import Answer, Reward, open_reward


@dataclasses.dataclass(frozen=True)
class Rollouts:
    """Answers drawn to the prompts of a file. Raises UserError for what cannot be answered so."""

    e: Experiment
    tokenizer: Tokenizer
    prompts: Sequence[list[int]]
    targets: Sequence[str]
    reward: Reward

    resident = False
    """Nothing of it is on the device before it is drawn."""

    @property
    def asked(self) -> int:
        """Prompts in a step."""
        return self.e.train.batch // self.e.feedback.group

    def dispatch(self, step: int, params: dict, reference: dict) -> Columns:
        """The columns [feedback.updates, B, ...] of the steps that learn from the answers drawn at `step`."""
        turn = step // self.e.feedback.updates
        epoch, index = np.divmod(turn * self.asked + np.arange(self.asked), len(self.prompts))
        places = permute(index, len(self.prompts), epoch_key(self.e.train.seed, epoch))
        seed = int(mix(mix(self.e.train.seed % 2**64) ^ np.uint64(step)) % np.uint64(2**32))
        columns = self.draw(places, self.e.feedback.group, seed, params, reference)
        return {name: np.repeat(column[None], self.e.feedback.updates, axis=0) for name, column in columns.items()}

    def draw(self, places: np.ndarray, group: int, seed: int, params: dict, reference: dict) -> Columns:
        """`group` answers to each of the prompts at these places, with what they are worth."""
        asked = [self.prompts[i] for i in places]
        ends = chat_format(self.tokenizer, self.e.data.template).ends if self.e.data.template else ()
        generator = Generator(Trained(params, self.tokenizer, self.e, 0))
        most = self.e.feedback.max_tokens
        drawn = generate(generator, asked, Sampler(), seed=seed, samples=group, ends=ends, max_tokens=most)
        answers = [self._answer(places[row // group], sample) for row, sample in enumerate(drawn)]
        reward_B = self.reward(answers)
        read = [(answer.tokens, answer.asked) for answer in answers]
        rows = answered(read, self.e.model.context, self.tokenizer.eot_token)
        scored = _score(self.e.model, self.e.train.loss_chunk)(params, reference, Batch(**rows))
        old_BT, divergence_BT = (np.asarray(x_BT) * rows["weights_BT"] for x_BT in scored)
        advantage_BT = advantages(reward_B, divergence_BT, self.e.feedback.beta, group)
        made = {"old_BT": old_BT, "advantage_BT": advantage_BT, "reward_B": reward_B}
        return rows | made | {"divergence_B": divergence_BT.sum(axis=1)}

    def score(self, params: dict, reference: dict, most: int) -> dict[str, float]:
        """The mean reward and KL of an answer to each of at most so many prompts, the same prompts every time."""
        places = np.unique(np.linspace(0, len(self.prompts) - 1, min(most, len(self.prompts))).round().astype(int))
        found: list[Columns] = []
        for begin in range(0, len(places), self.e.train.batch):
            some = np.resize(places[begin : begin + self.e.train.batch], self.e.train.batch)
            columns = self.draw(some, 1, begin, params, reference)
            real = min(self.e.train.batch, len(places) - begin)
            found.append({name: columns[name][:real] for name in ("reward_B", "divergence_B")})
        reward, divergence = (float(np.concatenate([one[name] for one in found]).mean()) for name in found[0])
        loss = self.e.feedback.beta * divergence - reward
        return {"val_loss": loss, "val_reward": reward, "val_divergence": divergence}

    def _answer(self, place: int, sample: Sample) -> Answer:
        asked, end = self.prompts[place], [] if sample.end is None else [sample.end]
        return Answer(sample.prompt, sample.text, self.targets[place], [*asked, *sample.tokens, *end], len(asked))


def open_rollouts(e: Experiment, file: ExampleFile, tokenizer: Tokenizer, step: int | None) -> Rollouts:
    """Rollouts to the prompts of a file. step: of the run that feedback.reward names, where it is one.

    Prompts that leave no room for an answer are left out, which is told. Raises UserError where none is left, where
    answers end in words, and for several devices.
    """
    alone = processes.count() == 1 and (e.parallel.data or 1) == 1 and e.parallel.model == 1
    require(alone, "train.objective policy: draws its answers on one device; leave out parallel")
    if e.data.template:
        written = chat_format(tokenizer, e.data.template)
        words = f"its template ends an answer by the words {written.closing!r}: a policy needs a special token"
        require(bool(written.ends), words)
    shown = prompts(file, tokenizer, e.data.template)
    room = e.model.context - e.feedback.max_tokens
    fits = [(tokens, target) for tokens, target in shown if len(tokens) <= room]
    why = f"model.context {e.model.context} with feedback.max_tokens {e.feedback.max_tokens} for the answer"
    shortest = min(len(tokens) for tokens, _ in shown)
    require(bool(fits), f"none of {len(shown):,} prompts fits {why}: the shortest has {shortest} tokens")
    if left := len(shown) - len(fits):
        tell(f"{left:,} of {len(shown):,} {file.path.name} prompts do not fit {why} and are left out")
    reward = open_reward(e.feedback.reward, step, tokenizer, e.model.context)
    return Rollouts(e, tokenizer, *zip(*fits, strict=True), reward)


@dataclasses.dataclass(frozen=True)
class Measured:
    """What texts that a model draws are worth, and how far it is from its reference: means over texts."""

    reward: float
    reward_se: float
    divergence: float
    """KL(pi || pi_ref) in nats a text."""
    divergence_se: float


def measure(
    m: Trained,
    reference: Trained,
    prompt: str,
    reward: Callable[[str], float],
    *,
    texts: int,
    max_tokens: int,
    seed: int = 0,
) -> Measured:
    """Draw answers to a prompt and measure them.

    The divergence is the mean over texts of the sum, over their tokens, of each token's exact KL, which is an unbiased
    estimate of that of whole texts. reward: of an answer's text.
    """
    generator, score = Generator(m), _score(m.experiment.model, None)
    [read] = readings(m, [prompt])
    asked, worth, divergences = len(read.tokens), [], []
    for begin in range(0, texts, AT_ONCE):
        some = dict(seed=(seed * 1009 + begin) % 2**32, samples=min(AT_ONCE, texts - begin))
        drawn = generate(generator, [prompt], max_tokens=max_tokens, **some)
        worth += [reward(sample.text) for sample in drawn]
        whole = [[*read.tokens, *sample.tokens, *([] if sample.end is None else [sample.end])] for sample in drawn]
        rows = answered([(tokens, asked) for tokens in whole], asked + max_tokens - 1, m.tokenizer.eot_token)
        scored = score(m.params, reference.params, Batch(**rows))
        divergences += (np.asarray(scored.divergence) * rows["weights_BT"]).sum(axis=1).tolist()
    means = [(float(x.mean()), float(x.std(ddof=1) / len(x) ** 0.5)) for x in map(np.array, (worth, divergences))]
    return Measured(*means[0], *means[1])


AT_ONCE = 256
"""Texts that are measured together."""


def advantages(reward_B: np.ndarray, divergence_BT: np.ndarray, beta: float, group: int) -> np.ndarray:
    """What each token was better by than the other answers to its prompt, [B, T]; rows of a group are neighbours.

    divergence_BT: KL of each place of an answer, 0 elsewhere. A group of one has no others: 0.
    """
    if group == 1:
        return np.zeros_like(divergence_BT)
    after_BT = divergence_BT[:, ::-1].cumsum(axis=1)[:, ::-1] - divergence_BT
    return_BT = reward_B[:, None] - beta * after_BT
    groups = return_BT.reshape(-1, group, return_BT.shape[1])
    others = (groups.sum(axis=1, keepdims=True) - groups) / (group - 1)
    return (groups - others).reshape(return_BT.shape).astype(np.float32)


@functools.lru_cache(maxsize=4)
def _score(model, chunk: int | None):
    """Log-probabilities and divergences of drawn answers by full passes, compiled once for a model."""

    def score(params: dict, reference: dict, batch: Batch) -> Divergence:
        return token_divergence(build(model), params, reference, batch, chunk)

    return jax.jit(score)
