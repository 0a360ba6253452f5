"""English to French with an encoder and a decoder: a source, and what is to be said of it.

lm train translate --data.examples pairs.tsv                     two columns, a line a pair: source, target
lm sample translate --source "Where is the cat?" --beam 4
lm eval translate                                                nats per token, BLEU and chrF of what was held out
"""

import lm

experiment = lm.Experiment(
    model=lm.ModelConfig(
        layers=2, width=128, context=24, tied=True, encoder=lm.EncoderConfig(layers=2, width=128, context=24)
    ),
    data=lm.DataConfig(examples="pairs.tsv", tokenizer="bpe", vocab=4096, validation=0.02),
    optimizer=lm.OptimizerConfig(
        name="muon", learning_rate=8e-3, matrix_learning_rate=0.03, momentum=0.9, beta2=0.95, newton_schulz=3
    ),
    schedule=lm.ScheduleConfig(name="wsd", decay="60%"),
    train=lm.TrainConfig(steps=3000, batch=64, eval_every="20%"),
)
