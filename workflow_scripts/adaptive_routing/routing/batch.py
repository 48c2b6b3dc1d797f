"""What was routed in a forward pass: tensors of all its tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch


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
    """

    router_logits: torch.Tensor
    experts: torch.Tensor
    weights: torch.Tensor
    counts: torch.Tensor
    packed: torch.Tensor
    lengths: tuple[int, ...]

    def tensors(self) -> tuple[torch.Tensor, ...]:
        """The tensors, in the order of the attributes."""
        return self.router_logits, self.experts, self.weights, self.counts, self.packed

    def replace_tensors(self, tensors: Iterable[torch.Tensor]) -> BatchRouting:
        """The same batch with other tensors, such as copies on the CPU."""
        return BatchRouting(*tensors, self.lengths)

    def tokens(self, tokens: slice | torch.Tensor, lengths: Iterable[int]) -> BatchRouting:
        """The routing of some tokens, a slice or indices: the sequences of the given lengths."""
        return BatchRouting(*(tensor[tokens] for tensor in self.tensors()), tuple(lengths))

    @classmethod
    def joined(cls, parts: Sequence[BatchRouting], lengths: Iterable[int]) -> Self:
        """Parts that follow one another as one batch of sequences of the given lengths."""
        columns = zip(*(part.tensors() for part in parts), strict=True)
        return cls(*(torch.cat(column) for column in columns), tuple(lengths))


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
