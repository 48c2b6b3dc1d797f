"""Behaviour: how much the number of experts adapts, and how the selection differs from the native one."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaptive_routing.analysis.metrics.declaration import metric
from adaptive_routing.analysis.metrics.selections import jaccard_similarity, top_k_selection


@metric("behaviour", "experts", "none", "largest − smallest expert count", one_of_16=True, minimum=0)
def adaptive_range(expert_counts: NDArray[np.integer]) -> int:
    """Compute the largest minus the smallest expert count; expert_counts (T, L)."""
    return int(expert_counts.max()) - int(expert_counts.min())


@metric("behaviour", "nats", "none", "entropy of the expert counts", one_of_16=True, minimum=0)
def selection_entropy(histogram: NDArray[np.int64]) -> float | None:
    """Compute −Σ p ln p (nats) over the expert counts 1…max_k; histogram[c] token-layers have count c.

    Shannon, A Mathematical Theory of Communication (1948), section 6. None where no count is above 0.
    """
    counted = np.asarray(histogram, dtype=float)[1:]
    if counted.sum() == 0:
        return None
    p = counted[counted > 0] / counted.sum()
    return abs(float(np.sum(p * np.log(p))))  # the sum is ≤ 0; abs also makes −0 a 0


@metric("behaviour", "", "none", "selection entropy / ln(max_k)")
def selection_entropy_normalized(histogram: NDArray[np.int64], k_or_max_k: int) -> float | None:
    """Divide `selection_entropy` by ln(max_k), its largest value; None for max_k = 1, which has no choice."""
    entropy = selection_entropy(histogram)
    return None if k_or_max_k == 1 or entropy is None else entropy / math.log(k_or_max_k)


def native_similarity(
    router_logits: NDArray[Any], selected_experts: NDArray[np.uint8], native_top_k: int
) -> NDArray[np.float64]:
    """Compute the Jaccard similarity (T, L) of the selection and the native top-k.

    router_logits (T, L, E), or integers in their order; selected_experts packed (T, L, ⌈E/8⌉). The native
    top-k is taken from these router logits, ties going to the lower index.
    """
    return jaccard_similarity(selected_experts, top_k_selection(router_logits, native_top_k))


@metric("behaviour", "", "none", "Jaccard similarity with the native top-k selection", minimum=0, maximum=1)
def native_overlap(mean_native_similarity: float) -> float:
    """Give `native_similarity`, mean over token-layers."""
    return mean_native_similarity
