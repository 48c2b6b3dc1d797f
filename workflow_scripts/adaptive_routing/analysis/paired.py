"""Paired comparisons of two summaries in the metric that decides, in the unit in which differences add up."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from adaptive_routing.analysis import statistics
from adaptive_routing.analysis.tables import SIZES, exp_of, total_loss
from adaptive_routing.data.tasks.uncertainty import clusters_of

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from adaptive_routing.evaluation.experiment import Summary

LOSS = "loss"
MOST_NATS = 50.0  # exp of more is no percentage that anyone reads


def percent_of(nats: ArrayLike) -> NDArray[np.float64]:
    """By how many percent perplexities change whose losses differ by so many nats."""
    return 100 * np.expm1(np.minimum(nats, MOST_NATS))


def deciding_metric(summaries: Sequence[Summary]) -> str | None:
    """The score that decides on a data set: its accuracy, or a perplexity that weighs every unit the same.

    None where the data set has only losses.
    """
    names = (f"{summaries[0]['dataset']}_accuracy", *SIZES)
    # A perplexity can be too large for a float in some configurations: it then decides nowhere.
    return next((name for name in names if all(s["metrics"].get(name) is not None for s in summaries)), None)


def compare_pair(
    metric: str, samples: Sequence[Mapping[str, Any]], reference: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """The columns of one paired comparison, and `paired`, which gives its interval.

    samples, reference: the same samples of two summaries, in the same order. `value` and `reference_value`
    are of `metric`. `difference` and `stderr` are in nats per predicted token or word for perplexities and
    losses, in share of samples for accuracies.
    """
    clusters = clusters_of(samples)
    if metric.endswith("_accuracy"):
        values = [[sample["correct"] for sample in one] for one in (samples, reference)]
        paired = statistics.paired_accuracies(values[1], values[0], clusters)
        own, other = (sum(one) / len(one) for one in values)
    else:
        sizes = [_units(metric, sample) for sample in samples]
        totals = [[total_loss(sample) for sample in one] for one in (samples, reference)]
        paired = statistics.paired_losses(totals[1], totals[0], sizes, clusters)
        own, other = (math.fsum(one) / math.fsum(sizes) for one in totals)
        if metric != LOSS:
            own, other = exp_of(own), exp_of(other)
    columns = ("difference", "stderr", "p_value", "test", "samples", "clusters")
    return {
        "value": own,
        "reference_value": other,
        "paired": paired,
        **{name: getattr(paired, name) for name in columns},
    }


def _units(metric, sample):
    """How many words, or scored tokens, a sample's loss is a sum over."""
    if metric in SIZES:
        return sample[SIZES[metric]]
    if "log_likelihoods" in sample:
        # The loss is that of the right choice, and num_predicted_tokens counts those of all choices.
        return round(total_loss(sample) / sample["loss"]) if sample["loss"] else 1
    return sample["num_predicted_tokens"]
