"""What the comparisons with controls say of each adaptive rule, as counts and verdicts.

Pure functions on a `Study`. The tests are those of `bh_routing_same_compute.csv`: one family of Holm's
correction over all configurations and data sets for the answer (C against `fixed`), and one for the three
contrasts that it is the sum of. So a configuration that is better on one data set and worse on none is
better, with the error of the family.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from adaptive_routing.analysis.contrasts import (
    ANSWER,
    BETTER,
    OPEN,
    PARTS,
    SAME,
    WORSE,
)
from adaptive_routing.analysis.study import SIGNIFICANCE_LEVEL, lower_is_better

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from adaptive_routing.analysis.recommendations import QualityMargins
    from adaptive_routing.analysis.study import Study

MIXED = "mixed"
OUTCOMES = (BETTER, WORSE, MIXED, SAME, OPEN)
FEWEST_CLUSTERS = 10
# What bins are called that are named by their rank, by their number.
PARTS_OF = {4: ("lowest quarter", "second quarter", "third quarter", "highest quarter")}


@dataclass(frozen=True)
class RuleOutcome:
    """One of `Study.families` in one contrast: {outcome: its configurations}, each in one list.

    - `better`: better on at least one data set and worse on none; `worse`: the reverse
    - `mixed`: better on one data set and worse on another
    - `same`: within the margin on every data set
    - `open`: no difference was shown, but the intervals do not exclude one beyond the margin
    """

    family: str
    contrast: str
    outcomes: dict[str, list[str]]

    @property
    def configs(self) -> list[str]:
        """All configurations that were compared."""
        return [config for configs in self.outcomes.values() for config in configs]

    def count(self, outcome: str) -> int:
        """How many configurations have an outcome."""
        return len(self.outcomes[outcome])

    @property
    def verdict(self) -> str:
        """The outcome of the rule: that of the configurations that differ, `mixed` where these disagree."""
        better, worse, mixed = map(self.count, (BETTER, WORSE, MIXED))
        if mixed or (better and worse):
            return MIXED
        if better or worse:
            return BETTER if better else WORSE
        return SAME if self.count(SAME) == len(self.configs) else OPEN


def has_answer(study: Study) -> bool:
    """Whether any configuration was compared with its `fixed` control."""
    return bool((study.answers["contrast"] == ANSWER).any())


def leading_rules(families: Sequence[str]) -> list[str]:
    """The rules that sentences are about where a study has many: BH's, or the first where there is no BH."""
    return [family for family in families if family.partition("_")[0] == "bh"] or list(families[:1])


def rows_of(study: Study, contrast: str, configs: Iterable[str] | None = None) -> pd.DataFrame:
    """The deciding rows of a contrast, of all or of some configurations."""
    rows = study.answers[study.answers["contrast"] == contrast]
    return rows if configs is None else rows[rows["config"].isin(list(configs))]


def by_rule(study: Study, contrast: str) -> list[RuleOutcome]:
    """The outcome of every rule that was compared in a contrast, in table order."""
    outcomes = {}
    for config, rows in rows_of(study, contrast).groupby("config", sort=False):
        family = outcomes.setdefault(study.family(str(config)), {name: [] for name in OUTCOMES})
        family[_outcome(set(rows["verdict"]))].append(str(config))
    order = {family: i for i, family in enumerate(study.families)}
    names = sorted(outcomes, key=lambda family: order.get(family, len(order)))
    return [RuleOutcome(family, contrast, outcomes[family]) for family in names]


def _outcome(verdicts):
    if {BETTER, WORSE} <= verdicts:
        return MIXED
    for name in (BETTER, WORSE):
        if name in verdicts:
            return name
    return SAME if verdicts == {SAME} else OPEN


def without_controls(study: Study) -> list[str]:
    """The rules that have no configuration with a `fixed` control, where others have."""
    compared = {outcome.family for outcome in by_rule(study, ANSWER)}
    return [family for family in study.families if family not in compared]


def best(study: Study, configs: Iterable[str], margins: QualityMargins) -> str:
    """Of some configurations, that with the smallest loss against its `fixed` control.

    Losses are in units of the margin, averaged over the data sets. Among ties, the first in table order.
    """
    rows = rows_of(study, ANSWER, configs)
    losses = pd.Series([_in_margins(row, margins) for _, row in rows.iterrows()], index=rows["config"])
    return str(losses.groupby(level=0, sort=False).mean().idxmin())


def _in_margins(row, margins):
    """A row's measured loss in units of the margin; negative for a gain."""
    if lower_is_better(row["metric"]):
        return row["difference"] / math.log1p(margins.perplexity)
    return -row["difference"] / margins.accuracy


def mean_parts(study: Study, family: str) -> pd.DataFrame:
    """Mean difference over a rule's configurations: a frame of data sets x (three parts, answer)."""
    rows = study.answers[study.answers["config"].map(study.family) == family]
    table = rows.pivot_table(index="dataset", columns="contrast", values="difference", sort=False)
    return table.reindex(columns=[*PARTS, ANSWER])


def few_clusters(study: Study) -> dict[str, int]:
    """The data sets with fewer than `FEWEST_CLUSTERS` independent clusters: {data set: clusters}."""
    return {dataset: count for dataset, count in study.clusters.items() if count < FEWEST_CLUSTERS}


def where_counts(study: Study, family: str) -> dict[str, tuple[list[str], list[str], int]]:
    """Every way to divide the tokens, for one rule: {division: (bins better, bins worse, number of bins)}.

    A bin is better or worse where the difference of the loss is significant in at least one configuration
    of the rule and on one data set, after the correction over the bins. A bin that is both is in both lists.
    """
    counts: dict[str, tuple[list[str], list[str], int]] = {}
    places, labels = zip(*bins_of(study.where), strict=True) if len(study.where) else ((), ())
    where = study.where.assign(place=places, label=labels).sort_values("place", kind="stable")
    where = where[where["config"].map(study.family) == family]
    for by, rows in where.groupby("by", sort=False):
        significant = rows[rows["p_holm"].astype(float) < SIGNIFICANCE_LEVEL]
        better, worse = (
            list(dict.fromkeys(significant.loc[np.sign(significant["difference"]) == sign, "label"]))
            for sign in (-1, 1)
        )
        counts[str(by)] = better, worse, int(rows["label"].nunique())
    return counts


def bins_of(table: pd.DataFrame) -> pd.Series:
    """(place, name) of the bin of every row of `Study.where`, indexed as it is.

    Where the bins of configurations differ, as quartiles of their own do, or look the same, they are named by
    rank.
    """
    found = {}
    for _, rows in table.groupby(["dataset", "by"], sort=False):
        bins = {tuple(sorted(set(own["bin_low"]))) for _, own in rows.groupby("config")}
        first = rows[rows["config"] == rows["config"].iloc[0]]
        by_rank = len(bins) > 1 or first["label"].duplicated().any()
        for _, own in rows.groupby("config", sort=False):
            lows = sorted(set(own["bin_low"]))
            for index, row in own.iterrows():
                place, count = lows.index(row["bin_low"]), len(lows)
                name = str(row["label"])
                if by_rank:
                    name = PARTS_OF[count][place] if count in PARTS_OF else f"{place + 1} of {count}"
                found[index] = (float(place) if by_rank else float(row["bin_low"]), name)
    return pd.Series(found, dtype=object).reindex(table.index)
