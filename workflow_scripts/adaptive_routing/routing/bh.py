"""Benjamini-Hochberg routing: as many experts as stand out from the layer's null distribution.

Each token is a family of E hypotheses "this expert's score comes from the null distribution". The score is
the router logit, or what the router ranks experts by where that is something else (`router_rule`). The
step-up procedure of Benjamini and Hochberg (1995, Controlling the False Discovery Rate, section 3.1)
rejects the k* smallest p-values, where k* is the largest k with p_(k) <= k * alpha / E; the rejected
hypotheses are the selected experts, clamped to [min_k, max_k].
"""

import functools
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from adaptive_routing.null_distribution import NullDistribution
from adaptive_routing.routing.base import AdaptiveStrategy, ExpertWeighting


def _passes(p_values, alpha):
    """Whether each of E p-values (E,) is at most k * alpha / E, k = 1 to E: (E,) bool.

    Compared as adjusted p-values, p * E / k <= alpha, which is what `scipy.stats.false_discovery_control`
    computes, so that both agree to the last bit.
    """
    num_hypotheses = p_values.shape[-1]
    ranks = torch.arange(1, num_hypotheses + 1, device=p_values.device)
    # Tensor by tensor: torch divides a number by a tensor as number * (1 / tensor), which rounds twice.
    factors = torch.full_like(ranks, num_hypotheses).double() / ranks.double()
    return p_values * factors <= alpha


def rejection_thresholds(
    p_values_of: Callable[[torch.Tensor], torch.Tensor], num_hypotheses: int, alpha: float
) -> torch.Tensor:
    """The smallest logit whose p-value is small enough for each step of the BH procedure.

    p-values never rise with the logit, so comparing the k-th largest logit with the k-th threshold decides
    as comparing its p-value does, to the last bit, and needs no p-values.

    Args:
        p_values_of: logits (E,) float64 to p-values (E,) float64, non-increasing.
        num_hypotheses: E.
        alpha: the false discovery rate, in (0, 1).

    Returns:
        (E,) float64; NaN, which no logit reaches, where no p-value is small enough.
    """
    # Bisection over all float64 in order: as integers, the bits of negative ones run the wrong way.
    extremes = torch.tensor([[-torch.inf], [torch.inf]], dtype=torch.float64).expand(2, num_hypotheses)
    low, high = _order_preserving(extremes.contiguous().view(torch.int64))
    low = low - 1
    while (high - 1 > low).any():
        middle = (low >> 1) + (high >> 1) + (low & high & 1)
        passes = _passes(p_values_of(_order_preserving(middle).view(torch.float64)), alpha)
        low, high = torch.where(passes, low, middle), torch.where(passes, middle, high)
    thresholds = _order_preserving(high).view(torch.float64)
    reached = _passes(p_values_of(thresholds), alpha)
    return torch.where(reached, thresholds, torch.nan)


def _order_preserving(bits):
    """Bits of float64 as int64 to integers in the floats' order, and back."""
    return torch.where(bits < 0, bits ^ torch.iinfo(torch.int64).max, bits)


# Found once a null distribution, level and layer: configurations that differ in max_k share them.
_thresholds = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class Strategy(AdaptiveStrategy):
    """BH routing at false discovery rate `alpha`, with `min_k` to `max_k` experts a token."""

    alpha: float
    max_k: int
    null_distribution: NullDistribution
    min_k: int = 1
    weighting: ExpertWeighting = field(default_factory=ExpertWeighting)

    def expert_counts(
        self, router_logits: torch.Tensor, choice: torch.Tensor, order: torch.Tensor, layer: int
    ) -> torch.Tensor:
        num_experts = router_logits.shape[-1]
        # A survival function never increases, so descending scores are ascending p-values, and sorting
        # scores also settles ties in p (larger score first, then lower expert index).
        scores = self.null_distribution.tested(choice).gather(-1, order)
        passes = scores >= self._thresholds_on(scores.device, layer, num_experts)
        ranks = torch.arange(1, num_experts + 1, device=scores.device)
        return (passes * ranks).amax(-1)

    def _thresholds_on(self, device, layer, num_experts):
        thresholds = _thresholds.setdefault(self.null_distribution, {})
        key = device, layer, num_experts, self.alpha
        if key not in thresholds:
            p_values_of = functools.partial(self.null_distribution.survival_at, layer=layer)
            thresholds[key] = rejection_thresholds(p_values_of, num_experts, self.alpha).to(device)
        return thresholds[key]

    def p_values(self, router_logits: torch.Tensor, layer: int) -> torch.Tensor:
        return self.null_distribution.p_values(self.weighting.choice(router_logits, layer), layer)
