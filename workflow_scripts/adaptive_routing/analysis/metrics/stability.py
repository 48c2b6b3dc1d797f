"""Stability: whether a second pass over the first samples, at another batch size, gives the same result."""

import numpy as np

from adaptive_routing.analysis.metrics.selections import jaccard_similarity


def expert_overlap_score(selected_experts, second_pass_selected_experts):
    """Compute the mean Jaccard similarity of the selected sets, packed (T2, L, ⌈E/8⌉), of both passes."""
    if len(second_pass_selected_experts) == 0:
        return None
    return float(np.mean(jaccard_similarity(selected_experts, second_pass_selected_experts)))


def output_determinism(greedy_tokens, second_pass_greedy_tokens):
    """Compute the percentage of positions (T2,) with the same greedy next token in both passes."""
    if len(second_pass_greedy_tokens) == 0:
        return None
    return 100 * float(np.mean(greedy_tokens == second_pass_greedy_tokens))
