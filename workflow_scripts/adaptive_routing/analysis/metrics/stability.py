"""Stability: whether a second pass over the first samples, at another batch size, decides the same."""

import numpy as np

from adaptive_routing.analysis.metrics.declaration import metric
from adaptive_routing.analysis.metrics.selections import jaccard_similarity


@metric(
    "stability", "", "higher", "Jaccard similarity of two passes' selections",
    one_of_16=True, minimum=0, maximum=1,
)  # fmt: skip
def expert_overlap_score(first_pass_selected_experts, second_pass_selected_experts) -> float | None:
    """Compute the mean Jaccard similarity of the selected sets, packed (T2, L, ⌈E/8⌉), of both passes.

    None without a second pass.
    """
    if second_pass_selected_experts is None or len(second_pass_selected_experts) == 0:
        return None
    return float(np.mean(jaccard_similarity(first_pass_selected_experts, second_pass_selected_experts)))


@metric(
    "stability", "%", "higher", "positions with the same greedy token in two passes",
    one_of_16=True, minimum=0, maximum=100,
)  # fmt: skip
def output_determinism(greedy_tokens, second_pass_greedy_tokens) -> float | None:
    """Compute the percentage of positions (T2,) with the same greedy next token in both passes.

    None without a second pass.
    """
    if second_pass_greedy_tokens is None or len(second_pass_greedy_tokens) == 0:
        return None
    return 100 * float(np.mean(greedy_tokens == second_pass_greedy_tokens))
