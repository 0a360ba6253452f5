"""The house as the README draws it: imports go down only, and no room knows what it should not."""

import ast
import graphlib
import importlib
from pathlib import Path

import pytest

import lm

HOUSE = Path(lm.__file__).parent

# Each room, or one file of it, may import its room and these; whatever is not listed may import anything below the
# command.
MAY_KNOW = {
    "errors": set(),
    "typed": {"errors"},
    "limits": {"errors", "typed"},
    "architectures": {"errors", "limits", "typed"},
    "config": {"architectures", "errors", "limits", "typed"},
    "config_files": {"architectures", "config", "errors", "typed"},
    "settings": {"architectures", "config", "config_files", "errors", "limits", "typed"},
    "tokenizer": {"config", "errors", "files"},
    "processes": {"errors"},
    "parallel": {"config", "errors", "processes"},
    "model": {"config", "errors", "parallel"},
    "data": {"config", "errors", "files", "limits", "tokenizer", "typed"},
    "checkpoints": {"errors", "parallel", "processes"},
    "console": set(),
    "figures": {"errors", "files"},
    "files": set(),
    "hardware": set(),
    "records": {"config", "config_files", "errors", "settings"},
    "run": {
        "checkpoints",
        "config",
        "errors",
        "files",
        "model",
        "parallel",
        "processes",
        "records",
        "settings",
        "tokenizer",
    },
    "sample": {"config", "data", "errors", "figures", "files", "limits", "model", "tokenizer", "typed"},
    "tables": {"console", "errors"},
    "probe": {"config", "data", "errors", "figures", "limits", "model", "tables", "tokenizer"},
    "scaling": {"errors", "figures", "files"},
    "training": {
        "checkpoints",
        "config",
        "console",
        "data",
        "errors",
        "evaluation",
        "hardware",
        "model",
        "parallel",
        "processes",
        "run",
        "sample",
        "settings",
        "tokenizer",
    },
    "sweep": {
        "config",
        "console",
        "data",
        "errors",
        "files",
        "model",
        "run",
        "scaling",
        "settings",
        "tables",
        "training",
    },
    "exchange": {
        "checkpoints",
        "config",
        "data",
        "errors",
        "evaluation",
        "files",
        "model",
        "probe",
        "records",
        "run",
        "sample",
        "tokenizer",
        "typed",
    },
    "bench": {
        "config",
        "console",
        "data",
        "errors",
        "evaluation",
        "exchange",
        "hardware",
        "model",
        "run",
        "sample",
        "scaling",
        "settings",
        "sweep",
        "tables",
        "tokenizer",
        "training",
    },
    "evaluation": {"config", "data", "errors", "limits", "model", "parallel", "run", "tokenizer", "typed"},
}


def imports(file: Path) -> set[str]:
    """The rooms of lm that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names] if node.module == "lm" else [node.module]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("lm.")}
    return found


def test_imports_go_down_only():
    for file in sorted(HOUSE.rglob("*.py")):
        path = str(file.relative_to(HOUSE))
        room = file.relative_to(HOUSE).parts[0].removesuffix(".py")
        if room in MAY_KNOW:
            wrong = imports(file) - MAY_KNOW.get(path, MAY_KNOW[room]) - {room}
            assert not wrong, f"{file.relative_to(HOUSE)} imports {', '.join(sorted(wrong))}"


def test_nothing_below_imports_the_command():
    command = {"cli", "commands", "arguments"}
    for file in sorted(HOUSE.rglob("*.py")):
        if file.relative_to(HOUSE).parts[0].removesuffix(".py") not in command:
            assert not imports(file) & command, f"{file.relative_to(HOUSE)} knows the command"


def imported_modules(file: Path) -> set[str]:
    """The modules of lm that a file imports, wherever in the file: `lm.model.api` and so on."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "lm":
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name for name in inside if name in MODULES} or {node.module}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name in MODULES}
    return found


MODULES = {
    ".".join(("lm", *file.relative_to(HOUSE).with_suffix("").parts)).removesuffix(".__init__"): file
    for file in HOUSE.rglob("*.py")
}
FACES = {name for name in MODULES if MODULES[name].name == "__init__.py"}
"""What a package gives to the outside; they import lazily, or what is below them, and are left out of circles."""


def test_no_module_imports_itself_by_way_of_others():
    """Not inside a room either."""
    graph = {name: imported_modules(file) - FACES for name, file in MODULES.items() if name not in FACES}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        raise AssertionError(" <- ".join(error.args[1])) from None


@pytest.mark.parametrize("folder", ["configs", "experiments"])
def test_whoever_uses_the_house_uses_public_names(folder):
    """Configs and experiments import lm, its single files and the faces of its rooms, not what is inside a room."""
    for file in sorted((HOUSE.parent / folder).glob("*.py")):
        inside = [name.rsplit(".", 1) for name in imported_modules(file) if name.count(".") > 1]
        deep = {f"{room}.{name}" for room, name in inside if name not in importlib.import_module(room).__all__}
        assert not deep, f"{file.name} reaches into {', '.join(sorted(deep))}"
