"""How far a study's experiments are, and how long the rest will take."""

import time
from collections.abc import Sequence
from pathlib import Path

RECENT = 20  # experiments whose pace counts; they differ, and the next ones are most like the last


def describe_progress(summaries: Sequence[Path | str], started: float, now: float | None = None) -> str:
    """Say in words how many experiments are done, and where some are missing, how long they will take.

    Args:
        summaries: paths of the summaries of the study's experiments, of those to come as well.
        started: when this run began, in seconds since the epoch. Older summaries say nothing of the pace; and
            where none is missing, they may be stale ones that this run has yet to replace.
        now: the time.
    """
    now = time.time() if now is None else now
    written = sorted(when for when in map(_written, summaries) if when is not None)
    of_this_run = [when for when in written if when >= started]
    left = len(summaries) - len(written)
    if not left:
        return f"{len(of_this_run)} experiments done in this run"
    text, recent = f"{len(written)} of {len(summaries)} experiments done", of_this_run[-RECENT:]
    if len(recent) > 1:
        pace = (recent[-1] - recent[0]) / (len(recent) - 1)
        text += f", about {_duration(max(left * pace - (now - recent[-1]), 0))} left"
    return text


def _written(path):
    """When a file was written; None where there is none: Snakemake removes stale ones at any time."""
    try:
        return Path(path).stat().st_mtime
    except FileNotFoundError:
        return None


def _duration(seconds):
    if seconds < 90:
        return f"{max(10 * round(seconds / 10), 10)} s"
    if seconds < 5400:
        return f"{round(seconds / 60)} min"
    return f"{seconds / 3600:.1f} h"
