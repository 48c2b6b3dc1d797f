"""Behaviour: how much the number of experts adapts, and how the selection differs from the native one."""

import math

import numpy as np

from adaptive_routing.analysis.metrics.selections import jaccard_similarity, top_k_selection


def adaptive_range(expert_counts):
    """Compute the largest minus the smallest expert count; expert_counts (T, L)."""
    return int(expert_counts.max()) - int(expert_counts.min())


def selection_entropy(histogram):
    """Compute −Σ p ln p (nats) over the expert counts 1…max_k; histogram[c] token-layers have count c.

    Shannon, A Mathematical Theory of Communication (1948), section 6. None where no count is above 0.
    """
    counted = np.asarray(histogram, dtype=float)[1:]
    if counted.sum() == 0:
        return None
    p = counted[counted > 0] / counted.sum()
    return abs(float(np.sum(p * np.log(p))))  # the sum is ≤ 0; abs also makes −0 a 0


def selection_entropy_normalized(histogram, max_k):
    """Divide `selection_entropy` by ln(max_k), its largest value; None for max_k = 1, which has no choice."""
    entropy = selection_entropy(histogram)
    return None if max_k == 1 or entropy is None else entropy / math.log(max_k)


def native_similarity(router_logits, selected_experts, native_top_k):
    """Compute the Jaccard similarity (T, L) of the selection and the native top-k.

    router_logits (T, L, E), or integers in their order; selected_experts packed (T, L, ⌈E/8⌉). The native
    top-k is taken from these router logits, ties going to the lower index. The mean is `native_overlap`.
    """
    return jaccard_similarity(selected_experts, top_k_selection(router_logits, native_top_k))
