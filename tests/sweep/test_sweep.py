"""Sweeps: a branch is the run from scratch, what is done stays done, and one run's misfortune is its own."""

import csv
import json
import os
import shlex
import shutil
import signal

import jax
import numpy as np
import pytest
import tiny

from lm import checkpoints
from lm.bench.sweeps import program
from lm.cli import main
from lm.errors import Stopped, UserError
from lm.model.api import build
from lm.run import Run
from lm.scaling.points import read_points
from lm.settings import load_experiment
from lm.sweep.board import Board
from lm.sweep.early import check_steps, worse
from lm.sweep.grids import from_design, grid
from lm.sweep.jobs import added_steps, jobs_of, packs, parted, trunks
from lm.sweep.planning import Rules, plan
from lm.sweep.running import COLUMNS, sweep
from lm.training import loop
from lm.training.loop import train
from lm.training.pack import Pack
from lm.training.step import init_state

WSD = dict(schedule__name="wsd", schedule__decay="30%")
LENGTHS = ("train.steps=20,33,60",)


def jobs(corpus, *words, **changes):
    return jobs_of(grid([tiny.experiment(corpus, **WSD, **changes)], words))


def state(run: Run, step: int):
    """Every array of a checkpoint."""
    abstract = jax.eval_shape(lambda: init_state(run.experiment))
    training = {"optimizer": abstract.optimizer, "step": abstract.step, "sums": abstract.sums}
    return jax.device_get(checkpoints.load(run.checkpoint_folder, step, params=abstract.params, training=training))


def losses(run: Run):
    return [{key: r[key] for key in r if key in ("step", "loss", "val_loss", "learning_rate")} for r in run.metrics()]


@pytest.fixture(scope="module")
def swept(corpus, tmp_path_factory):
    """Three lengths of two seeds, in packs of two. For reading only."""
    listed = jobs(corpus, *LENGTHS, "train.seed=0,1")
    return listed, sweep(listed, tmp_path_factory.mktemp("swept") / "runs")


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="bits are promised on a CPU")
@pytest.mark.parametrize("name", ["steps=20-seed=1", "steps=33-seed=0", "steps=60-seed=1"])
def test_a_branch_is_the_run_from_scratch(swept, tmp_path, name):
    """Parameters, optimizer and sums to the bit, and the last loss; 14, 23 and 42 are the steps they branch at."""
    listed, result = swept
    job = next(job for job in listed if job.name == name)
    scratch = train(job.experiment, folder=tmp_path)
    branched = Run(result.folder / name)
    assert tiny.same_bits(state(branched, job.steps.total), state(scratch, job.steps.total))
    assert losses(branched)[-1] == losses(scratch)[-1]


def test_runs_whose_windows_grow_share_a_trunk_and_count_their_flops(corpus, tmp_path):
    """Where they grow by steps; in percent of the run each has a schedule of its own, and the sweep says so.

    One branches off while windows are short: it is the run from scratch, and its FLOPs are those of its windows.
    """
    words, start = ("train.steps=12,20",), dict(schedule__context_start=8, model__dropout=0.1)
    percent = jobs(corpus, *words, **start, train__log_every=4)
    assert [len(trunk) for trunk in trunks(percent)] == [1, 1]
    assert "schedule.context_growth 50% is 6, 10 steps" in parted(percent)
    listed = jobs(corpus, *words, **start, schedule__context_growth=10, train__log_every=4)
    assert [[job.branch_step for job in trunk] for trunk in trunks(listed)] == [[8, 14]]
    result = sweep(listed, tmp_path / "runs")
    scratch = train(listed[0].experiment, folder=tmp_path)
    assert tiny.same_bits(state(Run(result.folder / "steps=12"), 12), state(scratch, 12))
    short, long = (build(listed[0].experiment.model).cost(context).training_flops for context in (8, 16))
    expected = [64 * (10 * short + 2 * long), 64 * (10 * short + 10 * long)]
    assert read_points(result.points).flops == pytest.approx(expected, rel=1e-12)


def test_branches_are_not_trained_twice(corpus, tmp_path, monkeypatch):
    """Steps made in all: the trunk's 60 and the decays of 6 and 10, not 60 + 20 + 33."""
    made = []
    advance = Pack.advance

    def counted(pack, tokens, windows, counts):
        made.append(max(counts))
        return advance(pack, tokens, windows, counts)

    monkeypatch.setattr(Pack, "advance", counted)
    listed = jobs(corpus, *LENGTHS)
    sweep(listed, tmp_path / "runs")
    assert sum(made) == 60 + 6 + 10
    [trunk] = trunks(listed)
    assert sum(steps for _, steps in added_steps(trunk)) == sum(made)


def test_only_what_shares_its_steps_shares_a_trunk(corpus):
    seeds = trunks(jobs(corpus, *LENGTHS, "train.seed=0,1"))
    assert [[job.steps.total for job in trunk] for trunk in seeds] == [[20, 33, 60]] * 2
    assert len(packs(seeds)) == 1 and len(packs(seeds, most=1)) == 2
    cosine = jobs_of(grid([tiny.experiment(corpus)], LENGTHS))
    assert [len(trunk) for trunk in trunks(cosine)] == [1, 1, 1]
    percent = jobs(corpus, *LENGTHS, schedule__warmup="10%")  # 2, 3 and 6 steps: three different beginnings
    assert [len(trunk) for trunk in trunks(percent)] == [1, 1, 1]
    assert "schedule.warmup 10% is 2, 3, 6 steps" in parted(jobs(corpus, *LENGTHS, schedule__warmup="10%"))
    assert parted(jobs(corpus, *LENGTHS)) is None
    widths = trunks(jobs(corpus, "model.width=16,32"))
    assert len(packs(widths)) == 2


def test_points_are_read_without_flags(swept):
    listed, result = swept
    assert result.points == result.folder / "points.csv" and not result.failed and not result.stopped
    with result.points.open() as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS and [row["name"] for row in rows] == [job.name for job in listed]
    assert {row["run"] for row in rows} == {"steps=60-seed=0", "steps=60-seed=1"}
    points = read_points(result.points)
    assert points.tokens.tolist() == [20 * 64, 20 * 64, 33 * 64, 33 * 64, 60 * 64, 60 * 64]
    runs = [Run(result.folder / job.name) for job in listed]
    assert points.loss.tolist() == [run.metrics()[-1]["val_loss"] for run in runs]
    assert points.params.tolist() == [run.record["params_total"] for run in runs]
    exact = [run.record["flops_per_token"] * run.metrics()[-1]["tokens"] for run in runs]
    assert points.flops == pytest.approx(exact, rel=1e-12)
    assert points.replicate_sd() > 0
    assert np.isnan(points.columns["base_width"]).all()


def test_a_finished_sweep_trains_nothing(swept, monkeypatch):
    """The same command once more; then one with a run that was not there, which alone is trained."""
    listed, result = swept

    def refuse(*_, **__):
        raise AssertionError("trained again")

    monkeypatch.setattr("lm.sweep.running.train_pack", refuse)
    before = result.points.read_bytes()
    assert sweep(listed, result.folder).finished == [job.name for job in listed]
    assert result.points.read_bytes() == before


def test_a_stopped_sweep_goes_on(corpus, tmp_path, monkeypatch):
    """Stopped at the first branch, its runs end as those of a sweep that was not."""
    from lm.sweep import running as module

    listed = jobs(corpus, *LENGTHS)
    calls = []

    def once(experiments, **given):
        calls.append(given["until"])
        return loop.train_pack(experiments, **given | ({"until": 17} if len(calls) == 2 else {}))  # as SIGTERM would

    monkeypatch.setattr(module, "train_pack", once)
    first = sweep(listed, tmp_path / "runs")
    assert first.stopped and first.finished == [] and first.points is None and calls == [14, None]
    second = sweep(listed, tmp_path / "runs")
    assert not second.stopped and second.finished == [job.name for job in listed]
    assert calls == [14, None, None, 23, None, None]


def test_a_run_that_diverges_stops_no_other(corpus, tmp_path, monkeypatch):
    """It and its branches are recorded, and not tried again unless asked to."""
    words = ("train.steps=20,33", "optimizer.learning_rate=0.003,10000.0")
    listed = jobs(corpus, *words, optimizer__clip=None)
    result = sweep(listed, tmp_path / "runs")
    wild = [job.name for job in listed if job.experiment.optimizer.learning_rate > 1]
    assert result.finished == [job.name for job in listed if job.name not in wild]
    assert list(sorted(result.failed)) == sorted(wild)
    assert json.loads((result.folder / "failed.json").read_text()) == result.failed
    assert any("diverged at step" in why for why in result.failed.values())
    assert len(read_points(result.points)) == 2

    tried = []
    monkeypatch.setattr(
        "lm.sweep.running.train_pack", lambda experiments, **_: tried.extend(e.name for e in experiments)
    )
    assert sweep(listed, tmp_path / "runs").failed == result.failed and tried == []
    sweep(listed, tmp_path / "runs", retry=True)
    assert set(tried) <= set(wild) and tried


def test_one_runs_fault_is_not_its_packs(corpus, tmp_path, monkeypatch):
    """Of two side by side one is short of memory: the other is trained, and the next time both are."""
    listed = jobs(corpus, "train.seed=0,1", train__steps=20)

    def short_of_memory(experiments, **given):
        if any(e.train.seed == 1 for e in experiments):
            raise RuntimeError("RESOURCE_EXHAUSTED: out of memory")
        return loop.train_pack(experiments, **given)

    with monkeypatch.context() as patch:
        patch.setattr("lm.sweep.running.train_pack", short_of_memory)
        result = sweep(listed, tmp_path / "runs")
    assert result.finished == ["seed=0"] and "out of memory" in result.failed["seed=1"]
    assert len(read_points(result.points)) == 1
    again = sweep(listed, tmp_path / "runs")
    assert again.finished == ["seed=0", "seed=1"] and not again.failed


@pytest.fixture
def tried(monkeypatch):
    """Names of the runs that a sweep wants to train; none of them is."""
    names = []
    monkeypatch.setattr(
        "lm.sweep.running.train_pack", lambda experiments, **_: names.extend(e.name for e in experiments)
    )
    return names


def test_what_diverged_under_other_settings_or_was_removed_is_tried_again(swept, corpus, tmp_path, tried):
    """Known to diverge: a run there as it was, and one whose folder is gone. The record of other sweeps stays."""
    listed, result = swept
    folder = tmp_path / "runs"
    shutil.copytree(result.folder / "steps=20-seed=0", folder / "steps=20-seed=0")
    shutil.rmtree(folder / "steps=20-seed=0" / "checkpoints" / "20")
    known = {"steps=20-seed=0": "diverged", "steps=33-seed=0": "diverged", "another": "diverged"}
    (folder / "failed.json").write_text(json.dumps(known))
    found = sweep(listed[:4:2], folder)
    assert found.failed == {"steps=20-seed=0": "diverged"} and tried == ["steps=33-seed=0"]
    sweep(listed[:4:2], folder, retry=True)
    assert json.loads((folder / "failed.json").read_text()) == {"another": "diverged"}


@pytest.mark.parametrize("content", [b'{"a": "di', b"\xe9", b"[1]", b'{"a": 1}', b"[" * 100_000], ids=range(5))
def test_a_damaged_record_of_failures_is_refused(corpus, tmp_path, tried, content):
    (tmp_path / "failed.json").write_bytes(content)
    with pytest.raises(UserError, match=r"failed\.json is damaged; remove it"):
        sweep(jobs(corpus, "train.seed=0"), tmp_path)
    assert tried == []


def test_what_a_sweep_finds_in_its_folder(swept, corpus, tmp_path, tried, capsys):
    """Runs of another grid are told of and kept out; unfinished writes go; a run without its last loss has failed."""
    listed, result = swept
    folder = tmp_path / "runs"
    shutil.copytree(result.folder, folder)
    for name in (".points.csv.0a1b", ".failed.json.x", "stopped_early.json"):
        (folder / name).write_text("cut")
    log = folder / "steps=60-seed=0" / "metrics.jsonl"
    log.write_text("".join(line for line in log.read_text().splitlines(keepends=True) if '"step": 60' not in line))
    found = sweep([job for job in listed if job.experiment.train.seed == 0], folder, board=Board())
    assert "also holds 3 of other sweeps: steps=20-seed=1" in capsys.readouterr().err
    assert found.finished == ["steps=20-seed=0", "steps=33-seed=0"] and tried == []
    assert "no validation loss at its last step" in found.failed["steps=60-seed=0"]
    assert sorted(file.name for file in folder.iterdir() if file.is_file()) == ["points.csv"]
    assert read_points(found.points).columns["name"].tolist() == found.finished


def test_a_damaged_run_is_named_before_anything_is_trained(swept, tmp_path, tried):
    listed, result = swept
    shutil.copytree(result.folder, tmp_path / "runs")
    (tmp_path / "runs" / "steps=20-seed=1" / "experiment.json").write_text("{")
    with pytest.raises(UserError, match=r"steps=20-seed=1/experiment\.json .*remove .*steps=20-seed=1 to train it"):
        sweep(listed, tmp_path / "runs")
    assert tried == []


def test_standings_are_the_losses_in_order(swept):
    """With the settings in which runs differ, and no others."""
    listed, result = swept
    losses_of = {job.name: Run(result.folder / job.name).metrics()[-1]["val_loss"] for job in listed}
    assert [row["name"] for row in result.standings] == sorted(losses_of, key=losses_of.get)
    best = next(job for job in listed if job.name == result.standings[0]["name"])
    changed = {"train.steps": best.experiment.train.steps, "train.seed": best.experiment.train.seed}
    assert {key: result.standings[0][key] for key in result.standings[0] if "." in key} == changed


def test_who_is_compared_when_and_stopped():
    assert check_steps(60, 20) == [20, 40] and check_steps(100, 10) == [30, 50] and check_steps(60, 60) == []
    assert check_steps(100, 60) == [60]
    assert set(worse({"a": 2.0, "b": 2.3, "c": 2.31, "d": 2.1}, 0.3, 20)) == {"c"} and worse({}, 0.3, 20) == {}


@pytest.mark.gate
def test_worse_runs_are_stopped_and_go_on_without_the_option(corpus, tmp_path):
    """At the first evaluation after a quarter a rate far too low is behind; gone on with, it ends as from scratch."""
    words = ("train.steps=33,60", "optimizer.learning_rate=0.00001,0.003,0.004")
    listed = jobs(corpus, *words)
    result = sweep(listed, tmp_path / "runs", margin=0.3, most=2)
    slow = ["steps=33-learning_rate=0.00001", "steps=60-learning_rate=0.00001"]
    assert sorted(result.stopped_early) == slow and not result.failed and not result.stopped
    assert json.loads((result.folder / "stopped_early.json").read_text()) == result.stopped_early
    assert "at step 20" in result.stopped_early[slow[1]] and "was stopped before" in result.stopped_early[slow[0]]
    assert Run(result.folder / slow[1]).steps()[-1] == 20
    assert result.finished == [job.name for job in listed if job.name not in slow]
    assert read_points(result.points).columns["name"].tolist() == result.finished

    again = sweep(listed, tmp_path / "runs", margin=0.3)
    assert again.stopped_early == result.stopped_early and Run(result.folder / slow[1]).steps()[-1] == 20
    whole = sweep(listed, tmp_path / "runs")
    assert whole.finished == [job.name for job in listed] and not (whole.folder / "stopped_early.json").exists()
    scratch = train(listed[3].experiment, folder=tmp_path / "scratch")
    assert listed[3].name == slow[1] and losses(Run(whole.folder / slow[1]))[-1] == losses(scratch)[-1]


def test_another_experiment_under_the_same_name_is_refused(swept, corpus):
    _, result = swept
    other = jobs(corpus, *LENGTHS, "train.seed=0,1", optimizer__weight_decay=0.3)
    with pytest.raises(UserError, match=r"optimizer\.weight_decay 0\.1, now 0\.3"):
        sweep(other, result.folder)


def test_a_grid_names_what_was_chosen(corpus):
    e = tiny.experiment(corpus)
    made = grid([e], ["model.width=16,32", "optimizer.clip=None,1.0", "train.steps=20,5k tokens"])
    assert len(made) == 8 and made[0].name == "width=16-clip=None-steps=20"
    assert made[1].train.steps == "5k tokens" and made[1].name == "width=16-clip=None-steps=5ktokens"
    assert grid([e], ["optimizer.learning_rate=1e-3"])[0].name == "learning_rate=1e-3"
    assert made[0].optimizer.clip is None and made[-1].model.width == 32 and made[-1].optimizer.clip == 1.0
    assert grid([e], []) == [e]


@pytest.mark.parametrize(
    "words, said",
    [
        (["model.widht=16"], "did you mean model.width"),
        (["train.seed"], "give a setting and its values"),
        (["train.seed=0,,1"], "a value is missing"),
        (["train.seed=0,0"], "given twice"),
        (["train.seed=0", "train.seed=1"], "a setting is given twice"),
        (["train.seed=one"], "train.seed"),
        (["optimizer.learning_rate=-1"], "learning_rate -1"),
        (["name=a,b"], "no such setting"),
        (["train.seed=" + "[" * 9999], "train.seed"),
        (["train.seed=" + "9" * 9999], "train.seed"),
        ([f"{key}={','.join(map(str, range(1, 1001)))}" for key in ("train.seed", "train.steps")], "1,000,000 runs"),
    ],
)
def test_a_grid_that_cannot_be(corpus, words, said):
    with pytest.raises(UserError, match=said):
        grid([tiny.experiment(corpus)], words)


def test_the_same_experiment_twice_is_refused(corpus):
    e = tiny.experiment(corpus)
    with pytest.raises(UserError, match="two experiments are named tiny"):
        jobs_of([e, e])
    with pytest.raises(UserError, match="tiny and other are the same experiment"):
        jobs_of([e, tiny.replaced(e, name="other")])


def test_a_designs_trunks_are_trunks(corpus):
    """Rows of a design share their steps as it says, whatever the warm-up in percent."""
    e = jobs_of([tiny.experiment(corpus, schedule__warmup="10%")])[0].experiment
    rules = Rules(tokens_per_parameter=(0.05, 8.0), least_steps=10)
    design = plan(e, flops=2e10, rules=rules)
    found = trunks(jobs_of(from_design(e, design)))
    expected = {}
    for row in design.rows:
        expected.setdefault(row.trunk, []).append((row.name, row.branch_step, row.steps))
    assert [[(j.name, j.branch_step, j.steps.total) for j in trunk] for trunk in found] == list(expected.values())
    assert max(map(len, found)) > 1


# --- the command -----------------------------------------------------------------------------------------------------
@pytest.fixture
def config(workplace, corpus):
    (workplace / "tiny.py").write_text(
        "import lm\n"
        "experiment = lm.Experiment(\n"
        "    model=lm.ModelConfig(layers=2, width=16, heads=2, context=16, feedforward=32, dtype='float32'),\n"
        "    schedule=lm.ScheduleConfig(name='wsd', warmup=5, decay='30%'),\n"
        "    train=lm.TrainConfig(steps=60, batch=4, eval_tokens=512, log_every=7, eval_every=20),\n"
        f"    data=lm.DataConfig(corpus={str(corpus)!r}, tokenizer='chars'))\n"
    )
    (workplace / "several.py").write_text(
        "import lm\n"
        "one = lm.load_experiment('tiny.py')\n"
        "experiments = [lm.replace(one, {'name': f'n{n}', 'train.steps': n}) for n in (20, 33)]\n"
    )
    return workplace


def run(capsys, *arguments):
    capsys.readouterr()
    status = main([str(argument) for argument in arguments])
    return status, *capsys.readouterr()


def test_the_command_trains_a_list(config, capsys):
    """The second time nothing is left to do, and it ends with a table, best first, and commands that work."""
    status, out, err = run(capsys, "sweep", "several.py", "--json")
    assert status == 0, err
    said = json.loads(out)
    assert said["finished"] == ["n20", "n33"] and said["points"] == "runs/several/points.csv"
    assert "1/2  n20  done  loss" in err and "2/2  n33  done" in err
    assert read_points(said["points"]).columns["run"].tolist() == ["n33", "n33"]
    status, out, err = run(capsys, "sweep", "several.py")
    assert status == 0 and "2 of 2 runs finished" in out and "2 of 2 runs have ended already" in err
    lines = out.splitlines()
    assert lines[2].split() == ["name", "loss", "bits_per_byte", "seconds", "steps"]
    assert [lines[3].split()[0], lines[4].split()[0]] == [row["name"] for row in said["standings"]]
    following = [line.strip() for line in lines[lines.index("Next:") + 1 :]]
    assert following == said["next"] and len(following) == 2
    for command in following:
        status, _, err = run(capsys, *shlex.split(command)[1:])
        assert status == 0, err


def no_memory(experiments, **_):
    raise RuntimeError("RESOURCE_EXHAUSTED: out of memory")


def stopped(experiments, **_):
    raise Stopped("told to")


@pytest.mark.parametrize("end, status", [(no_memory, 1), (stopped, 75)])
def test_a_sweep_that_did_not_get_there_says_so(config, capsys, monkeypatch, end, status):
    """All failed, or stopped: one line after the report, and the same in JSON."""
    monkeypatch.setattr("lm.sweep.running.train_pack", end)
    found, out, err = run(capsys, "sweep", "several.py", "--json")
    assert found == status
    said = json.loads(out)
    assert said["points"] is None and said["finished"] == [] and said["stopped"] == (status == 75)
    if status == 1:
        assert sorted(said["failed"]) == ["n20", "n33"] and err.endswith("lm: 2 of 2 runs failed: n33, n20\n")
        assert said["next"] == ["lm sweep several.py --json --retry"]
    else:
        assert err.endswith("lm: runs/several was stopped and saved, 0 of 2 runs finished; the same command goes on\n")


def test_a_signal_at_the_end_of_a_training_stops_the_sweep(corpus, tmp_path, monkeypatch):
    """The run that comes to its end all the same keeps it, the next is not begun; the handlers are those of before."""
    figures = loop.validation_figures

    def told(member, step, *arguments):
        if step == member.steps.total:
            os.kill(os.getpid(), signal.SIGTERM)
        return figures(member, step, *arguments)

    monkeypatch.setattr(loop, "validation_figures", told)
    before = signal.getsignal(signal.SIGTERM)
    result = sweep(jobs(corpus, "train.seed=0,1"), tmp_path, most=1)
    assert result.stopped and result.finished == ["seed=0"] and not (tmp_path / "seed=1").exists()
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_dry_run_lists_and_trains_nothing(config, capsys):
    """Three lengths of one trunk and one program, whose compilation is part of the time."""
    status, out, err = run(capsys, "sweep", "tiny.py", "--grid", *LENGTHS, "--dry-run", "--json")
    assert status == 0, err
    said = json.loads(out)
    assert [row["branch_step"] for row in said["runs"]] == [14, 23, 42] and not (config / "runs").exists()
    assert said["note"] is None and said["programs"] == 1 and said["side_by_side"] == 1
    alone = said["flops_without_trunks"]
    assert said["flops"] == pytest.approx(alone * 76 / 113)
    training = sum(row["seconds"] for row in said["runs"])
    assert 0 < training and 0 < said["compile_seconds"] == pytest.approx(said["seconds"] - training)


def test_programs_are_counted_by_what_is_compiled(corpus):
    """Widths are; seeds, rates, lengths and log intervals are not."""
    listed = jobs(corpus, "model.width=16,32", "train.seed=0,1", "train.steps=20,33", "optimizer.learning_rate=0.1,0.2")
    assert len({program(job.experiment) for job in listed}) == 2


@pytest.mark.parametrize(
    "arguments, said",
    [
        (("tiny.py",), "give --grid"),
        (("several.py", "--train.steps", "5"), "builds a list"),
        (("several.py", "--design", "x.json"), "its own list"),
        (("tiny.py", "--design", "x.json"), "no design at x.json"),
        (("x.json",), "no design at x.json"),
        (("tiny.py", "--grid", "train.sed=1"), "did you mean train.seed"),
        (("tiny.py", "--pack", "0", "--grid", "train.seed=1"), "--pack 0"),
        (("tiny.py", "--stop-worse", "0", "--grid", "train.seed=1"), "--stop-worse 0"),
        (("tiny.py", "--stop-worse", "inf", "--grid", "train.seed=1"), "--stop-worse inf"),
        (("tiny.py", "--grid"), "--grid: no text was given"),
        (("tiny.py", "--grid", "train.seed=1", "--out", "tiny.py"), "--out tiny.py: a file"),
    ],
)
def test_bad_input_is_one_line(config, capsys, arguments, said):
    status, out, err = run(capsys, "sweep", *arguments)
    assert status == 2 and out == "" and said in err and err.count("\n") == 1


def test_a_list_is_not_one_experiment(config):
    with pytest.raises(UserError, match=r"builds a list .* lm sweep several\.py"):
        load_experiment("several.py")
