"""The smallest of the GPU bench on this machine, and what becomes of a section that fails or takes too long."""

import dataclasses
import json
import subprocess
import sys

import jax.numpy as jnp
import pytest

from lm.model.attention import obstacle_to_cudnn

SCRIPT = "gpu_bench"
HOW = ["--small", "--rounds", "1", "--turn", "0.02"]


@pytest.mark.slow
def test_a_section_prints_its_rows_and_draws(script, tmp_path):
    figure = tmp_path / "figures" / "bench.svg"
    command = [sys.executable, script.__file__, *HOW, "--sections", "tiny", "--budget", "400", "--figure", str(figure)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    dispatch, packed = done.stdout.splitlines()[-3:-1]
    assert dispatch.startswith("| 32 steps a dispatch") and dispatch.endswith("| steps/s |")
    assert packed.startswith("| 8 runs packed") and "one after another: " in packed
    assert figure.read_text().startswith("<?xml")


def test_a_section_without_time_says_so_for_each_part(script, monkeypatch):
    rows = script.measured("tiny", HOW, seconds=1)
    assert [row.work for row in rows] == ["many steps a dispatch", "packed runs"]
    assert all("time was out" in row.markdown() for row in rows)
    monkeypatch.setattr(script, "LEAST", 0)
    rows = script.measured("tiny", HOW, seconds=0.3)
    assert len(rows) == 2 and all("stopped after its 0 s" in row.markdown() for row in rows)


def test_an_error_is_a_row_and_the_next_part_goes_on(script, monkeypatch, capsys):
    def fails(*_):
        yield script.Row("first", "ratio", "nothing", 2.0, 1.9, 2.1)
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 1 GB\nand more")

    def goes_on(*_):
        yield script.Row("second", "share", "all", 0.5, 0.4, 0.6)

    monkeypatch.setitem(script.SECTIONS, "tiny", script.Section(1, {"a": fails, "b": goes_on}))
    script.tell("tiny", script.SMALL, script.Turns(1, 0.01))
    lines = capsys.readouterr().out.splitlines()
    told = [json.loads(line.removeprefix(script.MARK)) for line in lines]
    assert [(row["work"], row["kind"]) for row in told[1:]] == [
        ("first", "ratio"), ("a", "missing"), ("a", "end"), ("second", "share"), ("b", "end"),
    ]  # fmt: skip
    assert told[2]["against"] == "out of memory"


def test_a_process_that_dies_costs_only_what_it_did_not_tell(script, monkeypatch, tmp_path):
    """It told of a machine, one part's row and that part's end."""
    dies = tmp_path / "dies.py"
    told = [
        script.Row("cpu", "machine", ""),
        script.Row("w", "ratio", "x"),
        script.Row("packed runs", "end", ""),
    ]
    lines = [script.MARK + json.dumps(dataclasses.asdict(row)) for row in told]
    dies.write_text(f"import os\nprint({chr(10).join(lines)!r}, flush=True)\nos.abort()\n")
    monkeypatch.setattr(script, "__file__", str(dies))
    rows = script.measured("tiny", [], seconds=60)
    assert [(row.work, row.kind) for row in rows] == [
        ("cpu", "machine"), ("w", "ratio"), ("many steps a dispatch", "missing"),
    ]  # fmt: skip
    assert "ended with status -6" in rows[-1].against


def test_a_batch_that_does_not_fit_is_halved(script, monkeypatch):
    class Program:
        def __init__(self, e):
            if e.train.batch > 8:
                raise script.jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    monkeypatch.setattr(script, "Program", Program)
    e, programs = script.fitting(script.TINY, 64, {}, dict(layers=3))
    assert e.train.batch == 8 and e.model.layers == 2 and len(programs) == 2


def test_training_goes_on_plainly_where_cudnn_fails(script, monkeypatch):
    """Unless it was asked for by name; then the error is told."""

    def program(e):
        if e.model.attention != "plain":
            raise RuntimeError("cuDNN is not detected.")

    monkeypatch.setattr(script, "Program", program)
    e, _ = script.fitting(script.TINY, 8)
    assert e.model.attention == "plain" and "plain attention" in script.described(e)
    with pytest.raises(RuntimeError, match="not detected"):
        script.fitting(script.TINY, 8, dict(attention="cudnn"), dict(attention="plain"))


def test_what_a_gpu_is_given_fits_its_time_and_its_kernels(script):
    """The sections' seconds add up to the whole; each model asked to take cuDNN's attention may."""
    assert sum(section.seconds for section in script.SECTIONS.values()) <= script.SECONDS < 480
    for shape, batch in script.WHOLE.sizes.values():
        c = script.experiment(shape, batch).model
        facts = dict(windowed=c.window is not None, packed=False, capped=False, tapped=False)
        assert obstacle_to_cudnn(9.0, jnp.dtype("bfloat16"), c.H, **facts) is None
