"""What answers are worth to a policy: a plain Python function of text, or a run that learnt rewards."""

import hashlib
import inspect
import math
import runpy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lm import checkpoints
from lm import tokenizer as tokenizers
from lm.data.sequences import answered
from lm.errors import UserError, require
from lm.model.api import build
from lm.model.loss import Batch
from lm.model.trained import Trained
from lm.run import load
from lm.tokenizer import Tokenizer
from lm.training.objectives import text_rewards

FIELDS = ("prompt", "answer", "target")
"""What a function may ask for, by the names of its parameters."""


@dataclass(frozen=True)
class Answer:
    """An answer to be judged."""

    prompt: str
    """What was asked, as the model reads it."""
    answer: str
    target: str
    """What the examples answer."""
    tokens: list[int]
    """Prompt and answer, with the token that ends it."""
    asked: int
    """How many of them are the prompt's."""


Reward = Callable[[Sequence[Answer]], np.ndarray]
"""A reward of each answer, float32."""


def open_reward(spec: str, step: int | None, tokenizer: Tokenizer, context: int) -> Reward:
    """The reward that feedback.reward names: FILE.py:NAME, or a run at a step.

    Raises UserError where there is none, and when it is called, for rewards that are no finite numbers.
    """
    if step is None:
        return _of_function(spec, *_function(spec))
    return _of_run(load(spec, step), tokenizer, context)


def reward_digest(spec: str, step: int | None) -> str:
    """sha256 (hex) of what decides the rewards: a file's bytes, or a run's parameters."""
    if step is None:
        return hashlib.sha256(_file(spec)[0].read_bytes()).hexdigest()
    return checkpoints.digest(load(spec, step).params)


# --- a function ------------------------------------------------------------------------------------------------------
def _file(spec: str) -> tuple[Path, str]:
    path, colon, name = spec.rpartition(":")
    expected = "expected FILE.py:NAME, or a run that learnt rewards (`lm runs` lists them)"
    require(bool(colon) and path.endswith(".py") and name.isidentifier(), f"feedback.reward {spec}: {expected}")
    require(Path(path).is_file(), f"feedback.reward {spec}: no such file")
    return Path(path), name


def _function(spec: str) -> tuple[Callable[..., Any], list[str]]:
    """The function, and which of FIELDS it asks for."""
    path, name = _file(spec)
    try:
        variables = runpy.run_path(str(path))
    except Exception as error:
        raise UserError(f"feedback.reward {path} does not run: {type(error).__name__}: {str(error)[:150]}") from error
    function = variables.get(name)
    require(callable(function), f"feedback.reward {spec}: {path} defines no function {name}")
    wanted = list(inspect.signature(function).parameters)
    wrong = [parameter for parameter in wanted if parameter not in FIELDS]
    known = f"a reward is a function of {', '.join(FIELDS)}, or of some of them"
    require(bool(wanted) and not wrong, f"feedback.reward {spec}: it asks for {', '.join(wrong) or 'nothing'}; {known}")
    return function, wanted


def _of_function(spec: str, function: Callable[..., Any], wanted: list[str]) -> Reward:
    def judge(answer: Answer) -> float:
        where = f"feedback.reward {spec}"
        try:
            value = float(function(**{name: getattr(answer, name) for name in wanted}))
        except Exception as error:
            raise UserError(f"{where}: {type(error).__name__}: {str(error)[:150]}") from error
        said = f"{where}: it returns {value} for the answer {answer.answer[:40]!r}; must be a finite number"
        require(math.isfinite(value), said)
        return value

    return lambda answers: np.array([judge(answer) for answer in answers], np.float32)


# --- a run -----------------------------------------------------------------------------------------------------------
def _of_run(m: Trained, tokenizer: Tokenizer, context: int) -> Reward:
    where, objective = f"feedback.reward {m.run.path}", m.experiment.train.objective
    require(objective == "reward", f"{where}: it learnt {objective}; train one with train.objective reward")
    same = tokenizers.digest(m.tokenizer) == tokenizers.digest(tokenizer)
    require(same, f"{where} has another tokenizer; it must be the policy's")
    room = m.model.config.context
    require(room >= context, f"{where}: its context is {room}, the policy's {context}; it must read whole answers")
    rewards = jax.jit(lambda params, rows: text_rewards(build(m.experiment.model), params, rows))

    def judge(answers: Sequence[Answer]) -> np.ndarray:
        rows = answered([(answer.tokens, answer.asked) for answer in answers], context, tokenizer.eot_token)
        made_B = np.asarray(rewards(m.params, Batch(**rows)))
        require(bool(np.isfinite(made_B).all()), f"{where}: a reward of it is not finite")
        return made_B

    return judge
