"""Applies schemas/config.schema.yaml: violations as sentences, defaults, types of command-line values.

A sentence is built from the violated constraint (or from its `title`), so a key is described in one place.
The schema is JSON Schema 2020-12, except that 8.0 is not an integer and NaN is not a number.
"""

import difflib
import functools
import json
import math
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from adaptive_routing.system.errors import InputError

# No setting needs more, and files and libraries keep whole numbers in so many bits.
LARGEST = 2**31 - 1
# Snakemake's report holds paths in a script, as they are. There these end it, or keep its end from being one.
UNREPORTABLE = re.compile("</script|<!--", re.IGNORECASE)
SCHEMA = Path(__file__).parents[3] / "schemas" / "config.schema.yaml"


def validated(config: Mapping[str, Any], command_line: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Check `config`; return it with the defaults filled in and its keys in the schema's order.

    `command_line` is the part of `config` that came from `--config`. There, Snakemake leaves every value
    nested in braces as text; this function gives it the type that it would have in a config file.
    """
    config = _with_text_keys(config)
    of_study = _with_own_datasets(config)
    config = _typed(config, of_study, _with_text_keys(command_line or {}))
    _refuse_unwritable(config, ())
    error = min(
        Validator(of_study).iter_errors(config),
        # A misspelt key explains the missing one beside it.
        key=lambda error: error.validator != "additionalProperties",
        default=None,
    )
    if error is not None:
        raise InputError(_sentence(error))
    return _with_defaults(config, of_study)


@functools.cache
def schema() -> dict[str, Any]:
    """Return the config file's schema."""
    return yaml.safe_load(SCHEMA.read_text(encoding="utf-8"))


def _with_own_datasets(config):
    """The schema in which each data set under a name of its own has the entry of its task or of `harness`."""
    section = schema()["properties"]["datasets"]
    known = section["properties"]
    tasks = [name for name, entry in known.items() if not entry.get("one_per_study")]
    entries, datasets = {}, config.get("datasets")
    for name, settings in datasets.items() if isinstance(datasets, Mapping) else ():
        if isinstance(settings, Mapping) and "harness" in settings:
            if name in known:
                raise InputError(
                    f"datasets.{name}.harness is {shown(settings['harness'])}, but {name} names a data set "
                    f"that is scored without the harness; a task needs another name, such as {name}_harness"
                )
            entries[name] = {"$ref": "#/$defs/harness"}
        elif isinstance(settings, Mapping) and "task" in settings:
            allowed = [name] if name in known else tasks
            entry = resolved(known[settings["task"] if settings["task"] in allowed else allowed[0]])
            task = schema()["$defs"]["task"] | {"enum": allowed}
            entries[name] = entry | {"properties": {"task": task} | entry["properties"]}
        elif settings is None and not difflib.get_close_matches(name, known, n=1):
            entries[name] = {"type": "null"}  # one of another config file, left out
    own = {"additionalProperties": False, "own_names": ["names of one's own with the key task or harness"]}
    properties = schema()["properties"] | {"datasets": section | own | {"properties": known | entries}}
    return schema() | {"properties": properties}


def dotted_keys(node: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield every key that the schema node describes, such as `null_distribution.calibration.source`."""
    for key, child in resolved(node).get("properties", {}).items():
        yield prefix + key
        yield from dotted_keys(child, f"{prefix}{key}.")


def resolved(node: dict[str, Any]) -> dict[str, Any]:
    """Follow the schema node's `$ref`; keywords next to it take precedence."""
    while "$ref" in node:
        target = schema()["$defs"][node["$ref"].removeprefix("#/$defs/")]
        node = target | {keyword: value for keyword, value in node.items() if keyword != "$ref"}
    return node


def alternatives(names: Iterable[object], conjunction: str = "or") -> str:
    """Write "a, b or c"."""
    names = [str(name) for name in names]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} {conjunction} {names[-1]}"


def shown(value: object) -> str:
    """Write a value that was found, on one line and in at most 80 characters."""
    if isinstance(value, str):
        text = f"the text {value!r}" if _number(value) is not None else repr(value)
    elif value is None or isinstance(value, bool):
        text = json.dumps(value)
    elif isinstance(value, float) and math.isnan(value):
        text = "NaN"
    else:
        text = "empty" if value in ([], {}) else str(value)
    return text if len(text) <= 80 else f"{text[:79]}…"


# JSON Schema accepts 8.0 as an integer and NaN within any bounds; neither can name a configuration.
Validator = jsonschema.validators.extend(
    jsonschema.Draft202012Validator,
    type_checker=jsonschema.Draft202012Validator.TYPE_CHECKER.redefine_many(
        {
            "integer": lambda _, value: isinstance(value, int) and not isinstance(value, bool),
            "number": lambda _, value: (
                isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            ),
        }
    ),
)


def _with_text_keys(value):
    """Nested dicts in which the key `null`, which YAML reads as no value, is text again."""
    if not isinstance(value, Mapping):
        return value
    return {"null" if key is None else key: _with_text_keys(child) for key, child in value.items()}


def _types(node):
    types = node.get("type", [])
    return [types] if isinstance(types, str) else types


def _with_defaults(value, node):
    if isinstance(value, list):
        return list(value)
    if not isinstance(value, dict):
        return value
    complete = {}
    if "properties" not in resolved(node):  # names of the user's own, whose values have no defaults
        return {key: dict(child) for key, child in value.items()}
    for key, child in resolved(node)["properties"].items():
        if key in value:
            complete[key] = _with_defaults(value[key], child)
        elif "default" in resolved(child):
            complete[key] = _with_defaults(resolved(child)["default"], child)
    return complete


def _typed(value, node, command_line):
    if not isinstance(value, dict) or not isinstance(command_line, dict):
        return value
    properties = resolved(node).get("properties", {})
    result = dict(value)
    for key in value.keys() & command_line.keys() & properties.keys():
        child = resolved(properties[key])
        if isinstance(value[key], dict):
            result[key] = _typed(value[key], child, command_line[key])
        elif "$schema" not in node:  # Snakemake itself reads numbers at the top level
            result[key] = _typed_leaf(value[key], _types(child))
    return result


def _typed_leaf(value, types):
    if isinstance(value, list):
        return [_typed_leaf(item, types) for item in value]
    if not isinstance(value, str) or ("string" in types and value != "null"):
        return value
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError:
        return value


def _refuse_unwritable(value, path):
    """Raise InputError where a number is larger than any setting can use, or a text cannot be written."""
    if isinstance(value, Mapping):
        for key, child in value.items():
            _refuse_unwritable(child, (*path, key))
    elif isinstance(value, list):
        for index, child in enumerate(value):
            _refuse_unwritable(child, (*path, index))
    elif isinstance(value, str) and any(unicodedata.category(character) == "Cs" for character in value):
        raise InputError(f"{_dotted(path)} is {shown(value)}, but must hold no half of a character")
    elif isinstance(value, str) and (found := UNREPORTABLE.search(value)):
        raise InputError(
            f"{_dotted(path)} is {shown(value)}, but must not hold {found[0]}: it breaks Snakemake's report"
        )
    elif isinstance(value, int) and abs(value) > LARGEST:
        try:
            found = shown(value)
        except ValueError:  # Python writes no whole number with more than 4300 digits
            found = f"a whole number of {value.bit_length()} bits"
        raise InputError(f"{_dotted(path)} is {found}, but must be at most {LARGEST}")


# Violations of the schema, as sentences


def _sentence(error):
    path = _dotted(error.absolute_path)
    prefix = f"{path}." if path else ""
    if error.validator == "additionalProperties":
        properties = error.schema["properties"]
        key = next(key for key in error.instance if key not in properties)
        closest = _closest_key(str(key), prefix, properties)
        return (
            f"{prefix}{key} is not a known key{f' (did you mean {closest}?)' if closest else ''}; "
            f"{path or 'the config file'} may hold "
            + alternatives([*properties, *error.schema.get("own_names", [])], "and")
        )
    if error.validator == "required":
        key = next(key for key in error.validator_value if key not in error.instance)
        return f"{prefix}{key} is missing, but must be {_allowed(error.schema['properties'][key])}"
    hint = _hint(error.instance, error.schema)
    return f"{path or 'the config'} is {shown(error.instance)}, but must be {_allowed(error.schema)}{hint}"


def _dotted(path):
    """Write a path like `strategies.bh.alpha[2]`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".")


def _closest_key(key, prefix, properties):
    """Return the most similar key on the same level, else a key of this name on another level, else None."""
    if beside := difflib.get_close_matches(key, properties, n=1):
        return prefix + beside[0]
    elsewhere = [path for path in dotted_keys(schema()) if path.rsplit(".", 1)[-1] == key]
    return min(elsewhere, key=lambda path: path.count("."), default=None)


def _allowed(node):
    """Say what a schema node allows: "a number above 0 and below 1"."""
    node = resolved(node)
    if "title" in node:
        return node["title"]
    if "enum" in node:
        return alternatives(node["enum"])
    phrases = []
    for kind in _types(node):
        if kind == "object":
            phrases.append(f"a group of the keys {alternatives(node['properties'], 'and')}")
        elif kind == "array":
            phrases.append(f"a list of one or more values, each {_allowed(node['items'])}")
        elif kind in ("integer", "number"):
            words = {"minimum": "from {} up", "exclusiveMinimum": "above {}", "exclusiveMaximum": "below {}"}
            bounds = [words[word].format(node[word]) for word in words if word in node]
            phrases.append(f"{'an integer' if kind == 'integer' else 'a number'} {' and '.join(bounds)}")
        else:
            phrases.append({"string": "text", "null": "null"}[kind])
    return alternatives(phrases)


def _hint(value, node):
    """Say how to write what was probably meant; empty where that would be wrong as well."""
    if isinstance(value, int | float) and not isinstance(value, bool) and "string" in _types(node):
        return f"; put it in quotes: '{value}'"
    number = _number(value)
    if number is None or not Validator(schema()).evolve(schema=node).is_valid(number):
        return ""
    plain = format(Decimal(repr(number)), "f")
    if isinstance(value, str) and "e" in value.lower():
        return f"; write {plain}, because YAML reads {value} as text"
    return f"; write {plain}{' without quotes' if isinstance(value, str) else ''}"


def _number(value):
    """Return the number that a text or a float such as 8.0 represents; None if there is none."""
    try:
        number = float(Decimal(value)) if isinstance(value, str | float) else math.nan
    except (InvalidOperation, OverflowError):
        return None
    if not math.isfinite(number):
        return None
    return int(number) if number.is_integer() else number  # ty: ignore[missing-union-attribute]
