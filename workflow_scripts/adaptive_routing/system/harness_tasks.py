"""Tasks of lm-evaluation-harness by name, read from the YAML files that describe them.

The harness is not imported: its own index takes eight seconds, and settings are read in every process.
"""

import difflib
import functools
import importlib.metadata
import importlib.util
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from adaptive_routing.system.errors import InputError

OLDEST = (0, 4, 9)
INSTALL = "pip install '.[harness]'"
_NAMED = re.compile(
    r"""^["']?(?:task|group)["']?:[ \t]+["']?([^\s"'\[{#]+)["']?[ \t]*(?:#.*)?$""", re.MULTILINE
)
_TAGS = re.compile(r"""^["']?tag["']?:(.*(?:\n[ \t]*-.*)*)""", re.MULTILINE)
_INCLUDED = re.compile(r"""^["']?include["']?:[ \t]+["']?([^\s"'\[]+)""", re.MULTILINE)


@dataclass(frozen=True)
class HarnessTask:
    """A task, group or tag.

    Attributes:
        folders: those of the files that describe it and its members, for the harness's `TaskManager`.
        generating: the first of its tasks, by name, that generates text; None where none does.
    """

    folders: tuple[str, ...]
    generating: str | None


class _Loader(yaml.SafeLoader):
    """Reads `!function module.name` as True: what it names is not imported."""


_Loader.add_multi_constructor("!", lambda *_: True)


def installed_version(key: str) -> str:
    """The harness's version; InputError, about the setting `key`, where it is missing or too old."""
    try:
        version = importlib.metadata.version("lm_eval")
    except importlib.metadata.PackageNotFoundError:
        raise InputError(f"{key} needs lm-evaluation-harness, which is not installed: {INSTALL}") from None
    if tuple(map(int, re.findall(r"\d+", version)[:3])) < OLDEST:
        raise InputError(
            f"{key} needs lm-evaluation-harness 0.4.9 or newer, but {version} is installed: {INSTALL}"
        )
    return version


def find_task(name: str, include_path: str | None, key: str) -> HarnessTask:
    """Find a task among the harness's own and those below the folder `include_path`, which come first.

    Raises:
        InputError: there is none of this name; `key` is the setting that names it.
    """
    index = _index(include_path)
    if name not in index:
        close = difflib.get_close_matches(name, index, n=1)
        raise InputError(
            f"{key} is {name!r}, which is no task, group or tag of lm-evaluation-harness "
            f"{installed_version(key)}"
            + (f" or of {include_path}" if include_path else "")
            + (f" (did you mean {close[0]}?)" if close else "")
        )
    folders: dict[str, None] = {}
    tasks = list(_tasks(index, name, folders))
    return HarnessTask(tuple(folders), next((one for one, kind in tasks if kind == "generate_until"), None))


@functools.cache
def _index(include_path):
    """The files of every task, group and tag: {name: [path]}. A name of `include_path` hides others."""
    spec = importlib.util.find_spec("lm_eval")
    roots = [Path(folder, "tasks") for folder in (spec.submodule_search_locations if spec else None) or ()]
    index: dict[str, list[Path]] = {}
    for folder in [*roots, Path(include_path)] if include_path else roots:
        found: dict[str, list[Path]] = {}
        for path in sorted(folder.rglob("*.yaml")):
            text = path.read_text(encoding="utf-8", errors="replace")
            for name in _NAMED.findall(text)[:1]:
                found.setdefault(name, [path])
            for tag in _tags(path, text):
                found.setdefault(tag, []).append(path)
        index |= found
    return index


def _tags(path, text):
    """The tags of a file, which are those of one that it includes where it has none."""
    block = _TAGS.search(text)
    if block:
        return re.findall(r"[^\s,\[\]\"']{2,}", block.group(1))
    included = _INCLUDED.search(text)
    return _tags_of_file(path.parent / included.group(1)) if included else []


@functools.cache
def _tags_of_file(path):
    return _tags(path, path.read_text(encoding="utf-8")) if path.is_file() else []


def _tasks(index, entry, folders, above=frozenset()) -> Iterator[tuple[str, str | None]]:
    """Yield the tasks that an entry of a group's list stands for: their names, and what they ask of a model.

    A task in Python has None: what it asks is known when it runs.

    Args:
        entry: a name, or a mapping of keys that the group lays over it.
        folders: gets those of the files, as keys.
        above: the groups that hold the entry.
    """
    given = {"task": entry} if isinstance(entry, str) else entry
    name = given.get("task", given.get("group"))
    if isinstance(name, list):  # a group that is described in place
        for member in name:
            yield from _tasks(index, member, folders, above)
        return
    for path in index.get(name, ()) if name not in above else ():
        config = _config(path)
        folders[str(path.parent)] = None
        if isinstance(config.get("task"), list):
            for member in config["task"]:
                yield from _tasks(index, member, folders, above | {name})
        elif "class" in config:
            yield name, None
        else:
            # Of a tag, the file tells the task's name.
            asks = given.get("output_type") or config.get("output_type", "generate_until")
            yield config.get("task", name), asks


def _config(path) -> dict[str, Any]:
    """A file's keys over those of the files that it includes."""
    config = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    included = config.pop("include", [])
    merged: dict[str, Any] = {}
    for one in included if isinstance(included, list) else [included]:
        merged |= _config(path.parent / one)
    return merged | config
