"""Checkpoints of a run, kept by orbax: atomic, one folder a step, parameters apart from what only training needs.

Each save holds a digest of every part, and every load is checked against it: disks and copies do flip bits. Checkpoints
from before there were digests load unchecked. JAX and orbax are imported by the first save or load: a table of runs, or
the first step, should not wait for them.
"""

import contextlib
import functools
import gc
import hashlib
import json
import logging
import shutil
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from lm import processes
from lm.errors import UserError, require


def steps(folder: Path) -> list[int]:
    """Steps whose checkpoint was written whole, in order: a folder gets its number when it is complete."""
    if not folder.is_dir():
        return []
    numbers = {entry.name for entry in folder.iterdir() if entry.is_dir() and _is_step(entry.name)}
    return sorted(map(int, numbers))


def _is_step(name: str) -> bool:
    """Whether a folder is named as a step's is: "007" and "²" are not, which int() or isdigit() would let through."""
    return name.isascii() and name.isdigit() and (name == "0" or name[0] != "0") and len(name) < 19


def digest(tree: Any) -> str:
    """sha256 (hex) of a tree's arrays: path, shape, type and bytes of each, wherever they lie.

    What counts is what was computed, not how it is laid out in files, so that every flipped bit that would be loaded
    shows, wherever it happened. At a gigabyte a second this costs a small part of what writing the files does.
    """
    import jax
    import numpy as np

    from lm.parallel import on_host

    state = hashlib.sha256()
    for path, leaf in jax.tree.leaves_with_path(tree):
        array = np.ascontiguousarray(on_host(leaf))
        state.update(f"{jax.tree_util.keystr(path)} {np.shape(leaf)} {array.dtype}\n".encode())
        state.update(array.reshape(-1).view(np.uint8))
    return state.hexdigest()


def _digest_of_metrics(metrics: Any) -> str:
    return hashlib.sha256(json.dumps(metrics, sort_keys=True).encode()).hexdigest()


def _digests(folder: Path, step: int) -> dict[str, str]:
    """The digest of each part as it was saved; none in checkpoints from before there were digests."""
    try:
        metadata = json.loads((folder / str(step) / "_CHECKPOINT_METADATA").read_bytes())
        return dict((metadata.get("custom_metadata") or {}).get("digests", {}))
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(folder, step) from error


def load(folder: Path, step: int, **abstract: Any) -> dict[str, Any]:
    """The named parts of a checkpoint, each like its abstract tree (jax.ShapeDtypeStruct leaves), and where
    those have shardings, on those devices.

    Other arrays are tied to no device, as fresh ones are: JAX would compile every program anew for those that are.
    Raises UserError where a file is missing or damaged, a digest is not that of what was saved, or the shapes differ:
    nothing is ever filled in silently.
    """
    import jax
    from orbax.checkpoint import v1 as ocp

    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def place(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding or device)

    def untied(leaf: jax.Array, wanted: jax.ShapeDtypeStruct) -> jax.Array:
        return leaf if wanted.sharding else jax.device_put(jax.device_get(leaf))

    saved, loaded = _digests(folder, step), None
    _val_loss(folder, step)
    with _quiet():
        try:
            loaded = ocp.load_checkpointables(folder.resolve() / str(step), jax.tree.map(place, abstract))
        except Exception:  # whatever the libraries below make of damaged files
            damaged = _damaged(folder, step)
        if loaded is None:
            gc.collect()  # what failed in orbax complains when it is collected: while nobody listens
    if loaded is None:
        raise damaged
    for name in abstract if saved else ():
        if digest(loaded[name]) != saved.get(name):
            raise _damaged(folder, step, f": its {name} are not what was saved")
    return jax.tree.map(untied, {name: loaded[name] for name in abstract}, abstract)


def copy(folder: Path, step: int, to: Path, **abstract: Any) -> None:
    """Copy a checkpoint to another run, whole or not at all, after checking these parts of it as `load` does."""
    load(folder, step, **abstract)
    to.mkdir(parents=True, exist_ok=True)
    partial = _partial(to, step)
    shutil.rmtree(partial, ignore_errors=True)  # what an interrupted copy left
    shutil.copytree(folder / str(step), partial)
    partial.rename(to / str(step))


def remove(folder: Path, step: int) -> None:
    """Remove a checkpoint at once: no half of it is ever seen under its number."""
    partial = _partial(folder, step)
    shutil.rmtree(partial, ignore_errors=True)
    (folder / str(step)).rename(partial)
    shutil.rmtree(partial)


def _partial(folder: Path, step: int) -> Path:
    """Where a checkpoint of the run is put together or taken apart."""
    return folder.parent / f".{step}.partial"


def _damaged(folder: Path, step: int, how: str = ", or not of this model") -> UserError:
    others = [s for s in steps(folder) if s != step]
    way_out = f"delete it to go on from step {others[-1]}" if others else "delete the run and train again"
    return UserError(f"checkpoint {folder / str(step)} is damaged{how}; {way_out}")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep off standard error what the garbage collector says of coroutines that failed in orbax."""
    asyncio, hook = logging.getLogger("asyncio"), sys.unraisablehook
    level = asyncio.level
    asyncio.setLevel(logging.CRITICAL)
    sys.unraisablehook = lambda _: None
    with warnings.catch_warnings(action="ignore"):
        try:
            yield
        finally:
            asyncio.setLevel(level)
            ours = isinstance(hook, functools.partial)
            sys.unraisablehook = hook if ours else functools.partial(_tell_unless_late, hook)


def _tell_unless_late(hook: Callable[[Any], None], unraisable: Any) -> None:
    """Say nothing of a failed load's thread that still calls back when its event loop is closed."""
    if str(unraisable.exc_value) != "Event loop is closed":
        hook(unraisable)


def _val_loss(folder: Path, step: int) -> float | None:
    """The validation loss saved with a checkpoint, None where it has none. Raises UserError for one that is damaged."""
    file = folder / str(step) / "metrics" / "metrics"
    saved = _digests(folder, step)
    try:
        metrics = json.loads(file.read_bytes()) if file.exists() else None
        loss = None if metrics is None else metrics["val_loss"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise _damaged(folder, step) from error
    if not isinstance(loss, float | None) or (saved and saved.get("metrics") != _digest_of_metrics(metrics)):
        raise _damaged(folder, step, ": its validation loss is not what was saved")
    return loss


class Checkpoints:
    """Writes checkpoints: keeps the latest `keep`, the best by validation loss, and those of the steps `always`."""

    def __init__(self, folder: Path, keep: int, always: Iterable[int] = ()):
        self.folder, self.keep, self.always = folder.resolve(), keep, tuple(always)  # orbax wants absolute paths
        self.losses = {step: _val_loss(folder, step) for step in steps(folder)}

    @functools.cached_property
    def writer(self):
        """Orbax's own writer, which also removes what unfinished saves left behind."""
        from orbax.checkpoint import v1 as ocp

        return ocp.training.Checkpointer(
            self.folder,
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            cleanup_tmp_directories=True,
        )

    def save(self, step: int, val_loss: float | None, **parts: Any) -> None:
        """Write the parts, whole or not at all, before returning: training goes on to overwrite their memory."""
        import jax

        if processes.leads("saved", lambda: step in steps(self.folder)):
            return
        where = f"step {step} was not saved to {self.folder}"
        free = processes.leads("free", lambda: shutil.disk_usage(self.folder.parent).free)
        need = 2 * sum(leaf.nbytes for leaf in jax.tree.leaves(parts))
        require(free > need, f"{where}: {free / 1e6:.2f} MB free, {need / 1e6:.2f} MB needed; free some and resume")
        metrics = None if val_loss is None else {"val_loss": val_loss}
        digests = {name: digest(part) for name, part in parts.items()} | {"metrics": _digest_of_metrics(metrics)}
        try:
            self.writer.save_checkpointables(
                step, parts, metrics=metrics, force=True, custom_metadata={"digests": digests}
            )
        except (OSError, ValueError, RuntimeError) as error:
            said = str(error).strip().splitlines() or [type(error).__name__]
            reason = said[0].split('": ')[-1].split(" [")[0]  # tensorstore: what failed, on which file, why, in numbers
            raise UserError(f"{where}: {reason[:200]}; earlier checkpoints are whole, resume when mended") from error
        self.losses[step] = val_loss
        self._remove_others()

    def _remove_others(self) -> None:
        """Remove what need not be kept. (Orbax would delete file by file: killed meanwhile, it leaves a half.)"""
        scored = {step: loss for step, loss in self.losses.items() if loss is not None}
        best = min(scored, key=scored.__getitem__, default=None)
        kept = {*sorted(self.losses)[-self.keep :], best, *self.always}
        for step in sorted(self.losses.keys() - kept):
            if processes.lead():
                remove(self.folder, step)
            del self.losses[step]

    def close(self) -> None:
        """Wait for the writer. A save that failed was told by `save`."""
        if "writer" in vars(self):  # something was saved
            with contextlib.suppress(OSError, ValueError, RuntimeError):
                self.writer.close()
