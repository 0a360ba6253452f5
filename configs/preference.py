"""Direct preference optimisation: prefer chosen to rejected answers, measured by what the start would have said.

lm train preference --train.start RUN --data.examples preferences.jsonl --feedback.beta 0.1
lm train preference --name judge --train.objective reward ...      a reward model of the same pairs instead
"""

import lm


def after(start: lm.Experiment) -> lm.Experiment:
    return lm.settings.replace(start, {
        "train.objective": "preference",
        "optimizer.name": "adamw", "optimizer.learning_rate": 1e-4, "optimizer.weight_decay": 0.0,
        "schedule.name": "linear", "schedule.warmup": "5%",
        "train.steps": "1 epoch", "train.batch": 32, "train.eval_every": "20%",
    })  # fmt: skip
