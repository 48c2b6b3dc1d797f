"""What the report's answers do not say: same compute, where BH does not help, how sure one can be."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from adaptive_routing.analysis import recommendations as rules
from adaptive_routing.analysis.study import SIGNIFICANCE_LEVEL
from adaptive_routing.report import words

if TYPE_CHECKING:
    from collections.abc import Iterator

    from adaptive_routing.analysis.recommendations import Margins
    from adaptive_routing.analysis.study import Study


def same_compute(study: Study) -> str:
    if study.bh.empty:
        return "This study holds no BH configuration to compare."
    items = []
    for column, name in words.measures(study).items():
        result = rules.same_compute(study, column)
        compared = len(result.better) + len(result.worse) if result else 0
        if compared:
            items.append(
                f"{name.capitalize()}: BH better than the line at its own average number of experts in "
                f"{_counted(result.better, compared)}."  # ty: ignore[missing-union-attribute]
            )
    text = []
    if items:
        text.append(
            "BH against the line through the top-k configurations, interpolated in log k. This describes the "
            "measured values; it is no test."
        )
        text.append("\n".join(f"- {item}" for item in items))
    if missing := rules.fixed_k_to_add(study):
        count = words.of(len(rules.below_every_topk(study)), len(study.bh))
        text.append(
            f"{count} BH configurations run fewer experts than any top-k configuration of this study. "
            "Whether a fixed top-k with as few experts would lose as much is **not answered here**: to "
            f"ask it, add k = {words.joined(missing)} to `strategies.topk.k` in the settings; only what is "
            "new will run."
        )
    elif not items:
        text.append("With fewer than two top-k configurations there is no line to compare with.")
    return "\n\n".join(text)


def where_not(study: Study) -> str:
    table = study.bh[study.bh["config"] != study.baseline].set_index("config")
    if table.empty:
        return "This study holds no BH configuration to compare."
    items = []
    for dataset in study.scored_datasets:
        worse = [config for config in table.index if study.verdict(config, dataset) == "worse"]
        if worse:
            items.append(f"Shown to be worse than the baseline on {dataset}: {_counted(worse, len(table))}.")
    dear = table.index[table["avg_experts"] >= study.baseline_value("avg_experts")]
    vain = [c for c in dear if not rules.better_on(study, c) or rules.worse_on(study, c)]
    if vain:
        items.append(
            "As many experts as the baseline or more, without being shown to be better: "
            f"{_counted(vain, len(table))}."
        )
    slow = table.index[table["tokens_per_second"] < study.baseline_value("tokens_per_second")]
    if len(slow):
        items.append(f"Slower than the baseline over all data sets: {_counted(slow, len(table))}.")
    if not items:
        return (
            "No loss was shown: every BH configuration runs fewer experts than the baseline, none was "
            "slower, and none is shown to be worse on a data set it was compared on. Which losses remain "
            "possible, the intervals say."
        )
    return "\n".join(f"- {item}" for item in items)


def _counted(configs, total):
    """How many of `total`, and which."""
    names = f" ({', '.join(words.listed(configs, most=4))})" if 0 < len(configs) < total else ""
    return f"{words.of(len(configs), total)}{names}"


def certainty(study: Study, margins: Margins) -> Iterator[str]:
    yield (
        f"- **Differences.** A difference is shown where Holm's corrected p is below {SIGNIFICANCE_LEVEL}: "
        f"among {_family_sizes(study)} on one data set, the chance of even one false one is at most "
        f"{100 * SIGNIFICANCE_LEVEL:g} %. What is not shown may still exist.\n- **Same quality.** The "
        "intervals are not corrected for how many configurations were looked at: the choice with least "
        f"compute is one of {words.plural(len(rules.cheaper(study)), 'candidate')}. Confirm a choice on "
        "new samples.\n- **Speed** was measured once, on the machine named below, which may have been "
        "doing other work, and has no standard error: only what was faster on every data set counts as "
        "faster, and differences of some percent mean nothing."
    )
    yield from _precision(study, margins)
    if unscored := [dataset for dataset in study.datasets if dataset not in study.scored_datasets]:
        yield f"Left out of the answers, without a perplexity or an accuracy: {words.joined(unscored)}."


def _precision(study, margins):
    """How wide intervals are against the margin, and how many samples would do."""
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
    headings = ["score", "half a 95 % interval", "margin", "samples", "samples for even odds"]
    yield words.table(headings, rows)
    yield (
        "Half the typical interval is the smallest difference that can be told from none. Where it "
        "exceeds the margin, a configuration exactly as good as the baseline is shown to be so in fewer "
        "than half of all studies; the last column says with how many samples the odds are even."
    )


def _family_sizes(study):
    rows = study.comparisons[study.comparisons["metric"] == study.comparisons["dataset"].map(study.scores)]
    strategies = rows["config"].map(study.configurations.set_index("config")["strategy"])
    sizes = rows.groupby([strategies, rows["dataset"]]).size().groupby(level=0).max()
    return " or ".join(f"{size} {words.strategy(strategy)} comparisons" for strategy, size in sizes.items())
