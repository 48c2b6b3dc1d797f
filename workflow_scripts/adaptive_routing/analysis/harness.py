"""Experiments on tasks of lm-evaluation-harness: their summaries with what the harness made of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    import pandas as pd

    from adaptive_routing.evaluation.experiment import Summary


def with_harness_scores(summary: Summary, experiment: Mapping[str, Any]) -> Summary:
    """A summary with the harness's verdicts on its samples and the scores made from them.

    experiment: content of metrics/{config}_{dataset}.json; without `harness`, the summary is as it was.
    """
    harness = experiment.get("harness")
    if harness is None:
        return summary
    columns = harness["samples"]
    samples = [
        sample | {name: column[i] for name, column in columns.items()}
        for i, sample in enumerate(summary["samples"])
    ]
    return {**summary, "samples": samples, "metrics": harness["scores"]}


def harness_table(experiments: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Make one row per experiment, task or group, metric and filter: the harness's value and standard error.

    experiments: contents of metrics/{config}_{dataset}.json that have `harness`.
    """
    import pandas as pd  # here, since each experiment's metrics need the function above and no pandas

    columns = ["config", "dataset", "task", "metric", "filter", "value", "stderr"]
    rows = [
        (one["config"], one["dataset"], task, metric, used, value, of_task.get(f"{metric}_stderr,{used}"))
        for one in experiments
        for task, of_task in one["harness"]["results"].items()
        for name, value in of_task.items()
        for metric, is_metric, used in [name.partition(",")]
        if is_metric and not metric.endswith("_stderr")
    ]
    return pd.DataFrame(rows, columns=columns).astype({"value": float, "stderr": float})
