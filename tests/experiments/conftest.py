"""Experiments are scripts beside the package: loaded here as modules."""

import importlib.util
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "experiments"


@pytest.fixture(scope="module")
def script(request):
    """The module of the experiment that a test file's SCRIPT names."""
    name = request.module.SCRIPT
    specification = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module  # its dataclasses look themselves up
    sys.path.insert(0, str(FOLDER))  # as when it is run: some share a module
    specification.loader.exec_module(module)
    sys.path.remove(str(FOLDER))
    yield module
    del sys.modules[name]
