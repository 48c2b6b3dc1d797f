"""Files of experiments that a study had before and no longer has, as after its grid became smaller."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

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


def left_over_sentence(results: Path | str, experiments: Collection[str]) -> str:
    """Say what is left over and how large it is; an empty text where there is nothing."""
    found = left_over(results, experiments)
    if not found:
        return ""
    paths = [path for own in found.values() for path in own]
    size = sum(path.stat().st_size for path in paths) / 1e9
    named = ", ".join(list(found)[:MOST_NAMED])
    more = f" and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else ""
    noun = "experiment that is" if len(found) == 1 else "experiments that are"
    files = f"{len(paths)} file{'' if len(paths) == 1 else 's'} ({size:.1f} GB)"
    return (
        f"{results} also holds {files} of {len(found)} {noun} no longer of this study and in no table, "
        f"figure or report: {named}{more}. They are in {', '.join(FOLDERS)}."
    )
