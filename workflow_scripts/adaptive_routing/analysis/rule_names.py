"""What rules and configurations are called in text and figures; in files it is `Configuration.name`."""

from __future__ import annotations

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


def strategy(name: str) -> str:
    """A strategy's name in text."""
    return STRATEGIES.get(name, name)


# What a strategy selects, after its name; formulas and sources: docs/strategies.md.
DEFINITIONS = {
    "hc": "runs as many experts as make Higher Criticism's statistic, √E (i/E − p₍ᵢ₎) / √(p₍ᵢ₎ (1 − p₍ᵢ₎)), "
    "largest over the ranks i ≤ β·E of a token's ascending p-values (auto: those with p₍ᵢ₎ < i/E)",
    "topp": "runs the fewest experts whose router probabilities sum to at least p",
    "minp": "runs the experts whose router probability is at least p times the token's largest",
    "confidence": "runs 4, 8 or 16 experts where a token's largest router probability exceeds 0.7, 0.5 or "
    "0.3, else max_k",
    "entropy": "halves max_k with each of the equal steps that the entropy of a token's router probabilities "
    "falls below ln E",
    "layerwise": "gives each layer a number of experts of its own, the same for every token; they sum to the "
    "budget and change the layers' outputs least on random inputs",
    "pooled": "runs the largest router probabilities of a whole sequence, as many as the budget times its "
    "tokens",
}

# Grid lists by their letter in a configuration's name: what stands before the value in text, and after it.
SETTINGS = {"a": "α {}", "p": "p {}", "b": "β {}", "s": "{} steps", "n": "null {}", "w": "{} weights"}


def definition(name: str) -> str:
    """What a strategy selects, as the rest of a sentence that its name begins."""
    limits = ", but at least min_k and at most max_k"
    text = DEFINITIONS.get(name)
    return f"{text}{limits}." if text else f"is defined in its module, `routing/{name}.py`."


def rule(family: str) -> str:
    """What to call one of `Study.families` in text: BH, BH (null centred), min-p (uniform weights)."""
    name, settings = _parts(family)
    return strategy(name) + (f" ({', '.join(settings)})" if settings else "")


def label(config: str) -> str:
    """What to call a configuration: `8experts_bh_a060` BH max_k 8, α 0.6, `8experts_topk_baseline` top-8."""
    experts, _, end = config.partition("experts_")
    if not end:
        return config
    name, settings = _parts(end)
    first = f"top-{experts}" if name == "topk" else f"{strategy(name)} max_k {experts}"
    return ", ".join([first, *settings])


def variant(end: str) -> str:
    """The same of what follows the number of experts, as in `Study.others`: `minp_p010` is min-p p 0.1."""
    name, settings = _parts(end)
    return f"{strategy(name)} {', '.join(settings)}".rstrip()


def numbers(end: str) -> list[str]:
    """Of these settings those that are numbers: α 0.3."""
    return [text for text in _parts(end)[1] if text[-1:].isdigit()]


def _parts(end):
    """(strategy, [setting, ...]) of a name without its number of experts."""
    name, *settings = end.split("_")
    return name, [_setting(name, one) for one in settings if one and one != "baseline"]


def _setting(name, text):
    """Inverse of `configurations._name`: a030 is α 0.3, nlarge is null large. What it cannot tell stays."""
    letter, value = text[0], text[1:]
    if letter == "b" and name in ("layerwise", "pooled"):
        return f"budget {value}" if len(value) < 3 or name == "layerwise" else text
    if value.isdigit() and (letter in "apb" or value[0] == "0"):
        value = f"{float(f'{value[0]}.{value[1:]}'):.4g}"  # of 1 at most, with two decimals or more
    elif letter not in "bnw" and not value.isdigit():
        return text  # no grid list: `shuffled`, the end of a control's name
    return SETTINGS.get(letter, f"{letter} {{}}").format(value)


def adaptive(study: Study) -> str:
    """What to call the adaptive configurations of a study: by their strategy where there is only one."""
    strategies = set(study.adaptive["strategy"])
    return strategy(strategies.pop()) if len(strategies) == 1 else "adaptive"


def only_rule(study: Study) -> str:
    """The rule of all configurations beside top-k; an empty text where there are several rules, or none."""
    families = set(map(study.family, study.beside_topk["config"]))
    return rule(families.pop()) if len(families) == 1 else ""


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
