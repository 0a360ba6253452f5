"""Supervised fine-tuning: a model that is there learns to answer, from chats or from prompts and completions.

lm train sft --train.start kingdom --data.examples questions/train.jsonl
lm train sft --train.start RUN --data.examples FILE --optimizer.lora 4      adapters alone, saved small
Model, tokenizer and, where it has one, the template are the start's; the rates are those for a model that need not
learn its language again.
"""

import lm


def after(start: lm.Experiment) -> lm.Experiment:
    return lm.settings.replace(start, {
        "optimizer.name": "adamw", "optimizer.learning_rate": 1e-3, "optimizer.weight_decay": 0.0,
        "schedule.name": "linear", "schedule.warmup": "5%",
        "train.steps": "3 epochs", "train.batch": 32, "train.eval_every": "20%",
    })  # fmt: skip
