"""A model host without a model: the server of `adaptive_routing.jobs.host` with the tests' jobs."""

import json
import os
import sys
import time
from pathlib import Path

from adaptive_routing.jobs.host import server
from adaptive_routing.system.errors import InputError
from adaptive_routing.system.files import atomic_path


class Cache:
    def __init__(self, check=lambda: None):
        self.check = check

    def close(self):
        """Nothing runs beside this process."""


def import_libraries():
    """The tests' jobs need none."""


def report(request, cache):
    """Say which process this is, and which GPU it sees."""
    gpu = os.environ.get("CUDA_VISIBLE_DEVICES")
    Path(request["output"]).write_text(f"{os.getpid()} {request['dtype']} {gpu}")


def work(request, cache):
    """Write an output in many small batches, until the file `finish` is there."""
    with atomic_path(request["output"]) as temporary:
        print("at work", file=sys.stderr)
        while not Path("finish").exists():
            cache.check()
            time.sleep(0.01)
        temporary.write_text(f"{os.getpid()} {request['dtype']} {os.environ.get('CUDA_VISIBLE_DEVICES')}")


def refuse(request, cache):
    """Meet bad input."""
    raise InputError("evaluation.max_samples is 0, but must be 1 or more")


def fail(request, cache):
    """Meet a defect, with an output under way."""
    with atomic_path(request["output"]):
        raise RuntimeError("an unforeseen defect")


def outgrow(request, cache):
    """Ask for more memory than there is."""
    raise MemoryError


JOBS = {"report": report, "work": work, "refuse": refuse, "fail": fail, "outgrow": outgrow}

if __name__ == "__main__":
    server.main(json.loads(sys.argv[1]), "stub_host")
