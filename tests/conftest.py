"""Every test keeps to a cache of the session's own, never the user's; one tiny trained run serves those that need one.

Compiled programs are kept in that cache, so that the second training of a shape, here or in a subprocess, starts at
once. Workers of pytest-xdist share it.

Most of the tests' time is compilation, and what a program computes is the same without LLVM's polish: they are compiled
without it, and by XLA's older emitters of loops, which take a third of the time. JAX_DISABLE_MOST_OPTIMIZATIONS=0 has
them compiled as users' programs are, as the gate does on another instruction set.
"""

import os
from pathlib import Path

import jax
import pytest
import tiny

from lm.errors import print_once

ROOT = Path(__file__).resolve().parents[1]
MOST_MAPS = 32_000
OLDER_EMITTERS = "--xla_cpu_use_fusion_emitters=false"
"""JAX 0.12 ends at flags it does not know, and no longer knows this one."""


def pytest_addoption(parser):
    parser.addoption("--fuzz-seed", type=int, default=0, help="of the command lines and damages that tests/fuzz tries")
    parser.addoption("--fuzz-cases", type=float, default=0.1, help="how many of them: 1 for what the gate tries")


def pytest_configure():
    """For this process, and for those that tests start."""
    unpolished = os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    jax.config.update("jax_disable_most_optimizations", unpolished == "1")
    flags = os.environ.get("XLA_FLAGS", "")
    if unpolished == "1" and jax.__version_info__ < (0, 11) and OLDER_EMITTERS not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {OLDER_EMITTERS}".strip()


@pytest.fixture(autouse=True)
def told_anew():
    """What a process tells once, every test hears."""
    print_once.cache_clear()


@pytest.fixture(scope="session", autouse=True)
def session_cache(tmp_path_factory):
    """LM_CACHE for this process and every one it starts."""
    base = tmp_path_factory.getbasetemp()
    cache = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "lm-cache"
    patch = pytest.MonkeyPatch()
    patch.setenv("LM_CACHE", str(cache))
    patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])))
    from lm.hardware import keep_compiled_programs

    keep_compiled_programs(cache / "programs")
    yield cache
    patch.undo()


@pytest.fixture(scope="module", autouse=True)
def room_for_programs():
    """Each compiled program maps some memory, and Linux lets a process have 65,530 maps: beyond, XLA crashes.

    After a file that leaves half of them taken, all programs are let go; what is needed again comes from the cache.
    """
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > MOST_MAPS:
        jax.clear_caches()


@pytest.fixture(scope="module")
def polished():
    """Programs of this module are compiled with all of LLVM's polish: fits run for longer than they compile."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "1")


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    """A text file of one document, 16 kB."""
    path = tmp_path_factory.mktemp("corpus") / "text.txt"
    path.write_text(tiny.text())
    return path


@pytest.fixture(scope="session")
def tiny_run(corpus, tmp_path_factory, session_cache):
    """tiny.experiment(corpus), trained to its end in a folder of its own. For reading only."""
    from lm.training.loop import train

    return train(tiny.experiment(corpus), folder=tmp_path_factory.mktemp("trained") / "runs")


@pytest.fixture(scope="session")
def knowing(tmp_path_factory, session_cache):
    """Two runs of a pack that know a small world, and its facts.jsonl. For reading only."""
    import json

    import knowledge

    from lm.training.loop import train_pack

    folder = tmp_path_factory.mktemp("knowing")
    (folder / "text.txt").write_text(knowledge.text())
    (folder / "facts.jsonl").write_text("".join(json.dumps(vars(fact)) + "\n" for fact in knowledge.facts()))
    pack = [knowledge.experiment(folder / "text.txt", name=f"seed{s}", train__seed=s) for s in (0, 1)]
    return train_pack(pack, folder=folder / "runs"), folder / "facts.jsonl"


@pytest.fixture
def workplace(tmp_path, monkeypatch) -> Path:
    """An empty current directory: `runs/`, `configs/` and figures land here."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def lm(capsys):
    """lm("train", "demo") -> (exit status, standard output, standard error)."""
    from lm.cli import main

    def run(*arguments):
        capsys.readouterr()
        status = main([str(argument) for argument in arguments])
        return status, *capsys.readouterr()

    return run
