"""Benjamini-Hochberg routing: as many experts as stand out from the layer's null distribution.

Each token is a family of E hypotheses "this expert's logit comes from the null distribution". The
step-up procedure of Benjamini and Hochberg (1995, Controlling the False Discovery Rate, section 3.1)
rejects the k* smallest p-values, where k* is the largest k with p_(k) <= k * alpha / E; the rejected
hypotheses are the selected experts, clamped to [min_k, max_k].
"""

from dataclasses import dataclass, field

import torch

from adaptive_routing.null_distribution import NullDistribution
from adaptive_routing.routing.base import ExpertWeighting, Selection, order_by_logit


def rejections(sorted_p_values, alpha):
    """Number of hypotheses that the BH procedure rejects.

    Args:
        sorted_p_values: (..., E) float64, ascending.
        alpha: the false discovery rate, in (0, 1).

    Returns:
        (...) int64, 0 to E. Compared as adjusted p-values, p_(k) * E / k <= alpha, which is what
        `scipy.stats.false_discovery_control` computes, so that both agree to the last bit.
    """
    num_hypotheses = sorted_p_values.shape[-1]
    ranks = torch.arange(1, num_hypotheses + 1, device=sorted_p_values.device)
    # Tensor by tensor: torch divides a number by a tensor as number * (1 / tensor), which rounds twice.
    factors = torch.full_like(ranks, num_hypotheses).double() / ranks.double()
    passes = sorted_p_values * factors <= alpha
    return (passes * ranks).amax(-1)


@dataclass(frozen=True)
class Strategy:
    """BH routing at false discovery rate `alpha`, with `min_k` to `max_k` experts a token."""

    alpha: float
    max_k: int
    null_distribution: NullDistribution
    min_k: int = 1
    weighting: ExpertWeighting = field(default_factory=ExpertWeighting)

    @classmethod
    def from_settings(cls, parameters, routing, null_distribution):
        return cls(
            alpha=float(parameters["alpha"]),
            max_k=int(parameters["max_k"]),
            null_distribution=null_distribution,
            min_k=int(routing["min_k"]),
            weighting=ExpertWeighting.from_settings(routing),
        )

    @property
    def max_experts(self):
        return self.max_k

    @property
    def min_experts(self):
        return self.min_k

    def selects_top_k(self, k):
        return False

    def select(self, router_logits, layer):
        num_experts = router_logits.shape[-1]
        # A survival function never increases, so descending logits are ascending p-values, and sorting
        # logits also settles ties in p (larger logit first, then lower expert index).
        logits, order = order_by_logit(router_logits)
        p_values = self.null_distribution.p_values(logits, layer)
        counts = rejections(p_values, self.alpha).clamp(self.min_k, self.max_k)
        slots = torch.arange(self.max_k, device=order.device)
        experts = torch.where(slots < counts[:, None], order[:, : self.max_k], num_experts)
        return Selection(experts, self.weighting.weights(router_logits, experts), counts)

    def p_values(self, router_logits, layer):
        return self.null_distribution.p_values(router_logits, layer)
