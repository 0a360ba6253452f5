"""Published numbers, from the tables in LM_DATA; skipped where there are none."""

import importlib.util
import os
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "experiments" / "reproduce_published.py"
FOLDER = Path(os.environ.get("LM_DATA", "")) / "scaling"
needs_data = pytest.mark.skipif(
    "LM_DATA" not in os.environ or not FOLDER.is_dir(), reason="set LM_DATA to the folder that holds scaling/"
)


@pytest.fixture(scope="module")
def study():
    specification = importlib.util.spec_from_file_location("reproduce_published", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    sys.modules["reproduce_published"] = module  # its dataclasses look themselves up
    specification.loader.exec_module(module)
    yield module
    del sys.modules["reproduce_published"]


def test_a_check_passes_within_its_tolerance_only(study):
    check = lambda ours, **more: study.Check("s", "w", 1.0, ours, 0.1, **more).passed  # noqa: E731
    assert check(1.09) and check(0.91) and not check(1.11) and not check(0.89)
    assert check(0.2, at_most=True) and not check(1.2, at_most=True)


@needs_data
@pytest.mark.parametrize("name", ["porian", "gadre", "pearce_song", "muennighoff", "gemstones"])
def test_a_study_is_reproduced(study, name):
    checks = getattr(study, name)(FOLDER)
    assert checks and all(check.passed for check in checks), "\n".join(check.line() for check in checks)


@needs_data
def test_the_chinchilla_refit_is_reproduced_and_drawn(study, tmp_path):
    checks, law = study.besiroglu(FOLDER)
    assert all(check.passed for check in checks), "\n".join(check.line() for check in checks)
    drawn = study.figure(checks, law, tmp_path / "figure.svg")
    assert drawn.read_text().startswith("<?xml")
