"""Compares two results folders: python -m adaptive_routing.compare RESULTS OTHER

Files are first compared by their bytes; only those that differ are read (`differences`). What depends on the
time or the machine does not count as a difference of results: timings and the metrics based on them, device,
package versions and `provenance.run`. Figures and the report show timings, so they are compared by bytes and
only listed.
"""

from __future__ import annotations

import argparse
import filecmp
import itertools
import json
import math
import signal
import sys
from collections import defaultdict
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from adaptive_routing.analysis.metrics import TIMING_METRICS
from adaptive_routing.compare.differences import (
    SELECTIONS,
    json_differences,
    routing_log_differences,
    table_differences,
    tensor_differences,
)
from adaptive_routing.compare.summary import describe_summary
from adaptive_routing.routing_log.json_file import present
from adaptive_routing.system.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

    from adaptive_routing.compare.differences import Difference

# Keys of an experiment's files: what it was made from, what it was made with, and its times.
SETTINGS = ("config", "strategy", "k_or_max_k", "alpha", "num_experts", "dataset", "routing", "provenance")
ENVIRONMENT = ("provenance.device", "provenance.versions", "provenance.run", "folder")
TIMINGS = ("timings", "provenance.run.started")

# The files of an experiment and of the study, each with the function that finds their differences.
OF_EXPERIMENT = (
    ("metrics", "metrics/{}.json", json_differences),
    ("tensors", "logs/{}_internal_routing.safetensors", tensor_differences),
    ("summary", "logs/{}.json", json_differences),
    ("routing log", "logs/{}_internal_routing.json", routing_log_differences),
)
OF_STUDY = (
    ("model.json", json_differences),
    ("datasets/*.json", json_differences),
    ("calibration/*.safetensors", tensor_differences),
    ("calibration/*.csv", table_differences),
    ("bh_routing_*.csv", table_differences),
    ("bh_routing_*.json", json_differences),
)
BY_BYTES = (
    "calibration/*.png",
    "calibration/*.svg",
    "visualizations/*",
    *(f"bh_routing_*.{suffix}" for suffix in ("md", "html", "txt")),
    "routing_atlas.html",
)

# The text is kept short; JSON holds everything.
SHOWN_EXPERIMENTS, SHOWN_LINES = 8, 12


@dataclass
class FolderComparison:
    """What differs between two results folders.

    Attributes:
        num_experiments: how many experiments are in both folders.
        with_tensors: those of them whose selections could be compared.
        only: experiments and files that are in one folder only, by "first" and "second".
        settings, environment: {(name, first value, second value): experiments} for what the experiments were
            made from, and what they were made with; the values are JSON.
        results, timings: {file: `Difference`s} by experiment, and by file for the files of the study.
        bytes: figures and reports that differ, or that are missing in one folder.
    """

    num_experiments: int = 0
    with_tensors: set[str] = field(default_factory=set)
    only: dict[str, list[str]] = field(default_factory=lambda: {"first": [], "second": []})
    settings: dict[tuple[str, str, str], list[str]] = field(default_factory=lambda: defaultdict(list))
    environment: dict[tuple[str, str, str], list[str]] = field(default_factory=lambda: defaultdict(list))
    results: dict[str, dict[str, list[Difference]]] = field(default_factory=dict)
    timings: dict[str, dict[str, list[Difference]]] = field(default_factory=dict)
    bytes: list[str] = field(default_factory=list)

    @property
    def differences(self) -> list[Difference]:
        """All differences of results."""
        return [
            difference
            for files in self.results.values()
            for of_file in files.values()
            for difference in of_file
        ]

    @property
    def largest(self) -> float:
        """The largest difference of numbers, relative where they exceed 1."""
        return max((d.relative for d in self.differences if not d.is_decision), default=0.0)

    @property
    def only_numbers(self) -> bool:
        """Whether only numbers differ: no decision, setting or file."""
        is_whole = not (any(self.only.values()) or self.settings)
        return is_whole and not any(difference.is_decision for difference in self.differences)

    def verdict(self, tolerance: float = 0.0) -> str:
        """`identical`, `equal to rounding` (no number differs by more than the tolerance) or `different`."""
        if self.only_numbers and not self.differences:
            return "identical"
        return "equal to rounding" if self.only_numbers and self.largest <= tolerance else "different"


def experiments_of(folder: Path) -> list[str]:
    """The experiments in a results folder, {config}_{dataset}, in alphabetical order."""
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; two results folders can be compared.")
    names = (path.stem for path in folder.glob("logs/*.json") if not path.name.startswith("."))
    names = sorted(name for name in names if not name.endswith("_internal_routing"))
    if not names:
        raise InputError(f"{folder} is not a results folder: it has no logs/{{config}}_{{dataset}}.json.")
    return names


def compare(first: Path, second: Path) -> FolderComparison:
    """Compare two results folders.

    Raises:
        InputError: one of them is not a results folder, or a file is damaged.
    """
    first, second = Path(first), Path(second)
    names, other_names = experiments_of(first), experiments_of(second)
    shared = [name for name in names if name in other_names]
    found = FolderComparison(len(shared))
    found.only["first"] += [name for name in names if name not in shared]
    found.only["second"] += [name for name in other_names if name not in shared]
    for name in shared:
        tensors = f"logs/{name}_internal_routing.safetensors"
        if (first / tensors).exists() and (second / tensors).exists():
            found.with_tensors.add(name)
        for kind, pattern, find in OF_EXPERIMENT:
            _compare_file(found, name, kind, first, second, pattern.format(name), find)
    for pattern, find in OF_STUDY:
        for path in _matching(pattern, first, second):
            _compare_file(found, path, "", first, second, path, find)
    for path in itertools.chain.from_iterable(_matching(pattern, first, second) for pattern in BY_BYTES):
        one, other = first / path, second / path
        if not (one.exists() and other.exists() and filecmp.cmp(one, other, shallow=False)):
            found.bytes.append(path)
    return found


def _matching(pattern, *folders):
    """Paths in either folder, relative to it, without those that a job is still writing."""
    paths = {path.relative_to(folder) for folder in folders for path in folder.glob(pattern)}
    return sorted(path.as_posix() for path in paths if not path.name.startswith("."))


def _compare_file(found, subject, kind, first, second, path, find):
    """Compare a file that either folder may have, and sort its differences into `found`."""
    one, other = present(first / path), present(second / path)
    if one.exists() != other.exists():
        found.only["first" if one.exists() else "second"].append(path)
    if not (one.exists() and other.exists()) or filecmp.cmp(one, other, shallow=False):
        return
    for difference in find(one, other):
        if _is_below(difference.name, TIMINGS) or difference.name.rpartition(".")[2] in TIMING_METRICS:
            found.timings.setdefault(subject, {}).setdefault(kind, []).append(difference)
        elif _is_below(difference.name, ENVIRONMENT):
            _note(found.environment, difference, subject)
        elif kind and _is_below(difference.name, SETTINGS):
            _note(found.settings, difference, subject)
        else:
            found.results.setdefault(subject, {}).setdefault(kind, []).append(difference)


def _is_below(name, roots):
    return any(name == root or name.startswith((f"{root}.", f"{root}[", f"{root}:")) for root in roots)


def _note(group, difference, subject):
    subjects = group[difference.name, json.dumps(difference.first), json.dumps(difference.second)]
    if subject not in subjects:  # an experiment's three logs repeat it
        subjects.append(subject)


# As text and as JSON


def describe(found: FolderComparison, tolerance: float = 0.0, timings: bool = False) -> Iterator[str]:
    """Yield the comparison as lines of text; the first is the verdict."""
    yield headline(found, tolerance)
    for side, names in found.only.items():
        if names:
            yield f"only in the {side} folder: {_listed(names)}"
    if found.settings:
        yield "settings:"
        for (name, first, second), subjects in found.settings.items():
            experiments = _plural(len(subjects), "experiment")
            yield f"  {name}: {_cut(first)} | {_cut(second)} ({experiments})"
    yield from _described(found, found.results)
    if timings:
        yield from _described(found, found.timings, ", timings")
    if found.environment:
        yield "machine and software (not counted):"
        for name, first, second in found.environment:
            yield f"  {name}: {_cut(first)} | {_cut(second)}"
    if found.bytes:
        yield f"different figures and reports (not counted, since they show timings): {_listed(found.bytes)}"


def headline(found: FolderComparison, tolerance: float = 0.0) -> str:
    """The verdict and the reason for it."""
    verdict = found.verdict(tolerance)
    rounding = f"no decision differs, and no number by more than {found.largest:.2g}"
    if verdict == "identical":
        return f"identical: {_plural(found.num_experiments, 'experiment')}, timings left out"
    if verdict == "equal to rounding":
        return f"equal to rounding ({rounding})"
    files = sum("" in own for own in found.results.values())
    counts = {
        "experiment or file in one folder only": sum(map(len, found.only.values())),
        "setting": len(found.settings),
        "experiment": len(found.results) - files,
        "file of the study": files,
    }
    plurals = {
        "experiment or file in one folder only": "experiments or files in one folder only",
        "file of the study": "files of the study",
    }
    said = ", ".join(
        f"{count} {noun if count == 1 else plurals.get(noun, noun + 's')}"
        for noun, count in counts.items()
        if count
    )
    return f"different: {said}{f' ({rounding})' if found.only_numbers else ''}"


def _described(found, group, title=""):
    """The differences of the first experiments and all files of the study, and the names of the others."""
    experiments = [subject for subject, files in group.items() if "" not in files]
    left_out = experiments[SHOWN_EXPERIMENTS:]
    for subject, files in group.items():
        if subject not in left_out:
            yield f"{subject}{title}:"
            lines = [f"{kind}: {_sentence(one)}" if kind else _sentence(one) for kind, one in _flat(files)]
            if group is found.results and subject in found.with_tensors:
                lines = [*_unchanged_decisions(files), *lines]
            yield from (f"  {line}" for line in lines[:SHOWN_LINES])
            if len(lines) > SHOWN_LINES:
                yield f"  and {len(lines) - SHOWN_LINES} more"
    if left_out:
        yield f"and in {_listed(left_out)}"


def _flat(files):
    return [(kind, one) for kind, own in files.items() for one in own]


def _unchanged_decisions(files):
    """What is identical in an experiment that differs: the selected experts, the answers."""
    if not any(one.is_decision for one in files.get("tensors", ())):
        yield "selections: identical"
    if not any(one.is_decision for one in files.get("summary", ())):
        yield "answers: identical"


def _sentence(one):
    """A difference in words."""
    if one.name in SELECTIONS:
        share = 1 - one.count / one.total
        return f"{one.name}: the same expert set in {share:.4%} of {one.total:,} token-layers"
    if one.total == 1:
        change = "" if one.is_decision else f" ({one.second - one.first:+.3g})"
        return f"{one.name}: {_shown(one.first)} | {_shown(one.second)}{change}"
    size = (
        f"such as {_shown(one.first)} | {_shown(one.second)}"
        if one.is_decision
        else f"by {one.largest:.3g} at most"
    )
    return f"{one.name}: {one.count:,} of {one.total:,} differ, {size}"


def _shown(value):
    return _cut(value if isinstance(value, str) else json.dumps(value))


def _cut(text):
    return text if len(text) <= 60 else f"{text[:57]}..."


def _listed(names):
    more = f" and {len(names) - SHOWN_LINES} more" if len(names) > SHOWN_LINES else ""
    return ", ".join(names[:SHOWN_LINES]) + more


def _plural(count, noun):
    return f"{count} {noun}{'' if count == 1 else 's'}"


def as_json(found: FolderComparison, tolerance: float = 0.0, timings: bool = False) -> dict[str, Any]:
    """The whole comparison as a JSON value; a difference between values that are not numbers is null."""

    def noted(group):
        return [
            {"name": name, "first": json.loads(first), "second": json.loads(second), "experiments": subjects}
            for (name, first, second), subjects in group.items()
        ]

    def listed(group):
        return [
            {"where": subject, "file": kind or subject, **_without_infinity(asdict(one))}
            for subject, files in group.items()
            for kind, one in _flat(files)
        ]

    return {
        "verdict": found.verdict(tolerance),
        "experiments": found.num_experiments,
        "largest_difference": found.largest,
        "only": found.only,
        "settings": noted(found.settings),
        "results": listed(found.results),
        "timings": listed(found.timings) if timings else None,
        "environment": noted(found.environment),
        "bytes": found.bytes,
    }


def _without_infinity(values):
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in values.items()
    }


# The command


def _tolerance(text):
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a number of at least 0")
    return value


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status: 0 equal within the tolerance, 1 different, 2 bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m adaptive_routing.compare",
        description="Compare two results folders. Exit status: 0 equal, 1 different, 2 bad input.",
    )
    parser.add_argument("first", metavar="RESULTS", help="a results folder")
    parser.add_argument("second", metavar="OTHER", help="another, of the same study")
    parser.add_argument(
        "--tolerance",
        type=_tolerance,
        default=0.0,
        metavar="T",
        help="let numbers differ by T, or by T times the number where it exceeds 1; integers, answers and "
        "selected experts must be equal (default: 0)",
    )
    parser.add_argument("--timings", action="store_true", help="show timings too, though they do not count")
    parser.add_argument(
        "--summary",
        action="store_true",
        help="on one screen: both studies' answers, and how their experiments differ on the same samples; "
        "the exit status is 0",
    )
    parser.add_argument("--json", action="store_true", help="print everything that differs as JSON")
    options = parser.parse_args(arguments)
    try:
        if options.summary:
            folders = Path(options.first), Path(options.second)
            print("\n".join(describe_summary(*folders, *map(experiments_of, folders))))
            return 0
        found = compare(options.first, options.second)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps(as_json(found, options.tolerance, options.timings), indent=2))
    else:
        print("\n".join(describe(found, options.tolerance, options.timings)))
    return int(found.verdict(options.tolerance) == "different")


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # a closed pipe, as by `head`, ends it quietly
    sys.exit(main())
