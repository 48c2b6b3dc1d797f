"""Sequences of unequal length in one forward pass: one after another, without padding.

A packed pass has one row of tokens. Positions start anew with each sequence, and attention stays within it:
on a GPU in half precision through torch's attention for packed sequences, elsewhere by padding queries,
keys and values (and nothing else of the model) for torch's usual attention. A sequence may continue the
beginning of another one, which then stands in the row once: it has fewer queries than keys.

Models that this cannot be done to run one sequence after another through their own forward: those whose
layers mix tokens by other means than attention, or whose attention sees something else than the tokens before
it, all or those of a window. `parity` finds out which.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import operator
import threading
import weakref
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface

from adaptive_routing.model.devices import to_device
from adaptive_routing.model.fused import fused_operations

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import Any, Self

    from numpy.typing import NDArray
    from transformers import PreTrainedModel

PACKED_ATTENTION = "packed_sequences"
# torch 2.11 to 2.13 name the same thing in two ways.
_HAS_WINDOW = "window_size" in inspect.signature(varlen_attn).parameters


@dataclass(frozen=True)
class _Padding:
    """Some sequences of a packing as rows of one length, for torch's usual attention.

    Attributes:
        queries: (n,) int64, their tokens in the pass.
        keys: (m,) int64, the tokens that they see, one sequence after another.
        query_places, key_places: (n,) and (m,) int64, places of these among the padded rows.
        before: (rows,) int64, how many tokens stand before each one's first query.
        query_shape, key_shape: rows and padded length.
        continues: whether any of `before` is not 0.
    """

    queries: torch.Tensor
    keys: torch.Tensor
    query_places: torch.Tensor
    key_places: torch.Tensor
    before: torch.Tensor
    query_shape: tuple[int, int]
    key_shape: tuple[int, int]
    continues: bool

    @classmethod
    def of(cls, queries, keys):
        """The padding of sequences, of which each one's tokens and what they see are given as arrays."""
        query_rows, query_places, query_shape = _pad(queries)
        key_rows, key_places, key_shape = _pad(keys)
        before = torch.tensor([len(seen) - len(own) for own, seen in zip(queries, keys, strict=True)])
        places = query_places, key_places
        return cls(query_rows, key_rows, *places, before, query_shape, key_shape, bool(before.any()))


def _pad(rows):
    """Rows one after another (n,), the place of each element where they have one length, and that shape."""
    lengths = np.array(list(map(len, rows)))
    longest = int(lengths.max())
    places = count_up(lengths, np.arange(len(rows)) * longest)
    return torch.from_numpy(np.concatenate(rows)), torch.from_numpy(places), (len(rows), longest)


def count_up(lengths: NDArray[np.int64], first: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each of some rows, so many numbers from its first one on, one row after another."""
    starts = np.cumsum(lengths) - lengths
    return np.arange(lengths.sum()) + np.repeat(first - starts, lengths)


@dataclass(frozen=True)
class Packing:
    """How B sequences of N tokens in all stand in a row.

    Attributes:
        lengths: of the sequences, without what they have in common with others.
        position_ids: (1, N) int64.
        offsets: (B + 1,) int32, where each sequence starts.
        keys: (K,) int64, the tokens that each sequence sees, one sequence after another; None where these are
            its own.
        key_offsets: (B + 1,) int32, where those of each sequence start.
        longest_key: the most tokens that one sees.
        seen: the tokens (in all K) that each sequence sees, on the CPU.
        continuing: numbers of the sequences that continue others.

    Tensors stand on one device; `on` gives a copy on another.
    """

    lengths: tuple[int, ...]
    position_ids: torch.Tensor
    offsets: torch.Tensor
    keys: torch.Tensor | None
    key_offsets: torch.Tensor
    longest_key: int
    seen: Sequence[NDArray[np.int64]] = field(repr=False)
    continuing: Sequence[int] = field(repr=False)
    _copies: dict[torch.device, Packing] = field(default_factory=dict, repr=False)

    @classmethod
    def of(
        cls,
        lengths: Sequence[int],
        device: torch.device,
        beginnings: Mapping[int, tuple[int, int]] | None = None,
    ) -> Self:
        """The packing of sequences of these lengths.

        beginnings: {number of a sequence: (number of another one, tokens)}, the first tokens of that other
        sequence, its own beginning included, which stand before this sequence too.
        """
        beginnings = beginnings or {}
        own_lengths = np.array(lengths)
        own = np.split(np.arange(own_lengths.sum()), np.cumsum(own_lengths)[:-1])
        seen: dict[int, NDArray[np.int64]] = {}

        def sees(number):
            if number not in seen:
                other, tokens = beginnings.get(number, (number, 0))
                seen[number] = np.concatenate([sees(other)[:tokens], own[number]]) if tokens else own[number]
            return seen[number]

        keys = [sees(number) for number in range(len(own))]
        key_lengths = np.array(list(map(len, keys)))
        packing = cls(
            tuple(lengths),
            torch.from_numpy(count_up(own_lengths, key_lengths - own_lengths))[None],
            _offsets(own_lengths),
            torch.from_numpy(np.concatenate(keys)) if beginnings else None,
            _offsets(key_lengths),
            int(key_lengths.max()),
            keys,
            sorted(beginnings),
        )
        return _copied(packing, functools.partial(to_device, device=device))

    @functools.cached_property
    def paddings(self) -> tuple[_Padding, ...]:
        """The sequences as padded rows: those that stand alone, and those that continue others."""
        queries = np.split(np.arange(sum(self.lengths)), np.cumsum(self.lengths)[:-1])
        alone = sorted(set(range(len(queries))) - set(self.continuing))
        paddings = (
            _Padding.of([queries[number] for number in group], [self.seen[number] for number in group])
            for group in (alone, self.continuing)
            if group
        )
        return tuple(
            _copied(one, functools.partial(to_device, device=self.offsets.device)) for one in paddings
        )

    def on(self, device: torch.device) -> Packing:
        """The same packing on a device, copied once: layers of a model may stand on several."""
        if device == self.offsets.device:
            return self
        if device not in self._copies:
            self._copies[device] = _copied(self, operator.methodcaller("to", device))
        return self._copies[device]


def _offsets(lengths):
    return torch.from_numpy(np.cumsum([0, *lengths], dtype=np.int32))


def _copied(packed, copy):
    """A `Packing` or `_Padding` with copies of its tensors."""
    values = {one.name: getattr(packed, one.name) for one in fields(packed)}
    copies: dict[str, Any] = {name: copy(value) for name, value in values.items() if torch.is_tensor(value)}
    if isinstance(packed, Packing):
        copies["_copies"] = {}
    return replace(packed, **copies)


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

    A sequence that continues another one's beginning sees that too.

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
    if packing.keys is not None:
        # A sequence's last query sees its last key, so that what it continues stands before all its queries.
        key, value = (one.index_select(0, packing.keys) for one in (key, value))
    offsets = packing.offsets, packing.key_offsets
    longest = max(packing.lengths), packing.longest_key
    return varlen_attn(query, key, value, *offsets, *longest, scale=scaling, **causal)  # ty: ignore[invalid-argument-type]


def _padded(packing, query, key, value, scaling, sliding_window, sinks=None):
    output = None
    for padding in packing.paddings:
        attended = _attend(padding, query, key, value, scaling, sliding_window, sinks)
        if len(attended) == len(query):
            return attended
        output = attended.new_empty(len(query), *attended.shape[1:]) if output is None else output
        output.index_copy_(0, padding.queries, attended)
    return output


def _attend(padding, query, key, value, scaling, sliding_window, sinks):
    """What the queries of a padding see: (n, heads, D')."""

    def pad(tensor, rows, places, shape):
        if len(rows) != len(tensor) or padding.continues:
            tensor = tensor.index_select(0, rows)
        padded = tensor.new_zeros(shape[0] * shape[1], *tensor.shape[1:])
        return padded.index_copy_(0, places, tensor).unflatten(0, shape).transpose(1, 2)

    query = pad(query, padding.queries, padding.query_places, padding.query_shape)
    key, value = (pad(one, padding.keys, padding.key_places, padding.key_shape) for one in (key, value))
    queries, keys = padding.query_shape[1], padding.key_shape[1]  # (rows, heads, queries or keys, D)
    mask: torch.Tensor | None = None
    is_narrow = sliding_window is not None and sliding_window < keys
    if padding.continues or sinks is not None or is_narrow:
        before = padding.before if padding.continues else padding.before[:1]  # 0 in every row
        position = before[:, None, None, None] + torch.arange(queries, device=query.device)[:, None]
        place = torch.arange(keys, device=query.device)
        mask = place <= position  # (rows or 1, 1, queries, keys)
        if is_narrow:
            mask &= place > position - sliding_window
    if sinks is not None and mask is not None:
        # A key more, of zeros, whose logit the mask gives: it has no value, and takes its share of the sum.
        key, value = (F.pad(one, (0, 0, 0, 1)) for one in (key, value))
        bias = query.new_zeros(mask.shape).masked_fill(~mask, -torch.inf)
        sinks = sinks.to(query.dtype)[:, None, None].expand(len(bias), -1, queries, 1)
        mask = torch.cat([bias.expand(-1, sinks.shape[1], -1, -1), sinks], -1)
    # Padding stands behind every token of its row, where causal attention does not look.
    output = F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=mask is None, scale=scaling
    )
    return output.transpose(1, 2).flatten(0, 1).index_select(0, padding.query_places)


AttentionInterface.register(PACKED_ATTENTION, packed_attention_forward)
