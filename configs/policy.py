"""Policy gradients: draw answers to prompts, and make those likelier that a reward likes.

lm train policy --train.start RUN --data.examples prompts.jsonl --feedback.reward rewards.py:NAME --feedback.beta 0.1
lm train policy --train.start RUN --data.examples prompts.jsonl --feedback.reward judge    a run that learnt rewards
"""

import lm


def after(start: lm.Experiment) -> lm.Experiment:
    return lm.settings.replace(start, {
        "train.objective": "policy",
        "optimizer.name": "adamw", "optimizer.learning_rate": 3e-4, "optimizer.weight_decay": 0.0,
        "schedule.name": "linear", "schedule.warmup": "5%", "schedule.final": 0.1,
        "train.steps": 100, "train.batch": 64, "train.log_every": 5, "train.eval_every": "20%",
    })  # fmt: skip
