"""Sequences of unequal length in one forward pass: one after another, without padding.

A packed pass has one row of tokens. Positions start anew with each sequence, and attention stays within it:
on a GPU in half precision through torch's attention for packed sequences, elsewhere by padding queries,
keys and values (and nothing else of the model) for torch's usual attention.
"""

from __future__ import annotations

import contextlib
import inspect
import threading
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface

from adaptive_routing.model.devices import to_device
from adaptive_routing.system.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any, Self

    from transformers import PreTrainedModel

PACKED_ATTENTION = "packed_sequences"
# torch 2.11 to 2.13 name the same thing in two ways.
_HAS_WINDOW = "window_size" in inspect.signature(varlen_attn).parameters


@dataclass(frozen=True)
class Packing:
    """How B sequences of N tokens in all stand in a row.

    Attributes:
        lengths: of the sequences.
        position_ids: (1, N) int64.
        offsets: (B + 1,) int32, where each sequence starts.
        padded: (N,) int64, each token's place among B rows of the longest length.
    """

    lengths: tuple[int, ...]
    position_ids: torch.Tensor
    offsets: torch.Tensor
    padded: torch.Tensor

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device) -> Self:
        """The packing of sequences of these lengths."""
        longest = max(lengths)
        positions = torch.cat([torch.arange(length) for length in lengths])
        rows = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
        offsets = torch.tensor([0, *lengths]).cumsum(0).int()
        tensors = positions[None], offsets, rows * longest + positions
        return cls(tuple(lengths), *(to_device(tensor, device) for tensor in tensors))


class _Current(threading.local):
    """The packing of the pass that is being made, in each thread."""

    packing = None


_current = _Current()
_switch = threading.Lock()
_users = weakref.WeakKeyDictionary()  # model: [its own attention, how many use the packed one]


def current_packing() -> Packing | None:
    """The `Packing` of the forward pass that this thread is making, or None where it is not a packed one."""
    return _current.packing


@contextlib.contextmanager
def packed_attention(model: PreTrainedModel) -> Iterator[None]:
    """Let a model's attention take one row of tokens for the sequences of a packing; several threads may."""
    with _switch:
        own, count = _users.get(model, (model.config._attn_implementation, 0))
        _users[model] = own, count + 1
        if not count:
            model.set_attn_implementation(PACKED_ATTENTION)
    try:
        yield
    finally:
        with _switch:
            own, count = _users[model]
            _users[model] = own, count - 1
            if count == 1:
                model.set_attn_implementation(own)
                del _users[model]


def forward_packed(model: PreTrainedModel, token_ids: torch.Tensor, packing: Packing) -> torch.Tensor:
    """Final hidden states (N, H) of packed sequences; token_ids: (N,) int64 on the model's device."""
    with packed_attention(model):
        _current.packing = packing
        try:
            output = model.base_model(
                input_ids=token_ids[None], position_ids=packing.position_ids, use_cache=False
            )
        finally:
            _current.packing = None
    return output.last_hidden_state[0]


@torch.inference_mode()
def check_packing(model: PreTrainedModel) -> None:
    """Raise InputError unless a packed sequence is computed as alone.

    Attention is told where sequences end; a model whose layers also mix tokens in other ways is not.
    """
    generator = torch.Generator().manual_seed(0)
    vocabulary = model.get_input_embeddings().num_embeddings
    first, second = torch.randint(0, vocabulary, (2, 8), generator=generator).to(model.device)  # ty: ignore[no-matching-overload]
    alone = forward_packed(model, second, Packing.of((8,), model.device)).float()
    behind = forward_packed(model, torch.cat([first, second]), Packing.of((8, 8), model.device))[8:].float()
    # Half precision rounds, and now and then selects another expert; what a sequence before does is more.
    tolerance = 0.01 if model.dtype == torch.float32 else 0.3
    if (behind - alone).norm() > tolerance * alone.norm():
        raise InputError(
            f"model: {type(model).__name__} mixes tokens by other means than attention, so that sequences "
            "cannot share a batch; allowed are models like OLMoE, Qwen2-MoE, Qwen3-MoE and Mixtral"
        )


def packed_attention_forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each packed sequence, for transformers' `AttentionInterface`.

    query: (1, heads, N, D); key, value: (1, key-value heads, N, D). Returns ((1, N, heads, D), None).
    """
    if kwargs.get("softcap") is not None or kwargs.get("s_aux") is not None:
        raise InputError("model: its attention has a softcap or sinks, which packed sequences cannot have")
    packing = _current.packing
    groups = query.shape[1] // key.shape[1]
    query, key, value = (one[0].transpose(0, 1) for one in (query, key, value))  # (N, heads, D)
    if groups > 1:
        key, value = (one.repeat_interleave(groups, 1) for one in (key, value))
    if query.device.type == "cuda" and query.dtype in (torch.bfloat16, torch.float16):
        output = _flash(packing, query, key, value, scaling, sliding_window)
    else:
        output = _padded(packing, query, key, value, scaling, sliding_window)
    return output[None], None


def _flash(packing, query, key, value, scaling, sliding_window):
    # A window of w tokens holds the token itself and the w - 1 before it.
    before = -1 if sliding_window is None else sliding_window - 1
    if not _HAS_WINDOW and before >= 0:
        return _padded(packing, query, key, value, scaling, sliding_window)
    causal = {"window_size": (before, 0)} if _HAS_WINDOW else {"is_causal": True}
    longest = max(packing.lengths)
    tensors = query, key, value, packing.offsets, packing.offsets
    return varlen_attn(*tensors, longest, longest, scale=scaling, **causal)  # ty: ignore[invalid-argument-type]


def _padded(packing, query, key, value, scaling, sliding_window):
    rows, longest = len(packing.lengths), max(packing.lengths)

    def pad(tensor):
        padded = tensor.new_zeros(rows * longest, *tensor.shape[1:])
        return padded.index_copy_(0, packing.padded, tensor).unflatten(0, (rows, longest)).transpose(1, 2)

    mask = None
    if sliding_window is not None and sliding_window < longest:
        ones = torch.ones(longest, longest, dtype=torch.bool, device=query.device)
        mask = ones.tril() & ones.triu(1 - sliding_window)
    # Padding stands behind every token of its row, where causal attention does not look.
    output = F.scaled_dot_product_attention(
        *map(pad, (query, key, value)), attn_mask=mask, is_causal=mask is None, scale=scaling
    )
    return output.transpose(1, 2).flatten(0, 1)[packing.padded]


AttentionInterface.register(PACKED_ATTENTION, packed_attention_forward)
