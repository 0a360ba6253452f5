"""The peers: other programs that do the same work, where they are installed (extra `bench`). PyTorch trains the same
architecture; those that decode are GPT-2s of the same shape.

Each is imported only when it takes part; one that is missing or does not run is named, with the reason.
"""

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax

from lm.bench.results import Absent
from lm.bench.rounds import Contestant
from lm.config import Experiment, ModelConfig
from lm.errors import UserError
from lm.training.display import Display

WARM_UP = 2
"""Units of work before the first turn: a first call compiles, a second may compile again."""


@dataclass(frozen=True)
class Entry:
    """A peer that may take part."""

    name: str
    needs: tuple[str, ...]
    """Modules."""
    make: Callable[[], Callable[[int], object]]
    """Its run(n)."""


def training_peers(e: Experiment) -> list[Entry]:
    """PyTorch as nanoGPT uses it, eager and compiled; a unit of work is an optimizer step."""

    def make(compiled: bool):
        from lm.bench.torch_peer import torch_trainer

        return torch_trainer(e, compiled, _torch_device())

    return [
        Entry("PyTorch, eager", ("torch",), lambda: make(compiled=False)),
        Entry("PyTorch, torch.compile", ("torch",), lambda: make(compiled=True)),
    ]


def decoding_peers(c: ModelConfig, batch: int, tokens: int, prompt: Sequence[int]) -> list[Entry]:
    """transformers with its cache, and llama.cpp in float32; a unit of work is a generation of batch x tokens."""

    def transformers():
        from lm.bench.transformers_peer import generator

        return generator(c, batch, tokens, prompt, _torch_device())

    def llama():
        from lm.bench.llama_peer import generator

        return generator(c, batch, tokens, prompt)

    return [
        Entry("transformers", ("torch", "transformers"), transformers),
        Entry("llama.cpp", ("llama_cpp", "gguf"), llama),
    ]


def _torch_device() -> str:
    """PyTorch's word for where JAX computes."""
    import torch

    return "cuda" if jax.default_backend() == "gpu" and torch.cuda.is_available() else "cpu"


def gather(entries: Sequence[Entry], display: Display) -> tuple[list[Contestant], list[Absent]]:
    """Those that are installed and run, warmed up, and the others with the reason."""
    present, absent = [], []
    for i, entry in enumerate(entries):
        display.stage("preparing peers", i, len(entries))
        missing = [module for module in entry.needs if importlib.util.find_spec(module) is None]
        if missing:
            absent.append(Absent(entry.name, f"{', '.join(missing)} not installed: pip install -e '.[bench]'"))
            continue
        try:
            run = entry.make()
            run(WARM_UP)
            present.append(Contestant(entry.name, run))
        except UserError as error:  # there is no such peer
            absent.append(Absent(entry.name, str(error)))
        except Exception as error:  # whatever another program's trouble is (no compiler, a shape), ours goes on
            first = next(iter(str(error).strip().splitlines()), "")
            absent.append(Absent(entry.name, f"does not run here: {type(error).__name__}: {first}"))
    return present, absent
