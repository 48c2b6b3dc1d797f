"""What raising alpha or max_k does to the scores of BH: paired tests between the two ends of the grid."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from adaptive_routing.analysis import statistics
from adaptive_routing.analysis.paired import LOSS, compare_pair, deciding_metric
from adaptive_routing.analysis.tables import paired_samples
from adaptive_routing.settings.configurations import family

if TYPE_CHECKING:
    from adaptive_routing.evaluation.experiment import Summary

SETTINGS = (("alpha", "k_or_max_k"), ("k_or_max_k", "alpha"))  # each, and what is held meanwhile
SETTING_EFFECT_COLUMNS = [
    *("family", "setting", "held_value", "dataset", "metric"),
    *("from_value", "to_value", "compared", "reference"),
    *("difference", "stderr", "ci_low", "ci_high", "p_value", "p_holm", "test", "samples", "clusters"),
]


def setting_effects_table(summaries: Sequence[Summary]) -> pd.DataFrame:
    """Make one row per rule of BH, setting, value of the other setting and data set; none for a single value.

    summaries: contents of logs/{config}_{dataset}.json. `compared` has the setting's largest value,
    `reference` its smallest, both with `held_value` of the other. `difference` and its interval are of the
    metric that decides, in nats per predicted token or word for perplexities and losses, in share of samples
    for accuracies. All rows are one family of Holm's correction and of the simultaneous intervals.
    """
    groups: dict[tuple[str, str], list[Summary]] = {}
    for summary in summaries:
        if summary["strategy"] == "bh" and not summary.get("control"):
            groups.setdefault((family(summary["config"]), summary["dataset"]), []).append(summary)
    rows: list[dict[str, Any]] = []
    for setting, held in SETTINGS:
        for (rule, dataset), group in groups.items():
            for value in dict.fromkeys(one[held] for one in group):
                own = [one for one in group if one[held] == value]
                ends = (choose(own, key=operator.itemgetter(setting)) for choose in (min, max))
                row = _compare_ends(*ends, setting)
                if row:
                    head = {"family": rule, "setting": setting, "held_value": value, "dataset": dataset}
                    rows.append(head | row)
    pairs: list[statistics.PairedDifference] = [row["paired"] for row in rows]
    corrected, intervals = statistics.simultaneous_intervals(pairs)
    for row, p_holm, (low, high) in zip(rows, corrected, intervals, strict=True):
        row |= {"p_holm": p_holm, "ci_low": low, "ci_high": high}
    return pd.DataFrame(rows, columns=SETTING_EFFECT_COLUMNS)


def _compare_ends(first, last, setting):
    """The columns of a comparison of two summaries; None where they are the same or share no samples."""
    shared = paired_samples(last, first)
    if first is last or not shared:
        return None
    metric = deciding_metric([last, first]) or LOSS
    return {
        "metric": metric,
        "from_value": first[setting],
        "to_value": last[setting],
        "compared": last["config"],
        "reference": first["config"],
        **compare_pair(metric, *zip(*shared, strict=True)),
    }
