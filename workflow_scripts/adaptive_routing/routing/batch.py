"""What was routed in a forward pass: tensors of all its tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np
import torch

from adaptive_routing.routing.base import order_by_logit

if TYPE_CHECKING:
    from adaptive_routing.routing.router_rule import RouterRule


@dataclass(frozen=True)
class BatchRouting:
    """Routing of one forward pass, padding left out.

    Attributes:
        router_logits: (N, L, E) in the model's dtype; N real tokens, sequence after sequence.
        experts: (N, L, K) int16, most significant first; unused slots hold E.
        weights: (N, L, K) in the model's dtype, as the experts got them.
        counts: (N, L) int16.
        packed: (N, L, ceil(E / 8)) uint8, the selection as bits (`pack_selection`).
        lengths: real tokens of each sequence of the batch.
        native: (N, L, ceil(E / 8)) uint8, the model's own selection, as `packed`; None unless asked for.
    """

    router_logits: torch.Tensor
    experts: torch.Tensor
    weights: torch.Tensor
    counts: torch.Tensor
    packed: torch.Tensor
    lengths: tuple[int, ...]
    native: torch.Tensor | None = None

    def tensors(self) -> tuple[torch.Tensor, ...]:
        """The tensors that there are, in the order of the attributes."""
        of_all = self.router_logits, self.experts, self.weights, self.counts, self.packed
        return of_all if self.native is None else (*of_all, self.native)

    @classmethod
    def of_tensors(cls, tensors: Iterable[torch.Tensor], lengths: Iterable[int]) -> Self:
        """Of what `tensors` gives."""
        router_logits, experts, weights, counts, packed, *native = tensors
        return cls(router_logits, experts, weights, counts, packed, tuple(lengths), *native)

    def replace_tensors(self, tensors: Iterable[torch.Tensor]) -> Self:
        """The same batch with other tensors, such as copies on the CPU."""
        return self.of_tensors(tensors, self.lengths)

    def tokens(self, tokens: slice | torch.Tensor, lengths: Iterable[int]) -> Self:
        """The routing of some tokens, a slice or indices: the sequences of the given lengths."""
        return self.of_tensors((tensor[tokens] for tensor in self.tensors()), lengths)

    @classmethod
    def joined(cls, parts: Sequence[BatchRouting], lengths: Iterable[int]) -> Self:
        """Parts that follow one another as one batch of sequences of the given lengths."""
        columns = zip(*(part.tensors() for part in parts), strict=True)
        return cls.of_tensors((torch.cat(column) for column in columns), lengths)


def pack_native_selection(router_logits: torch.Tensor, rule: RouterRule, native_top_k: int) -> torch.Tensor:
    """What a model's own router selects with logits (N, L, E), ties by lower index: as `pack_selection`."""
    packed = []
    for layer, logits in enumerate(router_logits.unbind(1)):  # one layer's order in memory at a time
        experts = order_by_logit(rule.choice(logits.float(), layer))[1][:, None, :native_top_k]
        packed.append(pack_selection(experts, router_logits.shape[-1]))
    return torch.cat(packed, 1)


def pack_selection(experts: torch.Tensor, num_experts: int) -> torch.Tensor:
    """Selected experts (N, L, K), unused slots E, as packed bits (N, L, ceil(E / 8)) uint8."""
    num_bytes = -(-num_experts // 8)
    if experts.device.type == "cpu":
        selected = np.zeros((*experts.shape[:2], num_experts + 1), bool)  # the last for unused slots
        np.put_along_axis(selected, experts.numpy().astype(np.int64), True, -1)
        return torch.from_numpy(np.packbits(selected[..., :-1], axis=-1, bitorder="little"))
    # One column more than there are bits, for the unused slots.
    selected = torch.zeros(*experts.shape[:2], num_bytes * 8 + 1, dtype=torch.uint8, device=experts.device)
    slots = torch.where(experts < num_experts, experts, num_bytes * 8).long()
    bits = selected.scatter_(-1, slots, 1)[..., :-1].unflatten(-1, (num_bytes, 8))
    values = 2 ** torch.arange(8, dtype=torch.uint8, device=experts.device)
    return (bits * values).sum(-1, dtype=torch.uint8)
