"""A model that reads both ways and tells hidden words, as a start for others (Devlin et al. 2019).

lm train masked --data.corpus texts.txt                        a minute on two CPU cores
lm train masked --name classes --train.objective next_token --model.mask prefix --data.packing false \
    --data.examples labelled.tsv --data.tokenizer runs/masked/tokenizer.json --train.start masked
"""

import lm

experiment = lm.Experiment(
    model=lm.ModelConfig(
        layers=2, width=64, context=72, tied=True, mask="full", mask_token=True, activation="swiglu", dropout=0.1
    ),
    data=lm.DataConfig(tokenizer="bpe", vocab=2048, packing=True, validation=0.05),
    optimizer=lm.OptimizerConfig(name="muon", learning_rate=0.01, matrix_learning_rate=0.02, newton_schulz=3),
    schedule=lm.ScheduleConfig(name="cosine", warmup="5%"),
    train=lm.TrainConfig(
        steps=1200, batch=16, objective="masked", eval_every="50%", checkpoint_every="100%", eval_tokens=20_000
    ),
)
