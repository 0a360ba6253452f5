"""Checkpoints of a run, kept by orbax: atomic, one folder a step, parameters apart from what only training needs.

Orbax is imported by the first save or load: the first step, or finding a run's checkpoints, should not wait for it.
"""

import contextlib
import functools
import gc
import json
import logging
import shutil
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from lm.errors import UserError, require


def steps(folder: Path) -> list[int]:
    """Steps whose checkpoint was written whole, in order: a folder gets its number when it is complete."""
    if not folder.is_dir():
        return []
    return sorted(int(entry.name) for entry in folder.iterdir() if entry.name.isdigit())


def load(folder: Path, step: int, **abstract: Any) -> dict[str, Any]:
    """The named parts of a checkpoint, each like its abstract tree (jax.ShapeDtypeStruct leaves).

    Raises UserError where a file is missing or damaged or the shapes differ: nothing is ever filled in silently.
    """
    from orbax.checkpoint import v1 as ocp

    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    place = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device)  # noqa: E731
    with _quiet():
        try:
            return ocp.load_checkpointables(folder.resolve() / str(step), jax.tree.map(place, abstract))
        except Exception:
            damaged = _damaged(folder, step)
    raise damaged


def copy(folder: Path, step: int, to: Path) -> None:
    """Put a checkpoint among another run's, whole or not at all."""
    to.mkdir(parents=True, exist_ok=True)
    partial = to.parent / f".{step}.copy"
    shutil.rmtree(partial, ignore_errors=True)  # what an interrupted copy left
    shutil.copytree(folder / str(step), partial)
    partial.rename(to / str(step))


def _damaged(folder: Path, step: int) -> UserError:
    others = [s for s in steps(folder) if s != step]
    way_out = f"delete it to go on from step {others[-1]}" if others else "delete the run and train again"
    return UserError(f"checkpoint {folder / str(step)} is damaged, or not of this model; {way_out}")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Orbax leaves failed coroutines to the garbage collector, which would tell of each on standard error."""
    asyncio, hook = logging.getLogger("asyncio"), sys.unraisablehook
    level = asyncio.level
    asyncio.setLevel(logging.CRITICAL)
    sys.unraisablehook = lambda _: None
    with warnings.catch_warnings(action="ignore"):
        try:
            yield
        finally:
            gc.collect()
            asyncio.setLevel(level)
            sys.unraisablehook = hook


def _require_metrics(folder: Path, step: int) -> None:
    """Refuse validation losses that cannot be read; a checkpoint without any is fine."""
    file = folder / str(step) / "metrics" / "metrics"
    try:
        if file.exists():
            json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise _damaged(folder, step) from error


class Checkpoints:
    """Writes checkpoints: keeps the latest `keep` and the best by validation loss."""

    def __init__(self, folder: Path, keep: int):
        self.folder, self.keep = folder.resolve(), keep  # orbax writes to absolute paths only
        for step in steps(folder):
            _require_metrics(folder, step)

    @functools.cached_property
    def writer(self):
        """Orbax's own; it also removes what unfinished saves left behind."""
        from orbax.checkpoint import v1 as ocp

        policies = ocp.training.preservation_policies
        latest = policies.LatestN(self.keep)
        best = policies.BestN(
            get_metric_fn=lambda metrics: -metrics["val_loss"], n=1, keep_checkpoints_without_metrics=False
        )
        return ocp.training.Checkpointer(
            self.folder,
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=policies.AnyPreservationPolicy([latest, best]),
            cleanup_tmp_directories=True,
        )

    def save(self, step: int, val_loss: float | None, **parts: Any) -> None:
        """Write the parts, whole or not at all, before returning: training goes on to overwrite their memory."""
        if step in steps(self.folder):
            return
        free = shutil.disk_usage(self.folder.parent).free
        need = 2 * sum(leaf.nbytes for leaf in jax.tree.leaves(parts))
        where = f"step {step} was not saved to {self.folder}"
        require(free > need, f"{where}: {free / 1e6:.2f} MB free, {need / 1e6:.2f} MB needed; free some and resume")
        try:
            metrics = None if val_loss is None else {"val_loss": val_loss}
            self.writer.save_checkpointables(step, parts, metrics=metrics, force=True)
        except (OSError, ValueError, RuntimeError) as error:
            said = str(error).strip().splitlines() or [type(error).__name__]
            reason = said[0].split('": ')[-1].split(" [")[0]  # tensorstore: what failed, on which file, why, in numbers
            raise UserError(f"{where}: {reason[:200]}; earlier checkpoints are whole, resume when mended") from error

    def close(self) -> None:
        if "writer" not in vars(self):  # nothing was saved
            return
        with contextlib.suppress(OSError, ValueError, RuntimeError):  # a failed save again, which was told by `save`
            self.writer.close()
