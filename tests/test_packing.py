"""Packed passes against passes of each sequence alone."""

import pytest
import torch
from adaptive_routing.model.packing import (
    PACKED_ATTENTION,
    Packing,
    current_packing,
    forward_packed,
    runs_unpacked,
)
from adaptive_routing.model.parity import check_parity
from conftest import VOCABULARY, tiny_olmoe
from transformers import MixtralConfig, MixtralForCausalLM

LENGTHS = [(5,), (1, 1), (7, 1, 30, 12), (64, 2, 64)]
CPU = torch.device("cpu")


def mixtral(sliding_window):
    config = MixtralConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=16, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2,
        max_position_embeddings=64, initializer_range=0.3, sliding_window=sliding_window,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MixtralForCausalLM(config).eval().requires_grad_(False)


MODELS = {
    "OLMoE, fewer key-value heads": tiny_olmoe,
    "Mixtral": lambda: mixtral(None),
    "Mixtral with a sliding window": lambda: mixtral(6),
}


def sequences(lengths):
    generator = torch.Generator().manual_seed(sum(lengths))
    return [torch.randint(0, VOCABULARY, (length,), generator=generator) for length in lengths]


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("name", MODELS)
def test_every_sequence_is_computed_as_alone(name, lengths):
    model, token_ids = MODELS[name](), sequences(lengths)
    with torch.inference_mode():
        packed = forward_packed(model, torch.cat(token_ids), Packing.of(lengths, CPU))
        alone = [model.base_model(one[None], use_cache=False).last_hidden_state[0] for one in token_ids]
    torch.testing.assert_close(packed, torch.cat(alone), rtol=1e-4, atol=1e-4)


def test_a_window_narrows_what_is_seen():
    """The sliding window of the test above is in force: without it the result is another one."""
    token_ids, packing = torch.cat(sequences((40,))), Packing.of((40,), CPU)
    narrow, wide = (forward_packed(mixtral(window), token_ids, packing) for window in (6, None))
    assert torch.allclose(narrow[:6], wide[:6], atol=1e-5)
    assert not torch.allclose(narrow[20:], wide[20:], atol=1e-2)


def test_the_model_is_as_it_was_afterwards():
    model = tiny_olmoe()
    own = model.config._attn_implementation
    seen = []
    handle = model.base_model.register_forward_pre_hook(
        lambda *_: seen.append((current_packing(), model.config._attn_implementation))
    )
    packing = Packing.of((3, 4), CPU)
    forward_packed(model, torch.cat(sequences((3, 4))), packing)
    assert seen == [(packing, PACKED_ATTENTION)]
    with pytest.raises(IndexError):
        forward_packed(model, torch.full((7,), VOCABULARY), packing)  # no such token
    assert current_packing() is None and model.config._attn_implementation == own
    handle.remove()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_that_mixes_tokens_by_other_means_runs_one_sequence_at_a_time(dtype, capsys):
    model = tiny_olmoe().to(dtype)
    check_parity(model)
    assert not runs_unpacked(model) and capsys.readouterr().err == ""

    def recurrence(module, args, output):
        return output.cumsum(1) / torch.arange(1, output.shape[1] + 1)[:, None].sqrt().to(output.dtype)

    model.model.layers[1].mlp.register_forward_hook(
        lambda module, args, output: recurrence(module, args, output if output.dim() == 3 else output[None])
    )
    check_parity(model)
    assert runs_unpacked(model)
    assert "OlmoeForCausalLM runs one sequence at a time" in capsys.readouterr().err
    token_ids = sequences((7, 12))
    with torch.inference_mode():
        states = forward_packed(model, torch.cat(token_ids), Packing.of((7, 12), CPU))
        alone = [model.base_model(one[None], use_cache=False).last_hidden_state[0] for one in token_ids]
    assert torch.equal(states, torch.cat(alone))
