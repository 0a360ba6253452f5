"""A model that came from elsewhere learns by adapters, is merged by one command, and goes out again."""

import json

import jax
import numpy as np
import pytest
import tiny

import lm
from lm.cli import main

safetensors = pytest.importorskip("safetensors.numpy", reason="needs the extra exchange")
pytest.importorskip("tokenizers", reason="needs the extra exchange")
from test_incoming import place, published, refusal  # noqa: E402, F401

from lm.exchange.incoming import import_model  # noqa: E402
from lm.model.adapters import Adapters  # noqa: E402


@pytest.fixture
def adapted(place):  # noqa: F811
    """A working directory with an imported model and adapters of it, fine-tuned on chats by the command."""
    import_model("copy", "theirs", check=False)
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
    rows = [{"messages": [{"role": "user", "content": f"{i}"}, chat[1]]} for i in range(20)]
    (place / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["train", "sft", "--train.start", "theirs", "--data.examples", "chats.jsonl", "--optimizer.lora", "2"]
    words += ["--train.steps", "2", "--train.batch", "4", "--schedule.warmup", "0", "--train.diverged", "9"]
    assert main([*words, "--json"]) == 0
    return place


def test_adapters_are_small_and_load_as_a_model(adapted, capsys):
    run, base, m = lm.Run("sft"), lm.load("theirs"), lm.load("sft")
    assert run.experiment.model == base.experiment.model
    sizes = [sum(file.stat().st_size for file in (r.checkpoint_folder / str(r.reached)).rglob("*params*/**/*")
                 if file.is_file()) for r in (run, base.run)]  # fmt: skip
    assert 0 < sizes[0] < sizes[1]
    changed = [not tiny.same_bits(a, b) for a, b in zip(*map(jax.tree.leaves, (base.params, m.params)), strict=True)]
    assert any(changed) and not all(changed)
    np.testing.assert_array_equal(base.params["embedding"], m.params["embedding"])
    assert main(["sample", "sft", "--chat", "--prompt", "hi", "--max-tokens", "3"]) == 0


def test_merged_stands_alone(adapted, capsys):
    whole = lm.load("sft")
    capsys.readouterr()
    assert main(["merge", "sft", "--name", "merged", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rank"] == 2
    (adapted / "runs" / "theirs").rename(adapted / "away")
    alone = lm.load("merged")
    assert tiny.same_bits(alone.params, whole.params)
    assert alone.experiment.optimizer.lora is None and alone.experiment.train.start is None
    said = refusal(capsys, "sample", "sft", "--prompt", "hi")
    assert "holds adapters of theirs at step 0, and cannot be without it (`lm merge` makes it whole)" in said
    assert main(["export", "merged", "--to", "hf", "out", "--no-check"]) == 0
    assert main(["sample", "merged", "--chat", "--prompt", "hi", "--max-tokens", "3"]) == 0


def test_what_cannot_be_merged_is_refused(adapted, capsys):
    capsys.readouterr()
    assert "holds no adapters: it stands alone already" in refusal(capsys, "merge", "theirs", "--name", "x")
    assert "runs/theirs is there already" in refusal(capsys, "merge", "sft", "--name", "theirs")
    assert "which name?" in refusal(capsys, "merge", "sft")
    assert not (adapted / "runs" / "x").exists()


def test_a_config_that_goes_on_asks_from_what(adapted, capsys):
    capsys.readouterr()
    assert "goes on from another run: give --train.start RUN" in refusal(capsys, "train", "sft")
    said = refusal(capsys, "train", "sft", "--train.start", "nobody", "--data.examples", "chats.jsonl")
    assert "train.start nobody: no such run" in said


def test_fresh_adapters_of_an_imported_model_change_nothing(adapted):
    base = lm.load("theirs")
    adapters = Adapters(base.model, 4, 16.0)
    assert tiny.same_bits(adapters.merged(base.params, adapters.init(0)), base.params)
