"""The results tables, as pandas data frames: experiments, configurations, layers and comparisons.

Rows keep the order of the experiments. A value that does not exist is NaN or None in a frame, empty in CSV
and null in JSON.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from adaptive_routing.analysis import statistics
from adaptive_routing.analysis.metrics import ALL_METRICS, CONFIGURATION_KEYS, HEAD, PER_LAYER_METRICS
from adaptive_routing.data.tasks.uncertainty import clusters_of, exp_or_none
from adaptive_routing.system.errors import InputError
from adaptive_routing.system.files import atomic_path
from adaptive_routing.system.json_files import write_json

if TYPE_CHECKING:
    from adaptive_routing.evaluation.experiment import Summary

METRIC_NAMES = [metric.name for metric in ALL_METRICS]
PER_LAYER_NAMES = [metric.name for metric in PER_LAYER_METRICS]
COMPARISON_COLUMNS = [
    "config",
    "dataset",
    "metric",
    "baseline_value",
    "baseline_value_stderr",
    "value",
    "value_stderr",
    "difference",
    "ci_low",
    "ci_high",
    "p_value",
    "p_holm",
    "p_bh",
    "effect_size",
    "test",
    "samples",
    "clusters",
    "identical",
    "ratio",
    "ratio_ci_low",
    "ratio_ci_high",
    "p_wilcoxon",
    "p_wilcoxon_holm",
    "p_wilcoxon_bh",
    "p_bootstrap",
    "p_bootstrap_holm",
    "p_bootstrap_bh",
]
# What makes two comparisons one family: see `comparisons_table`.
_SCORE, _LOSS = "score", "loss"
# The perplexities that can be a data set's score; the first that it has decides. Only whole articles have one
# per word. `perplexity`, the mean over rows, decides only where it is the only one: a heading of four tokens
# weighs as much in it as a paragraph.
SCORE_PERPLEXITIES = ("word_perplexity", "token_perplexity", "perplexity")
# What the samples' total loss is divided by, for a perplexity that weighs every word or token the same.
SIZES = {"word_perplexity": "num_words", "token_perplexity": "num_predicted_tokens"}
# Each p-value, and the prefix of its two corrections' names.
_P_VALUES = (("p_value", "p"), ("p_wilcoxon", "p_wilcoxon"), ("p_bootstrap", "p_bootstrap"))
# Data sets that enter no average: a dozen prompts, continued token by token, say nothing about a
# configuration's speed and little about its expert counts. They have their own rows, and difficulty.py.
_NOT_AVERAGED = {"prompts"}
# How the values of several data sets become a configuration's.
_OVER_DATASETS = {metric.name: metric.over_datasets for metric in ALL_METRICS}
_COMBINE = {"mean": lambda values: sum(values) / len(values), "sum": sum, "min": min, "max": max}
# Not combined at all, or computed from sums.
_UNNORMALIZED = {"accuracy_unnormalized", "accuracy_unnormalized_stderr"}
_NOT_COMBINED = _UNNORMALIZED | {"tokens_per_second"}


def check_distinct(paths: Sequence[Path | str], contents: Sequence[Mapping[str, Any]]) -> None:
    """Raise InputError where two files (paths, and their contents) hold the same experiment."""
    seen = {}
    for path, content in zip(paths, contents, strict=True):
        experiment = content["config"], content["dataset"]
        if experiment in seen:
            raise InputError(
                f"{path} and {seen[experiment]} both hold {' on '.join(experiment)}; delete the one with the "
                "wrong name and run again"
            )
        seen[experiment] = path


def experiments_table(experiments: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Make one row per experiment: the head, the 16 metrics, the extra metrics.

    experiments: contents of metrics/{config}_{dataset}.json.
    """
    rows = [{**{key: e[key] for key in HEAD}, **e["metrics"]} for e in experiments]
    return pd.DataFrame(rows, columns=[*HEAD, *METRIC_NAMES])


def averaged_datasets(datasets: Iterable[str]) -> list[str]:
    """The data sets that enter averages: all but `prompts`, which count only if there are no others."""
    datasets = list(dict.fromkeys(datasets))
    return [dataset for dataset in datasets if dataset not in _NOT_AVERAGED] or datasets


def configurations_table(experiments: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Make one row per configuration: its keys, each data set's accuracy, and the metrics over its data sets.

    The data sets are those of `averaged_datasets`. A metric is the plain mean over the data sets that have
    it, whatever their numbers of tokens; `latency_ms_per_token` is therefore a mean of medians. Exceptions:
    `min_experts` and `max_experts` are the extremes, totals and `forward_seconds` are sums,
    `tokens_per_second` is the sum of tokens / the sum of forward time, and a standard error is √(Σ se²) / n,
    missing if a data set's is missing.
    """
    averaged = averaged_datasets(e["dataset"] for e in experiments)
    experiments = [e for e in experiments if e["dataset"] in averaged]
    by_config = {}
    for experiment in experiments:
        by_config.setdefault(experiment["config"], []).append(experiment)
    accuracy_datasets = list(
        dict.fromkeys(e["dataset"] for e in experiments if e["metrics"]["avg_task_accuracy"] is not None)
    )
    accuracy_columns = [f"{d}_accuracy{suffix}" for d in accuracy_datasets for suffix in ("", "_stderr")]
    names = [name for name in METRIC_NAMES if name not in _UNNORMALIZED]
    rows = [_configuration_row(names, group) for group in by_config.values()]
    return pd.DataFrame(rows, columns=[*CONFIGURATION_KEYS, "datasets", *accuracy_columns, *names])


def _configuration_row(names, experiments):
    row = {key: experiments[0][key] for key in CONFIGURATION_KEYS}
    row["datasets"] = ",".join(e["dataset"] for e in experiments)
    for name in names:
        # A value without a standard error makes the mean's standard error unknown.
        values = [
            e["metrics"][name] for e in experiments if e["metrics"][name.removesuffix("_stderr")] is not None
        ]
        if values and None not in values and name not in _NOT_COMBINED:
            row[name] = _combine(name, values)
    row["tokens_per_second"] = row["total_tokens"] / row["forward_seconds"]
    for experiment in experiments:
        if experiment["metrics"]["avg_task_accuracy"] is not None:
            column = f"{experiment['dataset']}_accuracy"
            row[column] = experiment["metrics"]["avg_task_accuracy"]
            row[f"{column}_stderr"] = experiment["metrics"]["avg_task_accuracy_stderr"]
    return row


def _combine(name, values):
    if name.endswith("_stderr"):
        return statistics.mean_standard_error(values)
    return _COMBINE[_OVER_DATASETS[name]](values)


def layers_table(experiments: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Make one row per experiment and MoE layer, counted from 0, with the per-layer metrics."""
    rows = [
        {
            "config": e["config"],
            "dataset": e["dataset"],
            "layer": layer,
            **{name: e["per_layer"][name][layer] for name in PER_LAYER_NAMES},
        }
        for e in experiments
        for layer in range(len(e["per_layer"]["avg_experts"]))
    ]
    return pd.DataFrame(rows, columns=["config", "dataset", "layer", *PER_LAYER_NAMES])


def comparisons_table(summaries: Sequence[Summary], baseline: str) -> pd.DataFrame:
    """Compare every configuration with the baseline on each data set, over the samples both have.

    Controls are left out: they are compared with their configuration (`same_compute`).

    summaries: contents of logs/{config}_{dataset}.json; baseline: a configuration's name. A data set gives
    a row for its score (`{dataset}_accuracy`, or the first of `SCORE_PERPLEXITIES`) if it has one, then a row
    for `loss`, the mean over samples. `ratio` is the perplexity ratio; `identical` says whether every
    sample's loss is the same: both ran the same computation.

    The configurations of one strategy on all data sets are one family, for scores and for losses: 16 BH
    configurations on three data sets are 48 comparisons. Each of the three p-values (`p_value` of `test`,
    `p_wilcoxon`, `p_bootstrap`) is corrected over it by Holm and by Benjamini and Hochberg, and the intervals
    are simultaneous over it (`statistics.simultaneous_intervals`).
    """
    baselines = {s["dataset"]: s for s in summaries if s["config"] == baseline}
    rows, families = [], {}
    for summary in summaries:
        dataset = summary["dataset"]
        if summary["config"] == baseline or dataset not in baselines or summary.get("control"):
            continue
        for comparison in _compare(baselines[dataset], summary):
            row = {"config": summary["config"], "dataset": dataset, **comparison}
            kind = _LOSS if row["metric"] == "loss" else _SCORE
            families.setdefault((summary["strategy"], kind), []).append(row)
            rows.append(row)
    for family in families.values():
        for column, name in _P_VALUES:
            p_values = [row.get(column) for row in family]
            for suffix, method in (("holm", "holm"), ("bh", "fdr_bh")):
                corrected = statistics.corrected_p_values(p_values, method)
                for row, p_value in zip(family, corrected, strict=True):
                    row[f"{name}_{suffix}"] = p_value
        _, intervals = statistics.simultaneous_intervals([row["paired"] for row in family])
        for row, ends in zip(family, intervals, strict=True):
            row["ci_low"], row["ci_high"] = (_in_units_of(row, end) for end in ends)
            if "ratio" in row:
                row["ratio_ci_low"], row["ratio_ci_high"] = map(exp_of, ends)
    return pd.DataFrame(rows, columns=COMPARISON_COLUMNS)


def _in_units_of(row, end):
    """An end of an interval in the unit of a row's metric; a perplexity's interval is of its logarithm."""
    if "perplexity" in row["metric"]:
        return statistics.perplexity_change(row["baseline_value"], end)
    return end


def exp_of(value: float | None) -> float | None:
    """exp(value); None where the value is, or where exp exceeds the largest float."""
    return None if value is None else exp_or_none(value)


def paired_samples(*summaries: Summary) -> list[tuple[dict[str, Any], ...]]:
    """The samples that all summaries have, by their ids, in the first one's order: one tuple a sample."""
    first, *others = ({sample["sample_id"]: sample for sample in one["samples"]} for one in summaries)
    return [
        (sample, *(other[name] for other in others))
        for name, sample in first.items()
        if all(name in other for other in others)
    ]


def _compare(baseline, summary):
    """Return the rows of one comparison, without corrections; none where no sample is shared."""
    pairs = [(reference, own) for own, reference in paired_samples(summary, baseline)]
    if not pairs:
        return []
    of_baseline, of_summary = zip(*pairs, strict=True)
    clusters = clusters_of(of_baseline)
    both = [sample["loss"] for sample in of_baseline], [sample["loss"] for sample in of_summary]
    losses = statistics.compare_losses(*both, clusters=clusters)
    identical = both[0] == both[1]
    rows = [{"metric": "loss", "identical": identical, **vars(losses.loss), **_of_losses(losses)}]
    score = _score(summary["dataset"], baseline["metrics"])
    if score is None or summary["metrics"].get(score) is None:
        return rows
    if score in SIZES:
        sizes = [sample[SIZES[score]] for sample in of_baseline]
        totals = ([total_loss(sample) for sample in samples] for samples in (of_baseline, of_summary))
        weighted = statistics.compare_losses(*totals, sizes=sizes, clusters=clusters)
        row = {**vars(weighted.perplexity), **_of_losses(weighted)}
    elif score == "perplexity":
        row = {**vars(losses.perplexity), **_of_losses(losses)}
    else:
        correct = ([sample["correct"] for sample in samples] for samples in (of_baseline, of_summary))
        row = vars(statistics.compare_accuracies(*correct, clusters))
    return [{"metric": score, "identical": identical, **row}, *rows]


def total_loss(sample: Mapping[str, Any]) -> float:
    """A sample's loss in nats, over all its scored tokens; of multiple choice, those of the right choice."""
    if "log_likelihoods" in sample:
        return -sample["log_likelihoods"][sample["gold"]]
    if "log_likelihood" in sample:
        return -sample["log_likelihood"]
    return sample["loss"] * sample["num_predicted_tokens"]


def _score(dataset, metrics):
    """The name of a data set's score; None where it has only losses."""
    names = (f"{dataset}_accuracy", *SCORE_PERPLEXITIES)
    return next((name for name in names if metrics.get(name) is not None), None)


def _of_losses(comparison):
    """The columns that exist only for comparisons of losses."""
    return {"ratio": comparison.perplexity_ratio, "p_wilcoxon": comparison.wilcoxon_p}


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Turn a table into a list of dicts for JSON, with None where a value is missing."""
    return table.astype(object).where(table.notna(), None).to_dict("records")


def write_table(table: pd.DataFrame, csv_path: Path | str, json_path: Path | str | None = None) -> None:
    """Write a table as CSV and, where a path is given, as a JSON list of rows; each whole or not at all."""
    with atomic_path(csv_path) as temporary:
        table.to_csv(temporary, index=False)
    if json_path is not None:
        write_json(json_path, records(table))
