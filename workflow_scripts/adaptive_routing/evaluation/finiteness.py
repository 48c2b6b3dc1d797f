"""Detects NaN and infinity in what a model computes, without waiting for the device."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from adaptive_routing.system.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adaptive_routing.data.samples import PreparedSample
    from adaptive_routing.data.tasks import SequenceScore

_DAMAGED = "its weights are damaged: get the model again"
_REMEDIES = {
    torch.float16: "float16 ends at 65,504: set model.dtype: bfloat16 or float32",
    torch.bfloat16: f"set model.dtype: float32, or {_DAMAGED}",
    torch.float32: _DAMAGED,
}


def finite_total(router_logits: torch.Tensor) -> torch.Tensor:
    """The sum of the router logits, float32, on their device: not finite if any of them is not.

    This is one asynchronous reduction. The sum may overflow even where all logits are finite.
    """
    return router_logits.sum(dtype=torch.float32)


def check_finite(samples: Sequence[PreparedSample], router_logits: torch.Tensor, total: torch.Tensor) -> None:
    """Raise InputError if router logits are NaN or infinite; tensors are on the CPU.

    Args:
        samples: list of `samples.PreparedSample`.
        router_logits: (N, L, E) of all their N tokens, one sample after another.
        total: their `finite_total`; the logits are read only if it is not finite.
    """
    if torch.isfinite(total):
        return
    is_fault = ~torch.isfinite(router_logits)
    layers = is_fault.any(2).any(0).nonzero()
    if not len(layers):
        return
    layer = int(layers[0])  # later layers use this one's output
    token, expert = is_fault[:, layer].nonzero()[0].tolist()
    kind = "NaN" if router_logits[token, layer, expert].isnan() else "infinity"
    ends = torch.tensor([sample.num_own_tokens for sample in samples]).cumsum(0)
    sample = samples[int(torch.searchsorted(ends, token, right=True))]
    raise _error(sample, f"the router logits of layer {layer} hold {kind}", router_logits.dtype)


def check_scores(sample: PreparedSample, scores: Sequence[SequenceScore], dtype: torch.dtype) -> None:
    """Raise InputError if a sample's log-likelihoods (`SequenceScore`s) are NaN or infinite."""
    for score in scores:
        if not math.isfinite(score.log_likelihood):
            raise _error(sample, f"the log-likelihood is {score.log_likelihood}", dtype)


def _error(sample, fault, dtype):
    word = str(dtype).removeprefix("torch.")
    return InputError(f"{sample.sample_id}: {fault} when the model computes in {word}; {_REMEDIES[dtype]}")
