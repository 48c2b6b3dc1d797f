"""Paired comparisons against SciPy, published examples and simulation; identical results are never NaN."""

import math
import warnings

import numpy as np
import pytest
from adaptive_routing.analysis import statistics
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

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
    assert (result.effect_size > 1) == (gained > lost)
    assert (result.effect_size < 1) == (gained < lost)


@pytest.mark.parametrize("samples", [1, 2, 30])
def test_identical_results_have_no_difference_and_p_one(samples):
    values = np.linspace(1, 3, samples)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss = statistics.compare_losses(values, values)
        accuracy = statistics.compare_accuracies(values > 2, values > 2)
    end = None if samples == 1 else 0
    for one in (loss.loss, loss.perplexity, accuracy):
        assert (one.difference, one.p_value, one.p_bootstrap) == (0, 1, 1)
        assert one.value == one.baseline_value
        assert one.samples == samples
    for one in (loss.loss, loss.perplexity):
        assert (one.ci_low, one.ci_high) == (end, end)
    assert loss.wilcoxon_p == loss.perplexity_ratio == accuracy.effect_size == 1
    assert loss.perplexity_ratio_ci == ((None, None) if samples == 1 else (1, 1))
    assert loss.loss.effect_size == 0


def test_a_constant_difference_has_no_effect_size_and_one_sample_no_t_test():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        constant = statistics.compare_losses([1.0, 2.0, 3.0], [1.5, 2.5, 3.5]).loss
        single = statistics.compare_losses([1.0], [1.5])
    assert constant.p_value == 0
    assert constant.effect_size is None
    assert (constant.ci_low, constant.ci_high) == pytest.approx((0.5, 0.5))
    assert constant.p_bootstrap == 2 / 10_000  # no resample on the other side of 0
    assert single.perplexity_ratio_ci == (None, None)
    for one in (single.loss, single.perplexity, statistics.compare_accuracies([True], [False])):
        assert one.p_bootstrap is one.value_stderr is one.baseline_value_stderr is None
        assert one.ci_low is one.ci_high is None
    assert single.loss.p_value is single.loss.effect_size is None


@settings(max_examples=60, deadline=None)
@given(pairs_of_losses, st.booleans())
def test_the_interval_of_losses_is_that_of_the_test(pairs, per_word):
    baseline, other = map(np.array, zip(*pairs, strict=True))
    sizes = list(range(1, len(pairs) + 1)) if per_word else None
    result = statistics.compare_losses(baseline, other, sizes)
    one, perplexity = result.loss, result.perplexity
    if not per_word and np.ptp(other - baseline) > 1e-6:
        expected = stats.ttest_rel(other, baseline).confidence_interval()
        assert (one.ci_low, one.ci_high) == pytest.approx((expected.low, expected.high))
    significant = one.p_value < 0.05
    assert significant == (one.ci_low > 0 or one.ci_high < 0)
    ends = [(one.ci_low, perplexity.ci_low, result.perplexity_ratio_ci[0])]
    ends.append((one.ci_high, perplexity.ci_high, result.perplexity_ratio_ci[1]))
    for change, of_perplexity, ratio in ends:
        if change < 700:
            assert ratio == pytest.approx(math.exp(change))
            expected = perplexity.baseline_value * math.expm1(change)
            assert of_perplexity == pytest.approx(expected, rel=1e-9)
            assert np.sign(of_perplexity) == np.sign(change)


def test_losses_per_word_are_a_ratio_of_sums():
    rng = np.random.default_rng(6)
    words = rng.integers(20, 400, size=150)
    baseline = words * rng.gamma(9, 0.4, size=150)
    other = baseline + words * rng.normal(0.02, 0.1, size=150)
    result = statistics.compare_losses(baseline, other, words.tolist())
    assert result.perplexity.value == pytest.approx(math.exp(other.sum() / words.sum()))
    assert result.perplexity.baseline_value == pytest.approx(math.exp(baseline.sum() / words.sum()))
    assert result.perplexity_ratio == pytest.approx(
        result.perplexity.value / result.perplexity.baseline_value
    )
    bootstrap = stats.bootstrap(
        (other - baseline, words),
        lambda d, x, axis: d.sum(axis=axis) / x.sum(axis=axis),
        paired=True,
        random_state=3,
    )
    half_width = (result.loss.ci_high - result.loss.ci_low) / 2
    assert half_width == pytest.approx(stats.t.isf(0.025, 149) * bootstrap.standard_error, rel=0.05)
    assert result.loss.p_bootstrap == pytest.approx(result.loss.p_value, rel=0.3)
    # Texts of one length: the plain comparison of the losses per word.
    alike = statistics.compare_losses(baseline, other, [50] * 150).loss
    plain = statistics.compare_losses(baseline / 50, other / 50).loss
    for name in ("difference", "ci_low", "ci_high", "p_value", "value", "value_stderr"):
        assert getattr(alike, name) == pytest.approx(getattr(plain, name))


def test_a_perplexity_too_large_for_a_number_is_none_and_its_losses_are_compared():
    result = statistics.compare_losses([2000.0, 1500.0, 9.0], [2400.0, 1600.0, 10.0], [1, 1, 1])
    assert result.perplexity.value is result.perplexity.baseline_value is result.perplexity.difference is None
    assert result.perplexity.ci_low is result.perplexity.ci_high is result.perplexity.value_stderr is None
    assert result.loss.difference == pytest.approx(167)
    assert result.perplexity_ratio == pytest.approx(math.exp(167))
    assert result.loss.p_value == pytest.approx(stats.ttest_1samp([400, 100, 1], 0).pvalue)
    assert result.perplexity_ratio_ci[0] > 0 and result.perplexity_ratio_ci[1] == pytest.approx(
        math.exp(result.loss.ci_high)
    )
    assert statistics.compare_losses([0.0, 0.0], [1e4, 1e3]).perplexity_ratio is None


@pytest.mark.parametrize(
    "gained, lost, samples, low, high",
    [
        # Fagerland, Lydersen and Laake, Statistical Analysis of Contingency Tables, 2017, chapter 8.
        (6, 16, 161, -0.1240, -0.0054),  # Cavo et al. 2012
        (1, 7, 21, -0.517, -0.026),  # Bentur et al. 2009
    ],
)
def test_tangos_interval_of_published_examples(gained, lost, samples, low, high):
    digits = 5e-5 if samples == 161 else 5e-4
    assert statistics.tango_interval(gained, lost, samples) == pytest.approx((low, high), abs=digits)
    mirrored = statistics.tango_interval(lost, gained, samples)
    assert mirrored == pytest.approx((-high, -low), abs=digits)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 300), st.data())
def test_tangos_interval_ends_where_the_score_test_rejects(samples, data):
    gained = data.draw(st.integers(0, samples))
    lost = data.draw(st.integers(0, samples - gained))
    low, high = statistics.tango_interval(gained, lost, samples)
    assert -1 <= low <= (gained - lost) / samples <= high <= 1
    assert high - low > 1e-3
    z = stats.norm.isf(0.025)
    for end in (low, high):
        if abs(end) == 1:
            continue

        # The likelihood of (gained, lost, same) shares (q + Δ, q, 1 − 2q − Δ), maximised numerically.
        def minus_log_likelihood(q, end=end):
            shares = (q + end, q, 1 - 2 * q - end)
            counts = (gained, lost, samples - gained - lost)
            return -sum(n * math.log(max(p, 1e-300)) for n, p in zip(counts, shares, strict=True) if n)

        bounds = (max(0.0, -end), (1 - end) / 2)
        q = optimize.minimize_scalar(
            minus_log_likelihood, bounds=bounds, method="bounded", options={"xatol": 1e-10}
        ).x
        score = (gained - lost - samples * end) / math.sqrt(samples * (2 * q + end - end**2))
        assert abs(score) == pytest.approx(z, rel=1e-3)


def test_no_sample_that_differs_still_leaves_an_interval_that_narrows_with_samples():
    z2 = stats.norm.isf(0.025) ** 2
    for samples in (2, 20, 200):
        one = statistics.compare_accuracies([True] * samples, [True] * samples)
        assert (one.ci_low, one.ci_high) == pytest.approx((-z2 / (samples + z2), z2 / (samples + z2)))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 60))
def test_tangos_interval_belongs_to_mcnemars_asymptotic_test(gained, lost, same):
    samples = max(2, gained + lost + same)
    low, high = statistics.tango_interval(gained, lost, samples)
    chi2 = (gained - lost) ** 2 / (gained + lost) if gained + lost else 0.0
    assert (low > 0 or high < 0) == (chi2 > stats.chi2.isf(0.05, 1))


@pytest.mark.parametrize("test, least", [("McNemar exact", 6), ("Wilcoxon", 6), ("paired t-test", 1)])
def test_the_fewest_samples_that_a_test_can_reject_with(test, least):
    found = next(n for n in range(1, 50) if statistics.smallest_attainable_p(test, n) < 0.05)
    assert found == least
    if test == "McNemar exact":
        p_value = statistics.compare_accuracies([False] * 6, [True] * 6).p_value
    elif test == "Wilcoxon":
        p_value = statistics.compare_losses(np.zeros(6), np.arange(1.0, 7.0)).wilcoxon_p
    else:
        return
    assert p_value == pytest.approx(statistics.smallest_attainable_p(test, 6))


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
    covered = np.zeros(2)
    for _ in range(200):
        baseline = rng.normal(3, 1, size=60)
        losses = statistics.compare_losses(baseline, baseline + rng.normal(0.1, 0.3, size=60)).loss
        changed = rng.choice([-1, 0, 1], size=60, p=[0.05, 0.8, 0.15])
        low, high = statistics.tango_interval((changed > 0).sum(), (changed < 0).sum(), 60)
        covered += losses.ci_low <= 0.1 <= losses.ci_high, low <= 0.1 <= high
    assert np.all((covered / 200 >= 0.9) & (covered / 200 <= 0.99))


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


@settings(max_examples=40, deadline=None)
@given(pairs_of_losses)
def test_clusters_of_one_sample_change_nothing(pairs):
    baseline, other = map(np.array, zip(*pairs, strict=True))
    single = list(range(len(pairs)))
    for sizes in (None, [2 + i % 3 for i in single]):
        result = statistics.compare_losses(baseline, other, sizes, single)
        expected = statistics.compare_losses(baseline, other, sizes)
        for name, value in vars(expected.loss).items():
            if isinstance(value, float):
                assert getattr(result.loss, name) == pytest.approx(value, rel=1e-12, abs=1e-12)
        assert result.loss.test == expected.loss.test
        assert result.wilcoxon_p == pytest.approx(expected.wilcoxon_p, rel=1e-12)
    assert statistics.compare_accuracies(baseline > 5, other > 5, single) == statistics.compare_accuracies(
        baseline > 5, other > 5
    )


def test_samples_repeated_as_clusters_count_once():
    rng = np.random.default_rng(3)
    baseline = rng.normal(3, 1, size=30)
    other = baseline + rng.normal(0.1, 0.3, size=30)
    once = statistics.compare_losses(baseline, other)
    twice = statistics.compare_losses(np.tile(baseline, 2), np.tile(other, 2), None, list(range(30)) * 2)
    for name in ("difference", "ci_low", "ci_high", "p_value", "value_stderr", "p_bootstrap"):
        assert getattr(twice.loss, name) == pytest.approx(getattr(once.loss, name))
    assert twice.wilcoxon_p == pytest.approx(once.wilcoxon_p)
    assert (twice.loss.samples, twice.loss.clusters) == (60, 30)
    assert twice.loss.test == "clustered paired t-test"


def test_accuracies_of_clusters_are_compared_by_the_clustered_t_test():
    rng = np.random.default_rng(4)
    clusters = rng.integers(0, 12, size=90).tolist()
    baseline, other = rng.random(90) < 0.5, rng.random(90) < 0.7
    result = statistics.compare_accuracies(baseline, other, clusters)
    t = statistics.compare_losses(baseline.astype(float), other.astype(float), None, clusters).loss
    for name in ("difference", "ci_low", "ci_high", "p_value", "test", "clusters"):
        assert getattr(result, name) == pytest.approx(getattr(t, name))


def test_clusters_in_which_nothing_differs_still_leave_an_interval():
    same = statistics.compare_accuracies([True] * 40, [True] * 40, [i // 2 for i in range(40)])
    assert (same.difference, same.p_value) == (0, 1)
    assert (same.ci_low, same.ci_high) == statistics.tango_interval(0, 0, 20)
    all_gained = statistics.compare_accuracies([False] * 8, [True] * 8, [i // 2 for i in range(8)])
    assert all_gained.p_value == pytest.approx(0.125)
    assert all_gained.ci_low < 1 == all_gained.ci_high
    one = statistics.compare_accuracies([True, False], [True, True], [0, 0])
    assert one.p_value is one.ci_low is one.ci_high is one.value_stderr is None


def paired(difference, stderr, clusters=30):
    p_value = float(2 * stats.t.sf(abs(difference) / stderr, clusters - 1))
    return statistics.PairedDifference(difference, stderr, p_value, "paired t-test", clusters, clusters)


def test_simultaneous_intervals_are_bonferronis_with_ends_at_0_where_holm_needs_them():
    # p-values about 1e-9, 0.015, 0.03 and 0.6: Holm rejects the first two, Bonferroni (0.0125) the first.
    family = [paired(d, 1.0) for d in (9.0, -2.58, 2.28, 0.5)]
    p_holm, intervals = statistics.simultaneous_intervals(family)
    assert [p < 0.05 for p in p_holm] == [True, True, False, False]
    reach = stats.t.isf(0.05 / 8, 29)
    expected = [(9 - reach, 9 + reach), (-2.58 - reach, 0), (2.28 - reach, 2.28 + reach)]
    for interval, ends in zip(intervals, expected, strict=False):
        assert interval == pytest.approx(ends)
    assert -2.58 + reach > 0  # Bonferroni's interval holds 0 there
    # Without a test there is no interval, and it is not counted.
    nothing = statistics.PairedDifference(1.0, None, None, "paired t-test", 1, 1)
    assert statistics.simultaneous_intervals([*family, nothing]) == (
        [*p_holm, None],
        [*intervals, (None, None)],
    )
    assert statistics.simultaneous_intervals([]) == ([], [])


def test_tangos_interval_that_excludes_0_is_extended_where_the_exact_test_does_not_reject():
    gained = 5  # p = 2^-4 = 0.0625, while the asymptotic test gives 0.025
    one = statistics.paired_accuracies([False] * gained + [True] * 45, [True] * 50)
    assert one.p_value == pytest.approx(0.0625) and one.interval()[0] > 0
    (p_holm,), ((low, high),) = statistics.simultaneous_intervals([one])
    assert p_holm == pytest.approx(0.0625)
    assert low == 0 and high == one.interval()[1]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(-5, 5), st.floats(0.01, 3)), min_size=1, max_size=12))
def test_intervals_and_corrected_tests_never_contradict_each_other(family):
    family = [paired(d, stderr) for d, stderr in family]
    for one, p_value, (low, high) in zip(family, *statistics.simultaneous_intervals(family), strict=True):
        assert low <= one.difference <= high
        if p_value < 0.05:
            assert low >= 0 if one.difference > 0 else high <= 0
        else:
            assert low <= 0 <= high


@pytest.mark.parametrize("truth", ["none", "some", "tiny"])
def test_simultaneous_intervals_cover_all_differences_and_holm_keeps_its_error(truth):
    """16 correlated configurations on 40 unequal clusters of tokens, in 1,000 studies."""
    rng = np.random.default_rng(17)
    studies, configurations, groups = 1000, 16, 40
    true = {"none": 0.0, "some": 0.06 * (np.arange(configurations) % 4), "tiny": 0.002}[truth]
    true = np.broadcast_to(true, configurations)
    covered = false = contradicted = 0
    for _ in range(studies):
        tokens = rng.integers(50, 400, size=groups)
        shared = rng.normal(0, 0.08, size=(groups, 1))
        own = rng.normal(0, 0.08, size=(groups, configurations))
        means = true + shared + own + rng.normal(size=(groups, configurations)) / np.sqrt(tokens)[:, None]
        totals = means * tokens[:, None]
        # The estimate and its error as `ratio_with_stderr` has them, of all configurations at once.
        difference = totals.sum(axis=0) / tokens.sum()
        residuals = totals - tokens[:, None] * difference
        stderr = np.sqrt((residuals**2).sum(axis=0) * groups / (groups - 1)) / tokens.sum()
        p_values = 2 * stats.t.sf(np.abs(difference) / stderr, groups - 1)
        family = [
            statistics.PairedDifference(d, s, p, "clustered", groups, groups)
            for d, s, p in zip(difference.tolist(), stderr.tolist(), p_values.tolist(), strict=True)
        ]
        p_holm, intervals = statistics.simultaneous_intervals(family)
        low, high = np.array(intervals).T
        covered += bool(np.all((low <= true) & (true <= high)))
        rejected = np.array(p_holm) < 0.05
        false += bool(np.any(rejected & (true == 0)))
        contradicted += bool(np.any(rejected & (low < 0) & (high > 0)))
    assert covered / studies >= 0.93
    # The level and three standard errors of a share of 1,000 studies.
    assert false / studies <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / studies)
    assert contradicted == 0


def test_the_clustered_t_test_keeps_its_level_where_the_plain_one_does_not():
    rng = np.random.default_rng(5)
    studies, rejected = 400, np.zeros(2)
    for _ in range(studies):
        clusters = np.repeat(np.arange(20), rng.integers(2, 9, size=20))
        values = rng.normal(0, 0.5, size=20)[clusters] + rng.normal(0, 0.5, size=len(clusters))
        nothing = np.zeros(len(clusters))
        tests = (statistics.paired_losses(nothing, values, None, c) for c in (clusters.tolist(), None))
        rejected += [test.p_value < 0.05 for test in tests]
    clustered, plain = rejected / studies
    assert clustered <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / studies)
    assert plain > 0.15
