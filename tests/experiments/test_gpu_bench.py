"""The smallest of the GPU bench on this machine, and what becomes of a section that fails or takes too long."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "experiments" / "gpu_bench.py"
HOW = ["--small", "--rounds", "1", "--turn", "0.02"]


@pytest.fixture(scope="module")
def gpu_bench():
    specification = importlib.util.spec_from_file_location("gpu_bench", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    sys.modules["gpu_bench"] = module  # its dataclasses look themselves up
    specification.loader.exec_module(module)
    yield module
    del sys.modules["gpu_bench"]


def test_a_section_prints_its_rows_and_draws(tmp_path):
    figure = tmp_path / "figures" / "bench.svg"
    command = [sys.executable, str(SCRIPT), *HOW, "--sections", "tiny", "--budget", "400", "--figure", str(figure)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    dispatch, packed = done.stdout.splitlines()[-3:-1]
    assert dispatch.startswith("| 32 steps a dispatch") and dispatch.endswith("| steps/s |")
    assert packed.startswith("| 8 runs packed") and "one after another: " in packed
    assert figure.read_text().startswith("<?xml")


def test_a_section_without_time_says_so(gpu_bench, monkeypatch):
    [row] = gpu_bench.measured("tiny", HOW, seconds=1)
    assert "time was out" in row.markdown()
    monkeypatch.setattr(gpu_bench, "LEAST", 0)
    [row] = gpu_bench.measured("tiny", HOW, seconds=0.3)
    assert "stopped after its 0 s" in row.markdown()


def test_an_error_is_a_row(gpu_bench, monkeypatch, capsys):
    def rows(*_):
        yield gpu_bench.Row("first", "ratio", "nothing", 2.0, 1.9, 2.1)
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 1 GB\nand more")

    monkeypatch.setitem(gpu_bench.SECTIONS, "tiny", gpu_bench.Section(1, rows))
    gpu_bench.tell("tiny", small=True, rounds=1, seconds=0.01)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and "first" in lines[1]  # the machine, what was measured, what was not
    assert "out of memory" in lines[2] and "missing" in lines[2]


def test_a_batch_that_does_not_fit_is_halved(gpu_bench, monkeypatch):
    class Program:
        def __init__(self, e):
            if e.train.batch > 8:
                raise gpu_bench.jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    monkeypatch.setattr(gpu_bench.lm.bench, "Program", Program, raising=False)
    e, _ = gpu_bench.fitting(gpu_bench.TINY, 64)
    assert e.train.batch == 8
