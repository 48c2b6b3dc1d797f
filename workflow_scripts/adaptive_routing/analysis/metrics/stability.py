"""Stability: whether a second pass over the first samples, at another batch size, gives the same result."""

import numpy as np
from numpy.typing import NDArray

from adaptive_routing.analysis.metrics.declaration import metric
from adaptive_routing.analysis.metrics.selections import jaccard_similarity


@metric(
    "stability", "", "higher", "Jaccard similarity of two passes' selections",
    one_of_16=True, minimum=0, maximum=1,
)  # fmt: skip
def expert_overlap_score(
    first_pass_selected_experts: NDArray[np.uint8] | None,
    second_pass_selected_experts: NDArray[np.uint8] | None,
) -> float | None:
    """Compute the mean Jaccard similarity of the selected sets, packed (T2, L, ⌈E/8⌉), of both passes.

    None without a second pass.
    """
    first, second = first_pass_selected_experts, second_pass_selected_experts
    if first is None or second is None or len(second) == 0:
        return None
    return float(np.mean(jaccard_similarity(first, second)))


@metric(
    "stability", "%", "higher", "positions with the same greedy token in two passes",
    one_of_16=True, minimum=0, maximum=100,
)  # fmt: skip
def output_determinism(
    greedy_tokens: NDArray[np.int32] | None, second_pass_greedy_tokens: NDArray[np.int32] | None
) -> float | None:
    """Compute the percentage of positions (T2,) with the same greedy next token in both passes.

    None without a second pass.
    """
    if second_pass_greedy_tokens is None or len(second_pass_greedy_tokens) == 0:
        return None
    return 100 * float(np.mean(greedy_tokens == second_pass_greedy_tokens))
