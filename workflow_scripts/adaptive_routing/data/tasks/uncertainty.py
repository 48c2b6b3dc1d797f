"""Means and ratios over samples, and exp of them, with their standard errors.

Samples are treated as independent draws. A ratio of sums has the linearised standard error of the ratio
estimator (Cochran, Sampling Techniques, 3rd edition 1977, section 6.4, without the finite population
correction). exp has the delta method's: its derivative at x is exp(x), so se(exp(x)) = exp(x)·se(x). A
standard error is None for a single sample. An exp beyond the largest float is None, and so is its standard
error. That happens above 709.78, which a total loss per word exceeds where text has no spaces.
"""

import math
from collections.abc import Sequence


def mean_with_stderr(values: Sequence[float]) -> tuple[float, float | None]:
    """Compute the mean of n values and its standard error s / √n, s² = Σ (v − mean)² / (n − 1)."""
    return ratio_with_stderr(values, [1] * len(values))


def exp_mean_with_stderr(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Compute exp(mean) and its standard error exp(mean) · s / √n: the perplexity of mean losses."""
    return _exp(*mean_with_stderr(values))


def ratio_with_stderr(
    numerators: Sequence[float], denominators: Sequence[float]
) -> tuple[float, float | None]:
    """Compute R = Σy / Σx of paired values y, x and its standard error.

    se(R)² = Σ (y − R·x)² / (n (n − 1) x̄²). Denominators are positive. The estimate is biased by O(1/n). The
    error holds for enough samples that Σx varies little (Cochran asks for 30, and at most 10 % variation).
    """
    n, total = len(denominators), math.fsum(denominators)
    ratio = math.fsum(numerators) / total
    if n == 1:
        return ratio, None
    squares = math.fsum((y - ratio * x) ** 2 for y, x in zip(numerators, denominators, strict=True))
    return ratio, math.sqrt(squares * n / (n - 1)) / total


def exp_ratio_with_stderr(
    numerators: Sequence[float], denominators: Sequence[float]
) -> tuple[float | None, float | None]:
    """Compute exp(R) of R = Σy / Σx and its standard error exp(R) · se(R): perplexity of a total loss."""
    return _exp(*ratio_with_stderr(numerators, denominators))


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
