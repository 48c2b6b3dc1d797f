"""Routing strategies: which experts a token gets, and with which weights.

A strategy is one module in this folder, named as in the config file, with one class `Strategy`
(see `base.py`). `make_strategy` finds it by that name. `batch` holds what was routed in a forward pass.

Imports `null_distribution`.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from adaptive_routing.routing.base import RoutingStrategy, Selection

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from adaptive_routing.null_distribution import NullDistribution
    from adaptive_routing.settings.configurations import Configuration

__all__ = ["RoutingStrategy", "Selection", "control_counts", "make_control", "make_strategy"]


def make_strategy(
    configuration: Configuration,
    routing: Mapping[str, Any],
    null_distribution: NullDistribution | None = None,
) -> RoutingStrategy:
    """Build the strategy of one configuration.

    Args:
        configuration: `configurations.Configuration` (strategy name and its own parameters).
        routing: the config's `routing` section: `min_k`, `temperature`, `weights`.
        null_distribution: `NullDistribution`, for strategies that need p-values.
    """
    module = importlib.import_module(f"adaptive_routing.routing.{configuration.strategy}")
    return module.Strategy.from_settings(configuration.parameters, routing, null_distribution)


# By name, as strategies are: no other experiment depends on what controls are.


def control_counts(counts: NDArray[np.integer], kind: str, seed: int) -> NDArray[np.int64]:
    """`control.control_counts`."""
    return _controls().control_counts(counts, kind, seed)


def make_control(
    configuration: Configuration, routing: Mapping[str, Any], counts: NDArray[np.int64]
) -> RoutingStrategy:
    """Build the strategy of a control, with the expert counts (N, L) that `control_counts` gives."""
    return _controls().Strategy.from_counts(configuration.parameters, routing, counts)


def _controls():
    return importlib.import_module("adaptive_routing.routing.control")
