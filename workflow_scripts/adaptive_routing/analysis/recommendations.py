"""The rules that turn the tables into answers: which configuration for which aim, and on what evidence.

Pure functions on a `Study`. Tests are those of the comparisons table: paired against the baseline, corrected
by Holm. A data set here is one with a perplexity or an accuracy; others decide nothing.

- *Better* and *worse* are what a test shows.
- *The same quality* is what intervals show: on every data set the 95 % interval excludes a loss beyond a
  margin fixed in advance (non-inferiority; Piaggio et al., JAMA 308, 2012). A loss that was not shown is no
  proof of equality: with few samples it may have gone unseen.
- *Faster* is faster on every data set, since speeds have no standard error.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from adaptive_routing.analysis.statistics import smallest_attainable_p
from adaptive_routing.analysis.study import SIGNIFICANCE_LEVEL, Study, lower_is_better
from adaptive_routing.analysis.tables import averaged_datasets

# Fewer samples prove nothing to be within a margin: an interval rests on their mean being about normal.
FEWEST_SAMPLES = 30

QUALITY, COMPUTE, SPEED = "quality", "compute", "speed"

# Why a choice is what it is. SHOWN supports a configuration; each of the others keeps the baseline.
SHOWN = "shown"
NO_CANDIDATE = "no candidate"  # none measured better; none runs fewer experts; none was faster
UNMEASURED = "unmeasured"  # the baseline's speed
UNTESTED = "untested"  # no candidate was compared on every data set
CONFLICT = "conflict"  # better on one data set, worse on another
UNPROVEN = "unproven"  # a candidate shows no loss, nor that it is better or within the margin
LOSES = "loses"  # every candidate is shown to be worse on a data set


@dataclass(frozen=True)
class Margins:
    """The largest losses of quality that count as none: settings `report` of the config file."""

    perplexity: float  # share of the baseline's perplexity
    accuracy: float  # share of samples

    def of(self, comparison: pd.Series) -> float:
        """The margin of a row of the comparisons table, in the unit of its score."""
        if lower_is_better(comparison["metric"]):
            return self.perplexity * comparison["baseline_value"]
        return self.accuracy


@dataclass(frozen=True)
class Choice:
    """What to use for an aim: a configuration and why; `candidate` came closest where it is the baseline."""

    aim: str
    config: str
    reason: str
    candidate: str | None = None


@dataclass(frozen=True)
class Decision:
    """All that a study recommends, and its verdict on BH (see `bh_verdict`, `bh_outcomes`)."""

    quality: Choice
    compute: Choice
    speed: Choice
    bh: str
    bh_outcomes: dict[str, list[str]]

    @property
    def choices(self) -> tuple[Choice, ...]:
        return self.quality, self.compute, self.speed


@dataclass(frozen=True)
class SameCompute:
    """BH configurations against top-k at the same average number of experts; lists of configuration names."""

    column: str
    better: list[str]
    worse: list[str]
    outside: list[str]  # fewer or more experts than any top-k configuration: nothing to compare with


def obstacle(study: Study) -> str | None:
    """Why nothing can be recommended: "baseline" or "comparisons" (there are none), "scores"; or None."""
    if study.baseline_row is None:
        return "baseline"
    if study.comparisons.empty:
        return "comparisons"
    return None if study.scored_datasets else "scores"


def decide(study: Study, margins: Margins) -> Decision:
    """Return the `Decision` of a study without an `obstacle`."""
    return Decision(
        _best_quality(study, margins),
        _at_same_quality(study, margins, COMPUTE, cheaper(study), "avg_experts", ascending=True),
        _at_same_quality(study, margins, SPEED, faster(study), "tokens_per_second", ascending=False),
        bh_verdict(study, margins),
        bh_outcomes(study, margins),
    )


def _best_quality(study, margins):
    """Better on a data set and worse on none; of several, the one with the smallest `mean_loss`."""
    others = [config for config in tested(study) if config != study.baseline]
    measured_better = [
        config
        for config in others
        if any(measured_loss(study.comparison(config, d)) < 0 for d in study.scored_datasets)
    ]

    improved = [config for config in measured_better if better_on(study, config)]
    supported = [config for config in improved if not worse_on(study, config)]
    open_ones = [config for config in measured_better if not worse_on(study, config)]
    if supported:
        return Choice(QUALITY, _with_least_loss(study, supported, margins), SHOWN)
    if improved:
        return Choice(QUALITY, study.baseline, CONFLICT, _with_least_loss(study, improved, margins))
    if open_ones:
        return Choice(QUALITY, study.baseline, UNPROVEN, _with_least_loss(study, open_ones, margins))
    if measured_better:
        return Choice(QUALITY, study.baseline, LOSES, _with_least_loss(study, measured_better, margins))
    return Choice(QUALITY, study.baseline, NO_CANDIDATE if others else UNTESTED)


def _at_same_quality(study, margins, aim, candidates, column, ascending):
    """The first by `column` of the candidates that are within the margin on every data set."""
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
    open_ones = [config for config in ordered if not worse_on(study, config)]
    if open_ones:
        return Choice(aim, study.baseline, UNPROVEN, open_ones[0])
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
    """Tokens per second over the baseline's: a frame of configurations x data sets that averages are over."""
    table = study.experiments
    table = table[table["dataset"].isin(averaged_datasets(study.datasets))]
    speeds = table.pivot(index="config", columns="dataset", values="tokens_per_second")
    return speeds / speeds.loc[study.baseline]


def flops_ratio(study: Study, config: str) -> float:
    """Operations of a forward pass over the baseline's, counted from the model's shapes; NaN if unknown."""
    if not study.has("flops_reduction_exact_pct"):
        return math.nan
    # The column is what is saved against the model's own top-k, which the baseline need not be.
    saved = study.configurations.set_index("config")["flops_reduction_exact_pct"]
    return float((100 - saved[config]) / (100 - saved[study.baseline]))


def better_on(study: Study, config: str) -> list[str]:
    """The data sets on which the configuration is shown to be better than the baseline."""
    return [d for d in study.scored_datasets if study.verdict(config, d) == "better"]


def worse_on(study: Study, config: str) -> list[str]:
    """The data sets on which the configuration is shown to be worse than the baseline."""
    return [d for d in study.scored_datasets if study.verdict(config, d) == "worse"]


def within_margin(study: Study, config: str, margins: Margins) -> bool:
    """Whether the configuration is shown to lose no more than the margin on any data set."""
    return all(
        study.verdict(config, d) and excludes_loss(study.comparison(config, d), margins)  # ty: ignore[invalid-argument-type]
        for d in study.scored_datasets
    )


def excludes_loss(comparison: pd.Series, margins: Margins) -> bool:
    """Whether the interval, of enough samples and with a width, excludes a loss beyond the margin."""
    has_width = comparison["ci_high"] > comparison["ci_low"]
    enough = comparison["samples"] >= FEWEST_SAMPLES
    return bool(has_width and enough and largest_loss(comparison) <= margins.of(comparison))


def largest_loss(comparison: pd.Series) -> float:
    """The largest loss of quality that the comparison's 95 % interval allows, in the score's unit."""
    return comparison["ci_high"] if lower_is_better(comparison["metric"]) else -comparison["ci_low"]


def smallest_loss(comparison: pd.Series) -> float:
    """The smallest loss that it allows; negative where a gain is possible."""
    return comparison["ci_low"] if lower_is_better(comparison["metric"]) else -comparison["ci_high"]


def measured_loss(comparison: pd.Series) -> float:
    """The measured loss of quality against the baseline, in the score's unit; negative for a gain."""
    difference = float(comparison["difference"])
    return difference if lower_is_better(comparison["metric"]) else -difference


def mean_loss(study: Study, config: str, margins: Margins) -> float:
    """The measured loss in margins, the mean over the data sets: one number to order configurations by."""
    rows = [study.comparison(config, d) for d in study.scored_datasets]
    return float(np.mean([measured_loss(row) / margins.of(row) for row in rows]))  # ty: ignore[invalid-argument-type]


def least_loss(study: Study, margins: Margins) -> str | None:
    """The BH configuration with fewer experts than the baseline and the smallest `mean_loss`; or None."""
    candidates = set(cheaper(study)) & set(study.bh["config"]) & set(tested(study))
    return _with_least_loss(study, candidates, margins) if candidates else None


def _with_least_loss(study, configs, margins):
    """The configuration with the smallest `mean_loss`; of equal ones that with the fewest experts."""
    experts = study.configurations.set_index("config")["avg_experts"]
    return min(configs, key=lambda config: (mean_loss(study, config, margins), experts[config]))


def scores_of(study: Study, column: str) -> list[str]:
    """The data sets whose scores make up a column of the configurations table."""
    return [
        dataset
        for dataset, score in study.scores.items()
        if score == column or (score.endswith("_accuracy") and column == "avg_task_accuracy")
    ]


def best_measured(study: Study, column: str) -> str | None:
    """The configuration with the best value in `column`, of those with results on every data set; or None.

    Of equal values the one with the fewest experts counts.
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


# BH


def bh_outcomes(study: Study, margins: Margins) -> dict[str, list[str]]:
    """Sort the BH configurations by what tests and intervals say; each stands in one list.

    `better` on at least one data set and worse on none; `same` quality, within the margin; `mixed`, better on
    one data set and worse on another; `worse` on at least one; `open`, no difference shown and no equality
    either; `untested`, not compared on every data set and not worse on one.
    """
    outcomes = {name: [] for name in ("better", "same", "mixed", "worse", "open", "untested")}
    compared = set(tested(study))
    for config in study.bh["config"]:
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


def bh_verdict(study: Study, margins: Margins) -> str:
    """What the study says of BH, in a word.

    `better` than the baseline; the same quality with fewer experts, `cheaper`; the same quality without
    fewer, `vain`; `open`; `powerless`, so few samples that nothing could be shown; `mixed`; `worse`;
    `untested`; `absent`, there is no BH configuration.
    """
    outcomes = bh_outcomes(study, margins)
    if not any(outcomes.values()):
        return "absent"
    if outcomes["better"]:
        return "better"
    if set(outcomes["same"]) & set(cheaper(study)):
        return "cheaper"
    if outcomes["open"]:
        without_power = [d for d, (strategies, _) in powerless(study).items() if "bh" in strategies]
        return "powerless" if without_power == study.scored_datasets else "open"
    return next(
        word
        for word, name in (("mixed", "mixed"), ("vain", "same"), ("worse", "worse"), ("untested", "untested"))
        if outcomes[name]
    )


def same_compute(study: Study, column: str) -> SameCompute | None:
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


def below_every_topk(study: Study) -> pd.DataFrame:
    """The BH configurations that run fewer experts than any top-k of the study, as rows of the table."""
    smallest = study.topk["avg_experts"].min() if len(study.topk) else math.inf
    return study.bh[study.bh["avg_experts"] < smallest]


def fixed_k_to_add(study: Study) -> list[int]:
    """The k of top-k configurations that would run as many experts as BH below the smallest k of the grid."""
    smallest = study.topk["avg_experts"].min() if len(study.topk) else math.inf
    below = below_every_topk(study)["avg_experts"]
    return sorted({k for k in below.round().astype(int) if 1 <= k < smallest})


def setting_effects(study: Study, column: str) -> dict[str, tuple[float, float, float, float]]:
    """What each BH setting does to `column` while the other is held: {setting: (first, last, low, high)}.

    From the smallest value of `alpha` (or `k_or_max_k`) to the largest: the smallest and the largest change
    of `column` over the values of the other setting, as a ratio, of an accuracy as a difference. A setting
    with a single value is left out.
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
            with_test = family[family["p_value"].notna()]
            smallest = [
                len(with_test) * smallest_attainable_p(test, samples)
                for test, samples in zip(with_test["test"], with_test["samples"], strict=True)
            ]
            if min(smallest, default=1.0) >= SIGNIFICANCE_LEVEL:
                names, samples = found.get(dataset, ((), 0))
                found[dataset] = (*names, strategy), max(samples, int(family["samples"].max()))
    return found


def typical_half_width(study: Study, dataset: str) -> float:
    """Half the width of a comparison's 95 % interval on the data set, the median over configurations."""
    rows = _score_rows(study, dataset)
    return float(((rows["ci_high"] - rows["ci_low"]) / 2).median()) if len(rows) else math.nan


def margin_on(study: Study, dataset: str, margins: Margins) -> float:
    """The margin on a data set, in the unit of its score."""
    return margins.of(_score_rows(study, dataset).iloc[0])


def samples_needed(study: Study, dataset: str, margins: Margins) -> int | None:
    """About how many samples make the typical interval's half width the margin; None where it is already.

    A half width shrinks with the root of the number of samples. So many would show that a configuration
    exactly as good as the baseline is within the margin in half of all cases.
    """
    half_width, margin = typical_half_width(study, dataset), margin_on(study, dataset, margins)
    if not half_width > margin or math.isclose(half_width, margin):
        return None
    needed = samples(study, dataset) * (half_width / margin) ** 2
    digits = 2 - len(str(int(needed)))
    return int(round(needed, digits)) if digits < 0 else math.ceil(needed)


def samples(study: Study, dataset: str) -> float:
    """How many samples a comparison on the data set rests on, the median over configurations."""
    return float(_score_rows(study, dataset)["samples"].median())


def _score_rows(study, dataset):
    rows = study.comparisons
    return rows[(rows["dataset"] == dataset) & (rows["metric"] == study.scores[dataset])]
