"""Kernels in the place of a model's small operations, where they give the same; torch where there are none.

What a pass does between its matrix products only moves memory, and torch's operations move it several times:
on a GPU that took two thirds of a pass. `fused_operations` replaces a model's norms and its rotary
embedding, each compared with the kernel first, and takes the kernels out again.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import weakref
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from transformers import PreTrainedModel

_ROTARY = "apply_rotary_pos_emb"  # in the Python modules of transformers' families
_ROWS = 64  # of random numbers that operations are compared on
# The share of results that may differ in their last bit, since sums are taken in another order. In float32,
# where that is most of them, by how many such bits.
_DIFFERENT, _BITS_OF_FLOAT32 = 1e-3, 64

_replacements = weakref.WeakKeyDictionary()  # model: (dtype, its list of `_Replacement`)
_gates = weakref.WeakKeyDictionary()  # module of experts: whether its gate is that of the kernel


@functools.cache
def kernels_for(device: torch.device) -> ModuleType | None:
    """The module of kernels (`triton_kernels`) for tensors on a device; None where it cannot run."""
    if device.type != "cuda":
        return None
    try:
        from adaptive_routing.model import triton_kernels

        probe = torch.ones(1, 16, device=device)
        triton_kernels.rms_norm(probe, probe[0], 1.0)
    except Exception as error:  # no Triton, no C compiler for it, a GPU that it does not know
        reason = " ".join(str(error).split())[:200]
        print(f"passes take torch's own operations, which are slower: Triton says {reason}", file=sys.stderr)
        return None
    return triton_kernels


def score_targets(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """ln p of targets (P,) given logits (P, V), and the most likely tokens: (P,) float32, (P,) int64."""
    if kernels := kernels_for(logits.device):
        return kernels.score_targets(logits, targets)
    logits = logits.float()
    chosen = logits.gather(-1, targets[:, None]).squeeze(-1)
    return chosen - logits.logsumexp(-1), logits.argmax(-1)


def gates_by_silu(experts: Any, kernels: ModuleType) -> bool:
    """Whether a module of experts with gates computes them as `kernels.silu_gate` does."""
    if experts not in _gates:
        # Wide enough to see where a gate is cut off.
        values = 8 * _random(experts.down_proj, _ROWS, experts.gate_up_proj.shape[1 + experts.is_transposed])
        _gates[experts] = _agrees(experts._apply_gate, kernels.silu_gate, values)
    return _gates[experts]


@dataclass(frozen=True)
class _Replacement:
    """An attribute that stands for another while kernels are in use."""

    holder: Any
    name: str
    value: Callable[..., Any]


@contextlib.contextmanager
def fused_operations(model: PreTrainedModel) -> Iterator[None]:
    """Have kernels compute a model's norms and rotary embedding, those that they compute the same.

    Nothing changes where the model's device has no kernels. Not for several threads at once.
    """
    with contextlib.ExitStack() as replaced:
        for one in _replacements_of(model):
            if own := vars(one.holder).get(one.name):
                replaced.callback(setattr, one.holder, one.name, own)
            else:  # the forward of a norm is its class's
                replaced.callback(delattr, one.holder, one.name)
            setattr(one.holder, one.name, one.value)
        yield


def _replacements_of(model):
    if not kernels_for(model.device):
        return []
    known = _replacements.get(model)
    if known is None or known[0] != model.dtype:
        with torch.inference_mode():
            found = [*_norms(model), *_rotary_embeddings(model)]
        known = _replacements[model] = model.dtype, found
    return known[1]


def _norms(model):
    for norm in model.modules():
        eps = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
        # One that has a forward of its own has it from accelerate, which moves tensors between devices.
        if (
            not type(norm).__name__.endswith("RMSNorm")
            or not isinstance(eps, float)
            or "forward" in vars(norm)
        ):
            continue
        weight = getattr(norm, "weight", None)
        if weight is None or weight.dim() != 1 or not (kernels := kernels_for(weight.device)):
            continue
        forward = _norm_forward(norm, eps, kernels)
        if _agrees(norm.forward, forward, _random(weight, _ROWS, len(weight))):
            yield _Replacement(norm, "forward", forward)


def _norm_forward(norm, eps, kernels):
    own = norm.forward

    def forward(*args, **kwargs):
        values, weight = args[0] if args else None, norm.weight
        if values is None or len(args) > 1 or kwargs or values.dtype != weight.dtype:
            return own(*args, **kwargs)
        return kernels.rms_norm(values, weight, eps)

    return forward


def _rotary_embeddings(model):
    config, kernels = model.config.get_text_config(), kernels_for(model.device)
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    weight = next(model.parameters())
    states = _random(weight, 1, _ROWS, heads, size).transpose(1, 2)
    angles = _random(weight, 2, 1, _ROWS, size)
    for module in {sys.modules[type(one).__module__] for one in model.modules()}:
        if own := getattr(module, _ROTARY, None):
            rotate = _rotary_function(own, kernels)
            if _agrees(_first_of(own), _first_of(rotate), states, states, *angles):
                yield _Replacement(module, _ROTARY, rotate)


def _rotary_function(own, kernels):
    def apply_rotary_pos_emb(query, key, cosine, sine, *args, **kwargs):
        def fits(states):
            shape = 1, *states.shape[2:]
            is_alike = {states.dtype} == {cosine.dtype, sine.dtype} and shape == cosine.shape == sine.shape
            return is_alike and states.dim() == 4 and len(states) == 1 and states.stride(-1) == 1

        if args or kwargs or not (kernels_for(query.device) and fits(query) and fits(key)):
            return own(query, key, cosine, sine, *args, **kwargs)
        return kernels.rotate(query, cosine, sine), kernels.rotate(key, cosine, sine)

    return apply_rotary_pos_emb


def _first_of(function):
    return lambda *arguments: function(*arguments)[0]


def _random(like, *shape):
    """Normal random numbers on the device and of the dtype of a tensor, the same each time."""
    generator = torch.Generator().manual_seed(len(shape))
    return torch.randn(shape, generator=generator).to(like)


def _agrees(own, ours, *arguments):
    """Whether two functions give the same tensor but for some last bits."""
    try:
        expected = own(*arguments)
    except (TypeError, ValueError, RuntimeError, IndexError):  # it takes something else
        return False
    found = ours(*arguments)
    if expected.shape != found.shape or expected.dtype != found.dtype:
        return False
    bits = _BITS_OF_FLOAT32 if found.dtype == torch.float32 else 1
    few = bits > 1 or float((expected != found).float().mean()) <= _DIFFERENT
    return few and torch.allclose(found, expected, rtol=bits * torch.finfo(found.dtype).eps, atol=0.0)
