"""From a routing summary's sums to what is drawn: means, standard errors, correlations, bins of counts.

`arrays` are always those of `routing_summary.read_routing_summary`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

# The first counts of the bins: one bin per count up to 8, then two bins per octave.
COUNT_STARTS = [*range(9), *(start for i in range(12) for start in ((8 << i) + 1, (12 << i) + 1))]
# Bins of the mean over layers, in halves: two per octave from 1 on.
HALF_STARTS = [0, *(start for i in range(14) for start in (2 << i, 3 << i))]


def ranges_within(starts: Sequence[int], length: int) -> list[int]:
    """The starts of the bins on an axis of counts from 0 to `length` − 1."""
    return [start for start in starts if start < length]


def mean_count(histogram: NDArray[np.integer]) -> NDArray[np.float64]:
    """Mean expert count of a histogram (..., counts from 0), over the tokens of each."""
    counts = np.arange(histogram.shape[-1], dtype=float)
    return ratio(histogram @ counts, histogram.sum(axis=-1, dtype=float))


def position_means(arrays: Mapping[str, NDArray[Any]]) -> NDArray[np.float64]:
    """Mean expert counts (P, L) in each bin of positions; 0 where a bin has no token."""
    return ratio(arrays["position_count_sums"], arrays["position_tokens"][:, None])


def loss_curves(
    arrays: Mapping[str, NDArray[Any]], name: str
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Mean loss over bins of counts: (tokens, counts, means, errors), each (2, ..., bins).

    name: "loss", by a layer's count in the bins of `COUNT_STARTS`; or "mean_loss", by the mean over layers in
    those of `HALF_STARTS`. `counts` is the mean count of a bin's tokens. The standard errors treat tokens as
    independent. NaN: too few tokens.
    """
    starts, unit = (COUNT_STARTS, 1.0) if name == "loss" else (HALF_STARTS, 0.5)
    by_count = arrays[f"{name}_tokens"]
    starts = ranges_within(starts, by_count.shape[-1])
    tokens, sums, squares = (
        np.add.reduceat(arrays[f"{name}_{part}"].astype(float), starts, axis=-1)
        for part in ("tokens", "sums", "square_sums")
    )
    counts = np.add.reduceat(by_count * (unit * np.arange(by_count.shape[-1])), starts, axis=-1)
    means = ratio(sums, tokens)
    variances = np.maximum(ratio(squares - sums * means, tokens - 1), 0)
    errors = np.sqrt(ratio(variances, tokens))
    means[tokens == 0] = errors[tokens < 2] = np.nan
    return tokens, ratio(counts, tokens), means, errors


def loss_correlations(arrays: Mapping[str, NDArray[Any]]) -> NDArray[np.float64]:
    """Correlate (Pearson) losses with expert counts over tokens: (2, 1 + L), NaN where either does not vary.

    First axis: as in the routing summary. Second: the mean over layers, rounded to the nearest half, then
    each layer.
    """
    sums = ("tokens", "sums", "square_sums")
    of_mean = _correlation(*(arrays[f"mean_loss_{name}"] for name in sums))
    return np.column_stack([of_mean, _correlation(*(arrays[f"loss_{name}"] for name in sums))])


def ratio(numerator: ArrayLike, denominator: ArrayLike) -> NDArray[np.float64]:
    """Divide; 0 where the denominator is 0."""
    shape = np.broadcast_shapes(np.shape(numerator), np.shape(denominator))
    return np.divide(numerator, denominator, out=np.zeros(shape), where=np.asarray(denominator) > 0)


def _correlation(tokens, sums, squares):
    """Pearson's correlation between counts (the last axis) and values, from their sums at each count."""
    counts = np.arange(tokens.shape[-1], dtype=float)
    total = tokens.sum(axis=-1, dtype=float)
    mean, mean_value = mean_count(tokens), ratio(sums.sum(axis=-1), total)
    # Centred: differences of large sums would leave rounding errors where nothing varies.
    deviations = counts - mean[..., None]
    covariance = ((sums - tokens * mean_value[..., None]) * deviations).sum(axis=-1)
    variance = (tokens * deviations**2).sum(axis=-1)
    variance_of_values = np.maximum(squares.sum(axis=-1) - total * mean_value**2, 0)
    varied = (np.count_nonzero(tokens, axis=-1) > 1) & (variance_of_values > 1e-9 * squares.sum(axis=-1))
    return np.where(varied, ratio(covariance, np.sqrt(variance * variance_of_values)), np.nan)
