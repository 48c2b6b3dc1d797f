"""Adaptive expert routing in mixture-of-experts language models.

`import adaptive_routing` is instant: a name below imports what it needs when it is first used. These names
are stable; everything else in the package may move.
"""

import importlib

# Where each name is: the module, and what it is called there. By name, so that a module of the package, which
# all import this one, does not depend on all others.
_PLACES = {
    "BH": ("routing.bh", "Strategy"),
    "Confidence": ("routing.confidence", "Strategy"),
    "Entropy": ("routing.entropy", "Strategy"),
    "HigherCriticism": ("routing.hc", "Strategy"),
    "Layerwise": ("routing.layerwise", "Strategy"),
    "MinP": ("routing.minp", "Strategy"),
    "NullDistribution": ("null_distribution", "NullDistribution"),
    "Pooled": ("routing.pooled", "Strategy"),
    "RouterPatcher": ("model.patching", "RouterPatcher"),
    "RoutingLog": ("routing_log", "RoutingLog"),
    "SampleLogger": ("model.sample_logger", "SampleLogger"),
    "TopK": ("routing.topk", "Strategy"),
    "TopP": ("routing.topp", "Strategy"),
    "inspect_model": ("model.inspect", "inspect_model"),
    "load_model": ("model.load", "load_model"),
    "load_tokenizer": ("model.tokenizer", "load_tokenizer"),
}
__all__ = list(_PLACES)


def __getattr__(name):
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, own_name = _PLACES[name]
    found = getattr(importlib.import_module(f"{__name__}.{module}"), own_name)
    globals()[name] = found
    return found


def __dir__():
    return sorted({*globals(), *__all__})
