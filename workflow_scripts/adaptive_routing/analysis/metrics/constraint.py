"""Constraint: how often the number of experts is at its bounds min_k and max_k."""

import numpy as np


def ceiling_hit_rate(expert_counts, max_k):
    """Compute the percentage of token-layers whose expert count is max_k."""
    return 100 * float(np.mean(expert_counts == max_k))


def floor_hit_rate(expert_counts, min_k):
    """Compute the percentage of token-layers whose expert count is min_k."""
    return 100 * float(np.mean(expert_counts == min_k))
