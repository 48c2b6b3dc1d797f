"""Entropy: half as many experts for each step that the router's entropy lies below the highest.

H is the entropy of the softmax over all E logits, and h = H / ln E, in [0, 1], the same as a share of the
largest entropy. The range of h has `steps` equal parts, with thresholds at 1/steps, …, (steps − 1)/steps. A
token in the highest part gets max_k experts, and each part below halves the number:
n = ⌈max_k / 2^(steps − 1 − j)⌉ where j thresholds are at most h, clamped to [min_k, max_k]. Experts are those
with the largest choice scores. exp(H) is the effective number of experts among which the router divides its
probability: equal steps of h are equal factors of it, as a half is of n.

Source: Adaptive-K (https://pypi.org/project/adaptive-k-routing/), whose thresholds and numbers of experts
come from calibration. Its example for 8 experts is 1, 2 or 4, with thresholds of 0.6 and 1.2 nats; max_k = 4
and steps = 3 are 1, 2 or 4 with thresholds of 0.69 and 1.39, thirds of ln 8.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

from adaptive_routing.routing.base import AdaptiveStrategy, ExpertWeighting


@dataclass(frozen=True)
class Strategy(AdaptiveStrategy):
    """Routing by entropy with `min_k` to `max_k` experts a token; `steps` is from 2 to 32."""

    steps: int
    max_k: int
    min_k: int = 1
    weighting: ExpertWeighting = field(default_factory=ExpertWeighting)

    def expert_counts(
        self, router_logits: torch.Tensor, choice: torch.Tensor, order: torch.Tensor, layer: int
    ) -> torch.Tensor:
        # Of all experts, also those that a token does not see: the others' alone is no distribution.
        probabilities = router_logits.float().softmax(-1).double()
        entropy = torch.special.entr(probabilities).sum(-1)  # (T,), in nats
        thresholds = torch.arange(1, self.steps, device=entropy.device).double() / self.steps
        reached = (entropy[:, None] >= thresholds * math.log(router_logits.shape[-1])).sum(-1)
        # Shifted right, an integer is rounded down; the negative of the negative one, up.
        return -(torch.full_like(reached, -self.max_k) >> (self.steps - 1 - reached))
