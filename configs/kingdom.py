"""A model of the generated corpus, whose entropy, relations and facts are known.

lm train kingdom                                                    about 3 minutes on two CPU cores, no download
lm train kingdom --name shuffled --data.corpus kingdom-shuffled     its control: nouns without gender or age
"""

import lm

experiment = lm.Experiment(
    model=lm.ModelConfig(layers=2, width=96, heads=4, context=256, tied=True),
    data=lm.DataConfig(corpus="kingdom", tokenizer="words", validation=0.04),
    optimizer=lm.OptimizerConfig(name="muon", learning_rate=6e-3, matrix_learning_rate=0.02),
    schedule=lm.ScheduleConfig(name="wsd", warmup="2%", decay="60%"),
    train=lm.TrainConfig(steps=1000, batch=16, eval_every="20%", eval_tokens=100_000),
)
