"""Handwritten digits to their classes: an image's 16 patches of 2 x 2 pixels stand before the tokens, as vectors.

python experiments/images.py --write digits.npz      frames [1797, 16, 4] and labels, from scikit-learn; no download
lm train digits --data.examples digits.npz                                             half a minute on two CPU cores
"""

import lm

experiment = lm.Experiment(
    model=lm.ModelConfig(
        layers=2, width=64, context=18, mask="prefix", vectors=4, positions="learned", activation="swiglu", dropout=0.1
    ),
    data=lm.DataConfig(examples="digits.npz", tokenizer="chars", validation=0.25),
    optimizer=lm.OptimizerConfig(name="muon", learning_rate=0.02, matrix_learning_rate=0.04, newton_schulz=3),
    schedule=lm.ScheduleConfig(name="cosine", warmup="5%"),
    train=lm.TrainConfig(steps=1200, batch=32, eval_every="25%", checkpoint_every="100%"),
)
