"""Which of several GPUs a job uses: jobs of one workflow that run at the same time have one each.

Snakemake counts GPUs (`--resources gpu=4`) and does not say which of them is whose. A job leases one here: a
locked file in the private folder of `address`, which the kernel releases when the job dies. Only GPUs that
`CUDA_VISIBLE_DEVICES` allows are leased, so those that a scheduler gave to others are left alone. A model
host claims its GPU in the same way for as long as it lives, so that a second workflow takes another one while
there is one.
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

if TYPE_CHECKING:
    from collections.abc import Iterator

POLL_SECONDS = 0.2
VARIABLE = "CUDA_VISIBLE_DEVICES"


def visible_gpus() -> list[str]:
    """The GPUs of this machine that this process may use, as values of CUDA_VISIBLE_DEVICES."""
    allowed = os.environ.get(VARIABLE)
    if allowed is None:
        return [str(i) for i in range(len(list(Path("/dev").glob("nvidia[0-9]*"))))]
    names = [name.strip() for name in allowed.split(",")]
    return list(itertools.takewhile(lambda name: name and not name.startswith("-"), names))  # as CUDA does


@contextlib.contextmanager
def leased_gpu(device: str, workflow: tuple[int, str]) -> Iterator[str | None]:
    """Yield a GPU that no other job of the workflow has, and wait for one if need be.

    It is rather one where the workflow has its model host than a free one, and rather a free one than one
    that another workflow uses.

    Args:
        device: the setting `model.device`; only "auto" and "cuda" leave a choice.
        workflow: what `keeper.owner` gives.

    Yields:
        A value of CUDA_VISIBLE_DEVICES for the process that loads the model, or None where there is nothing
        to choose.
    """
    gpus = visible_gpus() if device in ("auto", "cuda") else []
    if len(gpus) < 2:
        yield None
        return
    has_waited = False
    while not (lease := _lease(gpus, workflow)):
        if not has_waited:
            print(
                f"waiting for a GPU: all {len(gpus)} have jobs of this workflow; start no more at once than "
                f"there are, with --resources gpu={len(gpus)}",
                file=sys.stderr,
            )
        has_waited = True
        time.sleep(POLL_SECONDS)
    gpu, lock = lease
    try:
        yield gpu
    finally:
        _release(lock)


@contextlib.contextmanager
def claimed_gpu(workflow: tuple[int, str]) -> Iterator[None]:
    """Show other workflows that this process, a model host, uses the one GPU that it sees."""
    gpus, lock = visible_gpus(), None
    if len(gpus) == 1:
        with socket_folder.locked_folder() as folder:
            lock = _locked(folder / _name(gpus[0], workflow, "claim"))
    try:
        yield
    finally:
        if lock:
            _release(lock)


def sweep(folder: Path) -> None:
    """Remove the files of processes that died; only under the folder's lock."""
    for path in (*folder.glob("*.lease"), *folder.glob("*.claim")):
        _is_held(path)


def _lease(gpus, workflow):
    """(GPU, lock) of the best that can be had now, or None."""
    with socket_folder.locked_folder() as folder:

        def rank(gpu):
            own = [folder / _name(gpu, workflow, kind) for kind in ("claim", "lease")]
            others = [path for path in folder.glob(f"{_name(gpu)}-*") if path not in own]
            return 0 if _is_held(own[0]) else 2 if any(map(_is_held, others)) else 1

        for gpu in sorted(gpus, key=rank):
            if lock := _locked(folder / _name(gpu, workflow, "lease")):
                return gpu, lock
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


def _release(lock):
    with socket_folder.locked_folder():
        _remove(lock)


def _remove(lock):
    Path(lock.lock_file).unlink(missing_ok=True)
    lock.release()
