"""What a model's router makes of its logits: the scores that rank experts, and their weights.

Two questions, answered apart: which experts come first (`choice`), and what weight any set of experts gets
(`weights`). Routers differ in both: a softmax or a sigmoid, a bias that corrects the load of experts in the
choice and is left out of the weights (DeepSeek-V3, arXiv 2412.19437, section 2.1.2), groups of experts of
which a token sees some (DeepSeek-V2, arXiv 2405.04434, section 2.1.3), weights that are made to sum to 1, and
a factor on them.

Without a bias the choice ranks as the logits do, so its scores are the logits themselves; with a bias they
are the router's own scores plus the bias. Null distributions and p-values are over these scores. Experts of
groups that a token does not see have the score −∞: their p-value is 1, no strategy selects them, and they
count among the E hypotheses all the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import torch

if TYPE_CHECKING:
    from adaptive_routing.system.tensor_files import TensorFile

SCORES = ("softmax", "sigmoid")
GROUP_SCORES = ("largest", "two largest")


@dataclass(frozen=True, eq=False)
class RouterRule:
    """How a router ranks and weights experts; the default is a softmax over all of them, as OLMoE's.

    Attributes:
        scores: softmax or sigmoid of the logits.
        scores_dtype: what the router computes them in.
        bias: (L, E), added for the choice in its own dtype; None where there is none.
        bias_on_logits: whether it is added to the logits and not to the scores.
        groups: of experts, all of one size; 1 where there are none.
        groups_kept: how many of them a token sees, those with the largest group scores.
        group_score: the largest score of a group's experts, or the sum of its two largest.
        normalized: whether the weights of a token sum to 1, before the scale.
        scale: a factor on all weights.
    """

    scores: str = "softmax"
    scores_dtype: str = "float32"
    bias: torch.Tensor | None = None
    bias_on_logits: bool = False
    groups: int = 1
    groups_kept: int = 1
    group_score: str = "largest"
    normalized: bool = False
    scale: float = 1.0

    @property
    def ranks_by_logits(self) -> bool:
        """Whether experts stand in the order of their logits."""
        return self.bias is None and not self.masks_groups

    @property
    def masks_groups(self) -> bool:
        """Whether a token sees some of the experts only."""
        return self.groups_kept < self.groups

    def description(self) -> dict[str, Any]:
        """The rule as JSON values, for a log's head; the bias is not among them."""
        return {
            "scores": self.scores,
            "scores_dtype": self.scores_dtype,
            "bias": None if self.bias is None else "logits" if self.bias_on_logits else "scores",
            "bias_dtype": None if self.bias is None else str(self.bias.dtype).removeprefix("torch."),
            "groups": self.groups,
            "groups_kept": self.groups_kept,
            "group_score": self.group_score,
            "normalized": self.normalized,
            "scale": self.scale,
            "p_values_over": "router logits" if self.bias is None else "choice scores",
        }

    @classmethod
    def from_description(cls, description: Mapping[str, Any], bias: torch.Tensor | None = None) -> Self:
        """The rule of a log's head, with the bias (L, E) that its tensors hold."""
        values = {key: value for key, value in description.items() if key != "p_values_over"}
        on_logits, bias_dtype = values.pop("bias") == "logits", values.pop("bias_dtype")
        bias = None if bias is None else bias.to(getattr(torch, bias_dtype))
        return cls(**values, bias=bias, bias_on_logits=on_logits)

    @classmethod
    def from_log(cls, routing: Mapping[str, Any], tensors: TensorFile) -> Self:
        """The rule of a log's section `routing` and its tensors; OLMoE's where they tell none."""
        description = routing.get("router")
        if description is None:
            return cls()
        bias = torch.from_numpy(tensors.read("choice_bias")) if description["bias"] else None
        return cls.from_description(description, bias)

    def unmasked_choice(self, router_logits: torch.Tensor, layer: int) -> torch.Tensor:
        """`choice` as if a token saw all groups: what null distributions are fitted to."""
        if self.bias is None:
            return router_logits
        bias = self.bias[layer].to(router_logits.device)
        if self.bias_on_logits:
            return (router_logits + bias).float()
        return (self._scores(router_logits) + bias).float()

    def choice(self, router_logits: torch.Tensor, layer: int) -> torch.Tensor:
        """The scores by which experts are ranked: (T, E), −∞ where a token does not see an expert.

        Args:
            router_logits: (T, E).
            layer: MoE layer.
        """
        choice = self.unmasked_choice(router_logits, layer)
        if not self.masks_groups:
            return choice
        by_group = choice if self.bias is not None else self._scores(router_logits)
        by_group = by_group.unflatten(-1, (self.groups, -1))  # (T, G, E / G)
        best = 2 if self.group_score == "two largest" else 1
        group_scores = by_group.topk(best, dim=-1).values.sum(-1)  # (T, G)
        kept = group_scores.topk(self.groups_kept, dim=-1).indices
        seen = torch.zeros_like(group_scores, dtype=torch.bool).scatter_(-1, kept, True)
        seen = seen.repeat_interleave(by_group.shape[-1], -1)
        return choice.masked_fill(~seen, -torch.inf)

    def weights(
        self, router_logits: torch.Tensor, experts: torch.Tensor, temperature: float = 1.0
    ) -> torch.Tensor:
        """Weights of any experts (T, K): (T, K) float32, 0 where an expert is E, an unused slot.

        Args:
            router_logits: (T, E).
            experts: (T, K) int64.
            temperature: divides the logits.
        """
        num_experts = router_logits.shape[-1]
        if temperature != 1.0:
            router_logits = router_logits.float() / temperature
        scores = self._scores(router_logits)
        used = experts < num_experts
        weights = scores.gather(-1, experts.clamp(max=num_experts - 1)).float() * used
        if self.normalized:
            weights = weights / weights.sum(-1, keepdim=True)
        return weights if self.scale == 1.0 else weights * self.scale

    def _scores(self, router_logits):
        logits = router_logits.to(getattr(torch, self.scores_dtype))
        return logits.softmax(-1) if self.scores == "softmax" else logits.sigmoid()


SOFTMAX = RouterRule()  # OLMoE's
