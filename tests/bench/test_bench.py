"""lm.bench.train and lm.bench.decode measure what they say, with their counts against closed forms."""

import dataclasses

import jax
import pytest

from lm import bench
from lm.bench import decoding, peers, training
from lm.config import Experiment, ModelConfig
from lm.errors import UserError
from lm.model.api import build

QUICK = dict(rounds=2, seconds=0.02)


def test_training_rates_belong_together(gpt2, tmp_path):
    found = bench.train(gpt2, peers=False, profile=tmp_path / "trace", **QUICK)
    assert found.flops_per_second == pytest.approx(found.tokens_per_second * build(gpt2.model).cost().training_flops)
    assert found.utilization == pytest.approx(found.flops_per_second / found.peak_flops_per_second)
    assert found.steps_per_second == pytest.approx(found.tokens_per_second / 96)
    low, high = found.quartiles
    assert 0 < low <= found.tokens_per_second <= high
    assert found.peers == found.absent == []
    assert found.memory_bytes > 3 * 4 * 28_000 and found.compile_seconds > 0
    assert found.operations and found.operations[0].seconds > 0
    assert "utilization" in found.table() and "of the time" in found.table()


@pytest.mark.parametrize("n", [1, 63, 64, 65, 130])
def test_a_turn_makes_as_many_steps_as_it_says(gpt2, n, program):
    """However they fall into dispatches."""
    before = int(program.pack.state(0).step)
    program.run(n)
    assert int(program.pack.state(0).step) == before + n


@pytest.fixture(scope="module")
def program():
    return training.Program(Experiment(model=ModelConfig(layers=1, width=8, heads=1, context=4, vocab=9)))


def test_training_that_stops_is_not_timed(program, monkeypatch):
    """A step that is not healthy ends the dispatch early, which would look fast."""
    monkeypatch.setitem(program.pack.hypers[0], "loss_limit", jax.numpy.float32(0))
    with pytest.raises(UserError, match="diverged"):
        program.run(2)


@pytest.mark.parametrize(
    ("tokenizer", "vocab", "expected"),
    [("bytes", None, 257), ("chars", None, 65), ("bpe", None, 4096), ("words", None, 4096), ("gpt2", None, 50257),
     ("bytes", 300, 300)],
)  # fmt: skip
def test_a_vocabulary_is_found_without_a_tokenizer(tokenizer, vocab, expected):
    from lm.config import DataConfig

    e = Experiment(model=ModelConfig(vocab=vocab), data=DataConfig(tokenizer=tokenizer))
    assert training.with_random_vocabulary(e).model.vocab == expected


def test_decoding_rates_belong_together(gpt2):
    found = bench.decode(gpt2, batch=2, prompt_tokens=5, peers=False, **QUICK)
    assert (found.batch, found.tokens, found.prompt_tokens) == (2, 27, 5)  # what the context of 32 leaves
    assert found.bytes_per_second == pytest.approx(found.tokens_per_second / 2 * found.bytes_per_step)
    assert found.utilization == pytest.approx(found.bytes_per_second / found.read_bytes_per_second)
    assert "fastest reading" in found.table()


def test_bytes_and_flops_of_a_token(gpt2):
    """Counted by hand: L=2 D=32 F=128 V=56, float32, tied head; 3 tokens after 5 see 5, 6 and 7 keys: 6 on average."""
    c = dataclasses.replace(gpt2.model, dtype="float32")
    block = 4 * (32 * 32 + 32) + (32 * 128 + 128) + (128 * 32 + 32) + 2 * 2 * 32
    params = 2 * block + 56 * 32 + 2 * 32
    assert decoding.bytes_per_step(build(c), 3, tokens=3, prompt_tokens=5) == 4 * (params + 3 * 2 * 2 * 6 * 32)
    matrices = 2 * (4 * 32 * 32 + 2 * 32 * 128) + 56 * 32
    assert decoding.flops_per_token(build(c), tokens=3, prompt_tokens=5) == 2 * matrices + 2 * 2 * 2 * 6 * 32
    untied = dataclasses.replace(c, tied=False)
    assert decoding.bytes_per_step(build(untied), 3, 3, 5) == decoding.bytes_per_step(build(c), 3, 3, 5)
    windowed = dataclasses.replace(c, window=6)  # 5, 6 and 6 keys
    assert decoding.bytes_per_step(build(windowed), 3, 3, 5) == pytest.approx(4 * (params + 3 * 2 * 2 * (17 / 3) * 32))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [(dict(batch=0), "--batch 0"), (dict(tokens=17), "--tokens 17: must be between 1 and 16"),
     (dict(prompt_tokens=32), "--prompt-tokens 32"), (dict(tokens=0), "--tokens 0"), (dict(rounds=0), "--rounds 0")],
)  # fmt: skip
def test_decoding_refuses_what_does_not_fit(gpt2, wrong, said):
    with pytest.raises(UserError, match=said):
        bench.decode(gpt2, peers=False, **(QUICK | wrong))


def test_absent_peers_are_named_with_the_way_to_get_them(monkeypatch):
    """Missing ones and those that fail; neither stops the others."""
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None if name == "gone" else name)

    def fails():
        raise RuntimeError("no compiler\nat all")

    entries = [
        peers.Entry("missing", ("json", "gone"), print),
        peers.Entry("failing", ("json",), fails),
        peers.Entry("here", ("json",), lambda: lambda n: None),
    ]
    from lm.training.display import Display

    present, absent = peers.gather(entries, Display(quiet=True))
    assert [one.name for one in present] == ["here"]
    assert [a.why for a in absent] == [
        "gone not installed: pip install -e '.[bench]'", "does not run here: RuntimeError: no compiler",
    ]  # fmt: skip
