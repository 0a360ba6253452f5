"""Aimed at nanoGPT's 1.4697 on Shakespeare's characters, minutes of an A100, in eight minutes on two CPU cores.

lm data prepare shakespeare --download && lm train shakespeare_char_laptop
lm train shakespeare_char_laptop --model.dtype float32        on a processor without instructions for bfloat16 (AMX)
A quarter of nanoGPT's 10.65M parameters, and windows that grow to its 256 characters. Passes of 4 windows stay near a
core's cache. Everything was chosen on a tenth of the training text, and the validation split is not scored yet.
"""

import lm

experiment = lm.Experiment(
    model=lm.ModelConfig(
        layers=6, width=192, heads=3, context=256, activation="swiglu", embedding_norm=True, dropout=0.2,
        dtype="bfloat16_products",
    ),
    data=lm.DataConfig(corpus="shakespeare", tokenizer="chars", validation=0.1),
    optimizer=lm.OptimizerConfig(
        name="muon", learning_rate=8e-3, matrix_learning_rate=0.03, momentum=0.9, beta2=0.95, newton_schulz=3
    ),
    schedule=lm.ScheduleConfig(name="wsd", warmup="2%", decay="60%", context_start=64, context_growth="50%"),
    train=lm.TrainConfig(steps=640, batch=16, accumulation=4, eval_every="25%", eval_tokens=111_540),
)  # fmt: skip
