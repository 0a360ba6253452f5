"""A first model in a few minutes on a laptop's CPU: Python's own source and documentation, a small BPE vocabulary.

lm train quickstart        about 3 minutes on two CPU cores, no download
"""

import lm

experiment = lm.Experiment(
    model=lm.ModelConfig(layers=4, width=128, heads=4, context=128, activation="swiglu", embedding_norm=True),
    data=lm.DataConfig(corpus="stdlib", tokenizer="bpe", vocab=2048, validation=0.04),
    optimizer=lm.OptimizerConfig(
        name="muon", learning_rate=12e-3, matrix_learning_rate=0.03, momentum=0.9, beta2=0.95, newton_schulz=3
    ),
    schedule=lm.ScheduleConfig(name="wsd", warmup="2%", decay="60%"),
    train=lm.TrainConfig(steps=900, batch=16, eval_every="20%", eval_tokens=250_000),
)
