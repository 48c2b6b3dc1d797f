"""The report's answers: which configuration to use for which aim, and the tests behind it.

The rules are in `analysis/recommendations.py`. The study's numbers choose every sentence, and none says more
than the tests and intervals do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from adaptive_routing.analysis import contrasts
from adaptive_routing.analysis import control_outcomes as controls
from adaptive_routing.analysis import recommendations as rules
from adaptive_routing.analysis.study import SIGNIFICANCE_LEVEL
from adaptive_routing.report import words
from adaptive_routing.report.costs import COST_HEADING, cost_section
from adaptive_routing.report.limits import (
    topk_curve_text,
    uncertainty_section,
    where_it_does_not_help,
)
from adaptive_routing.report.same_compute import same_compute_section, upper_bound
from adaptive_routing.report.sentences import MARGIN, margin_definition, subject, why_kept
from adaptive_routing.report.where import where_section
from adaptive_routing.report.why import why_section

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from adaptive_routing.analysis.recommendations import QualityMargins
    from adaptive_routing.analysis.study import Study


def answer_sections(
    study: Study,
    margins: QualityMargins,
    figures: Mapping[str, str] | None = None,
    null_check: Sequence[str] = (),
) -> Iterator[str]:
    """Yield the parts after the main sentences; without a recommendation only those about controls.

    figures: links to the figures `same_compute`, `decomposition` and `where`; null_check: see `why_section`.
    """
    figures = figures or {}
    if not rules.obstacle(study) and (powerless := rules.powerless(study)):
        yield _too_few_samples(powerless)
    yield from same_compute_section(study, margins, figures.get("same_compute"))
    yield from why_section(study, figures.get("decomposition"), null_check)
    if rules.obstacle(study):
        yield from where_section(study, figures.get("where"))
        return
    decision = rules.decide(study, margins)
    yield "### What to use"
    yield _what_to_use(study, decision, margins)
    yield f"*Same quality*: {margin_definition(study, margins)}. This margin is set in the config file."
    yield f"### {COST_HEADING}"
    yield from cost_section(study, decision, margins)
    yield from where_section(study, figures.get("where"))
    yield "### The tests behind these answers"
    yield _evidence(study, decision, margins)
    yield "### Beside the curve of fixed top-k"
    yield topk_curve_text(study)
    yield f"### Where {words.adaptive_subject(study)} does not help"
    yield where_it_does_not_help(study)
    yield "### Uncertainty"
    yield from uncertainty_section(study, margins)


def _too_few_samples(powerless):
    parts = [
        f"on {dataset} ({words.plural(samples, 'sample')}; "
        f"{words.joined(map(words.strategy, strategies))} configurations)"
        for dataset, (strategies, samples) in powerless.items()
    ]
    return (
        f"**Too few samples for any significant difference** {words.joined(parts)}: even if all samples "
        "differed in the same direction, the Holm-corrected p would not be below "
        f"{SIGNIFICANCE_LEVEL}. The lack of a significant loss there is no evidence of equal quality."
    )


def _what_to_use(study, decision, margins):
    rows = []
    for choice in decision.choices:
        if choice.reason == rules.SHOWN:
            use, why = words.both_names(choice.config), _why_shown(study, choice)
        else:
            use, why = (
                f"{words.both_names(study.baseline)} (keep)",
                why_kept(study, choice).replace(MARGIN, ""),
            )
            if choice.candidate and choice.reason != rules.CONFLICT:
                why += f"; closest: {words.code(choice.candidate)}"
        rows.append((words.AIMS[choice.aim], use, why))
    rows.append(("adaptive or fixed number of experts", *_adaptive_or_fixed(study, margins)))
    return words.table(["aim", "use", "why"], rows)


def _why_shown(study, choice):
    config = choice.config
    if choice.aim == rules.QUALITY:
        better = words.joined(rules.better_on(study, config))
        return f"significantly better on {better}, significantly worse on no data set"
    row = study.configurations.set_index("config").loc[config]
    if choice.aim == rules.COMPUTE:
        gain = f"{row['avg_experts']:.2f} experts instead of {study.baseline_value('avg_experts'):.2f}"
    else:
        ratios = rules.speed_ratios(study).loc[config]
        gain = f"{words.span_of(ratios, '.2f')} times the baseline's tokens/s, by data set, measured once"
    worse = rules.worse_on(study, config)
    small_loss = (
        f"; the loss on {words.joined(worse)} is significant, but smaller than the margin" if worse else ""
    )
    return f"{gain}; a loss beyond the margin is excluded on every data set{small_loss}"


def _adaptive_or_fixed(study, margins):
    """Two cells: whether an adaptive or a fixed number is better at the same compute, and why."""
    if study.adaptive.empty:
        return "not answered", "no adaptive configuration"
    if controls.has_answer(study):
        return _by_controls(study, margins)
    results = [r for r in (rules.same_compute(study, column) for column in words.measures(study)) if r]
    compared = sum(len(result.better) + len(result.worse) for result in results)
    if not compared:
        return (
            "not answered",
            f"no fixed top-k of this study runs as many experts as one {words.adaptive_noun(study)}",
        )
    better = sum(len(result.better) for result in results)
    name = words.capitalized(words.adaptive_subject(study))
    why = f"{name} measured better than the line through top-k in {words.of(better, compared, 'comparison')}"
    if outside := len(results[0].outside):
        why += f"; not comparable: {words.of(outside, len(study.candidates), words.adaptive_noun(study))}"
    return "measured, not tested", why


def _by_controls(study, margins):
    """Two cells: the answer of the comparison with controls, and its counts."""
    outcomes = [one for one in controls.by_rule(study, contrasts.ANSWER) if not upper_bound(study, one)]
    if not outcomes:
        return "not answered", "the rules compared look at later tokens and are only upper bounds"
    verdicts = {outcome.verdict for outcome in outcomes}
    winning = [c for outcome in outcomes for c in outcome.outcomes[contrasts.BETTER]]
    usable = [config for config in winning if not rules.worse_on(study, config)]
    if usable:
        use = f"adaptive: {words.code(controls.best(study, usable, margins))}"
    elif winning or verdicts <= {contrasts.WORSE}:
        use = "fixed"
    elif verdicts <= {contrasts.WORSE, contrasts.SAME}:
        use = "fixed (adaptive gains nothing)"
    else:
        use = "open" if verdicts == {contrasts.OPEN} else "depends; see the table above"
    total = sum(len(outcome.configs) for outcome in outcomes)
    worse = sum(one.count(contrasts.WORSE) for one in outcomes)
    why = (
        f"at the same compute, {len(winning)} of {total} configurations are significantly better than their "
        f"control and {worse} significantly worse"
    )
    if winning and not usable:
        places = [d for d in study.scored_datasets if any(d in rules.worse_on(study, c) for c in winning)]
        which = f"each of the {len(winning)}" if len(winning) > 1 else "that one"
        why += f"; {which} is significantly worse than the baseline on {' or '.join(places)}"
    return use, why


def _evidence(study, decision, margins):
    """The tests of the configurations that the answers name, as a table."""
    configs = [choice.config for choice in decision.choices if choice.reason == rules.SHOWN]
    configs += [choice.candidate for choice in decision.choices if choice.candidate]
    configs += [subject(study, decision, margins)[0]]
    configs = [config for config in dict.fromkeys(configs) if config is not None]
    if not configs:
        return "No other configuration came close. The tables below hold every test."
    rows = [
        words.comparison_cells(study, config, dataset)
        | {"loss beyond the margin": _beyond_margin(study.comparison(config, dataset), margins)}
        for config in configs
        for dataset in study.scored_datasets
    ]
    headings = ["configuration", "score", "value", "baseline", "difference", "95 % interval", "p (Holm)"]
    return words.table_of_cells([*headings, "loss beyond the margin"], rows)


def _beyond_margin(comparison, margins):
    """What the interval says about a loss beyond the margin."""
    if comparison is None:
        return words.NOTHING
    if rules.excludes_loss(comparison, margins):
        return "excluded"
    return "confirmed" if rules.smallest_loss(comparison) > margins.of(comparison) else "possible"
