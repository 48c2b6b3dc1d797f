"""What differs between two files of the same kind: JSON, routing logs, tables and tensors.

Differences are aggregated by name, so a file with a million values gives few of them. Routing logs are read
sample by sample and tensors in slices, so their size does not matter.
"""

import csv
import itertools
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orjson

from adaptive_routing.routing_log.json_file import open_to_read
from adaptive_routing.system.errors import InputError
from adaptive_routing.system.tensor_files import TensorFile

MISSING = "missing"
# Tensors that hold expert sets: a row of bytes is one token's selection in one layer.
SELECTIONS = ("selected_experts", "native_experts", "second_pass_selected_experts")
# Columns that identify a row of a table; each table has some of them.
_ROW_NAMES = ("config", "dataset", "metric", "layer", "difficulty")
_ROW_NAMES_OF_CHECKS = ("layer", "alpha")  # of null distributions
# Elements of a tensor held in memory at a time.
_SLICE = 1 << 20


@dataclass
class Difference:
    """How the values of one name differ between two files.

    Attributes:
        name: such as "metrics.perplexity", or "samples[].loss" of all samples.
        count, total: how many values differ, and how many were read.
        first, second: the two values where they differ most.
        largest: the largest absolute difference; infinite where neither value is a float.
        relative: the largest |difference| / max(1, |first|, |second|), which a tolerance bounds.
    """

    name: str
    count: int = 0
    total: int = 0
    first: object = None
    second: object = None
    largest: float = 0.0
    relative: float = -1.0

    def add(self, first: object, second: object, count: int = 1) -> None:
        """Add `count` pairs that differ; this pair differs most."""
        self.count += count
        distance, relative = _distance(first, second)
        self.largest = max(self.largest, distance)
        if relative > self.relative:
            self.first, self.second, self.relative = first, second, relative

    @property
    def is_decision(self) -> bool:
        """Whether the difference is more than numeric: an answer, an expert, a count, a name."""
        return math.isinf(self.relative)


def _distance(first, second):
    """The absolute difference of two values, and the same relative to the larger where that exceeds 1.

    Both are infinite unless the values are numbers and one is a float: integers are counts and indices.
    """
    pair = first, second
    is_number = all(isinstance(value, int | float) and not isinstance(value, bool) for value in pair)
    if not is_number or not any(isinstance(value, float) for value in pair):
        return math.inf, math.inf
    distance = abs(first - second)
    if not math.isfinite(distance):
        return math.inf, math.inf
    return distance, distance / max(1.0, abs(first), abs(second))


# Values


def json_differences(first: Path, second: Path) -> list[Difference]:
    """Differences of two JSON files."""
    found = {}
    _collect(*(_parsed(Path(path).read_bytes(), path) for path in (first, second)), "", found)
    return _differing(found)


def routing_log_differences(first: Path, second: Path) -> list[Difference]:
    """Differences of two routing logs in JSON, which hold one sample per line; equal lines are not parsed."""
    found = {}
    with open_to_read(first) as one, open_to_read(second) as other:
        for number, lines in enumerate(itertools.zip_longest(one, other, fillvalue=b"")):
            if lines[0] != lines[1]:
                paths = zip(lines, (first, second), strict=True)
                _collect(*(_routing_part(line, number, path) for line, path in paths), "", found)
    return _differing(found)


def table_differences(first: Path, second: Path) -> list[Difference]:
    """Differences of two tables in CSV, by column; rows are matched by their identifying columns."""
    found, rows, other_rows = {}, _rows(first), _rows(second)
    for key in [*rows, *(key for key in other_rows if key not in rows)]:
        if key in rows and key in other_rows:
            _collect(rows[key], other_rows[key], "", found)
        else:
            there = [("there" if key in table else MISSING) for table in (rows, other_rows)]
            _collect(*there, "row " + " ".join(key), found)
    return _differing(found)


def _collect(first, second, name, found):
    """Add the leaves of two JSON values to `found`, a `Difference` per name; list indices are left out."""
    if isinstance(first, dict) and isinstance(second, dict):
        for key in [*first, *(key for key in second if key not in first)]:
            inner = f"{name}.{key}" if name else key
            _collect(first.get(key, MISSING), second.get(key, MISSING), inner, found)
    elif isinstance(first, list) and isinstance(second, list):
        if len(first) != len(second):
            _collect(len(first), len(second), f"{name}: length", found)
        inner = f"{name}[]"
        of_elements = found.setdefault(inner, Difference(inner))
        for one, other in zip(first, second, strict=False):
            if isinstance(one, dict | list):
                _collect(one, other, inner, found)
            else:  # by far the most common case: numbers
                of_elements.total += 1
                if one != other:
                    of_elements.add(one, other)
    else:
        of_name = found.setdefault(name, Difference(name))
        of_name.total += 1
        if first != second:
            of_name.add(first, second)


def _differing(found):
    return [difference for difference in found.values() if difference.count]


def _parsed(text, path):
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise InputError(f"{path} is not a complete JSON file: {error}.") from error


def _routing_part(line, number, path):
    """A line of a routing log as JSON: the head, a sample, or the part after the samples."""
    if number == 0:
        return _parsed(line.removesuffix(b'"samples":[\n').rstrip(b",\n") + b"}", path)
    if line.startswith(b"]"):
        return _parsed(b"{" + line.removeprefix(b"],"), path)
    return {"samples[]": _parsed(line.rstrip(b",\n"), path)} if line else {}


def _rows(path):
    """A table's rows by the values of their identifying columns."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file, restkey="more cells", restval=MISSING))
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not a table in CSV: {error}.") from error
    identifying = _ROW_NAMES if any("config" in row for row in rows) else _ROW_NAMES_OF_CHECKS
    return {
        tuple(row[name] for name in identifying if name in row): {
            name: _cell(text) for name, text in row.items()
        }
        for row in rows
    }


def _cell(text):
    """A cell as an integer, a float or text; None where it is empty."""
    if text == "":
        return None
    for number in (int, float):
        try:
            value = number(text)
        except (TypeError, ValueError):
            continue
        return value if math.isfinite(value) else text
    return text


# Tensors


def tensor_differences(first: Path, second: Path) -> list[Difference]:
    """Differences of two safetensors files and of their metadata.

    Selections are counted by token-layers, survival functions by layers, other tensors by elements.
    """
    with TensorFile(first) as one, TensorFile(second) as other:
        by_name = {}
        _collect(_metadata(one), _metadata(other), "", by_name)
        is_null_distribution = all("survival" in file for file in (one, other))
        for name in [*one.keys(), *(name for name in other.keys() if name not in one)]:  # noqa: SIM118
            layouts = [_layout(one, name), _layout(other, name)]
            if layouts[0] != layouts[1]:
                _collect(*layouts, f"type and shape of {name}", by_name)
            elif not (is_null_distribution and name == "survival"):
                by_name[name] = _tensor_difference(one, other, name)
        if is_null_distribution:
            by_name["survival functions"] = _survival_difference(one, other)
    return _differing(by_name)


def _layout(file, name):
    return f"{file.dtype(name)} {list(file.shape(name))}" if name in file else MISSING


def _metadata(file):
    """Metadata as JSON values; the entries of a routing log's `head` are put on the top level."""
    values = {}
    for key, text in file.metadata.items():
        try:
            values[key] = orjson.loads(text)
        except orjson.JSONDecodeError:
            values[key] = text
    return {**values.pop("head", {}), **values}


def _tensor_difference(one, other, name):
    shape = one.shape(name)
    is_selection = name in SELECTIONS
    found = Difference(name, total=math.prod(shape[:-1] if is_selection else shape))
    rows = max(1, _SLICE // max(1, math.prod(shape[1:])))
    for start in range(0, shape[0], rows):
        values, others = one.read(name, start, start + rows), other.read(name, start, start + rows)
        unequal = values != others
        if values.dtype.kind == "f":
            unequal &= ~(np.isnan(values) & np.isnan(others))
        if unequal.any():
            if is_selection:
                found.add("one selection", "another", int(unequal.any(axis=-1).sum()))
            else:
                _add_elements(found, values[unequal], others[unequal])
    return found


def _add_elements(found, values, others):
    """Add two arrays of elements that all differ."""
    if values.dtype.kind != "f":
        found.add(int(values[0]), int(others[0]), len(values))
        return
    values, others = values.astype(np.float64), others.astype(np.float64)
    with np.errstate(invalid="ignore"):
        distance = np.nan_to_num(np.abs(values - others), nan=np.inf)
        relative = distance / np.fmax(1, np.fmax(np.abs(values), np.abs(others)))
    worst = int(np.argmax(np.nan_to_num(relative, nan=np.inf)))
    found.add(float(values[worst]), float(others[worst]), len(values))
    found.largest = max(found.largest, float(distance.max()))


def _survival_difference(one, other):
    """The largest difference of two null distributions' survival functions over the points of both grids."""
    tables = [[file.read(name) for name in ("x0", "dx", "survival")] for file in (one, other)]
    found = Difference("survival functions")
    for layer in range(min(len(x0) for x0, _, _ in tables)):
        grids = [x0[layer] + dx[layer] * np.arange(survival.shape[1]) for x0, dx, survival in tables]
        points = np.union1d(*grids)
        values, others = (
            np.interp(points, grid, survival[layer])
            for grid, (_, _, survival) in zip(grids, tables, strict=True)
        )
        found.total += 1
        worst = int(np.argmax(np.abs(values - others)))
        if values[worst] != others[worst]:
            found.add(float(values[worst]), float(others[worst]))
    return found
