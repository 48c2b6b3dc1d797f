"""Fingerprints of code: what decides a job's result beside its input files and settings.

A fingerprint covers a rule's script and every module of the package that it imports, directly or not, as
Python parses them: comments, docstrings and layout leave no trace in it. Modules that are imported by name
while the job runs (a strategy, a task) have to be named. It covers the versions of the libraries that these
modules import as well.
"""

import ast
import functools
import hashlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Collection
from pathlib import Path

FOLDER = Path(__file__).parents[2]  # scripts and the package stand in it
PACKAGE = "adaptive_routing"

# How a job is run, how its settings are checked and its errors worded, and how a file gets its name:
# no result depends on it.
NOT_DECIDING = tuple(
    f"{PACKAGE}.{name}"
    for name in (
        "jobs.host",
        "jobs.script",
        "routing_log.size",
        "settings.load",
        "settings.schema",
        "system.disk",
        "system.errors",
        "system.cores",
        "system.files",
        "system.harness_tasks",
        "system.hub",
        "system.hub_faults",
        "system.processes",
    )
)

# Libraries that download, check, wait, or write values as they are in a format that is defined elsewhere.
LIBRARIES_NOT_DECIDING = ("filelock", "huggingface_hub", "jsonschema", "orjson", "psutil", "safetensors")
# Libraries that do another one's work, without being imported by name.
WORKING_FOR = {"statsmodels": ("scipy",), "transformers": ("tokenizers",)}
DISTRIBUTIONS = {"yaml": "pyyaml"}  # names by which libraries are installed, where they have another


def code_fingerprint(script: str, *by_name: str, without: Collection[str] = ()) -> str:
    """A hash of the code that a job runs.

    Args:
        script: the rule's script in `workflow_scripts/`, without its suffix.
        by_name: modules that it imports by name while it runs, such as "adaptive_routing.data.tasks.lambada".
        without: modules that it imports and does not use; what only these import is left out as well.
    """
    return _fingerprint(script, by_name, tuple(without))


@functools.cache  # a study's experiments share a few, and Snakemake asks twice for each
def _fingerprint(script, by_name, without):
    content = hashlib.sha256()
    modules = code_modules(script, *by_name, without=without)
    for module in modules:
        content.update(f"{module} {_code_hash(FOLDER / _path(module))}\n".encode())
    for library, version in library_versions(modules).items():
        content.update(f"{library} {version}\n".encode())
    return content.hexdigest()[:16]


def code_modules(script: str, *by_name: str, without: Collection[str] = ()) -> list[str]:
    """The modules that `code_fingerprint` covers, sorted."""
    left_out, found, waiting = (*NOT_DECIDING, *without), set(), [script, *by_name]
    while waiting:
        module = waiting.pop()
        if module in found or any(module == one or module.startswith(f"{one}.") for one in left_out):
            continue
        if not _path(module):
            raise ValueError(f"there is no module {module} in {FOLDER}")
        found.add(module)
        waiting += _imports(module)
    return sorted(found)


def library_versions(modules: Collection[str]) -> dict[str, str | None]:
    """The versions of the libraries that decide what modules compute, by the names that they import.

    They are those of the environment that Snakemake runs in, without the part that names a build (`+cu128`):
    where a job runs is no reason to run it again. A library that this environment lacks, since jobs run in
    another one, has None.
    """
    libraries = set().union(*map(_libraries, modules)).difference(LIBRARIES_NOT_DECIDING)
    libraries |= {helper for library in libraries for helper in WORKING_FOR.get(library, ())}
    return {library: _version(library) for library in sorted(libraries)}


@functools.cache
def _libraries(module):
    """What a module imports that is neither this package nor Python's own."""
    names = {name.split(".")[0] for name in _imported_names(module)}
    return frozenset(names - {PACKAGE, "__future__"} - sys.stdlib_module_names)


@functools.cache
def _version(library):
    try:
        return importlib.metadata.version(DISTRIBUTIONS.get(library, library)).partition("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return None


@functools.cache
def _imports(module):
    """Modules of the package that importing this one imports: its statements' and the packages it is in."""
    own = [name for name in _imported_names(module) if name.split(".")[0] == PACKAGE]
    # `import a.b.c` imports a and a.b as well; of `from a import b`, b may be no module.
    return [name for name in own if _path(name)]


@functools.cache
def _imported_names(module):
    """Names that importing a module imports, and those of the packages it is in. Some may be no modules."""
    path = FOLDER / _path(module)
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    names = [module.rsplit(".", i)[0] for i in range(1, module.count(".") + 1)]
    for node in _run_time_nodes(_parsed(path)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            source = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            names += [source, *(f"{source}.{alias.name}" for alias in node.names)]
    return names


def _run_time_nodes(tree):
    """A syntax tree's nodes but expressions, and what is below `if TYPE_CHECKING:`, for type checkers."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            waiting += node.orelse
        else:
            waiting += [one for one in ast.iter_child_nodes(node) if not isinstance(one, ast.expr)]


@functools.cache
def _path(module):
    """A module's file, relative to FOLDER; None where there is none."""
    path = Path(*module.split("."))
    candidates = (path.with_suffix(".py"), path / "__init__.py")
    return next((one for one in candidates if (FOLDER / one).is_file()), None)


@functools.cache
def _parsed(path):
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


@functools.cache
def _code_hash(path):
    return hashlib.sha256(_dump(_parsed(path)).encode()).hexdigest()


def _dump(node):
    """A syntax tree as text, without docstrings, positions and what is empty.

    `ast.dump` writes fields that are empty and that only some versions of Python have.
    """
    if isinstance(node, list):
        return f"[{','.join(map(_dump, node))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    if isinstance(node, ast.JoinedStr):  # Python 3.12 puts empty texts into some f-strings
        node = ast.JoinedStr([one for one in node.values if getattr(one, "value", None) != ""])
    fields = []
    for name, value in ast.iter_fields(node):
        if name == "body" and _has_docstring(node):
            value = value[1:]
        if value is not None and value != []:
            fields.append(f"{name}={_dump(value)}")
    return f"{type(node).__name__}({','.join(fields)})"


def _has_docstring(node):
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return isinstance(node, documented) and ast.get_docstring(node, clean=False) is not None
