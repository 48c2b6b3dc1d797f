"""Experiments on tasks of lm-evaluation-harness: their summaries with what the harness made of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

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
