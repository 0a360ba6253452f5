"""The run directory explains itself and gives back what was trained; what a model costs is counted right."""

import importlib.metadata
import json
import shutil

import numpy as np
import pytest
import tiny
from close import assert_close, relative_error

import lm
from lm import settings
from lm.errors import UserError
from lm.model.api import Inputs, build
from lm.run import Run, folders, load


@pytest.fixture
def copy(tiny_run, workplace) -> Run:
    """A copy of the tiny run as runs/tiny of an otherwise empty directory."""
    shutil.copytree(tiny_run.path, workplace / "runs" / "tiny")
    return Run("tiny")


# --- the directory ---------------------------------------------------------------------------------------------------
def test_the_directory_holds_what_it_promises(tiny_run):
    files = {entry.name for entry in tiny_run.path.iterdir()}
    assert files == {"experiment.json", "tokenizer.json", "metrics.jsonl", "checkpoints", ".lock"}
    assert tiny_run.steps() == [45, 60]
    assert {entry.name for entry in tiny_run.checkpoint_folder.iterdir()} == {"45", "60"}


def test_experiment_json_says_what_ran(tiny_run, corpus):
    """The resolved configuration, versions, hashes, fingerprint and counts, in plain JSON."""
    record = json.loads((tiny_run.path / "experiment.json").read_text())
    resolved = tiny.experiment(corpus, model__vocab=tiny_run.tokenizer.n_vocab)
    assert settings.from_dict(record["experiment"]) == resolved == tiny_run.experiment
    assert record["fingerprint"] == settings.fingerprint(resolved, record["hashes"])
    assert set(record["hashes"]) == {"corpus", "tokenizer", "validation"}
    assert record["versions"]["jax"] == importlib.metadata.version("jax")
    assert {"python", "flax", "optax", "orbax-checkpoint", "numpy"} <= set(record["versions"])
    assert record["git"] is None or len(record["git"].rstrip("+")) == 40
    assert (record["params_total"], record["params_nonembedding"]) == build(resolved.model).parameter_count()
    assert record["flops_per_token"] == build(resolved.model).cost().training_flops
    assert record["steps"]["total"] == 60 and record["documents"] == 1


def test_metrics_count_tokens_and_name_rates(tiny_run):
    records = tiny_run.metrics()
    assert all(record["tokens"] == record["step"] * 4 * 16 for record in records)
    rates = {record["step"]: record["learning_rate"] for record in records if "learning_rate" in record}
    # Cosine over 55 steps after 5 of warm-up; a record shows the rate of the update just made.
    for step, rate in rates.items():
        done = (step - 1 - 5) / 55
        assert rate == pytest.approx(3e-3 * (1 + np.cos(np.pi * done)) / 2, rel=1e-4, abs=1e-9)
    assert np.all(np.diff([record["seconds"] for record in records]) >= 0)


# --- opening ---------------------------------------------------------------------------------------------------------
def test_a_run_is_its_directory_or_its_name_under_runs(copy):
    assert Run("tiny").path == Run("runs/tiny").path == Run(copy.path).path
    assert [folder.name for folder in folders()] == ["tiny"]


def test_no_such_run_suggests_the_nearest(copy):
    with pytest.raises(UserError, match=r"no run tinny; did you mean tiny\? \(`lm runs` lists them\)"):
        Run("tinny")
    with pytest.raises(UserError, match=r"^no run nothing-like-it \(`lm runs`"):
        Run("nothing-like-it")


DEEP = b"[" * 100_000
DAMAGED = [
    DEEP,
    b'{"experiment": ' + DEEP,
    b"",
    b"{",
    b"[]",
    b"null",
    b"\xff\xfe",
    b"{}",
    b'{"experiment": []}',
    b'{"experiment": {"model": 3}}',
]


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_experiment_json_is_refused(copy, content):
    """Named on one line; and it does not hide which other run was meant."""
    (copy.path / "experiment.json").write_bytes(content)
    with pytest.raises(UserError, match=r"runs/tiny/experiment\.json is damaged: ") as refusal:
        Run("tiny")
    assert "\n" not in str(refusal.value)
    with pytest.raises(UserError, match=r"no run tinyy; did you mean tiny\?"):
        Run("tinyy")


def test_an_unknown_setting_in_experiment_json_is_named(copy):
    record = copy.record
    record["experiment"]["model"]["layerz"] = 3
    (copy.path / "experiment.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"damaged: model\.layerz: no such setting; did you mean model\.layers\?"):
        Run("tiny")


FLIPS = {"norm_epsilon": ("model", 1e-6), "rotary_base": ("model", 500.0), "clip": ("optimizer", None)}


@pytest.mark.parametrize("setting", [*FLIPS, "hashes", "fingerprint"])
def test_an_experiment_json_that_was_changed_is_refused(copy, setting):
    """Each of these loads another model, or another's, without its fingerprint."""
    record = copy.record
    if setting in FLIPS:
        part, value = FLIPS[setting]
        record["experiment"][part][setting] = value
    elif setting == "hashes":
        record["hashes"]["corpus"] = "0" + record["hashes"]["corpus"][1:]
    else:
        record["fingerprint"] = record["fingerprint"][:-1]
    (copy.path / "experiment.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"runs/tiny/experiment\.json was changed: .* another --name$"):
        load("tiny")


def test_a_run_from_before_a_setting_was_there_still_opens(copy):
    """What a fingerprint covers is what the file holds; the setting has its default."""
    record = copy.record
    del record["experiment"]["model"]["base_width"]
    record["fingerprint"] = settings.fingerprint(record["experiment"], record["hashes"])
    (copy.path / "experiment.json").write_text(json.dumps(record))
    assert Run("tiny").experiment == copy.experiment


LINES = {
    "not UTF-8": b'{"step": 5, "loss": \xff}', "no object": b"[5]", "no step": b'{"loss": 1.0}', "deep": DEEP,
    "step of another kind": b'{"step": "5"}', "no number": b'{"step": 5, "loss": "low"}', "null": b"null",
    "cut": b'{"step": 5, "lo', "beyond 64 bits": b'{"step": 5' + b"0" * 4000 + b"}",
}  # fmt: skip


@pytest.mark.parametrize("kind", LINES)
def test_a_damaged_line_of_metrics_is_left_out_and_told(copy, capsys, kind):
    """Named once, with the file; everything else is read."""
    file, good = copy.path / "metrics.jsonl", copy.metrics()
    file.write_bytes(LINES[kind] + b"\n" + file.read_bytes())
    assert copy.metrics() == copy.metrics() == good
    told = f"lm: runs/tiny/metrics.jsonl: 1 of {len(good) + 1} lines are damaged and left out, line 1 first\n"
    assert capsys.readouterr().err == told


def test_lines_of_metrics_end_at_line_feeds_alone(copy):
    """JSON may hold U+2028 and its like as they are, at which str.splitlines would cut."""
    file = copy.path / "metrics.jsonl"
    file.write_text('{"step": 5, "a\u2028b": 1.0}\n', encoding="utf-8")
    assert copy.metrics() == [{"step": 5, "a\u2028b": 1.0}]


def test_a_run_is_called_what_its_folder_is(copy, workplace):
    """Renamed, moved, or opened from inside; a name in parts keeps them."""
    shutil.move(copy.path, "runs/other")
    assert Run("other").name == "other" and Run("other").folder == lm.run.RUNS
    shutil.copytree("runs/other", "elsewhere/deep")
    assert (Run("elsewhere/deep").name, str(Run("elsewhere/deep").folder)) == ("deep", "elsewhere")
    shutil.copytree("runs/other", "runs/sub/tiny")
    assert Run("sub/tiny").name == "tiny"
    assert Run("sub/tiny").folder / Run("sub/tiny").name == Run("sub/tiny").path


def test_runs_and_models_say_what_they_are(copy):
    """On one short line each: no arrays."""
    loss = copy.metrics()[-1]["val_loss"]
    assert repr(copy) == f"Run('runs/tiny': 4,976 parameters, step 60 of 60, validation {loss:.4f} nats/token)"
    assert repr(load(copy)) == "Trained(runs/tiny, step 60: 4,976 parameters, tokenizer chars)"
    shutil.rmtree(copy.path)
    assert repr(copy) == "Run('runs/tiny': 4,976 parameters, step 0 of 60, not evaluated yet)"


# --- loading ---------------------------------------------------------------------------------------------------------
def test_load_latest_best_and_step(tiny_run):
    """Each checkpoint is the one it says: the loss it scores is the loss that was logged at its step."""
    from lm.data.batches import validation_windows
    from lm.data.tokens import prepare
    from lm.evaluation import score_columns

    assert load(tiny_run).step == load(tiny_run, "latest").step == 60
    assert load(tiny_run, 45).step == load(tiny_run, "45").step == 45
    logged = {record["step"]: record["val_loss"] for record in tiny_run.metrics() if "val_loss" in record}
    assert load(tiny_run, "best").step == min((45, 60), key=logged.__getitem__)
    windows = validation_windows(prepare(tiny_run.experiment.data).validation, 16, 512)
    for step in (45, 60):
        m = load(tiny_run, step)
        score = score_columns(m.model, m.params, windows, np.ones(m.tokenizer.n_vocab, np.int64))
        assert score.loss == pytest.approx(logged[step], rel=1e-6)
    for missing in (44, -1, "newest"):
        with pytest.raises(UserError, match=rf"no checkpoint {missing}; it has \[45, 60\]"):
            load(tiny_run, missing)


def test_a_run_without_checkpoints_is_refused(copy):
    shutil.rmtree(copy.checkpoint_folder)
    with pytest.raises(UserError, match="has no checkpoint yet"):
        load("tiny")


def test_the_tokenizer_comes_from_the_directory_alone(copy, monkeypatch, tmp_path_factory):
    """Elsewhere, without the corpus and the cache: text survives the round trip."""
    monkeypatch.setenv("LM_CACHE", str(tmp_path_factory.mktemp("empty")))
    tokenizer = load(copy).tokenizer
    text = "the queen ran.\n"
    assert tokenizer.decode(tokenizer.encode_ordinary(text)) == text


@pytest.mark.parametrize("kind", ["more", "others"])
def test_a_replaced_tokenizer_is_refused(copy, kind):
    """More characters than the model has tokens; or as many, but other ones."""
    file = copy.path / "tokenizer.json"
    values = json.loads(file.read_text())
    values["alphabet"] = values["alphabet"] + "~" if kind == "more" else values["alphabet"].replace("q", "z")
    file.write_text(json.dumps(values))
    n = len(values["alphabet"]) + 1
    said = f"the tokenizer has {n} tokens and the model {n - 1}" if kind == "more" else "is not the tokenizer"
    with pytest.raises(UserError, match=said):
        load("tiny")


@pytest.mark.parametrize("content", ["", "[]", '{"kind": "chars"}', None])
def test_a_damaged_tokenizer_is_refused(copy, content):
    file = copy.path / "tokenizer.json"
    file.unlink() if content is None else file.write_text(content)
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        load("tiny")


def test_apply_gives_logits_and_the_taps_asked_for(tiny_run):
    """As in the README: logits, attention weights of every layer that sum to one, and an edit that takes effect."""
    m = lm.load(tiny_run.path)
    tokens_BT = np.array([m.tokenizer.encode_ordinary("the king")] * 2)
    logits_BTV, taps = m.apply(tokens_BT, taps=("attention.weights",))
    vocab = m.experiment.model.vocab
    assert logits_BTV.shape == (2, 8, m.experiment.model.V)
    assert set(taps) == {"attention.weights"} and taps["attention.weights"].shape == (2, 2, 2, 8, 8)
    assert_close(taps["attention.weights"].sum(-1), 1, relative=1e-6)
    plain, nothing = m.apply(tokens_BT)
    assert_close(plain[..., :vocab], logits_BTV[..., :vocab], relative=1e-5)
    assert nothing == {}
    ablated, _ = m.apply(tokens_BT, edits={"mlp.out": lambda x, layer: x * 0})
    assert relative_error(ablated[..., :vocab], plain[..., :vocab]) > 1e-3
    assert_close(m.model.apply(m.params, Inputs(tokens_BT))[0][..., :vocab], plain[..., :vocab], relative=1e-5)
