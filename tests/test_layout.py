"""The package's folders: each imports only from those below it, and none stands in a circle with another."""

import ast
import graphlib
import importlib.util
import re

import pytest
from study_folder import REPOSITORY

PACKAGE = REPOSITORY / "workflow_scripts/adaptive_routing"

# From top to bottom.
FOLDERS = (
    "jobs",
    "report",
    "atlas",
    "figures",
    "compare",
    "analysis",
    "evaluation",
    "model",
    "routing_log",
    "routing",
    "null_distribution",
    "data",
    "settings",
    "system",
)
DEPTH = {folder: depth for depth, folder in enumerate(FOLDERS)}
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE)


def dotted(path):
    """A module's name, and that of the package it is in."""
    name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    if path.name == "__init__.py":
        return name.removesuffix(".__init__"), name.removesuffix(".__init__")
    return name, name.rpartition(".")[0]


def imported(path):
    """Names that a module imports, also within functions and by name."""
    _, package = dotted(path)
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            source = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            names |= {f"{source}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            # As in `importlib.import_module("adaptive_routing.figures.style")`.
            names |= set(re.findall(r"^adaptive_routing\.[\w.]+", node.value))
    return {name for name in names if name.split(".")[0] == PACKAGE.name}


def folder_of(name):
    """The folder of "adaptive_routing.folder.module"."""
    return name.split(".")[1] if "." in name else None


def test_the_folders_are_those_listed():
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders == set(FOLDERS)


def test_no_module_stands_loose():
    assert [path.name for path in PACKAGE.glob("*.py")] == ["__init__.py"]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: dotted(path)[0].partition(".")[2])
def test_a_module_imports_only_from_folders_below_its_own(path):
    own = folder_of(dotted(path)[0])
    above = {name for name in imported(path) if DEPTH[folder_of(name)] < DEPTH[own]}
    assert not above


def test_folders_and_the_folders_in_them_stand_in_no_circle():
    graph = {}
    for path in MODULES:
        package = dotted(path)[1]
        for name in imported(path):
            while not (PACKAGE.parent / name.replace(".", "/")).is_dir():
                name = name.rpartition(".")[0]
            if name != package:
                graph.setdefault(package, set()).add(name)
    assert len(graph) > len(FOLDERS)
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError


def test_every_folder_says_what_it_holds():
    for path in PACKAGE.rglob("__init__.py"):
        if path.parent != PACKAGE:
            assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), path


def test_the_map_of_the_code_shows_the_folders_in_their_order():
    page = (REPOSITORY / "docs/architecture.md").read_text(encoding="utf-8")
    table = page.partition("| folder | holds |")[2].partition("\n\n")[0]
    assert re.findall(r"^\| `(\w+)/` \|", table, re.MULTILINE) == list(FOLDERS)
