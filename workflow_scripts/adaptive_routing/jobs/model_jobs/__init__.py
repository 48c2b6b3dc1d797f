"""The jobs of the process that has the model on its device: a module each, named as its rule.

Its `run(request, cache)` takes a dict of JSON values and a `Cache`; a job runs the same in a process of its
own as in the model host (`host`).
"""

import functools
import importlib

from adaptive_routing.jobs.model_jobs.cache import Cache

__all__ = ["JOBS", "Cache", "import_libraries"]


_NAMES = ("prepare_dataset", "collect_router_logits", "run_experiment")


def _run(name, request, cache):
    importlib.import_module(f"{__name__}.{name}").run(request, cache)


JOBS = {name: functools.partial(_run, name) for name in _NAMES}


def import_libraries() -> None:
    """Import now what the jobs and the libraries would import while they run."""
    for name in (*(f"{__name__}.{job}" for job in JOBS), "datasets", "transformers.generation.utils"):
        importlib.import_module(name)
