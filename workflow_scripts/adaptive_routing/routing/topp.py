"""Top-p: the fewest experts whose router probabilities sum to at least p.

Experts stand in the order of their choice scores (the router logits, where those rank experts). n is the
smallest number with p_(1) + … + p_(n) >= p, over the softmax of all E logits, clamped to [min_k, max_k].
Source: Huang et al. 2024, Harder Tasks Need More Experts (arXiv 2403.07652), who train models with it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from adaptive_routing.routing.base import AdaptiveStrategy, ExpertWeighting
from adaptive_routing.routing.probabilities import router_probabilities


@dataclass(frozen=True)
class Strategy(AdaptiveStrategy):
    """Top-p routing with `min_k` to `max_k` experts a token; p is in (0, 1)."""

    p: float
    max_k: int
    min_k: int = 1
    weighting: ExpertWeighting = field(default_factory=ExpertWeighting)

    def expert_counts(
        self, router_logits: torch.Tensor, choice: torch.Tensor, order: torch.Tensor, layer: int
    ) -> torch.Tensor:
        # In float64 the sums of float32 probabilities are the same in any order of adding, to 1e-16.
        sums = router_probabilities(router_logits, choice).gather(-1, order).double().cumsum(-1)
        return 1 + (sums < self.p).sum(-1)
