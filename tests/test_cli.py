"""The command as people use it: every verb, every mistake on one line, `--json` that programs can read."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny

from lm import errors
from lm.cli import USAGE, VERBS, main
from lm.commands.sample import unescape
from lm.config import ModelConfig
from lm.model.api import build
from lm.model.conventions import conventions, parameters
from lm.run import Run, load
from lm.training import loop

CONFIG = """
import sys
sys.path.insert(0, {helpers!r})
import tiny
experiment = tiny.experiment({corpus!r})
"""
TRAIN_KEYS = {
    "run", "step", "tokens", "loss", "val_loss", "val_bits_per_byte", "seconds", "tokens_per_second", "params_total",
    "params_nonembedding", "flops_exact", "data_wait",
}  # fmt: skip


@pytest.fixture
def place(workplace, corpus, tiny_run) -> Path:
    """A directory of one's own: configs/demo.py, and the tiny run as runs/tiny."""
    (workplace / "configs").mkdir()
    config = CONFIG.format(helpers=str(Path(tiny.__file__).parent), corpus=str(corpus))
    (workplace / "configs" / "demo.py").write_text(config)
    shutil.copytree(tiny_run.path, workplace / "runs" / "tiny")
    return workplace


@pytest.fixture
def answer(lm):
    """The one JSON object a verb prints on standard output."""

    def run(*arguments):
        status, out, err = lm(*arguments, "--json")
        assert status == 0, err
        assert out.count("\n") == 1
        return json.loads(out)

    return run


@pytest.fixture
def refused(lm):
    """The one line a mistake is told on: status 2, nothing on standard output."""

    def run(*arguments):
        status, out, err = lm(*arguments)
        assert (status, out) == (2, ""), (status, out, err)
        assert err.startswith("lm: ") and err.endswith("\n") and err.count("\n") == 1, err
        return err[4:-1]

    return run


# --- help and typing mistakes ----------------------------------------------------------------------------------------
def test_help_and_typing_mistakes_do_not_wait_for_jax(workplace):
    """One process runs them all; JAX is never imported."""
    code = (
        "import sys; from lm.cli import main\n"
        "cases = [], ['--help'], ['train', 'quickstart', '--model.layerz', '4'], ['train', 'quickstrat'], ['tran']\n"
        "print([main(case) for case in cases], 'jax' in sys.modules, file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == USAGE * 2
    *lines, last = done.stderr.splitlines()
    assert last == "[0, 0, 2, 2, 2] False"
    assert len(lines) == 3
    assert lines[0].startswith("lm: model.layerz: no such setting; did you mean model.layers?")
    assert lines[1].startswith("lm: no config named quickstrat; did you mean quickstart?")
    assert lines[2].startswith("lm: tran: no such verb; did you mean train?")


@pytest.mark.parametrize("verb", ["train", "sample", "eval", "runs", "plot", "fit"])
def test_every_verb_explains_its_options(verb, capsys, workplace):
    with pytest.raises(SystemExit) as end:
        main([verb, "--help"])
    out = capsys.readouterr().out
    assert end.value.code == 0
    assert "--json" in out
    assert verb in USAGE and verb in VERBS
    if verb == "train":
        assert "--model.layers" in out and "number of blocks" in out and "--train.checkpoint-every" in out


HELPS = (
    "", "train", "sample", "eval", "runs", "plot", "plot points.csv", "fit", "data", "data list", "data prepare",
    "data kingdom", "tokenizer", "tokenizer train", "tokenizer show", "bench", "bench train", "bench decode", "plan",
    "sweep", "probe", "probe tiny", *(f"probe tiny {action}" for action in (
        "analogy", "neighbours", "suite", "similarity", "geometry", "attention", "lens", "facts", "ablate", "trace",
        "loss",
    )),
)  # fmt: skip


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_is_there_wherever_it_is_asked_for(flag, capsys, workplace):
    for words in HELPS:
        try:
            status = main([*words.split(), flag])
        except SystemExit as end:
            status = end.code
        shown = capsys.readouterr()
        assert (status, shown.err) == (0, "") and "lm" in shown.out, words
    assert "75" in USAGE and "Exit status" in USAGE


# --- mistakes --------------------------------------------------------------------------------------------------------
BAD_COMMANDS = {
    "unknown verb": (["evl", "tiny"], "evl: no such verb; did you mean eval?"),
    "no config": (["train"], "which config?"),
    "flag for a config": (["train", "--json"], "which config?"),
    "unknown config": (["train", "demmo"], "no config named demmo; did you mean demo?"),
    "no such file": (["train", "nothing.py"], "no config file nothing.py"),
    "typo'd key": (["train", "demo", "--model.layerz", "4"], "layerz: no such setting; did you mean model.layers?"),
    "typo'd key, equals": (["train", "demo", "--trian.steps=4"], "no such setting; did you mean train.steps?"),
    "not a number": (["train", "demo", "--model.layers", "four"], "four"),
    "bad value": (["train", "demo", "--model.layers", "0"], "model.layers 0: must be at least 1"),
    "bad pair": (["train", "demo", "--model.heads", "3"], "model.width 16 is not a multiple of model.heads 3"),
    "bad choice": (["train", "demo", "--optimizer.name", "adam"], "adam"),
    "bad duration": (["train", "demo", "--train.steps", "5 weeks"], "train.steps '5 weeks': expected steps"),
    "value missing": (["train", "demo", "--model.layers"], "model.layers"),
    "extra word": (["train", "demo", "again"], "again"),
    "bad name": (["train", "demo", "--name", "../up"], "name '../up'"),
    "unknown corpus": (["train", "demo", "--data.corpus", "stdlb"], "no such corpus; did you mean stdlib?"),
    "corpus not here": (["train", "demo", "--data.corpus", "none/text.txt"], "no such file or folder"),
    "unknown tokenizer": (["train", "demo", "--data.tokenizer", "byte"], "no such tokenizer; did you mean bytes?"),
    "wrong vocabulary": (["train", "demo", "--model.vocab", "300"], "model.vocab 300 is not the 23 tokens"),
    "too long a warm-up": (["train", "demo", "--schedule.warmup", "90"], "warmup 90 is longer than the run's 60"),
    "no such run, sample": (["sample", "tinny"], "no run tinny; did you mean tiny?"),
    "no such run, eval": (["eval", "tinny"], "no run tinny; did you mean tiny?"),
    "no such run, plot": (["plot", "tiny", "tinny"], "no run tinny; did you mean tiny?"),
    "no run": (["plot"], "which runs?"),
    "no such step": (["sample", "tiny", "--checkpoint", "44"], "no checkpoint 44; it has [45, 60]"),
    "out of context": (["sample", "tiny", "--prompt", "the king " * 9], "the model's context 16"),
    "too many tokens": (["sample", "tiny", "--prompt", "the", "--max-tokens", "99"], "must be at most 14"),
    "foreign character": (["sample", "tiny", "--prompt", "Ω"], "character 'Ω' (U+03A9)"),
    "bad temperature": (["sample", "tiny", "--temperature", "-1"], "temperature -1"),
    "typo'd option": (["sample", "tiny", "--temprature", "1"], "--temprature, 1; did you mean --temperature?"),
    "not a count": (["sample", "tiny", "--max-tokens", "few"], "max-tokens: no type matching"),
    "run missing": (["eval", "--stride", "3"], "which run? A directory or its name"),
    "bad stride": (["eval", "tiny", "--stride", "17"], "stride 17: must be between 1"),
    "no such text": (["eval", "tiny", "--text", "none.txt"], "--text none.txt: no such file or folder"),
    "figure format": (["plot", "tiny", "--out", "a.gif"], "write a .png, .svg, .pdf"),
    "not UTF-8": (["sample", "tiny", "--prompt", "\udcff"], "\\udcff: not UTF-8 text"),
    "NUL in a path": (["eval", "tiny", "--text", "a\0b"], "a\\x00b: not UTF-8 text"),
    "control characters": (["eval", "tiny", "--text", "\x1b[31m"], "\\x1b[31m"),
    "a name too long": (["train", "x" * 5000], "xxx…xxx"),
    "a path too long": (["fit", "x/" * 3000], "File name too long"),
    "someone's home": (["train", "demo", "--data.corpus", "~nobody/x"], "~nobody/x: no such file or folder"),
    "a folder for a table": (["plot", "runs/x.csv"], "points runs/x.csv: no such file"),
    "not a number of rounds": (["bench", "train", "demo", "--rounds", "0"], "--rounds 0: must be at least 1"),
    "no time": (["bench", "train", "demo", "--seconds", "inf"], "--seconds inf: not a finite number"),
    "no folder of runs": (["runs", "--folder", "elsewhere"], "no folder elsewhere"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_COMMANDS)
def test_mistakes_are_told_on_one_line(place, refused, case):
    """What was wrong, with the value and the way out; no run is made, no figure left."""
    arguments, said = BAD_COMMANDS[case]
    before = sorted(place.rglob("*"))
    assert said in refused(*arguments)
    assert sorted(place.rglob("*")) == before


BAD_TEXTS = {
    "empty file": ("a.txt", b"", "nothing but empty files"),
    "blank file": ("a.txt", b" \n ", "only blank"),
    "binary file": ("a.txt", b"\x00\xff\xfe\x01" * 50, "is not text"),
    "missing field": ("a.jsonl", b'{"body": "the king"}\n' * 50, "text"),
    "broken line": ("a.jsonl", b'{"text": "the king"}\n{"text": \n' * 50, "2"),
    "shorter than a window": ("a.txt", b"the king", "fewer than one window"),
    "unknown kind": ("a.docx", b"PK" * 50, "cannot read this kind of file"),
}


@pytest.mark.parametrize("case", BAD_TEXTS)
def test_texts_that_cannot_be_trained_on_are_refused(place, refused, case):
    """One line naming the trouble, and no run directory."""
    name, content, said = BAD_TEXTS[case]
    (place / name).write_bytes(content)
    message = refused("train", "demo", "--name", "new", "--data.corpus", name)
    assert said in message
    assert case == "shorter than a window" or name in message
    assert not (place / "runs" / "new").exists()


def test_damaged_runs_are_told_on_one_line(place, refused):
    """A checkpoint with a part missing, a replaced tokenizer, a cut experiment.json: by every verb that reads them."""
    shutil.rmtree(place / "runs/tiny/checkpoints/60/params")
    for verb in ("sample", "eval"):
        message = refused(verb, "tiny")
        assert "checkpoints/60 is damaged" in message and "delete it to go on from step 45" in message
    tokenizer = place / "runs/tiny/tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace('"alphabet": "', '"alphabet": "~'))
    assert "the tokenizer has 24 tokens and the model 23" in refused("sample", "tiny")
    (place / "runs/tiny/experiment.json").write_text("{")
    for arguments in (["sample", "tiny"], ["eval", "tiny"], ["plot", "tiny"], ["runs", "tiny"]):
        assert "experiment.json is damaged" in refused(*arguments)


def test_a_config_that_does_not_run_is_told_on_one_line(place, refused):
    (place / "configs/broken.py").write_text("experiment = undefined\n")
    assert "does not run: NameError" in refused("train", "broken")
    (place / "configs/other.py").write_text("x = 1\n")
    assert "defines no `experiment" in refused("train", "other")


def test_divergence_is_told_with_the_way_out(place, lm):
    status, out, err = lm("train", "demo", "--name", "wild", "--optimizer.learning-rate", "1e4", "--schedule.warmup", 0)
    assert (status, out) == (2, "")
    last = err.splitlines()[-1]
    assert last.startswith("lm: training diverged at step ") and "--optimizer.learning-rate (now 10000)" in last
    assert "Traceback" not in err


def test_an_error_stands_alone(place, refused, lm):
    """What a command would have told besides is told when all is well, and before long work."""
    (place / "folder").mkdir()
    (place / "folder" / "a.txt").write_text("the king and the queen\n" * 2000)
    (place / "folder" / "b.bin").write_bytes(b"\0")
    told = "lm: data.corpus folder: left out 1 files of other kinds (b.bin)\n"
    assert "'no': no such corpus" in refused("data", "prepare", "folder", "--validation-corpus", "no")
    assert lm("data", "prepare", "folder")[2].endswith(told)
    errors.print_once.cache_clear()
    wild = ["--optimizer.learning-rate", "1e4", "--schedule.warmup", 0]
    status, _, err = lm("train", "demo", "--name", "wild", "--data.corpus", "folder", *wild)
    assert status == 2 and err.startswith(told) and "diverged" in err.splitlines()[-1]


# --- a user's session ------------------------------------------------------------------------------------------------
def test_train_sample_eval_runs_plot(place, answer, lm, corpus):
    """From a config to a figure, as the README does it."""
    made = answer("train", "demo", "--name", "mine", "--train.steps", 30)
    assert TRAIN_KEYS <= set(made)
    run = Run("mine")
    assert made["run"] == "runs/mine" and made["step"] == 30 and made["tokens"] == 30 * 64
    assert made["params_total"] == run.record["params_total"]
    assert made["flops_exact"] == pytest.approx(build(run.experiment.model).cost().training_flops * 30 * 64)
    assert made["val_loss"] == run.metrics()[-1]["val_loss"]

    status, out, err = lm("train", "demo", "--name", "mine", "--train.steps", 30)
    assert status == 0 and "step 30 of 30" in out and not err
    assert "bits/byte   this model" in out and "xz -9e" in out and "lm sample mine" in out

    sampled = answer("sample", "mine", "--prompt", "the king", "--samples", 2, "--max-tokens", 5, "--seed", 3)
    assert len(sampled["samples"]) == 2 and sampled["tokens_per_second"] > 0
    for sample in sampled["samples"]:
        assert set(sample) == {"prompt", "text", "tokens", "token_texts", "logprobs", "ended"}
        assert sample["ended"] == "length" and "".join(sample["token_texts"]) == sample["text"]
        assert sample["prompt"] == "the king" and len(sample["tokens"]) == len(sample["logprobs"]) == 5
    status, out, _ = lm("sample", "mine", "--prompt", "the king", "--max-tokens", 5, "--seed", 3)
    assert status == 0 and out == "the king" + sampled["samples"][0]["text"] + "\n"

    (place / "text.txt").write_text(tiny.text(50, seed=5))
    scored = answer("eval", "mine", "--text", "text.txt", "--stride", 4)
    assert set(scored) == {"loss", "perplexity", "bits_per_byte", "tokens", "bytes"}
    assert scored["tokens"] == scored["bytes"] == len(tiny.text(50, seed=5)) - 1
    assert answer("eval", "mine")["tokens"] > 1000
    status, out, _ = lm("eval", "mine", "--text", "text.txt", "--stride", 4)
    assert f"loss {scored['loss']:.4f} nats/token" in out and f"{scored['bits_per_byte']:.4f} bits/byte" in out

    (place / "folder").mkdir()
    (place / "folder" / "a.txt").write_text("the king and the queen")
    table = answer("eval", "mine", "tiny", "--text", "text.txt", "--text", "folder", "--stride", 4)["scores"]
    assert [(row["run"], row["text"]) for row in table] == [
        (run, text) for run in ("mine", "tiny") for text in ("text.txt", "folder")
    ]
    assert {key: table[0][key] for key in scored} == scored
    status, out, _ = lm("eval", "mine", "tiny", "--text", "text.txt", "--stride", 4)
    assert status == 0 and out.splitlines()[0].split() == [
        "run", "text", "step", "tokens", "bytes", "loss", "perplexity", "bits/byte",
    ]  # fmt: skip

    rows = answer("runs")["runs"]
    assert [row["run"] for row in rows] == ["runs/mine", "runs/tiny"]
    assert rows[0]["step"] == rows[0]["steps"] == 30 and rows[0]["val_loss"] == made["val_loss"]
    assert "runs/tiny" in lm("runs")[1]

    for suffix in ("png", "svg", "pdf"):
        assert answer("plot", "mine", "tiny", "--out", f"figures/loss.{suffix}")["runs"] == ["mine", "tiny"]
        assert (place / "figures" / f"loss.{suffix}").stat().st_size > 1000


@pytest.mark.parametrize("packing", [False, True])
def test_dry_run_counts_and_makes_no_run(place, answer, monkeypatch, packing):
    """Parameters, FLOPs and lengths agree with the functions that count them; nothing appears under runs/."""
    monkeypatch.setattr("lm.training.dry_run.MEASURE_SECONDS", 0.05)
    before = sorted(place.rglob("*"))
    cost = answer("train", "demo", "--name", "new", "--dry-run", "--data.packing", packing)
    assert sorted(place.rglob("*")) == before
    c = ModelConfig(**Run("tiny").record["experiment"]["model"])
    assert (cost["params_total"], cost["params_nonembedding"]) == build(c).parameter_count()
    assert sum(cost["params"].values()) == cost["params_total"]
    assert set(cost["params"]) == {"embedding", "attention", "feedforward", "norms", "head"}
    exact = build(c).cost().training_flops
    assert cost["flops_exact_per_token"] == exact == 3 * sum(cost["flops_forward_per_token"].values())
    assert cost["flops_conventions_per_token"] == conventions(build(c))
    assert cost["params_conventions"] == parameters(build(c))
    assert cost["steps"] == 60 and cost["tokens"] == 60 * 64
    assert cost["flops_exact"] == pytest.approx(cost["tokens"] * build(c).cost().training_flops)
    assert cost["flops_6nd"] == pytest.approx(6 * cost["params_total"] * cost["tokens"])
    assert cost["tokens_per_parameter"] == pytest.approx(cost["tokens"] / cost["params_total"])
    assert cost["epochs"] == pytest.approx(cost["tokens"] / Run("tiny").record["epoch_tokens"])
    assert cost["memory_parameters"] == 4 * cost["params_total"]
    assert 2 * cost["memory_parameters"] <= cost["memory_optimizer"] <= 2 * cost["memory_parameters"] + 16
    assert cost["eta_seconds"] == pytest.approx(cost["tokens"] / cost["tokens_per_second"])
    assert cost["memory_activations"] > 0


def test_a_text_without_line_breaks_or_documents_is_trained_and_sampled(place, lm):
    """The sample at the end of training begins with a character the alphabet has."""
    (place / "line.txt").write_text(tiny.text().replace("\n", " "))
    status, out, err = lm("train", "demo", "--name", "line", "--data.corpus", "line.txt", "--train.steps", 15)
    assert status == 0, err
    assert "A sample" in out


def test_overrides_reach_the_run(place, answer):
    """Typed values, underscores for dashes, percentages and booleans."""
    answer(
        "train", "demo", "--name", "sub/folder", "--train.steps", "480 tokens", "--train.checkpoint_every", "50%",
        "--optimizer.learning-rate=1e-3", "--model.tied", "False", "--train.seed", "7",
    )  # fmt: skip
    e = Run("sub/folder").experiment
    assert e.train.steps == "480 tokens" and e.train.seed == 7 and e.optimizer.learning_rate == 1e-3
    assert e.train.checkpoint_every == "50%" and not e.model.tied
    assert Run("sub/folder").record["steps"]["total"] == 8 and Run("sub/folder").steps() == [4, 8]


def test_a_run_goes_on_from_what_it_recorded(place, answer, refused, lm):
    """By its path, wherever and however called it is now, without a config or a setting; a bare name is a config's."""
    shutil.move(place / "runs" / "tiny", place / "elsewhere")
    whole = parameter_bits(place / "elsewhere")
    shutil.rmtree(place / "elsewhere" / "checkpoints" / "60")
    made = answer("train", "elsewhere")
    assert made["run"] == "elsewhere" and made["step"] == 60
    assert parameter_bits(place / "elsewhere") == whole
    assert Run("elsewhere").record["experiment"]["name"] == "elsewhere"
    assert answer("eval", "elsewhere")["tokens"] > 0
    assert not (place / "runs" / "tiny").exists()

    shutil.move(place / "elsewhere", place / "runs" / "other")
    assert "runs/other goes on with: lm train runs/other" in refused("train", "other")
    assert "optimizer.learning_rate 0.003, now 0.1" in refused("train", "runs/other", "--optimizer.learning-rate", 0.1)
    assert "change the learning rate from step 6 on" in refused("train", "runs/other/", "--train.steps", 120)
    assert "no run runs/othre; did you mean other?" in refused("train", "runs/othre")
    status, out, err = lm("train", "runs/other")
    assert status == 0 and "step 60 of 60" in out and "lm sample other --prompt" in out, err
    assert "A sample" not in out, "nothing is compiled to show what is there"


def parameter_bits(path: Path) -> list[bytes]:
    """The parameters of a run's latest checkpoint."""
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(load(path).params)]


def test_a_run_that_was_stopped_says_so_by_its_status(place, lm, monkeypatch):
    """75, with the JSON that was asked for, also where nothing is logged yet; the same command goes on."""
    say = loop.Display.say

    def stop(display, text):
        say(display, text)
        if "parameters" in text:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Display, "say", stop)
        status, out, err = lm("train", "demo", "--name", "new", "--train.eval-every", "100%", "--json")
    assert status == 75 and "stopped at step 0 and saved; the same command goes on from there" in err
    assert json.loads(out)["run"] == "runs/new" and json.loads(out)["step"] is None
    status, out, err = lm("train", "demo", "--name", "new", "--train.eval-every", "100%", "--train.steps", 60, "--json")
    assert status == 0 and json.loads(out)["step"] == 60, err


def test_standard_input_stops_and_prompts_again(place, answer, refused, monkeypatch):
    """- is what comes in, every --prompt counts, and a stop may be written as the shell has it."""

    def typed(text):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))

    asked = ["sample", "tiny", "--max-tokens", 4, "--seed", 1]
    typed("the king")
    made = answer(*asked, "--prompt", "-", "--prompt", "the")["samples"]
    assert [sample["prompt"] for sample in made] == ["the king", "the"]
    first = made[0]["text"][1]
    code = rf"\u{ord(first):04x}"
    [stopped] = answer(*asked, "--prompt", "the king", "--stop", code, r"\n")["samples"]
    assert (stopped["ended"], stopped["text"]) == ("stop", made[0]["text"][: made[0]["text"].index(first)])
    typed("the king sat")
    (place / "king.txt").write_text("the king sat")
    assert answer("eval", "tiny", "--text", "-") == answer("eval", "tiny", "--text", "king.txt")
    assert "--prompt -: standard input can be read once" in refused(*asked, "--prompt", "-", "--prompt", "-")
    assert "which run?" in refused("eval")


def test_escapes_in_stop_strings():
    assert unescape(r"\n\t\r\\n\u00e9 \d \x") == "\n\t\r\\né \\d \\x"


def test_the_field_of_records_has_one_name_everywhere(place, answer, refused):
    """The option that an error names is the one that each verb takes."""
    (place / "n.jsonl").write_text(
        '{"meta": {"text": "the king sat on a mat and ran"}}\n' * 3 + '{"meta": {"text": "a"}}'
    )
    for verb in (
        ["data", "prepare", "n.jsonl"],
        ["tokenizer", "train", "n.jsonl"],
        ["eval", "tiny", "--text", "n.jsonl"],
    ):
        assert "no field 'text' among meta.text; set --data.text-field" in refused(*verb)
        answer(*verb, "--data.text-field", "meta.text")


def test_data_and_tokenizer_verbs(place, answer, refused, corpus):
    names = {row["name"] for row in answer("data", "list")["corpora"]}
    assert {"stdlib", "shakespeare"} <= names
    made = answer("data", "prepare", corpus, "--tokenizer", "chars")
    assert made["hashes"] == Run("tiny").record["hashes"] and made["n_vocab"] == 23
    assert made["train"]["count"] == Run("tiny").record["train_tokens"]
    made = answer("tokenizer", "train", corpus, "--kind", "bpe", "--vocab", 300, "--out", "bpe.json")
    assert made["n_vocab"] <= 300 and made["bytes_per_token"] > 1.5
    shown = answer("tokenizer", "show", "./bpe.json", "--text", "the king")
    assert "".join(shown["pieces"]) == "the king" and len(shown["tokens"]) == len(shown["pieces"]) < 8
    assert "no such action; did you mean train?" in refused("tokenizer", "trian")
    assert "cannot write" in refused("tokenizer", "train", corpus, "--vocab", 300, "--out", "none/bpe.json")
