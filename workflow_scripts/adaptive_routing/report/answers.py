"""The report's answers: what to use for which aim, and the tests behind it.

The rules are in `recommendations.py`; every sentence is chosen by the study's numbers, and none says
more than the tests and intervals do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from adaptive_routing.analysis import recommendations as rules
from adaptive_routing.analysis.study import SIGNIFICANCE_LEVEL
from adaptive_routing.report import words
from adaptive_routing.report.costs import costs
from adaptive_routing.report.limits import certainty, same_compute, where_not
from adaptive_routing.report.sentences import MARGIN, margin_definition, subject, why_kept

if TYPE_CHECKING:
    from collections.abc import Iterator

    from adaptive_routing.analysis.recommendations import Margins
    from adaptive_routing.analysis.study import Study


def answers(study: Study, margins: Margins) -> Iterator[str]:
    """Yield the parts after the main sentences; nothing where nothing can be recommended."""
    if rules.obstacle(study):
        return
    decision = rules.decide(study, margins)
    if powerless := rules.powerless(study):
        yield _too_few_samples(powerless)
    yield "### What to use"
    yield _what_to_use(study, decision)
    yield f"*Same quality*: {margin_definition(study, margins)} (the margin, fixed in the settings)."
    yield "### What it costs"
    yield from costs(study, decision, margins)
    yield "### The tests behind these answers"
    yield from _evidence(study, decision, margins)
    yield "### Against fixed top-k at the same compute"
    yield same_compute(study)
    yield "### Where BH does not help"
    yield where_not(study)
    yield "### How sure one can be"
    yield from certainty(study, margins)


def _too_few_samples(powerless):
    parts = [
        f"on {dataset} ({words.plural(samples, 'sample')}; "
        f"{words.joined(map(words.strategy, strategies))} configurations)"
        for dataset, (strategies, samples) in powerless.items()
    ]
    return (
        f"**So few samples cannot show any difference** {words.joined(parts)}: if all samples differed in "
        "the same direction, the test's p, corrected by Holm, would still not be below "
        f"{SIGNIFICANCE_LEVEL}. That no loss is shown there says nothing."
    )


def _what_to_use(study, decision):
    rows = []
    for choice in decision.choices:
        if choice.reason == rules.SHOWN:
            use, why = words.code(choice.config), _why_shown(study, choice)
        else:
            use, why = f"{words.code(study.baseline)} (keep)", why_kept(study, choice).replace(MARGIN, "")
            if choice.candidate and choice.reason != rules.CONFLICT:
                why += f"; closest: {words.code(choice.candidate)}"
        rows.append((words.AIMS[choice.aim], use, why))
    rows.append(("adapt the number of experts, or fix it", *_adapt_or_fix(study)))
    return words.table(["aim", "use", "why"], rows)


def _why_shown(study, choice):
    config = choice.config
    if choice.aim == rules.QUALITY:
        return f"shown to be better on {words.joined(rules.better_on(study, config))}, worse on no data set"
    row = study.configurations.set_index("config").loc[config]
    if choice.aim == rules.COMPUTE:
        what = f"{row['avg_experts']:.2f} experts instead of {study.baseline_value('avg_experts'):.2f}"
    else:
        ratios = rules.speed_ratios(study).loc[config]
        what = f"{words.span_of(ratios, '.2f')} times the baseline's tokens/s, by data set"
    worse = rules.worse_on(study, config)
    small = f"; the loss on {words.joined(worse)} is shown, but smaller than the margin" if worse else ""
    return f"{what}; a loss beyond the margin is excluded on every data set{small}"


def _adapt_or_fix(study):
    """Whether BH or a fixed k is better at the same compute, in a cell or two."""
    if study.bh.empty:
        return "not answered", "no BH configuration"
    results = [r for r in (rules.same_compute(study, column) for column in words.measures(study)) if r]
    inside = sum(len(result.better) + len(result.worse) for result in results)
    if not inside:
        return "not answered", "no fixed top-k of this study runs as many experts as a BH configuration"
    better = sum(len(result.better) for result in results)
    why = (
        f"BH measured better than the line through top-k in {words.of(better, inside)} comparisons, untested"
    )
    if outside := len(results[0].outside):
        why += f"; {words.of(outside, len(study.bh))} BH configurations not comparable"
    return "measured, not tested", why


def _evidence(study, decision, margins):
    configs = [choice.config for choice in decision.choices if choice.reason == rules.SHOWN]
    configs += [choice.candidate for choice in decision.choices if choice.candidate]
    configs += [subject(study, decision, margins)[0]]
    configs = [config for config in dict.fromkeys(configs) if config is not None]
    if not configs:
        yield "No other configuration came near: the tables below hold every test."
        return
    rows = []
    for config in configs:
        for dataset in study.scored_datasets:
            c = study.comparison(config, dataset)
            if c is None:
                rows.append((words.code(config), dataset, *[words.NOTHING] * 6))
                continue
            digits = words.digits_of(study, dataset)
            rows.append(
                (
                    words.code(config),
                    words.score_of(study, dataset),
                    words.with_error(c, "value", digits),
                    words.with_error(c, "baseline_value", digits),
                    words.number(c["difference"], "+z" + digits)
                    + words.MARKS.get(study.verdict(config, dataset), ""),
                    words.interval(c, "+z" + digits),
                    words.p_value(c["p_holm"]),
                    _beyond_margin(c, margins),
                )
            )
    yield words.table(
        [
            "configuration",
            "score",
            "value",
            "baseline",
            "difference",
            "95 % interval",
            "p (Holm)",
            "loss beyond the margin",
        ],
        rows,
    )


def _beyond_margin(comparison, margins):
    """What the interval says of a loss beyond the margin."""
    if rules.excludes_loss(comparison, margins):
        return "excluded"
    return "shown" if rules.smallest_loss(comparison) > margins.of(comparison) else "possible"
