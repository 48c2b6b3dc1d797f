"""Files that jobs made with other settings, as of a grid that was larger: listed, and removed on request."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from adaptive_routing.system.disk import in_words
from adaptive_routing.system.errors import OutputError

# What jobs make with some settings and not with others. Nothing else in the folder is listed or removed.
MADE = (
    "datasets/*.json",
    "calibration/null_*",
    "logs/*experts_*",
    "metrics/*experts_*",
    "atlas/*experts_*",
    "bh_routing_*.csv",
    "bh_routing_*.json",
    "visualizations/same_compute.*",
    "visualizations/decomposition.*",
    "visualizations/where.*",
    "visualizations/experts_by_difficulty.*",
    "job_logs/*/*.log",
    "job_logs/*_null_*.log",
    "job_logs/plot_*.log",
    "job_logs/tabulate_*.log",
    "benchmarks/*.tsv",
    "benchmarks/*/*.tsv",
)
TEMPORARY = ".tmp_"  # how the name of a file begins that a killed job left half-written


def left_over(results: Path | str, needed: Collection[str]) -> dict[Path, int]:
    """Find what jobs made in the results folder and the settings do not need: {path: bytes}, by path.

    needed: every path that a job of the study writes.
    """
    paths = {path for pattern in MADE for path in Path(results).glob(pattern)}
    return {
        path: path.lstat().st_size
        for path in sorted(paths)
        if path.is_file() and path.with_name(path.name.removeprefix(TEMPORARY)).as_posix() not in needed
    }


def left_over_sentence(results: Path | str, found: Mapping[Path, int]) -> str:
    """Say how much is left over."""
    return f"{results} also holds {_amount(found)} that no configuration of the settings needs."


def left_over_list(results: Path | str, found: Mapping[Path, int]) -> str:
    """List what is left over, with sizes, and the sum in a last line."""
    if not found:
        return f"{results} holds nothing that the settings do not need."
    lines = [f"{in_words(size):>10}  {path}" for path, size in found.items()]
    return "\n".join([*lines, left_over_sentence(results, found)])


def remove(found: Mapping[Path, int]) -> str:
    """Remove what is left over; returns a sentence on what was removed.

    Raises:
        OutputError: a file cannot be removed; those after it are still there.
    """
    for path in found:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise OutputError(f"{path} cannot be removed: {error.strerror}") from error
    return f"Removed {_amount(found)}."


def _amount(found):
    files = "1 file" if len(found) == 1 else f"{len(found)} files"
    return f"{files} ({in_words(sum(found.values()))})"
