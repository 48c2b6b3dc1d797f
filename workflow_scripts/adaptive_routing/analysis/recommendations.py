"""The rules that turn the tables into answers: which configuration for which aim, on what evidence.

Pure functions on a `Study`. Tests and intervals are those of the comparisons table: paired against the
baseline, corrected by Holm over the configurations of a strategy on all data sets, intervals simultaneous
over the same family. Only data sets with a perplexity or an accuracy count.

- *Better* and *worse* mean a significant difference. *Better on at least one data set* is wrong for any
  configuration of a strategy in at most 5 % of studies.
- *The same quality* means non-inferiority: on every data set the interval excludes a loss beyond a margin
  fixed in advance (Piaggio et al., JAMA 308, 2012), or every loss is the baseline's. A loss that is not
  significant is no proof of equality: with few samples the test may have missed it.
- *Fewer experts* means fewer on every data set.
- *Faster* means that repeated measurements show it on every data set. A single measurement shows nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Self

import numpy as np
import pandas as pd

from adaptive_routing.analysis.statistics import (
    corrected_p_values,
    paired_accuracies,
    smallest_attainable_p,
)
from adaptive_routing.analysis.study import SIGNIFICANCE_LEVEL, Study, lower_is_better
from adaptive_routing.analysis.tables import averaged_datasets

# With fewer samples nothing is within a margin: the interval assumes that their mean is about normal.
FEWEST_SAMPLES = 30

# Column of the experiments: standard error of ln(tokens_per_second) over repeated, interleaved measurements.
LOG_SPEED_STDERR = "log_speed_stderr"

QUALITY, COMPUTE, SPEED = "quality", "compute", "speed"

# The reason for a choice. SHOWN supports a configuration; every other reason keeps the baseline.
SHOWN = "shown"
NO_CANDIDATE = "no candidate"  # none measured better; none runs fewer experts; none was faster
UNMEASURED = "unmeasured"  # the baseline's speed is unknown
UNREPEATED = "unrepeated"  # speeds were measured once: no difference between them can be told from noise
UNTESTED = "untested"  # no candidate was compared on every data set
CONFLICT = "conflict"  # significantly better on one data set, significantly worse on another
UNPROVEN = "unproven"  # a candidate loses less than the margin where it is worse, and elsewhere may lose more
LOSES = "loses"  # every candidate is significantly worse on a data set


@dataclass(frozen=True)
class QualityMargins:
    """The largest losses of quality that still count as the same quality: the config's `report` section."""

    perplexity: float  # share of the baseline's perplexity
    accuracy: float  # share of samples

    @classmethod
    def from_settings(cls, report: Mapping[str, Any]) -> Self:
        """Build from the config's `report` section."""
        return cls(report["perplexity_margin"], report["accuracy_margin"])

    def of(self, comparison: pd.Series) -> float:
        """The margin of a row of the comparisons table, in the unit of its score."""
        if lower_is_better(comparison["metric"]):
            return self.perplexity * comparison["baseline_value"]
        return self.accuracy


@dataclass(frozen=True)
class Choice:
    """What to use for an aim, and why. Where that is the baseline, `candidate` came closest."""

    aim: str
    config: str
    reason: str
    candidate: str | None = None


@dataclass(frozen=True)
class Decision:
    """What a study recommends for each aim, and its verdict on its adaptive rules compared with the baseline.

    See `adaptive_verdict` and `adaptive_outcomes`.
    """

    quality: Choice
    compute: Choice
    speed: Choice
    verdict: str
    outcomes: dict[str, list[str]]

    @property
    def choices(self) -> tuple[Choice, ...]:
        return self.quality, self.compute, self.speed


@dataclass(frozen=True)
class SameCompute:
    """Adaptive configurations against top-k at the same average number of experts: lists of names."""

    column: str
    better: list[str]
    worse: list[str]
    outside: list[str]  # fewer or more experts than any top-k configuration, so not comparable


def obstacle(study: Study) -> str | None:
    """Why nothing can be recommended: no "baseline", "comparisons" or "scores"; None if something can."""
    if study.baseline_row is None:
        return "baseline"
    if study.comparisons.empty:
        return "comparisons"
    return None if study.scored_datasets else "scores"


def decide(study: Study, margins: QualityMargins) -> Decision:
    """Return the `Decision` for a study without an `obstacle`."""
    return Decision(
        _best_quality(study, margins),
        _at_same_quality(study, margins, COMPUTE, cheaper(study), "avg_experts", ascending=True),
        _at_same_quality(study, margins, SPEED, faster(study), "tokens_per_second", ascending=False),
        adaptive_verdict(study, margins),
        adaptive_outcomes(study, margins),
    )


def _best_quality(study, margins):
    """The configuration better on a data set and worse on none, with the smallest `mean_loss`."""
    candidates = tested(study)
    measured_better = [
        config
        for config in candidates
        if any(measured_loss(study.comparison(config, d)) < 0 for d in study.scored_datasets)
    ]

    improved = [config for config in measured_better if better_on(study, config)]
    supported = [config for config in improved if not worse_on(study, config)]
    not_worse = [config for config in measured_better if not worse_on(study, config)]
    if supported:
        return Choice(QUALITY, _with_least_loss(study, supported, margins), SHOWN)
    if improved:
        return Choice(QUALITY, study.baseline, CONFLICT, _with_least_loss(study, improved, margins))
    if not_worse:
        return Choice(QUALITY, study.baseline, UNPROVEN, _with_least_loss(study, not_worse, margins))
    if measured_better:
        return Choice(QUALITY, study.baseline, LOSES, _with_least_loss(study, measured_better, margins))
    return Choice(QUALITY, study.baseline, NO_CANDIDATE if candidates else UNTESTED)


def _at_same_quality(study, margins, aim, candidates, column, ascending):
    """Of the candidates within the margin on every data set, the first when sorted by `column`."""
    if aim == SPEED and not np.isfinite(study.baseline_value(column)):
        return Choice(aim, study.baseline, UNMEASURED)
    if aim == SPEED and not speeds_repeated(study):
        return Choice(aim, study.baseline, UNREPEATED)
    if not candidates:
        return Choice(aim, study.baseline, NO_CANDIDATE)
    values = study.configurations.set_index("config")[column]
    usable = set(tested(study))
    ordered = values.loc[candidates].sort_values(ascending=ascending, kind="stable").index
    ordered = [config for config in ordered if config in usable]
    if not ordered:
        return Choice(aim, study.baseline, UNTESTED)
    same = [config for config in ordered if within_margin(study, config, margins)]
    if same:
        return Choice(aim, same[0], SHOWN)
    not_worse = [config for config in ordered if not _loses(study, config, margins)]
    if not_worse:
        close = [config for config in not_worse if measured_within_margin(study, config, margins)]
        return Choice(aim, study.baseline, UNPROVEN, (close or not_worse)[0])
    return Choice(aim, study.baseline, LOSES, _with_least_loss(study, ordered, margins))


# Configurations


def tested(study: Study) -> list[str]:
    """The configurations compared with the baseline on every data set, in table order.

    Without `Study.upper_bounds`, which nobody can use.
    """
    unusable = {study.baseline, *study.upper_bounds}
    return [
        config
        for config in study.configurations["config"]
        if config not in unusable and all(study.verdict(config, d) for d in study.scored_datasets)
    ]


def cheaper(study: Study) -> list[str]:
    """The configurations that run fewer experts than the baseline on every data set that counts."""
    experts = experts_by_dataset(study)
    fewer = experts.lt(experts.loc[study.baseline]) | experts.isna()
    return [
        config
        for config in study.configurations["config"]
        if config in experts.index and fewer.loc[config].all() and experts.loc[config].notna().any()
    ]


def experts_by_dataset(study: Study) -> pd.DataFrame:
    """Average experts: a frame of configurations x the data sets that have a score (or all, without one)."""
    table = study.experiments
    table = table[table["dataset"].isin(study.scored_datasets or study.datasets)]
    return table.pivot(index="config", columns="dataset", values="avg_experts")


def faster(study: Study) -> list[str]:
    """The configurations that repeated measurements show to be faster than the baseline on every data set.

    The ratio of the speeds has to exceed 1 by its one-sided normal interval on every data set, with
    Bonferroni's correction for the number of configurations. None where speeds were measured once.
    """
    if not speeds_repeated(study):
        return []
    ratios = speed_ratios(study)
    errors = _by_averaged_dataset(study, LOG_SPEED_STDERR)
    errors = np.sqrt(errors**2 + errors.loc[study.baseline] ** 2)
    reach = NormalDist().inv_cdf(1 - SIGNIFICANCE_LEVEL / max(1, len(ratios) - 1))
    lowest = (np.log(ratios) - reach * errors).min(axis="columns", skipna=False)
    return [c for c in study.configurations["config"] if c in lowest.index and lowest[c] > 0]


def speeds_repeated(study: Study) -> bool:
    """Whether speeds were measured often enough to have a standard error."""
    return LOG_SPEED_STDERR in study.experiments and bool(study.experiments[LOG_SPEED_STDERR].notna().any())


def speed_ratios(study: Study) -> pd.DataFrame:
    """Tokens per second over the baseline's: a frame of configurations x averaged data sets."""
    speeds = _by_averaged_dataset(study, "tokens_per_second")
    return speeds / speeds.loc[study.baseline]


def _by_averaged_dataset(study, column):
    """A column of the experiments as a frame of configurations x averaged data sets."""
    table = study.experiments
    table = table[table["dataset"].isin(averaged_datasets(study.datasets))]
    return table.pivot(index="config", columns="dataset", values=column)


def flops_ratio(study: Study, config: str) -> float:
    """Operations of a forward pass over the baseline's, counted from the model's shapes; NaN if unknown."""
    if not study.has("flops_reduction_exact_pct"):
        return math.nan
    # The column is relative to the model's own top-k, which need not be the baseline.
    saved = study.configurations.set_index("config")["flops_reduction_exact_pct"]
    return float((100 - saved[config]) / (100 - saved[study.baseline]))


def better_on(study: Study, config: str) -> list[str]:
    """The data sets on which the configuration is significantly better than the baseline."""
    return [d for d in study.scored_datasets if study.verdict(config, d) == "better"]


def worse_on(study: Study, config: str) -> list[str]:
    """The data sets on which the configuration is significantly worse than the baseline."""
    return [d for d in study.scored_datasets if study.verdict(config, d) == "worse"]


def within_margin(study: Study, config: str, margins: QualityMargins) -> bool:
    """Whether the intervals exclude a loss beyond the margin on every data set."""
    return all(
        study.verdict(config, d) and excludes_loss(study.comparison(config, d), margins)  # ty: ignore[invalid-argument-type]
        for d in study.scored_datasets
    )


def _loses(study, config, margins):
    """Whether a configuration is significantly worse on a data set, by what may be more than the margin."""
    return any(not excludes_loss(study.comparison(config, d), margins) for d in worse_on(study, config))


def measured_within_margin(study: Study, config: str, margins: QualityMargins) -> bool:
    """Whether the measured losses, whatever their intervals, are within the margin on every data set."""
    rows = [study.comparison(config, dataset) for dataset in study.scored_datasets]
    return all(row is not None and measured_loss(row) <= margins.of(row) for row in rows)


def excludes_loss(comparison: pd.Series, margins: QualityMargins) -> bool:
    """Whether the interval excludes a loss beyond the margin; it needs enough samples and a width above 0.

    Identical losses are the same quality without it.
    """
    if comparison.get("identical") in (True, 1):
        return True
    has_width = comparison["ci_high"] > comparison["ci_low"]
    enough = comparison["samples"] >= FEWEST_SAMPLES
    return bool(has_width and enough and largest_loss(comparison) <= margins.of(comparison))


def largest_loss(comparison: pd.Series) -> float:
    """The largest loss of quality that the comparison's interval allows, in the score's unit."""
    return comparison["ci_high"] if lower_is_better(comparison["metric"]) else -comparison["ci_low"]


def smallest_loss(comparison: pd.Series) -> float:
    """The smallest loss that the interval allows; negative where a gain is possible."""
    return comparison["ci_low"] if lower_is_better(comparison["metric"]) else -comparison["ci_high"]


def measured_loss(comparison: pd.Series) -> float:
    """The measured loss of quality against the baseline, in the score's unit; negative for a gain."""
    difference = float(comparison["difference"])
    return difference if lower_is_better(comparison["metric"]) else -difference


def mean_loss(study: Study, config: str, margins: QualityMargins) -> float:
    """The measured loss in units of the margin, mean over the data sets; it ranks configurations."""
    rows = [study.comparison(config, d) for d in study.scored_datasets]
    return float(np.mean([measured_loss(row) / margins.of(row) for row in rows]))  # ty: ignore[invalid-argument-type]


def least_loss(study: Study, margins: QualityMargins) -> str | None:
    """Of the adaptive configurations with fewer experts, that with the smallest `mean_loss`."""
    candidates = set(cheaper(study)) & set(study.candidates["config"]) & set(tested(study))
    return _with_least_loss(study, candidates, margins) if candidates else None


def _with_least_loss(study, configs, margins):
    """The configuration with the smallest `mean_loss`; among ties, the one with the fewest experts."""
    experts = study.configurations.set_index("config")["avg_experts"]
    return min(configs, key=lambda config: (mean_loss(study, config, margins), experts[config]))


def scores_of(study: Study, column: str) -> list[str]:
    """The data sets whose scores a column of the configurations table is made of."""
    return [
        dataset
        for dataset, score in study.scores.items()
        if score == column or (score.endswith("_accuracy") and column == "avg_task_accuracy")
    ]


def best_measured(study: Study, column: str) -> str | None:
    """Of the configurations with results on every data set, that with the best value in `column`; or None.

    Among ties, the one with the fewest experts.
    """
    usable = set(complete(study)) - study.upper_bounds
    table = study.configurations[study.configurations["config"].isin(usable)]
    if column not in table or table[column].notna().sum() == 0:
        return None
    ordered = table.dropna(subset=[column]).sort_values("avg_experts", kind="stable")
    return ordered.loc[
        ordered[column].idxmin() if lower_is_better(column) else ordered[column].idxmax(), "config"
    ]


def complete(study: Study) -> list[str]:
    """The configurations that have results on every data set of the study, in table order."""
    present = study.experiments.groupby("config")["dataset"].nunique()
    return [c for c in study.configurations["config"] if present.get(c, 0) == len(study.datasets)]


def missing_experiments(study: Study) -> list[tuple[str, str]]:
    """The (configuration, data set) pairs without a result."""
    present = set(zip(study.experiments["config"], study.experiments["dataset"], strict=True))
    pairs = pd.MultiIndex.from_product([study.configurations["config"], study.datasets])
    return [pair for pair in pairs if pair not in present]


# Adaptive rules against the baseline


def adaptive_outcomes(study: Study, margins: QualityMargins) -> dict[str, list[str]]:
    """Sort the adaptive configurations by tests and intervals: {outcome: names}; each is in one list.

    - `better`: better on at least one data set and worse on none
    - `same`: the same quality, within the margin
    - `mixed`: better on one data set and worse on another
    - `worse`: worse on at least one data set
    - `open`: no significant difference, but not within the margin either
    - `untested`: not compared on every data set, and worse on none
    """
    outcomes = {name: [] for name in ("better", "same", "mixed", "worse", "open", "untested")}
    compared = set(tested(study))
    for config in study.candidates["config"]:
        if config == study.baseline:
            continue
        gains, losses = better_on(study, config), worse_on(study, config)
        if config not in compared:
            name = "worse" if losses else "untested"
        elif gains and not losses:
            name = "better"
        elif within_margin(study, config, margins):
            name = "same"
        elif losses:
            name = "mixed" if gains else "worse"
        else:
            name = "open"
        outcomes[name].append(config)
    return outcomes


def adaptive_verdict(study: Study, margins: QualityMargins) -> str:
    """The study's verdict on its adaptive rules, all taken together.

    - `better`: better than the baseline
    - `cheaper`: the same quality with fewer experts
    - `no gain`: the same quality, but not with fewer experts
    - `powerless`: too few samples for any significant difference
    - `absent`: there is no adaptive configuration
    - `open`, `mixed`, `worse`, `untested`: as in `adaptive_outcomes`
    """
    outcomes = adaptive_outcomes(study, margins)
    if not any(outcomes.values()):
        return "absent"
    if outcomes["better"]:
        return "better"
    if set(outcomes["same"]) & set(cheaper(study)):
        return "cheaper"
    if outcomes["open"]:
        every = set(study.candidates["strategy"])
        without_power = [d for d, (strategies, _) in powerless(study).items() if every <= {*strategies}]
        return "powerless" if without_power == study.scored_datasets else "open"
    verdicts = {"mixed": "mixed", "same": "no gain", "worse": "worse", "untested": "untested"}
    return next(verdict for name, verdict in verdicts.items() if outcomes[name])


def same_compute(study: Study, column: str) -> SameCompute | None:
    """Compare adaptive configurations with the top-k curve at the same average number of experts.

    None without two top-k points.

    Experts are averaged over the data sets whose scores the column is made of. Between the k of the grid the
    curve is interpolated linearly in log k. This is descriptive, not a test.
    """
    table = study.configurations
    if column not in table:
        return None
    experts = experts_by_dataset(study)
    experts = experts[[d for d in scores_of(study, column) if d in experts] or list(experts)].mean(
        axis="columns"
    )
    table = table.assign(experts=table["config"].map(experts)).dropna(subset=[column, "experts"])
    topk = table[table["config"].isin(study.topk["config"])].sort_values("experts")
    if len(topk) < 2:
        return None
    result = SameCompute(column, [], [], [])
    for _, row in table[table["config"].isin(study.candidates["config"])].iterrows():
        if not topk["experts"].iloc[0] <= row["experts"] <= topk["experts"].iloc[-1]:
            result.outside.append(row["config"])
            continue
        curve = np.interp(np.log(row["experts"]), np.log(topk["experts"]), topk[column])
        improved = row[column] < curve if lower_is_better(column) else row[column] > curve
        (result.better if improved else result.worse).append(row["config"])
    return result


def below_every_topk(study: Study) -> pd.DataFrame:
    """The adaptive configurations with fewer experts than any top-k on a data set, as rows of the table."""
    experts, smallest = _experts_and_smallest_topk(study)
    below = experts.lt(smallest).any(axis="columns")
    return study.candidates[study.candidates["config"].isin(below.index[below])]


def fixed_k_to_add(study: Study) -> list[int]:
    """The k of top-k configurations around adaptive numbers of experts below the grid's smallest k.

    On every data set a configuration runs between two of them, its average rounded down and rounded up, or
    between one of them and the grid's smallest.
    """
    experts, smallest = _experts_and_smallest_topk(study)
    below = experts.loc[experts.index.isin(study.candidates["config"])]
    missing = set()
    for dataset in below:
        values = below[dataset][below[dataset] < smallest[dataset]]
        ks = {rounded for value in values for rounded in (math.floor(value), math.ceil(value))}
        missing |= {k for k in ks if 1 <= k < smallest[dataset]}
    return sorted(missing)


def _experts_and_smallest_topk(study):
    """Average experts by data set, and the smallest of a top-k configuration on each."""
    experts = experts_by_dataset(study)
    topk = experts.loc[experts.index.isin(study.topk["config"])]
    return experts, topk.min() if len(topk) else experts.min() * 0 + math.inf


def effects_on_experts(study: Study) -> dict[str, tuple[float, float, float, float]]:
    """How each BH setting changes the number of experts while the other is fixed.

    {setting: (first, last, low, high)}: the smallest and largest value of `alpha` (or `k_or_max_k`), and the
    smallest and largest ratio of the average experts at the two, over the values of the other setting. A
    setting with a single value is left out.
    """
    effects = {}
    for setting, other in (("alpha", "k_or_max_k"), ("k_or_max_k", "alpha")):
        grid = study.bh.pivot(index=other, columns=setting, values="avg_experts").sort_index(axis="columns")
        if grid.shape[1] > 1:
            ratios = (grid.iloc[:, -1] / grid.iloc[:, 0]).dropna()
            if len(ratios):
                effects[setting] = grid.columns[0], grid.columns[-1], ratios.min(), ratios.max()
    return effects


# Power


def powerless(study: Study) -> dict[str, tuple[tuple[str, ...], int]]:
    """The data sets with too few samples for any significant difference: {data set: (strategies, samples)}.

    There the smallest p-value that the test can give, corrected by Holm for the family of the strategy while
    every test of it gives its smallest, is not below the level; or there is a single sample and no test.
    """
    without_power = {}
    rows = study.comparisons
    rows = rows[rows["metric"] == rows["dataset"].map(study.scores)]
    strategies = rows["config"].map(study.configurations.set_index("config")["strategy"])
    for strategy, family in rows.groupby(strategies, sort=False):
        smallest = [
            None if pd.isna(p) else smallest_attainable_p(test, samples)
            for p, test, samples in zip(family["p_value"], family["test"], family["samples"], strict=True)
        ]
        corrected = pd.Series(corrected_p_values(smallest, "holm"), index=family.index, dtype=float)
        for dataset in study.scores:
            own = family["dataset"] == dataset
            if own.any() and not corrected[own].min() < SIGNIFICANCE_LEVEL:
                names, samples = without_power.get(dataset, ((), 0))
                without_power[dataset] = (
                    (*names, strategy),
                    max(samples, int(family.loc[own, "samples"].max())),
                )
    return {dataset: without_power[dataset] for dataset in study.scores if dataset in without_power}


@dataclass(frozen=True)
class Saturation:
    """How many samples of an accuracy data set the baseline answers, and what cannot be shown there."""

    right: int
    samples: int
    no_better: bool  # so many right that no configuration could be shown to be better
    no_worse: bool  # so many wrong that none could be shown to be worse


def saturated(study: Study) -> dict[str, Saturation]:
    """The accuracy data sets where no configuration could be shown better than the baseline, or none worse.

    The best that a configuration can do is to answer right whatever the baseline answers wrong, and lose
    nothing. The smallest corrected p-value of that is McNemar's times the configurations of its strategy on
    this data set, all others in the family being significant; here it is not below the level for any
    strategy. The worst is the same with right and wrong exchanged.
    """
    found = {}
    strategies = study.configurations.set_index("config")["strategy"]
    for dataset, score in study.scores.items():
        rows = _score_rows(study, dataset)
        if not score.endswith("_accuracy") or rows.empty:
            continue
        size = rows["config"].map(strategies).value_counts().min()
        row = rows.loc[rows["samples"].idxmax()]
        count = int(row["samples"])
        right = round(float(row["baseline_value"]) * count)
        no_better, no_worse = (
            size * _p_value_of_changed(changed, count) >= SIGNIFICANCE_LEVEL
            for changed in (count - right, right)
        )
        if no_better or no_worse:
            found[dataset] = Saturation(right, count, no_better, no_worse)
    return found


def _p_value_of_changed(changed, count):
    """McNemar's p-value where `changed` of `count` samples differ, all in one direction."""
    better = np.arange(count) < changed
    return paired_accuracies(np.zeros(count, dtype=bool), better).p_value


def typical_half_width(study: Study, dataset: str) -> float:
    """Half the width of the simultaneous interval on a data set, median over those not significantly worse.

    NaN where every configuration is.
    """
    rows = _score_rows(study, dataset)
    rows = rows[[study.verdict(config, dataset) != "worse" for config in rows["config"]]]
    return float(((rows["ci_high"] - rows["ci_low"]) / 2).median()) if len(rows) else math.nan


def margin_on(study: Study, dataset: str, margins: QualityMargins) -> float:
    """The margin on a data set, in the unit of its score."""
    return margins.of(_score_rows(study, dataset).iloc[0])


def samples_needed(study: Study, dataset: str, margins: QualityMargins) -> int | None:
    """About how many samples shrink the typical half-width to the margin; None where it is small enough.

    A half-width shrinks with the square root of the number of samples. With this many, a configuration
    exactly as good as the baseline is within the margin with a probability of 50 %, the power of the test.
    """
    half_width, margin = typical_half_width(study, dataset), margin_on(study, dataset, margins)
    if not half_width > margin or math.isclose(half_width, margin):
        return None
    needed = samples(study, dataset) * (half_width / margin) ** 2
    digits = 2 - len(str(int(needed)))
    return int(round(needed, digits)) if digits < 0 else math.ceil(needed)


def samples(study: Study, dataset: str) -> float:
    """The median over configurations of the number of samples compared on a data set."""
    return float(_score_rows(study, dataset)["samples"].median())


def _score_rows(study, dataset):
    rows = study.comparisons
    return rows[(rows["dataset"] == dataset) & (rows["metric"] == study.scores[dataset])]
