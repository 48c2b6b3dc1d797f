"""Before anything is computed: a model's passes here are those of its own forward.

Two questions, on a few random tokens. Does each layer's attention see what a packed pass lets it see? The
masks that the model makes for itself tell, exactly and in any dtype. And are the logits of a pass, packed or
not, those of `model(...)`? Windows are narrowed for both, so that a few tokens reach beyond them: a window of
another width is the same code.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from typing import TYPE_CHECKING

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from adaptive_routing.model.head import head_logits
from adaptive_routing.model.packing import (
    Packing,
    forward_packed,
    packed_attention_forward,
    run_unpacked,
    runs_unpacked,
    set_packing,
)
from adaptive_routing.model.routers import find_routers
from adaptive_routing.system.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# The largest norm of a position's difference, against that of its logits about their mean. Rounding makes
# some 1e-6 in float32 and 0.03 in half precision; a head that leaves out a factor makes more than 0.3, and
# what mixes tokens wrongly is seen before. Experts are those of the model's own pass: that rounding now and
# then selects another one is no difference here.
# The same for the head alone, from the same hidden states: what is left is the logits' own rounding.
HEAD_TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 0.01, torch.float16: 0.01}
TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.1}
LENGTHS = (5, 21, 1, 16)
# The same tokens, of which the second sequence ends early and the third one continues it.
_CONTINUED = (5, 9, 12, 1, 16), {2: (1, 9)}
_WINDOW = 8
_RECORDING = "records_masks"
# What attention may be told besides: none of it changes what it computes.
_HARMLESS = {
    "position_ids", "cache_position", "past_key_values", "use_cache", "output_attentions", "is_causal",
    "output_hidden_states", "output_router_logits", "return_dict", "position_embeddings",
}  # fmt: skip


class _Seen(threading.local):
    """What the layers' attention has been given in the pass under way: a list, None where nobody asks."""

    calls: list | None = None


_seen = _Seen()


@torch.inference_mode()
def check_parity(model: PreTrainedModel) -> None:
    """Have a model run packed where it can, else sequence by sequence, which stderr then says once.

    Raises:
        InputError: not even so are its logits those of its own forward.
    """
    if model.base_model is model:
        raise InputError(
            f"model: {type(model).__name__} does not tell its decoder from its head; allowed are the "
            "families that docs/models.md lists"
        )
    vocabulary = model.get_input_embeddings().num_embeddings
    generator = torch.Generator().manual_seed(0)
    token_ids = torch.randint(0, vocabulary, (sum(LENGTHS),), generator=generator)  # ty: ignore[no-matching-overload]
    token_ids = token_ids.to(model.device)
    with _narrow_windows(model):
        own, hidden, routing = _own_pass(model, token_ids)
        difference = _relative(head_logits(model, hidden).float(), own)
        if difference > HEAD_TOLERANCES[model.dtype]:
            raise InputError(
                f"model: the logits of {type(model).__name__} differ by {difference:.2g} of their norm from "
                "what its head makes of its last hidden states; allowed are the families that "
                "docs/models.md lists"
            )
        reason = _why_not_packed(model, token_ids[: LENGTHS[1]])
        if not reason:
            with _routed_as(model, routing):
                difference = _difference(model, token_ids, own)
            if difference > TOLERANCES[model.dtype]:
                reason = (
                    f"packed, its logits differ by {difference:.2g} of their norm from those of its own pass"
                )
        if not reason:
            return
        run_unpacked(model)
        if (difference := _difference(model, token_ids, own)) > TOLERANCES[model.dtype]:
            raise InputError(
                f"model: the logits of {type(model).__name__} differ by {difference:.2g} of their norm where "
                "its decoder runs without it; allowed are the families that docs/models.md lists"
            )
    print(f"{type(model).__name__} runs one sequence at a time, which is slower: {reason}", file=sys.stderr)


def _own_pass(model, token_ids):
    """A model's own logits (N, V) and last hidden states (N, H), and what each of its routers gave."""
    routers = find_routers(model)
    given = [[] for _ in routers]
    hidden = []
    handles = [
        router.register_forward_hook(lambda module, args, output, own=own: own.append(output))
        for router, own in zip(routers, given, strict=True)
    ]
    handles.append(
        model.base_model.register_forward_hook(
            lambda module, args, output: hidden.append(output.last_hidden_state[0])
        )
    )
    try:
        logits = torch.cat([_own_logits(model, one) for one in token_ids.split(LENGTHS)])
    finally:
        for handle in handles:
            handle.remove()
    return logits, torch.cat(hidden), [tuple(map(torch.cat, zip(*own, strict=True))) for own in given]


def _own_logits(model, token_ids):
    return model(input_ids=token_ids[None], use_cache=False).logits[0].float()


@contextlib.contextmanager
def _routed_as(model, routing):
    """Have a model's routers give what `_own_pass` found, whatever rounding makes of their inputs."""
    handles = [
        router.register_forward_hook(lambda module, args, output, given=given: given)
        for router, given in zip(find_routers(model), routing, strict=True)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _difference(model, token_ids, own):
    """`_relative` of the logits of a pass as experiments make it."""
    lengths, beginnings = (LENGTHS, None) if runs_unpacked(model) else _CONTINUED
    hidden = forward_packed(model, token_ids, Packing.of(lengths, model.device, beginnings))
    return _relative(head_logits(model, hidden).float(), own)


def _relative(logits, own):
    """The largest difference from a model's own logits (N, V), position by position, in parts of their norm.

    Infinite where they are finite and the others are not. Positions where its own are not finite tell nothing
    here; an experiment says that of the sample that it is true of.
    """
    is_finite = own.isfinite().all(-1)
    if not is_finite.any():
        return 0.0
    logits, own = logits.to(own.device)[is_finite], own[is_finite]
    scale = (own - own.mean(-1, keepdim=True)).norm(dim=-1).clamp(min=1e-30)
    worst = ((logits - own).norm(dim=-1) / scale).max()
    return float(worst) if worst.isfinite() else float("inf")


def _why_not_packed(model, token_ids):
    """Why a model's sequences cannot be packed, in half a sentence; None where nothing says so."""
    calls = _attention_calls(model, token_ids)
    config = model.config.get_text_config()
    layers = config.num_hidden_layers
    if len(calls) != layers or len({layer for layer, *_ in calls}) != layers:
        found = len({layer for layer, *_ in calls})
        return f"{found} of its {layers} layers have attention; others may mix tokens by other means"
    if any(isinstance(module, torch.nn.Conv1d) for module in model.base_model.modules()):
        return "it mixes tokens by convolutions"
    if any(hasattr(module, "index_topk") for module in model.modules()):
        return "an index selects the tokens that its attention sees"
    kinds = getattr(config, "layer_types", None) or [None] * layers
    for layer, mask, window, others in calls:
        if others:
            return f"its attention takes {', '.join(sorted(others))}"
        if kinds[layer] not in (None, "full_attention") and window is None:
            return f"layer {layer} has {kinds[layer].replace('_', ' ')} of which the attention is not told"
        if mask is not None and not torch.equal(mask, _expected_mask(len(token_ids), window, mask.device)):
            return f"the attention of layer {layer} sees other tokens than it is told"
    return None


def _expected_mask(length, window, device):
    mask = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    return mask if window is None else mask.triu(1 - window)


def _attention_calls(model, token_ids):
    """(layer, mask (N, N) bool or None, window, names of what else it was told) of each layer's attention."""
    own = model.config._attn_implementation
    model.set_attn_implementation(_RECORDING)
    _seen.calls = []
    try:
        with set_packing(Packing.of((len(token_ids),), model.device)):
            model.base_model(input_ids=token_ids[None], use_cache=False)
        return _seen.calls
    finally:
        _seen.calls = None
        model.set_attn_implementation(own)


def _record_attention(module, query, key, value, attention_mask, sliding_window=None, **kwargs):
    mask = attention_mask
    if mask is not None:
        mask = mask[0].amax(0)
        mask = mask if mask.dtype == torch.bool else mask == 0
    known = {"scaling", "dropout", "s_aux"} | _HARMLESS
    others = {name for name, value in kwargs.items() if value is not None and name not in known}
    assert _seen.calls is not None
    _seen.calls.append((getattr(module, "layer_idx", None), mask, sliding_window, others))
    return packed_attention_forward(
        module, query, key, value, attention_mask, sliding_window=sliding_window, **kwargs
    )


@contextlib.contextmanager
def _narrow_windows(model):
    """Windows of a few tokens, in the configuration and in the modules that have taken them from there."""
    config = model.config.get_text_config()
    own = []
    for holder in (config, *model.modules()):
        for name in ("sliding_window", "sliding_window_size"):
            if isinstance(window := vars(holder).get(name), int) and window > _WINDOW:
                own.append((holder, name, window))
    try:
        for holder, name, _ in own:
            setattr(holder, name, _WINDOW)
        yield
    finally:
        for holder, name, window in own:
            setattr(holder, name, window)


AttentionInterface.register(_RECORDING, _record_attention)
AttentionMaskInterface.register(_RECORDING, eager_mask)
