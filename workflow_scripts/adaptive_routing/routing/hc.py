"""Higher Criticism routing: as many experts as make the p-values deviate most from a uniform distribution.

Each token is a family of E hypotheses "this expert's score comes from the null distribution", as in BH. With
p-values p_(1) <= … <= p_(E), the statistic of rank i is

    HC_i = √E (i/E − p_(i)) / √(p_(i) (1 − p_(i)))

and k* is the rank with the largest one: of the i <= ⌊beta · E⌋ where beta is a number in (0, 1], and of the i
with p_(i) < i/E where it is `auto`. The experts with the k* smallest p-values are selected, k* clamped to
[min_k, max_k]; where there is no rank to search, min_k of them. Sources: Donoho and Jin 2004, Higher
Criticism for Detecting Sparse Heterogeneous Mixtures (their alpha_0 is beta); Donoho and Jin
2008, Higher Criticism Thresholding, for selecting up to the maximum.

A null distribution gives p-values of 0 and 1 beyond its grid. There the statistic is its limit. At p = 0 that
is +∞, and as the last of equal p-values has the largest statistic, k* is the last rank with p = 0. At p = 1
it is −∞, which is never the largest, and 0 at rank E. Where beta is a number, the largest statistic can be
negative, as in the definition.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING

import torch

from adaptive_routing.routing.base import AdaptiveStrategy, ExpertWeighting

if TYPE_CHECKING:
    from adaptive_routing.null_distribution import NullDistribution

AUTO = "auto"


def higher_criticism(p_values: torch.Tensor, beta: float | str) -> torch.Tensor:
    """k* of each token, 0 where there is none: (T,) int64.

    Args:
        p_values: (T, E) float64, ascending in each row.
        beta: the share of ranks to search over, in (0, 1], or "auto".
    """
    num_hypotheses = p_values.shape[-1]
    ranks = torch.arange(1, num_hypotheses + 1, device=p_values.device)
    # Tensor by tensor: torch divides a tensor by a number as tensor * (1 / number), which rounds twice.
    expected = ranks.double() / torch.full_like(ranks, num_hypotheses).double()
    excess = expected - p_values
    statistic = math.sqrt(num_hypotheses) * excess / (p_values * (1 - p_values)).sqrt()
    # 0 / 0 at p = 1 and rank E alone: p = 0 is always below i / E.
    statistic = statistic.masked_fill((excess == 0) & (p_values == 1), 0.0)
    # The decimal's own floor: 0.29 of 100 ranks are 29, and not 28.
    last = num_hypotheses if beta == AUTO else int(Decimal(repr(float(beta))) * num_hypotheses)
    searched = p_values < expected if beta == AUTO else ranks <= last
    statistic = statistic.masked_fill(~searched, -torch.inf)
    largest = statistic.amax(-1, keepdim=True)
    is_largest = (statistic == largest) & (largest > -torch.inf)
    return (is_largest * ranks).amax(-1)


@dataclass(frozen=True)
class Strategy(AdaptiveStrategy):
    """Higher Criticism routing with `min_k` to `max_k` experts a token."""

    beta: float | str
    max_k: int
    null_distribution: NullDistribution
    min_k: int = 1
    weighting: ExpertWeighting = field(default_factory=ExpertWeighting)

    def expert_counts(
        self, router_logits: torch.Tensor, choice: torch.Tensor, order: torch.Tensor, layer: int
    ) -> torch.Tensor:
        # A survival function never increases, so descending scores are ascending p-values.
        p_values = self.null_distribution.p_values(choice, layer).gather(-1, order)
        return higher_criticism(p_values, self.beta)

    def p_values(self, router_logits: torch.Tensor, layer: int) -> torch.Tensor:
        return self.null_distribution.p_values(self.weighting.choice(router_logits, layer), layer)
