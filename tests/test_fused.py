"""Kernels in Triton against torch's own operations, and what of a model they replace.

They run on a GPU where there is one; without one in Triton's interpreter, where Triton is installed and
TRITON_INTERPRET=1 is set.
"""

import copy
import os
import sys

import adaptive_routing.model as model_package
import pytest
import torch
import torch.nn.functional as F
from adaptive_routing.model import experts, fused, packing
from adaptive_routing.model.packing import Packing, forward_packed, packed_attention
from conftest import VOCABULARY, tiny_olmoe
from test_experts import HIDDEN, NUM_EXPERTS, routing
from transformers.models.olmoe import modeling_olmoe

HAS_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda", 0) if HAS_GPU else torch.device("cpu")
# The interpreter cuts bfloat16 off where a GPU rounds it.
DTYPES = [torch.float32, torch.bfloat16, torch.float16] if HAS_GPU else [torch.float32]
TOLERANCES = {torch.float32: 1e-5, torch.float16: 0.01, torch.bfloat16: 0.05}


@pytest.fixture(scope="module")
def kernels():
    if not HAS_GPU and os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("needs a GPU, or TRITON_INTERPRET=1")
    return pytest.importorskip("adaptive_routing.model.triton_kernels", exc_type=ImportError)


@pytest.fixture
def in_use(kernels, monkeypatch):
    """Have the package use the kernels, also without a GPU."""
    for module in (fused, experts):
        monkeypatch.setattr(module, "kernels_for", lambda device: kernels)
    return kernels


def random(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def assert_rounded_alike(found, expected):
    """Equal but for single last bits."""
    bits = 8 if found.dtype == torch.float32 else 1
    torch.testing.assert_close(found, expected, rtol=bits * torch.finfo(found.dtype).eps, atol=1e-30)
    if found.dtype != torch.float32:
        assert (found != expected).float().mean() < 0.001


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3, 7, 96), (2, 1, 2048)])
def test_norms(kernels, shape, dtype):
    norm = modeling_olmoe.OlmoeRMSNorm(shape[-1], eps=0.01).to(DEVICE, dtype).requires_grad_(False)
    norm.weight.copy_(random(shape[-1], seed=1))
    values = 3 * random(*shape, dtype=dtype)
    assert_rounded_alike(kernels.rms_norm(values, norm.weight, 0.01), norm(values))
    across = values.transpose(0, 1)  # not contiguous
    assert_rounded_alike(kernels.rms_norm(across, norm.weight, 0.01), norm(across))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("heads", [1, 3, 16])
def test_rotary_embedding(kernels, heads, dtype):
    states = random(1, 9, heads, 24, dtype=dtype).transpose(1, 2)
    cosine, sine = random(2, 1, 9, 24, dtype=dtype, seed=1)
    expected = modeling_olmoe.apply_rotary_pos_emb(states, states, cosine, sine)[0]
    for layout in (states, states.contiguous(), torch.cat([states, states], 2)[:, :, :9]):
        assert torch.equal(kernels.rotate(layout, cosine, sine), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gates(kernels, dtype):
    gate_up, scale = 4 * random(11, 80, dtype=dtype), random(11, dtype=dtype, seed=1)
    gate, up = gate_up.chunk(2, -1)
    assert_rounded_alike(kernels.silu_gate(gate_up), F.silu(gate) * up)
    assert_rounded_alike(kernels.silu_gate(gate_up, scale), F.silu(gate) * up * scale[:, None])
    assert kernels.silu_gate(gate_up[:0]).shape == (0, 40)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [5, 1024, 5000])
def test_scores_of_targets(kernels, size, dtype):
    logits, targets = 5 * random(6, size, dtype=dtype), torch.arange(6, device=DEVICE) % size
    logits[0] = logits[0, -1]  # of equal ones the first is the most likely
    logits[1, -3:] = logits[1].max() + 1
    logits[2] = -torch.inf
    logits[2, -1] = 0
    log_probabilities, best = kernels.score_targets(logits, targets)
    expected = logits.float().log_softmax(-1).gather(-1, targets[:, None]).squeeze(-1)
    torch.testing.assert_close(log_probabilities, expected, rtol=1e-5, atol=1e-5)
    first = (logits == logits.amax(-1, keepdim=True)).int().argmax(-1)
    assert torch.equal(best, first) and best[0] == 0


def test_scores_of_nan_are_nan(kernels):
    logits = random(2, 3000)
    logits[0, 2999] = torch.nan
    log_probabilities, _ = kernels.score_targets(logits, torch.zeros(2, dtype=torch.int64, device=DEVICE))
    assert log_probabilities.isnan().tolist() == [True, False]


def one_by_one(module, hidden, index, weights):
    """Each expert's part of the output in turn, as transformers computes it; unused slots give nothing."""
    output = torch.zeros_like(hidden)
    for expert in range(NUM_EXPERTS):
        token, slot = (index == expert).nonzero(as_tuple=True)
        gated = module._apply_gate(F.linear(hidden[token], module.gate_up_proj[expert]))
        part = F.linear(gated, module.down_proj[expert]) * weights[token, slot, None]
        output.index_add_(0, token, part)
    return output


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("slots", [1, 8, NUM_EXPERTS])
@pytest.mark.parametrize("case", ["full", "ragged", "half of the tokens without experts", "none"])
def test_experts(in_use, case, slots, dtype):
    module = tiny_olmoe().model.layers[0].mlp.experts.to(DEVICE, dtype)
    hidden = random(57, HIDDEN, dtype=dtype)
    index, weights = (one.to(DEVICE) for one in routing(case, 57, slots))
    weights = weights.to(dtype)
    expected, tolerance = one_by_one(module, hidden, index, weights), TOLERANCES[dtype]
    forwards = [experts.selected_pairs_forward] + [experts.all_slots_forward] * (case == "full")
    for forward in forwards:
        output = forward(module, hidden, index, weights)
        assert output.dtype == dtype and (output[(index == NUM_EXPERTS).all(1)] == 0).all()
        torch.testing.assert_close(
            output, expected, rtol=tolerance, atol=tolerance * (1 + expected.abs().max().item())
        )


def test_every_expert_takes_the_tokens_in_parts(in_use, monkeypatch):
    module, hidden = tiny_olmoe().model.layers[0].mlp.experts.to(DEVICE), random(57, HIDDEN)
    index, weights = (one.to(DEVICE) for one in routing("full", 57, NUM_EXPERTS))
    whole = experts.all_slots_forward(module, hidden, index, weights)
    monkeypatch.setattr(experts, "_TOKENS", 10)
    torch.testing.assert_close(experts.all_slots_forward(module, hidden, index, weights), whole)


class CutGate(torch.nn.Module):
    """Experts' gate that is cut off where it is large, as some families have it."""

    is_transposed = False

    def __init__(self, limit):
        super().__init__()
        self.gate_up_proj = torch.nn.Parameter(torch.zeros(2, 32, 8, device=DEVICE))
        self.down_proj = torch.nn.Parameter(torch.zeros(2, 8, 16, device=DEVICE))
        self.limit = limit

    def _apply_gate(self, gate_up):
        gate, up = gate_up.chunk(2, -1)
        return F.silu(gate.clamp(max=self.limit)) * up


def test_a_gate_that_is_cut_off_is_left_to_its_module(kernels):
    assert fused.gates_by_silu(CutGate(torch.inf), kernels)
    assert not fused.gates_by_silu(CutGate(7.0), kernels)


def passed(model, lengths=(7, 1, 30, 12)):
    """Final hidden states of a packed pass."""
    token_ids = torch.arange(sum(lengths), device=DEVICE) * 7 % VOCABULARY
    with torch.inference_mode():
        return forward_packed(model, token_ids, Packing.of(lengths, DEVICE))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_pass_with_kernels_is_the_same_and_leaves_the_model_as_it_was(kernels, monkeypatch, dtype):
    model, own = tiny_olmoe().to(DEVICE, dtype), modeling_olmoe.apply_rotary_pos_emb
    with monkeypatch.context() as patch:
        for module in (fused, experts):
            patch.setattr(module, "kernels_for", lambda device: None)
        expected = passed(model)
    calls = []
    for name in ("rms_norm", "rotate"):
        kernel = getattr(kernels, name)
        count = lambda *args, name=name, kernel=kernel: calls.append(name) or kernel(*args)  # noqa: E731
        monkeypatch.setattr(kernels, name, count)
    monkeypatch.setattr(fused, "kernels_for", lambda device: kernels)
    with packed_attention(model):
        calls.clear()  # those of the comparison
        found = passed(model)
    assert calls.count("rms_norm") == 3 * 4 + 1 and calls.count("rotate") == 3 * 2
    torch.testing.assert_close(
        found, expected, rtol=TOLERANCES[dtype], atol=TOLERANCES[dtype] * expected.abs().max().item()
    )
    assert modeling_olmoe.apply_rotary_pos_emb is own
    assert not [module for module in model.modules() if "forward" in vars(module)]
    assert not packing._users


class OnePlusRMSNorm(torch.nn.Module):
    """A norm whose weight is what is added to 1."""

    variance_epsilon = 1e-5

    def __init__(self, weight):
        super().__init__()
        self.weight = weight

    def forward(self, values):
        return F.rms_norm(values, values.shape[-1:], 1 + self.weight, self.variance_epsilon)


def test_a_norm_that_computes_something_else_is_left_as_it_is(in_use):
    model = tiny_olmoe().to(DEVICE)
    layer = model.model.layers[1]
    layer.input_layernorm = OnePlusRMSNorm(layer.input_layernorm.weight)
    with fused.fused_operations(model):
        replaced = [name for name, module in model.named_modules() if "forward" in vars(module)]
    assert "model.layers.1.input_layernorm" not in replaced and len(replaced) == 3 * 4
    assert not [module for module in model.modules() if "forward" in vars(module)]


def test_what_a_kernel_does_not_take_is_left_to_the_model(in_use):
    model = tiny_olmoe().to(DEVICE)
    norm, states = model.model.norm, random(2, 4, 5, 8)  # two rows of tokens: not a packed pass
    angles = random(2, 2, 5, 8, seed=1)
    own_norm = norm(states.flatten(2)[..., :32].double())
    own_states = modeling_olmoe.apply_rotary_pos_emb(states, states, *angles)
    with fused.fused_operations(model):
        assert torch.equal(norm(states.flatten(2)[..., :32].double()), own_norm)
        found = modeling_olmoe.apply_rotary_pos_emb(states, states, *angles)
    assert all(map(torch.equal, found, own_states))


def test_a_cpu_has_no_kernels():
    assert fused.kernels_for(torch.device("cpu")) is None
    model = tiny_olmoe()
    with fused.fused_operations(model):
        assert not [module for module in model.modules() if "forward" in vars(module)]


def test_without_triton_torch_computes_and_stderr_says_so_once(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "adaptive_routing.model.triton_kernels", None)  # raises ImportError
    monkeypatch.delattr(model_package, "triton_kernels", raising=False)
    fused.kernels_for.cache_clear()
    try:
        device = torch.device("cuda", 0)
        assert fused.kernels_for(device) is None and fused.kernels_for(device) is None
    finally:
        fused.kernels_for.cache_clear()
    assert capsys.readouterr().err.count("passes take torch's own operations") == 1


def test_copies_of_a_model_are_compared_anew(in_use):
    model = tiny_olmoe().to(DEVICE)
    with fused.fused_operations(model):
        pass
    other = copy.deepcopy(model)
    with fused.fused_operations(other):
        assert "forward" in vars(other.model.norm) and "forward" not in vars(model.model.norm)
