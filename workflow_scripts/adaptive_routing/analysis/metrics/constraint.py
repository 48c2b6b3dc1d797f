"""Constraint: how often the bounds min_k and max_k decide the number of experts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def ceiling_hit_rate(expert_counts: NDArray[np.integer], max_k: int) -> float:
    """Compute the percentage of token-layers whose expert count is max_k."""
    return 100 * float(np.mean(expert_counts == max_k))


def floor_hit_rate(expert_counts: NDArray[np.integer], min_k: int) -> float:
    """Compute the percentage of token-layers whose expert count is min_k."""
    return 100 * float(np.mean(expert_counts == min_k))
