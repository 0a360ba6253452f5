"""A Slurm cluster of this machine alone, for tests: real daemons in a folder, without systemd or accounting."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path

CONFIG = """
ClusterName=one
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmdPort={next_port}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=bf_interval=1,sched_interval=1,sched_min_interval=0,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
KillWait=5
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=1000 State=UNKNOWN
PartitionName=low Nodes=ALL Default=YES MaxTime=60 State=UP PriorityTier=1 GraceTime=30
PartitionName=high Nodes=ALL MaxTime=60 State=UP PriorityTier=10 PreemptMode=off
"""
DAEMONS = ("slurmd", "slurmctld", "munged")


def obstacle() -> str | None:
    """Why no cluster can be started here; None where one can. Installs Slurm by apt where that is allowed."""
    if os.geteuid() != 0:
        return "Slurm's daemons are started as root"
    if not shutil.which("slurmctld") and shutil.which("apt-get"):
        for words in (["update"], ["install", "-y", "--no-install-recommends", "slurm-wlm", "munge"]):
            with contextlib.suppress(subprocess.TimeoutExpired):
                subprocess.run(["apt-get", *words], capture_output=True, timeout=180, check=False)
    missing = [name for name in DAEMONS if not shutil.which(name)]
    return f"no {', '.join(missing)} here, and apt did not install it" if missing else None


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[None]:
    """Slurm's commands work within the block, in this process and those it starts; all its daemons end after it."""
    host, port = socket.gethostname().split(".")[0], _free_port()
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o600)
    config = folder / "slurm.conf"
    config.write_text(CONFIG.format(host=host, port=port, next_port=port + 1, folder=folder))
    files = {"key-file": "key", "socket": "socket", "log-file": "log", "seed-file": "seed"}
    munge = [f"--{option}={folder}/munge.{suffix}" for option, suffix in files.items()]
    before, os.environ["SLURM_CONF"] = os.environ.get("SLURM_CONF"), str(config)
    try:
        subprocess.run(["munged", "--force", *munge, f"--pid-file={folder}/munged.pid"], check=True)
        subprocess.run(["slurmctld", "-f", config, "-c"], check=True)
        subprocess.run(["slurmd", "-f", config, "-c", "-N", host], check=True)
        wait_for(lambda: "idle" in output("sinfo", "-h", "-o", "%T"), 20)
        yield
    finally:
        subprocess.run(["scancel", "--user=root"], capture_output=True, timeout=30, check=False)
        with contextlib.suppress(AssertionError):
            wait_for(lambda: not output("squeue", "-h"), 15)
        for name in DAEMONS:
            with contextlib.suppress(OSError, ValueError):
                os.kill(int((folder / f"{name}.pid").read_text()), signal.SIGTERM)
        os.environ.pop("SLURM_CONF")
        if before is not None:
            os.environ["SLURM_CONF"] = before


def _free_port() -> int:
    """The first of two ports that nobody uses."""
    while True:
        with socket.socket() as one, socket.socket() as two:
            one.bind(("127.0.0.1", 0))
            with contextlib.suppress(OSError):
                two.bind(("127.0.0.1", one.getsockname()[1] + 1))
                return one.getsockname()[1]


def output(*words: str) -> str:
    """What a command of Slurm's prints."""
    return subprocess.run(words, capture_output=True, text=True, timeout=30).stdout


def wait_for(condition: Callable[[], object], seconds: float) -> None:
    """Wait until a condition holds. Raises AssertionError where it does not in time."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


def start_what_waits(job: str) -> None:
    """Start the tasks of a job that were put back into the queue: by itself, that would take them two minutes.

    Not at once: what starts within the second in which its last start ended, slurmd takes for that ("credential
    revoked"), and the job fails.
    """
    asked = ["squeue", "-h", "--array", f"--jobs={job}", "--states=PENDING", "--format=%i %S %r"]
    for line in output(*asked).splitlines():
        task, begins, reason = line.split(maxsplit=2)
        soon = begins == "N/A" or datetime.fromisoformat(begins) < datetime.now() + timedelta(seconds=10)
        if reason.startswith("BeginTime") and not soon:
            output("scontrol", "update", f"JobId={task}", "StartTime=now+2")
