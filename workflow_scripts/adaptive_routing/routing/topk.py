"""Top-k: the k experts that the router ranks first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import torch

from adaptive_routing.routing.base import (
    ExpertWeighting,
    RoutingStrategy,
    Selection,
    order_by_logit,
    select_first,
)

if TYPE_CHECKING:
    from adaptive_routing.null_distribution import NullDistribution


@dataclass(frozen=True)
class Strategy(RoutingStrategy):
    """Fixed top-k routing: a softmax is monotone, so the k largest logits are the k largest probabilities.

    A token that sees fewer than k experts, as where a router masks groups, gets those.
    """

    k: int
    weighting: ExpertWeighting = field(default_factory=ExpertWeighting)

    @classmethod
    def from_settings(
        cls,
        parameters: Mapping[str, float],
        routing: Mapping[str, Any],
        null_distribution: NullDistribution | None = None,
    ) -> Self:
        return cls(int(parameters["k"]), ExpertWeighting.from_settings(routing))

    @property
    def max_experts(self) -> int:
        return self.k

    @property
    def min_experts(self) -> int:
        return self.k

    def selects_top_k(self, k: int) -> bool:
        return self.k == k

    def select(self, router_logits: torch.Tensor, layer: int) -> Selection:
        choice = self.weighting.choice(router_logits, layer)
        order = order_by_logit(choice)[1]
        counts = torch.full(order.shape[:1], self.k, dtype=torch.int64, device=order.device)
        if self.weighting.rule.ranks_by_logits:  # nothing to clamp or to put in order
            experts = order[:, : self.k]
            return Selection(experts, self.weighting.weights(router_logits, experts), counts)
        return select_first(self, router_logits, order, counts, choice)
