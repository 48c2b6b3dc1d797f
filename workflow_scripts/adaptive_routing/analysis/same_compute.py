"""Adaptive against fixed numbers of experts at the same compute: paired tests of a configuration's controls.

An adaptive configuration C has up to three controls on the same samples: `fixed` gives every layer C's mean
count, `layerwise` each layer its own mean, `shuffled` each token the count of another token of its layer. All
four run equally many experts, so that C − fixed is what adapting is worth, and it is a sum:

    C − fixed = (C − shuffled) + (shuffled − layerwise) + (layerwise − fixed)
                what token information, spread and layers are worth

Each is a paired comparison (`analysis/statistics.py`) in the unit in which it adds up: nats per predicted
token (per word of whole articles), or share of samples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from adaptive_routing.analysis import statistics
from adaptive_routing.analysis.contrasts import ADAPTIVE, ANSWER, BETTER, CONTRASTS, OPEN, SAME, WORSE
from adaptive_routing.analysis.paired import LOSS, compare_pair, deciding_metric
from adaptive_routing.analysis.recommendations import FEWEST_SAMPLES, QualityMargins
from adaptive_routing.analysis.study import SIGNIFICANCE_LEVEL, lower_is_better
from adaptive_routing.analysis.tables import exp_of, paired_samples

if TYPE_CHECKING:
    from adaptive_routing.evaluation.experiment import Summary

SAME_COMPUTE_COLUMNS = [
    "config",
    "strategy",
    "dataset",
    "contrast",
    "metric",
    "deciding",
    "avg_experts",
    "compared",
    "reference",
    "value",
    "reference_value",
    "difference",
    "stderr",
    "ci_low",
    "ci_high",
    "ratio",
    "ratio_ci_low",
    "ratio_ci_high",
    "p_value",
    "p_holm",
    "verdict",
    "test",
    "samples",
    "clusters",
    "identical",
]


def same_compute_table(
    summaries: Sequence[Summary], experiments: Sequence[Mapping[str, Any]], margins: QualityMargins
) -> pd.DataFrame:
    """Make one row per adaptive configuration, data set, contrast and metric; none without controls.

    Args:
        summaries: contents of logs/{config}_{dataset}.json; those of controls have `control`, `control_of`.
        experiments: contents of metrics/{config}_{dataset}.json, for `avg_experts`.
        margins: what counts as the same quality.

    Columns: `compared` and `reference` name the two configurations, `value` and `reference_value` are their
    values of `metric`. `difference`, `stderr`, `ci_low` and `ci_high` are in nats per predicted token or word
    for perplexities and losses, with the ratio of the perplexities beside them, and in share of samples for
    accuracies. `avg_experts` is C's on that data set.

    A contrast has a row for the metric that decides (`deciding`), an accuracy or a perplexity that weighs
    every token or word the same, where the data set has one, and a row for `loss`, the mean over the
    predicted tokens; of multiple choice, those of the right choice. It uses the samples that C and all its
    controls have, so that contrasts add up.

    Families of Holm's correction and of the simultaneous intervals: the `answer` of all configurations on all
    data sets; the other three contrasts; each once for the deciding metric and once for the loss.

    `verdict` on the first of the two configurations: `better` or `worse` after the correction; `same` where
    the interval lies within the margins, or where every loss is the same; else `open`.
    """
    experts = {(one["config"], one["dataset"]): one["metrics"]["avg_experts"] for one in experiments}
    controls = _controls(summaries)
    rows, families = [], {}
    for summary in summaries:
        experiment = summary["config"], summary["dataset"]
        if experiment not in controls:
            continue
        head = {"config": summary["config"], "strategy": summary["strategy"], "dataset": summary["dataset"]}
        head["avg_experts"] = experts.get(experiment)
        for row in _contrasts({ADAPTIVE: summary, **controls[experiment]}):
            rows.append(head | row)
            family = row["contrast"] == ANSWER, row["deciding"]
            families.setdefault(family, []).append(rows[-1])
    for family in families.values():
        corrected, intervals = statistics.simultaneous_intervals([row["paired"] for row in family])
        for row, p_holm, (low, high) in zip(family, corrected, intervals, strict=True):
            row |= {"p_holm": p_holm, "ci_low": low, "ci_high": high}
            if lower_is_better(row["metric"]):
                row |= {"ratio": exp_of(row["difference"])}
                row |= {"ratio_ci_low": exp_of(low), "ratio_ci_high": exp_of(high)}
            row["verdict"] = _verdict(row, margins)
    return pd.DataFrame(rows, columns=SAME_COMPUTE_COLUMNS)


def _controls(summaries):
    """The summaries of controls: {(configuration, data set): {kind of control: summary}}."""
    controls = {}
    for summary in summaries:
        if summary.get("control"):
            of = summary["control_of"], summary["dataset"]
            controls.setdefault(of, {})[summary["control"]] = summary
    return controls


def _contrasts(by_role):
    """Yield the rows of an adaptive configuration and its controls, {role: summary}, without corrections."""
    summaries = list(by_role.values())
    shared = paired_samples(*summaries)
    if not shared:
        return
    samples = dict(zip(by_role, zip(*shared, strict=True), strict=True))
    metric = deciding_metric(summaries)
    for contrast, (own, reference) in CONTRASTS.items():
        if own not in samples or reference not in samples:
            continue
        pair = samples[own], samples[reference]
        identical = all(a["loss"] == b["loss"] for a, b in zip(*pair, strict=True))
        for name in dict.fromkeys([metric, LOSS] if metric else [LOSS]):
            yield {
                "contrast": contrast,
                "metric": name,
                "deciding": name == metric,
                "compared": by_role[own]["config"],
                "reference": by_role[reference]["config"],
                "identical": identical,
                **compare_pair(name, *pair),
            }


def _verdict(row, margins):
    if row["p_holm"] is not None and row["p_holm"] < SIGNIFICANCE_LEVEL and row["difference"]:
        improved = (row["difference"] < 0) == lower_is_better(row["metric"])
        return BETTER if improved else WORSE
    if row["identical"]:
        return SAME
    if row["ci_low"] is None or row["samples"] < FEWEST_SAMPLES:
        return OPEN
    margin = math.log1p(margins.perplexity) if lower_is_better(row["metric"]) else margins.accuracy
    return SAME if max(-row["ci_low"], row["ci_high"]) <= margin else OPEN
