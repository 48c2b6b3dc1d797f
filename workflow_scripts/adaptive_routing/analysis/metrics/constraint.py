"""Constraint: how often the number of experts is at its bounds min_k and max_k."""

import numpy as np
from numpy.typing import NDArray

from adaptive_routing.analysis.metrics.declaration import metric


@metric(
    "constraint", "%", "none", "token-layers with count = max_k",
    one_of_16=True, minimum=0, maximum=100, per_layer=True,
)  # fmt: skip
def ceiling_hit_rate(expert_counts: NDArray[np.integer], max_k: int | None) -> float | None:
    """Compute the percentage of token-layers whose expert count is max_k; None for a fixed count."""
    return None if max_k is None else 100 * float(np.mean(expert_counts == max_k))


@metric(
    "constraint", "%", "none", "token-layers with count = min_k",
    one_of_16=True, minimum=0, maximum=100, per_layer=True,
)  # fmt: skip
def floor_hit_rate(expert_counts: NDArray[np.integer], min_k: int | None) -> float | None:
    """Compute the percentage of token-layers whose expert count is min_k; None for a fixed count."""
    return None if min_k is None else 100 * float(np.mean(expert_counts == min_k))
