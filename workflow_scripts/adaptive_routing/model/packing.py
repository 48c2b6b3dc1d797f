"""Sequences of unequal length in one forward pass: one after another, without padding.

A packed pass has one row of tokens. Positions start anew with each sequence, and attention stays within it:
on a GPU in half precision through torch's attention for packed sequences, elsewhere by padding queries,
keys and values (and nothing else of the model) for torch's usual attention.

Models that this cannot be done to run one sequence after another through their own forward: those whose
layers mix tokens by other means than attention, or whose attention sees something else than the tokens before
it, all or those of a window. `parity` finds out which.
"""

from __future__ import annotations

import contextlib
import inspect
import threading
import weakref
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface

from adaptive_routing.model.devices import to_device
from adaptive_routing.model.fused import fused_operations

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

    All stand on one device; `on` gives a copy on another.
    """

    lengths: tuple[int, ...]
    position_ids: torch.Tensor
    offsets: torch.Tensor
    padded: torch.Tensor
    _copies: dict[torch.device, Packing] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device) -> Self:
        """The packing of sequences of these lengths."""
        longest = max(lengths)
        positions = torch.cat([torch.arange(length) for length in lengths])
        rows = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
        offsets = torch.tensor([0, *lengths]).cumsum(0).int()
        tensors = positions[None], offsets, rows * longest + positions
        position_ids, offsets, padded = (to_device(tensor, device) for tensor in tensors)
        return cls(tuple(lengths), position_ids, offsets, padded)

    def on(self, device: torch.device) -> Packing:
        """The same packing on a device, copied once: layers of a model may stand on several."""
        if device == self.offsets.device:
            return self
        if device not in self._copies:
            self._copies[device] = Packing(
                self.lengths, self.position_ids.to(device), self.offsets.to(device), self.padded.to(device)
            )
        return self._copies[device]


class _Current(threading.local):
    """The packing of the pass that is being made, in each thread."""

    packing: Packing | None = None
    sequence = None  # the number of the sequence that runs on its own


_current = _Current()
_switch = threading.Lock()
_users = weakref.WeakKeyDictionary()  # model: (how many use it packed, what undoes its changes)
_unpacked = weakref.WeakSet()  # models whose sequences run on their own


def current_packing() -> Packing | None:
    """The `Packing` of the forward pass that this thread is making, or None where it is not a packed one."""
    return _current.packing


def current_sequence() -> int | None:
    """The number of the sequence that runs on its own in this thread; None where the pass is a packed one."""
    return _current.sequence


@contextlib.contextmanager
def set_packing(packing: Packing) -> Iterator[None]:
    """Make this thread's pass one of a packing."""
    _current.packing = packing
    try:
        yield
    finally:
        _current.packing = _current.sequence = None


def run_unpacked(model: PreTrainedModel) -> None:
    """From now on, have each sequence of a pass run on its own through the model's own forward."""
    _unpacked.add(model)


def runs_unpacked(model: PreTrainedModel) -> bool:
    """Whether a model's sequences run on their own."""
    return model in _unpacked


@contextlib.contextmanager
def packed_attention(model: PreTrainedModel) -> Iterator[None]:
    """Let a model's attention take one row of tokens for the sequences of a packing; several threads may.

    `fused_operations` are in use meanwhile. Nothing changes where the model runs unpacked.
    """
    if model in _unpacked:
        yield
        return
    with _switch:
        count, changes = _users.get(model) or (0, contextlib.ExitStack())
        if not count:
            changes.callback(model.set_attn_implementation, model.config._attn_implementation)
            model.set_attn_implementation(PACKED_ATTENTION)
            changes.enter_context(fused_operations(model))
        _users[model] = count + 1, changes
    try:
        yield
    finally:
        with _switch:
            count, changes = _users[model]
            _users[model] = count - 1, changes
            if count == 1:
                del _users[model]
                changes.close()


def forward_packed(model: PreTrainedModel, token_ids: torch.Tensor, packing: Packing) -> torch.Tensor:
    """Final hidden states (N, H) of packed sequences; token_ids: (N,) int64 on the model's first device.

    They stand on the device of its last layer.

    Of a model that runs unpacked, each sequence's own.
    """
    with set_packing(packing):
        if model in _unpacked:
            states = []
            for _current.sequence, one in enumerate(token_ids.split(packing.lengths)):
                states.append(model.base_model(input_ids=one[None], use_cache=False).last_hidden_state[0])
            return torch.cat(states)
        with packed_attention(model):
            output = model.base_model(
                input_ids=token_ids[None], position_ids=packing.position_ids, use_cache=False
            )
    return output.last_hidden_state[0]


def packed_attention_forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    s_aux: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each packed sequence, for transformers' `AttentionInterface`.

    query: (1, heads, N, D); key: (1, key-value heads, N, D); value: (1, key-value heads, N, D'); s_aux:
    (heads,), each head's sink, a logit that takes part in the softmax and has no value.
    Returns ((1, N, heads, D'), None).
    """
    assert _current.packing is not None  # `forward_packed` sets it
    packing = _current.packing.on(query.device)  # accelerate's hooks move a layer's arguments, not this
    groups = query.shape[1] // key.shape[1]
    query, key, value = (one[0].transpose(0, 1) for one in (query, key, value))  # (N, heads, D)
    if groups > 1:
        key, value = (one.repeat_interleave(groups, 1) for one in (key, value))
    is_half = query.device.type == "cuda" and query.dtype in (torch.bfloat16, torch.float16)
    if is_half and s_aux is None and query.shape == value.shape:
        output = _flash(packing, query, key, value, scaling, sliding_window)
    else:
        output = _padded(packing, query, key, value, scaling, sliding_window, s_aux)
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


def _padded(packing, query, key, value, scaling, sliding_window, sinks=None):
    rows, longest = len(packing.lengths), max(packing.lengths)

    def pad(tensor):
        padded = tensor.new_zeros(rows * longest, *tensor.shape[1:])
        return padded.index_copy_(0, packing.padded, tensor).unflatten(0, (rows, longest)).transpose(1, 2)

    query, key, value = map(pad, (query, key, value))  # (rows, heads, longest, D)
    mask: torch.Tensor | None = None
    if sinks is not None or (sliding_window is not None and sliding_window < longest):
        mask = torch.ones(longest, longest, dtype=torch.bool, device=query.device).tril()
        if sliding_window is not None:
            mask = mask.triu(1 - sliding_window)
    if sinks is not None:
        # A key more, of zeros, whose logit the mask gives: it has no value, and takes its share of the sum.
        key, value = (F.pad(one, (0, 0, 0, 1)) for one in (key, value))
        bias = query.new_zeros(longest, longest).masked_fill(~mask, -torch.inf)  # ty: ignore[unsupported-operator]
        sinks = sinks.to(query.dtype)[:, None, None].expand(-1, longest, 1)
        mask = torch.cat([bias.expand(len(sinks), -1, -1), sinks], -1)  # (heads, longest, longest + 1)
    # Padding stands behind every token of its row, where causal attention does not look.
    output = F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=mask is None, scale=scaling
    )
    return output.transpose(1, 2).flatten(0, 1)[packing.padded]


AttentionInterface.register(PACKED_ATTENTION, packed_attention_forward)
