"""The study of scaling_cpu.py on one GPU: 0.2M to 30M parameters, bfloat16, bytes of a text of your own.

python experiments/scaling_gpu.py --corpus PATH              30 minutes; a gigabyte of text or more is wanted
python experiments/scaling_gpu.py --corpus PATH --minutes 5  ten million bytes will do
Same steps, tables, options (--rate, --seeds, --show, --runs) and figure, as experiments/figures/scaling_gpu.svg.
"""

import dataclasses

from scaling_cpu import CPU, main

import lm

GPU = dataclasses.replace(
    CPU,
    experiment=lm.replace(CPU.experiment, {"model.context": 512, "train.eval_tokens": 1 << 21, "model.unroll": 4}),
    widths=(64, 96, 128, 192, 256, 384, 512),
    learning_rates=(0.001, 0.002, 0.004, 0.008, 0.016),
    rules=dataclasses.replace(CPU.rules, head_width=64, batch_tokens=2048),
    minutes=30,
    name="scaling_gpu",
)

if __name__ == "__main__":
    main(GPU, __doc__)
