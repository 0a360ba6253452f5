r"""Does a learning rate found on a narrow model serve a wide one? Sweep widths with a base width and without.

lm sweep transfer --grid model.base_width=None,32 model.width=32,64,128 train.seed=0,1,2 \
    optimizer.learning_rate=0.001,0.002,0.004,0.008,0.016,0.032           half an hour on two CPU cores, no download
lm plot runs/transfer/points.csv --figures learning_rates
With a base width the best rate should be the same for all widths; without, the lower the wider. Heads widen.
"""

import lm

experiment = lm.Experiment(
    model=lm.ModelConfig(layers=2, width=32, heads=2, base_head_width=16, context=64),
    data=lm.DataConfig(corpus="stdlib"),
    optimizer=lm.OptimizerConfig(name="adamw"),
    schedule=lm.ScheduleConfig(name="cosine", warmup=20),
    train=lm.TrainConfig(steps=200, batch=8, eval_every="100%", checkpoint_every="100%", eval_tokens=65_536),
)
