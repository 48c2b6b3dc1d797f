"""Which of several GPUs a job uses: jobs of one workflow that run at the same time have one each.

Snakemake counts GPUs (`--resources gpu=4`) and does not say which of them is whose. A job leases one here: a
locked file in the private folder of `socket_folder`, which the kernel releases when the job dies. Only GPUs
that `CUDA_VISIBLE_DEVICES` allows are leased, so those that a scheduler gave to others are left alone. The
name of a model host's socket says which GPU it uses, so that a second workflow takes another one while there
is one.
"""

import contextlib
import itertools
import os
import sys
import time
from pathlib import Path

from adaptive_routing.jobs.host import socket_folder

POLL_SECONDS = 0.2
VARIABLE = "CUDA_VISIBLE_DEVICES"


def visible_gpus(environment=os.environ):
    """The GPUs of this machine that a process may use, as values of CUDA_VISIBLE_DEVICES."""
    allowed = environment.get(VARIABLE)
    if allowed is None:
        return [str(i) for i in range(len(list(Path("/dev").glob("nvidia[0-9]*"))))]
    names = [name.strip() for name in allowed.split(",")]
    return list(itertools.takewhile(lambda name: name and not name.startswith("-"), names))  # as CUDA does


@contextlib.contextmanager
def leased_gpu(device, workflow):
    """Yield a GPU that no other job of the workflow has, and wait for one if need be.

    The best is one where the workflow has its model host, then a free one, then one that another workflow
    uses.

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
    gpu, descriptor = lease
    try:
        yield gpu
    finally:
        with socket_folder.locked_folder() as folder:
            (folder / _lease_name(gpu, workflow)).unlink(missing_ok=True)
            os.close(descriptor)


def _lease(gpus, workflow):
    """(GPU, descriptor of the lease) of the best that can be had now, or None."""
    with socket_folder.locked_folder() as folder:

        def is_free(gpu):
            return not socket_folder.is_held(folder / _lease_name(gpu, workflow))

        def rank(gpu):
            start, own = socket_folder.file_name([gpu]), socket_folder.file_name([gpu], workflow)
            users = [path for path in folder.glob(f"{start}-*") if socket_folder.is_held(path)]
            return 0 if any(path.name.startswith(own) for path in users) else 2 if users else 1

        gpu = min(filter(is_free, gpus), key=rank, default=None)
        return gpu and (gpu, socket_folder.hold(folder / _lease_name(gpu, workflow)))


def _lease_name(gpu, workflow):
    return f"{socket_folder.file_name([gpu], workflow)}.lease"
