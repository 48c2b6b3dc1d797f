"""Confidence: fewer experts, in steps, the larger the largest router probability.

4 experts where the largest probability (softmax over all E logits) exceeds 0.7, 8 where it exceeds 0.5, 16
where it exceeds 0.3, else max_k; clamped to [min_k, max_k]. Experts are those with the largest choice scores.
Source: the earlier framework of this study, whose steps these are.
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

STEPS = ((0.3, 16), (0.5, 8), (0.7, 4))  # (largest probability exceeds, experts), the last that holds


@dataclass(frozen=True)
class Strategy(RoutingStrategy):
    """Routing by confidence with `min_k` to `max_k` experts a token."""

    max_k: int
    min_k: int = 1
    weighting: ExpertWeighting = field(default_factory=ExpertWeighting)

    @classmethod
    def from_settings(
        cls, parameters: Mapping[str, Any], routing: Mapping[str, Any], null_distribution: object = None
    ) -> Self:
        weighting = ExpertWeighting.from_settings(routing)
        return cls(int(parameters["max_k"]), int(routing["min_k"]), weighting)

    @property
    def max_experts(self) -> int:
        return self.max_k

    @property
    def min_experts(self) -> int:
        return self.min_k

    def select(self, router_logits: torch.Tensor, layer: int) -> Selection:
        choice = self.weighting.choice(router_logits, layer)
        order = order_by_logit(choice)[1]
        # In float64, where the steps are nearest to their decimals.
        largest = router_probabilities(router_logits, choice).amax(-1).double()
        counts = torch.full_like(largest, self.max_k, dtype=torch.int64)
        for above, experts in STEPS:
            counts = counts.masked_fill(largest > above, experts)
        return select_first(self, router_logits, order, counts, choice)
