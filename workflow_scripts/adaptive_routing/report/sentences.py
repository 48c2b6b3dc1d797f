"""The sentences that open the report: at the same compute, why, against the baseline, what to use, its price.

The study's `Decision` chooses each of them, and none says more than the tests and intervals do.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from adaptive_routing.analysis import recommendations as rules
from adaptive_routing.analysis.study import SIGNIFICANCE_LEVEL, lower_is_better
from adaptive_routing.report import words
from adaptive_routing.report.same_compute import same_compute_sentences
from adaptive_routing.report.why import why_sentences

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd

    from adaptive_routing.analysis.recommendations import Choice, Decision, QualityMargins
    from adaptive_routing.analysis.study import Study

# Follows "within the margin". The first is replaced by its definition, the others are removed.
MARGIN = "{margin}"
# Follows "a loss beyond the margin" and is replaced by the margin's size; no definition is needed then.
MARGIN_SIZE = "{margin size}"

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
        rules.UNPROVEN: "no configuration is significantly better",
        rules.CONFLICT: "{candidate} is significantly better on {better} but worse on {worse}",
        rules.LOSES: (
            "every configuration that measured better on one data set is significantly worse on another"
        ),
    },
    rules.COMPUTE: {
        rules.NO_CANDIDATE: "no configuration runs fewer experts",
        rules.UNTESTED: "no configuration with fewer experts was compared on every data set",
        rules.UNPROVEN: f"no configuration with fewer experts is confirmed to be within the margin{MARGIN}",
        rules.LOSES: (
            "every tested configuration with fewer experts is significantly worse on at least one data set"
        ),
    },
    rules.SPEED: {
        rules.NO_CANDIDATE: "no configuration was faster on every data set",
        rules.UNMEASURED: "the baseline's speed was not measured",
        rules.UNREPEATED: "speeds were measured once, which is too little to rank them",
        rules.UNTESTED: "no faster configuration was compared on every data set",
        rules.UNPROVEN: f"no faster configuration is confirmed to be within the margin{MARGIN}",
        rules.LOSES: (
            "every tested configuration that was faster is significantly worse on at least one data set"
        ),
    },
}


def main_sentences(
    study: Study, margins: QualityMargins, null_checks: Mapping[str, pd.DataFrame] | None = None
) -> list[str]:
    """Return the report's main sentences, in Markdown (`words.plain` strips it).

    The first is about the comparison at the same compute wherever the study has an adaptive configuration;
    with controls a second says why. Three follow: the verdict against the baseline, what to use, what it
    costs. null_checks: see `why_sentences`.
    """
    opening = [*same_compute_sentences(study, margins), *why_sentences(study, null_checks)]
    if name := rules.obstacle(study):
        return [*opening, *_without_answer(study, name)]
    decision = rules.decide(study, margins)
    sentences = "\n".join(
        [
            *opening,
            adaptive_verdict(study, decision),
            _what_to_use(study, decision),
            _cost(study, decision, margins),
        ]
    )
    if MARGIN_SIZE in sentences:
        sentences = sentences.replace(MARGIN_SIZE, f" ({_margin_size(study, margins)})")
    else:
        sentences = sentences.replace(MARGIN, f" ({margin_definition(study, margins)})", 1)
    return sentences.replace(MARGIN, "").split("\n")


def why_kept(study: Study, choice: Choice) -> str:
    """Why the baseline is kept for an aim."""
    text, candidate = KEPT[choice.aim][choice.reason], choice.candidate
    if choice.reason == rules.CONFLICT and candidate:
        better = words.joined(rules.better_on(study, candidate))
        worse = words.joined(rules.worse_on(study, candidate))
        text = text.format(candidate=words.code(candidate), better=better, worse=worse)
    return text


def margin_definition(study: Study, margins: QualityMargins) -> str:
    """What "within the margin" means, for the kinds of scores that the study has."""
    size = _margin_size(study, margins)
    return f"the 95 % interval excludes a loss of more than {size} on every data set"


def _margin_size(study, margins):
    """The margin of each kind of score that the study has: 2 % of perplexity or 0.02 of accuracy."""
    kinds = {lower_is_better(score) for score in study.scores.values()}
    parts = [
        text
        for kind, text in (
            (True, f"{100 * margins.perplexity:g} % of perplexity"),
            (False, f"{margins.accuracy:g} of accuracy"),
        )
        if kind in kinds
    ]
    return " or ".join(parts)


def _without_answer(study, name):
    what = OBSTACLES[name].format(baseline=words.code(study.baseline))
    missing = len(rules.missing_experiments(study))
    experiments = words.plural(len(study.experiments), "experiment")
    return [
        f"This study cannot tell whether {words.adaptive_subject(study)} helps: {what}.",
        "No configuration can be recommended for any aim.",
        f"The tables hold what was measured: {experiments} on {words.joined(study.datasets)}"
        + (
            f"; {words.plural(missing, 'more experiment')} {'has' if missing == 1 else 'have'} no result."
            if missing
            else "."
        ),
    ]


def adaptive_verdict(study: Study, decision: Decision) -> str:
    """Say whether adaptive routing helps compared with the baseline."""
    outcomes = decision.outcomes
    noun, name = words.adaptive_noun(study), words.adaptive_subject(study)
    begins = words.capitalized(name)
    total = sum(map(len, outcomes.values()))
    experts = words.number(study.baseline_value("avg_experts"), ".2f")
    baseline = f"the baseline {words.code(study.baseline)} ({experts} experts per token and layer)"
    fewer_experts = set(rules.cheaper(study))

    def count(configs, verb):
        """So many adaptive configurations are ..., show ... or stay ..."""
        verb = {"are": "is", "show": "shows", "stay": "stays"}[verb] if len(configs) == 1 else verb
        return f"{words.of(len(configs), total, noun)} {verb}"

    match decision.verdict:
        case "absent":
            return (
                "This study does not say whether adaptive routing helps: it has no adaptive configuration to "
                f"compare with {baseline}."
            )
        case "better":
            fewer = len(fewer_experts & set(outcomes["better"]))
            return (
                f"{begins} beats {baseline}: {count(outcomes['better'], 'are')} significantly better on at "
                f"least one data set and significantly worse on none; {fewer or 'none'} of them "
                f"{'run' if fewer > 1 else 'runs'} fewer experts."
            )
        case "cheaper":
            fewer = fewer_experts & set(outcomes["same"])
            return (
                f"{begins} saves compute at the same quality: {count(fewer, 'stay')} within the "
                f"margin{MARGIN} of {baseline} with fewer experts; no {noun} is significantly better."
            )
        case "no gain":
            return (
                f"{begins} gains nothing here: {count(outcomes['same'], 'stay')} within the margin{MARGIN} "
                f"of {baseline}, but not with fewer experts, and no {noun} is significantly better."
            )
        case "open":
            lost = outcomes["worse"] + outcomes["mixed"]
            if not outcomes["mixed"] and 2 * len(lost) > total:
                return (
                    f"Against {baseline} {name} does not help: {count(lost, 'are')} significantly worse on "
                    "at least one data set and none is better; for "
                    f"{words.of(len(outcomes['open']), total)} equality is not confirmed."
                )
            return (
                f"Whether {name} helps is open: compared with {baseline}, {count(outcomes['open'], 'show')} "
                f"no significant difference, but a loss beyond the margin{MARGIN_SIZE} is not excluded"
                + (f"; {count(lost, 'are')} significantly worse on at least one data set." if lost else ".")
            )
        case "powerless":
            samples = words.span([samples for _, samples in rules.powerless(study).values()])
            return (
                f"Nothing can be said about {name} compared with {baseline}: with "
                f"{words.plural(samples, 'sample')} per data set, no difference can be significant at the "
                f"{100 * SIGNIFICANCE_LEVEL:g} % level."
            )
        case "mixed":
            gains, losses = (
                words.joined(
                    [d for d in study.scored_datasets if any(d in on(study, c) for c in outcomes["mixed"])]
                )
                for on in (rules.better_on, rules.worse_on)
            )
            return (
                f"{begins} helps on one data set and hurts on another: compared with {baseline}, "
                f"{count(outcomes['mixed'], 'are')} significantly better on {gains} but significantly worse "
                f"on {losses}."
            )
        case "worse":
            return (
                f"{begins} loses quality: compared with {baseline}, {count(outcomes['worse'], 'are')} "
                "significantly worse on at least one data set, and none is significantly better"
                f"{_without_equal(study)}."
            )
    return f"The data support no verdict on {name}: no {noun} was compared with {baseline} on every data set."


def _without_equal(study):
    """What the comparison with the baseline leaves open, as the end of a sentence."""
    below = len(rules.below_every_topk(study))
    if not below:
        return ""
    return (
        "; whether a fixed top-k with as few experts would lose as much is open for "
        f"{words.of(below, len(study.candidates))}, because the study has no such top-k"
    )


def _what_to_use(study, decision):
    choices = decision.choices
    shown = [choice for choice in choices if choice.reason == rules.SHOWN]
    if not shown:
        reasons = "; ".join(why_kept(study, choice) for choice in choices)
        return f"Keep {words.code(study.baseline)} for every aim: {reasons}."
    if len(shown) == len(choices) and len({choice.config for choice in shown}) == 1:
        return (
            f"Use {words.code(shown[0].config)} for every aim: it is significantly better, and of the "
            f"configurations within the margin{MARGIN} it runs the fewest experts and was the fastest."
        )
    by_config = {}
    for choice in shown:
        by_config.setdefault(choice.config, []).append(choice.aim)
    parts = [f"for {_aims(aims)}, use {words.code(config)}" for config, aims in by_config.items()]
    for choice in choices:
        if choice.reason != rules.SHOWN:
            name, why = words.code(study.baseline), why_kept(study, choice)
            parts.append(f"for {_aims([choice.aim])}, keep {name}, because {why}")
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}."


def _aims(aims):
    """Name aims: best quality, and for least compute and highest speed within the margin."""
    names = {rules.COMPUTE: "least compute", rules.SPEED: "highest speed"}
    parts = ["best quality"] if rules.QUALITY in aims else []
    if within := [names[aim] for aim in aims if aim in names]:
        parts.append(f"{words.joined(within)} within the margin{MARGIN}")
    return ", and for ".join(parts)


def subject(study: Study, decision: Decision, margins: QualityMargins) -> tuple[str | None, str | None]:
    """The configuration whose cost the report states, and how its sentence begins; or (None, None)."""
    quality, compute, speed = decision.choices
    for choice in (compute, quality, speed):
        if choice.reason == rules.SHOWN:
            return choice.config, f"{words.code(choice.config)}"
    if compute.reason == rules.UNPROVEN and compute.candidate:
        name = words.code(compute.candidate)
        close = rules.measured_within_margin(study, compute.candidate, margins)
        which = f"whose measured loss is within the margin{MARGIN}" if close else "without a significant loss"
        return compute.candidate, f"The cheapest configuration {which}, {name},"
    if quality.reason == rules.CONFLICT:
        return quality.candidate, words.code(quality.candidate)
    config = rules.least_loss(study, margins)
    if config:
        noun = words.adaptive_noun(study)
        return config, f"Of the {noun}s with fewer experts, {words.code(config)} loses least: it"
    return None, None


def _cost(study, decision, margins):
    config, opening = subject(study, decision, margins)
    if config is None:
        name = words.capitalized(words.adaptive_subject(study))
        noun = words.adaptive_noun(study)
        return f"{name} saves no experts: no {noun} compared with the baseline runs fewer."
    worse = rules.worse_on(study, config)
    better = rules.better_on(study, config)
    significant = [
        f"{word} on {words.joined(datasets)}"
        for word, datasets in (("better", better), ("worse", worse))
        if datasets
    ]
    verdict = (
        f"it is significantly {' and significantly '.join(significant)}"
        if significant
        else "no difference is significant on any data set"
    )
    if worse and all(rules.excludes_loss(study.comparison(config, d), margins) for d in worse):
        verdict += ", but by less than the margin"
    runs = compute_against_baseline(study, config)
    return f"{opening} {runs} and changes {changes(study, config)}; {verdict}."


def compute_against_baseline(study: Study, config: str) -> str:
    """A configuration's experts, FLOPs and speed against the baseline's, in words."""
    row = study.configurations.set_index("config").loc[config]
    beside = []
    flops = rules.flops_ratio(study, config)
    if math.isfinite(flops):
        beside.append(f"{abs(100 * (1 - flops)):.0f} % {'fewer' if flops < 1 else 'more'} FLOPs")
    speed = row.get("tokens_per_second", math.nan) / study.baseline_value("tokens_per_second")
    if math.isfinite(speed) and rules.speeds_repeated(study):
        beside.append(f"{speed:.2f} times the tokens/s")
    return (
        f"runs {row['avg_experts']:.2f} experts per token and layer instead of "
        f"{study.baseline_value('avg_experts'):.2f}" + (f" ({', '.join(beside)})" if beside else "")
    )


def changes(study: Study, config: str) -> str:
    """A configuration's change of score on each data set; the first interval says that it is one."""
    parts = []
    for dataset in study.scored_datasets:
        comparison = study.comparison(config, dataset)
        if comparison is not None:
            value, interval = words.change(comparison)
            label = "" if parts else "95 % interval "
            by = f"to {value} the baseline's" if value.endswith("times") else f"by {value}"
            parts.append(f"{words.score_of(study, dataset)} {by} ({label}{interval})")
    return words.joined(parts)
