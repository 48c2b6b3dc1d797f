"""Which of several GPUs a job uses: jobs of one workflow that run at the same time have their own.

Snakemake counts GPUs (`--resources gpu=4`) and does not say which of them is whose. A job leases its GPUs
here: for each a locked file in the private folder of `socket_folder`, which the kernel releases when the job
dies. A GPU with a model host takes `JOBS_OF_A_HOST` jobs: one waits in the host's queue while the other
computes, so that the GPU does not wait for Snakemake and the start of a script. Only GPUs that
`CUDA_VISIBLE_DEVICES` allows are leased, so those that a scheduler gave to others are left alone. A model
host claims its GPUs in the same way for as long as it lives, so that a second workflow takes others while
there are some.

A model that needs several GPUs has them in fixed groups, such as 0 and 1, 2 and 3. So a host's GPUs are never
half of what another job leases. A job leases a whole group or nothing: none waits with half of one.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from adaptive_routing.jobs.host import socket_folder
from adaptive_routing.system.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

POLL_SECONDS = 0.2
JOBS_OF_A_HOST = 2  # at once, of which the host does one
VARIABLE = "CUDA_VISIBLE_DEVICES"


def visible_gpus() -> list[str]:
    """The GPUs of this machine that this process may use, as values of CUDA_VISIBLE_DEVICES."""
    allowed = os.environ.get(VARIABLE)
    if allowed is None:
        return [str(i) for i in range(len(list(Path("/dev").glob("nvidia[0-9]*"))))]
    names = [name.strip() for name in allowed.split(",")]
    return list(itertools.takewhile(lambda name: name and not name.startswith("-"), names))  # as CUDA does


def leave_a_choice(device: str, number: int = 1) -> bool:
    """Whether there are more GPUs than a job uses; arguments as of `leased_gpus`."""
    return device in ("auto", "cuda") and len(visible_gpus()) > number


@contextlib.contextmanager
def leased_gpus(
    device: str, workflow: tuple[int, str], number: int = 1, jobs: int = 1
) -> Iterator[str | None]:
    """Yield GPUs that fewer than so many jobs of the workflow have, and wait for them if need be.

    GPUs that no job has come first; among them those on which the workflow has its model host, then free
    ones, and those that another workflow uses last.

    Args:
        device: the setting `model.device`; only "auto" and "cuda" leave a choice.
        workflow: what `keeper.owner` gives.
        number: how many GPUs, the setting `model.gpus_per_experiment`.
        jobs: how many jobs of the workflow may have a GPU at once.

    Yields:
        A value of CUDA_VISIBLE_DEVICES for the process that loads the model, or None where there is nothing
        to choose.

    Raises:
        InputError: there are GPUs, but fewer than that.
    """
    gpus = visible_gpus() if device in ("auto", "cuda") else []
    if gpus and len(gpus) < number:
        raise InputError(
            f"model.gpus_per_experiment is {number}, but must be at most {len(gpus)}, the number of GPUs "
            "that this job may use"
        )
    if not leave_a_choice(device, number):
        yield None
        return
    groups = [gpus[start : start + number] for start in range(0, len(gpus) - number + 1, number)]
    has_waited = False
    while not (lease := _lease(groups, workflow, jobs)):
        if not has_waited:
            print(_waiting(len(groups), number), file=sys.stderr)
        has_waited = True
        time.sleep(POLL_SECONDS)
    group, locks = lease
    try:
        yield ",".join(group)
    finally:
        _release(locks)


def _waiting(groups, number):
    """What a job says that waits for GPUs."""
    what = "a GPU" if number == 1 else f"{number} GPUs"
    holders = f"all {groups}" if number == 1 else f"all {groups * number} that make groups of {number}"
    return (
        f"waiting for {what}: {holders} have jobs of this workflow; start no more at once than there are, "
        f"with --resources gpu={groups * number}"
    )


@contextlib.contextmanager
def claimed_gpus(workflow: tuple[int, str], number: int = 1) -> Iterator[None]:
    """Show other workflows that this process, a model host, uses the GPUs that it sees, if so many."""
    gpus, locks = visible_gpus(), []
    if len(gpus) == number:
        with socket_folder.locked_folder() as folder:
            locks = [_locked(folder / _name(gpu, workflow, "claim")) for gpu in gpus]
    try:
        yield
    finally:
        _release(filter(None, locks))


def sweep(folder: Path) -> None:
    """Remove the files of processes that died; only under the folder's lock."""
    for path in (*folder.glob("*.lease"), *folder.glob("*.claim")):
        _is_held(path)


def _lease(groups, workflow, jobs):
    """(group of GPUs, their locks) of the best that can be had now, or None."""
    with socket_folder.locked_folder() as folder:

        def rank(gpu):
            if _is_held(folder / _name(gpu, workflow, "claim")):
                return 0
            others = set(folder.glob(f"{_name(gpu)}-*")) - set(folder.glob(f"{_name(gpu, workflow)}.*"))
            return 2 if any(map(_is_held, others)) else 1

        groups = sorted(groups, key=lambda group: max(map(rank, group)))
        for place, group in itertools.product(range(jobs), groups):
            locks = [_locked(folder / _name(gpu, workflow, f"{place}.lease")) for gpu in group]
            if all(locks):
                return group, locks
            for lock in filter(None, locks):
                _remove(lock)
    return None


def _name(gpu, workflow=None, kind=None):
    parts = [hashlib.sha256(json.dumps(one).encode()).hexdigest()[:10] for one in (gpu, workflow) if one]
    return "-".join(parts) + (f".{kind}" if kind else "")


def _locked(path):
    """The file's lock, or None where another process has it."""
    from filelock import FileLock, Timeout  # most jobs have nothing to choose

    lock = FileLock(path)
    try:
        return lock.acquire(blocking=False).lock
    except Timeout:
        return None


def _is_held(path):
    """Whether a living process has locked the file; one that is left over is removed."""
    if not path.exists():
        return False
    lock = _locked(path)
    if lock:
        _remove(lock)
    return not lock


def _release(locks):
    with socket_folder.locked_folder():
        for lock in locks:
            _remove(lock)


def _remove(lock):
    Path(lock.lock_file).unlink(missing_ok=True)
    lock.release()
