"""A model's routers and routed experts, each layer for itself, on hidden states of one's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from adaptive_routing.model.experts import all_slots_forward, input_size, routed_experts
from adaptive_routing.model.routers import StandaloneRouter, find_routers, native_top_k
from adaptive_routing.system.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class MoeLayers:
    """What `routing.layerwise` measures: routers and experts without what stands around them.

    Raises:
        InputError: routers and experts read hidden states of different sizes.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        parents = {child: parent for parent in model.modules() for child in parent.children()}
        self._routers = [StandaloneRouter(router, parents[router]) for router in find_routers(model)]
        self._experts = routed_experts(model)
        self.num_layers = len(self._routers)
        self.native_top_k = native_top_k(model)
        self.hidden_size = self._routers[0].hidden_size
        sizes = {router.hidden_size for router in self._routers} | set(map(input_size, self._experts))
        if len(sizes) > 1:
            raise InputError(
                f"strategies.layerwise: routers and experts of {type(model).__name__} read hidden states of "
                f"different sizes ({sorted(sizes)}), so that their sensitivity cannot be measured; choose "
                "another strategy"
            )

    def router_logits(self, layer: int, hidden: torch.Tensor) -> torch.Tensor:
        """Logits (T, E) of hidden states (T, H)."""
        router = self._routers[layer]
        return router.outputs(hidden.to(router.device, router.dtype))[0]

    def expert_outputs(self, layer: int, hidden: torch.Tensor, experts: torch.Tensor) -> torch.Tensor:
        """What experts (T, K) make of hidden states (T, H), without weights: (T, K, H)."""
        router, slots = self._routers[layer], experts.shape[1]
        hidden = hidden.to(router.device, router.dtype).repeat_interleave(slots, 0)
        ones = torch.ones(len(hidden), 1, device=hidden.device)
        return all_slots_forward(self._experts[layer], hidden, experts.reshape(-1, 1), ones).unflatten(
            0, (-1, slots)
        )
