"""The jobs that need the model on its device: one module each, named as its rule, with `run(request, cache)`.

The request is a dict of JSON values, the cache a `Cache`; a job runs the same in a process of its own as in
the model host (`host`).
"""

import functools
import importlib

from adaptive_routing.jobs.model_jobs.cache import Cache

__all__ = ["JOBS", "Cache"]


def _run(name, request, cache):
    importlib.import_module(f"{__name__}.{name}").run(request, cache)


JOBS = {name: functools.partial(_run, name) for name in ("run_experiment", "collect_router_logits")}
