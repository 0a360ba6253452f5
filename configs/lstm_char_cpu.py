"""An LSTM on Shakespeare's characters: parameters, tokens and optimizer as in shakespeare_char_cpu, to compare with it.

lm data prepare shakespeare --download && lm train lstm_char_cpu
lm train lstm_char_cpu --data.corpus path/to/input.txt          the same with a file you have
"""

import lm

experiment = lm.Experiment(
    model=lm.RecurrentConfig(layers=2, width=220, context=64),
    data=lm.DataConfig(corpus="shakespeare", tokenizer="chars", validation=0.1),
    optimizer=lm.OptimizerConfig(
        name="muon", learning_rate=8e-3, matrix_learning_rate=0.03, momentum=0.9, beta2=0.95, newton_schulz=3
    ),
    schedule=lm.ScheduleConfig(name="wsd", warmup="2%", decay="60%"),
    train=lm.TrainConfig(steps=2000, batch=12, eval_tokens=111_540),
)
