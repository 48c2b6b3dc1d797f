"""Min-p: the experts whose router probability is at least p times the largest.

n = |{e : p_e >= p · max p}| over the softmax of all E logits, clamped to [min_k, max_k]; the n experts with
the largest choice scores are selected, which are those experts wherever logits rank them.
Source: min-p sampling of tokens (Nguyen et al. 2024, arXiv 2407.01082), applied to experts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import torch

from adaptive_routing.routing.base import (
    ExpertWeighting,
    RoutingStrategy,
    Selection,
    order_by_logit,
    select_first,
)
from adaptive_routing.routing.probabilities import router_probabilities


@dataclass(frozen=True)
class Strategy(RoutingStrategy):
    """Min-p routing with `min_k` to `max_k` experts a token; p is in (0, 1)."""

    p: float
    max_k: int
    min_k: int = 1
    weighting: ExpertWeighting = field(default_factory=ExpertWeighting)

    @classmethod
    def from_settings(
        cls, parameters: Mapping[str, Any], routing: Mapping[str, Any], null_distribution: object = None
    ) -> Self:
        weighting = ExpertWeighting.from_settings(routing)
        return cls(float(parameters["p"]), int(parameters["max_k"]), int(routing["min_k"]), weighting)

    @property
    def max_experts(self) -> int:
        return self.max_k

    @property
    def min_experts(self) -> int:
        return self.min_k

    def select(self, router_logits: torch.Tensor, layer: int) -> Selection:
        choice = self.weighting.choice(router_logits, layer)
        order = order_by_logit(choice)[1]
        probabilities = router_probabilities(router_logits, choice).double()
        counts = (probabilities >= self.p * probabilities.amax(-1, keepdim=True)).sum(-1)
        return select_first(self, router_logits, order, counts, choice)
