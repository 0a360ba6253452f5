"""nanoGPT's CPU shape on Shakespeare's characters: 0.8M parameters, 2,000 steps of 12 x 64 tokens.

lm data prepare shakespeare --download && lm train shakespeare_char_cpu
lm train shakespeare_char_cpu --data.corpus path/to/input.txt          the same with a file you have
"""

import lm

experiment = lm.Experiment(
    model=lm.ModelConfig(layers=4, width=128, heads=4, context=64, activation="swiglu", embedding_norm=True),
    data=lm.DataConfig(corpus="shakespeare", tokenizer="chars", validation=0.1),
    optimizer=lm.OptimizerConfig(
        name="muon", learning_rate=8e-3, matrix_learning_rate=0.03, momentum=0.9, beta2=0.95, newton_schulz=3
    ),
    schedule=lm.ScheduleConfig(name="wsd", warmup="2%", decay="60%"),
    train=lm.TrainConfig(steps=2000, batch=12, eval_tokens=111_540),
)
