"""An LSTM on Shakespeare's characters: as many parameters and tokens as shakespeare_char_cpu, to compare with it.

lm data prepare shakespeare --download && lm train lstm_char_cpu
lm train lstm_char_cpu --data.corpus path/to/input.txt          the same with a file you have
"""

import lm

experiment = lm.Experiment(
    model=lm.RecurrentConfig(layers=2, width=220, context=64),
    data=lm.DataConfig(corpus="shakespeare", tokenizer="chars", validation=0.1),
    optimizer=lm.OptimizerConfig(name="adamw", learning_rate=4e-3, beta2=0.95),
    schedule=lm.ScheduleConfig(name="wsd", warmup="2%", decay="60%"),
    train=lm.TrainConfig(steps=2000, batch=12, eval_tokens=111_540),
)
