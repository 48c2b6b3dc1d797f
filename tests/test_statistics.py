"""Paired comparisons against SciPy, exact sums and simulation; identical results are never NaN."""

import math
import warnings

import numpy as np
import pytest
from adaptive_routing import statistics
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

losses = st.floats(0.1, 12)
pairs_of_losses = st.lists(st.tuples(losses, losses), min_size=2, max_size=40)


@settings(max_examples=40, deadline=None)
@given(pairs_of_losses)
def test_loss_tests_are_those_of_scipy(pairs):
    baseline, other = map(np.array, zip(*pairs, strict=True))
    result = statistics.compare_losses(baseline, other)
    differences = other - baseline
    if np.ptp(differences) > 1e-6:
        assert result.loss.p_value == pytest.approx(stats.ttest_rel(other, baseline).pvalue)
        assert result.wilcoxon_p == pytest.approx(stats.wilcoxon(other, baseline).pvalue)
        assert result.loss.effect_size == pytest.approx(differences.mean() / differences.std(ddof=1))
    assert result.loss.difference == pytest.approx(other.mean() - baseline.mean())
    assert result.perplexity.difference == pytest.approx(math.exp(other.mean()) - math.exp(baseline.mean()))
    assert result.perplexity_ratio == pytest.approx(math.exp(other.mean() - baseline.mean()))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_mcnemar_is_the_sign_test_of_the_discordant_samples(pairs):
    baseline, other = zip(*pairs, strict=True)
    result = statistics.compare_accuracies(baseline, other)
    gained, lost = pairs.count((False, True)), pairs.count((True, False))
    expected = stats.binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    assert result.p_value == pytest.approx(expected)
    assert result.difference == pytest.approx(np.mean(other) - np.mean(baseline))
    assert result.ci_low - 1e-12 <= result.difference <= result.ci_high + 1e-12
    assert (result.effect_size > 1) == (gained > lost)
    assert (result.effect_size < 1) == (gained < lost)


@pytest.mark.parametrize("samples", [1, 2, 30])
def test_identical_results_have_no_difference_and_p_one(samples):
    values = np.linspace(1, 3, samples)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss = statistics.compare_losses(values, values)
        accuracy = statistics.compare_accuracies(values > 2, values > 2)
    for one in (loss.loss, loss.perplexity, accuracy):
        assert (one.difference, one.ci_low, one.ci_high, one.p_value, one.p_bootstrap) == (0, 0, 0, 1, 1)
        assert one.value == one.baseline_value
        assert one.samples == samples
    assert loss.wilcoxon_p == loss.perplexity_ratio == accuracy.effect_size == 1
    assert loss.perplexity_ratio_ci == (1, 1)
    assert loss.loss.effect_size == 0


def test_a_constant_difference_has_no_effect_size_and_one_sample_no_t_test():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        constant = statistics.compare_losses([1.0, 2.0, 3.0], [1.5, 2.5, 3.5]).loss
        single = statistics.compare_losses([1.0], [1.5]).loss
    assert constant.p_value == 0
    assert constant.effect_size is None
    assert (constant.ci_low, constant.ci_high) == pytest.approx((0.5, 0.5))
    assert constant.p_bootstrap == 2 / 10_000  # no resample on the other side of 0
    assert single.p_value is single.p_bootstrap is None
    assert single.value_stderr is single.baseline_value_stderr is None
    assert single.effect_size is None
    assert statistics.compare_accuracies([True], [False]).p_bootstrap is None


def test_intervals_are_those_of_scipys_paired_bootstrap():
    rng = np.random.default_rng(3)
    baseline = rng.gamma(4, 0.7, size=80)
    other = baseline + rng.normal(0.05, 0.2, size=80)
    result = statistics.compare_losses(baseline, other)

    def reference(statistic):
        interval = stats.bootstrap(
            (baseline, other), statistic, paired=True, method="percentile", random_state=7
        ).confidence_interval
        return pytest.approx((interval.low, interval.high), abs=0.05 * (interval.high - interval.low))

    def mean_difference(a, b, axis):
        return b.mean(axis=axis) - a.mean(axis=axis)

    def perplexity_difference(a, b, axis):
        return np.exp(b.mean(axis=axis)) - np.exp(a.mean(axis=axis))

    def perplexity_ratio(a, b, axis):
        return np.exp(b.mean(axis=axis) - a.mean(axis=axis))

    assert (result.loss.ci_low, result.loss.ci_high) == reference(mean_difference)
    assert (result.perplexity.ci_low, result.perplexity.ci_high) == reference(perplexity_difference)
    assert result.perplexity_ratio_ci == reference(perplexity_ratio)


@settings(max_examples=40, deadline=None)
@given(pairs_of_losses)
def test_standard_errors_are_those_of_the_shared_samples(pairs):
    baseline, other = map(np.array, zip(*pairs, strict=True))
    result = statistics.compare_losses(baseline, other)
    assert result.loss.value == pytest.approx(other.mean())
    assert result.loss.value_stderr == pytest.approx(stats.sem(other), abs=1e-12)
    assert result.loss.baseline_value_stderr == pytest.approx(stats.sem(baseline), abs=1e-12)
    expected = math.exp(baseline.mean()) * stats.sem(baseline)
    assert result.perplexity.baseline_value_stderr == pytest.approx(expected, abs=1e-9)
    accuracy = statistics.compare_accuracies(baseline > 5, other > 5)
    assert accuracy.value_stderr == pytest.approx(stats.sem((other > 5).astype(float)), abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=2, max_size=40))
def test_the_bootstrap_p_value_agrees_with_the_interval(pairs):
    # Few distinct values: resampled differences of exactly 0 are common.
    baseline, other = map(np.array, zip(*pairs, strict=True))
    losses = statistics.compare_losses(baseline, other)
    accuracy = statistics.compare_accuracies(baseline > 1, other > 1)
    for one in (losses.loss, accuracy):
        assert (one.p_bootstrap <= 0.05) == (one.ci_low > 0 or one.ci_high < 0)
    low, high = losses.perplexity_ratio_ci
    assert (losses.perplexity.p_bootstrap <= 0.05) == (low > 1 or high < 1)


def test_the_bootstrap_p_value_is_twice_the_smaller_tail_of_scipys_resamples():
    rng = np.random.default_rng(4)
    baseline = rng.gamma(4, 0.7, size=120)
    noise = rng.normal(0, 0.2, size=120)
    other = baseline + noise - noise.mean() + 0.03
    reference = stats.bootstrap((other - baseline,), np.mean, n_resamples=20_000, random_state=1)
    tail = min((reference.bootstrap_distribution <= 0).mean(), (reference.bootstrap_distribution >= 0).mean())
    result = statistics.compare_losses(baseline, other)
    assert 0.01 < 2 * tail < 0.3
    assert result.loss.p_bootstrap == pytest.approx(2 * tail, rel=0.1)
    assert result.perplexity.p_bootstrap == result.loss.p_bootstrap
    assert result.loss.p_bootstrap == pytest.approx(result.loss.p_value, rel=0.3)


def test_without_a_difference_the_bootstrap_finds_one_about_as_often_as_its_level():
    rng = np.random.default_rng(8)
    found = 0
    for _ in range(300):
        baseline = rng.normal(3, 1, size=60)
        found += (
            statistics.compare_losses(baseline, baseline + rng.normal(0, 0.3, size=60)).loss.p_bootstrap
            < 0.05
        )
    assert 0.02 <= found / 300 <= 0.1


def test_intervals_cover_the_true_difference_about_as_often_as_they_say():
    rng = np.random.default_rng(11)
    covered = 0
    for _ in range(200):
        baseline = rng.normal(3, 1, size=60)
        result = statistics.compare_losses(baseline, baseline + rng.normal(0.1, 0.3, size=60)).loss
        covered += result.ci_low <= 0.1 <= result.ci_high
    assert 0.88 <= covered / 200 <= 0.99


def test_resampling_in_steps_draws_every_resample(monkeypatch):
    baseline, other = np.random.default_rng(5).normal(3, 1, size=(2, 50))
    whole = statistics.compare_losses(baseline, other)
    monkeypatch.setattr(statistics, "CHUNK_ELEMENTS", 7 * 50)
    assert statistics.compare_losses(baseline, other) == whole


@settings(max_examples=50, deadline=None)
@given(st.lists(st.one_of(st.none(), st.floats(0, 1)), max_size=20))
def test_corrections_are_holms_and_benjamini_hochbergs(p_values):
    holm = statistics.corrected_p_values(p_values, "holm")
    bh = statistics.corrected_p_values(p_values, "fdr_bh")
    tested = [p for p in p_values if p is not None]
    assert [p is None for p in holm] == [p is None for p in bh] == [p is None for p in p_values]
    if tested:
        expected = stats.false_discovery_control(tested)
        assert [p for p in bh if p is not None] == pytest.approx(expected.tolist())
        # Holm (1979): the i-th smallest of m is multiplied by m − i + 1, never falling, at most 1.
        order = np.argsort(tested, kind="stable")
        steps = np.array(tested)[order] * (len(tested) - np.arange(len(tested)))
        by_rank = np.minimum(np.maximum.accumulate(steps), 1)
        by_sample = np.empty(len(tested))
        by_sample[order] = by_rank
        assert [p for p in holm if p is not None] == pytest.approx(by_sample.tolist())


def test_standard_error_of_a_mean_of_scores():
    rng = np.random.default_rng(0)
    scores = rng.normal([0.4, 0.6], [0.03, 0.04], size=(100_000, 2)).mean(axis=1)
    assert statistics.mean_standard_error([0.03, 0.04]) == pytest.approx(scores.std(), rel=0.02)
