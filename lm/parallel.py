"""Many devices as one: a mesh ("data", "model"), and where every array lies on it, by the letters of its axes.

A batch's rows are cut over "data", and matrices over "model" by their F, their heads or their V. With fsdp each
parameter's D is cut over "data" too, its gradient and moments alike, and a layer's parameters are put together where
the layer uses them (`at_use`): left to itself, XLA cuts the residual stream over D instead and takes four times the
memory. What does not divide stays whole. Without a mesh, which is one device, everything here does nothing.
"""

import contextlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from lm import processes
from lm.config import ParallelConfig
from lm.errors import require

CUT = {"V": "model", "F": "model", "NH": "model", "KH": "model"}
"""The mesh's axis over which an axis of parameters is cut; D is, with fsdp, over "data"."""
GATHERED = "gathered"
"""Names, for jax.checkpoint's policies, a parameter put together: it is put together again rather than kept."""


def mesh_of(c: ParallelConfig, devices: Sequence[Any] | None = None) -> Mesh | None:
    """Returns the mesh, None where it is of one device. Raises UserError where there are not as many devices.

    devices: instead of those that JAX finds here.
    """
    devices = jax.devices() if devices is None else devices
    there = len(devices)
    data = c.data or there // c.model
    require(
        c.data is not None or there % c.model == 0,
        f"parallel.model {c.model} does not divide the {there} devices here; change it, or set parallel.data as well",
    )
    require(
        data * c.model <= there,
        f"parallel.data {data} x parallel.model {c.model} are {data * c.model:,} devices, there are {there} here; lower "
        "one of them (lm train CONFIG --dry-run plans for more)",
    )
    if data * c.model == 1:
        return None
    chosen = np.array(devices[: data * c.model]).reshape(data, c.model)
    return Mesh(chosen, ("data", "model"), axis_types=(AxisType.Auto, AxisType.Auto))


def mesh_of_runs(count: int, devices: int | None) -> Mesh | None:
    """Returns the mesh that so many runs of a pack are spread over evenly, on at most so many devices (None: all)."""
    there = jax.devices()
    most = min(count, len(there) if devices is None else devices, len(there))
    return mesh_of(ParallelConfig(data=max(n for n in range(1, most + 1) if count % n == 0)))


def require_divisible(mesh: Mesh | None, batch: int, accumulation: int) -> None:
    """Raises UserError for a batch whose parts, one for each pass of accumulation, cannot be spread over "data".

    And for a mesh that leaves out devices of one of several processes.
    """
    used, there = 1 if mesh is None else mesh.size, jax.device_count()
    require(
        processes.count() == 1 or used == there,
        f"parallel.data x parallel.model is {used} of {there} devices: {processes.count()} processes must use them all",
    )
    require_rows(1 if mesh is None else mesh.shape["data"], batch, accumulation)


def require_rows(data: int, batch: int, accumulation: int) -> None:
    """Raises UserError for a batch whose parts do not divide evenly among so many devices, be they here or not."""
    require(
        batch // accumulation % data == 0,
        f"train.batch {batch} / train.accumulation {accumulation} is not a multiple of the {data} devices of "
        "parallel.data; change one of them",
    )


def spec(axes: Sequence[str], shape: Sequence[int], sizes: Mapping[str, int], pieces: Mapping[str, int], fsdp: bool):
    """Returns the PartitionSpec of a parameter with these axes on a mesh of these sizes.

    pieces: how many pieces an axis may be cut into, where it is not its size: heads are never cut.
    """
    cut = CUT | ({"D": "data"} if fsdp else {})
    found: list[str | None] = []
    for letter, size in zip(axes, shape, strict=True):
        name = cut.get(letter)
        goes = name is not None and name not in found and pieces.get(letter, size) % sizes[name] == 0
        found.append(name if goes and sizes[name] > 1 else None)
    return P(*found)


def shardings(mesh: Mesh, model: Any, tree: Any, *, fsdp: bool) -> Any:
    """Returns the sharding of every leaf of a tree that holds parameters, or what an optimizer keeps for each.

    model: the LanguageModel. A leaf lies as the parameter whose path its own ends with; any other is whole everywhere.
    """
    letters = {
        tuple(key.key for key in path): axes
        for path, axes in jax.tree.leaves_with_path(model.axes(), is_leaf=lambda x: isinstance(x, tuple))
    }

    def place_of(path, leaf) -> NamedSharding:
        keys = tuple(getattr(key, "key", None) for key in path)
        axes = next((letters[keys[i:]] for i in range(len(keys)) if keys[i:] in letters), None)
        if axes is None or len(axes) != len(leaf.shape):
            return NamedSharding(mesh, P())
        return NamedSharding(mesh, spec(axes, leaf.shape, mesh.shape, model.config.pieces, fsdp))

    return jax.tree_util.tree_map_with_path(place_of, tree)


def on_mesh(abstract: Any, places: Any) -> Any:
    """Returns the shapes and types of a tree, each with its place."""

    def placed(leaf, sharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(placed, abstract, places)


# --- while a program is traced or called -----------------------------------------------------------------------------
def using(mesh: Mesh | None) -> contextlib.AbstractContextManager:
    """Makes this the mesh of what this thread traces and calls; None leaves all as it is."""
    return contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh)


def mesh_under(params: Any) -> Mesh | None:
    """Returns the mesh that parameters lie on, None for those of one device."""
    sharding = next((getattr(leaf, "sharding", None) for leaf in jax.tree.leaves(params)), None)
    on_mesh = isinstance(sharding, NamedSharding) and set(sharding.mesh.axis_names) == {"data", "model"}
    return sharding.mesh if on_mesh and sharding.mesh.size > 1 else None


def sizes_now() -> Mapping[str, int] | None:
    """Returns the sizes of the mesh in use; None without one, and where each device computes for itself."""
    mesh = jax.sharding.get_abstract_mesh()
    automatic = not mesh.empty and all(kind == AxisType.Auto for kind in mesh.axis_types)
    return dict(mesh.shape) if automatic else None


def at_use(params: nnx.State, pieces: Mapping[str, int]) -> nnx.State:
    """Puts parameters together over "data", where they are about to be used; "model" still cuts them.

    Stacked layers are left alone: the loop over them does this for one at a time.
    """
    sizes = sizes_now()
    if sizes is None:
        return params

    def whole(variable):
        value, axes = variable[...], variable.get_metadata("axes")
        if not hasattr(value, "ndim") or value.ndim != len(axes):
            return variable
        value = jax.lax.with_sharding_constraint(value, spec(axes, value.shape, sizes, pieces, fsdp=False))
        return variable.replace(checkpoint_name(value, GATHERED))

    return jax.tree.map(whole, params, is_leaf=lambda x: isinstance(x, nnx.Variable))


def rows(x: jax.Array, axis: int = 0) -> jax.Array:
    """Cuts an array that is being computed over "data" along its rows, and keeps its other axes whole."""
    sizes = sizes_now()
    if sizes is None or x.shape[axis] % sizes["data"]:
        return x
    return jax.lax.with_sharding_constraint(x, P(*[None] * axis, "data"))


def everywhere(tree: Any) -> Any:
    """Has arrays that are being computed whole on every device, for the host to read."""
    return tree if sizes_now() is None else jax.lax.with_sharding_constraint(tree, P())


def over_layers(x: jax.Array) -> jax.Array:
    """Spreads an array [L, ...] that is being computed over the devices by its layers, where they divide."""
    sizes = sizes_now()
    if sizes is None:
        return x
    axes = next((axes for axes in (("data", "model"), ("data",), ("model",)) if _divides(sizes, axes, len(x))), ())
    return jax.lax.with_sharding_constraint(x, P(axes)) if axes else x


def _divides(sizes: Mapping[str, int], axes: Sequence[str], count: int) -> bool:
    product = math.prod(sizes[name] for name in axes)
    return product > 1 and count % product == 0


# --- from the host ---------------------------------------------------------------------------------------------------
def place(mesh: Mesh | None, tree: Any, *, axis: int | None = None) -> Any:
    """Puts host arrays on the mesh: each with its axis of this number cut over "data" where it divides, else whole.

    Without a mesh returns them as they are.
    """
    if mesh is None:
        return tree

    def placed(x):
        cut = axis is not None and np.ndim(x) > axis and np.shape(x)[axis] % mesh.shape["data"] == 0
        return put(x, NamedSharding(mesh, P(*[None] * axis, "data") if cut else P()))

    return jax.tree.map(placed, tree)


def put(x: Any, sharding: jax.sharding.Sharding) -> jax.Array:
    """Puts an array that every process has on devices, each process on its own."""
    if processes.count() == 1:
        return jax.device_put(x, sharding)
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])


def on_host(x: Any) -> np.ndarray:
    """Returns an array whole, wherever it lies; every process of several must ask."""
    if not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated:
        return jax.device_get(x)
    return multihost_utils.process_allgather(x, tiled=True)
