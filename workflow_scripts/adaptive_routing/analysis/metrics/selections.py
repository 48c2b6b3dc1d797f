"""Sets of experts as packed bits, (..., ⌈E/8⌉) uint8 in little bit order, for the metrics on sets."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from typing import Any

    from numpy.typing import NDArray


def jaccard_similarity(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Compute |A ∩ B| / |A ∪ B| of two selections (..., ⌈E/8⌉) as (...) float64; two empty sets are equal."""
    intersection, union = set_sizes(first & second), set_sizes(first | second)
    return np.where(union == 0, 1.0, intersection / np.maximum(union, 1))


def set_sizes(selected_experts: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Count the experts of each set (..., ⌈E/8⌉) as (...) int64."""
    if selected_experts.shape[-1] % 8 == 0:  # eight bytes at a time
        selected_experts = np.ascontiguousarray(selected_experts).view(np.uint64)
    return np.bitwise_count(selected_experts).sum(axis=-1, dtype=np.int64)


def top_k_selection(router_logits: NDArray[Any], k: int) -> NDArray[np.uint8]:
    """Select the k largest router logits (..., E), ties going to the lower index, as packed bits.

    Only the order matters: the logits may be integers of the same order (`TensorFile.read_order`).
    """
    num_experts = router_logits.shape[-1]
    threshold = np.partition(router_logits, num_experts - k, axis=-1)[..., num_experts - k, None]
    packed = _pack(router_logits >= threshold)  # k experts, or more where logits equal the k-th
    surplus = set_sizes(packed) > k
    if surplus.any():
        logits, kth = router_logits[surplus], threshold[surplus]
        tied, above = logits == kth, logits > kth
        room = k - np.count_nonzero(above, axis=-1)
        packed[surplus] = _pack(above | (tied & (np.cumsum(tied, axis=-1) <= room[..., None])))
    return packed


def expert_usage(selected_experts: NDArray[np.uint8], num_experts: int) -> NDArray[np.int64]:
    """Count how often each expert is selected: packed (T, L, ⌈E/8⌉) to (L, E) int64."""
    num_tokens, num_layers, num_bytes = selected_experts.shape
    bits = np.unpackbits(selected_experts, bitorder="little").reshape(num_tokens, num_layers, 8 * num_bytes)
    usage = np.zeros(bits.shape[1:], dtype=np.int64)
    for start in range(0, num_tokens, 255):  # the sum of 255 bits fits in a byte: four times as fast
        usage += bits[start : start + 255].sum(axis=0, dtype=np.uint8)
    return usage[:, :num_experts]


def _pack(mask):
    return np.packbits(mask, axis=-1, bitorder="little")
