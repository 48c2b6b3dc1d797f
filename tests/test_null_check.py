"""The check of null distributions on held-out text: numbers against SciPy, figure, section of the report."""

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
import torch
from adaptive_routing.figures.null_check import count_bands, draw_null_check, histogram, read_check
from adaptive_routing.figures.style import save
from adaptive_routing.null_distribution import NullDistribution
from adaptive_routing.null_distribution.check import (
    COLUMNS,
    LEVELS,
    check,
    explained_variance,
    held_out_from,
    rejections,
    save_check,
    sorted_p_values,
)
from adaptive_routing.null_distribution.estimate import fit_null_distribution
from adaptive_routing.report.null_check import HEADING, describe_null_check, null_check_section
from adaptive_routing.system.errors import InputError
from conftest import normal_null_distribution
from harness import REAL_DATA, REAL_NULLS
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

SETTINGS = {"kernel": "gaussian", "bandwidth": "silverman", "trim": 0, "center": "none"}


def logits(tokens=400, layers=2, num_experts=16, shift=0.0, seed=0):
    """(T, L, E) normal router logits; those of a token share a shift with this standard deviation."""
    rng = np.random.default_rng(seed)
    shifts = shift * rng.normal(size=(tokens, 1, 1))
    return rng.normal(size=(tokens, layers, num_experts)) + shifts


def checked(router_logits, null=None, alphas=(0.3, 0.6), trim=0, top_k=4, min_k=1):
    null = null or normal_null_distribution(router_logits.shape[1])
    return check(null, router_logits, alphas, trim, top_k, min_k)


# The text that is held out


@pytest.mark.parametrize(
    ("lengths", "start"),
    [
        ([10] * 8, 60),
        ([50, 30, 20], 80),  # 80 is nearer to 75 than 50
        ([70, 20, 10], 70),
        ([100], 75),
        ([1, 1], 1),
        ([3], 2),
        ([5, 95], 5),
    ],
)
def test_the_last_quarter_is_held_out_from_the_nearest_sequence(lengths, start):
    assert held_out_from(np.array([0, *np.cumsum(lengths)])) == start


def test_a_text_of_one_token_is_refused():
    with pytest.raises(InputError, match="needs 2 at least"):
        held_out_from(np.array([0, 1]))


def test_two_tokens_of_one_sequence_leave_one_for_each():
    assert held_out_from(np.array([0, 2])) == 1


# Numbers


@pytest.mark.parametrize("center", ["none", "mean"])
def test_p_values_are_those_that_experiments_use(center):
    router_logits = logits(layers=2, shift=1.0).astype(np.float32)
    null = fit_null_distribution(router_logits.swapaxes(0, 1), center=center)
    for layer in range(2):
        expected = null.p_values(torch.from_numpy(router_logits[:, layer]), layer).sort(-1).values
        found = sorted_p_values(null, router_logits[:, layer].astype(np.float64), layer)
        np.testing.assert_allclose(found, expected.numpy(), atol=1e-12, rtol=0)


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_rejections_are_scipys(data):
    num_experts = data.draw(st.integers(2, 64))
    alpha = data.draw(st.sampled_from([0.05, 0.3, 0.5, 0.57]))
    value = st.floats(0, 1) | st.integers(1, num_experts).map(lambda k: min(1.0, k * alpha / num_experts))
    p = np.sort(data.draw(st.lists(value, min_size=num_experts, max_size=num_experts)))
    expected = (stats.false_discovery_control(p) <= alpha).sum()
    assert rejections(p[None], alpha).tolist() == [expected]


@pytest.mark.parametrize("trim", [0, 2, 4])
def test_distances_and_curves_are_scipys(trim):
    router_logits = 0.3 + 1.2 * logits(tokens=150)
    found = checked(router_logits, trim=trim, top_k=5)
    for layer in range(2):
        ascending = np.sort(stats.norm.sf(router_logits[:, layer]), axis=-1)
        of_population = {
            "all": ascending, "kept": ascending[:, trim : 16 - trim], "unselected": ascending[:, 5:]
        }  # fmt: skip
        (row, _) = [row for row in found.rows if row["layer"] == layer]
        for i, (population, p) in enumerate(of_population.items()):
            expected = stats.kstest(p.ravel(), "uniform")
            assert row[f"distance_{population}"] == pytest.approx(expected.statistic, abs=1e-5)
            curve = [(p <= level).mean() for level in LEVELS]
            np.testing.assert_allclose(found.curves[i, layer], curve, atol=1e-3)
        assert row["share_p_001_kept"] == pytest.approx((of_population["kept"] <= 0.01).mean(), abs=1e-3)


def test_ties_of_logits_count_in_the_distance():
    """With p-values that are all 0.5, half of the uniform distribution lies on either side."""
    (row,) = checked(np.zeros((50, 1, 16)), alphas=(0.3,)).rows
    assert row["distance_all"] == pytest.approx(0.5)


def test_rows_hold_each_layer_and_level_and_what_counts_they_have():
    router_logits = logits(tokens=300, shift=0.8)
    found = checked(router_logits, min_k=2)
    assert [(row["layer"], row["alpha"]) for row in found.rows] == [(0, 0.3), (0, 0.6), (1, 0.3), (1, 0.6)]
    for row in found.rows:
        assert tuple(sorted(row)) == tuple(sorted(COLUMNS))
        p = stats.norm.sf(router_logits[:, row["layer"]])
        counts = (stats.false_discovery_control(p, axis=1) <= row["alpha"]).sum(1)
        assert row["share_zero"] == (counts == 0).mean()
        assert row["share_below_min_k"] == (counts < 2).mean()
        assert row["share_one"] == (counts == 1).mean()
        assert row["share_all_experts"] == (counts == 16).mean()
        assert row["mean_count"] == pytest.approx(counts.mean())
        assert row["std_count"] == pytest.approx(counts.std())
        r = stats.pearsonr(counts, router_logits[:, row["layer"]].mean(-1)).statistic
        assert row["r2_mean_logit"] == pytest.approx(r**2)
        histogram = found.count_histogram[[0.3, 0.6].index(row["alpha"]), row["layer"]]
        assert histogram.tolist() == np.bincount(counts, minlength=17).tolist()


def test_independent_logits_under_the_null_select_none_with_probability_one_minus_alpha():
    """Simes (1986); 20,000 tokens have a standard error of 0.0035 at most."""
    found = checked(logits(tokens=20000, layers=1, num_experts=8), alphas=(0.3, 0.5, 0.6))
    for row in found.rows:
        assert row["share_zero"] == pytest.approx(row["share_zero_if_independent"], abs=0.014)
        assert row["share_zero_if_independent"] == pytest.approx(1 - row["alpha"])


def test_a_shift_of_a_tokens_logits_shows_and_centring_takes_it_away():
    router_logits = logits(tokens=2000, layers=1, num_experts=32, shift=1.5)
    raw, centred = (
        checked(router_logits, fit_null_distribution(router_logits.swapaxes(0, 1), center=center)).rows[-1]
        for center in ("none", "mean")
    )
    assert raw["r2_mean_logit"] > 0.5 > 0.02 > centred["r2_mean_logit"]
    assert raw["share_all_experts"] > 0.05 > centred["share_all_experts"]
    assert raw["share_zero"] > centred["share_zero"] + 0.1


def test_bins_hold_equally_many_tokens_by_their_mean_logit():
    router_logits = logits(tokens=100, layers=1, shift=1.0)
    found = checked(router_logits, alphas=(0.6,))
    means = router_logits[:, 0].mean(-1)
    p = stats.norm.sf(router_logits[:, 0])
    counts = (stats.false_discovery_control(p, axis=1) <= 0.6).sum(1)
    order = np.argsort(means).reshape(20, 5)
    np.testing.assert_allclose(found.bin_mean_logit[0], means[order].mean(1))
    np.testing.assert_allclose(found.bin_mean_count[0, 0], counts[order].mean(1))


def test_constant_counts_have_no_explained_variance():
    assert explained_variance(np.full(9, 3), np.arange(9.0)) is None
    assert explained_variance(np.arange(9), np.full(9, 1 / 3)) is None
    assert explained_variance(np.arange(9), np.arange(9.0)) == pytest.approx(1)


@pytest.mark.skipif(not REAL_DATA.exists(), reason="needs the tables of OLMoE-1B-7B in ../shared/data")
@pytest.mark.parametrize("name", REAL_NULLS)
def test_real_null_distributions_of_another_model(embedded, name):
    null = NullDistribution.from_cdf_table(REAL_NULLS[name])
    null.expect_layers(embedded.router_logits.shape[1], name)
    rows = checked(embedded.router_logits, null, alphas=(0.6,), top_k=8).rows
    assert [row["layer"] for row in rows] == list(range(16))
    assert all(0.5 < row["distance_all"] < 1 for row in rows)
    assert all(0 <= row["mean_count"] <= 64 and row["tokens"] >= 400 for row in rows)


# Files, figure and report


def saved(folder, found, **more):
    paths = folder / "null_check.csv", folder / "null_check.safetensors"
    save_check(found, *paths, {"null": "default", "fitted_tokens": 900, "min_k": 1, **SETTINGS, **more})
    return paths


def test_files_are_read_as_they_were_written(tmp_path):
    found = checked(logits())
    paths = saved(tmp_path, found)
    read = read_check(*paths)
    pd.testing.assert_frame_equal(read.rows, pd.DataFrame(found.rows, columns=COLUMNS))
    assert read.settings["null"] == "default" and read.settings["bandwidth"] == "silverman"
    for name in ("curves", "count_histogram", "bin_mean_logit", "bin_mean_count", "alphas"):
        np.testing.assert_array_equal(read.arrays[name], getattr(found, name))
    before = [path.read_bytes() for path in paths]
    saved(tmp_path, found)
    assert [path.read_bytes() for path in paths] == before


@pytest.mark.parametrize("num_experts", [2, 3, 8, 60, 64, 256])
def test_bands_of_counts_hold_every_count_once(num_experts):
    bands = count_bands(num_experts)
    assert [count for low, high in bands for count in range(low, high + 1)] == list(range(num_experts + 1))
    assert bands[0] == (0, 0) and bands[1][0] == 1 and bands[-1] == (num_experts, num_experts)


def texts(figure):
    drawn = [text.get_text() for ax in figure.axes for text in ax.texts]
    drawn += [ax.get_title(loc="left") for ax in figure.axes]
    return drawn + [text.get_text() for text in figure.texts]


@pytest.mark.parametrize(
    ("alphas", "layers", "more"),
    [
        ((0.3, 0.6), 2, {}),
        ((0.305,), 1, {"table": "table.npz", "fitted_tokens": 0}),
        (tuple(i / 20 for i in range(1, 20)), 40, {"trim": 4, "center": "mean"}),
        ((), 2, {}),
    ],
)
def test_figure_of_any_check_is_drawn(tmp_path, alphas, layers, more):
    found = checked(logits(layers=layers, shift=0.5), alphas=alphas, trim=more.get("trim", 0))
    figure = draw_null_check(read_check(*saved(tmp_path, found, **more)))
    for suffix in ("png", "svg"):
        save(figure, tmp_path / f"figure.{suffix}", 80)
    assert matplotlib.image.imread(tmp_path / "figure.png").std() > 0.05
    said = " ".join(texts(figure))
    assert ("table.npz" in said) == ("table" in more)
    assert ("held out from a fit to 900" in said) == ("table" not in more)
    assert ("less their token's mean" in said) == (more.get("center") == "mean")
    assert ("4 largest" in said) == ("trim" in more)
    assert ("k*" in said) == bool(alphas)


def test_the_histograms_are_numpys(tmp_path):
    null, own = normal_null_distribution(2), logits(tokens=500, shift=0.5)
    found = checked(own, null)
    densities = histogram(found.curves[0])
    for layer in range(2):
        p_values = sorted_p_values(null, own[:, layer], layer)
        expected, _ = np.histogram(p_values, bins=20, range=(0, 1), density=True)
        assert densities[layer] == pytest.approx(expected, abs=0.01)  # a value on an edge is in the lower bin
    figure = draw_null_check(read_check(*saved(tmp_path, found)))
    for ax in figure.axes[2:4]:
        mean, *layers = [patch.get_data().values for patch in ax.patches]
        assert mean == pytest.approx(np.mean(layers, axis=0)) and len(layers) == 2


def test_bars_are_the_shares_of_counts(tmp_path):
    found = checked(logits(shift=0.5))
    figure = draw_null_check(read_check(*saved(tmp_path, found)))
    bars = figure.axes[4].patches  # (bands, levels)
    zero, one = bars[:2], bars[2:4]
    rows = pd.DataFrame(found.rows)
    for i, alpha in enumerate((0.3, 0.6)):
        means = rows[rows["alpha"] == alpha].mean()
        assert zero[i].get_width() == pytest.approx(means["share_zero"])
        assert one[i].get_width() == pytest.approx(means["share_one"])
    assert sum(bar.get_width() for bar in bars) == pytest.approx(2)


def table(**columns):
    """Two layers at two levels."""
    rows = pd.DataFrame(
        {"layer": [0, 0, 1, 1], "alpha": [0.3, 0.6] * 2, "tokens": 100, "trim": 0, "distance_all": 0.5,
         "distance_kept": [0.01, 0.01, 0.02, 0.02], "distance_unselected": 0.1, "share_p_001_kept": 0.01,
         "share_zero": [0.8, 0.6] * 2, "share_zero_if_independent": [0.7, 0.4] * 2,
         "share_below_min_k": [0.9, 0.7] * 2, "share_one": 0.125, "share_all_experts": 0.01,
         "mean_count": 3.0, "std_count": 2.0, "r2_mean_logit": [0.5, 0.6, 0.5, 0.7]}
    )  # fmt: skip
    return rows.assign(**columns)


def test_the_sentence_of_a_null_distribution():
    assert describe_null_check("default", table()) == (
        "`default`: at α = 0.6, 70 % of token-layers have k\\* < `min_k` and are raised to it (k\\* = 0 in "
        "60 %, k\\* = 1 in 12 %); 65 % of the variance of k\\* is the token's mean logit; p-values of "
        "held-out text are within 0.020 of uniform in every layer."
    )
    assert "without each token’s 8 largest and smallest logits" in describe_null_check("t", table(trim=8))
    constant = describe_null_check("c", table(r2_mean_logit=np.nan))
    assert "k\\* is the same for every token" in constant and "nan" not in constant
    assert "α" not in describe_null_check("hc", table(alpha=np.nan))


def test_the_section_shows_every_null_distribution(tmp_path):
    checks = {
        name: (table(), tmp_path / f"calibration/null check_{name}.png") for name in ("default", "centred")
    }
    parts = list(null_check_section(checks, tmp_path))
    assert parts[0] == HEADING
    text = "\n\n".join(parts)
    assert "![Check of the null distribution centred](calibration/null%20check_centred.png)" in text
    assert "| `centred` | 0.3 | 90 | 80 | 70 | 12 | 1 | 3.00 | 0.50 | 0.020 | 0.100 |" in text
    assert "no error rate" in text
    assert list(null_check_section({}, tmp_path)) == []
