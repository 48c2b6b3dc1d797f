"""Confidence: fewer experts, in steps, the larger the largest router probability.

4 experts where the largest probability (softmax over all E logits) exceeds 0.7, 8 where it exceeds 0.5, 16
where it exceeds 0.3, else max_k; clamped to [min_k, max_k]. Experts are those with the largest choice scores.
Source: the earlier framework of this study, whose steps these are.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from adaptive_routing.routing.base import AdaptiveStrategy, ExpertWeighting
from adaptive_routing.routing.probabilities import router_probabilities

STEPS = ((0.3, 16), (0.5, 8), (0.7, 4))  # (largest probability exceeds, experts), the last that holds


@dataclass(frozen=True)
class Strategy(AdaptiveStrategy):
    """Routing by confidence with `min_k` to `max_k` experts a token."""

    max_k: int
    min_k: int = 1
    weighting: ExpertWeighting = field(default_factory=ExpertWeighting)

    def expert_counts(
        self, router_logits: torch.Tensor, choice: torch.Tensor, order: torch.Tensor, layer: int
    ) -> torch.Tensor:
        # In float64, where the steps are nearest to their decimals.
        largest = router_probabilities(router_logits, choice).amax(-1).double()
        counts = torch.full_like(largest, self.max_k, dtype=torch.int64)
        for above, experts in STEPS:
            counts = counts.masked_fill(largest > above, experts)
        return counts
