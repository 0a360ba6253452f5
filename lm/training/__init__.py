"""Training: one pure step, one linear loop. Names are imported when they are first used.

Axes beside the project's own (B batch, T positions, D width, L layers, V vocabulary, P packed runs):
  U  updates (steps) in one dispatch: windows [U, B] or [U, B, T+1]
Windows of T+1 tokens hold inputs and targets, one apart.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "loop": ["branch", "train", "train_pack", "with_vocabulary"],
        "step": ["TrainState", "hyperparameters", "init_state", "train_step"],
        "programs": ["WAYS", "make_train_steps"],
        "pack": ["make_pack", "resolve"],
        "display": ["Display"],
        "rollouts": ["Measured", "measure"],
    },
)
