"""Sweeps and runs under a real Slurm: requeued or preempted, every point is there, and no step is told twice.

LM_SLURM=1 make test TESTS=tests/test_slurm.py       installs Slurm by apt where it can, as root
"""

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import cluster
import pytest
import tiny

from lm.run import Run

pytestmark = pytest.mark.skipif(not os.environ.get("LM_SLURM"), reason="starts daemons: asked for by LM_SLURM=1")
STEPS, EVERY = 10_000, 500


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """A cluster, in whose partition "low" jobs are preempted by those of "high"."""
    if why := cluster.obstacle():
        pytest.skip(why)
    with cluster.cluster(tmp_path_factory.mktemp("slurm")):
        yield


@pytest.fixture
def place(tmp_path, monkeypatch, corpus):
    """A folder with a config of a run of some seconds; the processes of jobs share compiled programs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (tmp_path / "config.py").write_text(
        f"import sys; sys.path.insert(0, {str(Path(tiny.__file__).parent)!r}); import tiny\n"
        f"experiment = tiny.experiment({str(corpus)!r}, name='one', train__steps={STEPS}, train__log_every={EVERY},\n"
        f"    train__eval_every={EVERY}, train__checkpoint_every={5 * EVERY}, train__eval_tokens=512)\n"
    )
    return tmp_path


def lm(*words: str) -> dict:
    """What the command prints with --json."""
    command = [sys.executable, "-m", "lm.cli", *words, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def step(run: Path) -> int:
    """The last step in a run's log; 0 without any."""
    log = run / "metrics.jsonl"
    steps = re.findall(r'^\{"step": (\d+)', log.read_text() if log.is_file() else "", re.MULTILINE)
    return int(steps[-1]) if steps else 0


def told(run: Path) -> list[int]:
    """The steps of a run's records, in order."""
    return [record["step"] for record in Run(run).metrics()]


def test_a_sweep_whose_parts_are_requeued_and_preempted(slurm, place):
    """Four parts on two cores: one put back by hand, one preempted in the middle; all as if nothing had happened."""
    words = ("sweep", "config.py", "--grid", "train.seed=0,1,2,3", "--pack", "1")
    made = lm(*words, "--on", "slurm", "--slurm", "partition=low cpus-per-task=1")
    assert made["parts"] == 4
    job, runs = str(made["job"]), [place / "runs" / "one" / f"seed={seed}" for seed in range(4)]

    cluster.wait_for(lambda: 0 < step(runs[0]) < STEPS, 120)
    subprocess.run(["scontrol", "requeue", f"{job}_0"], check=True)
    cluster.wait_for(lambda: any(0 < step(run) < STEPS for run in runs[1:]), 120)
    subprocess.run(["sbatch", "--partition=high", "--ntasks=2", "--output=/dev/null", "--wrap=true"], check=True)

    def over() -> bool:
        cluster.start_what_waits(job)
        return not cluster.output("squeue", "-h", f"--jobs={job}")

    cluster.wait_for(over, 240)
    logs = "".join(path.read_text() for path in sorted((place / "runs" / "one").glob("slurm-*.log")))
    status = lm(*words, "--status")
    assert status["counts"] == {"finished": 4} and status["job"] == int(job) and status["parts"] == {}, logs
    with (place / "runs" / "one" / "points.csv").open() as table:
        assert sorted(row["name"] for row in csv.DictReader(table)) == [run.name for run in runs]
    assert [told(run) for run in runs] == [list(range(0, STEPS + 1, EVERY))] * 4
    assert logs.count("already") + logs.count("was stopped and saved") >= 2, logs
    assert "Traceback" not in logs


def test_a_run_that_is_preempted_and_one_that_cannot_be(slurm, place):
    """A job for one run goes on by itself after status 75, and is not tried again after status 2."""
    job = str(lm("train", "config.py", "--on", "slurm", "--slurm", "partition=low")["job"])
    run = place / "runs" / "one"
    cluster.wait_for(lambda: 0 < step(run) < STEPS, 120)
    subprocess.run(["sbatch", "--partition=high", "--ntasks=2", "--output=/dev/null", "--wrap=true"], check=True)
    wrong = str(lm("train", "config.py", "--name", "no", "--data.corpus", "nowhere.txt", "--on", "slurm")["job"])

    def over() -> bool:
        cluster.start_what_waits(job)
        return not cluster.output("squeue", "-h", "--states=PENDING,RUNNING,COMPLETING")

    cluster.wait_for(over, 240)
    assert told(run) == list(range(0, STEPS + 1, EVERY))
    assert "Restarts=1" in cluster.output("scontrol", "show", "job", job)
    assert "ExitCode=2:0" in (shown := cluster.output("scontrol", "show", "job", wrong)) and "Restarts=0" in shown
