"""The tiny models of every family that the study of exchange makes, where transformers is there to make them."""

import importlib.util
from pathlib import Path

from libraries import library

library("torch")
library("transformers")
STUDY = Path(__file__).resolve().parents[2] / "experiments" / "exchange_models.py"
_specification = importlib.util.spec_from_file_location("exchange_models", STUDY)
models = importlib.util.module_from_spec(_specification)
_specification.loader.exec_module(models)
CASES, VOCAB = models.CASES, models.VOCAB
their_model, config_of, state_dict = models.their_model, models.config_of, models.state_dict
