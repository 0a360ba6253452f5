"""Slurm: a script that a person can read and submit again, its submission, and what the queue says of it.

What was stopped and saved (75), or killed, puts itself back into the queue; what failed by itself, such as by wrong
input (2), does not.
"""

import dataclasses
import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from lm.errors import UserError, require
from lm.files import whole

SCRIPT, SUBMITTED = "slurm.sbatch", "slurm.json"
"""Beside the runs, or in the run's directory: the script, and the number under which it was submitted."""
MOST_RESTARTS = 100
"""A task that was stopped so often is put back no more."""
OURS = frozenset(("array", "wrap", "output", "error", "open-mode", "requeue", "no-requeue", "chdir", "nodes"))
"""Options that the script decides by itself."""
_LINE = re.compile(r"([a-z][a-z-]*)(=[A-Za-z0-9_.,:/@%+=~\[\]-]+)?")
_PLAIN = re.compile(r"[A-Za-z0-9_.,:/@+=-]+")


@dataclasses.dataclass(frozen=True)
class Batch:
    """A job for Slurm."""

    folder: Path
    """Where the script and its logs are."""
    command: tuple[str, ...]
    """What is run, word for word."""
    lines: tuple[str, ...] = ()
    """Options of sbatch, as `options` makes them."""
    parts: int | None = None
    """Tasks of an array, each with `--part i/n` after the command; None for a job of one run."""
    nodes: int = 1

    def script(self) -> str:
        """The batch script."""
        name = str(self.folder)
        require(_PLAIN.fullmatch(name) is not None, f"{name}: for Slurm, letters, digits and _.,:/@+=- alone")
        words, array = shlex.join(self.command), self.parts is not None
        job = "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID" if array else "$SLURM_JOB_ID"
        lines = [
            "#!/bin/bash",
            "# Written by lm. Each time it starts it goes on from what is saved; `sbatch` takes it again as it is.",
            f"#SBATCH --job-name={self.folder.name}",
            *([f"#SBATCH --array=0-{self.parts - 1}"] if array else []),
            f"#SBATCH --nodes={self.nodes}",
            f"#SBATCH --output={name}/slurm-{'%a' if array else '%j'}.log",
            "#SBATCH --open-mode=append",
            "#SBATCH --requeue",
            "#SBATCH --signal=TERM@120",
            *(f"#SBATCH --{line}" for line in self.lines),
            "",
            f"srun --unbuffered {words}" + (f' --part "$SLURM_ARRAY_TASK_ID/{self.parts}"' if array else ""),
            "status=$?",
            "# The highest status of all processes. 75: stopped and saved; 143: told to stop before it had begun;",
            "# 137: killed, so that it goes on from its last checkpoint. Anything else would happen again.",
            'case "$status" in 75 | 137 | 143)',
            f'  [ "${{SLURM_RESTART_COUNT:-0}}" -lt {MOST_RESTARTS} ] && scontrol requeue "{job}" ;;',
            "esac",
            "exit $status",
        ]
        return "\n".join(lines) + "\n"


def options(texts: Sequence[str]) -> tuple[str, ...]:
    """sbatch's options in texts such as "partition=gpu gres=gpu:1", one by one. Raises UserError for any other text.

    They become lines of a shell script's head: nothing that a shell could take for its own is let through.
    """
    found = []
    for text in texts:
        for word in text.split(" "):
            if not word:
                continue
            match = _LINE.fullmatch(word)
            require(match is not None, f"--slurm {word!r}: options of sbatch, such as partition=gpu gres=gpu:1")
            require(match[1] not in OURS, f"--slurm {word}: the script has its own --{match[1]}")
            require(
                match[1] != "gpus-per-task", f"--slurm {word}: JAX finds no GPU under it; give gres=gpu:N, of a node"
            )
            found.append(word)
    return tuple(found)


def require_slurm() -> None:
    """Raise UserError where no job can be submitted."""
    wanted = "run this where Slurm's jobs are submitted, or train parts by hand: --part 0/4"
    require(shutil.which("sbatch") is not None, f"--on slurm: no sbatch on this machine; {wanted}")


def submit(batch: Batch) -> int:
    """Write the script and submit it. Returns the job's number. Raises UserError, leaving nothing, where Slurm refuses.

    A job of this folder that is still in the queue is not joined by another.
    """
    require_slurm()
    script, folder = batch.script(), batch.folder
    if job := _queued(folder):
        raise UserError(f"{folder}: job {job} is still in the queue; wait for it, or end it: scancel {job}")
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)  # a task writes its log there, perhaps at once
    try:
        said = subprocess.run(["sbatch", "--parsable"], input=script, capture_output=True, text=True, timeout=60)
        number = said.stdout.strip().split(";")[0]
        lines = (said.stderr.strip() or said.stdout.strip()).splitlines()
        why = "; ".join(re.sub(r"^sbatch: ((error|fatal): )?", "", line) for line in lines)
        require(said.returncode == 0 and number.isdigit(), f"sbatch refused the job: {why[:200]}")
    except (UserError, subprocess.TimeoutExpired) as error:
        if made:
            folder.rmdir()
        if isinstance(error, UserError):
            raise
        raise UserError("sbatch does not answer; see whether `sinfo` does") from error
    with whole(folder / SCRIPT) as file:
        file.write(script)
    with whole(folder / SUBMITTED) as file:
        file.write(json.dumps({"job": int(number), "parts": batch.parts}) + "\n")
    return int(number)


def submitted(folder: Path) -> dict | None:
    """The number of the job that was submitted last from here, and its parts; None where there was none."""
    try:
        found = json.loads((folder / SUBMITTED).read_text(encoding="utf-8"))
        return {"job": int(found["job"]), "parts": found["parts"]}
    except (OSError, ValueError, TypeError, KeyError):
        return None


def states(folder: Path) -> dict[str, str] | None:
    """What the queue says of each task of this folder's job, by its number; None where there is no queue or job.

    A task that has ended is not in the queue: what became of it, the runs themselves say.
    """
    job = submitted(folder)
    if job is None or shutil.which("squeue") is None:
        return None
    asked = ["squeue", "--noheader", "--array", f"--jobs={job['job']}", "--format=%K %T %r"]
    try:
        said = subprocess.run(asked, capture_output=True, text=True, timeout=30)
    except subprocess.TimeoutExpired:
        return None
    if said.returncode != 0 and "Invalid job id" not in said.stderr:
        return None
    found = {}
    for line in said.stdout.splitlines() if said.returncode == 0 else ():
        task, state, reason = line.split(maxsplit=2)
        found["0" if task == "N/A" else task] = state if reason == "None" else f"{state} ({reason})"
    return found


def _queued(folder: Path) -> int | None:
    """The job of this folder that has not ended yet."""
    return submitted(folder)["job"] if states(folder) else None
