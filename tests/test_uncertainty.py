"""Standard errors of means and ratios: known cases, SciPy's bootstrap, and the spread in simulations."""

import math

import numpy as np
import pytest
from adaptive_routing.data.tasks import get_task
from adaptive_routing.data.tasks.accuracy import accuracy_with_stderr
from adaptive_routing.data.tasks.uncertainty import (
    exp_mean_with_stderr,
    exp_ratio_with_stderr,
    mean_with_stderr,
    ratio_with_stderr,
)
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

losses = st.lists(st.floats(0, 12), min_size=2, max_size=40)
pairs = st.lists(st.tuples(st.floats(0, 500), st.integers(1, 512)), min_size=2, max_size=40)


@given(losses)
def test_the_error_of_a_mean_is_scipys(values):
    value, stderr = mean_with_stderr(values)
    assert value == pytest.approx(np.mean(values))
    assert stderr == pytest.approx(stats.sem(values), abs=1e-12)


def test_ratio_by_hand():
    # R = 12 / 6 = 2; y − R·x = −1, 0, 1; n = 3, mean x = 2: se² = 2 / (3 · 2 · 4).
    value, stderr = ratio_with_stderr([1, 4, 7], [1, 2, 3])
    assert value == 2
    assert stderr == pytest.approx(math.sqrt(1 / 12))
    value, stderr = exp_ratio_with_stderr([1, 4, 7], [1, 2, 3])
    assert (value, stderr) == pytest.approx((math.exp(2), math.exp(2) / math.sqrt(12)))


@given(pairs, st.floats(0.01, 100))
def test_a_ratio_scales_with_its_numerators_and_repetition_shrinks_the_error(samples, factor):
    numerators, denominators = zip(*samples, strict=True)
    value, stderr = ratio_with_stderr(numerators, denominators)
    scaled = ratio_with_stderr([factor * y for y in numerators], denominators)
    assert scaled == pytest.approx((factor * value, factor * stderr), abs=1e-9)
    n = len(samples)
    doubled = ratio_with_stderr(numerators * 2, denominators * 2)
    assert doubled == pytest.approx((value, stderr * math.sqrt((n - 1) / (2 * n - 1))), abs=1e-9)


@given(losses, st.integers(1, 100))
def test_equal_denominators_make_a_ratio_a_mean(values, size):
    expected = mean_with_stderr(values)
    totals = [size * value for value in values]
    assert ratio_with_stderr(totals, [size] * len(values)) == pytest.approx(expected, abs=1e-9)


@given(pairs)
def test_numerators_in_proportion_have_no_error(samples):
    denominators = [x for _, x in samples]
    assert ratio_with_stderr([3.0 * x for x in denominators], denominators) == (3.0, 0.0)


@given(pairs)
def test_samples_that_are_their_own_clusters_have_todays_errors(samples):
    numerators, denominators = zip(*samples, strict=True)
    single = ratio_with_stderr(numerators, denominators, list(range(len(samples))))
    assert single == pytest.approx(ratio_with_stderr(numerators, denominators), rel=1e-12, abs=1e-12)
    correct = [y > 100 for y in numerators]
    single = accuracy_with_stderr(correct, list(range(len(samples))))
    assert single == pytest.approx(accuracy_with_stderr(correct), rel=1e-12, abs=1e-12)


@given(pairs, st.data())
def test_a_repeated_sample_leaves_the_error_as_it_was(samples, data):
    numerators, denominators = zip(*samples, strict=True)
    times = data.draw(st.integers(2, 4))
    clusters = list(range(len(samples))) * times
    repeated = ratio_with_stderr(numerators * times, denominators * times, clusters)
    assert repeated == pytest.approx(ratio_with_stderr(numerators, denominators), rel=1e-9, abs=1e-9)


def test_the_clustered_error_is_that_of_statsmodels():
    from statsmodels.regression.linear_model import OLS

    rng = np.random.default_rng(2)
    clusters = rng.integers(0, 9, size=80)
    values = rng.normal(size=9)[clusters] + rng.normal(size=80)
    fit = OLS(values, np.ones(80)).fit(
        cov_type="cluster", cov_kwds={"groups": clusters, "use_correction": False}
    )
    value, stderr = mean_with_stderr(values.tolist(), clusters.tolist())
    assert value == pytest.approx(fit.params[0])
    assert stderr == pytest.approx(fit.bse[0] * math.sqrt(9 / 8))
    correct = (values > 0).tolist()
    assert accuracy_with_stderr(correct, clusters.tolist()) == pytest.approx(
        mean_with_stderr([float(one) for one in correct], clusters.tolist())
    )


def test_a_single_cluster_has_no_error():
    assert ratio_with_stderr([1.0, 2.0], [1, 1], [7, 7]) == (1.5, None)
    assert accuracy_with_stderr([True, False], ["a", "a"]) == (0.5, None)


@pytest.mark.parametrize(
    "task", ["wikitext", "wikitext_documents", "prompts", "lambada", "hellaswag", "arc_challenge"]
)
def test_the_errors_of_a_task_are_those_of_its_clusters(task):
    other = OUTCOME | {"loss": 3.0, "log_likelihood": -6.0, "correct": False, "gold": 0}
    metrics = get_task(task).metrics([OUTCOME, other], task)
    twice = [one | {"cluster": number} for number, one in enumerate([OUTCOME, other])] * 2
    assert get_task(task).metrics(twice, task) == pytest.approx(metrics)


OUTCOME = {
    "loss": 2.0,
    "log_likelihood": -4.0,
    "num_predicted_tokens": 2,
    "num_words": 2,
    "num_bytes": 9,
    "correct": True,
    "prediction_unnormalized": 1,
    "gold": 1,
}


@pytest.mark.parametrize(
    "task", ["wikitext", "wikitext_documents", "prompts", "lambada", "hellaswag", "arc_challenge"]
)
def test_every_metric_of_a_task_has_a_standard_error(task):
    other = OUTCOME | {"loss": 3.0, "log_likelihood": -6.0, "correct": False, "gold": 0}
    metrics = get_task(task).metrics([OUTCOME, other], task)
    values = [name for name in metrics if not name.endswith("_stderr")]
    assert values
    assert sorted(metrics) == sorted([*values, *(f"{name}_stderr" for name in values)])
    assert all(metrics[f"{name}_stderr"] > 0 for name in values)
    alone = get_task(task).metrics([OUTCOME], task)
    assert all(alone[f"{name}_stderr"] is None for name in values)


def test_the_target_perplexity_has_the_error_of_an_exp_of_a_mean():
    outcomes = [OUTCOME | {"log_likelihood": value} for value in (-2.0, -4.0, -3.0)]
    metrics = get_task("lambada").metrics(outcomes, "lambada")
    assert metrics["lambada_perplexity"] == pytest.approx(math.exp(3))
    # The standard deviation of 2, 4 and 3 is 1.
    assert metrics["lambada_perplexity_stderr"] == pytest.approx(math.exp(3) / math.sqrt(3))


def test_a_single_sample_has_no_error():
    assert exp_mean_with_stderr([0.5]) == (pytest.approx(math.exp(0.5)), None)
    assert exp_ratio_with_stderr([3.0], [4]) == (pytest.approx(math.exp(0.75)), None)


def test_an_exp_too_large_for_a_number_is_none():
    assert exp_mean_with_stderr([709.0, 711.0]) == (None, None)
    assert exp_ratio_with_stderr([9000.0, 8000.0], [1, 1]) == (None, None)
    value, stderr = exp_mean_with_stderr([300.0, 1100.0])  # only the error is too large
    assert value == pytest.approx(math.exp(700)) and stderr == pytest.approx(value * 400)
    assert exp_mean_with_stderr([109.0, 1309.0]) == (pytest.approx(math.exp(709)), None)
    # An article without spaces is one word.
    outcome = OUTCOME | {
        "log_likelihood": -4000.0,
        "num_words": 1,
        "num_bytes": 2700,
        "num_predicted_tokens": 900,
    }
    metrics = get_task("wikitext_documents").metrics(
        [outcome, outcome | {"log_likelihood": -3900.0}], "wikitext"
    )
    assert metrics["word_perplexity"] is metrics["word_perplexity_stderr"] is None
    assert metrics["byte_perplexity"] == pytest.approx(math.exp(7900 / 5400))


def documents(rng, n):
    """Total losses and token counts of n documents: unequal lengths, longer ones easier."""
    lengths = rng.integers(20, 400, size=n)
    losses = rng.gamma(9, 1 / 3, size=n) - lengths / 400
    return losses * lengths, lengths


def test_errors_are_those_of_scipys_bootstrap():
    totals, lengths = documents(np.random.default_rng(1), 150)

    def exp_ratio(y, x, axis=-1):
        return np.exp(y.sum(axis=axis) / x.sum(axis=axis))

    reference = stats.bootstrap(
        (totals, lengths), exp_ratio, paired=True, method="percentile", n_resamples=4000, random_state=2
    )
    value, stderr = exp_ratio_with_stderr(totals, lengths)
    assert value == pytest.approx(exp_ratio(totals, lengths))
    assert stderr == pytest.approx(reference.standard_error, rel=0.06)

    losses = totals / lengths
    reference = stats.bootstrap(
        (losses,), lambda v, axis: np.exp(v.mean(axis=axis)), method="percentile", n_resamples=4000,
        random_state=2,
    )  # fmt: skip
    assert exp_mean_with_stderr(losses)[1] == pytest.approx(reference.standard_error, rel=0.06)


@pytest.mark.parametrize("n", [50, 200])
def test_intervals_of_two_errors_cover_the_truth(n):
    rng = np.random.default_rng(n)
    totals, lengths = documents(rng, 400_000)
    truth = math.exp(totals.sum() / lengths.sum())
    runs = [exp_ratio_with_stderr(*documents(rng, n)) for _ in range(400)]
    covered = np.mean([abs(value - truth) <= 1.96 * stderr for value, stderr in runs])
    assert 0.91 <= covered <= 0.98
