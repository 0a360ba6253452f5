"""lm: a laboratory for small language models in JAX. The public names; each is imported when first used."""

import lazy_loader

__version__ = "0.1.0"
# Importing JAX takes a second: `lm --help` and a refused typo should not wait for it.
__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    ["bench", "config", "data", "exchange", "limits", "model", "probe", "processes", "sample", "scaling", "settings",
     "sweep", "tokenizer"],
    {
        "config": [
            "Experiment", "ModelBase", "ModelConfig", "EncoderConfig", "RecurrentConfig", "DataConfig",
            "OptimizerConfig", "ScheduleConfig", "TrainConfig", "FeedbackConfig", "ParallelConfig", "register",
        ],
        "errors": ["Diverged", "UserError"],
        "evaluation": ["evaluate"],
        "model.api": ["Inputs", "LanguageModel", "build", "implements"],
        "model.cache": ["KVCache"],
        "model.trained": ["Trained"],
        "model.transformer": ["Transformer"],
        "plot": ["loss_curves"],
        "run": ["Run", "load"],
        "sample.generate": ["Generator", "Sample", "generate"],
        "sample.samplers": ["Sampler"],
        "settings": ["load_experiment", "replace"],
        "training.display": ["Display"],
        "training.loop": ["train", "train_pack"],
    },
)  # fmt: skip
