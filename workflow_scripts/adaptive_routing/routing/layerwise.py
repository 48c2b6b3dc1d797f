"""Layer-wise: a fixed number of experts in each layer, chosen for a budget from the model's weights alone.

Sensitivity. In layer l, random inputs with entries from N(0, 1) go through the router and the routed experts,
once with the model's own selection and weights, which gives Y, and once with k experts, which gives Y_k:

    D_l(k) = ‖Y_k − Y‖ / ‖Y‖  (Frobenius norms)

Allocation. The numbers k_l from min_k to max_k with Σ k_l = budget and the smallest Σ D_l(k_l). Each token of
layer l gets the k_l experts with the largest choice scores.

Source: LExI (Chitty-Venkata et al. 2025, arXiv 2509.02753), with two differences. LExI
sums the norms ‖Y_k − Y‖ themselves; here they are relative to the layer's own output, since layers differ in
scale. LExI looks for the allocation by an evolutionary search; here dynamic programming finds the best one.
LExI's numbers end at the model's own number of experts, as they do here where max_k is that number.

The inputs come from a fixed seed, so that the numbers depend on no text and no batch.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray

from adaptive_routing.routing.base import AdaptiveStrategy, ExpertWeighting, order_by_logit
from adaptive_routing.system.errors import InputError

RANDOM_TOKENS = 256
SEED = 0


class MoeLayers(Protocol):
    """A model's routers and routed experts, each layer for itself.

    Attributes:
        model: what the sensitivities are kept for.
        num_layers: L.
        hidden_size: H.
        native_top_k: experts that the model itself selects.
    """

    model: Any
    num_layers: int
    hidden_size: int
    native_top_k: int

    def router_logits(self, layer: int, hidden: torch.Tensor) -> torch.Tensor:
        """Logits (T, E) of hidden states (T, H)."""

    def expert_outputs(self, layer: int, hidden: torch.Tensor, experts: torch.Tensor) -> torch.Tensor:
        """What experts (T, K) make of hidden states (T, H), without weights: (T, K, H)."""


def allocate(sensitivities: NDArray[np.float64], budget: int, min_k: int) -> tuple[int, ...]:
    """The numbers k_l with Σ k_l = budget and the smallest Σ D_l(k_l), by dynamic programming.

    Of several, the one that is smaller in the first layer in which they differ.

    Args:
        sensitivities: D (L, M), of `min_k` to `min_k` + M − 1 experts.
        budget: from L · `min_k` to L · (`min_k` + M − 1).
        min_k: the fewest experts of a layer.
    """
    num_layers, choices = sensitivities.shape
    above = budget - num_layers * min_k  # to be shared out, above `min_k` for each layer
    # From the last layer to the first: the least sum over the layers from l on, for every share of `above`.
    least = np.full(above + 1, np.inf)
    least[0] = 0.0
    steps = np.empty((num_layers, above + 1), np.int64)
    shares, extra = np.arange(above + 1)[:, None], np.arange(choices)
    for layer in reversed(range(num_layers)):
        left = shares - extra  # (above + 1, M)
        sums = np.where(left >= 0, sensitivities[layer] + least[left.clip(0)], np.inf)
        steps[layer] = sums.argmin(1)  # the first of equal ones
        least = sums.min(1)
    counts = []
    for layer in range(num_layers):
        step = int(steps[layer, above])
        counts.append(min_k + step)
        above -= step
    return tuple(counts)


@torch.no_grad()
def layer_sensitivities(layers: MoeLayers, weighting: ExpertWeighting, max_k: int) -> NDArray[np.float64]:
    """D_l(k) for k = 1 to `max_k`, (L, max_k), or as many as a token sees where its router masks groups.

    Args:
        layers: the model's.
        weighting: how the k experts are ranked and weighted.
        max_k: the largest k.
    """
    rule, generator = weighting.rule, torch.Generator().manual_seed(SEED)
    native = ExpertWeighting(1.0, rule.normalized, rule)
    rows = []
    for layer in range(layers.num_layers):
        hidden = torch.randn(RANDOM_TOKENS, layers.hidden_size, generator=generator)
        logits = layers.router_logits(layer, hidden)
        seen = logits.shape[-1] // rule.groups * rule.groups_kept
        slots = min(max(max_k, layers.native_top_k), seen)
        experts = order_by_logit(weighting.choice(logits, layer))[1][:, :slots]
        outputs = layers.expert_outputs(layer, hidden, experts).float()  # (T, K, H)
        own = _layer_output(native, logits, experts, outputs, min(layers.native_top_k, slots))
        differences = [
            (_layer_output(weighting, logits, experts, outputs, k) - own).norm()
            for k in range(1, min(max_k, slots) + 1)
        ]
        # A layer that gives nothing but zeros is not sensitive.
        smallest = torch.finfo(torch.float64).tiny
        rows.append((torch.stack(differences) / own.norm().clamp_min(smallest)).cpu().numpy())
    return np.stack(rows)


def _layer_output(weighting, logits, experts, outputs, k):
    """What a layer gives with the first k experts: (T, H) float64."""
    weights = weighting.weights(logits, experts[:, :k])
    return torch.einsum("tk,tkh->th", weights, outputs[:, :k]).double()


_sensitivities = weakref.WeakKeyDictionary()  # model: {(weighting, max_k): D (L, M)}


@dataclass(frozen=True)
class Strategy(AdaptiveStrategy):
    """Layer-wise routing with `min_k` to `max_k` experts in a layer, `budget` over all layers.

    `RouterPatcher` gives it the model (`prepared`); then `layer_counts` are the k_l.
    """

    budget: int
    max_k: int
    min_k: int = 1
    weighting: ExpertWeighting = field(default_factory=ExpertWeighting)
    layer_counts: tuple[int, ...] | None = None
    needs_layers: ClassVar[bool] = True

    def prepared(self, layers: MoeLayers) -> Self:
        """The strategy with the numbers of experts for a model.

        Raises:
            InputError: no numbers from `min_k` to `max_k` sum to the budget.
        """
        known, key = _sensitivities.setdefault(layers.model, {}), (self.weighting, self.max_k)
        if key not in known:
            known[key] = layer_sensitivities(layers, self.weighting, self.max_k)
        num_layers, largest = known[key].shape
        if not num_layers * self.min_k <= self.budget <= num_layers * largest:
            raise InputError(
                f"strategies.layerwise.budget is {self.budget}, but must be from {num_layers * self.min_k} "
                f"to {num_layers * largest}: the model has {num_layers} MoE layers, and each gets from "
                f"{self.min_k} to {largest} experts"
            )
        counts = allocate(known[key][:, self.min_k - 1 :], self.budget, self.min_k)
        return replace(self, layer_counts=counts)

    def expert_counts(
        self, router_logits: torch.Tensor, choice: torch.Tensor, order: torch.Tensor, layer: int
    ) -> torch.Tensor:
        if self.layer_counts is None:
            raise ValueError("layer-wise routing gets its numbers from a model: use RouterPatcher")
        count = self.layer_counts[layer]
        return torch.full(order.shape[:1], count, dtype=torch.int64, device=order.device)
