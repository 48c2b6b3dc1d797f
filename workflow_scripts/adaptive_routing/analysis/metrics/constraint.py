"""Constraint: how often the bounds min_k and max_k decide the number of experts."""

import numpy as np


def ceiling_hit_rate(expert_counts, max_k):
    """Compute the percentage of token-layers whose expert count is max_k."""
    return 100 * float(np.mean(expert_counts == max_k))


def floor_hit_rate(expert_counts, min_k):
    """Compute the percentage of token-layers whose expert count is min_k."""
    return 100 * float(np.mean(expert_counts == min_k))
