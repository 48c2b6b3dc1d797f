"""Null distributions of a model in memory, as `NullDistribution.fit` makes them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch

from adaptive_routing.data.tokens import encode_text
from adaptive_routing.null_distribution.estimate import fit_null_distribution
from adaptive_routing.system.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from adaptive_routing.null_distribution.table import NullDistribution


def fit_to_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[str],
    kernel: str,
    bandwidth: str | float,
    trim: int,
    max_tokens: int,
    max_length: int,
    center: str,
) -> NullDistribution:
    """The arguments and the result are those of `NullDistribution.fit`."""
    router_logits, sequences, left = [], 0, max_tokens
    for text in texts:
        if text.strip():
            token_ids = encode_text(tokenizer, text)[: min(max_length, left)]
            router_logits.append(_router_logits(model, token_ids))
            sequences, left = sequences + 1, left - len(token_ids)
        if left <= 0:
            break
    if not router_logits:
        raise InputError("NullDistribution.fit: texts holds no text")
    layers = (torch.cat(parts).numpy() for parts in zip(*router_logits, strict=True))
    calibration = {"texts": sequences, "tokens": max_tokens - left, "max_length": max_length}
    return fit_null_distribution(layers, kernel, bandwidth, trim, {"calibration": calibration}, center)


@torch.inference_mode()
def _router_logits(model, token_ids):
    """Per MoE layer the router logits (T, E) of one text, float32 on the CPU."""
    input_ids = torch.tensor([token_ids], device=model.device)
    output = model.base_model(input_ids=input_ids, output_router_logits=True, use_cache=False)
    recorded = getattr(output, "router_logits", None)
    if not recorded:
        raise InputError(f"model: transformers records no router logits of {type(model).__name__}")
    return [logits.reshape(len(token_ids), -1).float().cpu() for logits in recorded]
