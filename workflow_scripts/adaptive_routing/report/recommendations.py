"""The rules that turn the tables into answers: which configuration for which aim, and on what evidence.

Pure functions on a `Study`. Tests are those of the comparisons table: paired against the baseline, corrected
by Holm. A data set here is one with a perplexity or an accuracy; others decide nothing. Two notions of "same
quality" are kept apart. `not_worse`: no data set shows a significant loss; with few samples that can also
mean that a loss went unseen. `within_margin`: on every data set the 95 % interval excludes a loss beyond a
margin fixed in advance (non-inferiority; Piaggio et al., JAMA 308, 2012), and rests on enough samples.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from adaptive_routing.statistics import smallest_attainable_p
from adaptive_routing.study import SIGNIFICANCE_LEVEL, lower_is_better

PERPLEXITY_MARGIN = 0.02  # of the baseline's perplexity
ACCURACY_MARGIN = 0.02  # share of samples
# Fewer samples prove nothing to be within a margin: an interval rests on their mean being about normal.
FEWEST_SAMPLES = 30


@dataclass(frozen=True)
class BestQuality:
    """The configuration with the best value in `column`, and where it differs from the baseline."""

    column: str
    config: str
    value: float
    better_on: tuple[str, ...]
    worse_on: tuple[str, ...]


@dataclass(frozen=True)
class SameCompute:
    """BH configurations against top-k at the same average number of experts; lists of configuration names."""

    column: str
    better: list[str]
    worse: list[str]
    outside: list[str]  # fewer or more experts than any top-k configuration: nothing to compare with


def scores_of(study, column):
    """The data sets whose scores make up a column of the configurations table."""
    return [
        dataset
        for dataset, score in study.scores.items()
        if score == column or (score.endswith("_accuracy") and column == "avg_task_accuracy")
    ]


def best_quality(study, column):
    """The best measured value in `column` among the configurations that have results on all data sets.

    None where there is none. Of equal values the one with the fewest experts counts.
    """
    table = study.configurations[study.configurations["config"].isin(complete(study))]
    if column not in table or table[column].notna().sum() == 0:
        return None
    ordered = table.dropna(subset=[column]).sort_values("avg_experts", kind="stable")
    best = ordered.loc[ordered[column].idxmin() if lower_is_better(column) else ordered[column].idxmax()]
    verdicts = {d: study.verdict(best["config"], d) for d in scores_of(study, column)}
    return BestQuality(
        column,
        best["config"],
        float(best[column]),
        tuple(d for d, verdict in verdicts.items() if verdict == "better"),
        tuple(d for d, verdict in verdicts.items() if verdict == "worse"),
    )


def complete(study):
    """The configurations that have results on every data set of the study, in table order."""
    present = study.experiments.groupby("config")["dataset"].nunique()
    return [c for c in study.configurations["config"] if present.get(c, 0) == len(study.datasets)]


def not_worse(study):
    """The configurations compared on every data set and significantly worse than the baseline on none."""
    return [
        config
        for config in study.configurations["config"]
        if config != study.baseline
        and all(study.verdict(config, dataset) in ("better", "same") for dataset in study.scored_datasets)
    ]


def within_margin(study):
    """Those of `not_worse` that are shown to lose no more than the margin on any data set."""
    return [
        config
        for config in not_worse(study)
        if all(_excludes_loss(study.comparison(config, d), margin(study, d)) for d in study.scored_datasets)
    ]


def _excludes_loss(comparison, allowed):
    """Whether the interval of enough samples, one that has a width, excludes a larger loss than allowed."""
    has_width = comparison["ci_high"] > comparison["ci_low"]
    return has_width and comparison["samples"] >= FEWEST_SAMPLES and largest_loss(comparison) <= allowed


def largest_loss(comparison):
    """The largest loss of quality that the comparison's 95 % interval allows, in the score's unit."""
    return comparison["ci_high"] if lower_is_better(comparison["metric"]) else -comparison["ci_low"]


def margin(study, dataset):
    """The loss of quality, in the data set's score, that counts as no loss."""
    score = study.scores[dataset]
    return PERPLEXITY_MARGIN * study.baseline_value(score) if lower_is_better(score) else ACCURACY_MARGIN


def powerless(study):
    """Where so few samples cannot show any difference, whatever they show: {data set: (strategies, samples)}.

    There the smallest p-value that the deciding test can give, corrected by Holm for the configurations of
    the strategy, is not below the level; or there is one sample and no test.
    """
    found = {}
    strategies = study.configurations.set_index("config")["strategy"]
    for dataset, score in study.scores.items():
        rows = study.comparisons
        rows = rows[(rows["dataset"] == dataset) & (rows["metric"] == score)]
        for strategy, family in rows.groupby(rows["config"].map(strategies), sort=False):
            tested = family[family["p_value"].notna()]
            smallest = [
                len(tested) * smallest_attainable_p(test, samples)
                for test, samples in zip(tested["test"], tested["samples"], strict=True)
            ]
            if min(smallest, default=1.0) >= SIGNIFICANCE_LEVEL:
                names, samples = found.get(dataset, ((), 0))
                found[dataset] = (*names, strategy), max(samples, int(family["samples"].max()))
    return found


def least_compute(study, candidates):
    """Of the candidates that run fewer experts than the baseline, the one with fewest; None without one."""
    return _best_candidate(study, candidates, "avg_experts", lowest=True)


def fastest(study, candidates):
    """Of the candidates that were faster than the baseline, the fastest; None without one."""
    return _best_candidate(study, candidates, "tokens_per_second", lowest=False)


def _best_candidate(study, candidates, column, lowest):
    reference = study.baseline_value(column)
    if not np.isfinite(reference):
        return None
    table = study.configurations[study.configurations["config"].isin(candidates)]
    table = table[table[column] < reference] if lowest else table[table[column] > reference]
    if table.empty:
        return None
    return table.loc[table[column].idxmin() if lowest else table[column].idxmax(), "config"]


def bh_outcomes(study):
    """Sort the BH configurations by what the tests against the baseline say.

    Returns lists of names: `better` (on at least one data set, worse on none), `worse` (on at least one),
    `undecided` (no difference shown) and `untested` (not compared on every data set, and not worse on one).
    """
    outcomes = {"better": [], "worse": [], "undecided": [], "untested": []}
    for config in study.bh["config"]:
        verdicts = [study.verdict(config, dataset) for dataset in study.scored_datasets]
        if config == study.baseline:
            continue
        if "worse" in verdicts:
            outcomes["worse"].append(config)
        elif None in verdicts:
            outcomes["untested"].append(config)
        else:
            outcomes["better" if "better" in verdicts else "undecided"].append(config)
    return outcomes


def same_compute(study, column):
    """Set BH against the top-k curve at the same average number of experts; None without two top-k points.

    Between the k of the grid the curve's value is interpolated linearly in log k. Descriptive: no test.
    """
    topk = study.topk.dropna(subset=[column]).sort_values("avg_experts") if column in study.topk else None
    if topk is None or len(topk) < 2:
        return None
    result = SameCompute(column, [], [], [])
    for _, row in study.bh.dropna(subset=[column]).iterrows():
        if not topk["avg_experts"].iloc[0] <= row["avg_experts"] <= topk["avg_experts"].iloc[-1]:
            result.outside.append(row["config"])
            continue
        curve = np.interp(np.log(row["avg_experts"]), np.log(topk["avg_experts"]), topk[column])
        improved = row[column] < curve if lower_is_better(column) else row[column] > curve
        (result.better if improved else result.worse).append(row["config"])
    return result


def typical_half_width(study, dataset):
    """Half the width of a comparison's 95 % interval on the data set, the median over configurations."""
    rows = study.comparisons
    rows = rows[(rows["dataset"] == dataset) & (rows["metric"] == study.scores[dataset])]
    widths = (rows["ci_high"] - rows["ci_low"]) / 2
    return float(widths.median()) if len(widths) else np.nan


def missing_experiments(study):
    """The (configuration, data set) pairs without a result."""
    present = set(zip(study.experiments["config"], study.experiments["dataset"], strict=True))
    pairs = pd.MultiIndex.from_product([study.configurations["config"], study.datasets])
    return [pair for pair in pairs if pair not in present]
