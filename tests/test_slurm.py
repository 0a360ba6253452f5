"""Sweeps and runs under a real Slurm: requeued or preempted, every point is there, and no step is told twice.

make test TESTS="tests/test_slurm.py -m gate"       installs Slurm by apt where it can, as root; about a minute
"""

import csv
import json
import subprocess
import sys
from pathlib import Path

import cluster
import pytest
import tiny

from lm.run import Run

pytestmark = pytest.mark.gate
CONFIG = """
import os, sys, time
from pathlib import Path

sys.path.insert(0, {helpers!r})
import tiny

experiment = tiny.experiment({corpus!r}, name="one", **{settings!r})

if "SLURM_STEP_ID" in os.environ and "SLURM_RESTART_COUNT" not in os.environ:
    from lm.training import loop

    figures = loop.validation_figures

    def standing_still(member, step, params, look):
        while step == {middle} and member.e.train.seed < 2:
            Path(f"stands-{{member.e.train.seed}}").touch()
            look()
            time.sleep(0.05)
        return figures(member, step, params, look)

    loop.validation_figures = standing_still
"""
"""A config whose runs of seeds 0 and 1 stand still in the middle of their first job until it is told to stop: what the
test does to them then does not depend on how fast anything is."""
STEPS, EVERY, MIDDLE = 60, 10, 30
SETTINGS = dict(train__steps=STEPS, train__log_every=EVERY, train__eval_every=EVERY, train__checkpoint_every=3 * EVERY)
PATIENCE = 300
"""Seconds after which what does not happen is an error; nothing takes so long."""


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """A cluster, in whose partition "low" jobs are preempted by those of "high"."""
    if why := cluster.obstacle():
        pytest.skip(why)
    with cluster.cluster(tmp_path_factory.mktemp("slurm")):
        yield


@pytest.fixture
def place(tmp_path, monkeypatch, corpus):
    """A folder with the config; the processes of jobs share compiled programs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    values = dict(helpers=str(Path(tiny.__file__).parent), corpus=str(corpus), settings=SETTINGS, middle=MIDDLE)
    (tmp_path / "config.py").write_text(CONFIG.format(**values))
    return tmp_path


def lm(*words: str) -> dict:
    """What the command prints with --json."""
    command = [sys.executable, "-m", "lm.cli", *words, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def preempt() -> None:
    """A job of the other partition takes all cores for a moment."""
    subprocess.run(["sbatch", "--partition=high", "--ntasks=2", "--output=/dev/null", "--wrap=true"], check=True)


def wait_for_end(*jobs: str) -> None:
    """Wait until jobs have left the queue, and have their tasks that were put back start sooner."""

    def over() -> bool:
        for job in jobs:
            cluster.start_what_waits(job)
        return not cluster.output("squeue", "-h", f"--jobs={','.join(jobs)}")

    cluster.wait_for(over, PATIENCE)


def told(run: Path) -> list[int]:
    """The steps of a run's records, in order."""
    return [record["step"] for record in Run(run).metrics()]


def test_a_sweep_whose_parts_are_requeued_and_preempted(slurm, place):
    """Four parts on two cores: one put back by hand, one preempted in the middle; all as if nothing had happened."""
    words = ("sweep", "config.py", "--grid", "train.seed=0,1,2,3", "--pack", "1")
    made = lm(*words, "--on", "slurm", "--slurm", "partition=low cpus-per-task=1")
    assert made["parts"] == 4
    job, sweep = str(made["job"]), place / "runs" / "one"
    runs = [sweep / f"seed={seed}" for seed in range(4)]

    cluster.wait_for(lambda: all((place / f"stands-{seed}").exists() for seed in (0, 1)), PATIENCE)
    subprocess.run(["scontrol", "requeue", f"{job}_0"], check=True)
    preempt()
    wait_for_end(job)
    logs = "".join(path.read_text() for path in sorted(sweep.glob("slurm-*.log")))
    status = lm(*words, "--status")
    assert status["counts"] == {"finished": 4} and status["job"] == int(job) and status["parts"] == {}, logs
    with (sweep / "points.csv").open() as table:
        assert sorted(row["name"] for row in csv.DictReader(table)) == [run.name for run in runs]
    assert [told(run) for run in runs] == [list(range(0, STEPS + 1, EVERY))] * 4
    for part in (0, 1):
        assert "was stopped and saved" in (sweep / f"slurm-{part}.log").read_text(), logs
    assert "Traceback" not in logs


def test_two_processes_that_are_preempted_and_a_run_that_cannot_be(slurm, place):
    """The processes of one run stop together and go on together; after status 2 nothing is tried again."""
    job = str(lm("train", "config.py", "--on", "slurm", "--slurm", "partition=low ntasks=2")["job"])
    cluster.wait_for((place / "stands-0").exists, PATIENCE)
    preempt()
    wrong = str(lm("train", "config.py", "--name", "no", "--data.corpus", "nowhere.txt", "--on", "slurm")["job"])
    wait_for_end(job, wrong)
    log = (place / "runs" / "one" / f"slurm-{job}.log").read_text()
    assert told(place / "runs" / "one") == list(range(0, STEPS + 1, EVERY)), log
    assert "(2 devices in 2 processes)" in log and f"stopped at step {MIDDLE} and saved" in log, log
    assert "Restarts=1" in cluster.output("scontrol", "show", "job", job)
    assert "ExitCode=2:0" in (shown := cluster.output("scontrol", "show", "job", wrong)) and "Restarts=0" in shown
