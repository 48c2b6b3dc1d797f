"""Paired comparisons with a baseline, corrections for multiple comparisons, standard errors of mean scores.

Comparisons are paired: both configurations score the same samples, so the samples' difficulty cancels.
Clusters of samples (the same text, rows of one article) are the independent draws; without clusters every
sample is one.

- Losses: paired t-test with its t interval: p < 0.05 exactly where the 95 % interval excludes 0. A total loss
  per word or token is a ratio of sums: the same test with the ratio's linearised standard error (Cochran,
  Sampling Techniques, 3rd edition 1977, section 6.4), residuals summed by cluster. G clusters leave G − 1
  degrees of freedom. With few clusters, fewer than about 8, that makes intervals wide, and clusters of very
  different sizes can still make them too narrow (Cameron and Miller, Journal of Human Resources 50, 2015,
  section VI): tables therefore state the number of clusters. In addition, Wilcoxon's signed-rank test, of the
  clusters' mean differences.
- Accuracies of samples that are all clusters of their own: McNemar's exact test (Psychometrika 12, 1947), and
  Tango's score interval (Statistics in Medicine 17, 1998, 891-908), which has a width also where no sample
  differs. It inverts McNemar's asymptotic test, which is a little less strict than the exact one. Otherwise
  the clustered t-test and its interval.
- All: the p-value of a paired percentile bootstrap over clusters (Efron and Tibshirani, An Introduction to
  the Bootstrap, 1993, chapters 13 and 15).
- Families of comparisons: Holm's correction, and simultaneous intervals that agree with it
  (`simultaneous_intervals`).

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
    Clusters,
    exp_or_none,
    exp_ratio_with_stderr,
    finite_or_none,
    ratio_with_stderr,
    sums_by_cluster,
)

RESAMPLES = 9_999
CONFIDENCE = 0.95
SEED = 0
MCNEMAR, WILCOXON = "McNemar exact", "Wilcoxon"
T_TEST, RATIO_T_TEST = "paired t-test", "linearised paired t-test"
CLUSTERED_T_TEST, CLUSTERED_RATIO_T_TEST = f"clustered {T_TEST}", f"clustered {RATIO_T_TEST}"
# Samples drawn at a time when resampling: few enough to stay in cache.
CHUNK_ELEMENTS = 1 << 18


def mean_standard_error(standard_errors: Sequence[float]) -> float:
    """Compute the standard error of a mean of independent estimates from theirs: √(Σ se²) / n."""
    return float(np.linalg.norm(standard_errors)) / len(standard_errors)


@dataclass(frozen=True)
class PairedDifference:
    """The difference of two configurations on the same samples: its test, and its interval at any confidence.

    In nats per unit of text (losses), or in share of samples (accuracies).
    """

    difference: float
    stderr: float | None  # None: a single cluster
    p_value: float | None  # of `test`; None where there is none
    test: str
    samples: int
    clusters: int
    tango: tuple[int, int, int] | None = None  # arguments of `tango_interval` where that is the interval

    def interval(self, confidence: float = CONFIDENCE) -> tuple[float | None, float | None]:
        """The confidence interval; (None, None) for a single cluster."""
        if self.tango is not None:
            return tango_interval(*self.tango, confidence)
        return _t_interval(self.difference, self.stderr, self.clusters, confidence)


@dataclass(frozen=True)
class Comparison:
    """A configuration against the baseline on the same samples.

    None: the p-values, interval and standard errors of a single cluster; the effect size of a constant
    difference; a perplexity, or an end of its interval, that exceeds the largest float.
    """

    baseline_value: float | None
    baseline_value_stderr: float | None
    value: float | None
    value_stderr: float | None
    difference: float | None  # value − baseline_value
    ci_low: float | None  # of the difference alone, at `CONFIDENCE`
    ci_high: float | None
    p_value: float | None  # of `test`
    p_bootstrap: float | None
    effect_size: float | None
    test: str
    samples: int
    clusters: int
    paired: PairedDifference  # what the test is about: of a perplexity, the difference of its logarithm


@dataclass(frozen=True)
class LossComparison:
    """The same losses compared as losses, perplexities and a ratio; `wilcoxon_p` is the rank test's."""

    loss: Comparison
    perplexity: Comparison
    perplexity_ratio: float | None
    perplexity_ratio_ci: tuple[float | None, float | None]
    wilcoxon_p: float


def compare_losses(
    baseline: ArrayLike,
    losses: ArrayLike,
    sizes: Sequence[float] | None = None,
    clusters: Clusters = None,
) -> LossComparison:
    """Compare two lists of losses of the same samples: losses per unit, perplexities and their ratio.

    sizes: the units in each sample, such as its number of words; without them losses are averaged. With y and
    y0 the losses and x the sizes, the difference of losses per unit is D = Σ(y − y0) / Σx, and the ratio of
    perplexities is exp(D), so one test, that of D, holds for all three. The ratio's interval is exp of D's.
    The interval of the perplexities' difference is the baseline's perplexity · (exp(D) − 1) at the ends of
    D's: by how much the baseline's perplexity would change. Effect size: Cohen's d of the paired differences,
    mean/s. clusters: the cluster of each sample.
    """
    baseline, losses = np.asarray(baseline, dtype=float), np.asarray(losses, dtype=float)
    paired = paired_losses(baseline, losses, sizes, clusters)
    sizes = [1] * len(losses) if sizes is None else sizes
    differences = losses - baseline
    low, high = paired.interval()
    by_cluster = _by_cluster(differences, clusters)
    shared = {
        "p_value": paired.p_value,
        "p_bootstrap": _bootstrap_p_value(by_cluster),
        "effect_size": cohens_d(differences),
        "test": paired.test,
        "samples": paired.samples,
        "clusters": paired.clusters,
        "paired": paired,
    }
    both = baseline.tolist(), losses.tolist()
    mean_before, mean_after = (ratio_with_stderr(values, sizes, clusters) for values in both)
    before, after = (exp_ratio_with_stderr(values, sizes, clusters) for values in both)
    counts = _by_cluster(np.ones(len(differences)), clusters)
    return LossComparison(
        loss=Comparison(
            *mean_before,
            *mean_after,
            paired.difference,
            low,
            high,
            **shared,
        ),
        perplexity=Comparison(
            *before,
            *after,
            None if None in (before[0], after[0]) else after[0] - before[0],  # ty: ignore[unsupported-operator]
            perplexity_change(before[0], low),
            perplexity_change(before[0], high),
            **shared,
        ),
        perplexity_ratio=exp_or_none(paired.difference),
        perplexity_ratio_ci=tuple(None if end is None else exp_or_none(end) for end in (low, high)),  # ty: ignore[invalid-argument-type]
        wilcoxon_p=float(scipy.stats.wilcoxon(by_cluster / counts).pvalue) if by_cluster.any() else 1.0,
    )


def paired_losses(
    baseline: ArrayLike,
    losses: ArrayLike,
    sizes: Sequence[float] | None = None,
    clusters: Clusters = None,
) -> PairedDifference:
    """The difference of losses per unit; the arguments are those of `compare_losses`."""
    differences = np.asarray(losses, dtype=float) - np.asarray(baseline, dtype=float)
    samples = len(differences)
    units = [1] * samples if sizes is None else sizes
    difference, stderr = ratio_with_stderr(differences.tolist(), units, clusters)
    groups = samples if clusters is None else len(set(clusters))
    if groups < samples:
        test = CLUSTERED_T_TEST if sizes is None else CLUSTERED_RATIO_T_TEST
    else:
        test = T_TEST if sizes is None else RATIO_T_TEST
    return PairedDifference(difference, stderr, _t_test(difference, stderr, groups), test, samples, groups)


def compare_accuracies(baseline: ArrayLike, correct: ArrayLike, clusters: Clusters = None) -> Comparison:
    """Compare two lists of booleans of the same samples.

    Effect size: odds ratio of the discordant samples (right only here / right only in the baseline), with
    0.5 added to both counts so that it is finite; 1 is no effect. clusters: the cluster of each sample.
    """
    baseline, correct = np.asarray(baseline, dtype=bool), np.asarray(correct, dtype=bool)
    gained, lost = _discordant(baseline, correct)
    paired = paired_accuracies(baseline, correct, clusters)
    return Comparison(
        *accuracy_with_stderr(baseline.tolist(), clusters),
        *accuracy_with_stderr(correct.tolist(), clusters),
        paired.difference,
        *paired.interval(),
        p_value=paired.p_value,
        p_bootstrap=_bootstrap_p_value(_by_cluster(correct.astype(float) - baseline, clusters)),
        effect_size=(gained + 0.5) / (lost + 0.5),
        test=paired.test,
        samples=paired.samples,
        clusters=paired.clusters,
        paired=paired,
    )


def paired_accuracies(baseline: ArrayLike, correct: ArrayLike, clusters: Clusters = None) -> PairedDifference:
    """The difference of shares of right samples; the arguments are those of `compare_accuracies`.

    Where the clusters' differences do not vary, as where no sample differs, the t-test means nothing: p-value
    and interval are then the sign test's and Tango's, with the clusters as samples.
    """
    from statsmodels.stats.contingency_tables import mcnemar

    baseline, correct = np.asarray(baseline, dtype=bool), np.asarray(correct, dtype=bool)
    gained, lost = _discordant(baseline, correct)
    samples = len(correct)
    _, stderr = ratio_with_stderr((correct.astype(float) - baseline).tolist(), [1] * samples, clusters)
    difference = (gained - lost) / samples
    groups = samples if clusters is None else len(set(clusters))
    if groups < samples:
        p_value, tango = _t_test(difference, stderr, groups), None
        if stderr is None and gained + lost:  # as many gained as lost are no identical results
            p_value = None
        elif stderr == 0:
            units = round(abs(difference) * groups)
            tango = (units, 0, groups) if difference > 0 else (0, units, groups)
            p_value = smallest_attainable_p(MCNEMAR, units)
        return PairedDifference(difference, stderr, p_value, CLUSTERED_T_TEST, samples, groups, tango)
    both, neither = int(np.sum(correct & baseline)), int(np.sum(~correct & ~baseline))
    p_value = mcnemar([[both, lost], [gained, neither]], exact=True).pvalue if gained + lost else 1.0
    p_value = min(float(p_value), 1.0)
    return PairedDifference(difference, stderr, p_value, MCNEMAR, samples, groups, (gained, lost, samples))


def _discordant(baseline, correct):
    """How many samples are right only in `correct`, and only in `baseline`."""
    return int(np.sum(correct & ~baseline)), int(np.sum(~correct & baseline))


def _by_cluster(values, clusters):
    return values if clusters is None else np.array(sums_by_cluster(values.tolist(), clusters))


def tango_interval(
    gained: int, lost: int, samples: int, confidence: float = CONFIDENCE
) -> tuple[float | None, float | None]:
    """Compute Tango's score interval for the difference (gained − lost) / samples of paired proportions.

    The Δ with |T(Δ)| ≤ z, where T(Δ) = (b − c − nΔ) / √(n (2q + Δ(1 − Δ))) and q is the maximum-likelihood
    estimate of the share of lost samples where the difference is Δ: the larger root of
    2n·q² + (Δ(2n − b + c) − b − c)·q − cΔ(1 − Δ) = 0. (None, None) for a single sample.
    """
    b, c, n = gained, lost, samples
    if n == 1:
        return None, None
    z = scipy.stats.norm.isf((1 - confidence) / 2)
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

    None stays None and is not counted as a comparison. Holm, Scandinavian Journal of Statistics 6, 1979: the
    i-th smallest of m is multiplied by m − i + 1, and none is smaller than those before it.
    """
    tested = [i for i, p in enumerate(p_values) if p is not None]
    values = np.array([p_values[i] for i in tested], dtype=float)
    if method == "holm":
        order = np.argsort(values, kind="stable")
        steps = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
        values[order] = np.minimum(steps, 1)
    elif method == "fdr_bh":
        values = scipy.stats.false_discovery_control(values) if len(values) else values
    else:
        raise ValueError(f"method is {method!r}; allowed are 'holm' and 'fdr_bh'")
    corrected: list[float | None] = [None] * len(p_values)
    for i, value in zip(tested, values.tolist(), strict=True):
        corrected[i] = value
    return corrected


def simultaneous_intervals(
    family: Sequence[PairedDifference], level: float = 1 - CONFIDENCE
) -> tuple[list[float | None], list[tuple[float | None, float | None]]]:
    """Correct the p-values of a family by Holm, and compute intervals that never contradict the result.

    The intervals have Bonferroni's confidence 1 − level/m, where m comparisons have a test. Holm may reject
    where such an interval still holds 0: its nearer end is then set to 0, as in the one-sided bounds that
    belong to Holm's procedure (Guilbaud, Biometrical Journal 50, 2008; Strassburger and Bretz, Statistics in
    Medicine 27, 2008). Where a comparison is not rejected although the interval excludes 0 (Tango's belongs
    to a less strict test than McNemar's exact one), it is extended to 0. So a rejected difference has all of
    its interval on one side of 0, which may be an end; any other interval holds 0.

    All true differences are covered with a probability of at least 1 − level, as far as the tests'
    assumptions hold. One exception: where Holm gets the sign of a true difference close to 0 wrong, the
    interval misses it, which may add up to level/2 (two-sided step-down tests have no exact theory of this).

    Returns ([corrected p-value or None], [(low, high), (None, None) without a test]).
    """
    corrected = corrected_p_values([one.p_value for one in family], "holm")
    tested = sum(p_value is not None for p_value in corrected)
    intervals: list[tuple[float | None, float | None]] = []
    for one, p_value in zip(family, corrected, strict=True):
        if p_value is None:
            intervals.append((None, None))
            continue
        low, high = one.interval(1 - level / tested)
        if low is not None and high is not None:
            if p_value >= level:
                low, high = min(low, 0.0), max(high, 0.0)
            elif one.difference > 0:
                low = max(low, 0.0)
            elif one.difference < 0:
                high = min(high, 0.0)
        intervals.append((low, high))
    return corrected, intervals


def _t_test(difference, stderr, draws):
    """The p-value of Student's t-test; its limit if the differences do not vary."""
    if difference == 0 and not stderr:
        return 1.0
    if stderr is None:
        return None
    return float(2 * scipy.stats.t.sf(abs(difference) / stderr, draws - 1)) if stderr else 0.0


def _t_interval(difference, stderr, draws, confidence):
    if stderr is None:
        return None, None
    reach = float(scipy.stats.t.isf((1 - confidence) / 2, draws - 1)) * stderr
    return difference - reach, difference + reach


def perplexity_change(perplexity: float | None, difference: float | None) -> float | None:
    """The change of a perplexity for a change of its loss: perplexity · (exp(difference) − 1).

    None where either is unknown, or the change exceeds the largest float.
    """
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
