"""lm import and lm export as commands: a run from a folder and back, and folders that are no models."""

import hashlib
import json

import jax
import numpy as np
import pytest

import lm
from lm.cli import main
from lm.config import Experiment, ModelConfig
from lm.model.trained import Trained
from lm.tokenizer import ByteTokenizer

safetensors = pytest.importorskip("safetensors.numpy", reason="needs the extra exchange")
pytest.importorskip("tokenizers", reason="needs the extra exchange")
from lively import lively  # noqa: E402

from lm.exchange import checking, incoming, outgoing  # noqa: E402
from lm.exchange.incoming import import_model  # noqa: E402
from lm.exchange.outgoing import export_folder  # noqa: E402

C = ModelConfig(
    layers=2, width=16, heads=4, kv_heads=2, context=32, feedforward=24, vocab=257, activation="swiglu",
    dtype="float32", zero_init=False, unroll=1,
)  # fmt: skip


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A folder as Hugging Face's are: a tiny qwen3 of bytes."""
    folder = tmp_path_factory.mktemp("exchange") / "tiny"
    export_folder(Trained(lively(C), ByteTokenizer(), Experiment(name="tiny", model=C), 0), folder, check=False)
    return folder


@pytest.fixture
def place(published, tmp_path, monkeypatch):
    """A working directory with a copy of that folder, called `given`."""
    monkeypatch.chdir(tmp_path)
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in published.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    return tmp_path


def changed(place, **keys):
    """Its config.json with other keys."""
    path = place / "copy" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def retensored(place, change):
    path = place / "copy" / "model.safetensors"
    safetensors.save_file(change(safetensors.load_file(path)), path)


def refusal(capsys, *arguments) -> str:
    """What a command that must end with 2 says on its one line."""
    assert main(list(arguments)) == 2
    out = capsys.readouterr()
    assert out.out == "" and out.err.count("\n") == 1 and len(out.err) < 600
    return out.err


def test_a_folder_becomes_a_run_and_the_run_a_folder(place, capsys):
    """The record names the source and its digests; what goes out again is what came in, to the bit."""
    assert main(["import", "copy", "--name", "ours", "--no-check", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["run"] == "runs/ours" and said["family"] == "qwen3" and said["largest_difference"] is None
    run = lm.Run("ours")
    weights = (place / "copy" / "model.safetensors").read_bytes()
    assert run.source["family"] == "qwen3" and run.steps() == [0] and run.finished
    assert run.source["files"]["model.safetensors"] == hashlib.sha256(weights).hexdigest()
    m = lm.load("ours")
    for one, two in zip(jax.tree.leaves(m.params), jax.tree.leaves(lively(C)), strict=True):
        rows = tuple(slice(0, size) for size in one.shape)
        np.testing.assert_array_equal(one, two[rows])
    assert m.tokenizer.encode_ordinary("naïve <|endoftext|>") == ByteTokenizer().encode_ordinary("naïve <|endoftext|>")
    assert main(["export", "ours", "--to", "hf", "out", "--no-check", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["path"] == "out" and said["foldings"] == []
    again = safetensors.load_file("out/model.safetensors")
    for name, tensor in safetensors.load_file("copy/model.safetensors").items():
        np.testing.assert_array_equal(again.pop(name), tensor)
    assert not again and "| imported from | copy |" in (place / "out" / "README.md").read_text()


def test_an_imported_run_is_a_run(place, capsys):
    """It samples, scores a text, is listed, and is where a training begins."""
    import_model("copy", "ours", check=False)
    (place / "text.txt").write_text("The king and the queen sat by the river.\n" * 60)
    assert main(["sample", "ours", "--prompt", "The", "--max-tokens", "4", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["samples"][0]["tokens"]) == 4
    assert main(["eval", "ours", "--text", "text.txt", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["bits_per_byte"] > 0
    assert main(["runs", "--json"]) == 0
    assert [row["run"] for row in json.loads(capsys.readouterr().out)["runs"]] == ["runs/ours"]
    assert "was imported, and knows no text of its own; give --text FILE" in refusal(capsys, "eval", "ours")
    assert "was imported, and there is nothing to resume: fine-tune it" in refusal(capsys, "train", "runs/ours")
    tuned = ["train", "runs/ours", "--name", "tuned", "--train.start", "ours", "--data.corpus", "text.txt",
             "--train.steps", "2", "--train.batch", "2", "--train.diverged", "9", "--json"]  # fmt: skip
    assert main(tuned) == 0
    assert json.loads(capsys.readouterr().out)["step"] == 2


def test_what_another_library_computes_otherwise_is_left(place, capsys, monkeypatch):
    """Neither a run nor a folder stays where logits differ by more than rounding explains."""
    far = checking.Check("transformers 0", 0.5, 2.0)
    monkeypatch.setattr(incoming, "check_folder", lambda *_: far)
    monkeypatch.setattr(outgoing, "check_folder", lambda *_: far)
    said = "logits are 5.0e-01 from transformers 0's, whose deviation is 2: more than rounding explains, so"
    assert f"{said} it is not imported" in refusal(capsys, "import", "copy", "--name", "ours")
    import_model("copy", "ours", check=False)
    assert f"{said} nothing is exported" in refusal(capsys, "export", "ours", "--to", "hf", "out")
    assert not (place / "out").exists()
    monkeypatch.setattr(outgoing, "check_folder", lambda *_: checking.Check("transformers 0", 1e-6, 2.0))
    assert main(["export", "ours", "--to", "hf", "out"]) == 0
    assert "logits within 1.0e-06 of transformers 0's" in capsys.readouterr().out


def test_a_context_may_be_asked_for(place, capsys):
    assert import_model("copy", "short", context=8, check=False).context == 8
    assert lm.load("short").experiment.model.context == 8
    changed(place, max_position_embeddings=40_960)
    said = []
    assert import_model("copy", "usual", check=False, say=said.append).context == 2048
    assert said[0] == "context 2,048 of its 40,960 tokens; --model.context asks for more"


def zeros(folder):
    """A gigabyte of them, which takes no room on the disk."""
    with (folder / "model.safetensors").open("wb") as file:
        file.truncate(1 << 30)


BROKEN = {
    "no config": (lambda p: (p / "config.json").unlink(), "no config.json"),
    "config no JSON": (lambda p: (p / "config.json").write_text("{"), "config.json is no JSON"),
    "config no object": (lambda p: (p / "config.json").write_text("[]"), "expected a JSON object"),
    "config deep": (lambda p: (p / "config.json").write_text("[" * 100_000), "config.json is no JSON"),
    "no weights": (lambda p: (p / "model.safetensors").unlink(), "no model.safetensors and no model.safetensors.index"),
    "a pickle": (
        lambda p: (p / "model.safetensors").rename(p / "pytorch_model.bin"),
        "pytorch_model.bin is a pickle, which runs code when it is opened",
    ),
    "weights cut": (
        lambda p: (p / "model.safetensors").write_bytes((p / "model.safetensors").read_bytes()[:-100]),
        "not a whole safetensors file",
    ),
    "weights of zeros": (zeros, "not a whole safetensors file"),
    "no tokenizer": (lambda p: (p / "tokenizer.json").unlink(), "no tokenizer.json"),
    "tokenizer no JSON": (lambda p: (p / "tokenizer.json").write_text("nonsense"), "tokenizer.json"),
    "config not UTF-8": (lambda p: (p / "config.json").write_bytes(b"\xff\xfe{}"), "not UTF-8 text"),
}  # fmt: skip


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_folder_is_refused_in_one_line(how, place, capsys):
    """And nothing is left of it."""
    breaks, said = BROKEN[how]
    breaks(place / "copy")
    assert said in refusal(capsys, "import", "copy", "--name", "ours", "--no-check")
    assert not list((place / "runs").glob("*")) and not list((place / "runs").glob(".*"))


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ("../model.safetensors", "is no safetensors file of the folder itself"),
        ("/etc/passwd", "is no safetensors file of the folder itself"),
        ("model-2.safetensors", "1 shards are missing"),
        ("pytorch_model.bin", "is no safetensors file of the folder itself"),
        (7, "is no safetensors file of the folder itself"),
        ("part.safetensors", "is not in the file it names"),
    ],
)
def test_an_index_names_files_of_its_own_folder(named, said, place, capsys):
    """Shards that are missing, that lie elsewhere, and that lack what they are said to hold."""
    copy = place / "copy"
    (copy / "model.safetensors").rename(copy / "part.safetensors")
    (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"model.nowhere": named}}))
    assert said in refusal(capsys, "import", "copy", "--name", "ours", "--no-check")


def test_shards_are_read_as_one_file_is(place):
    copy = place / "copy"
    tensors = safetensors.load_file(copy / "model.safetensors")
    import_model("copy", "whole", check=False)
    names, files = sorted(tensors), {}
    for number, part in enumerate((names[::2], names[1::2])):
        safetensors.save_file({name: tensors[name] for name in part}, copy / f"model-{number}.safetensors")
        files |= dict.fromkeys(part, f"model-{number}.safetensors")
    (copy / "model.safetensors").unlink()
    (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    import_model("copy", "parts", check=False)
    jax.tree.map(np.testing.assert_array_equal, lm.load("whole").params, lm.load("parts").params)


def test_bfloat16_is_read(place):
    """Each number as it is; there is more of it in float32."""
    import ml_dtypes

    retensored(place, lambda tensors: {name: x.astype(ml_dtypes.bfloat16) for name, x in tensors.items()})
    import_model("copy", "half", check=False)
    made = lm.load("half").params["final_norm"]["scale"]
    expected = lively(C)["final_norm"]["scale"].astype(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(made, expected)


def without(name):
    return lambda tensors: {key: value for key, value in tensors.items() if key != name}


LIES = {
    "a tensor too few": (
        lambda p: retensored(p, without("model.layers.1.mlp.up_proj.weight")),
        "layers.1.mlp.up_proj.weight: no such tensor in this qwen3",
    ),
    "a tensor too many": (
        lambda p: retensored(p, lambda t: t | {"model.layers.0.extra.weight": np.ones(3, np.float32)}),
        "layers.0.extra.weight: 1 tensors that such a qwen3 has no place for",
    ),
    "more layers": (
        lambda p: changed(p, num_hidden_layers=3, layer_types=None),
        "layers.2.self_attn.k_proj.weight: no such tensor",
    ),
    "many layers": (lambda p: changed(p, num_hidden_layers=10**9), "1,000,000,000 layers are too many"),
    "fewer layers": (
        lambda p: changed(p, num_hidden_layers=1, layer_types=None),
        "tensors that such a qwen3 has no place for",
    ),
    "wider": (lambda p: changed(p, hidden_size=32), "which does not give"),
    "a larger vocabulary": (lambda p: changed(p, vocab_size=300), "which does not give embedding.table (300, 16)"),
    "a smaller vocabulary": (lambda p: changed(p, vocab_size=200), "its tokenizer has 257 tokens, its embedding 200"),
    "another head": (lambda p: changed(p, tie_word_embeddings=True), "lm_head.weight is not the embedding"),
    "no number": (lambda p: changed(p, rms_norm_eps="small"), "model.norm_epsilon 'small': expected float"),
    "another kind": (lambda p: changed(p, rope_parameters={"rope_theta": None}), "model.rotary_base None: expected"),
    "an odd rope": (lambda p: changed(p, rope_scaling=7), "a key of qwen3 is of another kind"),
    "not a number": (
        lambda p: retensored(p, lambda t: t | {"model.norm.weight": np.full(16, np.nan, np.float32)}),
        "norm.weight holds numbers that are not finite",
    ),
}


@pytest.mark.parametrize("how", LIES)
def test_a_config_that_lies_is_refused_in_one_line(how, place, capsys):
    change, said = LIES[how]
    change(place)
    assert said in refusal(capsys, "import", "copy", "--name", "ours", "--no-check")
    assert not list((place / "runs").glob("*"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("import copy", "which name?"),
        ("import nowhere --name ours", "nowhere: no such folder or file"),
        ("import copy --name taken", "runs/taken is there already: choose another --name"),
        ("import copy --name ../ours", "name '../ours'"),
        ("import copy/config.json --name ours", "config.json"),
        ("import copy --name ours --model.context 0", "--model.context 0"),
        ("export taken", "where to? --to hf FOLDER, --to gguf FILE"),
        ("export taken --to hg out", "--to hg: one of hf, gguf"),
        ("export taken --to hf copy", "copy is there already: choose another"),
        ("export taken --to hf out --family lama", "model_type 'lama' is not supported; did you mean llama"),
        ("export taken --to hf out --family gpt2", "no family computes this model: gpt2 has no model."),
        ("export taken --to hf out --dtype f16", "--dtype is for --to gguf"),
        ("export nowhere --to hf out", "no run nowhere"),
    ],
)
def test_wrong_arguments_are_refused_in_one_line(arguments, said, place, capsys):
    import_model("copy", "taken", check=False)
    assert said in refusal(capsys, *arguments.split())
    assert not (place / "out").exists()
