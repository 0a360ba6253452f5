"""What others install: a distribution of another name than PyPI's `lm`, with the configs in it."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import lm
from lm.settings import load_experiment

ROOT = Path(__file__).resolve().parents[1]


def test_the_distribution_is_not_the_strangers():
    """`lm` on PyPI is another project: no requirement and no advice may name it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["name"] == "lm-lab"
    extras = [requirement for several in project["optional-dependencies"].values() for requirement in several]
    assert not [one for one in [*project["dependencies"], *extras] if one == "lm" or one.startswith("lm[")]
    files = [*ROOT.glob("*.md"), *ROOT.glob("lm/**/*.py"), *ROOT.glob("experiments/*.*"), *ROOT.glob("notebooks/*.*")]
    for file in files:
        text = file.read_text(encoding="utf-8") if file.suffix in (".py", ".md", ".ipynb") else ""
        assert "install 'lm[" not in text and "install lm" not in text, f"{file} names a stranger's package"


def test_a_config_of_ones_own_stands_before_the_shipped_one(workplace, capsys):
    """And that is said, once; a copy of it says nothing."""
    assert load_experiment("quickstart").train.steps == 900
    (workplace / "configs").mkdir()
    shutil.copy(ROOT / "configs" / "quickstart.py", workplace / "configs")
    load_experiment("quickstart")
    assert capsys.readouterr().err == ""
    (workplace / "configs" / "quickstart.py").write_text("import lm\nexperiment = lm.Experiment()\n")
    for _ in range(2):
        assert load_experiment("quickstart").train.steps == 2000
    assert (
        capsys.readouterr().err == "lm: this is configs/quickstart.py, not the config quickstart that comes with lm\n"
    )


def test_the_version_is_told(lm):
    from lm import __version__

    assert lm("--version") == (0, f"lm {__version__}\n", "")


@pytest.mark.slow
@pytest.mark.skipif(
    int(importlib.metadata.version("setuptools").split(".")[0]) < 77, reason="building needs setuptools 77 (extra dev)"
)
def test_the_configs_come_with_what_is_installed(tmp_path):
    """A wheel, built and unpacked elsewhere: `lm train quickstart` begins in any folder."""
    source = tmp_path / "source"
    source.mkdir()
    for name in ("lm", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index", "--no-deps"]
    subprocess.run([*pip, "--no-build-isolation", "--target", tmp_path / "there", source], check=True, timeout=300)
    known = {path.name for path in (ROOT / "configs").glob("*.py")}
    assert {path.name for path in (tmp_path / "there" / "lm" / "configs").glob("*.py")} == known
    code = "import lm; print(lm.__file__, lm.load_experiment('quickstart').name)"
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "there")}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout == f"{tmp_path / 'there' / 'lm' / '__init__.py'} quickstart\n", done.stderr
    (information,) = (tmp_path / "there").glob("lm_lab-*.dist-info")
    assert information.name == f"lm_lab-{lm.__version__}.dist-info"
