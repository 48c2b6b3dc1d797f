"""Files of experiments that a study had before and no longer has, as after its grid became smaller."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

FOLDERS = ("logs", "metrics", "atlas")  # each file begins with its experiment, {config}_{dataset}
LOG = "_internal_routing"
MOST_NAMED = 4


def left_over(results: Path | str, experiments: Collection[str]) -> dict[str, list[Path]]:
    """Find the files of experiments that are not of the study: {experiment: its files}, by name.

    experiments: those of the study, {config}_{dataset}. Nothing is deleted.
    """
    found: dict[str, list[Path]] = {}
    for folder in FOLDERS:
        for path in sorted(Path(results, folder).glob("*")):
            experiment = path.stem.removesuffix(LOG)
            if experiment not in experiments and not path.name.startswith("."):
                found.setdefault(experiment, []).append(path)
    return dict(sorted(found.items()))


def left_over_sentence(
    results: Path | str, experiments: Collection[str], shown: Callable[[str], str] = str
) -> str:
    """Say what is left over, how large it is and how to remove it; an empty text where there is nothing.

    shown: how a name is written. Commands stand between backticks.
    """
    found = left_over(results, experiments)
    if not found:
        return ""
    paths = [path for own in found.values() for path in own]
    size = sum(path.stat().st_size for path in paths) / 1e9
    named = ", ".join(map(shown, list(found)[:MOST_NAMED]))
    more = f" and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else ""
    files = "1 file" if len(paths) == 1 else f"{len(paths)} files"
    noun = "experiment" if len(found) == 1 else "experiments"
    return (
        f"{shown(str(results))} also holds {files} ({size:.1f} GB) of {len(found)} {noun} that no "
        f"configuration of the settings needs any more: {named}{more}. "
        + _how_to_remove(Path(results).resolve())
    )


def _how_to_remove(folder):
    """How to list and remove the files by hand: Snakemake lists those below its working directory."""
    if not folder.is_relative_to(Path.cwd()):
        return f"They are in its folders {', '.join(FOLDERS)}."
    pattern = f"^{folder.relative_to(Path.cwd()).as_posix()}/({'|'.join(FOLDERS)})/"
    return (
        "To list them, end this study's command with "
        f"`--list-untracked | grep -E {shlex.quote(pattern)}`; to remove them, add `| xargs -d '\\n' rm`."
    )
