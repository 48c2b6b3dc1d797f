"""Cross-layer: how the number of experts differs between layers and agrees along a token's path."""

import numpy as np
from numpy.typing import NDArray

from adaptive_routing.analysis.metrics.declaration import metric


@metric(
    "cross-layer", "experts²", "none", "variance over layers of the mean count", one_of_16=True, minimum=0
)
def layer_expert_variance(expert_counts: NDArray[np.integer]) -> float | None:
    """Compute the (population) variance over layers of the mean count (T, L); None for a single layer."""
    if expert_counts.shape[1] < 2:
        return None
    return float(np.var(expert_counts.mean(axis=0)))


@metric("cross-layer", "", "none", "mean correlation of counts in adjacent layers", one_of_16=True)
def layer_consistency_score(expert_counts: NDArray[np.integer]) -> float | None:
    """Average the Pearson correlation over tokens of the counts (T, L) in adjacent layers.

    None for a single layer and where a layer's counts are constant: a mean over the other pairs would not be
    comparable with another configuration's.
    """
    if expert_counts.shape[1] < 2 or np.any(np.ptp(expert_counts, axis=0) == 0):
        return None
    centred = expert_counts - expert_counts.mean(axis=0)
    norms = np.linalg.norm(centred, axis=0)
    products = np.einsum("tl,tl->l", centred[:, :-1], centred[:, 1:])
    return float(np.mean(products / (norms[:-1] * norms[1:])))
