"""Experiments are scripts beside the package: loaded here as modules."""

import importlib.util
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "experiments"


@pytest.hookimpl(tryfirst=True)  # before what is not asked for is left out
def pytest_collection_modifyitems(items):
    """Studies change seldom: the gate tests them."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.gate)


@pytest.fixture(scope="module")
def script(request):
    """The module of the experiment that a test file's SCRIPT names."""
    name = request.module.SCRIPT
    specification = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module  # its dataclasses look themselves up
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)  # as when it runs: scripts may import their neighbours
        specification.loader.exec_module(module)
    yield module
    del sys.modules[name]
