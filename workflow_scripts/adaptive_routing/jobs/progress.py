"""How long the rest of a run will take."""

RECENT = 20  # experiments whose pace counts; they differ, and the next ones are most like the last
AT_ONCE = (
    1.0  # seconds; experiments of one Slurm job count as finished together, which says nothing of their pace
)


def remaining_seconds(finished, begun, left, now):
    """Estimate when the last experiment will be done.

    Args:
        finished: when this run's experiments were finished, in seconds and in order.
        begun: when the first of them began.
        left: how many are still to come.
        now: the time.

    Returns:
        Seconds, 0 at least; None where nothing is left or nothing was finished yet.
    """
    if not left or not finished:
        return None
    # The first one may have waited for its model: where there are others, it only starts the clock.
    recent = finished[-RECENT - 1 :]
    experiments, seconds = len(recent) - 1, recent[-1] - recent[0]
    if seconds < AT_ONCE:
        experiments, seconds = len(finished), finished[-1] - begun
    return max(left * seconds / experiments - (now - finished[-1]), 0)


def duration(seconds):
    """Seconds in words, as roughly as one knows them of something to come."""
    if seconds < 90:
        return f"{max(10 * round(seconds / 10), 10)} s"
    if seconds < 5400:
        return f"{round(seconds / 60)} min"
    return f"{seconds / 3600:.1f} h"
