"""nanoGPT's 1.4697 on Shakespeare's characters, which takes minutes of an A100, in eight minutes on two CPU cores.

lm data prepare shakespeare --download && lm train shakespeare_char_laptop
lm train shakespeare_char_laptop --model.dtype bfloat16_products        worth a try on a processor that has AMX
A sixteenth of nanoGPT's 10.65M parameters, so that there is time for four passes over the text, in windows that grow to
its 256 characters; in so few passes dropout only costs. How it was chosen and what it reaches: experiments/RESULTS.md.
"""

import lm

experiment = lm.Experiment(
    model=lm.ModelConfig(
        layers=6, width=96, heads=3, context=256, activation="swiglu", embedding_norm=True, dropout=0.0,
    ),
    data=lm.DataConfig(corpus="shakespeare", tokenizer="chars", validation=0.1),
    optimizer=lm.OptimizerConfig(
        name="muon", learning_rate=8e-3, matrix_learning_rate=0.03, momentum=0.9, beta2=0.95, newton_schulz=3
    ),
    schedule=lm.ScheduleConfig(name="wsd", warmup="2%", decay="60%", context_start=64, context_growth="90%"),
    train=lm.TrainConfig(
        steps=880, batch=16, accumulation=2, eval_every="25%", checkpoint_every="50%", eval_tokens=111_540
    ),
)  # fmt: skip
