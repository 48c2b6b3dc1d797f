"""Config files as they stand on the disk: faults that Snakemake lets pass or ends at with a traceback.

It imports nothing of the package, so that the logger plugin can load this file alone, before Snakemake reads
any config file and before the workflow says which checkout of the package is used.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml


class ConfigFileError(ValueError):
    """A config file that cannot be used; the message is one sentence that names it."""


def check_config_file(path: Path | str) -> None:
    """Raise ConfigFileError unless a file holds one mapping of YAML or JSON in which no key stands twice."""
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigFileError(
            f"{path} is not UTF-8 (byte {error.start + 1} is 0x{error.object[error.start]:02x}), as config "
            "files must be; save it anew with that encoding"
        ) from None
    except OSError as error:
        raise ConfigFileError(f"the config file {path} cannot be read: {error.strerror}") from None
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError) as error:
        if _is_json(text):
            return
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or type(error).__name__
        raise ConfigFileError(f"{path}{where} is not YAML: {problem}") from None
    if not isinstance(root, yaml.MappingNode):
        found = "nothing" if root is None else "a list" if isinstance(root, yaml.SequenceNode) else "a value"
        raise ConfigFileError(f"{path} holds {found}, but must hold settings, as in `results: results`")
    if "__use_yte__" in text:  # a template, in which keys are conditions and loops
        return
    for sentence in _faults(root, "", (), set()):
        raise ConfigFileError(f"{path}, {sentence}")


def named_config_files(arguments: Sequence[str]) -> Iterator[str]:
    """The config files that a command line of Snakemake names."""
    is_named = False
    for word in arguments:
        if word.startswith("-"):
            option, has_value, value = word.partition("=")
            is_named = option.startswith("--configf") and not has_value
            if option.startswith("--configf") and value:
                yield value
        elif is_named:
            yield word


def _is_json(text):
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _faults(node, name, above, seen):
    """Sentences on a key that stands twice in one mapping, and on an anchor that holds itself.

    Args:
        above: the nodes that hold this one.
        seen: what needs no second look, by `id`: an alias is the node of its anchor.
    """
    line = node.start_mark.line + 1
    if any(node is one for one in above):
        yield f"line {line}: {name} holds itself (&anchor and *alias); it must end somewhere"
        return
    if id(node) in seen:
        return
    seen.add(id(node))
    above = (*above, node)
    if isinstance(node, yaml.SequenceNode):
        for number, child in enumerate(node.value):
            yield from _faults(child, f"{name}[{number}]", above, seen)
    if not isinstance(node, yaml.MappingNode):
        return
    lines = {}
    for key, child in node.value:
        dotted = f"{name}.{key.value}" if name else str(key.value)
        own, here = (key.tag, key.value), key.start_mark.line + 1
        if key.tag != "tag:yaml.org,2002:merge" and isinstance(key, yaml.ScalarNode):
            if own in lines:
                yield (
                    f"line {here}: the key {dotted} stands there for the second time, after line "
                    f"{lines[own]}; it must stand once"
                )
            lines[own] = here
        yield from _faults(child, dotted, above, seen)
