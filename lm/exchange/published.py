"""A model as others keep it: what a Hugging Face folder holds, and what a GGUF file is read as and written from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Published:
    """A configuration, its tensors under the names that `transformers` gives them, and the texts beside them.

    config: as in config.json; `model_type` names the family. tensors: float32, as `transformers` shapes them (a linear
    map is [outputs, inputs]). texts: the other files by name, such as tokenizer.json, tokenizer_config.json,
    chat_template.jinja, generation_config.json and README.md. hashes: sha256 (hex) of each file that it was read from.
    """

    config: dict[str, Any]
    tensors: Mapping[str, np.ndarray]
    texts: Mapping[str, str] = field(default_factory=dict)
    hashes: Mapping[str, str] = field(default_factory=dict)
