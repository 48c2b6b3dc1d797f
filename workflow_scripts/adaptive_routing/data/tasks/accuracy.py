"""Accuracy and its standard error."""

import math
from collections.abc import Sequence

from adaptive_routing.data.tasks.uncertainty import Clusters, ratio_with_stderr


def accuracy_with_stderr(correct: Sequence[bool], clusters: Clusters = None) -> tuple[float, float | None]:
    """The share of True and its standard error.

    Where every sample is its own cluster that is sqrt(a (1 − a) / (n − 1)), as in the harness; else the
    clusters' (`ratio_with_stderr`). The error is None for a single cluster.
    """
    accuracy = sum(correct) / len(correct)
    if clusters is not None and len(set(clusters)) < len(correct):
        return accuracy, ratio_with_stderr([float(one) for one in correct], [1] * len(correct), clusters)[1]
    if len(correct) == 1:
        return accuracy, None
    return accuracy, math.sqrt(accuracy * (1 - accuracy) / (len(correct) - 1))
