"""The three sentences that open the report: does BH help, what to use, what it costs.

Each is chosen by the study's `Decision`, and none says more than the tests and intervals do.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from adaptive_routing.analysis import recommendations as rules
from adaptive_routing.analysis.study import SIGNIFICANCE_LEVEL, lower_is_better
from adaptive_routing.report import words

if TYPE_CHECKING:
    from adaptive_routing.analysis.recommendations import Choice, Decision, Margins
    from adaptive_routing.analysis.study import Study

# Stands after each mention of the margin; the first becomes its definition.
MARGIN = "{margin}"

OBSTACLES = {
    "baseline": "the baseline {baseline} has no results",
    "comparisons": "no configuration was compared with the baseline {baseline}",
    "scores": "no data set of this study has a perplexity or an accuracy",
}

# Why the baseline is kept, by aim and reason.
KEPT = {
    rules.QUALITY: {
        rules.NO_CANDIDATE: "no configuration measured better on any data set",
        rules.UNTESTED: "no other configuration was compared on every data set",
        rules.UNPROVEN: "no configuration is shown to be better",
        rules.CONFLICT: "{candidate} is better on {better} but worse on {worse}",
        rules.LOSES: "those that measured better on one data set are shown to be worse on another",
    },
    rules.COMPUTE: {
        rules.NO_CANDIDATE: "none runs fewer experts",
        rules.UNTESTED: "none with fewer experts was compared on every data set",
        rules.UNPROVEN: f"none with fewer experts is shown to stay within the margin{MARGIN}",
        rules.LOSES: "every tested one with fewer experts is shown to be worse on at least one data set",
    },
    rules.SPEED: {
        rules.NO_CANDIDATE: "none was faster on every data set",
        rules.UNMEASURED: "the baseline's speed was not measured",
        rules.UNTESTED: "none that was faster was compared on every data set",
        rules.UNPROVEN: f"none that was faster is shown to stay within the margin{MARGIN}",
        rules.LOSES: "every tested one that was faster is shown to be worse on at least one data set",
    },
}


def main_sentences(study: Study, margins: Margins) -> list[str]:
    """Return the report's three main sentences, in Markdown (`words.plain` takes its marks away)."""
    if name := rules.obstacle(study):
        return _without_answer(study, name)
    decision = rules.decide(study, margins)
    sentences = "\n".join(
        [verdict_on_bh(study, decision), _what_to_use(study, decision), _price(study, decision, margins)]
    )
    sentences = sentences.replace(MARGIN, f" ({margin_definition(study, margins)})", 1)
    return sentences.replace(MARGIN, "").split("\n")


def why_kept(study: Study, choice: Choice) -> str:
    """Why an aim keeps the baseline."""
    text, candidate = KEPT[choice.aim][choice.reason], choice.candidate
    if choice.reason == rules.CONFLICT:
        better, worse = (words.joined(on(study, candidate)) for on in (rules.better_on, rules.worse_on))  # ty: ignore[invalid-argument-type]
        text = text.format(candidate=words.code(candidate), better=better, worse=worse)
    return text


def margin_definition(study: Study, margins: Margins) -> str:
    """The margin in words: on every data set at most so much of what the study measures."""
    kinds = {lower_is_better(score) for score in study.scores.values()}
    parts = [
        text
        for kind, text in (
            (True, f"{100 * margins.perplexity:g} % of perplexity"),
            (False, f"{margins.accuracy:g} of accuracy"),
        )
        if kind in kinds
    ]
    return f"95 % intervals exclude a loss of more than {words.joined(parts)} on every data set"


def _without_answer(study, name):
    what = OBSTACLES[name].format(baseline=words.code(study.baseline))
    missing = len(rules.missing_experiments(study))
    held = words.plural(len(study.experiments), "experiment")
    return [
        f"Whether BH helps cannot be said: {what}.",
        "No configuration can be recommended for any aim.",
        f"The tables hold what was measured: {held} on {words.joined(study.datasets)}"
        + (f"; {missing} more have no result." if missing else "."),
    ]


def verdict_on_bh(study: Study, decision: Decision) -> str:
    """Say whether BH helps."""
    outcomes = decision.bh_outcomes
    total = sum(map(len, outcomes.values()))
    experts = words.number(study.baseline_value("avg_experts"), ".2f")
    baseline = f"the baseline {words.code(study.baseline)} ({experts} experts per token and layer)"
    cheap = set(rules.cheaper(study))

    def count(configs, verb):
        """So many BH configurations are ..., or show ..."""
        verb = {"are": "is", "show": "shows", "stay": "stays"}[verb] if len(configs) == 1 else verb
        return (
            f"{words.of(len(configs), total)} BH {'configuration' if total == 1 else 'configurations'} {verb}"
        )

    match decision.bh:
        case "absent":
            return (
                f"This study does not say whether BH helps: it holds no BH configuration beside {baseline}."
            )
        case "better":
            fewer = len(cheap & set(outcomes["better"]))
            return (
                f"BH beats {baseline}: {count(outcomes['better'], 'are')} shown to be better on at least one "
                f"data set and worse on none, {fewer or 'none'} of them with fewer experts."
            )
        case "cheaper":
            fewer = cheap & set(outcomes["same"])
            return (
                f"BH saves compute at the same quality: {count(fewer, 'stay')} within the margin{MARGIN} of "
                f"{baseline} with fewer experts; none is shown to be better."
            )
        case "vain":
            return (
                f"BH gains nothing here: {count(outcomes['same'], 'stay')} within the margin{MARGIN} of "
                f"{baseline}, but not with fewer experts, and none is shown to be better."
            )
        case "open":
            lost = outcomes["worse"] + outcomes["mixed"]
            return (
                f"Whether BH helps is open: against {baseline}, {count(outcomes['open'], 'show')} neither a "
                f"gain nor a loss, yet a loss beyond the margin{MARGIN} is not excluded"
                + (f"; {count(lost, 'are')} shown to be worse on a data set." if lost else ".")
            )
        case "powerless":
            samples = words.span([samples for _, samples in rules.powerless(study).values()])
            return (
                f"Nothing can be said about BH against {baseline}: {words.plural(samples, 'sample')} a data "
                f"set cannot show any difference at the {100 * SIGNIFICANCE_LEVEL:g} % level."
            )
        case "mixed":
            gains, losses = (
                words.joined(
                    [d for d in study.scored_datasets if any(d in on(study, c) for c in outcomes["mixed"])]
                )
                for on in (rules.better_on, rules.worse_on)
            )
            return (
                f"BH helps on one data set and hurts on another: against {baseline}, "
                f"{count(outcomes['mixed'], 'are')} shown to be better on {gains} but worse on {losses}."
            )
        case "worse":
            return (
                f"BH does not help here: against {baseline}, {count(outcomes['worse'], 'are')} shown to be "
                f"worse on at least one data set, and none to be better{_without_equal(study)}."
            )
    return f"The data support no verdict on BH: none was compared with {baseline} on every data set."


def _without_equal(study):
    """What the comparison with the baseline leaves open, as the end of a sentence."""
    below = len(rules.below_every_topk(study))
    if not below:
        return ""
    return (
        f"; whether a top-k with as few experts would lose as much is open for "
        f"{words.of(below, len(study.bh))}, since the study has none"
    )


def _what_to_use(study, decision):
    choices = decision.choices
    shown = [choice for choice in choices if choice.reason == rules.SHOWN]
    if not shown:
        reasons = "; ".join(why_kept(study, choice) for choice in choices)
        return f"Keep {words.code(study.baseline)} for every aim: {reasons}."
    if len(shown) == len(choices) and len({choice.config for choice in shown}) == 1:
        return (
            f"Use {words.code(shown[0].config)} for every aim: it is shown to be better, and it runs fewest "
            f"experts and was fastest within the margin{MARGIN}."
        )
    by_config = {}
    for choice in shown:
        by_config.setdefault(choice.config, []).append(choice.aim)
    parts = [f"for {_aims(aims)} use {words.code(config)}" for config, aims in by_config.items()]
    for choice in choices:
        if choice.reason != rules.SHOWN:
            name, why = words.code(study.baseline), why_kept(study, choice)
            parts.append(f"for {_aims([choice.aim])} keep {name}, since {why}")
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}."


def _aims(aims):
    """Name aims: best quality, and for least compute and highest speed within the margin."""
    names = {rules.COMPUTE: "least compute", rules.SPEED: "highest speed"}
    parts = ["best quality"] if rules.QUALITY in aims else []
    if within := [names[aim] for aim in aims if aim in names]:
        parts.append(f"{words.joined(within)} within the margin{MARGIN}")
    return ", and for ".join(parts)


def subject(study: Study, decision: Decision, margins: Margins) -> tuple[str | None, str | None]:
    """The configuration whose price the report states first and how it is introduced, or (None, None)."""
    quality, compute, speed = decision.choices
    for choice in (compute, quality, speed):
        if choice.reason == rules.SHOWN:
            return choice.config, f"{words.code(choice.config)}"
    if compute.reason == rules.UNPROVEN:
        return compute.candidate, f"The cheapest without a shown loss, {words.code(compute.candidate)},"
    if quality.reason == rules.CONFLICT:
        return quality.candidate, words.code(quality.candidate)
    config = rules.least_loss(study, margins)
    if config:
        return config, f"Of the BH configurations with fewer experts {words.code(config)} loses least: it"
    return None, None


def _price(study, decision, margins):
    config, opening = subject(study, decision, margins)
    if config is None:
        return (
            "There is no saving to price: no BH configuration compared with the baseline runs fewer experts."
        )
    worse = rules.worse_on(study, config)
    better = rules.better_on(study, config)
    shown = [
        f"{word} on {words.joined(datasets)}"
        for word, datasets in (("better", better), ("worse", worse))
        if datasets
    ]
    verdict = (
        f"it is shown to be {' and '.join(shown)}" if shown else "no difference is shown on any data set"
    )
    if worse and rules.within_margin(study, config, margins):
        verdict += ", by less than the margin"
    runs = compute_against_baseline(study, config)
    return f"{opening} {runs} and changes {changes(study, config)}; {verdict}."


def compute_against_baseline(study: Study, config: str) -> str:
    """What a configuration runs, in words: experts, FLOPs and speed against the baseline's."""
    row = study.configurations.set_index("config").loc[config]
    beside = []
    flops = rules.flops_ratio(study, config)
    if math.isfinite(flops):
        beside.append(f"{abs(100 * (1 - flops)):.0f} % {'fewer' if flops < 1 else 'more'} FLOPs")
    speed = row.get("tokens_per_second", math.nan) / study.baseline_value("tokens_per_second")
    if math.isfinite(speed):
        beside.append(f"{speed:.2f} times the tokens/s")
    return (
        f"runs {row['avg_experts']:.2f} experts per token and layer instead of "
        f"{study.baseline_value('avg_experts'):.2f}" + (f" ({', '.join(beside)})" if beside else "")
    )


def changes(study: Study, config: str) -> str:
    """A configuration's change of score on each data set, with intervals; the first says what they are."""
    parts = []
    for dataset in study.scored_datasets:
        comparison = study.comparison(config, dataset)
        if comparison is not None:
            value, interval = words.change(comparison)
            what = "" if parts else "95 % interval "
            parts.append(f"{words.score_of(study, dataset)} by {value} ({what}{interval})")
    return words.joined(parts)
