"""Parts of a sweep: together they are the sweep. What is handed to Slurm can be read, and cannot become shell."""

import csv
import json
import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
import tiny

from lm.cli import main
from lm.errors import UserError
from lm.run import Run
from lm.sweep import jobs_of, slurm
from lm.sweep.grids import grid
from lm.sweep.running import recorded, sweep
from lm.sweep.status import status

WSD = dict(schedule__name="wsd", schedule__decay="30%")


@pytest.fixture(scope="module")
def jobs(corpus):
    """Two lengths of three seeds: three trunks, each a pack of its own."""
    return jobs_of(grid([tiny.experiment(corpus, **WSD)], ("train.steps=20,60", "train.seed=0,1,2")))


def rows(folder: Path) -> list[dict]:
    """The points without their seconds."""
    with (folder / "points.csv").open() as table:
        return [{key: row[key] for key in row if key != "seconds"} for row in csv.DictReader(table)]


def test_parts_make_the_sweep(jobs, tmp_path):
    """Two of three packs and one, in any order: the points of the whole, in its order; each part knows its own."""
    later = sweep(jobs, tmp_path / "parts", most=1, part=(1, 2))
    assert later.trained == ["steps=20-seed=1", "steps=60-seed=1"] == later.finished
    assert [row["name"] for row in rows(tmp_path / "parts")] == later.finished
    sweep(jobs, tmp_path / "parts", most=1, part=(0, 2))
    sweep(jobs, tmp_path / "whole", most=1)
    assert rows(tmp_path / "parts") == rows(tmp_path / "whole") and len(rows(tmp_path / "parts")) == 6


def test_each_part_records_what_failed_and_the_report_counts_all(jobs, tmp_path):
    """A part neither loses nor takes over what another recorded; the whole sweep makes one record of theirs."""
    (tmp_path / "failed-1-of-3.json").write_text(json.dumps({"steps=20-seed=1": "diverged at 3"}))
    (tmp_path / "stopped_early-1-of-3.json").write_text(json.dumps({"steps=60-seed=1": "worse"}))
    result = sweep(jobs, tmp_path, most=1, part=(0, 3))
    assert result.failed == {"steps=20-seed=1": "diverged at 3"} and result.stopped_early == {
        "steps=60-seed=1": "worse"
    }
    assert sorted(result.finished) == ["steps=20-seed=0", "steps=60-seed=0"] == sorted(result.trained)
    found = status([job.experiment for job in jobs], tmp_path)
    assert found.counts() == {"finished": 2, "diverged": 1, "waiting": 2, "stopped early": 1}
    assert found.job is None and found.parts is None
    assert recorded(tmp_path, "failed.json") == {"steps=20-seed=1": "diverged at 3"}
    assert not (tmp_path / "failed-0-of-3.json").exists()


@pytest.mark.parametrize("part", [(3, 3), (0, 4), (0, 0)])
def test_a_part_there_is_not_is_refused(jobs, tmp_path, part):
    with pytest.raises(UserError, match=r"--part \d/\d: this sweep has 3 to share out, so 0/3 to 2/3 train one each"):
        sweep(jobs, tmp_path / "none", most=1, part=part)
    assert not (tmp_path / "none").exists()


# --- Slurm -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "text",
    ["partition=a\nrm", "a=$(x)", "a=`x`", "a=b;c", "a='b'", "a=b\tc", "#", "--partition=a", "a=b#c", "ä=b", "a=ü"],
)
def test_what_could_become_shell_is_refused(text):
    with pytest.raises(UserError, match=r"--slurm .*: options of sbatch, such as partition=gpu gres=gpu:1"):
        slurm.options([text])


def test_options_of_the_script_itself_are_refused():
    with pytest.raises(UserError, match="--slurm array=0-9: the script has its own --array"):
        slurm.options(["partition=a array=0-9"])
    assert slurm.options(["partition=gpu gres=gpu:a100:1", "time=1:00:00", "exclusive"]) == (
        "partition=gpu", "gres=gpu:a100:1", "time=1:00:00", "exclusive",
    )  # fmt: skip


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """A folder of commands that stand in for Slurm's: fake(name, body) makes one."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.path.dirname(shutil.which('bash'))}:/usr/bin")

    def make(name: str, body: str) -> None:
        path = tmp_path / "bin" / name
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    return make


@pytest.mark.parametrize(
    "status, restarts, requeued", [(0, 0, 0), (1, 0, 0), (2, 0, 0), (75, 0, 1), (75, 100, 0), (137, 0, 1), (143, 99, 1)]
)
def test_the_script_puts_back_what_was_stopped(tmp_path, fake, status, restarts, requeued):
    """Stopped or killed, up to the limit; the words of the command arrive as they were, whatever is in them."""
    fake("srun", f'printf "%s\\n" "$@" > {tmp_path}/words; exit {status}')
    fake("scontrol", f'echo "$@" >> {tmp_path}/requeued')
    command = ("lm", "sweep", "a b", "$(touch no)\nx", "it's")
    script = slurm.Batch(Path("runs/a"), command, ("partition=a",), parts=4).script()
    assert (
        script.startswith("#!/bin/bash\n")
        and "#SBATCH --array=0-3\n" in script
        and "\n#SBATCH --partition=a\n" in script
    )
    ids = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "2", "SLURM_RESTART_COUNT": str(restarts)}
    done = subprocess.run(["bash", "-c", script], env=os.environ | ids, cwd=tmp_path)
    assert done.returncode == status and not (tmp_path / "no").exists()
    assert (tmp_path / "words").read_text() == "\n".join(["--unbuffered", *command, "--part", "2/4", ""])
    asked = (tmp_path / "requeued").read_text() if requeued else ""
    assert asked == "requeue 7_2\n" * requeued and (tmp_path / "requeued").exists() == bool(requeued)


def test_a_job_that_is_refused_leaves_nothing(tmp_path, fake):
    fake("squeue", "exit 1")
    fake("sbatch", "echo 'sbatch: error: invalid partition specified: a' >&2; exit 1")
    with pytest.raises(UserError, match=r"^sbatch refused the job: invalid partition specified: a$"):
        slurm.submit(slurm.Batch(tmp_path / "runs", ("lm",)))
    assert not (tmp_path / "runs").exists()
    fake("sbatch", "cat > /dev/null; echo '12;cluster'")
    assert slurm.submit(slurm.Batch(tmp_path / "runs", ("lm",), parts=2)) == 12
    fake("squeue", "echo '1 PENDING Resources'; echo '0 RUNNING None'")
    assert slurm.states(tmp_path / "runs") == {"1": "PENDING (Resources)", "0": "RUNNING"}
    with pytest.raises(UserError, match="job 12 is still in the queue"):
        slurm.submit(slurm.Batch(tmp_path / "runs", ("lm",), parts=2))


def test_records_of_runs_are_seen_from_elsewhere(jobs, tmp_path):
    """The state of a run is what its directory says, also when it is damaged."""
    result = sweep(jobs[:1], tmp_path)
    assert Run(tmp_path / result.finished[0]).finished
    (tmp_path / result.finished[0] / "experiment.json").write_text("{")
    assert status([jobs[0].experiment], tmp_path).counts() == {"damaged": 1}


@pytest.mark.parametrize(
    "words, said",
    [
        (["--on", "slurm"], "--on slurm: no sbatch on this machine; run this where Slurm's jobs are submitted"),
        (["--part", "1"], "--part 1: give i/n, from 0/n on, such as 0/4"),
        (["--part", "-1/4"], "--part -1/4: give i/n, from 0/n on, such as 0/4"),
        (["--slurm", "partition=a"], "--slurm is for a job: give --on slurm"),
        (["--on", "slurm", "--part", "0/2"], "--part is for a sweep that is trained here"),
        (["--on", "slurm", "--slurm", "partition=a\nrm -r x"], "--slurm 'rm"),
        (["--on", "slurm", "--slurm", "ntasks-per-node=2"], "--slurm ntasks-per-node=2: a part is one process"),
        (["--on", "slurm", "--slurm", "gpus-per-task=1"], "--slurm gpus-per-task=1: JAX finds no GPU under it"),
    ],
)
def test_bad_input_is_one_line(workplace, capsys, monkeypatch, words, said):
    monkeypatch.setenv("PATH", "")
    status = main(["sweep", "quickstart", "--grid", "train.seed=0,1", *words])
    out, err = capsys.readouterr()
    assert status == 2 and out == "" and err.count("\n") == 1 and said.replace("'rm", "'partition=a") in err
    assert not list(Path().glob("runs*"))
