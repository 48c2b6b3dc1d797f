"""Means and ratios over samples, and exp of them, with their standard errors.

Clusters of samples are treated as independent draws; without clusters every sample is one. A ratio of sums
has the linearised standard error of the ratio estimator (Cochran, Sampling Techniques, 3rd edition 1977,
section 6.4, without the finite population correction), with the residuals summed by cluster (Liang and Zeger,
Biometrika 73, 1986; Cochran, section 9A). exp has the delta method's: its derivative at x is exp(x), so
se(exp(x)) = exp(x)·se(x). A standard error is None for a single cluster. An exp beyond the largest float is
None, and so is its standard error. That happens above 709.78, which a total loss per word exceeds where text
has no spaces.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

Clusters = Sequence[Hashable] | None  # the cluster of each sample; None: each is its own


def clusters_of(samples: Sequence[Mapping[str, Any]]) -> list[Hashable] | None:
    """The `cluster` of each sample of a summary; None where they have none (results of older versions)."""
    clusters = [sample.get("cluster") for sample in samples]
    return None if None in clusters else clusters


def mean_with_stderr(values: Sequence[float], clusters: Clusters = None) -> tuple[float, float | None]:
    """Compute the mean of n values and its standard error.

    Without clusters that is s / √n, s² = Σ (v − mean)² / (n − 1).
    """
    return ratio_with_stderr(values, [1] * len(values), clusters)


def exp_mean_with_stderr(
    values: Sequence[float], clusters: Clusters = None
) -> tuple[float | None, float | None]:
    """Compute exp(mean) and its standard error exp(mean) · se(mean): the perplexity of mean losses."""
    return _exp(*mean_with_stderr(values, clusters))


def ratio_with_stderr(
    numerators: Sequence[float], denominators: Sequence[float], clusters: Clusters = None
) -> tuple[float, float | None]:
    """Compute R = Σy / Σx of paired values y, x and its standard error.

    With the residuals e = y − R·x summed by cluster and G clusters, se(R)² = G / (G − 1) · Σ e² / (Σx)².
    Denominators are positive. The estimate is biased by O(1/G). The error holds for enough clusters that Σx
    varies little (Cochran asks for 30, and at most 10 % variation).
    """
    total = math.fsum(denominators)
    ratio = math.fsum(numerators) / total
    residuals = [y - ratio * x for y, x in zip(numerators, denominators, strict=True)]
    if clusters is not None:
        residuals = sums_by_cluster(residuals, clusters)
    count = len(residuals)
    if count == 1:
        return ratio, None
    squares = math.fsum(residual**2 for residual in residuals)
    return ratio, math.sqrt(squares * count / (count - 1)) / total


def sums_by_cluster(values: Sequence[float], clusters: Sequence[Hashable]) -> list[float]:
    """The sum of the values of each cluster, in the order in which the clusters first appear."""
    grouped: dict[Hashable, list[float]] = {}
    for value, cluster in zip(values, clusters, strict=True):
        grouped.setdefault(cluster, []).append(value)
    return [math.fsum(of_cluster) for of_cluster in grouped.values()]


def exp_ratio_with_stderr(
    numerators: Sequence[float], denominators: Sequence[float], clusters: Clusters = None
) -> tuple[float | None, float | None]:
    """Compute exp(R) of R = Σy / Σx and its standard error exp(R) · se(R): perplexity of a total loss."""
    return _exp(*ratio_with_stderr(numerators, denominators, clusters))


def _exp(value, stderr):
    value_of_exp = exp_or_none(value)
    if value_of_exp is None or stderr is None:
        return value_of_exp, None
    return value_of_exp, finite_or_none(value_of_exp * stderr)


def exp_or_none(value: float) -> float | None:
    """Compute exp(value); None where it exceeds the largest float."""
    try:
        return math.exp(value)
    except OverflowError:
        return None


def finite_or_none(value: float) -> float | None:
    """Return a value, or None if it is not finite."""
    return value if math.isfinite(value) else None
