"""What rules are called in sentences and figures."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from adaptive_routing.analysis.study import Study

STRATEGIES = {
    "bh": "BH",
    "topk": "top-k",
    "hc": "Higher Criticism",
    "topp": "top-p",
    "minp": "min-p",
    "confidence": "confidence steps",
    "entropy": "entropy steps",
    "layerwise": "layer-wise k",
    "pooled": "pooled top-B",
}


def family(config: str) -> str:
    """The rule that a configuration belongs to: its strategy, and what stands in its name beside numbers.

    `bh` for `8experts_bh_a030`, `bh_ncentred` for `8experts_bh_a030_ncentred`, `minp` for
    `16experts_minp_p010`, `hc_bauto` for `16experts_hc_bauto`.
    """
    return re.sub(r"_[a-z][0-9]+(?=_|$)", "", config.partition("experts_")[2] or config)


def strategy(name: str) -> str:
    """A strategy's name in text."""
    return STRATEGIES.get(name, name)


def rule(family: str) -> str:
    """What to call one of `Study.families` in text: BH, BH (null centred), min-p (uniform weights)."""
    name, *settings = family.split("_")
    texts = {"n": "null {}", "w": "{} weights", "b": "β {}"}
    beside = [texts.get(one[0], f"{one[0]} {{}}").format(one[1:]) for one in settings if one]
    return strategy(name) + (f" ({', '.join(beside)})" if beside else "")


def adaptive(study: Study) -> str:
    """What to call the adaptive configurations of a study: by their strategy where there is only one."""
    strategies = set(study.adaptive["strategy"])
    return strategy(strategies.pop()) if len(strategies) == 1 else "adaptive"


def adaptive_noun(study: Study) -> str:
    """What one of them is called: BH configuration, min-p configuration, adaptive configuration."""
    return f"{adaptive(study)} configuration"


def adaptive_subject(study: Study) -> str:
    """What they are called as the subject of a sentence: BH, min-p, adaptive routing."""
    name = adaptive(study)
    return "adaptive routing" if name == "adaptive" else name


def capitalized(text: str) -> str:
    """A text with its first letter in upper case, the rest as it is."""
    return text[:1].upper() + text[1:]
