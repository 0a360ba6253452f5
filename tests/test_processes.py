"""Two processes train what one does, stop together, and are ended together; and how a process learns that it has peers.

make test TESTS="tests/test_processes.py -m gate"        those that start processes, about a minute
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny
from tiny import logged

import lm
from lm import checkpoints, processes
from lm.errors import UserError
from lm.run import Run
from lm.training.step import abstract_parts

STEPS, EVERY = 200, 10
SETTINGS = dict(
    train__steps=STEPS, train__log_every=EVERY, train__eval_every=10 * EVERY, train__checkpoint_every=5 * EVERY
)


@pytest.fixture
def place(tmp_path, monkeypatch, corpus):
    """A folder with the config of a run."""
    monkeypatch.chdir(tmp_path)
    settings = ", ".join(f"{name}={value}" for name, value in SETTINGS.items())
    (tmp_path / "config.py").write_text(
        f"import sys; sys.path.insert(0, {str(Path(tiny.__file__).parent)!r}); import tiny\n"
        f"experiment = tiny.experiment({str(corpus)!r}, name='both', {settings})\n"
    )
    return tmp_path


def start(*words: str, devices: int = 1, **environments: dict[str, str]) -> list[subprocess.Popen]:
    """Two processes of one training, each with so many devices.

    environments: of one of them alone, by "first" or "second".
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    shared = {
        "JAX_COORDINATOR_ADDRESS": address, "JAX_COORDINATOR_BIND_ADDRESS": address, "JAX_NUM_PROCESSES": "2",
        "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "LM_HEARTBEAT": "4", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    command = [sys.executable, "-m", "lm.cli", "train", "config.py", "--json", *words]
    return [
        subprocess.Popen(
            command, env=os.environ | shared | {"JAX_PROCESS_ID": str(number)} | environments.get(which, {}),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for number, which in enumerate(("first", "second"))
    ]  # fmt: skip


def outcome(started: list[subprocess.Popen]) -> tuple[list[int], list[str], list[str]]:
    """The statuses, and what was said on standard output and on standard error."""
    said = [process.communicate(timeout=120) for process in started]
    return [process.returncode for process in started], [out for out, _ in said], [err for _, err in said]


def step() -> int:
    """The last step in the run's log; -1 without any."""
    log = Path("runs/both/metrics.jsonl")
    lines = log.read_text().splitlines() if log.is_file() else []
    return json.loads(lines[-1])["step"] if lines else -1


def wait_for(reached: int) -> None:
    """Wait until the run's log has this step."""
    end = time.monotonic() + 120
    while step() < reached:
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def same_figures(run: Run, plain: Run) -> None:
    """Both logs tell of the same steps, and of losses within 1e-5."""
    for record, other in zip(logged(run), logged(plain), strict=True):
        assert record.keys() == other.keys() and record["step"] == other["step"]
        for name in record.keys() & {"loss", "val_loss"}:
            assert record[name] == pytest.approx(other[name], abs=1e-5), record["step"]


@pytest.mark.gate
def test_two_processes_train_what_one_does_whatever_ends_them(place, corpus):
    """Losses are those of one process. Told to stop, both stop at one step; one killed ends both; nothing is lost."""
    alone = lm.train(tiny.experiment(corpus, name="alone", **SETTINGS), display=False)
    statuses, outs, errs = outcome(start("--name", "whole"))
    assert statuses == [0, 0], errs
    assert json.loads(outs[0])["step"] == STEPS and outs[1] == errs[1] == ""
    assert "2 devices in 2 processes" in errs[0]
    same_figures(Run("runs/whole"), alone)

    pair = start()
    wait_for(EVERY)
    pair[1].send_signal(signal.SIGTERM)
    statuses, outs, errs = outcome(pair)
    assert statuses == [75, 75] and outs[1] == errs[1] == "", errs
    stopped = json.loads(outs[0])["step"]
    assert f"stopped at step {Run('runs/both').reached} and saved" in errs[0] and 0 < stopped < STEPS

    pair = start()
    wait_for(stopped + EVERY)
    pair[1].kill()
    statuses, _, errs = outcome(pair)
    assert statuses == [75, -9], errs
    assert errs[0].splitlines()[-1].startswith("lm: process 1 has died"), errs
    assert "Traceback" not in errs[0]

    statuses, outs, errs = outcome(start())
    assert statuses == [0, 0] and "resuming runs/both" in errs[0], errs
    both, whole = Run("runs/both"), Run("runs/whole")
    assert logged(both) == logged(whole)  # no gap and no step twice: one writer
    assert checkpoints.digest(lm.load(both).params) == checkpoints.digest(lm.load(whole).params)


@pytest.mark.gate
def test_two_processes_of_four_devices(place, corpus):
    """Sharded over data and model, with fsdp; what they saved is whole for one process with one device."""
    changes = SETTINGS | {"train__steps": 4 * EVERY, "train__checkpoint_every": 4 * EVERY}
    alone = lm.train(tiny.experiment(corpus, name="alone", **changes), display=False)
    words = ("--parallel.data", "4", "--parallel.model", "2", "--parallel.fsdp", "True")
    short = ("--train.steps", str(4 * EVERY), "--train.checkpoint-every", str(4 * EVERY))
    statuses, _, errs = outcome(start(*words, *short, devices=4))
    assert statuses == [0, 0], errs
    same_figures(Run("runs/both"), alone)
    parts = abstract_parts(alone.experiment)
    saved = checkpoints.load(Run("runs/both").checkpoint_folder, 4 * EVERY, **parts)  # by their digests, to the bit
    assert saved["training"]["step"] == 4 * EVERY


@pytest.mark.gate
def test_what_one_process_cannot_do_ends_all(place):
    """With the status of whoever failed, who says why; what the first has said, the others do not repeat."""
    (place / "file").write_text("in the way")
    statuses, _, errs = outcome(start(second={"LM_CACHE": str(place / "file")}))
    assert statuses == [2, 2], errs
    assert errs[1].count("\n") == 1 and "file" in errs[1]
    assert errs[0].splitlines()[-1] == "lm: process 1 has ended with status 2, and says why"

    (place / "runs" / "taken" / "tokenizer.json").mkdir(parents=True)
    statuses, _, errs = outcome(start("--name", "taken"))
    assert statuses == [2, 2] and errs[0].count("\n") == 1 and errs[1] == "", errs
    statuses, _, errs = outcome(start("--parallel.data", "1"))
    assert statuses == [2, 2] and errs[1] == "", errs
    assert errs[0].count("\n") == 1 and "parallel.data x parallel.model is 1 of 2 devices" in errs[0]


ADDRESS = {"JAX_COORDINATOR_ADDRESS": "node:12"}
STEP = {"SLURM_STEP_NODELIST": "node[1-2]", "SLURM_PROCID": "3", "SLURM_NTASKS": "8", "SLURM_GPUS_ON_NODE": "4"}


@pytest.mark.parametrize(
    "environment, expected",
    [
        ({}, None),
        (STEP, {"num_processes": 8, "process_id": 3}),
        (STEP | {"SLURM_STEP_TASKS_PER_NODE": "4(x2)"}, {"num_processes": 8, "process_id": 3}),
        (
            STEP | {"SLURM_STEP_TASKS_PER_NODE": "1(x8)"},
            {"num_processes": 8, "process_id": 3, "local_device_ids": [0, 1, 2, 3]},
        ),
        (STEP | {"SLURM_NTASKS": "1"}, None),
        ({"SLURM_NTASKS": "8", "SLURM_PROCID": "0"}, None),  # the batch script itself, or ssh into a job
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, {}),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, None),
        (ADDRESS | {"JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"}, None),
        (
            ADDRESS | {"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"},
            {
                "coordinator_address": "node:12", "num_processes": 2, "process_id": 1,
                "cluster_detection_method": "deactivate",
            },
        ),
        (ADDRESS, "JAX_COORDINATOR_ADDRESS without JAX_NUM_PROCESSES, JAX_PROCESS_ID"),
        (ADDRESS | {"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "2"}, "JAX_PROCESS_ID 2 of JAX_NUM_PROCESSES 2"),
        (
            {"JAX_COORDINATOR_ADDRESS": "node", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"},
            "JAX_COORDINATOR_ADDRESS node: a host and a port",
        ),
    ],
)  # fmt: skip
def test_a_process_learns_of_its_peers_from_its_environment(environment, expected, monkeypatch):
    for name in (*processes.ASKED, *STEP, "SLURM_STEP_TASKS_PER_NODE", "TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if isinstance(expected, str):
        with pytest.raises(UserError, match=expected):
            processes.asked()
    else:
        assert processes.asked() == expected


def test_a_tpu_is_asked_for_its_hosts(monkeypatch):
    """Where its library is, and JAX has found chips: without any it says that there is nobody to be asked."""
    for name in (*processes.ASKED, "SLURM_NTASKS", "TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("TPU_SKIP_MDS_QUERY", raising=False)
    monkeypatch.setattr(processes.importlib.util, "find_spec", lambda name: None)
    assert processes.asked() is None
    monkeypatch.setattr(processes.importlib.util, "find_spec", lambda name: name == "libtpu")
    assert processes.asked() == {}
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    assert processes.asked() is None


def test_a_command_of_one_process_is_refused_to_several(monkeypatch, capsys):
    for name, value in (ADDRESS | {"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"}).items():
        monkeypatch.setenv(name, value)
    from lm.cli import main

    assert main(["sample", "runs/none", "--prompt", "a"]) == 2
    assert "2 processes of a command that runs in one" in capsys.readouterr().err


def test_a_process_alone_asks_nobody():
    assert processes.count() == 1 and processes.lead() and processes.speaks("anything")
    assert processes.agree(0.1) == [0.1] and processes.leads("name", lambda: {1, 2}) == {1, 2}
    processes.barrier("name")
    processes.leave(3)
