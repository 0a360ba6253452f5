"""Config files: found, run and refused; and architectures that one of them defines."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from lm.architectures import ARCHITECTURES, ModelBase, ModelConfig, RecurrentConfig, register
from lm.arguments import parse_train
from lm.commands.common import split
from lm.commands.plan import Options
from lm.config import Experiment
from lm.errors import UserError
from lm.listing import listed, ordered, where
from lm.records import read_experiment
from lm.settings import (
    differences,
    fingerprint,
    from_dict,
    identity,
    load_experiment,
    replace,
    require_packable,
    settings,
    to_dict,
)

SOURCE = "from lm.config import *\nexperiment = Experiment(model=ModelConfig(layers=7){name})\n"


@pytest.fixture
def configs(tmp_path, monkeypatch):
    """A working directory with a folder of configurations."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "configs"
    folder.mkdir()
    (folder / "tiny_seven.py").write_text(SOURCE.format(name=""))
    (folder / "named.py").write_text(SOURCE.format(name=", name='given'"))
    (folder / "empty.py").write_text("experimemt = 3\n")
    (folder / "broken.py").write_text("1 / 0\n")
    (folder / "syntax.py").write_text("experiment = \n")
    (folder / "exits.py").write_text("import sys; sys.exit('bye')\n")
    (folder / "worse.py").write_text("class Worse(BaseException):\n    def __str__(self): 1 / 0\nraise Worse\n")
    (folder / "latin.py").write_bytes(b"name = '\xff'\n")
    (folder / "two words.py").write_text(SOURCE.format(name=""))
    (folder / "folder.py").mkdir()
    os.mkfifo(folder / "pipe.py")
    (folder / "loop.py").symlink_to("loop.py")
    (folder / "talks.py").write_text("print('hello')\n" + SOURCE.format(name=""))
    (folder / "refused.py").write_text("from lm.config import *\nexperiment = Experiment(model=ModelConfig(layers=0))")
    return folder


@pytest.mark.parametrize(
    "config, name", [("tiny_seven", "tiny_seven"), ("named", "given"), ("configs/named.py", "given")]
)
def test_experiments_load_by_name_and_by_path(configs, config, name):
    """The run is called after the file unless the experiment says otherwise."""
    experiment = load_experiment(config)
    assert (experiment.model.layers, experiment.name) == (7, name)


def test_the_projects_own_configs_are_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_experiment("quickstart").name == "quickstart"


@pytest.mark.parametrize(
    "config, message",
    [
        ("tiny_sevn", "no config named tiny_sevn; did you mean tiny_seven? (known: "),
        ("zzz", "no config named zzz (known: "),
        ("nowhere/a.py", "no config file nowhere/a.py"),
        ("empty", "configs/empty.py defines no `experiment = lm.Experiment(...)`"),
        ("broken", "configs/broken.py does not run: ZeroDivisionError: division by zero"),
        ("syntax", "configs/syntax.py does not run: SyntaxError: invalid syntax (line 1)"),
        ("exits", "configs/exits.py does not run: SystemExit: bye"),
        ("worse", "configs/worse.py does not run: <run_path>.Worse: <exception str() failed>"),
        ("latin", "configs/latin.py does not run: SyntaxError: (unicode error) 'utf-8' codec can't decode byte 0xff"),
        ("folder", "configs/folder.py is a folder; a config is a .py file"),
        ("pipe", "configs/pipe.py is not a file; a config is a .py file"),
        ("loop", "configs/loop.py is not a file; a config is a .py file"),
        ("two words", "configs/two words.py names its run: name 'two words': letters, digits"),
        ("refused", "configs/refused.py: model.layers 0: must be at least 1"),
    ],
)
def test_files_that_hold_no_experiment_are_refused(configs, config, message):
    with pytest.raises(UserError) as error:
        load_experiment(config)
    assert message in str(error.value)


def test_what_a_config_prints_stays_out_of_standard_output(configs, capsys):
    """There a verb's own answer goes, which with --json is one object."""
    assert load_experiment("talks").name == "talks"
    assert capsys.readouterr() == ("", "hello\n")


# --- architectures ---------------------------------------------------------------------------------------------------
GATED = """
from __future__ import annotations
from dataclasses import dataclass
import lm

@lm.register("gated")
@dataclass(frozen=True)
class Gated(lm.ModelBase):
    \"\"\"Shape of a gated model.\"\"\"

    layers: lm.limits.Count = 2
    width: lm.limits.Count = 16
    context: lm.limits.Count = 16
    vocab: lm.limits.MaybeCount = None
    kernel: lm.limits.Count = 4
    \"\"\"Positions that a gate sees.\"\"\"
    causal: bool = True

experiment = lm.Experiment(model=Gated(kernel=3))
"""


@pytest.fixture
def gated(workplace, monkeypatch) -> Path:
    """configs/gated.py, which defines an architecture; nothing of it is known before."""
    monkeypatch.setattr("lm.config_files._KEPT", {})
    known = dict(ARCHITECTURES)
    (workplace / "configs").mkdir()
    (workplace / "configs" / "gated.py").write_text(GATED)
    yield workplace
    ARCHITECTURES.clear()
    ARCHITECTURES.update(known)


def record(e: Experiment, folder: Path) -> Path:
    """A run's experiment.json, as far as it is read."""
    hashes = {"corpus": "a" * 64, "validation": "b" * 64, "tokenizer": "c" * 64}
    steps = dict(total=60, warmup=5, decay=24, log_every=7, eval_every=20, checkpoint_every=15)
    counts = dict.fromkeys(("documents", "train_tokens", "epoch_tokens", "params_total", "params_nonembedding"), 1)
    values = {"experiment": to_dict(e), "fingerprint": fingerprint(e, hashes), "hashes": hashes, "steps": steps}
    folder.mkdir(parents=True)
    (folder / "experiment.json").write_text(json.dumps(values | counts | {"flops_per_token": 1.0}))
    return folder / "experiment.json"


def test_a_transformers_record_is_as_it_always_was():
    """No word of an architecture, and without the settings that are newer the fingerprint of a run from before."""
    values = to_dict(Experiment())
    assert "architecture" not in values["model"] and type(Experiment().model) is ModelConfig
    for key in NEWER:
        part, name = key.split(".")
        del values[part][name]
    assert fingerprint(values, {"corpus": "a"}) == FINGERPRINT


NEWER = (
    "model.mask", "model.mask_token", "model.vectors", "model.encoder", "model.norm_place", "data.examples",
    "model.parallel", "model.head_bias", "model.rotary_base_windowed", "model.rotary_fraction", "model.rotary_skips",
    "model.rotary_scaling", "model.rotary_factor", "model.rotary_band", "model.rotary_context", "model.layer_windows",
    "model.attention_softcap",
    "train.start", "train.objective", "train.label_smoothing", "schedule.context_start",
    "schedule.context_growth", "data.template", "data.learn_prompts", "optimizer.lora", "optimizer.lora_alpha",
    "feedback.beta", "feedback.reference", "feedback.per_token", "feedback.reward", "feedback.group",
    "feedback.max_tokens", "feedback.updates", "feedback.clip", "parallel.data", "parallel.model", "parallel.fsdp",
)  # fmt: skip
FINGERPRINT = "ae0b03279319783ee20238d421167c182456693b5173c965f2496032b218f207"


def test_another_architecture_is_recorded_by_name():
    e = Experiment(model=RecurrentConfig(layers=2, cell="rnn", vocab=65))
    assert to_dict(e)["model"] | {"layers": 2, "cell": "rnn"} == to_dict(e)["model"]
    assert to_dict(e)["model"]["architecture"] == "recurrent" and "architecture_file" not in to_dict(e)["model"]
    again = from_dict(json.loads(json.dumps(to_dict(e))))
    assert again == e and fingerprint(again, {}) == fingerprint(e, {}) and e.model.V == 72
    assert "model.cell" in settings(e) and "model.heads" not in settings(e) and "model.cell" not in settings()
    assert "model.heads" not in identity(e) and identity(e)["model.architecture"] == "recurrent"


@pytest.mark.parametrize(
    "values, message",
    [
        (dict(cell="gru"), "model.cell 'gru': one of lstm, rnn"),
        (dict(layers=0), "model.layers 0: must be at least 1"),
        (dict(dropout=1.0), "model.dropout 1.0: must be at least 0 and below 1"),
        (dict(width=2**30), "the gates axis would be 4,294,967,296 wide; must be below 2^31"),
        (dict(vocab=2**31 - 1), "the vocabulary axis would be 2,147,483,648 wide"),
    ],
)
def test_nonsense_in_a_recurrent_shape_is_refused(values, message):
    with pytest.raises(UserError, match=re.escape(message)):
        RecurrentConfig(**values)


def test_settings_follow_the_configs_architecture(gated, refused_lines):
    """Overrides, flags, typing mistakes and help are of the type that the config file's experiment has."""
    e = parse_train(["gated", "--model.kernel", "5", "--model.causal", "False", "--train.seed=7"]).experiment
    assert (e.model.kernel, e.model.causal, e.train.seed, e.name) == (5, False, 7, "gated")
    assert parse_train(["gated", "--model.causal"]).experiment.model.causal
    assert replace(e, {"model.kernel": 6}).model.kernel == 6
    assert refused_lines(["gated", "--model.kernl", "5"]).startswith(
        "model.kernl: no such setting; did you mean model.k"
    )
    assert "model.heads: no such setting" in refused_lines(["gated", "--model.heads", "5"])
    assert "model.kernel 0: must be at least 1" in refused_lines(["gated", "--model.kernel", "0"])
    assert split("plan", Options, ["gated", "--model.kernel", "5"])[2] == ["--model.kernel", "5"]
    with pytest.raises(UserError, match=r"model\.kernl: no such setting; did you mean model\.kernel\?"):
        split("plan", Options, ["gated", "--model.kernl", "5"])


@pytest.fixture
def refused_lines():
    """What `lm train` says of arguments that it refuses."""

    def refused(arguments: list[str]) -> str:
        with pytest.raises(UserError) as error:
            parse_train(arguments)
        return str(error.value)

    return refused


def test_help_explains_the_configs_architecture(gated, capsys):
    with pytest.raises(SystemExit):
        parse_train(["gated", "--help"])
    out = capsys.readouterr().out
    assert "--model.kernel" in out and "Positions that a gate sees." in out and "--model.heads" not in out


def test_a_run_finds_its_architecture_again(gated):
    """In a process that knows nothing of it yet, from the config file that the record names; without JAX."""
    file = record(load_experiment("gated"), gated / "runs" / "a")
    assert json.loads(file.read_text())["experiment"]["model"] == {
        "architecture": "gated", "architecture_file": "gated.py", "layers": 2, "width": 16, "context": 16,
        "vocab": None, "kernel": 3, "causal": True,
    }  # fmt: skip
    code = (
        "import sys; from pathlib import Path; from lm.records import read_experiment\n"
        "print(read_experiment(Path(sys.argv[1]))[1].model, 'jax' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, file], capture_output=True, text=True)
    assert done.stdout == "Gated(layers=2, width=16, context=16, vocab=None, kernel=3, causal=True) False\n", (
        done.stderr
    )
    _, e = read_experiment(file)
    assert e == load_experiment("gated"), "one class a process"


def test_a_missing_config_file_is_named(gated, lm):
    """Nothing is run from the run's own folder; the run is listed with the reason, and is not called damaged."""
    file = record(load_experiment("gated"), gated / "runs" / "a")
    ARCHITECTURES.pop("gated")
    shutil.move(gated / "configs" / "gated.py", gated / "runs" / "a" / "gated.py")
    with pytest.raises(UserError) as error:
        read_experiment(file)
    said = "its architecture gated is defined in gated.py, which is not in configs or "
    assert str(error.value).startswith(f"{file}: {said}") and "\n" not in str(error.value)
    status, _, err = lm("sample", "a")
    assert status == 2 and said in err and err.count("\n") == 1
    (gated / "configs" / "gated.py").write_text("x = 1\n")
    with pytest.raises(UserError, match=r"configs/gated\.py registers no architecture 'gated'"):
        read_experiment(file)
    for name in ("../runs/a/gated.py", "/gated.py", "gated"):
        with pytest.raises(UserError, match="not a config's name"):
            from_dict({"model": {"architecture": "gated", "architecture_file": name}})
    with pytest.raises(UserError, match=r"architecture 'recurent' is not registered; did you mean recurrent\?"):
        from_dict({"model": {"architecture": "recurent"}})


def test_a_changed_config_file_defines_its_architecture_anew(gated):
    """Two readings of one file give one class, so that equal experiments are equal; an edited file gives another."""
    first, second = load_experiment("gated"), load_experiment("configs/gated.py")
    assert first == second and type(first.model) is type(second.model)
    (gated / "configs" / "gated.py").write_text(GATED.replace("kernel=3", "kernel=9"))
    third = load_experiment("gated")
    assert third.model.kernel == 9 and type(third.model) is not type(first.model)
    assert from_dict(to_dict(third)) == third


def test_one_config_builds_on_anothers_architecture(gated):
    """And a config file may read a run of the architecture that it defines."""
    record(load_experiment("gated"), gated / "runs" / "a")
    more = "import lm\nexperiment = lm.replace(lm.load_experiment('gated'), {'model.kernel': 7, 'name': 'wide'})\n"
    (gated / "configs" / "wide.py").write_text(more)
    e = load_experiment("wide")
    assert to_dict(e)["model"]["architecture_file"] == "gated.py" and from_dict(to_dict(e)) == e
    reads = "from pathlib import Path\nfrom lm.records import read_experiment\n"
    reads += "_, experiment = read_experiment(Path('runs/a/experiment.json'))\n"
    (gated / "configs" / "gated.py").write_text(GATED + reads)
    assert load_experiment("gated").model.kernel == 3


def test_runs_of_several_architectures_are_listed_and_compared(gated, lm):
    """A setting that another architecture does not have is absent, not an error."""
    for name, e in {"g": load_experiment("gated"), "r": Experiment(model=RecurrentConfig()), "t": Experiment()}.items():
        record(e, gated / "runs" / name)
    runs = listed(gated / "runs")

    def named(chosen):
        return [one.run.path.name for one in chosen]

    assert named(where(runs, ["model.kernel=3"])) == ["g"] and named(where(runs, ["model.heads=4"])) == ["t"]
    assert named(where(runs, ["model.architecture!=transformer"])) == ["g", "r"]
    assert named(ordered(runs, "model.heads")) == ["t", "g", "r"]
    found = differences([one.experiment for one in runs])
    assert found["model.architecture"] == ["gated", "recurrent", "transformer"]
    assert found["model.kernel"] == [3, None, None] and found["model.heads"] == [None, None, 4]
    assert json.loads(lm("runs", "r", "t", "--json")[1])["differences"]["model.cell"] == ["lstm", None]
    assert lm("runs", "g", "r", "t")[0] == lm("runs")[0] == 0
    with pytest.raises(
        UserError, match=r"a pack's runs differ in model\.architecture: gated in gated, transformer in run"
    ):
        require_packable([runs[0].experiment, runs[2].experiment])


def test_what_cannot_be_registered_is_refused():
    class Plain(ModelBase):
        pass

    @dataclass(frozen=True)
    class Small(ModelBase):
        layers: int = 1
        width: int = 1

    with pytest.raises(UserError, match="must be a frozen dataclass, and a ModelBase"):
        register("plain")(Plain)
    with pytest.raises(UserError, match="Small: every model has the field context, vocab"):
        register("small")(Small)

    @dataclass(frozen=True)
    class Another(Small):
        context: int = 1
        vocab: int | None = None

    with pytest.raises(UserError, match="architecture 'transformer': lm has one of this name; choose another"):
        register("transformer")(Another)

    @dataclass(frozen=True)
    class Heir(ModelConfig):
        more: int = 1

    for kind in (Another, Heir):
        with pytest.raises(UserError, match="expected ModelConfig, or another class that is registered"):
            Experiment(model=kind())
