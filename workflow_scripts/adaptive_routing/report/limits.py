"""What limits the answers: the curve of fixed top-k, where adaptive routing does not help, uncertainty."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from adaptive_routing.analysis import recommendations as rules
from adaptive_routing.analysis.study import SIGNIFICANCE_LEVEL
from adaptive_routing.report import words

if TYPE_CHECKING:
    from collections.abc import Iterator

    from adaptive_routing.analysis.recommendations import QualityMargins
    from adaptive_routing.analysis.study import Study


def topk_curve_text(study: Study) -> str:
    """Adaptive configurations beside the line through top-k at as many experts on average, in words."""
    if study.adaptive.empty:
        return "This study has no adaptive configuration to compare."
    name, noun = words.adaptive_subject(study), words.adaptive_noun(study)
    items = []
    for column, measure in words.measures(study).items():
        result = rules.same_compute(study, column)
        compared = len(result.better) + len(result.worse) if result else 0
        if result and compared:
            items.append(
                f"{measure.capitalize()}: {name} measured better in {_counted(result.better, compared)}."
            )
    text = []
    if items:
        text.append(
            f"Each {noun} is compared with the line through the top-k configurations, interpolated in log "
            "k, at its average number of experts. This describes the measured values; it is not a test."
        )
        text.append("\n".join(f"- {item}" for item in items))
    if missing := rules.fixed_k_to_add(study):
        below = len(rules.below_every_topk(study))
        verb = "runs" if below == 1 else "run"
        count = words.of(below, len(study.candidates), noun)
        text.append(
            f"{count[0].upper()}{count[1:]} {verb} fewer experts than any top-k configuration of this study "
            "on at least one data set. Whether a fixed top-k with as few experts would lose as much is **not "
            "answered here**. To find "
            f"out, add k = {words.joined(missing)} to `strategies.topk.k` in the settings; only the new "
            "experiments will run."
        )
    elif not items:
        text.append("With fewer than two top-k configurations there is no line to compare with.")
    return "\n\n".join(text)


def where_it_does_not_help(study: Study) -> str:
    """The adaptive configurations that lose quality, save nothing or are slower, as a list."""
    table = study.candidates[study.candidates["config"] != study.baseline].set_index("config")
    if table.empty:
        return "This study has no adaptive configuration to compare."
    items = []
    for dataset in study.scored_datasets:
        worse = [config for config in table.index if study.verdict(config, dataset) == "worse"]
        if worse:
            items.append(
                f"Significantly worse than the baseline on {dataset}: {_counted(worse, len(table))}."
            )
    no_saving = table.index[table["avg_experts"] >= study.baseline_value("avg_experts")]
    no_gain = [c for c in no_saving if not rules.better_on(study, c) or rules.worse_on(study, c)]
    if no_gain:
        items.append(
            "At least as many experts as the baseline without a clear gain in quality: "
            f"{_counted(no_gain, len(table))}."
        )
    if not items:
        return (
            f"No loss was found: every {words.adaptive_noun(study)} runs fewer experts than the baseline, "
            "and none is significantly worse on a data set it was compared on. The intervals say which "
            "losses remain possible."
        )
    return "\n".join(f"- {item}" for item in items)


def _counted(configs, total):
    """How many of `total`, and which."""
    names = f" ({', '.join(words.listed(configs, most=4))})" if 0 < len(configs) < total else ""
    return f"{words.of(len(configs), total)}{names}"


def uncertainty_section(study: Study, margins: QualityMargins) -> Iterator[str]:
    """Yield what the tests, intervals and speeds do not show, and how many samples would be enough."""
    yield (
        f"- **Differences.** A difference is significant where the Holm-corrected p is below "
        f"{SIGNIFICANCE_LEVEL}. Among {_family_sizes(study)} on all data sets, the chance of any false "
        f"positive is at most {100 * SIGNIFICANCE_LEVEL:g} %. A difference that is not significant may still "
        "exist.\n- **Same quality.** The intervals are simultaneous: with 95 % they hold for all "
        "configurations of a strategy and all data sets together. Confirm a choice on new samples.\n- "
        "**Speed** " + _speed(study)
    )
    yield from _precision(study, margins)
    if unscored := [dataset for dataset in study.datasets if dataset not in study.scored_datasets]:
        yield f"Left out of the answers (no perplexity or accuracy): {words.joined(unscored)}."


def _speed(study):
    if rules.speeds_repeated(study):
        return (
            "was measured repeatedly, the configurations in turn, on the machine named below. A "
            "configuration counts as faster where the intervals of the ratios exclude 1 on every data set."
        )
    return (
        "was measured once, on the machine named below, which may have been doing other work, and has no "
        "standard error. No configuration counts as faster."
    )


def _precision(study, margins):
    """How wide the intervals are compared with the margin, and how many samples would be enough."""
    rows, powerless = [], rules.powerless(study)
    for dataset in study.scored_datasets:
        half_width = rules.typical_half_width(study, dataset)
        if dataset in powerless or not np.isfinite(half_width):
            continue
        needed = rules.samples_needed(study, dataset, margins)
        rows.append(
            (
                words.score_of(study, dataset),
                f"±{words.score(study, dataset, half_width)}",
                words.score(study, dataset, rules.margin_on(study, dataset, margins)),
                words.number(rules.samples(study, dataset), ",.0f"),
                "enough" if needed is None else f"about {needed:,}",
            )
        )
    if not rows:
        return
    headings = ["score", "half-width of the 95 % interval", "margin", "samples", "samples for 50 % power"]
    yield words.table(headings, rows)
    yield (
        "The half-width is the median over the configurations that are not significantly worse, of intervals "
        "that hold for all comparisons together; a smaller difference cannot be told from zero. Where the "
        "half-width exceeds the margin, the power is below 50 %: a configuration exactly as good as the "
        "baseline is confirmed to be within the margin in fewer than half of all studies. The last column is "
        "the number of samples for a power of 50 %."
    )


def _family_sizes(study):
    rows = study.comparisons[study.comparisons["metric"] == study.comparisons["dataset"].map(study.scores)]
    strategies = rows["config"].map(study.configurations.set_index("config")["strategy"])
    sizes = rows.groupby(strategies).size()
    return " or ".join(f"{size} {words.strategy(strategy)} comparisons" for strategy, size in sizes.items())
