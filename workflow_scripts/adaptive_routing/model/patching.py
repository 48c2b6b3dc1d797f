"""Replaces the routers' selection in a Hugging Face mixture-of-experts model, and restores it.

Works on models whose router returns (logits, weights, indices) by a rule that `routers` knows. Forward hooks
do the replacement, so that nothing of the model is rewritten: removing them restores it. Routers have another
`top_k` while they run, and no longer. The model's own top-k is left untouched and only logged.
"""

from __future__ import annotations

import importlib
import inspect
import threading
import weakref
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from adaptive_routing.model.experts import ALL_SLOTS, SELECTED_PAIRS, check_experts
from adaptive_routing.model.moe_layers import MoeLayers
from adaptive_routing.model.packing import current_packing, current_sequence
from adaptive_routing.model.routers import find_routers, find_rule, native_top_k, router_dtypes
from adaptive_routing.routing import Selection
from adaptive_routing.routing.base import order_selected
from adaptive_routing.routing.batch import BatchRouting, pack_native_selection, pack_selection
from adaptive_routing.system.errors import InputError

if TYPE_CHECKING:
    from typing import Any, Self

    import numpy as np
    from numpy.typing import NDArray
    from transformers import PreTrainedModel

    from adaptive_routing.routing.base import RoutingStrategy


class _Pass(threading.local):
    """What a patcher knows of the forward pass that a thread is making; several threads may each make one.

    Attributes:
        columns: per layer so far, (router logits, experts, weights, counts).
        lengths: real tokens of each sequence.
        real_tokens: their places among all tokens, None where there is no padding.
        continues: whether the pass reads on from a key-value cache.
        parts: `BatchRouting` of sequences of the pass that have run on their own.
        expected: places (N,) of the next pass's tokens in the log of the data set.
        rows: those (T,) of the tokens that the model reads now.
        batch: `BatchRouting` of the thread's last pass, until it is taken.
    """

    def __init__(self) -> None:
        self.columns, self.lengths, self.real_tokens = [], [], None
        self.parts = []
        self.expected, self.rows = None, None
        self.continues, self.batch = False, None


@dataclass
class _ActivePatchers:
    """The patchers at work on one model, the innermost last: only that one acts."""

    experts_implementation: str  # the model's own
    stack: list


_active = weakref.WeakKeyDictionary()
_OF_SAMPLE_LOGGER = (
    "start_sample_logging",
    "end_sample_logging",
    "get_internal_logs",
    "get_aggregate_stats",
    "clear_internal_logs",
)


class RouterPatcher:
    """Routes a model by a strategy while it is in force.

    Use as a context manager, or with `patch()` and `restore()`. Nested patchers override each other;
    the model is as it was when the last one has been restored, also after an exception.

    `take_batch` gives what was routed. Logs by samples are a `SampleLogger`'s; its methods can be called on
    the patcher too, which then has one of its own.

    Args:
        model: a `PreTrainedModel` with (logits, weights, indices) routers.
        strategy: a routing strategy (`routing.make_strategy`). One with `needs_layers` is prepared for the
            model here; one with `needs_lengths` is told the lengths of sequences.
        pad_token_id: where the model is called without an attention mask, as lm-evaluation-harness's `HFLM`
            does (with 0), this token at a sequence's end counts as padding, which is not logged. Sequences
            that end in this token themselves lose it in the logs.

    Attributes:
        after_pass: functions that are called after each forward pass, with its `BatchRouting` and whether it
            read on from a key-value cache.
        with_native_selection: whether `take_batch` says too what the model itself would select; False unless
            set.
    """

    _sample: Any  # the open one, or None

    def __init__(
        self, model: PreTrainedModel, strategy: RoutingStrategy, pad_token_id: int | None = None
    ) -> None:
        self.model, self.pad_token_id = model, pad_token_id
        self.routers = find_routers(model)
        check_experts(model, len(self.routers))
        self.num_layers = len(self.routers)
        self.num_experts = self.routers[0].num_experts
        self.native_top_k = native_top_k(model)
        self.logits_dtype, self.weights_dtype = router_dtypes(model)
        if strategy.max_experts > self.num_experts:
            raise InputError(
                f"strategy: {strategy.max_experts} experts asked for, but the model has {self.num_experts}"
            )
        self.strategy = replace(strategy, weighting=strategy.weighting.of_router(find_rule(model)))  # ty: ignore[invalid-argument-type]
        if self.strategy.needs_layers:
            self.strategy = self.strategy.prepared(MoeLayers(model))
        self._is_native = (
            strategy.selects_top_k(self.native_top_k) and self.strategy.weighting.is_the_routers_own
        )
        self._base_model = model.base_model
        self._base_signature = inspect.signature(self._base_model.forward)
        self._depth = 0
        self._handles = []
        self._pass = _Pass()
        self.after_pass = []
        self.with_native_selection = False

    # Patching

    def patch(self) -> Self:
        """Put the strategy in force. Calls nest; each needs its own `restore()`."""
        self._depth += 1
        if self._depth > 1:
            return self
        own = self.model.config._experts_implementation
        _active.setdefault(self.model, _ActivePatchers(own, [])).stack.append(self)
        self._handles = [
            self._base_model.register_forward_pre_hook(self._before_forward, with_kwargs=True),
            self._base_model.register_forward_hook(self._after_forward),
        ]
        for layer, router in enumerate(self.routers):
            self._handles += [
                router.register_forward_pre_hook(self._before_router),
                router.register_forward_hook(self._after_router, always_call=True),
                router.register_forward_hook(self._router_hook(layer)),
            ]
        _set_experts_implementation(self.model)
        return self

    def restore(self) -> None:
        """Undo one `patch()`. Without one it does nothing."""
        if self._depth == 0:
            return
        self._depth -= 1
        if self._depth > 0:
            return
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._pass.columns, self._pass.real_tokens = [], None
        _active[self.model].stack.remove(self)
        _set_experts_implementation(self.model)
        if not _active[self.model].stack:
            del _active[self.model]

    def __enter__(self) -> Self:
        return self.patch()

    def __exit__(self, *_: object) -> None:
        self.restore()

    def expect(self, log_rows: NDArray[np.int64]) -> None:
        """Tell which tokens this thread's next forward pass reads; needed with `needs_rows` alone.

        log_rows: (N,) int64, their places in the log of the data set.
        """
        self._pass.expected = torch.from_numpy(log_rows)

    # Hooks

    def _is_innermost(self):
        return _active[self.model].stack[-1] is self

    def _before_forward(self, module, args, kwargs):
        if not self._is_innermost():
            return
        arguments = self._base_signature.bind_partial(*args, **kwargs).arguments
        arguments = {**arguments, **arguments.get("kwargs", {})}
        inputs = arguments.get("input_ids")
        inputs = inputs if inputs is not None else arguments["inputs_embeds"]
        batch_size, length = inputs.shape[:2]
        mask = arguments.get("attention_mask")
        if mask is not None and mask.dim() != 2:
            raise ValueError(f"attention_mask must be (batch, tokens), not {tuple(mask.shape)}")
        own, packing = self._pass, current_packing()
        cache = arguments.get("past_key_values")
        own.continues = cache is not None and cache.get_seq_length() > 0
        if mask is None and self.pad_token_id is not None and inputs.dim() == 2 and not own.continues:
            mask = _mask_of_padded(inputs, self.pad_token_id)
        if packing is not None and current_sequence() is None:
            own.lengths, own.real_tokens = packing.lengths, None  # ty: ignore[invalid-assignment]
        # With a key-value cache the mask covers the past too; the tokens of this pass are its last columns.
        elif mask is None:
            own.lengths, own.real_tokens = [length] * batch_size, None
        else:
            mask = mask[:, -length:].bool()
            own.lengths = mask.sum(-1).tolist()
            own.real_tokens = mask.reshape(-1).nonzero().squeeze(-1)
        own.columns, own.batch = [], None
        if self.strategy.needs_rows:
            own.rows = self._rows_read(own, inputs.device)

    def _rows_read(self, own, device):
        """The places (T,) of the tokens of this pass, or of its present sequence, in the data set's log."""
        if own.expected is None or own.real_tokens is not None:
            raise RuntimeError(
                "the strategy routes numbered tokens without padding; see RouterPatcher.expect"
            )
        sequence, packing, rows = current_sequence(), current_packing(), own.expected
        if sequence is not None and packing is not None:
            rows = rows.split(packing.lengths)[sequence]
        return rows.to(device)

    def _before_router(self, router, args):
        # What the router selects is not used then: one expert takes a CPU a fifth of the time of eight.
        if not self._is_native and self._is_innermost():
            router.top_k = 1

    def _after_router(self, router, args, output):
        router.top_k = self.native_top_k

    def _router_hook(self, layer):
        def hook(router, args, output):
            if not self._is_innermost():
                return None
            router_logits, weights, experts = output
            if self._is_native:
                self._record(router_logits, _native_selection(router_logits, experts, weights))
                return None
            selection = self._select(router_logits, layer)
            weights = selection.weights.to(weights.dtype)
            self._record(router_logits, Selection(selection.experts, weights, selection.counts))
            return router_logits, weights, selection.experts

        return hook

    def _select(self, router_logits, layer):
        strategy = self.strategy
        if strategy.needs_rows:
            return strategy.select_rows(router_logits, layer, self._pass.rows)
        if not strategy.needs_lengths:
            return strategy.select(router_logits, layer)
        lengths, real_tokens = self._pass.lengths, self._pass.real_tokens
        if real_tokens is None:
            return strategy.select_sequences(router_logits, layer, lengths)
        # Padding is no part of a sequence: the strategy does not see it, and it gets no experts.
        real_tokens = real_tokens.to(router_logits.device)
        of_real = strategy.select_sequences(router_logits[real_tokens], layer, lengths)
        num_tokens, num_experts = router_logits.shape

        def spread(tensor, unused):
            whole = tensor.new_full((num_tokens, *tensor.shape[1:]), unused)
            return whole.index_copy_(0, real_tokens, tensor)

        unused = (num_experts, 0, 0)
        of_real = of_real.experts, of_real.weights, of_real.counts
        return Selection(*map(spread, of_real, unused))

    def _record(self, router_logits, selection):
        experts, counts = selection.experts.to(torch.int16), selection.counts.to(torch.int16)
        self._pass.columns.append((router_logits, experts, selection.weights, counts))

    def _after_forward(self, module, args, output):
        own = self._pass
        if not self._is_innermost() or len(own.columns) != self.num_layers:
            return
        device = own.columns[0][0].device  # where those of layers on other devices meet
        columns = [
            torch.stack([of_layer.to(device) for of_layer in column], dim=1)
            for column in zip(*own.columns, strict=True)
        ]
        if own.real_tokens is not None:
            columns = [column[own.real_tokens.to(device)] for column in columns]
        columns.append(pack_selection(columns[1], self.num_experts))
        own.batch = BatchRouting.of_tensors((column.detach() for column in columns), own.lengths)
        own.columns = []
        if (sequence := current_sequence()) is not None:
            own.parts = [*(own.parts if sequence else []), own.batch]
            own.batch = None
            packing = current_packing()
            assert packing is not None  # as there is a sequence of it
            lengths = packing.lengths
            if len(own.parts) < len(lengths):
                return
            own.batch, own.parts = BatchRouting.joined(own.parts, lengths), []
        for function in self.after_pass:
            function(own.batch, own.continues)

    def take_batch(self) -> BatchRouting:
        """The routing of this thread's last forward pass (`BatchRouting`), handed out once."""
        if self._pass.batch is None:
            raise RuntimeError("no forward pass since the last take_batch()")
        batch, self._pass.batch = self._pass.batch, None
        if self.with_native_selection:
            rule = self.strategy.weighting.rule
            return replace(batch, native=pack_native_selection(batch.router_logits, rule, self.native_top_k))
        return batch

    def __getattr__(self, name: str) -> Any:
        if name not in _OF_SAMPLE_LOGGER:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        # By name: what routes a model does not depend on what logs it.
        logger = importlib.import_module("adaptive_routing.model.sample_logger").SampleLogger(self)
        self.__dict__ |= {method: getattr(logger, method) for method in _OF_SAMPLE_LOGGER}
        return self.__dict__[name]


def _mask_of_padded(input_ids, pad_token_id):
    """The attention mask (B, T) of sequences that are padded at their ends; each has one token at least."""
    is_real = (input_ids != pad_token_id).flip(-1).cumsum(-1).flip(-1) > 0
    is_real[:, 0] = True
    return is_real


def _native_selection(router_logits, experts, weights):
    """A router's own top-k in the order of the log: by logit, ties by index (torch.topk leaves it open)."""
    counts = torch.full(experts.shape[:1], experts.shape[1], device=experts.device)
    order = order_selected(router_logits.gather(-1, experts), experts)
    return Selection(experts.gather(-1, order), weights.gather(-1, order), counts)


def _set_experts_implementation(model):
    """The implementation that the innermost patcher needs; the model's own where it routes natively."""
    active = _active[model]
    routes_natively = not active.stack or active.stack[-1]._is_native
    if routes_natively:
        implementation = active.experts_implementation
    else:
        is_fixed = active.stack[-1].strategy.selects_fixed_number
        implementation = ALL_SLOTS if is_fixed else SELECTED_PAIRS
    model.set_experts_implementation(implementation)
