"""Routing strategies against SciPy and plain sorting."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from adaptive_routing.null_distribution import NullDistribution
from adaptive_routing.routing import bh, make_strategy, topk
from adaptive_routing.routing.base import ExpertWeighting
from conftest import normal_null_distribution
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import false_discovery_control, norm

ALPHAS = (0.01, 0.05, 0.1, 0.3, 0.4, 0.5, 0.57, 0.6, 0.99)


class NegatedLogits:
    """A null distribution whose p-value is the negated logit, so that a test chooses every p to the bit."""

    def tested(self, router_logits):
        return router_logits.double()

    def survival_at(self, tested, layer):
        return -tested.double()

    def p_values(self, router_logits, layer):
        return self.survival_at(self.tested(router_logits), layer)


def bh_strategy(alpha, num_experts, null=None, min_k=0, max_k=None, weighting=None):
    return bh.Strategy(
        alpha, max_k or num_experts, null or NegatedLogits(), min_k, weighting or ExpertWeighting()
    )


def selected_sets(selection, num_experts):
    """(T, E) bool."""
    selected = torch.zeros(len(selection.experts), num_experts + 1, dtype=torch.bool)
    selected.scatter_(1, selection.experts, True)
    return selected[:, :num_experts].numpy()


def adversarial_p_values(rng, tokens, num_experts, alpha):
    """(T, E) p-values: uniform, small, tied, all equal, 0 and 1, on thresholds and a bit beside."""
    ranks = np.arange(1, num_experts + 1)
    thresholds = ranks * alpha / num_experts
    kinds = [
        rng.random((tokens, num_experts)),
        rng.random((tokens, num_experts)) ** 6,
        np.round(rng.random((tokens, num_experts)), 1),
        np.tile(rng.choice([0.0, 1.0, alpha, alpha / num_experts, 0.7], (tokens, 1)), (1, num_experts)),
        rng.choice([0.0, 1.0], (tokens, num_experts)),
        rng.choice(thresholds, (tokens, num_experts)),
        rng.permuted(np.tile(thresholds, (tokens, 1)), axis=1),
        np.nextafter(rng.choice(thresholds, (tokens, num_experts)), 1),
        np.nextafter(rng.choice(thresholds, (tokens, num_experts)), 0),
        alpha / (num_experts / rng.choice(ranks, (tokens, num_experts))),
    ]  # fmt: skip
    return np.clip(np.concatenate(kinds), 0, 1)


@pytest.mark.parametrize("num_experts", [2, 3, 5, 8, 16, 31, 64, 128, 256])
def test_bh_selects_what_scipy_rejects(num_experts):
    rng = np.random.default_rng(num_experts)
    rejected = 0
    for alpha in ALPHAS:
        p = adversarial_p_values(rng, 12, num_experts, alpha)
        expected = false_discovery_control(p, axis=1) <= alpha
        selection = bh_strategy(alpha, num_experts).select(torch.from_numpy(-p), 0)
        assert np.array_equal(selected_sets(selection, num_experts), expected)
        assert np.array_equal(selection.counts.numpy(), expected.sum(1))
        rejected += expected.sum()
    assert rejected


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_bh_agrees_with_scipy_on_what_hypothesis_finds(data):
    num_experts = data.draw(st.integers(2, 256))
    alpha = data.draw(st.sampled_from(ALPHAS) | st.floats(1e-6, 1 - 1e-6))
    on_threshold = st.integers(1, num_experts).map(lambda k: min(1.0, k * alpha / num_experts))
    value = st.floats(0, 1) | on_threshold | st.sampled_from([0.0, 1.0, 5e-324])
    distinct = data.draw(st.lists(value, min_size=1, max_size=6))
    p = np.array(data.draw(st.lists(st.sampled_from(distinct), min_size=num_experts, max_size=num_experts)))
    expected = false_discovery_control(p) <= alpha
    selection = bh_strategy(alpha, num_experts).select(torch.from_numpy(-p)[None], 0)
    assert np.array_equal(selected_sets(selection, num_experts)[0], expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_bh_through_a_null_distribution(dtype):
    """p-values by numpy.interp, the set by SciPy, the order by a plain sort: whatever the logits' dtype."""
    torch.manual_seed(0)
    logits = (torch.randn(400, 64) * 2).to(dtype)
    values = logits.double().numpy()
    grid = np.linspace(-8, 8, 4001)
    p = np.interp(values, grid, norm.sf(grid))
    strategy = bh_strategy(0.4, 64, normal_null_distribution(2))
    selection = strategy.select(logits, 1)
    np.testing.assert_allclose(strategy.p_values(logits, 1).numpy(), p, atol=1e-12)
    assert strategy.p_values(logits, 1).dtype == torch.float64
    assert np.array_equal(selected_sets(selection, 64), false_discovery_control(p, axis=1) <= 0.4)
    for row, experts, count in zip(
        values, selection.experts.tolist(), selection.counts.tolist(), strict=True
    ):
        in_order = sorted(range(64), key=lambda expert: (-row[expert], expert))
        assert experts[:count] == in_order[:count]
        assert set(experts[count:]) <= {64}


def test_bfloat16_decides_as_its_float64_values():
    torch.manual_seed(1)
    logits = torch.randn(2000, 64).bfloat16()  # many ties
    strategy = bh_strategy(0.5, 64, normal_null_distribution(1), min_k=1, max_k=16)
    narrow, wide = strategy.select(logits, 0), strategy.select(logits.double(), 0)
    assert torch.equal(narrow.experts, wide.experts) and torch.equal(narrow.counts, wide.counts)
    assert len(narrow.counts.unique()) > 3
    assert torch.equal(narrow.weights, strategy.select(logits.float(), 0).weights)


def test_ties_go_to_the_larger_logit_then_the_lower_index():
    # p is 1 below z = 0 and 0 from z = 1 on: the logits 3, 2, 3, 2 all have p = 0.
    step = NullDistribution(np.array([0.0]), np.array([1.0]), np.array([[1.0, 0.0]]))
    logits = torch.tensor([[-1.0, 2.0, 3.0, -2.0, 3.0, 2.0, -1.0, -2.0]])
    strategy = bh_strategy(0.3, 8, step, min_k=1, max_k=8)
    assert strategy.p_values(logits, 0).unique().tolist() == [0, 1]
    assert strategy.select(logits, 0).experts.tolist() == [[2, 4, 1, 5, 8, 8, 8, 8]]
    assert bh_strategy(0.3, 8, step, max_k=3).select(logits, 0).experts.tolist() == [[2, 4, 1]]
    # The floor takes them in the same order where all p are 1.
    floor = bh_strategy(0.3, 8, step, min_k=3, max_k=4).select(-logits.abs(), 0)
    assert floor.experts.tolist() == [[0, 6, 1, 8]]


def test_bh_is_monotone_in_alpha():
    torch.manual_seed(2)
    logits = torch.randn(300, 32) * 1.5
    previous = np.zeros((300, 32), bool)
    sizes = []
    for alpha in np.linspace(0.01, 0.99, 25):
        selected = selected_sets(bh_strategy(alpha, 32, normal_null_distribution(1)).select(logits, 0), 32)
        assert (selected >= previous).all()
        previous = selected
        sizes.append(selected.sum())
    assert sizes[-1] > sizes[0]


@pytest.mark.parametrize(("min_k", "max_k"), [(0, 64), (1, 8), (1, 64), (4, 4), (2, 16), (64, 64)])
def test_clamping(min_k, max_k):
    torch.manual_seed(3)
    logits = torch.randn(500, 64) * torch.linspace(0.3, 2.5, 500)[:, None]
    null = normal_null_distribution(1)
    p = null.p_values(logits, 0).numpy()
    unclamped = (false_discovery_control(p, axis=1) <= 0.5).sum(1)
    assert unclamped.min() == 0 and unclamped.max() > 16
    selection = bh_strategy(0.5, 64, null, min_k, max_k).select(logits, 0)
    # The unclamped number counts all E hypotheses, also where max_k is below E.
    assert np.array_equal(selection.counts.numpy(), np.clip(unclamped, min_k, max_k))
    assert selection.experts.shape == (500, max_k)
    assert ((selection.experts < 64).sum(1) == selection.counts).all()
    largest_first = torch.sort(logits, descending=True, stable=True).indices[:, :max_k]
    used = selection.experts < 64
    assert torch.equal(selection.experts[used], largest_first[used])


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize("name", ["bh", "topk"])
def test_weights(name, renormalize, temperature):
    torch.manual_seed(4)
    logits = torch.randn(50, 16) * 2
    weighting = ExpertWeighting(temperature, renormalize)
    strategy = (
        topk.Strategy(5, weighting)
        if name == "topk"
        else bh_strategy(0.6, 16, normal_null_distribution(1), 1, 6, weighting)
    )
    selection = strategy.select(logits, 0)
    scaled = np.exp(logits.double().numpy() / temperature)
    softmax = scaled / scaled.sum(1, keepdims=True)
    for row, experts, weights, count in zip(
        softmax, selection.experts.tolist(), selection.weights.numpy(), selection.counts.tolist(), strict=True
    ):
        expected = row[experts[:count]]
        if renormalize:
            expected = expected / expected.sum()
        np.testing.assert_allclose(weights[:count], expected, rtol=1e-5)
        assert (weights[count:] == 0).all()
    assert selection.weights.dtype == torch.float32


@pytest.mark.parametrize("k", [1, 8, 16])
def test_topk_takes_the_largest_logits(k):
    torch.manual_seed(5)
    logits = torch.randn(100, 16).bfloat16()
    selection = topk.Strategy(k).select(logits, 0)
    for row, experts in zip(logits.float().tolist(), selection.experts.tolist(), strict=True):
        assert experts == sorted(range(16), key=lambda expert: (-row[expert], expert))[:k]
    assert selection.counts.tolist() == [k] * 100
    assert topk.Strategy(k).p_values(logits, 0) is None


def test_strategies_are_built_from_the_settings():
    routing = {"min_k": 2, "temperature": 0.5, "weights": "renormalized"}
    null = normal_null_distribution(1)
    built = make_strategy(
        SimpleNamespace(strategy="bh", parameters={"max_k": 16, "alpha": 0.4}), routing, null
    )
    assert built == bh.Strategy(0.4, 16, null, 2, ExpertWeighting(0.5, True))
    assert (built.min_experts, built.max_experts) == (2, 16)
    native = make_strategy(
        SimpleNamespace(strategy="topk", parameters={"k": 8}), {**routing, "weights": "native"}
    )
    assert native == topk.Strategy(8, ExpertWeighting(0.5, None))
    assert native.selects_top_k(8) and not native.selects_top_k(16) and not built.selects_top_k(16)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_thresholds_are_where_the_decision_changes(data):
    """At a threshold the p-value is small enough, one float64 below it is not, whatever the steps."""
    num_experts = data.draw(st.integers(1, 20))
    alpha = data.draw(st.floats(1e-3, 0.999))
    heights = data.draw(st.lists(st.floats(0, 1), min_size=2, max_size=6))
    null = NullDistribution(
        np.array([data.draw(st.floats(-5, 5))]),
        np.array([data.draw(st.floats(0.01, 3))]),
        np.array([sorted(heights, reverse=True)]),
    )
    thresholds = bh.rejection_thresholds(lambda logits: null.p_values(logits, 0), num_experts, alpha)
    limits = (
        torch.full((num_experts,), float(num_experts)).double() / torch.arange(1, num_experts + 1).double()
    )
    reached = null.p_values(thresholds, 0) * limits <= alpha
    never = thresholds.isnan()
    assert torch.equal(reached, ~never)
    smallest, largest = null.p_values(torch.tensor([torch.inf, -torch.inf]), 0)
    assert not (smallest * limits[never] <= alpha).any()
    below = torch.nextafter(thresholds, torch.tensor(-torch.inf).double())
    finite = thresholds.isfinite() & ~never
    assert not (null.p_values(below[finite], 0) * limits[finite] <= alpha).any()
    always = thresholds == -torch.inf
    assert torch.equal(always, largest * limits <= alpha)


@pytest.mark.parametrize("k", [1, 3, 16])
@pytest.mark.parametrize("name", ["bh", "topk"])
def test_uniform_weights_are_equal_and_sum_to_one(name, k):
    torch.manual_seed(20)
    logits = torch.randn(80, 16) * 2
    weighting = ExpertWeighting.from_settings({"temperature": 0.7, "weights": "uniform"})
    strategy = (
        topk.Strategy(k, weighting)
        if name == "topk"
        else bh_strategy(0.6, 16, normal_null_distribution(1), 1, k, weighting)
    )
    selection = strategy.select(logits, 0)
    assert not weighting.is_the_routers_own
    for experts, weights, count in zip(
        selection.experts.tolist(), selection.weights.tolist(), selection.counts.tolist(), strict=True
    ):
        assert [weight > 0 for weight in weights] == [expert < 16 for expert in experts]
        np.testing.assert_allclose(weights[:count], [1 / count] * count, rtol=1e-6)
    np.testing.assert_allclose(selection.weights.sum(1), 1, rtol=1e-6)


def test_uniform_weights_keep_the_routers_scale():
    rule = replace(ExpertWeighting().rule, scale=2.5)
    weighting = ExpertWeighting.from_settings({"temperature": 1.0, "weights": "uniform"}).of_router(rule)
    selection = topk.Strategy(4, weighting).select(torch.randn(10, 16), 0)
    np.testing.assert_allclose(selection.weights.sum(1), 2.5, rtol=1e-6)


@pytest.mark.parametrize("alpha", [0.05, 0.3, 0.6])
@pytest.mark.parametrize("num_experts", [2, 16, 64])
def test_bh_under_a_centred_null_distribution_is_scipys_on_centred_logits(num_experts, alpha):
    torch.manual_seed(21)
    logits = torch.randn(300, num_experts) + 3 * torch.randn(300, 1)
    raw = normal_null_distribution(1)
    null = NullDistribution(raw.x0, raw.dx, raw.survival, {"center": "mean"})
    values = logits.double().numpy()
    values -= values.mean(axis=1, keepdims=True)
    grid = np.linspace(-8, 8, 4001)
    expected = false_discovery_control(np.interp(values, grid, norm.sf(grid)), axis=1) <= alpha
    selection = bh_strategy(alpha, num_experts, null).select(logits, 0)
    assert np.array_equal(selected_sets(selection, num_experts), expected)
    uncentred = bh_strategy(alpha, num_experts, raw).select(logits, 0)
    assert not np.array_equal(selected_sets(uncentred, num_experts), expected)
