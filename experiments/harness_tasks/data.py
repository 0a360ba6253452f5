"""Read the documents of these tasks from files on this machine; the harness's `custom_dataset` calls `json_lines`.

The files lie under the folder that LM_DATA names, or under the current one.
"""

import json
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path

import datasets


def json_lines(file: str, member: str | None = None, **_) -> dict[str, datasets.Dataset]:
    """The objects of a file with one on each line, as the split `test`; member: which file of a .zip."""
    path = Path(os.environ.get("LM_DATA", "."), file)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}: set LM_DATA to the folder that holds {file}")
    rows = []
    for number, line in enumerate(_lines(path, member), 1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: no JSON object ({error})") from error
    return {"test": datasets.Dataset.from_list(rows)}


def _lines(path: Path, member: str | None) -> Iterator[bytes]:
    if member is None:
        with path.open("rb") as file:
            yield from file
    else:
        with zipfile.ZipFile(path) as archive, archive.open(member) as file:
            yield from file
