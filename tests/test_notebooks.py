"""Notebooks come with their outputs, and running them gives those outputs again."""

import importlib.util
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="needs the extra `notebooks`")
pytest.importorskip("nbclient", reason="needs the extra `notebooks`")
pytest.importorskip("ipykernel", reason="needs the extra `notebooks`")

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
notebooks = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def printed(cell) -> str:
    return "".join(output.text for output in cell.outputs if output.output_type == "stream" and output.name == "stdout")


def test_there_are_notebooks():
    assert len(NOTEBOOKS) >= 2


@notebooks
def test_outputs_are_committed(path):
    """Run from top to bottom, once, without an error or a warning; with a figure; small enough to look at."""
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert [cell.execution_count for cell in cells(notebook)] == list(range(1, len(cells(notebook)) + 1))
    outputs = [output for cell in cells(notebook) for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert path.stat().st_size < 1_500_000
    assert notebook.cells[0].cell_type == "markdown" and notebook.cells[0].source.startswith("# ")


@pytest.mark.slow
@notebooks
def test_runs_again(path):
    """Cells assert what they claim. What they print is what is committed, but for cells tagged `measured`."""
    specification = importlib.util.spec_from_file_location("notebooks_run", FOLDER / "run.py")
    run = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(run)
    before, after = nbformat.read(path, as_version=4), run.execute(path, timeout=600)
    for old, new in zip(cells(before), cells(after), strict=True):
        if "measured" not in old.metadata.get("tags", []):
            assert printed(new) == printed(old), old.source
