"""What is written of every routing decision, and read again: `writer`, its `workers`, and `reader`.

Imports `routing`, `null_distribution` and `system`. `RoutingLog` is the reader's, imported when it is first
asked for: a worker, which starts with this package, needs neither torch nor p-values.
"""

import importlib

__all__ = ["RoutingLog"]


def __getattr__(name):
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.reader"), name)
