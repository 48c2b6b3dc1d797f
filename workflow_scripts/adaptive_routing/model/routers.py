"""A model's routers, and the rule (`RouterRule`) that describes what they make of their logits.

A rule is accepted only where it reproduces the routers' own indices and weights, layer by layer, on random
hidden states, in float32 and in the dtype in use, at the model's own number of experts and at others.
"""

from __future__ import annotations

import copy
import inspect
import itertools
import weakref
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from adaptive_routing.routing.router_rule import GROUP_SCORES, SCORES, RouterRule
from adaptive_routing.system.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_TOKENS = 64  # random hidden states a check
_SPREAD = 2.0  # standard deviation of their logits: softmax and sigmoid, and other rules, come apart
_BIASES = ("e_score_correction_bias", "expert_bias", "moe_statics.e_score_correction_bias")
_SCALES = ("routed_scaling_factor", "route_scale", "router_scaling_factor")
_ALLOWED = "allowed are the families that docs/models.md lists"
_rules = weakref.WeakKeyDictionary()  # model: (dtype, (rule, dtype of its logits, dtype of its weights))


def find_routers(model: PreTrainedModel) -> list[Any]:
    """The model's routers in layer order.

    Raises:
        InputError: the model has no router that transformers can record, or not one for each layer with
            experts.
    """
    recorded = (getattr(model, "_can_record_outputs", None) or {}).get("router_logits")
    recorders = recorded if isinstance(recorded, list | tuple) else [recorded]
    classes = tuple(
        getattr(recorder, "target_class", recorder) for recorder in recorders if recorder is not None
    )
    routers = [module for module in model.modules() if classes and isinstance(module, classes)]
    if not routers:
        raise InputError(
            f"model: {type(model).__name__} has no mixture-of-experts router that transformers can record; "
            f"{_ALLOWED}"
        )
    return routers


def native_top_k(model: PreTrainedModel) -> int:
    """The number of experts that a model's routers select.

    Raises:
        InputError: they do not tell one number.
    """
    numbers = {getattr(router, "top_k", None) for router in find_routers(model)}
    if len(numbers) > 1 or not isinstance(next(iter(numbers)), int):
        raise InputError(
            f"model: the routers of {type(model).__name__} do not tell one number of experts, but {numbers}; "
            f"{_ALLOWED}"
        )
    return numbers.pop()  # ty: ignore[invalid-explicit-return]


def find_rule(model: PreTrainedModel) -> RouterRule:
    """The `RouterRule` of a model's routers.

    Raises:
        InputError: no rule reproduces what they do.
    """
    known = _rules.get(model)
    if known is None or known[0] != model.dtype:
        known = _rules[model] = model.dtype, _find_rule(model)
    return known[1][0]


def router_dtypes(model: PreTrainedModel) -> tuple[torch.dtype, torch.dtype]:
    """The dtypes of a model's router logits and of the weights that its routers give: (logits, weights)."""
    find_rule(model)
    return _rules[model][1][1:]


@torch.inference_mode(False)
@torch.no_grad()
def _find_rule(model):
    parents = {child: parent for parent in model.modules() for child in parent.children()}
    native_top_k(model)
    routers = [StandaloneRouter(router, parents[router]) for router in find_routers(model)]
    # Float32 tells rules apart that agree in half precision.
    precise = [router.in_float32() for router in routers]
    sizes = {router.num_experts for router in routers}
    if len(sizes) > 1:
        raise InputError(f"model: {type(model).__name__} has layers of {sizes} experts; all must have one")
    for rule in _candidates(routers):
        bias = None if rule.bias is None else rule.bias.float()
        exact = replace(rule, scores_dtype="float32", bias=bias)
        in_float32 = [_reproduces(exact, layer, router) for layer, router in enumerate(precise)]
        if all(in_float32) and all(_reproduces(rule, layer, router) for layer, router in enumerate(routers)):
            logits, weights, _ = routers[0](routers[0].module.top_k)
            return rule, logits.dtype, weights.dtype
    raise InputError(
        f"model: {type(routers[0].module).__name__} selects or weights experts in a way that no rule for "
        f"routers describes, so that it cannot be replaced; {_ALLOWED}"
    )


class StandaloneRouter:
    """One layer's router, called as its block calls it, without hooks."""

    def __init__(self, module: Any, parent: Any) -> None:
        self.module, self.parent = module, parent
        self.extra = {}  # what the block hands it besides hidden states, such as a bias that is the block's
        for name in list(inspect.signature(module.forward).parameters)[1:]:
            if isinstance(value := getattr(parent, name, None), torch.Tensor):
                self.extra[name] = value
            elif inspect.signature(module.forward).parameters[name].default is inspect.Parameter.empty:
                raise InputError(
                    f"model: {type(module).__name__} chooses experts by {name} besides the hidden states, "
                    f"so that it cannot be replaced; {_ALLOWED}"
                )
        weight = next((one for one in module.parameters() if one.dim() == 2), None)
        if weight is None:
            raise InputError(f"model: {type(module).__name__} has no weights of experts; {_ALLOWED}")
        self.num_experts: int = getattr(module, "num_experts", weight.shape[0])
        self.hidden_size = weight.shape[-1]
        self.device, self.dtype = weight.device, getattr(parent, "dtype", weight.dtype)
        generator = torch.Generator().manual_seed(0)
        self._hidden = torch.randn(_TOKENS, weight.shape[-1], generator=generator).to(weight)
        spread = self.outputs(self._hidden)[0].float().std()
        if spread > 0:
            self._hidden = (self._hidden.float() * (_SPREAD / spread)).to(weight)

    def in_float32(self) -> StandaloneRouter:
        """The same router in float32."""
        other = copy.copy(self)
        other.module = copy.deepcopy(self.module).float()
        other.extra = {name: value.float() for name, value in self.extra.items()}
        other._hidden = self._hidden.float()
        return other

    def bias(self) -> torch.Tensor | None:
        """The bias of the choice, (E,), or None."""
        for name, holder in itertools.product(_BIASES, (self.module, self.parent)):
            value = holder
            for part in name.split("."):
                value = getattr(value, part, None)
            if isinstance(value, torch.Tensor):
                return value.detach().reshape(-1)
        return None

    def __call__(self, top_k: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(logits, weights, indices) of random hidden states, with another number of experts."""
        own = self.module.top_k
        self.module.top_k = top_k
        try:
            return self.outputs(self._hidden)
        finally:
            self.module.top_k = own

    def outputs(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(logits (T, E), weights (T, K), indices (T, K)) of hidden states (T, H)."""
        try:
            output = self.module.forward(hidden, **self.extra)  # without hooks
        except (ValueError, IndexError):  # it takes batches of sequences
            output = self.module.forward(hidden[None], **self.extra)
        if not (isinstance(output, tuple) and len(output) == 3):
            raise InputError(
                f"model: {type(self.module).__name__} does not return (logits, weights, indices); {_ALLOWED}"
            )
        logits, weights, indices = output
        if logits.shape != (len(hidden), self.num_experts) or weights.shape != indices.shape:
            raise InputError(
                f"model: {type(self.module).__name__} does not return the logits of all {self.num_experts} "
                f"experts and the weights of those selected; {_ALLOWED}"
            )
        return output


def _candidates(routers):
    """Rules that the routers' attributes allow for, simple ones first."""
    first = routers[0].module
    biases = [router.bias() for router in routers]
    bias = (
        None
        if any(one is None for one in biases)
        else torch.stack([one.to(biases[0].device) for one in biases])
    )
    scales = {1.0} | {
        float(value) for name in _SCALES if isinstance(value := getattr(first, name, None), int | float)
    }
    groups, kept = getattr(first, "num_group", None) or 1, getattr(first, "topk_group", None) or 1
    groupings = [{}]
    if kept < groups:
        groupings += [{"groups": groups, "groups_kept": kept, "group_score": score} for score in GROUP_SCORES]
    biased = [{}] if bias is None else [{}, *({"bias": bias, "bias_on_logits": on} for on in (False, True))]
    logits_dtype = str(routers[0](1)[0].dtype).removeprefix("torch.")
    for dtype, scores, scale, normalized, grouping, biasing in itertools.product(
        dict.fromkeys(("float32", logits_dtype)), SCORES, sorted(scales), (False, True), groupings, biased
    ):
        yield RouterRule(scores, dtype, normalized=normalized, scale=scale, **grouping, **biasing)


def _reproduces(rule, layer, router):
    """Whether a rule gives a router's own selection and weights, at its own number of experts and others."""
    seen = router.num_experts // rule.groups * rule.groups_kept
    own = router.module.top_k
    # At k = 1 weights that sum to 1 tell nothing; more than are seen, a router leaves open.
    for top_k in sorted({own, 1, min(2, seen), min(own + 1, seen), max(1, seen - 1)}):
        logits, weights, indices = router(top_k)
        if not logits.isfinite().all():
            continue  # damaged weights tell nothing of the rule; an experiment says where they show
        choice = rule.choice(logits, layer)
        # The values, not the indices: among equal ones torch.topk takes any.
        chosen = choice.gather(-1, indices).sort(-1, descending=True).values
        if not torch.allclose(chosen, choice.topk(top_k).values, rtol=1e-6, atol=1e-7):
            return False
        # bfloat16 keeps 8 bits of a weight.
        precise = weights.dtype == torch.float32 and logits.dtype == torch.float32
        expected = rule.weights(logits, indices)
        if not torch.allclose(weights.float(), expected, rtol=1e-4 if precise else 0.02, atol=1e-6):
            return False
    return True
