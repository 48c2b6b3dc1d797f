"""Paired comparisons with a baseline, corrections for many of them, the standard error of mean scores.

Comparisons are paired: both configurations score the same samples, so that how hard a sample is cancels.
p-values: paired t-test and Wilcoxon's signed-rank test for losses, McNemar's exact test (Psychometrika 12,
1947) for accuracies. Intervals: 95 % percentile bootstrap over samples (Efron and Tibshirani, An Introduction
to the Bootstrap, 1993, chapter 13); the bootstrap p-value of both kinds of score is the one that belongs to
them. Identical results give difference 0 and p = 1, never NaN.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from adaptive_routing.tasks.accuracy import accuracy_with_stderr
from adaptive_routing.tasks.uncertainty import exp_mean_with_stderr, mean_with_stderr

RESAMPLES = 9_999
CONFIDENCE = 0.95
SEED = 0
# Samples drawn at a time while resampling: few enough to stay in cache.
CHUNK_ELEMENTS = 1 << 18


def mean_standard_error(standard_errors):
    """Compute the standard error of the mean of independent estimates from theirs: √(Σ se²) / n."""
    return float(np.linalg.norm(standard_errors)) / len(standard_errors)


@dataclass(frozen=True)
class Comparison:
    """A configuration against the baseline on the same samples.

    None: both p-values and the standard errors of a single sample; the effect size of a constant difference.
    """

    baseline_value: float
    baseline_value_stderr: float | None
    value: float
    value_stderr: float | None
    difference: float  # value − baseline_value
    ci_low: float
    ci_high: float
    p_value: float | None  # of `test`
    p_bootstrap: float | None
    effect_size: float | None
    test: str
    samples: int


@dataclass(frozen=True)
class LossComparison:
    """The same losses compared three ways; `wilcoxon_p` is the rank test beside the others' p-values."""

    loss: Comparison
    perplexity: Comparison
    perplexity_ratio: float
    perplexity_ratio_ci: tuple[float, float]
    wilcoxon_p: float


def compare_losses(baseline, losses):
    """Compare two lists of losses of the same samples: mean loss, perplexity and perplexity ratio.

    The ratio is exp(difference of mean losses), so the tests of the losses are those of all three, and the
    ratio's interval is exp of the difference's. Effect size: Cohen's d of the paired differences, mean/s.
    """
    baseline, losses = np.asarray(baseline, dtype=float), np.asarray(losses, dtype=float)
    differences = losses - baseline
    difference = float(differences.mean())
    means = _resampled_means(np.stack([baseline, losses]))  # (2, RESAMPLES)
    resampled = means[1] - means[0]
    low, high = _interval(resampled)
    perplexity_low, perplexity_high = _interval(np.exp(means[1]) - np.exp(means[0]))
    shared = {
        "p_value": _paired_t_test(differences),
        "p_bootstrap": _bootstrap_p_value(resampled, len(differences)),
        "effect_size": cohens_d(differences),
        "test": "paired t-test",
        "samples": len(differences),
    }
    perplexities = (*exp_mean_with_stderr(baseline), *exp_mean_with_stderr(losses))
    return LossComparison(
        loss=Comparison(
            *mean_with_stderr(baseline), *mean_with_stderr(losses), difference, low, high, **shared
        ),
        perplexity=Comparison(
            *perplexities, perplexities[2] - perplexities[0], perplexity_low, perplexity_high, **shared
        ),
        perplexity_ratio=math.exp(difference),
        perplexity_ratio_ci=(math.exp(low), math.exp(high)),
        wilcoxon_p=float(stats.wilcoxon(differences).pvalue) if differences.any() else 1.0,
    )


def compare_accuracies(baseline, correct):
    """Compare two lists of booleans of the same samples.

    Effect size: odds ratio of the discordant samples (right only here / right only in the baseline), with
    0.5 added to both counts so that it is finite; 1 is no effect.
    """
    baseline, correct = np.asarray(baseline, dtype=bool), np.asarray(correct, dtype=bool)
    gained, lost = int(np.sum(correct & ~baseline)), int(np.sum(~correct & baseline))
    both, neither = int(np.sum(correct & baseline)), int(np.sum(~correct & ~baseline))
    differences = correct.astype(float) - baseline
    resampled = _resampled_means(differences[None])[0]
    p_value = mcnemar([[both, lost], [gained, neither]], exact=True).pvalue if gained + lost else 1.0
    return Comparison(
        *accuracy_with_stderr(baseline.tolist()),
        *accuracy_with_stderr(correct.tolist()),
        (gained - lost) / len(differences),
        *_interval(resampled),
        p_value=min(float(p_value), 1.0),
        p_bootstrap=_bootstrap_p_value(resampled, len(differences)),
        effect_size=(gained + 0.5) / (lost + 0.5),
        test="McNemar exact",
        samples=len(differences),
    )


def cohens_d(differences):
    """Compute mean / standard deviation of paired differences; 0 where all are 0.

    None where they do not vary otherwise (one sample, or the same difference everywhere up to rounding).
    """
    differences = np.asarray(differences, dtype=float)
    if not differences.any():
        return 0.0
    mean = float(differences.mean())
    deviation = float(differences.std(ddof=1)) if len(differences) > 1 else 0.0
    return mean / deviation if deviation > 1e-10 * abs(mean) else None


def corrected_p_values(p_values, method):
    """Correct the p-values of one family: "holm" (family-wise error) or "fdr_bh" (false discovery rate).

    None stays None and does not count as a comparison.
    """
    corrected = [None] * len(p_values)
    tested = [i for i, p in enumerate(p_values) if p is not None]
    if tested:
        values = multipletests([p_values[i] for i in tested], method=method)[1]
        for i, value in zip(tested, values, strict=True):
            corrected[i] = float(value)
    return corrected


def _paired_t_test(differences):
    if not differences.any():
        return 1.0
    if len(differences) < 2:
        return None
    if np.ptp(differences) == 0:
        return 0.0  # the limit of the test; SciPy warns of lost precision
    return float(stats.ttest_1samp(differences, 0.0).pvalue)


def _interval(resampled):
    """Return the (R + 1)·2.5 %-th smallest and largest of R resampled differences, R + 1 a multiple of 40."""
    ordered = np.sort(resampled)
    rank = round((RESAMPLES + 1) * (1 - CONFIDENCE) / 2)
    return float(ordered[rank - 1]), float(ordered[-rank])


def _bootstrap_p_value(resampled, samples):
    """Return 2 · (1 + the smaller of #{d* ≤ 0} and #{d* ≥ 0}) / (R + 1) of R resampled differences d*.

    The percentile interval inverted (Efron and Tibshirani 1993, section 15.4), with the + 1 that makes a
    simulated p-value valid (Davison and Hinkley, Bootstrap Methods and their Application, 1997, section
    4.4): p ≤ 0.05 exactly where the 95 % interval excludes 0. At least 2 / (R + 1) = 0.0002.
    """
    if samples < 2 and resampled.any():
        return None
    tail = min(np.count_nonzero(resampled <= 0), np.count_nonzero(resampled >= 0))
    return min(2 * (1 + tail) / (RESAMPLES + 1), 1.0)


def _resampled_means(values):
    """Resample columns of values (m, n) with replacement and return the means, (m, RESAMPLES).

    Rows stay paired. The seed is fixed: a table is the same whenever it is made.
    """
    rng = np.random.default_rng(SEED)
    m, n = values.shape
    step = max(1, CHUNK_ELEMENTS // n)
    means = np.empty((m, RESAMPLES))
    for start in range(0, RESAMPLES, step):
        columns = rng.integers(0, n, size=(min(step, RESAMPLES - start), n))
        for row in range(m):
            means[row, start : start + len(columns)] = values[row][columns].mean(axis=1)
    return means
