"""Packs: P runs that differ in seed and traced numbers, trained side by side.

Ways to do it, `how`:
  vmap     one program makes each step of all runs at once: for accelerators, which tiny runs leave idle
  threads  as many threads as cores call the program of a run alone, each for one run after another: JAX releases
           Python's lock, and small matrices keep a core busier apart than together. The bits are those of a run alone,
           which no other program has: XLA fuses a step otherwise inside another loop
  auto     vmap on accelerators, threads on a CPU
Over several devices, CPUs too, each trains its share of the runs by a vmap that knows no other: nothing is exchanged.
A pack of one is a run alone, whatever the way.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from operator import itemgetter

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lm import parallel
from lm.config import Experiment
from lm.errors import require
from lm.training.memory import require_plan
from lm.training.programs import WAYS, make_train_steps
from lm.training.step import TrainState


def resolve(how: str) -> str:
    """Returns the way that "auto" stands for here, and any other as it is. Raises UserError for a way there is not."""
    require(how in ("auto", *WAYS), f"how {how!r}: one of auto, {', '.join(WAYS)}")
    if how != "auto":
        return how
    return "threads" if jax.default_backend() == "cpu" else "vmap"


@dataclasses.dataclass
class Pack:
    """P states, and the programs that train them: one for each number of pieces that windows are read in.

    together: states and hypers are each one tree with a leading axis P for one call of the program, rather than lists
    of P trees for as many calls.
    """

    states: list[TrainState] | TrainState
    hypers: list[dict] | dict
    programs: Callable[..., jax.stages.Wrapped]
    together: bool
    mesh: Mesh | None = None
    pieces: int = 1
    compiled: jax.stages.Compiled | None = None

    @property
    def devices(self) -> int:
        """How many devices work."""
        return 1 if self.mesh is None else self.mesh.size

    def place(self, store):
        """Puts what all runs read where they read it."""
        return jax.tree.map(jnp.asarray, store) if self.mesh is None else parallel.place(self.mesh, store)

    def state(self, p: int) -> TrainState:
        """Returns the state of run p, which the next advance overwrites."""
        return _take(self.states, p) if self.together else self.states[p]

    @property
    def train_steps(self) -> jax.stages.Wrapped:
        """The program that trains them now."""
        return self.programs(pieces=self.pieces)

    def read_in(self, pieces: int) -> bool:
        """Reads windows in so many pieces from now on. Tells whether that takes another program than before."""
        changes = pieces != self.pieces
        if changes:
            self.pieces, self.compiled = pieces, None
        return changes

    def compile(self, store, windows: Sequence, counts: Sequence[int]) -> None:
        """Compiles the program that `advance` will call. Raises UserError where it needs more memory than there is.

        Before the threads begin: each could compile, without this thread's jax.config.
        """
        with parallel.using(None if self.together else self.mesh):
            self.compiled = self.train_steps.lower(*self._calls(store, windows, counts)[0]).compile()
        require_plan(self.compiled)

    def advance(self, store, windows: Sequence, counts: Sequence[int]) -> list[dict]:
        """Makes counts[p] steps of run p over windows[p], 0 for a run that is done for. Returns each run's report.

        A run that is not healthy stops, and disturbs no other.
        """
        if not self.compiled:
            self.compile(store, windows, counts)

        def call(arguments) -> tuple[TrainState, dict]:
            state, report = self.compiled(*arguments)
            return state, jax.device_get(report)

        calls = self._calls(store, windows, counts)
        if len(calls) > 1:
            with ThreadPoolExecutor(min(len(calls), os.cpu_count() or 1)) as threads:
                made = list(threads.map(call, calls))
        else:
            made = [call(calls[0])]
        if not self.together:
            self.states = [state for state, _ in made]
            return [report for _, report in made]
        [(self.states, report)] = made
        return [jax.tree.map(itemgetter(p), report) for p in range(len(counts))]

    def _calls(self, store, windows: Sequence, counts: Sequence[int]) -> list[tuple]:
        """Returns the arguments of each call of the program."""
        if self.together:
            together = jax.tree.map(lambda *each: np.stack(each), *windows)
            calls = parallel.place(self.mesh, (together, np.array(counts, np.int32)), axis=0)
            return [(self.states, self.hypers, store, *calls)]
        windows, counts = parallel.place(self.mesh, windows, axis=1), parallel.place(self.mesh, list(counts))
        runs = zip(self.states, self.hypers, windows, counts, strict=True)
        return [(state, hyper, store, window, np.int32(n)) for state, hyper, window, n in runs]


def make_pack(
    states: Sequence[TrainState],
    hypers: Sequence[dict],
    e: Experiment,
    eot: int | None,
    *,
    how: str = "auto",
    devices: int | None = 1,
) -> Pack:
    """Returns P states, and the way to train them. e: any of the runs; what a pack may differ in is traced.

    devices: how many the runs may be spread over; None: all.
    """
    programs = functools.partial(make_train_steps, e, eot)
    if len(states) == 1:
        mesh = parallel.mesh_of(e.parallel)
        numbers = [{name: value for name, value in hyper.items() if name != "frozen"} for hyper in hypers]
        placed = [hyper | own for hyper, own in zip(hypers, parallel.place(mesh, numbers), strict=True)]
        return Pack(list(states), placed, programs, False, mesh)
    mesh = parallel.mesh_of_runs(len(states), devices)
    way = resolve(how)
    if mesh is not None and way == "threads":
        require(how == "auto", "how 'threads': runs spread over several devices train in one program; use vmap")
        way = "vmap"
    if way == "threads":
        return Pack(list(states), list(hypers), programs, False)
    states, hypers = parallel.place(mesh, (_stack(states), _stack(hypers)), axis=0)
    return Pack(states, hypers, functools.partial(programs, way=way, mesh=mesh), True, mesh)


def _stack(trees):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


@jax.jit
def _take(tree, p):
    return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, p, keepdims=False), tree)
