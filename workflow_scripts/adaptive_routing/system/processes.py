"""Processes that depend on one another: which one it is, whether it still runs, and ending with it.

Also the cores that this one may use.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil

POLL_SECONDS = 0.5


def identity(pid: int | None = None) -> tuple[int, str]:
    """(pid, start time) of a process, by default this one: a pid alone is given to others later."""
    pid = pid or os.getpid()
    return pid, _start_time(pid)


def is_alive(pid: int, start_time: str) -> bool:
    """Whether that very process still runs."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE and _start_time(pid) == start_time
    except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
        return False


def _start_time(pid):
    # Linux counts from its own start, so that a clock that is set changes nothing; psutil adds the clock.
    status = Path(f"/proc/{pid}/stat")
    if status.exists():
        return status.read_text().rpartition(")")[2].split()[19]
    return str(psutil.Process(pid).create_time())


@contextlib.contextmanager
def ending_with(pid: int, start_time: str, name: str) -> Iterator[None]:
    """Have this process get SIGTERM when that one has ended, which may have been killed without a word.

    Args:
        pid, start_time: what `identity` gave.
        name: what the process is, for the sentence that says so.
    """
    is_over = threading.Event()

    def watch():
        while is_alive(pid, start_time):
            if is_over.wait(POLL_SECONDS):
                return
        with contextlib.suppress(OSError):  # the terminal may be gone as well
            print(f"error: {name} has ended, and this process with it", file=sys.stderr)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        is_over.set()


def children_import_from(folder: Path | str) -> None:
    """Have the Python processes that this one starts look into a folder before all others."""
    others = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path != str(folder)]
    os.environ["PYTHONPATH"] = os.pathsep.join([str(folder), *filter(None, others)])


def describe_end(returncode: int) -> str:
    """How a process ended, in words."""
    if returncode < 0:
        return f"ended by {signal.Signals(-returncode).name}"
    return f"ended with exit status {returncode}"
