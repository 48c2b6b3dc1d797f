"""The experts implementation against transformers' own loop over experts."""

import copy

import pytest
import torch
from adaptive_routing.model import experts
from adaptive_routing.model.experts import all_slots_forward, selected_pairs_forward
from conftest import tiny_olmoe
from transformers.models.olmoe.modeling_olmoe import OlmoeExperts

NUM_EXPERTS, HIDDEN = 16, 32


@pytest.fixture(scope="module")
def module():
    return tiny_olmoe().model.layers[0].mlp.experts


def routing(case, tokens, slots):
    """(indices, weights): E and weight 0 in unused slots."""
    generator = torch.Generator().manual_seed(tokens * 100 + slots)
    order = torch.rand(tokens, NUM_EXPERTS, generator=generator).argsort(1)[:, :slots]
    weights = torch.rand(tokens, slots, generator=generator)
    counts = {
        "full": torch.full((tokens,), slots),
        "ragged": torch.randint(0, slots + 1, (tokens,), generator=generator),
        "half of the tokens without experts": torch.arange(tokens) % 2 * slots,
        "none": torch.zeros(tokens, dtype=torch.int64),
    }[case]
    used = torch.arange(slots) < counts[:, None]
    return torch.where(used, order, NUM_EXPERTS), weights * used


def eager(module, hidden, index, weights):
    """transformers' reference loop over experts, whatever implementation is set."""
    return OlmoeExperts.forward.__wrapped__(module, hidden, index, weights)


@pytest.mark.parametrize("branch", ["grouped", "loop"])
@pytest.mark.parametrize("tokens", [1, 2, 57])
@pytest.mark.parametrize("slots", [1, 8, NUM_EXPERTS])
@pytest.mark.parametrize("case", ["full", "ragged", "half of the tokens without experts", "none"])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float16, 0.01), (torch.bfloat16, 0.05)]
)
def test_equals_the_eager_experts(module, monkeypatch, branch, tokens, slots, case, dtype, tolerance):
    monkeypatch.setattr(experts, "_CPU_GROUPED_BELOW_PAIRS_PER_EXPERT", 0 if branch == "loop" else 10**9)
    module = copy.deepcopy(module).to(dtype)
    torch.manual_seed(0)
    hidden = torch.randn(tokens, HIDDEN).to(dtype)
    index, weights = routing(case, tokens, slots)
    weights = weights.to(dtype)
    expected = eager(module, hidden, index, weights)
    output = selected_pairs_forward(module, hidden, index, weights)
    if case == "full":
        assert torch.equal(all_slots_forward(module, hidden, index, weights), output)
    assert output.dtype == dtype and output.shape == (tokens, HIDDEN)
    torch.testing.assert_close(output, expected, rtol=tolerance, atol=tolerance * (1 + expected.abs().max()))
    without = (index == NUM_EXPERTS).all(1)
    assert (output[without] == 0).all()


def test_both_branches_are_reached_and_agree(module, monkeypatch):
    """The number of pairs decides; the result does not."""
    torch.manual_seed(1)
    tokens = experts._CPU_GROUPED_BELOW_PAIRS_PER_EXPERT * NUM_EXPERTS // 8
    hidden = torch.randn(tokens, HIDDEN)
    index, weights = routing("full", tokens, 8)
    products = []
    grouped_mm = torch.nn.functional.grouped_mm
    monkeypatch.setattr(
        torch.nn.functional,
        "grouped_mm",
        lambda *args, **kwargs: products.append(1) or grouped_mm(*args, **kwargs),
    )
    whole = selected_pairs_forward(module, hidden, index, weights)
    assert not products
    parts = [
        selected_pairs_forward(module, hidden[part], index[part], weights[part])
        for part in (slice(0, tokens // 2), slice(tokens // 2, tokens))
    ]
    assert len(products) == 4
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-5, atol=1e-5)


def test_unused_slots_run_no_expert(module, monkeypatch):
    """Rows of the two products: one a selected pair."""
    rows = []
    grouped_mm = torch.nn.functional.grouped_mm

    def counted(inputs, *args, **kwargs):
        rows.append(len(inputs))
        return grouped_mm(inputs, *args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "grouped_mm", counted)
    index, weights = routing("ragged", 40, 8)
    selected_pairs_forward(module, torch.randn(40, HIDDEN), index, weights)
    assert rows == [(index < NUM_EXPERTS).sum()] * 2


def test_repeated_calls_give_the_same_bits(module):
    torch.manual_seed(2)
    hidden = torch.randn(200, HIDDEN)
    index, weights = routing("ragged", 200, 8)
    first = selected_pairs_forward(module, hidden, index, weights)
    assert all(torch.equal(first, selected_pairs_forward(module, hidden, index, weights)) for _ in range(3))
