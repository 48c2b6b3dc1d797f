"""Sets of experts as packed bits, (..., ⌈E/8⌉) uint8 in little bit order: what the set metrics share."""

import numpy as np


def jaccard_similarity(first, second):
    """Compute |A ∩ B| / |A ∪ B| of two selections (..., ⌈E/8⌉) as (...) float64; two empty sets are equal."""
    intersection = np.bitwise_count(first & second).sum(axis=-1, dtype=np.int64)
    union = np.bitwise_count(first | second).sum(axis=-1, dtype=np.int64)
    return np.where(union == 0, 1.0, intersection / np.maximum(union, 1))


def top_k_selection(router_logits, k):
    """Select the k largest router logits (..., E), of equal ones the lower index first, as packed bits."""
    num_experts = router_logits.shape[-1]
    threshold = np.partition(router_logits, num_experts - k, axis=-1)[..., num_experts - k, None]
    mask = router_logits >= threshold  # (..., E): k of them, more where logits equal the k-th
    surplus = np.count_nonzero(mask, axis=-1) > k
    if surplus.any():
        tied, above = (
            router_logits[surplus] == threshold[surplus],
            router_logits[surplus] > threshold[surplus],
        )
        room = k - np.count_nonzero(above, axis=-1)
        mask[surplus] = above | (tied & (np.cumsum(tied, axis=-1) <= room[..., None]))
    return np.packbits(mask, axis=-1, bitorder="little")


def expert_usage(selected_experts, num_experts):
    """Count how often each expert is selected: packed (T, L, ⌈E/8⌉) to (L, E) int64."""
    mask = np.unpackbits(selected_experts, axis=-1, count=num_experts, bitorder="little")  # (T, L, E)
    return mask.sum(axis=0, dtype=np.int64)
