"""GPT-2's smallest shape on your own text, for one GPU or a cluster's node.

lm train gpt2 --data.corpus 'folder/*.jsonl.zst'
"""

import lm

experiment = lm.Experiment(
    model=lm.ModelConfig.gpt2("124M", vocab=None),
    data=lm.DataConfig(corpus="fineweb-edu", tokenizer="gpt2", validation=0.005),
    optimizer=lm.OptimizerConfig(learning_rate=6e-4, beta2=0.95),
    schedule=lm.ScheduleConfig(name="cosine", warmup="700 steps", final=0.1),
    train=lm.TrainConfig(steps="10B tokens", batch=512, accumulation=16, loss_chunk=16_384),
)
