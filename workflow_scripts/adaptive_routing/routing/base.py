"""The interface of a routing strategy, and the expert weights that all strategies share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

import numpy as np
import torch

from adaptive_routing.routing.router_rule import SOFTMAX, RouterRule

if TYPE_CHECKING:
    from adaptive_routing.null_distribution import NullDistribution
    from adaptive_routing.routing.layerwise import MoeLayers


@dataclass(frozen=True)
class Selection:
    """The experts chosen for T tokens of one layer.

    Attributes:
        experts: (T, K) int64, largest logit first; unused slots, the last, hold E, the number of experts.
        weights: (T, K) float32, 0 in unused slots.
        counts: (T,) int64, experts selected per token.
    """

    experts: torch.Tensor
    weights: torch.Tensor
    counts: torch.Tensor


@dataclass(frozen=True)
class ExpertWeighting:
    """How experts are ranked and selected ones are weighted: the router's own rule, with two settings.

    Weights are the router's own of logits / temperature. `renormalize` True makes those of a token sum to 1
    (before the router's own scale), False leaves them as they are, and None does what the router does, which
    the patcher knows: it puts the model's `rule` in the place of OLMoE's. `uniform` gives the selected
    experts of a token the same weight, 1 / their number (before the router's own scale).
    """

    temperature: float = 1.0
    renormalize: bool | None = None
    rule: RouterRule = SOFTMAX
    uniform: bool = False

    @classmethod
    def from_settings(cls, routing: Mapping[str, Any]) -> Self:
        weights = routing["weights"]
        renormalize = None if weights == "native" else True
        return cls(float(routing["temperature"]), renormalize, uniform=weights == "uniform")

    def of_router(self, rule: RouterRule) -> Self:
        """The same settings with a router's rule, and with `renormalize` told."""
        return replace(
            self, rule=rule, renormalize=rule.normalized if self.renormalize is None else self.renormalize
        )

    @property
    def is_the_routers_own(self) -> bool:
        """Whether the settings leave a router's weights as they are."""
        as_the_router = self.renormalize in (None, self.rule.normalized) and not self.uniform
        return self.temperature == 1.0 and as_the_router

    def choice(self, router_logits: torch.Tensor, layer: int) -> torch.Tensor:
        """The scores (T, E) that rank experts, as `RouterRule.choice`: the logits where those do."""
        return router_logits if self.rule.ranks_by_logits else self.rule.choice(router_logits, layer)

    def weights(self, router_logits: torch.Tensor, experts: torch.Tensor) -> torch.Tensor:
        """Weights of the experts (T, K) given logits (T, E): (T, K) float32, 0 where an expert is E."""
        rule = self.rule
        if self.uniform:
            used = (experts < router_logits.shape[-1]).float()
            return used * (rule.scale / used.sum(-1, keepdim=True))
        if self.renormalize is not None and self.renormalize != rule.normalized:
            rule = replace(rule, normalized=self.renormalize)
        return rule.weights(router_logits, experts, self.temperature)


class RoutingStrategy(Protocol):
    """What the patcher needs from a strategy; a subclass inherits what holds for most.

    Attributes:
        max_experts: the most experts a token can get (K of the selection).
        min_experts: the fewest.
        weighting: how experts are ranked and the selected ones weighted.
        needs_rows: whether `select_rows` chooses, which is told which tokens of the data set it sees.
        needs_lengths: whether `select_sequences` chooses, which is told where sequences end.
        needs_layers: whether the strategy has to be `prepared` for a model.
    """

    max_experts: int
    min_experts: int
    weighting: ExpertWeighting
    needs_rows: ClassVar[bool] = False
    needs_lengths: ClassVar[bool] = False
    needs_layers: ClassVar[bool] = False

    @classmethod
    def from_settings(
        cls,
        parameters: Mapping[str, float],
        routing: Mapping[str, Any],
        null_distribution: NullDistribution | None,
    ) -> RoutingStrategy:
        """Build from the configuration's own parameters and the config's `routing` section."""

    @property
    def selects_fixed_number(self) -> bool:
        """Whether every token gets `max_experts`.

        A token that sees some groups of experts only may see fewer, and padding gets none of a strategy that
        looks at sequences.
        """
        varies = self.weighting.rule.masks_groups or self.needs_lengths
        return self.min_experts == self.max_experts and not varies

    def selects_top_k(self, k: int) -> bool:
        """Whether the selection is always the k largest logits: a model's own is then left as it is."""
        return False

    def select(self, router_logits: torch.Tensor, layer: int) -> Selection:
        """Select experts from logits (T, E) of any float dtype in MoE layer `layer`."""

    def select_rows(self, router_logits: torch.Tensor, layer: int, rows: torch.Tensor) -> Selection:
        """`select`, told the tokens' places (T,) among all of the data set's, int64."""
        return self.select(router_logits, layer)

    def select_sequences(self, router_logits: torch.Tensor, layer: int, lengths: Sequence[int]) -> Selection:
        """`select`, told the lengths of the sequences whose T tokens follow one another, without padding."""
        return self.select(router_logits, layer)

    def prepared(self, layers: MoeLayers) -> Self:
        """The strategy for a model, whose routers and experts these are; the patcher asks for it once."""
        return self

    def p_values(self, router_logits: torch.Tensor, layer: int) -> torch.Tensor | None:
        """p-values (T, E) float64 of what the null distribution is of, or None for a strategy without.

        That is the choice score (`ExpertWeighting.choice`): the logit, where logits rank experts.
        """
        return None


class AdaptiveStrategy(RoutingStrategy):
    """A strategy that says how many experts each token gets: those that rank first, `min_k` to `max_k`.

    A subclass is a dataclass with the fields `max_k`, `min_k` and `weighting`, one for each of its parameters
    in the config file, and `null_distribution` where it has p-values. It implements `expert_counts`.
    """

    max_k: int
    min_k: int

    @classmethod
    def from_settings(
        cls,
        parameters: Mapping[str, Any],
        routing: Mapping[str, Any],
        null_distribution: NullDistribution | None = None,
    ) -> Self:
        names = {field.name for field in fields(cls)}  # ty: ignore[invalid-argument-type]
        own: dict[str, Any] = {name: value for name, value in parameters.items() if name in names}
        own |= {"min_k": routing["min_k"], "weighting": ExpertWeighting.from_settings(routing)}
        if "null_distribution" in names:
            own["null_distribution"] = null_distribution
        return cls(**own)

    @property
    def max_experts(self) -> int:
        return self.max_k

    @property
    def min_experts(self) -> int:
        return self.min_k

    def ranked(self, router_logits: torch.Tensor, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The scores that rank experts, and experts in their descending order: each (T, E)."""
        choice = self.weighting.choice(router_logits, layer)
        return choice, order_by_logit(choice)[1]

    def select(self, router_logits: torch.Tensor, layer: int) -> Selection:
        choice, order = self.ranked(router_logits, layer)
        counts = self.expert_counts(router_logits, choice, order, layer)
        return select_first(self, router_logits, order, counts, choice)

    def expert_counts(
        self, router_logits: torch.Tensor, choice: torch.Tensor, order: torch.Tensor, layer: int
    ) -> torch.Tensor:
        """How many experts each token gets, before the limits: (T,) int64.

        Args:
            router_logits: (T, E) of any float dtype.
            choice: the scores (T, E) that rank experts, `ExpertWeighting.choice`.
            order: experts (T, E) in descending order of these scores, ties by lower index.
            layer: MoE layer.
        """
        raise NotImplementedError


def order_by_logit(router_logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Experts in descending order of their logits, ties by lower index: (values, indices), each (T, E)."""
    if _sorts_keys(router_logits):
        order = _sort_keys(router_logits, np.arange(router_logits.shape[-1]))
        return router_logits.gather(-1, order), order
    return torch.sort(router_logits, dim=-1, descending=True, stable=True)


def order_selected(logits: torch.Tensor, experts: torch.Tensor) -> torch.Tensor:
    """The order that `order_by_logit` gives some experts (T, K) with these logits (T, K): slots (T, K)."""
    if _sorts_keys(logits):
        slots = np.arange(experts.shape[-1])
        return _sort_keys(logits, experts.numpy() << _SLOT_BITS | slots) & _SLOT_MASK
    order = experts.argsort(-1)
    return order.gather(-1, order_by_logit(logits.gather(-1, order))[1])


# On a CPU, NumPy sorts integers some twenty times faster than torch sorts logits stably. Their upper half is
# the logit's place in descending order, their lower half the expert: no two are equal.
_SLOT_BITS = 16
_SLOT_MASK = (1 << _SLOT_BITS) - 1


def _sorts_keys(logits):
    exact_in_float32 = logits.dtype in (torch.float32, torch.bfloat16, torch.float16)
    return logits.device.type == "cpu" and exact_in_float32


def _sort_keys(logits, low):
    """The lower halves of keys (T, E) in ascending order: int64 (T, E).

    Args:
        logits: (T, E); the largest come first.
        low: what decides between equal ones, in 32 bits: integers (E,) or (T, E).
    """
    bits = (logits.detach().float() + 0.0).numpy().view(np.int32)  # adding 0 makes −0 equal to 0
    # Bits of negative numbers run the wrong way; inverting all of them turns the order round. In place: fresh
    # memory for every step costs more than the arithmetic.
    descending = bits >> 31
    descending &= 0x7FFFFFFF
    descending ^= bits
    np.invert(descending, out=descending)
    keys = descending.astype(np.int64)
    keys <<= 32
    keys |= low
    keys.sort(axis=-1)
    return torch.from_numpy(keys & 0xFFFFFFFF)


def select_first(
    strategy: RoutingStrategy,
    router_logits: torch.Tensor,
    order: torch.Tensor,
    counts: torch.Tensor,
    choice: torch.Tensor | None = None,
) -> Selection:
    """Select the first `counts` (T,) experts of an order (T, E), within the strategy's limits.

    Args:
        strategy: gives the limits and the weights.
        router_logits: (T, E).
        order: experts in descending order of the scores that rank them.
        counts: (T,) int64.
        choice: those scores (T, E), `ExpertWeighting.choice`, without which a router that does not rank by
            logits is a ValueError; experts with −∞ are never selected.
    """
    num_experts, weighting = router_logits.shape[-1], strategy.weighting
    if choice is None and not weighting.rule.ranks_by_logits:
        raise ValueError("the model's router does not rank experts by logits; use weighting.choice")
    counts = counts.clamp(strategy.min_experts, strategy.max_experts)
    if weighting.rule.masks_groups and choice is not None:
        counts = counts.minimum((choice > -torch.inf).sum(-1))
    slots = torch.arange(strategy.max_experts, device=order.device)
    experts = torch.where(slots < counts[:, None], order[:, : strategy.max_experts], num_experts)
    if not weighting.rule.ranks_by_logits:
        experts = _by_logit(router_logits, experts)
    return Selection(experts, weighting.weights(router_logits, experts), counts)


def _by_logit(router_logits, experts):
    """Selected experts (T, K) in the order of their logits, in which a log's reader finds them."""
    num_experts = router_logits.shape[-1]
    logits = router_logits.gather(-1, experts.clamp(max=num_experts - 1))
    logits = logits.masked_fill(experts == num_experts, -torch.inf)
    return experts.gather(-1, order_selected(logits, experts))
