"""Top-p: the fewest experts whose router probabilities sum to at least p.

Experts stand in the order of their choice scores (the router logits, where those rank experts). n is the
smallest number with p_(1) + … + p_(n) >= p, over the softmax of all E logits, clamped to [min_k, max_k].
Source: Huang et al. 2024, Harder Tasks Need More Experts (arXiv 2403.07652), who train models with it.
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
    """Top-p routing with `min_k` to `max_k` experts a token; p is in (0, 1)."""

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
        # In float64 the sums of float32 probabilities are the same in any order of adding, to 1e-16.
        sums = router_probabilities(router_logits, choice).gather(-1, order).double().cumsum(-1)
        return select_first(self, router_logits, order, 1 + (sums < self.p).sum(-1), choice)
