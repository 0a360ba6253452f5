"""nanoGPT's full shape on Shakespeare's characters: 10.7M parameters, aimed below its published 1.4697.

lm data prepare shakespeare --download && lm train shakespeare_char     minutes on one GPU, hours on two CPU cores
The text is passed over many times: dropout, weight decay and the best checkpoint (`--checkpoint best`) matter.
"""

import lm

experiment = lm.Experiment(
    model=lm.ModelConfig(layers=6, width=384, heads=6, context=256, dropout=0.2),
    data=lm.DataConfig(corpus="shakespeare", tokenizer="chars", validation=0.1),
    optimizer=lm.OptimizerConfig(name="muon", learning_rate=3e-3, matrix_learning_rate=0.01, weight_decay=0.3),
    schedule=lm.ScheduleConfig(name="wsd", warmup="2%", decay="60%"),
    train=lm.TrainConfig(steps=2000, batch=64, eval_every=100, eval_tokens=111_540),
)
