"""The rules that turn the tables into answers: which configuration for which aim, on what evidence.

Pure functions on a `Study`. Tests are those of the comparisons table: paired against the baseline, corrected
by Holm. Only data sets with a perplexity or an accuracy count.

- *Better* and *worse* mean a significant difference.
- *The same quality* means non-inferiority: on every data set the 95 % interval excludes a loss beyond a
  margin fixed in advance (Piaggio et al., JAMA 308, 2012). A loss that is not significant is no proof of
  equality: with few samples the test may have missed it.
- *Faster* means faster on every data set, since speeds have no standard error.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from adaptive_routing.analysis.statistics import smallest_attainable_p
from adaptive_routing.analysis.study import SIGNIFICANCE_LEVEL, Study, lower_is_better
from adaptive_routing.analysis.tables import averaged_datasets

# With fewer samples nothing is within a margin: the interval assumes that their mean is about normal.
FEWEST_SAMPLES = 30

QUALITY, COMPUTE, SPEED = "quality", "compute", "speed"

# The reason for a choice. SHOWN supports a configuration; every other reason keeps the baseline.
SHOWN = "shown"
NO_CANDIDATE = "no candidate"  # none measured better; none runs fewer experts; none was faster
UNMEASURED = "unmeasured"  # the baseline's speed is unknown
UNTESTED = "untested"  # no candidate was compared on every data set
CONFLICT = "conflict"  # significantly better on one data set, significantly worse on another
UNPROVEN = "unproven"  # a candidate is not worse, but neither better nor within the margin
LOSES = "loses"  # every candidate is significantly worse on a data set


@dataclass(frozen=True)
class QualityMargins:
    """The largest losses of quality that still count as the same quality: the config's `report` section."""

    perplexity: float  # share of the baseline's perplexity
    accuracy: float  # share of samples

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
    if not candidates:
        return Choice(aim, study.baseline, NO_CANDIDATE)
    values = study.configurations.set_index("config")[column]
    ordered = values.loc[candidates].sort_values(ascending=ascending, kind="stable").index
    ordered = [config for config in ordered if config in tested(study)]
    if not ordered:
        return Choice(aim, study.baseline, UNTESTED)
    same = [config for config in ordered if within_margin(study, config, margins)]
    if same:
        return Choice(aim, same[0], SHOWN)
    not_worse = [config for config in ordered if not worse_on(study, config)]
    if not_worse:
        return Choice(aim, study.baseline, UNPROVEN, not_worse[0])
    return Choice(aim, study.baseline, LOSES, _with_least_loss(study, ordered, margins))


# Configurations


def tested(study: Study) -> list[str]:
    """The configurations compared with the baseline on every data set, in table order."""
    return [
        config
        for config in study.configurations["config"]
        if config != study.baseline and all(study.verdict(config, d) for d in study.scored_datasets)
    ]


def cheaper(study: Study) -> list[str]:
    """The configurations that run fewer experts than the baseline."""
    table = study.configurations
    return table.loc[table["avg_experts"] < study.baseline_value("avg_experts"), "config"].tolist()


def faster(study: Study) -> list[str]:
    """The configurations that were faster than the baseline on every data set."""
    ratios = speed_ratios(study)
    slowest = ratios.min(axis="columns")
    return [c for c in study.configurations["config"] if c in slowest.index and slowest[c] > 1]


def speed_ratios(study: Study) -> pd.DataFrame:
    """Tokens per second over the baseline's: a frame of configurations x averaged data sets."""
    table = study.experiments
    table = table[table["dataset"].isin(averaged_datasets(study.datasets))]
    speeds = table.pivot(index="config", columns="dataset", values="tokens_per_second")
    return speeds / speeds.loc[study.baseline]


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


def excludes_loss(comparison: pd.Series, margins: QualityMargins) -> bool:
    """Whether the interval excludes a loss beyond the margin; it needs enough samples and a width above 0."""
    has_width = comparison["ci_high"] > comparison["ci_low"]
    enough = comparison["samples"] >= FEWEST_SAMPLES
    return bool(has_width and enough and largest_loss(comparison) <= margins.of(comparison))


def largest_loss(comparison: pd.Series) -> float:
    """The largest loss of quality that the comparison's 95 % interval allows, in the score's unit."""
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
    candidates = set(cheaper(study)) & set(study.adaptive["config"]) & set(tested(study))
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
    table = study.configurations[study.configurations["config"].isin(complete(study))]
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
    for config in study.adaptive["config"]:
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
        every = set(study.adaptive["strategy"])
        without_power = [d for d, (strategies, _) in powerless(study).items() if every <= {*strategies}]
        return "powerless" if without_power == study.scored_datasets else "open"
    verdicts = {"mixed": "mixed", "same": "no gain", "worse": "worse", "untested": "untested"}
    return next(verdict for name, verdict in verdicts.items() if outcomes[name])


def same_compute(study: Study, column: str) -> SameCompute | None:
    """Compare adaptive configurations with the top-k curve at the same average number of experts.

    None without two top-k points.

    Between the k of the grid the curve is interpolated linearly in log k. This is descriptive, not a test.
    """
    topk = study.topk.dropna(subset=[column]).sort_values("avg_experts") if column in study.topk else None
    if topk is None or len(topk) < 2:
        return None
    result = SameCompute(column, [], [], [])
    for _, row in study.adaptive.dropna(subset=[column]).iterrows():
        if not topk["avg_experts"].iloc[0] <= row["avg_experts"] <= topk["avg_experts"].iloc[-1]:
            result.outside.append(row["config"])
            continue
        curve = np.interp(np.log(row["avg_experts"]), np.log(topk["avg_experts"]), topk[column])
        improved = row[column] < curve if lower_is_better(column) else row[column] > curve
        (result.better if improved else result.worse).append(row["config"])
    return result


def below_every_topk(study: Study) -> pd.DataFrame:
    """The adaptive configurations that run fewer experts than any top-k, as rows of the table."""
    smallest = study.topk["avg_experts"].min() if len(study.topk) else math.inf
    return study.adaptive[study.adaptive["avg_experts"] < smallest]


def fixed_k_to_add(study: Study) -> list[int]:
    """The k of top-k around the numbers of experts that lie below the smallest k of the grid.

    Both neighbours of each number: 2 and 3 for 2.71.
    """
    smallest = study.topk["avg_experts"].min() if len(study.topk) else math.inf
    below = below_every_topk(study)["avg_experts"]
    return sorted({int(k) for k in [*np.floor(below), *np.ceil(below)] if 1 <= k < smallest})


def setting_effects(study: Study, column: str) -> dict[str, tuple[float, float, float, float]]:
    """How each BH setting changes `column` while the other is fixed: {setting: (first, last, low, high)}.

    `first` and `last` are the smallest and largest value of `alpha` (or `k_or_max_k`); `low` and `high` the
    smallest and largest change of `column` between the two, over the values of the other setting. A change
    is a ratio, for an accuracy a difference. A setting with a single value is left out.
    """
    effects = {}
    for setting, other in (("alpha", "k_or_max_k"), ("k_or_max_k", "alpha")):
        grid = study.bh.pivot(index=other, columns=setting, values=column).sort_index(axis="columns")
        if grid.shape[1] > 1:
            first, last = grid.iloc[:, 0], grid.iloc[:, -1]
            changes = (last - first if "accuracy" in column else last / first).dropna()
            if len(changes):
                effects[setting] = grid.columns[0], grid.columns[-1], changes.min(), changes.max()
    return effects


# Power


def powerless(study: Study) -> dict[str, tuple[tuple[str, ...], int]]:
    """The data sets with too few samples for any significant difference: {data set: (strategies, samples)}.

    There the smallest p-value that the test can give, corrected by Holm for the configurations of the
    strategy, is not below the level; or there is a single sample and no test.
    """
    without_power = {}
    strategies = study.configurations.set_index("config")["strategy"]
    for dataset, score in study.scores.items():
        rows = study.comparisons
        rows = rows[(rows["dataset"] == dataset) & (rows["metric"] == score)]
        for strategy, family in rows.groupby(rows["config"].map(strategies), sort=False):
            with_test = family[family["p_value"].notna()]
            smallest = [
                len(with_test) * smallest_attainable_p(test, samples)
                for test, samples in zip(with_test["test"], with_test["samples"], strict=True)
            ]
            if min(smallest, default=1.0) >= SIGNIFICANCE_LEVEL:
                names, samples = without_power.get(dataset, ((), 0))
                without_power[dataset] = (*names, strategy), max(samples, int(family["samples"].max()))
    return without_power


def typical_half_width(study: Study, dataset: str) -> float:
    """The median over configurations of half the width of the 95 % interval on a data set."""
    rows = _score_rows(study, dataset)
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
