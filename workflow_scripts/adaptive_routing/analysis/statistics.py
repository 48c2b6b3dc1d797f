"""Paired comparisons with a baseline, corrections for multiple comparisons, standard errors of mean scores.

Comparisons are paired: both configurations score the same samples, so the samples' difficulty cancels.

- Losses: paired t-test with its t interval: p < 0.05 exactly where the 95 % interval excludes 0. A total loss
  per word is a ratio of sums: the same test with the ratio's linearised standard error (Cochran, Sampling
  Techniques, 3rd edition 1977, section 6.4). In addition, Wilcoxon's signed-rank test.
- Accuracies: McNemar's exact test (Psychometrika 12, 1947), and Tango's score interval (Statistics in
  Medicine 17, 1998, 891-908), which has a width also where no sample differs. It inverts McNemar's
  asymptotic test, which is a little less strict than the exact one.
- Both: the p-value of a paired percentile bootstrap over samples (Efron and Tibshirani, An Introduction to
  the Bootstrap, 1993, chapters 13 and 15).

Identical results give difference 0 and p = 1, never NaN.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy  # loads `stats` and `optimize` on first use: figures and report need neither
from numpy.typing import ArrayLike

from adaptive_routing.data.tasks.accuracy import accuracy_with_stderr
from adaptive_routing.data.tasks.uncertainty import (
    exp_or_none,
    exp_ratio_with_stderr,
    finite_or_none,
    ratio_with_stderr,
)

RESAMPLES = 9_999
CONFIDENCE = 0.95
SEED = 0
MCNEMAR, WILCOXON = "McNemar exact", "Wilcoxon"
# Samples drawn at a time when resampling: few enough to stay in cache.
CHUNK_ELEMENTS = 1 << 18


def mean_standard_error(standard_errors: Sequence[float]) -> float:
    """Compute the standard error of a mean of independent estimates from theirs: √(Σ se²) / n."""
    return float(np.linalg.norm(standard_errors)) / len(standard_errors)


@dataclass(frozen=True)
class Comparison:
    """A configuration against the baseline on the same samples.

    None: the p-values, interval and standard errors of a single sample; the effect size of a constant
    difference; a perplexity, or an end of its interval, that exceeds the largest float.
    """

    baseline_value: float | None
    baseline_value_stderr: float | None
    value: float | None
    value_stderr: float | None
    difference: float | None  # value − baseline_value
    ci_low: float | None
    ci_high: float | None
    p_value: float | None  # of `test`
    p_bootstrap: float | None
    effect_size: float | None
    test: str
    samples: int


@dataclass(frozen=True)
class LossComparison:
    """The same losses compared as losses, perplexities and a ratio; `wilcoxon_p` is the rank test's."""

    loss: Comparison
    perplexity: Comparison
    perplexity_ratio: float | None
    perplexity_ratio_ci: tuple[float | None, float | None]
    wilcoxon_p: float


def compare_losses(
    baseline: ArrayLike, losses: ArrayLike, sizes: Sequence[float] | None = None
) -> LossComparison:
    """Compare two lists of losses of the same samples: losses per unit, perplexities and their ratio.

    sizes: the units in each sample, such as its number of words; without them losses are averaged. With y and
    y0 the losses and x the sizes, the difference of losses per unit is D = Σ(y − y0) / Σx, and the ratio of
    perplexities is exp(D), so one test, that of D, holds for all three. The ratio's interval is exp of D's.
    The interval of the perplexities' difference is the baseline's perplexity · (exp(D) − 1) at the ends of
    D's: by how much the baseline's perplexity would change. Effect size: Cohen's d of the paired differences,
    mean/s.
    """
    baseline, losses = np.asarray(baseline, dtype=float), np.asarray(losses, dtype=float)
    weighted = sizes is not None
    sizes = sizes if weighted else [1] * len(losses)
    differences = losses - baseline
    difference, stderr = ratio_with_stderr(differences.tolist(), sizes)
    low, high = _t_interval(difference, stderr, len(differences))
    shared = {
        "p_value": _t_test(difference, stderr, len(differences)),
        "p_bootstrap": _bootstrap_p_value(differences),
        "effect_size": cohens_d(differences),
        "test": "linearised paired t-test" if weighted else "paired t-test",
        "samples": len(differences),
    }
    both = baseline.tolist(), losses.tolist()
    before, after = (exp_ratio_with_stderr(values, sizes) for values in both)
    return LossComparison(
        loss=Comparison(
            *(number for values in both for number in ratio_with_stderr(values, sizes)),
            difference,
            low,
            high,
            **shared,
        ),
        perplexity=Comparison(
            *before,
            *after,
            None if None in (before[0], after[0]) else after[0] - before[0],  # ty: ignore[unsupported-operator]
            *(_perplexity_change(before[0], end) for end in (low, high)),
            **shared,
        ),
        perplexity_ratio=exp_or_none(difference),
        perplexity_ratio_ci=tuple(None if end is None else exp_or_none(end) for end in (low, high)),  # ty: ignore[invalid-argument-type]
        wilcoxon_p=float(scipy.stats.wilcoxon(differences).pvalue) if differences.any() else 1.0,
    )


def compare_accuracies(baseline: ArrayLike, correct: ArrayLike) -> Comparison:
    """Compare two lists of booleans of the same samples.

    Effect size: odds ratio of the discordant samples (right only here / right only in the baseline), with
    0.5 added to both counts so that it is finite; 1 is no effect.
    """
    from statsmodels.stats.contingency_tables import mcnemar

    baseline, correct = np.asarray(baseline, dtype=bool), np.asarray(correct, dtype=bool)
    gained, lost = int(np.sum(correct & ~baseline)), int(np.sum(~correct & baseline))
    both, neither = int(np.sum(correct & baseline)), int(np.sum(~correct & ~baseline))
    p_value = mcnemar([[both, lost], [gained, neither]], exact=True).pvalue if gained + lost else 1.0
    return Comparison(
        *accuracy_with_stderr(baseline.tolist()),
        *accuracy_with_stderr(correct.tolist()),
        (gained - lost) / len(correct),
        *tango_interval(gained, lost, len(correct)),
        p_value=min(float(p_value), 1.0),
        p_bootstrap=_bootstrap_p_value(correct.astype(float) - baseline),
        effect_size=(gained + 0.5) / (lost + 0.5),
        test=MCNEMAR,
        samples=len(correct),
    )


def tango_interval(gained: int, lost: int, samples: int) -> tuple[float | None, float | None]:
    """Compute Tango's 95 % score interval for the difference (gained − lost) / samples of paired proportions.

    The Δ with |T(Δ)| ≤ z, where T(Δ) = (b − c − nΔ) / √(n (2q + Δ(1 − Δ))) and q is the maximum-likelihood
    estimate of the share of lost samples where the difference is Δ: the larger root of
    2n·q² + (Δ(2n − b + c) − b − c)·q − cΔ(1 − Δ) = 0. (None, None) for a single sample.
    """
    b, c, n = gained, lost, samples
    if n == 1:
        return None, None
    z = scipy.stats.norm.isf((1 - CONFIDENCE) / 2)
    estimate = (b - c) / n

    def excess(delta):
        """T(Δ)² − z², multiplied by the denominator of T(Δ)² so that it is finite everywhere."""
        linear = delta * (2 * n - b + c) - b - c
        root = math.sqrt(max(0.0, linear**2 + 8 * n * c * delta * (1 - delta)))
        q = (root - linear) / (4 * n)
        return (b - c - n * delta) ** 2 - z**2 * n * (2 * q + delta * (1 - delta))

    def end(limit):
        """The interval's end between the estimate and −1 or 1."""
        # At the estimate itself both sides of the equation can be 0.
        start = estimate + 1e-9 * (limit - estimate)
        if excess(limit) <= 0:
            return limit
        return float(scipy.optimize.brentq(excess, start, limit, xtol=1e-12))

    return end(-1.0), end(1.0)


def smallest_attainable_p(test: str, samples: int) -> float:
    """The smallest p-value possible with this many samples: all differ, and all in one direction."""
    return min(1.0, 2.0 ** (1 - samples)) if test in (MCNEMAR, WILCOXON) else 0.0


def cohens_d(differences: ArrayLike) -> float | None:
    """Compute mean / standard deviation of paired differences; 0 where all are 0.

    None for other differences that do not vary (one sample, or the same difference up to rounding).
    """
    differences = np.asarray(differences, dtype=float)
    if not differences.any():
        return 0.0
    mean = float(differences.mean())
    deviation = float(differences.std(ddof=1)) if len(differences) > 1 else 0.0
    return mean / deviation if deviation > 1e-10 * abs(mean) else None


def corrected_p_values(p_values: Sequence[float | None], method: str) -> list[float | None]:
    """Correct the p-values of one family: "holm" (family-wise error) or "fdr_bh" (false discovery rate).

    None stays None and is not counted as a comparison.
    """
    from statsmodels.stats.multitest import multipletests

    corrected = [None] * len(p_values)
    tested = [i for i, p in enumerate(p_values) if p is not None]
    if tested:
        values = multipletests([p_values[i] for i in tested], method=method)[1]
        for i, value in zip(tested, values, strict=True):
            corrected[i] = float(value)
    return corrected


def _t_test(difference, stderr, samples):
    """The p-value of Student's t-test; its limit if the differences do not vary."""
    if difference == 0 and not stderr:
        return 1.0
    if stderr is None:
        return None
    return float(2 * scipy.stats.t.sf(abs(difference) / stderr, samples - 1)) if stderr else 0.0


def _t_interval(difference, stderr, samples):
    if stderr is None:
        return None, None
    reach = float(scipy.stats.t.isf((1 - CONFIDENCE) / 2, samples - 1)) * stderr
    return difference - reach, difference + reach


def _perplexity_change(perplexity, difference):
    """The change of a perplexity for a change of its loss: perplexity · (exp(difference) − 1)."""
    if perplexity is None or difference is None:
        return None
    try:
        return finite_or_none(perplexity * math.expm1(difference))
    except OverflowError:
        return None


def _bootstrap_p_value(differences):
    """Return 2 · (1 + the smaller of #{d* ≤ 0} and #{d* ≥ 0}) / (R + 1) of R resampled mean differences d*.

    The percentile interval inverted (Efron and Tibshirani 1993, section 15.4), with the + 1 that makes a
    simulated p-value valid (Davison and Hinkley, Bootstrap Methods and their Application, 1997, section
    4.4). At least 2 / (R + 1) = 0.0002. None for a single sample.
    """
    if not differences.any():
        return 1.0
    if len(differences) < 2:
        return None
    resampled = _resampled_means(differences)
    tail = int(min(np.count_nonzero(resampled <= 0), np.count_nonzero(resampled >= 0)))
    return min(2 * (1 + tail) / (RESAMPLES + 1), 1.0)


def _resampled_means(values):
    """Resample n values with replacement and return the means, (RESAMPLES,).

    The seed is fixed, so that tables are reproducible.
    """
    rng = np.random.default_rng(SEED)
    step = max(1, CHUNK_ELEMENTS // len(values))
    means = np.empty(RESAMPLES)
    for start in range(0, RESAMPLES, step):
        drawn = rng.integers(0, len(values), size=(min(step, RESAMPLES - start), len(values)))
        means[start : start + len(drawn)] = values[drawn].mean(axis=1)
    return means
