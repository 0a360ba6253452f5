"""Execute notebooks where they lie and keep their outputs.

python notebooks/run.py                      every notebook of this folder; needs pip install -e '.[notebooks]'
python notebooks/run.py notebooks/01_*.ipynb
"""

import os
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent


def execute(path: Path, timeout: int | None = None) -> nbformat.NotebookNode:
    """The notebook run from its first cell, in its own folder. Raises nbclient's CellExecutionError where a cell does.

    Nothing of when and by which Python it ran is kept, so that only other outputs make another file. timeout: seconds
    for a cell.
    """
    notebook = nbformat.read(path, as_version=4)
    notebook.metadata = {"kernelspec": {"name": "python3", "language": "python", "display_name": "Python 3"}}
    resources = {"metadata": {"path": str(path.parent)}}
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # XLA's remarks when it is slow on a busy machine
    NotebookClient(notebook, timeout=timeout, resources=resources, record_timing=False).execute()
    notebook.metadata.language_info = {"name": "python"}
    return notebook


if __name__ == "__main__":
    for path in map(Path, sys.argv[1:]) if sys.argv[1:] else sorted(FOLDER.glob("*.ipynb")):
        print(path, flush=True)
        nbformat.write(execute(path), path)
