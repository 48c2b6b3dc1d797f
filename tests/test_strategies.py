"""The rival strategies against references of a few lines, on random and adversarial logits."""

import itertools
import math
from dataclasses import replace
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from adaptive_routing import (
    Confidence,
    Entropy,
    HigherCriticism,
    Layerwise,
    MinP,
    Pooled,
    RouterPatcher,
    SampleLogger,
    TopP,
)
from adaptive_routing.data.samples import prepare_samples
from adaptive_routing.evaluation.scoring import score_batch
from adaptive_routing.model.moe_layers import MoeLayers
from adaptive_routing.model.routers import find_rule
from adaptive_routing.routing import layerwise, make_strategy, pooled
from adaptive_routing.routing.base import ExpertWeighting
from adaptive_routing.routing.hc import higher_criticism
from adaptive_routing.routing.router_rule import RouterRule
from adaptive_routing.settings.configurations import grid
from adaptive_routing.system.errors import InputError
from conftest import ROOT, normal_null_distribution, tiny_olmoe
from harness import rows_of
from hypothesis import given, settings
from hypothesis import strategies as st
from rounding import ROUNDING
from scipy.special import entr, softmax
from scipy.stats import norm

LAYERS = 2
NULL = normal_null_distribution(LAYERS)
BIAS = torch.randn(LAYERS, 256, generator=torch.Generator().manual_seed(9)) * 0.2
# Float32 probabilities and float64 ones differ by less: between the references at thresholds a bit lower and
# a bit higher stands the strategy's number, and these are almost always the same.
EPSILON = 1e-5


def reference_topp(p):
    def counts(logits, max_k):
        sums = np.sort(softmax(logits, -1), -1)[:, ::-1].cumsum(-1)
        return [1 + (sums < p + shift).sum(-1) for shift in (-EPSILON, EPSILON)]

    return counts


def reference_minp(p):
    def counts(logits, max_k):
        ratios = np.exp(logits - logits.max(-1, keepdims=True))
        return [(ratios >= p * (1 + shift)).sum(-1) for shift in (EPSILON, -EPSILON)]

    return counts


def reference_confidence(logits, max_k):
    largest = softmax(logits, -1).max(-1)
    return [
        np.select([one > 0.7, one > 0.5, one > 0.3], [4, 8, 16], max_k)
        for one in (largest + EPSILON, largest - EPSILON)
    ]


def reference_entropy(steps):
    def counts(logits, max_k):
        share = entr(softmax(logits, -1)).sum(-1) / np.log(logits.shape[-1])
        return [
            np.ceil(max_k / 2.0 ** (steps - 1 - np.clip(np.floor((share + shift) * steps), 0, steps - 1)))
            for shift in (-EPSILON, EPSILON)
        ]

    return counts


# Of those that look at one token's probabilities: (strategy, reference for its numbers before clamping).
BY_PROBABILITY = {
    "topp 0.3": (lambda *limits: TopP(0.3, *limits), reference_topp(0.3)),
    "topp 0.9": (lambda *limits: TopP(0.9, *limits), reference_topp(0.9)),
    "minp 0.02": (lambda *limits: MinP(0.02, *limits), reference_minp(0.02)),
    "minp 0.5": (lambda *limits: MinP(0.5, *limits), reference_minp(0.5)),
    "confidence": (lambda *limits: Confidence(*limits), reference_confidence),
    "entropy 3": (lambda *limits: Entropy(3, *limits), reference_entropy(3)),
    "entropy 32": (lambda *limits: Entropy(32, *limits), reference_entropy(32)),
}
# All of them, given (max_k, min_k, weighting).
ALL = {name: make for name, (make, _) in BY_PROBABILITY.items()} | {
    "hc 0.5": lambda max_k, *rest: HigherCriticism(0.5, max_k, NULL, *rest),
    "hc auto": lambda max_k, *rest: HigherCriticism("auto", max_k, NULL, *rest),
    "layerwise": lambda max_k, min_k, *rest: Layerwise(
        max_k + min_k, max_k, min_k, *rest, layer_counts=(max_k, min_k)
    ),
    "pooled": lambda max_k, *rest: Pooled(2.5, max_k, *rest),
}


def adversarial_logits(rng, tokens, num_experts):
    """(T, E) float32: narrow and wide, tied, all equal, one far above or below, extremes, bfloat16 values."""
    shape = tokens, num_experts
    normal = rng.standard_normal(shape)
    one_above = np.zeros(shape)
    one_above[np.arange(tokens), rng.integers(num_experts, size=tokens)] = rng.choice([1, 5, 1e4], tokens)
    kinds = [
        normal,
        normal * 0.01,
        normal * 30,
        np.round(normal),
        np.tile(rng.choice([0.0, -3.0, 1e4, -1e4], (tokens, 1)), (1, num_experts)),
        rng.choice([-1e4, 0.0, 1e4], shape),
        one_above,
        -one_above,
        torch.from_numpy(normal * 4).bfloat16().double().numpy(),
    ]
    return np.concatenate(kinds).astype(np.float32)


def in_order(choice, count):
    """The `count` experts with the largest scores, ties to the lower index."""
    return sorted(range(len(choice)), key=lambda expert: (-choice[expert], expert))[:count]


def check_experts(selection, choice, logits, max_k):
    """The selection is the first experts by choice score, listed by logit, and unused slots are empty."""
    num_experts = choice.shape[-1]
    assert selection.experts.shape == selection.weights.shape == (len(choice), max_k)
    for row, of_token, experts, weights, count in zip(
        choice.tolist(), logits.tolist(), selection.experts.tolist(), selection.weights, selection.counts,
        strict=True,
    ):  # fmt: skip
        expected = in_order(row, count)
        assert experts[:count] == sorted(expected, key=lambda expert: (-of_token[expert], expert))
        assert set(experts[count:]) <= {num_experts} and not weights[count:].any()


SIZES = [2, 3, 5, 8, 16, 31, 64, 256]


@pytest.mark.parametrize("num_experts", SIZES)
@pytest.mark.parametrize("name", BY_PROBABILITY)
def test_numbers_by_probability_are_the_references(name, num_experts):
    rng = np.random.default_rng(num_experts)
    logits = adversarial_logits(rng, 20, num_experts)
    make, reference = BY_PROBABILITY[name]
    seen = set()
    for min_k, max_k in {(1, num_experts), (1, max(1, num_experts // 2)), (2, max(2, num_experts // 3))}:
        selection = make(max_k, min_k).select(torch.from_numpy(logits), 0)
        low, high = np.clip(reference(logits.astype(float), max_k), min_k, max_k)
        counts = selection.counts.numpy()
        assert ((low <= counts) & (counts <= high)).all()
        assert (low == high).mean() > 0.7
        check_experts(selection, torch.from_numpy(logits), torch.from_numpy(logits), max_k)
        seen |= set(counts.tolist())
    assert len(seen) > 1


@settings(max_examples=150, deadline=None)
@given(data=st.data(), name=st.sampled_from(sorted(BY_PROBABILITY)))
def test_numbers_by_probability_on_what_hypothesis_finds(name, data):
    num_experts = data.draw(st.integers(2, 256))
    value = st.floats(-1e4, 1e4, width=32) | st.integers(-9, 9).map(float) | st.floats(-8, 8, width=16)
    distinct = data.draw(st.lists(value, min_size=1, max_size=8))
    drawn = st.lists(st.sampled_from(distinct), min_size=num_experts, max_size=num_experts)
    logits = np.array([data.draw(drawn)], np.float32)
    max_k = data.draw(st.integers(1, num_experts))
    min_k = data.draw(st.integers(1, max_k))
    make, reference = BY_PROBABILITY[name]
    selection = make(max_k, min_k).select(torch.from_numpy(logits), 0)
    low, high = np.clip(reference(logits.astype(float), max_k), min_k, max_k)
    assert low <= selection.counts.item() <= high
    check_experts(selection, torch.from_numpy(logits), torch.from_numpy(logits), max_k)


def test_numbers_on_a_threshold():
    """Where float32 holds everything exactly: at least p, at least p times, more than a step."""
    equal = torch.zeros(1, 8)  # probabilities of 1/8
    assert TopP(0.25, 8).select(equal, 0).counts.item() == 2
    assert TopP(0.2500001, 8).select(equal, 0).counts.item() == 3
    assert MinP(0.999, 8).select(equal, 0).counts.item() == 8
    assert Entropy(4, 8).select(equal, 0).counts.item() == 8
    halves = torch.tensor([[0.0, 0.0, -1e4, -1e4]])  # the entropy is exactly half of the largest
    assert Confidence(4, 1).select(halves, 0).counts.item() == 4
    assert [Entropy(steps, 4).select(halves, 0).counts.item() for steps in (2, 3, 4)] == [4, 2, 2]
    sixteen = torch.full((1, 32), -1e4)
    sixteen[0, :2] = 0.0  # the largest probability is 0.5: above 0.3, not above 0.5
    assert Confidence(32).select(sixteen, 0).counts.item() == 16
    # Adaptive-K's example: 1, 2 or 4 of 8 experts.
    spread = torch.log(torch.tensor([[0.99, *[0.01 / 7] * 7], [0.5, 0.5, *[1e-9] * 6], [0.125] * 8]))
    assert Entropy(3, 4).select(spread, 0).counts.tolist() == [1, 2, 4]


def squared_statistics(p_values):
    """Squares of HC_i / √E with their signs, exact; infinite ones as ±2^4000."""
    exact = []
    for rank, p in enumerate(p_values, 1):
        excess = Fraction(rank, len(p_values)) - Fraction(p)
        if excess and p in (0, 1):
            exact.append(Fraction(2) ** 4000 * (1 if excess > 0 else -1))
        else:
            exact.append(0 if not excess else abs(excess) * excess / (Fraction(p) * (1 - Fraction(p))))
    return exact


def adversarial_p_values(rng, tokens, num_experts):
    ranks = np.arange(1, num_experts + 1)
    expected = ranks / num_experts
    shape = tokens, num_experts
    kinds = [
        rng.random(shape),
        rng.random(shape) ** 6,
        np.round(rng.random(shape), 1),
        np.tile(rng.choice([0.0, 1.0, 0.5, 1e-300], (tokens, 1)), (1, num_experts)),
        rng.choice([0.0, 1.0], shape),
        rng.choice([0.0, 5e-324, 1 - 2**-53, 1.0], shape),
        rng.choice(expected, shape),
        np.tile(expected, (tokens, 1)),
        np.tile(np.nextafter(expected, 0), (tokens, 1)),
        1 - rng.random(shape) ** 6,
    ]
    return np.sort(np.concatenate(kinds), -1)


@pytest.mark.parametrize("num_experts", [2, 3, 8, 31, 64])
@pytest.mark.parametrize("beta", [0.01, 0.29, 0.5, 1.0, "auto"])
def test_higher_criticism_is_the_largest_statistic(beta, num_experts):
    p_values = adversarial_p_values(np.random.default_rng(num_experts), 6, num_experts)
    found = higher_criticism(torch.from_numpy(p_values), beta).tolist()
    settled = are_searched = 0
    for row, count in zip(p_values.tolist(), found, strict=True):
        statistics = squared_statistics(row)
        if beta == "auto":
            ranks = [i for i in range(1, num_experts + 1) if row[i - 1] < i / num_experts]
        else:
            ranks = range(1, math.floor(Fraction(str(beta)) * num_experts) + 1)
        ranks = [i for i in ranks if statistics[i - 1] > -(2**3000)]
        if not ranks:
            assert count == 0
            continue
        assert count in ranks
        are_searched += 1
        largest = max(statistics[i - 1] for i in ranks)
        rounding = abs(largest) * Fraction(1, 10**12) + Fraction(1, 10**28)  # of squares
        near = [i for i in ranks if largest - statistics[i - 1] <= rounding]
        assert count in near
        if len({statistics[i - 1] for i in near}) == 1:  # of equal ones, the last
            assert count == near[-1]
            settled += 1
    assert settled > are_searched // 2 or not are_searched
    assert are_searched or beta in (0.01, 0.29)


def test_higher_criticism_by_hand():
    p_values = torch.tensor([[0.001, 0.02, 0.5, 0.9], [0.6, 0.7, 0.8, 1.0]]).double()
    # √4 (0.25 − 0.001) / √(0.001 · 0.999) = 15.8; 0.96 / 0.14 = 6.9; 0.5 / 0.5 = 1; 0.2 / 0.3 = 0.7.
    assert higher_criticism(p_values, 1.0).tolist() == [1, 4]  # 0 at rank 4, the others are negative
    assert higher_criticism(p_values, 0.5).tolist() == [1, 2]  # −0.7 and −0.4
    assert higher_criticism(p_values, "auto").tolist() == [1, 0]
    assert higher_criticism(torch.zeros(1, 4).double(), 0.75).tolist() == [3]
    assert higher_criticism(torch.ones(1, 4).double(), 0.75).tolist() == [0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_higher_criticism_through_a_null_distribution(dtype):
    torch.manual_seed(0)
    logits = (torch.randn(300, 64) * 1.5).to(dtype)
    grid_points = np.linspace(-8, 8, 4001)
    p = np.sort(np.interp(logits.double().numpy(), grid_points, norm.sf(grid_points)), -1)
    statistic = (np.arange(1, 65) / 64 - p) / np.sqrt(p * (1 - p))
    strategy = HigherCriticism(0.5, 24, NULL, 2)
    selection = strategy.select(logits, 1)
    expected = statistic[:, :32].argmax(-1) + 1
    assert np.array_equal(selection.counts, np.clip(expected, 2, 24))
    assert len(selection.counts.unique()) > 10
    check_experts(selection, logits, logits, 24)
    auto = HigherCriticism("auto", 64, NULL).select(logits, 1).counts
    allowed = np.where(p < np.arange(1, 65) / 64, statistic, -np.inf)
    assert np.array_equal(auto, np.where(np.isinf(allowed).all(-1), 1, allowed.argmax(-1) + 1))
    assert torch.equal(strategy.p_values(logits, 1), NULL.p_values(logits, 1))


def test_higher_criticism_of_centred_logits():
    """A shift of all logits of a token changes nothing under a centred null distribution."""
    logits = torch.randn(200, 32, generator=torch.Generator().manual_seed(1)) * 1.5
    centred = logits.double() - logits.double().mean(-1, keepdim=True)
    null = replace(NULL, metadata={"center": "mean"})
    for beta in (0.5, "auto"):
        expected = HigherCriticism(beta, 32, NULL).select(centred, 0)
        shifted = HigherCriticism(beta, 32, null).select(logits + 3, 0)
        assert torch.equal(shifted.counts, expected.counts)
        assert torch.equal(shifted.experts, expected.experts)


def reference_pooled(probabilities, budget, min_k, max_k):
    """Numbers of one sequence's tokens, pair by pair from the largest probability."""
    counts = [min_k] * len(probabilities)
    pairs = sorted(
        (-p, token, rank)
        for token, row in enumerate(probabilities)
        for rank, p in enumerate(sorted(row, reverse=True)[:max_k])
        if rank >= min_k and p >= 0
    )
    left = math.floor(Fraction(str(budget)) * len(probabilities)) - min_k * len(probabilities)
    for _, token, _ in pairs[: max(0, left)]:
        counts[token] += 1
    return counts


@pytest.mark.parametrize(
    ("budget", "min_k", "max_k"), [(2.5, 1, 8), (0.57, 0, 3), (4, 2, 16), (1, 2, 4), (20, 1, 5), (3, 3, 3)]
)
@pytest.mark.parametrize("num_experts", [16, 64])
def test_pooled_takes_the_largest_of_each_sequence(num_experts, budget, min_k, max_k):
    rng = np.random.default_rng(1)
    logits = torch.from_numpy(rng.permutation(adversarial_logits(rng, 12, num_experts)))
    lengths = (40, 1, 0, 25, len(logits) - 66)
    selection = Pooled(budget, max_k, min_k).select_sequences(logits, 0, lengths)
    probabilities = logits.softmax(-1).split(lengths)
    for counts, of_sequence in zip(selection.counts.split(lengths), probabilities, strict=True):
        assert counts.tolist() == reference_pooled(of_sequence.tolist(), budget, min_k, max_k)
        if len(counts):
            total = math.floor(Fraction(str(budget)) * len(counts))
            assert counts.sum() == min(max(total, min_k * len(counts)), max_k * len(counts))
    check_experts(selection, logits, logits, max_k)
    alone = [Pooled(budget, max_k, min_k).select(one, 0) for one in logits.split(lengths)]
    assert torch.equal(torch.cat([one.experts for one in alone]), selection.experts)


def test_pooled_counts_what_the_decimal_says():
    descending = torch.full((100, 4), 0.25)
    assert pooled.pooled_counts(descending, (100,), 0.57, 0, 4).sum() == 57


RULES = {
    "softmax": RouterRule(),
    "sigmoid and bias": RouterRule(scores="sigmoid", bias=BIAS[:, :32], normalized=True, scale=2.5),
    "bias on logits": RouterRule(bias=BIAS[:, :32], bias_on_logits=True),
    "groups": RouterRule(groups=8, groups_kept=2),
    "groups and bias": RouterRule(
        "sigmoid", bias=BIAS[:, :32], groups=4, groups_kept=1, group_score="two largest", normalized=True
    ),
}


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("name", ALL)
def test_experts_are_the_first_by_choice_score(name, rule):
    rng = np.random.default_rng(2)
    logits = torch.from_numpy(adversarial_logits(rng, 10, 32))
    # A sigmoid makes 0 of extremes, and with groups, of tied ones any may be seen: those without.
    logits = logits[: 3 * 10] if rule.masks_groups or rule.scores == "sigmoid" else logits
    for (min_k, max_k), layer in itertools.product([(1, 32), (3, 12)], range(LAYERS)):
        strategy = ALL[name](max_k, min_k, ExpertWeighting(1.0, rule.normalized, rule))
        choice = rule.choice(logits, layer)
        seen = (choice > -torch.inf).sum(-1)
        selection = strategy.select(logits, layer)
        counts = selection.counts
        assert (counts >= min(min_k, seen.min())).all() and (counts <= max_k).all() and (counts <= seen).all()
        check_experts(selection, choice, logits, max_k)
        expected = rule.weights(logits, selection.experts)
        assert torch.equal(selection.weights, expected) and selection.weights.dtype == torch.float32
        # A token's experts do not depend on where it stands.
        order = torch.from_numpy(rng.permutation(len(logits)))
        if name != "pooled":
            permuted = strategy.select(logits[order], layer)
            assert torch.equal(permuted.experts, selection.experts[order])
            assert torch.equal(permuted.counts, counts[order])
        else:
            one, other = logits[: len(logits) // 3], logits[len(logits) // 3 :]
            both = strategy.select_sequences(logits, layer, (len(one), len(other)))
            swapped = strategy.select_sequences(torch.cat([other, one]), layer, (len(other), len(one)))
            assert torch.equal(swapped.experts.roll(len(one), 0), both.experts)


@pytest.mark.parametrize("name", ["topp 0.9", "minp 0.02", "confidence", "pooled"])
def test_experts_that_a_token_does_not_see_have_no_probability(name):
    rule = RouterRule(groups=2, groups_kept=1)
    # The first group holds the largest probability and is seen; the second holds the next three.
    logits = torch.log(torch.tensor([[0.4, 0.05, 0.02, 0.01, 0.2, 0.16, 0.1, 0.06]]))
    strategy = ALL[name](8, 1, ExpertWeighting(1.0, False, rule))
    expected = {"topp 0.9": 4, "minp 0.02": 4, "confidence": 4, "pooled": 2}[name]
    assert strategy.select(logits, 0).counts.item() == expected


# Layer-wise


@pytest.mark.parametrize("seed", range(30))
def test_the_allocation_is_the_best_of_all(seed):
    rng = np.random.default_rng(seed)
    layers, choices, min_k = int(rng.integers(1, 5)), int(rng.integers(1, 6)), int(rng.integers(1, 3))
    # Integers are added up exactly, and often tied; they need not fall with k.
    sensitivities = rng.integers(0, 6, (layers, choices)).astype(float)
    every = list(itertools.product(range(min_k, min_k + choices), repeat=layers))
    for budget in range(layers * min_k, layers * (min_k + choices - 1) + 1):
        best = min(
            (sum(sensitivities[layer, k - min_k] for layer, k in enumerate(counts)), counts)
            for counts in every
            if sum(counts) == budget
        )
        assert layerwise.allocate(sensitivities, budget, min_k) == best[1]


@pytest.mark.parametrize("settings", [{}, {"norm_topk_prob": True}])
def test_sensitivities_are_those_of_the_models_own_layers(settings):
    """Against the blocks of transformers, with their own number of experts set to k."""
    model = tiny_olmoe(**settings)
    weighting = ExpertWeighting().of_router(find_rule(model))
    found = layerwise.layer_sensitivities(MoeLayers(model), weighting, 16)
    assert found.shape == (3, 16) and np.allclose(found[:, 7], 0, atol=1e-6)
    generator = torch.Generator().manual_seed(layerwise.SEED)
    for layer, row in enumerate(found):
        hidden = torch.randn(layerwise.RANDOM_TOKENS, 32, generator=generator)
        block = model.model.layers[layer].mlp
        outputs = []
        for k in range(1, 17):
            block.gate.top_k = k
            with torch.no_grad():
                output = block(hidden[None])
            outputs.append((output[0] if isinstance(output, tuple) else output).double())
        differences = [float((one - outputs[7]).norm() / outputs[7].norm()) for one in outputs]
        np.testing.assert_allclose(row, differences, rtol=1e-4, atol=1e-6)
    assert (np.diff(found[:, :8]) < 0).all()


def test_a_patcher_gives_layerwise_its_numbers():
    model = tiny_olmoe()
    tokens = torch.randint(1, 90, (2, 11), generator=torch.Generator().manual_seed(0))
    strategy = Layerwise(budget=13, max_k=8, min_k=2)
    with pytest.raises(ValueError, match="use RouterPatcher"):
        strategy.select(torch.zeros(1, 16), 0)
    patcher = RouterPatcher(model, strategy)
    numbers = patcher.strategy.layer_counts
    assert sum(numbers) == 13 and len(numbers) == 3 and min(numbers) >= 2 and max(numbers) <= 8
    assert strategy.layer_counts is None
    # Deterministic: another model of the same weights has the same numbers.
    assert RouterPatcher(tiny_olmoe(), strategy).strategy.layer_counts == numbers
    with patcher:
        model(tokens)
        assert patcher.take_batch().counts.unique(dim=0).tolist() == [list(numbers)]
    full = RouterPatcher(model, Layerwise(budget=24, max_k=8)).strategy
    assert full.layer_counts == (8, 8, 8)
    for budget in (5, 25):
        with pytest.raises(
            InputError, match=rf"budget is {budget}, but must be from 6 to 24: the model has 3"
        ):
            RouterPatcher(model, Layerwise(budget, 8, 2))


# Through the patcher


def embedded_strategies(null):
    return {
        "hc": HigherCriticism("auto", 16, null),
        "topp": TopP(0.3, 16),
        "minp": MinP(0.4, 16),
        "confidence": Confidence(32),
        "entropy": Entropy(16, 16),
        "layerwise": Layerwise(64, 16),
        "pooled": Pooled(3.5, 16),
    }


@pytest.mark.parametrize("name", embedded_strategies(None))
def test_a_run_through_the_patcher(embedded, name):
    """On the embedded model: packed, and generating with padding; what is logged is what is selected."""
    model, strategy = embedded.loaded.model, embedded_strategies(embedded.null_distribution)[name]
    rows = rows_of(ROOT / "resources/datasets/lambada.jsonl")
    prepared = prepare_samples("lambada", rows, embedded.tokenizer, 6, 64, 64)
    sequences = [sequence for one in prepared for sequence in one.sequences]
    patcher = RouterPatcher(model, strategy)
    with patcher:
        score_batch(model, sequences)
        routing = patcher.take_batch()
    counts = []
    for layer in range(patcher.num_layers):
        selection = patcher.strategy.select_sequences(routing.router_logits[:, layer], layer, routing.lengths)
        assert torch.equal(selection.experts, routing.experts[:, layer].long())
        assert torch.equal(selection.weights, routing.weights[:, layer])
        assert torch.equal(selection.counts, routing.counts[:, layer].long())
        counts.append(selection.counts)
    counts = torch.stack(counts)
    assert counts.min() >= strategy.min_experts and counts.max() <= strategy.max_experts
    assert len(counts.unique()) > 1
    if name == "layerwise":
        assert counts[:, 0].sum() == 64
    if name == "pooled":
        for length, of_sequence in zip(routing.lengths, counts.split(routing.lengths, 1), strict=True):
            assert (of_sequence.sum(1) == int(3.5 * length)).all()
    text = [one.sample.text for one in prepared[:1]]
    inputs = embedded.tokenizer(text, return_tensors="pt")
    unpatched = model(**inputs).logits
    with patcher, SampleLogger(patcher) as logger:
        logger.start_sample_logging("one", text[0])
        generated = model.generate(**inputs, max_new_tokens=3, do_sample=False)
        logger.end_sample_logging()
    entry = logger.get_internal_logs()[0]
    assert entry["num_tokens"] == generated.shape[1] - 1
    shown = entry["layers"][0]["p_values_sample"]
    assert (shown is not None) == (name == "hc")
    assert torch.equal(model(**inputs).logits, unpatched)


@pytest.mark.parametrize("left", [False, True])
def test_pooled_never_looks_beyond_a_sequence(olmoe, left):
    """Sequences together, padded on either side, get what each gets alone; padding gets no experts."""
    generator = torch.Generator().manual_seed(3)
    lengths = (9, 4, 1)
    rows = [torch.randint(1, 90, (length,), generator=generator) for length in lengths]
    padded, mask = torch.zeros(3, 9, dtype=torch.long), torch.zeros(3, 9, dtype=torch.long)
    for row, (tokens, length) in enumerate(zip(rows, lengths, strict=True)):
        own = slice(9 - length, 9) if left else slice(0, length)
        padded[row, own], mask[row, own] = tokens, 1
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    for strategy in (Pooled(3.3, 8), Pooled(4, 4, 4)):
        with torch.no_grad(), RouterPatcher(olmoe, strategy) as patcher:
            olmoe(padded, attention_mask=mask, position_ids=positions)
            together = patcher.take_batch()
            alone = []
            for tokens in rows:
                olmoe(tokens[None])
                alone.append(patcher.take_batch())
        assert together.lengths == lengths
        for own, one in zip(together.experts.split(lengths), alone, strict=True):
            assert torch.equal(own, one.experts)
        for layer in range(3):
            counts = torch.cat([one.counts[:, layer] for one in alone])
            assert torch.equal(together.counts[:, layer], counts)


def pool_is_undecided(router_logits, strategy):
    """Whether rounding of logits (T, L, E) can change what a sequence's pool takes in some layer."""
    tolerance = 4 * ROUNDING  # two probabilities, each wrong by up to twice as much, relative to itself
    for layer, logits in enumerate(router_logits.unbind(1)):
        counts = strategy.select(logits, layer).counts[:, None]
        ordered = logits.softmax(-1).sort(-1, descending=True).values
        ranks = torch.arange(ordered.shape[1])
        is_shared = (ranks >= strategy.min_k) & (ranks < strategy.max_k)
        taken, left = ordered[is_shared & (ranks < counts)], ordered[is_shared & (ranks >= counts)]
        if len(taken) and len(left) and taken.min() <= left.max() * (1 + tolerance):
            return True
        # Elsewhere a limit cuts, between a token's own experts.
        last, following = ordered.gather(1, counts - 1), ordered.gather(1, counts)
        if (last <= following * (1 + tolerance)).any():
            return True
    return False


@pytest.mark.parametrize("size, pad", [(3, False), (8, False), (8, True)])
def test_pooled_does_not_depend_on_the_batch(embedded, size, pad):
    """As `test_batch_independence`: the same sequences in other batches, selections apart from rounding."""
    from test_batch_independence import load_samples, run

    samples = load_samples("embedded", embedded.tokenizer)[:24]
    patcher = RouterPatcher(embedded.loaded.model, Pooled(3.5, 16))
    settled = 0
    for (_, sample), one, other in zip(
        samples, run(patcher, samples, 1), run(patcher, samples, size, True, pad), strict=True
    ):
        lengths = [sequence.num_inputs for sequence in sample.sequences]
        if any(pool_is_undecided(logits, patcher.strategy) for logits in one.router_logits.split(lengths)):
            continue
        settled += 1
        assert torch.equal(one.experts, other.experts)
        torch.testing.assert_close(one.token_losses, other.token_losses, rtol=1e-5, atol=5e-5, equal_nan=True)
    assert settled > len(samples) // 2


def test_strategies_are_built_from_the_settings():
    routing = {"min_k": 2, "temperature": 0.5, "weights": "renormalized"}
    weighting = ExpertWeighting(0.5, True)
    lists = {
        "hc": ({"beta": [0.5]}, HigherCriticism(0.5, 16, NULL, 2, weighting)),
        "topp": ({"p": [0.3]}, TopP(0.3, 16, 2, weighting)),
        "minp": ({"p": [0.3]}, MinP(0.3, 16, 2, weighting)),
        "confidence": ({}, Confidence(16, 2, weighting)),
        "entropy": ({"steps": [8]}, Entropy(8, 16, 2, weighting)),
        "layerwise": ({"budget": [64]}, Layerwise(64, 16, 2, weighting)),
        "pooled": ({"budget": [2.5]}, Pooled(2.5, 16, 2, weighting)),
    }
    for name, (parameters, expected) in lists.items():
        (configuration,) = grid({name: {"max_k": [16]} | parameters})
        built = make_strategy(configuration, routing, NULL)
        assert built == expected and not built.selects_top_k(16)
        assert (built.min_experts, built.max_experts) == (2, 16)
    auto = SimpleNamespace(strategy="hc", parameters={"max_k": 8, "beta": "auto"})
    assert make_strategy(auto, routing, NULL).beta == "auto"
