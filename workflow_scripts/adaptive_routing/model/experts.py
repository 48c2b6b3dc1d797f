"""Runs only the selected (token, expert) pairs, so that fewer experts is really less work.

Two experts implementations for transformers' `ExpertsInterface`: pairs are sorted by expert, each
expert's tokens go through it as one product, and the outputs are summed back per token. In `selected_pairs`
slots whose index is E (the number of experts) are unused and cost nothing; `all_slots` has none of those.
Every step is deterministic: no atomic additions.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from adaptive_routing.model.fused import gates_by_silu, kernels_for
from adaptive_routing.system.errors import InputError

if TYPE_CHECKING:
    from typing import Any

    from transformers import PreTrainedModel

SELECTED_PAIRS = "selected_pairs"
ALL_SLOTS = "all_slots"
_TOKENS = 4096  # that go through all experts at once: 1.6 GB of hidden states at OLMoE's shape in bfloat16


def check_experts(model: PreTrainedModel, num_routers: int) -> None:
    """Raise InputError unless each of a model's routers has experts that these implementations can run."""
    experts = routed_experts(model)
    if len(experts) != num_routers:
        raise InputError(
            f"model: {type(model).__name__} has {num_routers} routers, but {len(experts)} layers of experts "
            "whose computation transformers lets others replace; allowed are the families that "
            "docs/models.md lists"
        )


def routed_experts(model: PreTrainedModel) -> list[Any]:
    """The modules of a model's experts in layer order, whose computation transformers lets others replace."""
    # `has_gate` is set by transformers' `use_experts_implementation`.
    return [module for module in model.modules() if hasattr(module, "has_gate")]


def input_size(experts: Any) -> int:
    """The size H of the hidden states that one layer's experts read."""
    weight = experts.gate_up_proj if experts.has_gate else experts.up_proj
    return weight.shape[-2 if experts.is_transposed else -1]


def selected_pairs_forward(
    self: Any, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """Sum over selected experts of weight times expert(token); slots may be unused.

    Args:
        self: an experts module of transformers with `gate_up_proj` (E, 2F, H), or `up_proj` (E, F, H) where
            experts have no gate, and `down_proj` (E, H, F); with biases, transposed, or with a norm of what
            each expert gives, as the module says.
        hidden_states: (T, H).
        top_k_index: (T, K) int64; E marks an unused slot.
        top_k_weights: (T, K).

    Returns:
        (T, H) in the dtype of `hidden_states`; zeros for a token without experts.
    """
    if kernels := kernels_for(hidden_states.device):
        return _run_slots(self, kernels, hidden_states, top_k_index, top_k_weights, all_used=False)
    used = top_k_index < self.num_experts  # (T, K)
    pair_token, pair_slot = used.nonzero(as_tuple=True)  # (P,), token-major; waits for the device
    pair_expert = top_k_index[pair_token, pair_slot]
    pair_weight = top_k_weights[pair_token, pair_slot].to(hidden_states.dtype)
    outputs, position = _run_pairs(self, hidden_states, pair_token, pair_expert)
    # Token t owns the pairs [first[t], first[t + 1]) in token-major order.
    per_token = used.sum(-1)
    first = per_token.cumsum(0) - per_token
    return F.embedding_bag(position, outputs, first, mode="sum", per_sample_weights=pair_weight)


def all_slots_forward(
    self: Any, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """As `selected_pairs_forward` where every slot is used, as in top-k: nothing waits for the device."""
    num_tokens, slots = top_k_index.shape
    if kernels := kernels_for(hidden_states.device):
        is_plain = self.has_gate and not (self.has_bias or self.is_transposed or _has_norm(self))
        if slots == self.num_experts and is_plain and gates_by_silu(self, kernels):
            return _run_every_expert(self, kernels, hidden_states, top_k_index, top_k_weights)
        return _run_slots(self, kernels, hidden_states, top_k_index, top_k_weights, all_used=True)
    pair_token = torch.arange(num_tokens, device=top_k_index.device).repeat_interleave(slots)
    outputs, position = _run_pairs(self, hidden_states, pair_token, top_k_index.reshape(-1))
    weights = top_k_weights.to(hidden_states.dtype)
    return F.embedding_bag(position.view(-1, slots), outputs, mode="sum", per_sample_weights=weights)


def _run_pairs(self, hidden_states, pair_token, pair_expert):
    """Each pair's token through its expert: outputs (P, H) sorted by expert, and each pair's row (P,)."""
    by_expert, group_ends = _group_by_expert(pair_expert, self.num_experts)
    # `index_select` is several times faster on a CPU than indexing with brackets.
    inputs = hidden_states.index_select(0, pair_token.index_select(0, by_expert))  # (P, H)
    expert = pair_expert.index_select(0, by_expert) if self.has_bias else None
    outputs = _expert_outputs(self, inputs, expert, group_ends)
    position = torch.empty_like(by_expert)
    position[by_expert] = torch.arange(len(by_expert), device=by_expert.device)
    return outputs, position


def _expert_outputs(self, inputs, expert, group_ends):
    """What experts give for inputs (P, H) in their order: (P, H). Each one's expert is needed for biases."""

    # One call for all experts: on a CPU too, its loop over them is not Python's, so that other threads run.
    def product(inputs, name):
        weight = getattr(self, name)  # (E, out, in), or (E, in, out)
        weight = weight if self.is_transposed else weight.transpose(-2, -1)
        outputs = F.grouped_mm(inputs, weight, offs=group_ends)
        return outputs + getattr(self, f"{name}_bias").index_select(0, expert) if self.has_bias else outputs

    if not self.has_gate:
        hidden = self.act_fn(product(inputs, "up_proj"))  # (P, F)
    elif (kernels := kernels_for(inputs.device)) and gates_by_silu(self, kernels):
        hidden = kernels.silu_gate(product(inputs, "gate_up_proj"))
    else:
        hidden = self._apply_gate(product(inputs, "gate_up_proj"))
    outputs = product(hidden, "down_proj")  # (P, H)
    return self.post_expert_norm(outputs) if _has_norm(self) else outputs


def _has_norm(self):
    return getattr(self, "has_post_expert_norm", False)  # newer than transformers 5.17


def _run_slots(self, kernels, hidden_states, top_k_index, top_k_weights, all_used):
    """`selected_pairs_forward` by kernels: (T, H). Nothing waits for the device if all slots are used."""
    # Of a byte the radix sort looks at a byte. The number of experts, an unused slot, comes last.
    keys = top_k_index.reshape(-1).to(torch.uint8 if self.num_experts < 256 else torch.int16)
    expert, by_expert = torch.sort(keys, stable=True)
    numbers = _expert_numbers(self.num_experts, keys.dtype, keys.device)
    group_ends = torch.searchsorted(expert, numbers, right=True, out_int32=True)
    pairs = len(keys) if all_used else int(group_ends[-1])
    inputs, position = kernels.gather_pairs(hidden_states, by_expert[:pairs], top_k_index.shape[1])
    outputs = _expert_outputs(self, inputs, expert[:pairs].long() if self.has_bias else None, group_ends)
    weights = top_k_weights.to(hidden_states.dtype)
    return kernels.sum_slots(outputs, position, top_k_index, weights, self.num_experts, all_used)


@functools.cache
def _expert_numbers(num_experts, dtype, device):
    return torch.arange(num_experts, dtype=dtype, device=device)


def _run_every_expert(self, kernels, hidden_states, top_k_index, top_k_weights):
    """`all_slots_forward` where each token goes to all experts: two products for all of them.

    The second sums over experts too, so weights are multiplied with what goes into it.
    """
    weights = torch.empty_like(top_k_weights, dtype=hidden_states.dtype)
    weights.scatter_(1, top_k_index, top_k_weights.to(hidden_states.dtype))  # (T, E), by expert
    gate_up = self.gate_up_proj.flatten(0, 1)  # (E · 2F, H)
    down = self.down_proj.transpose(0, 1).flatten(1)  # (H, E · F)
    sums = []
    for states, scale in zip(hidden_states.split(_TOKENS), weights.split(_TOKENS), strict=True):
        hidden = F.linear(states, gate_up).view(scale.numel(), -1)  # (tokens · E, 2F)
        hidden = kernels.silu_gate(hidden, scale.view(-1)).view(len(states), -1)
        sums.append(F.linear(hidden, down))
    return torch.cat(sums)


def _group_by_expert(pair_expert, num_experts):
    """A stable order of pairs (P,) by expert (P,) int64, and where each expert's end in it (E,) int32."""
    if pair_expert.device.type == "cpu":
        # NumPy sorts small integers by radix, in a tenth of the time.
        keys = pair_expert.numpy().astype(np.uint8 if num_experts <= 256 else np.uint16)
        by_expert = torch.from_numpy(np.argsort(keys, kind="stable"))
        group_ends = torch.bincount(pair_expert, minlength=num_experts).cumsum(0)
        return by_expert, group_ends.to(torch.int32)
    sorted_expert, by_expert = torch.sort(pair_expert, stable=True)
    experts = torch.arange(num_experts, device=sorted_expert.device)
    return by_expert, torch.searchsorted(sorted_expert, experts, right=True, out_int32=True)


ALL_EXPERTS_FUNCTIONS.register(SELECTED_PAIRS, selected_pairs_forward)
ALL_EXPERTS_FUNCTIONS.register(ALL_SLOTS, all_slots_forward)
