"""The language-model head as the model's own forward applies it, to hidden states that are already there.

Models do more than a product with the output embedding: Granite divides logits by `logits_scaling`, Cohere
multiplies them by `logit_scale`, others cap them. So the class's own `forward` runs, on a stand-in for the
model whose decoder gives the hidden states at once.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

import torch
from transformers.modeling_outputs import MoeModelOutputWithPast

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class _HeadOnly:
    """A stand-in for a model: everything is the model's own but the decoder, which gives known states."""

    def __init__(self, model, hidden):
        self._model, self._hidden = model, hidden
        setattr(self, model.base_model_prefix, self._decoder)

    def __getattr__(self, name):  # what the stand-in itself does not have
        return getattr(self._model, name)

    def _decoder(self, *args, **kwargs):
        return MoeModelOutputWithPast(last_hidden_state=self._hidden)


def head_logits(model: PreTrainedModel, hidden: torch.Tensor) -> torch.Tensor:
    """Logits of the next token after final hidden states (N, H): (N, V), as `model(...)` has them.

    Several threads may call it at once: nothing of the model changes.
    """
    forward = type(model).forward
    arguments = {"input_ids": torch.empty(1, len(hidden), dtype=torch.int64, device=hidden.device)}
    if "use_cache" in inspect.signature(forward).parameters:
        arguments["use_cache"] = False
    return forward(_HeadOnly(model, hidden[None]), **arguments).logits[0]
