"""The run directory: it explains itself, and gives back the model, the tokenizer and the experiment."""

import contextlib
import fcntl
import functools
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from lm import checkpoints, processes, records, settings, tokenizer
from lm.config import ONE_DEVICE, Experiment, ParallelConfig
from lm.errors import UserError, nearest, require
from lm.files import whole
from lm.records import RUNS

if TYPE_CHECKING:
    from lm.model.trained import Trained


class Run:
    """A directory with experiment.json, tokenizer.json, metrics.jsonl and checkpoints/.

    `run` is the directory, or its name under runs/. Raises UserError where there is no such run, and where its
    experiment.json is damaged or was changed in what decided the result.
    """

    def __init__(self, run: str | Path):
        path = _folder(run)
        if path is None:
            names = [str(folder.relative_to(RUNS)) for folder in folders(RUNS)]
            raise UserError(f"no run {run}{nearest(str(run).removeprefix(f'{RUNS}/'), names)} (`lm runs` lists them)")
        self.path = path if path.name not in ("", "..") else path.resolve()
        self.record, self.experiment = records.read_experiment(self.path / "experiment.json")
        self.lock: IO | None = None
        """The open file that keeps other trainings out, while this one writes."""

    def __repr__(self) -> str:
        losses = [record["val_loss"] for record in self.metrics() if "val_loss" in record]
        loss = f"validation {losses[-1]:.4f} nats/token" if losses else "not evaluated yet"
        reached = f"step {self.reached:,} of {self.record['steps']['total']:,}"
        return f"Run({str(self.path)!r}: {self.record['params_total']:,} parameters, {reached}, {loss})"

    @property
    def name(self) -> str:
        """That of the folder, whatever the run was called when it was made; under runs/, as it stands there."""
        recorded = Path(self.experiment.name)
        if self.path.parts[-len(recorded.parts) :] == recorded.parts:
            return str(recorded)
        return str(self.path.relative_to(RUNS)) if self.path.is_relative_to(RUNS) else self.path.name

    @property
    def folder(self) -> Path:
        """The folder in which the run has its name: RUNS, as a rule."""
        return self.path.parents[len(Path(self.name).parts) - 1]

    @property
    def reached(self) -> int:
        """The step of the latest checkpoint."""
        return max(self.steps(), default=0)

    @property
    def finished(self) -> bool:
        """Whether its last step was made and saved; otherwise the same command goes on with it."""
        return self.reached >= self.record["steps"]["total"]

    @property
    def source(self) -> dict[str, Any]:
        """What an imported model was made from: its path, family and the sha256 of each file; empty for our own."""
        return self.record.get("source", {})

    @functools.cached_property
    def tokenizer(self):
        """The encoding, rebuilt from the directory alone."""
        return tokenizer.load(self.path / "tokenizer.json")

    @property
    def checkpoint_folder(self) -> Path:
        return self.path / "checkpoints"

    def steps(self) -> list[int]:
        """Steps with a whole checkpoint, in order."""
        return checkpoints.steps(self.checkpoint_folder)

    def metrics(self) -> list[dict[str, Any]]:
        """Every record of metrics.jsonl in order: objects of numbers, `step` among them.

        A last line cut short by a crash is left out, and so is a damaged one, which standard error is told of.
        """
        return records.read_metrics(self.path / "metrics.jsonl")

    def flops(self, record: dict[str, Any]) -> float:
        """Exact FLOPs of training up to a record; where that is too old to say so, all windows were whole."""
        return record.get("flops", self.record["flops_per_token"] * record.get("tokens", 0))

    def best_step(self) -> int:
        """The kept checkpoint with the lowest validation loss."""
        losses = {record["step"]: record["val_loss"] for record in self.metrics() if "val_loss" in record}
        kept = [step for step in self.steps() if step in losses]
        require(bool(kept), f"{self.path}: no checkpoint has a validation loss")
        return min(kept, key=losses.__getitem__)

    # --- writing, for training alone: of several processes the first does it, for the others these do nothing ---------
    def append(self, record: dict[str, Any]) -> None:
        """Add one line to metrics.jsonl."""
        if not processes.lead():
            return
        self.require_there()
        with _saying(self.path), (self.path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\n")

    def begin_from(self, trunk: "Run", step: int, **abstract: Any) -> None:
        """Take over another run's records and checkpoint at a step, to go on from there.

        abstract: the parts of the checkpoint as abstract trees, by which it is checked first.
        """
        with _saying(self.path):
            self._write_metrics(record for record in trunk.metrics() if record["step"] <= step)
            checkpoints.copy(trunk.checkpoint_folder, step, self.checkpoint_folder, **abstract)

    def forget_after(self, step: int) -> None:
        """Drop what was logged after the checkpoint a run resumes from: those steps are about to be made again."""
        with _saying(self.path):
            self._write_metrics(record for record in self.metrics() if record["step"] <= step)

    def go_back(self, step: int) -> None:
        """Forget the checkpoints after a step, latest first: killed meanwhile, it is a run that got less far."""
        with _saying(self.path):
            for later in reversed(self.steps()):
                if later > step:
                    checkpoints.remove(self.checkpoint_folder, later)
        self.forget_after(step)

    def _write_metrics(self, kept: Iterable[dict[str, Any]]) -> None:
        if not processes.lead():
            return
        with whole(self.path / "metrics.jsonl") as file:
            file.writelines(json.dumps(record) + "\n" for record in kept)

    def require_there(self, saved: int | None = None) -> None:
        """Raise UserError where the directory in training was removed, moved or replaced meanwhile.

        saved: the step of a checkpoint just written. The library makes folders that are missing, so it goes with them.
        """
        if self.lock is None:
            return
        try:
            there = os.path.samestat(os.stat(self.path / ".lock"), os.fstat(self.lock.fileno()))
        except (FileNotFoundError, NotADirectoryError):
            there = False
        if there and (self.path / "experiment.json").is_file():
            return
        if saved is not None:
            shutil.rmtree(self.checkpoint_folder / str(saved), ignore_errors=True)
            with contextlib.suppress(OSError):  # not empty: another's
                self.checkpoint_folder.rmdir()
                self.path.rmdir()
        raise UserError(
            f"{self.path} was removed, moved or replaced while it trained: training stopped, nothing more is written; "
            "a run that was moved goes on with lm train NEW/PATH"
        )


def _folder(run: str | Path) -> Path | None:
    return next((p for p in (Path(run), RUNS / run) if (p / "experiment.json").is_file()), None)


def exists(run: str | Path) -> bool:
    """Whether this is a run's directory, or the name of one under runs/."""
    return _folder(run) is not None


def folders(folder: Path = RUNS) -> list[Path]:
    """The directories of every run under a folder, in order."""
    return [file.parent for file in sorted(folder.rglob("experiment.json"))] if folder.is_dir() else []


# --- opening for training --------------------------------------------------------------------------------------------
@contextlib.contextmanager
def open_run(
    experiment: Experiment,
    hashes: dict[str, str],
    encoding,
    facts: dict[str, Any],
    folder: Path,
    take_up: Callable[[Run], None],
) -> Iterator[Run]:
    """Make the run's directory, or open it again; hold it meanwhile.

    take_up: called with a run that is there already, before anything is changed; it refuses one that this experiment
    cannot go on with. Raises UserError, having changed nothing, while another process trains there.
    """
    path = folder / experiment.name
    with _saying(path):
        path.mkdir(parents=True, exist_ok=True)
        lock = (path / ".lock").open("w")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # goes with the process, however it ends
        except OSError as error:
            raise UserError(f"{path} is being trained by another process; choose another --name") from error
        for partial in path.glob(".*.partial"):  # of a copy or removal that was cut short
            shutil.rmtree(partial, ignore_errors=True)
        if (path / "experiment.json").exists():
            take_up(Run(path))
        with _saying(path):
            _describe(path, experiment, hashes, encoding, facts)
        run = Run(path)
        run.lock = lock
        yield run


def _describe(path: Path, experiment: Experiment, hashes: dict[str, str], encoding, facts: dict[str, Any]) -> None:
    """Write tokenizer.json and experiment.json."""
    tokenizer.save(encoding, path / "tokenizer.json")
    record = {
        "experiment": settings.to_dict(experiment),
        "fingerprint": settings.fingerprint(experiment, hashes),
        "hashes": hashes,
        **facts,
        "versions": _versions(),
        "git": _git_commit(),
    }
    # Last, and at once: a directory is a run from the moment this file is there.
    with whole(path / "experiment.json") as file:
        file.write(json.dumps(record, indent=2) + "\n")


_BY_HASH = {
    "data.corpus": "corpus", "data.examples": "corpus", "data.validation_corpus": "validation",
    "data.tokenizer": "tokenizer", "train.start": "start",
}  # fmt: skip
"""Settings that say where something lies, and the hash that says what it is: it may lie elsewhere by now."""


def differences(run: Run, experiment: Experiment, hashes: dict[str, str]) -> list[str]:
    """Everything in which a run's recorded settings and hashes differ from these, in what decides the result."""
    before, now = settings.identity(run.experiment), settings.identity(experiment)
    old = run.record["hashes"]

    def moved(key: str) -> bool:
        named = _BY_HASH.get(key)
        return named in hashes and old.get(named) == hashes[named] and None not in (before.get(key), now[key])

    changed = [key for key in now if before.get(key) != now[key] and not moved(key)]
    others = [name for name in hashes if old.get(name) != hashes[name]]
    return [f"{key} {before.get(key)}, now {now[key]}" for key in changed] + [
        f"{name} sha {str(old.get(name, 'none'))[:8]}, now {hashes[name][:8]}" for name in others
    ]


def refuse_differences(run: Run, experiment: Experiment, hashes: dict[str, str], total: int) -> None:
    """Raise UserError, naming every difference, unless the run is this experiment's, at most `total` steps long.

    A run without any checkpoint has nothing to lose: it may be begun anew as something else.
    """
    if not run.steps():
        return
    found = differences(run, experiment, hashes)
    require(
        not found, f"{run.path} was trained with {'; '.join(found)}: choose another --name, or give back what it had"
    )
    require(
        run.reached <= total,
        f"{run.path} is at step {run.reached}, past train.steps {experiment.train.steps}: raise that",
    )


@contextlib.contextmanager
def _saying(path: Path) -> Iterator[None]:
    """Tell what kept the run from being written."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write the run to {path}: {error.strerror or error}") from error


def _versions() -> dict[str, str]:
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "tiktoken")
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in packages}


def _git_commit() -> str | None:
    """The commit of the code that ran, with + when the tree differs from it; None outside a repository."""
    git = ["git", "--no-optional-locks", "-C", str(Path(__file__).parent)]  # killed, it leaves no lock behind
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10)
        status = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return commit.stdout.strip() + ("+" if status.stdout.strip() else "") if commit.returncode == 0 else None


# --- a trained model -------------------------------------------------------------------------------------------------
def load(run: str | Path | Run, step: int | str = "latest", *, parallel: ParallelConfig = ONE_DEVICE) -> "Trained":
    """The model of a run at its "latest" checkpoint, at its "best" by validation loss, or at a step.

    parallel: spreads the parameters over devices, for a model larger than one of them: data=8, fsdp=True leaves an
    eighth on each.

    Raises UserError where there is no such run or checkpoint, where it is damaged, or where the tokenizer's vocabulary
    is not the model's.
    """
    from lm.model.adapters import Adapters  # JAX, for which a table of the runs should not wait
    from lm.model.api import build
    from lm.model.trained import Trained
    from lm.parallel import mesh_of, on_mesh, shardings

    run = run if isinstance(run, Run) else Run(run)
    kept = run.steps()
    require(bool(kept), f"{run.path} has no checkpoint yet; train it first: lm train")
    if step == "best":
        step = run.best_step()
    elif step == "latest":
        step = kept[-1]
    require(str(step) in map(str, kept), f"{run.path} has no checkpoint {step}; it has {kept}")
    c = run.experiment.model
    n_vocab = run.tokenizer.n_vocab
    require(
        tokenizer.serves(run.tokenizer, c.vocab),
        f"{run.path}: the tokenizer has {n_vocab} tokens and the model {c.vocab}; one was replaced",
    )
    require(
        tokenizer.digest(run.tokenizer) == run.record["hashes"]["tokenizer"],
        f"{run.path / 'tokenizer.json'} is not the tokenizer this run was trained with; put that one back",
    )
    mesh, rank = mesh_of(parallel), run.experiment.optimizer.lora
    held = build(c) if rank is None else Adapters(build(c), rank, run.experiment.optimizer.lora_alpha)
    shapes = held.shapes()
    if mesh is not None:
        shapes = on_mesh(shapes, shardings(mesh, held, shapes, fsdp=parallel.fsdp))
    params = checkpoints.load(run.checkpoint_folder, int(step), params=shapes)["params"]
    if rank is not None:
        params = held.merged(_base(run, parallel), params)
    return Trained(params, run.tokenizer, run.experiment, int(step), run=run)


def _base(run: Run, parallel: ParallelConfig) -> dict[str, Any]:
    """The parameters that a run of adapters changes, which another run holds."""
    start, step = run.experiment.train.start, run.record["taken"]["start"]
    alone = f"{run.path} holds adapters of {start} at step {step}, and cannot be without it (`lm merge` makes it whole)"
    require(exists(start) and step in Run(start).steps(), f"{alone}: it is not there")
    base = load(start, step, parallel=parallel).params
    require(checkpoints.digest(base) == run.record["hashes"]["start"], f"{alone}: it is no longer what it was")
    return base
