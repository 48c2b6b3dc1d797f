"""Distribution: how evenly the work spreads over a layer's experts."""

import numpy as np
from numpy.typing import NDArray

from adaptive_routing.analysis.metrics.declaration import metric


@metric(
    "distribution", "", "higher", "share of experts used at all, mean over layers",
    one_of_16=True, minimum=0, maximum=1, per_layer=True,
)  # fmt: skip
def expert_utilization(expert_usage: NDArray[np.int64]) -> float:
    """Compute the share of experts used at all, mean over layers; expert_usage (L, E) counts."""
    return float(np.mean(expert_usage > 0))


@metric(
    "distribution", "", "lower", "inequality of expert usage, mean over layers",
    one_of_16=True, minimum=0, maximum=1, per_layer=True,
)  # fmt: skip
def gini_coefficient(expert_usage: NDArray[np.int64]) -> float | None:
    """Average each layer's Gini coefficient of expert usage (L, E) over the layers that use experts.

    2·Σ i·x_(i) / (n·Σ x) − (n + 1)/n with x ascending and i from 1 (Sen, On Economic Inequality, 1973):
    0 when all experts are used equally, 1 − 1/n when one expert gets all. None when no layer uses any.
    """
    used = expert_usage[expert_usage.sum(axis=1) > 0]
    if len(used) == 0:
        return None
    n = used.shape[1]
    ascending = np.sort(used, axis=1).astype(float)
    ranks = np.arange(1, n + 1)
    ginis = 2 * (ascending @ ranks) / (n * ascending.sum(axis=1)) - (n + 1) / n
    return float(np.mean(ginis))
