"""Pooled: the largest router probabilities of all tokens of a sequence share the layer's budget.

In each layer the T tokens of a sequence have B = ⌊budget · T⌋ experts together. Each token gets min_k; the
rest of B goes to the largest probabilities (softmax over all E logits) among all token-expert pairs of the
sequence, up to max_k a token. Of equal ones the earlier token's comes first. Experts are those with the
largest choice scores. Source: Alloc-T of Alloc-MoE (Liu et al. 2026, arXiv 2604.08133), whose pool is all
tokens of a batch.

A token's number depends on the other tokens of its sequence, later ones included. A model cannot generate
text by this rule; it is an upper bound for rules that look at one token alone. The pool is one sequence,
never the batch, as results would depend on how sequences are batched. Where a model reads on from a key-value
cache, the pool is the tokens of that forward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import ClassVar

import torch

from adaptive_routing.routing.base import AdaptiveStrategy, ExpertWeighting, Selection, select_first
from adaptive_routing.routing.probabilities import router_probabilities


def pooled_counts(
    probabilities: torch.Tensor, lengths: Sequence[int], budget: float, min_k: int, max_k: int
) -> torch.Tensor:
    """Experts of each token: (N,) int64, from `min_k` to `max_k`.

    Args:
        probabilities: (N, at least `max_k` or E), the largest of each token, descending; negative where there
            is no expert to be had.
        lengths: tokens of each sequence; N in all, sequence after sequence.
        budget: mean number of experts of a sequence's tokens.
        min_k, max_k: limits of a token's number.
    """
    # As fractions of the decimal that the config file holds: 0.57 of 100 are 57.
    budgets = [int(Fraction(repr(float(budget))) * length) - min_k * length for length in lengths]
    candidates = probabilities[:, min_k:max_k]  # (N, C)
    size = candidates.shape[1]
    if not size:
        return torch.full(candidates.shape[:1], min_k, device=candidates.device)
    starts = torch.tensor([0, *lengths]).cumsum(0)[:-1] * size
    per_sequence = torch.stack([starts, torch.tensor(budgets), torch.tensor(lengths) * size])  # (3, S)
    per_sequence = _to_device(per_sequence, candidates.device)
    # With the size told, nobody waits for the device to count.
    num_pairs = candidates.numel()
    per_pair = per_sequence[:2].repeat_interleave(per_sequence[2], 1, output_size=num_pairs)
    start, budget_of_pair = per_pair  # (N · C,)
    # Sorted by probability, then by sequence: in each sequence, the pairs that come first are taken.
    values, order = candidates.reshape(-1).sort(descending=True, stable=True)
    if len(lengths) > 1:
        by_sequence = start[order].sort(stable=True).indices
        values, order = values[by_sequence], order[by_sequence]
    position = torch.arange(len(order), device=order.device) - start
    taken = (position < budget_of_pair) & (values >= 0)
    taken = torch.zeros_like(taken).scatter_(0, order, taken)
    return min_k + taken.view(-1, size).sum(-1)


def _to_device(tensor, device):
    """A copy on a device, for which nobody waits."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


@dataclass(frozen=True)
class Strategy(AdaptiveStrategy):
    """Pooled routing with `min_k` to `max_k` experts a token, `budget` on average.

    Outside these limits the nearest one is the average.
    """

    budget: float
    max_k: int
    min_k: int = 1
    weighting: ExpertWeighting = field(default_factory=ExpertWeighting)
    needs_lengths: ClassVar[bool] = True

    def select(self, router_logits: torch.Tensor, layer: int) -> Selection:
        """Select experts for the tokens of one sequence."""
        return self.select_sequences(router_logits, layer, (len(router_logits),))

    def select_sequences(self, router_logits: torch.Tensor, layer: int, lengths: Sequence[int]) -> Selection:
        choice, order = self.ranked(router_logits, layer)
        probabilities = router_probabilities(router_logits, choice).masked_fill(choice == -torch.inf, -1)
        probabilities = probabilities.topk(min(self.max_k, probabilities.shape[-1])).values
        counts = pooled_counts(probabilities, lengths, self.budget, self.min_k, self.max_k)
        return select_first(self, router_logits, order, counts, choice)
