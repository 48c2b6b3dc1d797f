"""The experts implementation against transformers' own loop over experts."""

import copy

import pytest
import torch
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
    """transformers' reference loop over experts, whatever implementation is set.

    Unused slots have a weight of 0; before 5.23 the loop knows no index for them.
    """
    return OlmoeExperts.forward.__wrapped__(module, hidden, index.clamp(max=NUM_EXPERTS - 1), weights)


@pytest.mark.parametrize("tokens", [1, 2, 57])
@pytest.mark.parametrize("slots", [1, 8, NUM_EXPERTS])
@pytest.mark.parametrize("case", ["full", "ragged", "half of the tokens without experts", "none"])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float16, 0.01), (torch.bfloat16, 0.05)]
)
def test_equals_the_eager_experts(module, tokens, slots, case, dtype, tolerance):
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


def test_the_number_of_products_does_not_grow_with_experts(module):
    """Python does as much for few tokens and experts as for many: two grouped products among it."""
    calls = []
    for tokens, slots in ((50, 2), (700, NUM_EXPERTS)):
        index, weights = routing("full", tokens, slots)
        hidden = torch.randn(tokens, HIDDEN)
        with torch.profiler.profile() as profile:
            selected_pairs_forward(module, hidden, index, weights)
        # What torch does within an operation counts as its children; these were called from Python.
        calls.append([event.name for event in profile.events() if event.cpu_parent is None])
    assert calls[0] == calls[1]
    assert calls[0].count("aten::_grouped_mm") == 2 and "aten::mm" not in calls[0]


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
