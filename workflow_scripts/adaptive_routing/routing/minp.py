"""Min-p: the experts whose router probability is at least p times the largest.

n = |{e : p_e >= p · max p}| over the softmax of all E logits, clamped to [min_k, max_k]; the n experts with
the largest choice scores are selected, which are those experts wherever logits rank them.
Source: min-p sampling of tokens (Nguyen et al. 2024, arXiv 2407.01082), applied to experts.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from adaptive_routing.routing.base import AdaptiveStrategy, ExpertWeighting
from adaptive_routing.routing.probabilities import router_probabilities


@dataclass(frozen=True)
class Strategy(AdaptiveStrategy):
    """Min-p routing with `min_k` to `max_k` experts a token; p is in (0, 1)."""

    p: float
    max_k: int
    min_k: int = 1
    weighting: ExpertWeighting = field(default_factory=ExpertWeighting)

    def expert_counts(
        self, router_logits: torch.Tensor, choice: torch.Tensor, order: torch.Tensor, layer: int
    ) -> torch.Tensor:
        probabilities = router_probabilities(router_logits, choice).double()
        return (probabilities >= self.p * probabilities.amax(-1, keepdim=True)).sum(-1)
