"""The patcher on tiny models: native routing to the bit, independent forward passes, restoring, logging."""

import math
import re

import jsonschema
import numpy as np
import orjson
import pytest
import torch
from adaptive_routing.data.rows import load_rows
from adaptive_routing.data.samples import prepare_samples
from adaptive_routing.model.patching import RouterPatcher
from adaptive_routing.model.routers import find_routers, find_rule
from adaptive_routing.model.sample_logger import SampleLogger
from adaptive_routing.routing import bh, topk
from adaptive_routing.routing.base import ExpertWeighting
from adaptive_routing.system.errors import InputError
from adaptive_routing.system.json_files import read_json, to_json
from conftest import ROOT, VOCABULARY, normal_null_distribution, spread_routers, tiny_olmoe
from harness import make_task
from scipy.stats import false_discovery_control
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

IMPLEMENTATIONS = ("eager", "grouped_mm", "selected_pairs")
DENSE_SHAPES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}


def tokens(*shape, seed=0):
    return torch.randint(2, VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))


def bh_strategy(num_layers=3, alpha=0.5, min_k=1, max_k=12, **weighting):
    return bh.Strategy(
        alpha, max_k, normal_null_distribution(num_layers), min_k, ExpertWeighting(**weighting)
    )


@torch.inference_mode()
def logits_of(model, input_ids, **arguments):
    return model(input_ids=input_ids, **arguments).logits


def generated(model, input_ids):
    return model.generate(
        input_ids, attention_mask=torch.ones_like(input_ids), max_new_tokens=6, do_sample=False
    )


def hooks(model):
    """All hooks in a model."""
    return [
        hook
        for module in model.modules()
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    ]


@pytest.fixture
def restored(olmoe):
    """The shared model; afterwards it must be as it was."""
    input_ids = tokens(2, 9, seed=99)
    before = logits_of(olmoe, input_ids)
    hooks_before = hooks(olmoe)
    yield olmoe
    assert hooks(olmoe) == hooks_before
    assert all(router.top_k == 8 for router in find_routers(olmoe))
    assert olmoe.config._experts_implementation == "eager"
    assert torch.equal(logits_of(olmoe, input_ids), before)


# Native routing


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("renormalize", [None, False])
def test_native_top_k_patched_is_the_unpatched_model_to_the_bit(implementation, dtype, renormalize):
    model = tiny_olmoe().to(dtype)
    model.set_experts_implementation(implementation)
    input_ids = tokens(3, 12)
    expected, expected_tokens = logits_of(model, input_ids), generated(model, input_ids)
    with RouterPatcher(model, topk.Strategy(8, ExpertWeighting(renormalize=renormalize))) as patcher:
        assert torch.equal(logits_of(model, input_ids), expected)
        batch = patcher.take_batch()
        assert torch.equal(generated(model, input_ids), expected_tokens)
    assert model.config._experts_implementation == implementation
    assert (batch.counts == 8).all() and batch.experts.shape == (36, 3, 8)
    # What is logged is what the model selected: the eight largest logits, largest first.
    in_order = batch.router_logits.gather(-1, batch.experts.long())
    assert (in_order.diff(dim=-1) <= 0).all()
    assert torch.equal(in_order, batch.router_logits.topk(8).values)
    softmax = batch.router_logits.float().softmax(-1).gather(-1, batch.experts.long())
    assert torch.equal(batch.weights, softmax.to(dtype))


def test_tied_native_experts_are_logged_lower_index_first():
    """The order that a reader of the tensors reconstructs, whatever order torch.topk happens to give."""
    model = tiny_olmoe().bfloat16()
    ties = 0
    with RouterPatcher(model, topk.Strategy(8)) as patcher:
        logits_of(model, tokens(8, 50, seed=3))
        batch = patcher.take_batch()
    for logits, experts in zip(
        batch.router_logits.flatten(0, 1).tolist(), batch.experts.flatten(0, 1).tolist(), strict=True
    ):
        assert experts == sorted(experts, key=lambda expert: (-logits[expert], expert))
        ties += len({logits[expert] for expert in experts}) < 8
    assert ties


@pytest.mark.parametrize(
    "weighting", [{"renormalize": True}, {"temperature": 2.0}, {"temperature": 0.5, "renormalize": True}]
)
def test_other_weights_replace_native_routing(restored, weighting):
    input_ids = tokens(2, 10)
    unpatched = logits_of(restored, input_ids)
    with RouterPatcher(restored, topk.Strategy(8, ExpertWeighting(**weighting))) as patcher:
        patched = logits_of(restored, input_ids)
        batch = patcher.take_batch()
    assert not torch.allclose(patched, unpatched, atol=1e-3)
    scaled = torch.softmax(batch.router_logits / weighting.get("temperature", 1.0), -1)
    expected = scaled.gather(-1, batch.experts.long())
    if weighting.get("renormalize"):
        expected = expected / expected.sum(-1, keepdim=True)
    torch.testing.assert_close(batch.weights, expected)


def test_renormalized_weights_are_the_models_own_with_norm_topk_prob(restored):
    """The same weights, and the same output as OLMoE with norm_topk_prob true."""
    normalizing = tiny_olmoe(norm_topk_prob=True)
    input_ids = tokens(2, 10)
    with RouterPatcher(restored, topk.Strategy(8, ExpertWeighting(renormalize=True))):
        patched = logits_of(restored, input_ids)
    torch.testing.assert_close(patched, logits_of(normalizing, input_ids), rtol=1e-4, atol=1e-4)
    assert find_rule(normalizing).normalized
    assert not find_rule(restored).normalized
    with RouterPatcher(normalizing, topk.Strategy(8)):
        assert torch.equal(
            logits_of(normalizing, input_ids), logits_of(tiny_olmoe(norm_topk_prob=True), input_ids)
        )
    # Native weights of another k follow the model's norm_topk_prob.
    with RouterPatcher(normalizing, topk.Strategy(4)) as patcher:
        logits_of(normalizing, input_ids)
        sums = patcher.take_batch().weights.sum(-1)
    torch.testing.assert_close(sums, torch.ones_like(sums))


# An independent forward pass


def slow_forward(model, token_ids, select):
    """OLMoE's forward pass for one sequence in NumPy float64, with plain loops over tokens and experts.

    select(logits (E,)) gives a token's experts, and their weights. Returns (logits, selections per layer).
    """
    state = {name: tensor.double().numpy() for name, tensor in model.state_dict().items()}
    config = model.config
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    size = config.hidden_size // heads

    def norm(x, weight):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + config.rms_norm_eps) * weight

    def rotate(x, position):
        angles = position / 10000.0 ** (np.arange(0, size, 2) / size)
        first, second = x[: size // 2], x[size // 2 :]
        return np.concatenate(
            [
                first * np.cos(angles) - second * np.sin(angles),
                second * np.cos(angles) + first * np.sin(angles),
            ]
        )

    def split(x, count):
        return [[rotate(part, t) for part in np.split(row, count)] for t, row in enumerate(x)]

    hidden = state["model.embed_tokens.weight"][token_ids]
    selections = []
    for layer in range(config.num_hidden_layers):
        own = {
            name.removeprefix(f"model.layers.{layer}."): tensor
            for name, tensor in state.items()
            if name.startswith(f"model.layers.{layer}.")
        }
        x = norm(hidden, own["input_layernorm.weight"])
        queries = split(norm(x @ own["self_attn.q_proj.weight"].T, own["self_attn.q_norm.weight"]), heads)
        keys = split(norm(x @ own["self_attn.k_proj.weight"].T, own["self_attn.k_norm.weight"]), kv_heads)
        values = x @ own["self_attn.v_proj.weight"].T
        attended = np.zeros((len(x), heads * size))
        for t in range(len(x)):
            for head in range(heads):
                group = head // (heads // kv_heads)
                scores = np.array([queries[t][head] @ keys[s][group] for s in range(t + 1)]) / math.sqrt(size)
                scores = np.exp(scores - scores.max())
                mixed = (scores / scores.sum()) @ values[: t + 1, group * size : (group + 1) * size]
                attended[t, head * size : (head + 1) * size] = mixed
        hidden = hidden + attended @ own["self_attn.o_proj.weight"].T
        x = norm(hidden, own["post_attention_layernorm.weight"])
        selected = []
        for t, token in enumerate(x):
            experts, weights = select(own["mlp.gate.weight"] @ token)
            selected.append(experts)
            for expert, weight in zip(experts, weights, strict=True):
                gate, up = np.split(own["mlp.experts.gate_up_proj"][expert] @ token, 2)
                inner = gate / (1 + np.exp(-gate)) * up
                hidden[t] += weight * (own["mlp.experts.down_proj"][expert] @ inner)
        selections.append(selected)
    return norm(hidden, state["model.norm.weight"]) @ state["lm_head.weight"].T, selections


@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("limits", [(1, 16), (2, 4)])
def test_bh_routed_model_equals_an_independent_forward_pass(restored, renormalize, temperature, limits):
    alpha, (min_k, max_k) = 0.6, limits
    null = normal_null_distribution(3)
    grid = np.linspace(-8, 8, 4001)

    def select(logits):
        p = np.interp(logits, grid, null.survival[0])
        k = int((false_discovery_control(p) <= alpha).sum())
        order = sorted(range(16), key=lambda e: (p[e], -logits[e], e))[: min(max(k, min_k), max_k)]
        scaled = np.exp(logits / temperature)
        weights = (scaled / scaled.sum())[order]
        return order, weights / weights.sum() if renormalize else weights

    strategy = bh_strategy(
        alpha=alpha, min_k=min_k, max_k=max_k, renormalize=renormalize, temperature=temperature
    )
    with RouterPatcher(restored, strategy) as patcher:
        for seed in range(3):
            input_ids = tokens(1, 11, seed=seed)
            patched = logits_of(restored, input_ids)
            batch = patcher.take_batch()
            expected, selections = slow_forward(restored, input_ids[0].numpy(), select)
            for layer, selected in enumerate(selections):
                kept = zip(batch.experts[:, layer].tolist(), batch.counts[:, layer].tolist(), strict=True)
                assert [row[:count] for row, count in kept] == selected
            np.testing.assert_allclose(patched[0].numpy(), expected, rtol=1e-3, atol=1e-3)
            assert len(batch.counts.unique()) > 1


def test_the_log_holds_the_weights_in_the_precision_that_the_experts_get():
    model, got = tiny_olmoe().bfloat16(), []
    for layer in model.model.layers:
        layer.mlp.experts.register_forward_pre_hook(lambda module, args: got.append(args[1:]))
    with RouterPatcher(model, bh_strategy()) as patcher:
        logits_of(model, tokens(2, 6))
        batch = patcher.take_batch()
    for layer, (experts, weights) in enumerate(got):
        assert weights.dtype == torch.bfloat16 == batch.weights.dtype
        assert torch.equal(batch.weights[:, layer], weights)
        assert torch.equal(batch.experts[:, layer].long(), experts)
        assert torch.equal(batch.counts[:, layer].long(), (weights > 0).sum(-1))


def test_a_batch_routes_each_sequence_as_alone(restored):
    """Padding on either side changes no sequence's routing, and is not in the record."""
    sequences = [tokens(length, seed=length) for length in (5, 12, 1, 9)]
    with RouterPatcher(restored, bh_strategy()) as patcher:
        alone = []
        for sequence in sequences:
            logits_of(restored, sequence[None])
            alone.append(patcher.take_batch())
        for side in ("right", "left"):
            input_ids, mask = torch.zeros(4, 12, dtype=torch.int64), torch.zeros(4, 12, dtype=torch.int64)
            for row, sequence in enumerate(sequences):
                place = slice(0, len(sequence)) if side == "right" else slice(12 - len(sequence), 12)
                input_ids[row, place], mask[row, place] = sequence, 1
            positions = (mask.cumsum(-1) - 1).clamp(min=0)
            logits_of(restored, input_ids, attention_mask=mask, position_ids=positions)
            batch = patcher.take_batch()
            assert batch.lengths == (5, 12, 1, 9) and len(batch.counts) == 27
            torch.testing.assert_close(
                batch.router_logits, torch.cat([one.router_logits for one in alone]), rtol=1e-4, atol=1e-4
            )
            assert torch.equal(batch.experts, torch.cat([one.experts for one in alone]))


def test_inputs_may_be_positional_or_embeddings(restored):
    input_ids = tokens(2, 7)
    with RouterPatcher(restored, bh_strategy()) as patcher, torch.inference_mode():
        by_name = restored(input_ids=input_ids).logits
        first = patcher.take_batch()
        assert torch.equal(restored(input_ids).logits, by_name)
        assert torch.equal(patcher.take_batch().experts, first.experts)
        embedded = restored.get_input_embeddings()(input_ids)
        assert torch.equal(restored(inputs_embeds=embedded).logits, by_name)
        assert patcher.take_batch().lengths == (7, 7)
        with pytest.raises(ValueError, match="attention_mask must be"):
            restored(input_ids, attention_mask=torch.ones(2, 1, 7, 7))


# Patching and restoring


def test_patch_and_restore_leave_the_model_as_it_was(restored):
    weights = {name: tensor.clone() for name, tensor in restored.state_dict().items()}
    patcher = RouterPatcher(restored, bh_strategy())
    outputs = []
    for _ in range(3):
        with patcher:
            assert restored.config._experts_implementation == "selected_pairs"
            outputs.append(logits_of(restored, tokens(2, 8)))
        assert not torch.equal(logits_of(restored, tokens(2, 8)), outputs[-1])
    assert torch.equal(outputs[0], outputs[1]) and torch.equal(outputs[0], outputs[2])
    patcher.restore()  # without a patch it does nothing
    assert all(torch.equal(weights[name], tensor) for name, tensor in restored.state_dict().items())


def test_an_exception_outside_the_model_restores(restored):
    with pytest.raises(KeyError), RouterPatcher(restored, bh_strategy()):
        raise KeyError("reader's own")


@pytest.mark.parametrize("place", ["router", "experts", "norm"])
def test_an_exception_within_a_forward_pass(restored, place):
    """The model is restored; the same patcher works again; nothing of the failed pass is handed out."""
    block = restored.model.layers[1].mlp
    module = {"router": block.gate, "experts": block.experts, "norm": restored.model.norm}[place]

    def fail(*_):
        raise ArithmeticError("in the middle")

    patcher = RouterPatcher(restored, bh_strategy())
    with patcher:
        expected = logits_of(restored, tokens(2, 8))
    handle = module.register_forward_pre_hook(fail)
    try:
        with pytest.raises(ArithmeticError), patcher:
            logits_of(restored, tokens(2, 8))
    finally:
        handle.remove()
    with pytest.raises(RuntimeError, match="no forward pass"):
        patcher.take_batch()
    with patcher:
        # Within one patch, too: a failed pass followed by a good one.
        handle = module.register_forward_pre_hook(fail)
        with pytest.raises(ArithmeticError):
            logits_of(restored, tokens(1, 3))
        handle.remove()
        assert all(router.top_k == 8 for router in find_routers(restored))
        assert torch.equal(logits_of(restored, tokens(2, 8)), expected)
        assert patcher.take_batch().lengths == (8, 8)


def test_the_same_patcher_nested(restored):
    plain = logits_of(restored, tokens(2, 8))
    patcher = RouterPatcher(restored, bh_strategy())
    with patcher:
        once = logits_of(restored, tokens(2, 8))
        with patcher:
            assert torch.equal(logits_of(restored, tokens(2, 8)), once)
        assert torch.equal(logits_of(restored, tokens(2, 8)), once)
        assert patcher.take_batch().router_logits.shape == (16, 3, 16)
    assert torch.equal(logits_of(restored, tokens(2, 8)), plain)


def test_different_patchers_nested_the_innermost_acts(restored):
    input_ids = tokens(2, 8)
    plain = logits_of(restored, input_ids)
    strategies = [bh_strategy(), topk.Strategy(2), topk.Strategy(8)]
    alone = []
    for strategy in strategies:
        with RouterPatcher(restored, strategy):
            alone.append(logits_of(restored, input_ids))
    assert torch.equal(alone[2], plain) and not torch.equal(alone[0], alone[1])
    with RouterPatcher(restored, strategies[0]) as outer:
        logits_of(restored, tokens(1, 3))
        # Made while another one is in force.
        with RouterPatcher(restored, strategies[1]) as inner:
            assert torch.equal(logits_of(restored, input_ids), alone[1])
            with RouterPatcher(restored, strategies[2]):
                assert torch.equal(logits_of(restored, input_ids), plain)
            assert torch.equal(logits_of(restored, input_ids), alone[1])
            assert (inner.take_batch().counts == 2).all()
        assert outer.take_batch().lengths == (3,)
        assert torch.equal(logits_of(restored, input_ids), alone[0])
    assert torch.equal(logits_of(restored, input_ids), plain)


def test_restoring_in_another_order(restored):
    input_ids = tokens(2, 8)
    plain = logits_of(restored, input_ids)
    first, second = RouterPatcher(restored, bh_strategy()), RouterPatcher(restored, topk.Strategy(2))
    first.patch()
    expected = logits_of(restored, input_ids)
    second.patch()
    inner = logits_of(restored, input_ids)
    first.restore()
    assert torch.equal(logits_of(restored, input_ids), inner)
    first.patch()
    assert torch.equal(logits_of(restored, input_ids), expected)
    second.restore()
    assert torch.equal(logits_of(restored, input_ids), expected)
    first.restore()
    assert torch.equal(logits_of(restored, input_ids), plain)


def test_two_models_are_patched_apart():
    first, second = tiny_olmoe(seed=1), tiny_olmoe(seed=2)
    input_ids = tokens(1, 6)
    plain = logits_of(second, input_ids)
    with RouterPatcher(first, bh_strategy()), RouterPatcher(second, topk.Strategy(8)):
        assert torch.equal(logits_of(second, input_ids), plain)
        assert first.config._experts_implementation == "selected_pairs"


# Other models


def other_model(kind):
    if kind == "qwen3_moe":
        config = Qwen3MoeConfig(
            **DENSE_SHAPES, head_dim=8, moe_intermediate_size=16, intermediate_size=48,
            num_experts=16, num_experts_per_tok=4, norm_topk_prob=True, mlp_only_layers=[0],
        )  # fmt: skip
        config.num_hidden_layers = 3
        model_class = Qwen3MoeForCausalLM
    else:
        config = MixtralConfig(
            **DENSE_SHAPES, intermediate_size=16, num_local_experts=8, num_experts_per_tok=2
        )
        model_class = MixtralForCausalLM
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return spread_routers(model_class(config))


@pytest.mark.parametrize(("kind", "top_k"), [("qwen3_moe", 4), ("mixtral", 2)])
def test_other_mixtures_of_experts(kind, top_k):
    model = other_model(kind)
    input_ids = tokens(2, 10)
    plain = logits_of(model, input_ids)
    assert len(find_routers(model)) == 2  # the dense layer of Qwen has no router
    with RouterPatcher(model, topk.Strategy(top_k)) as patcher:
        assert patcher.strategy.weighting.renormalize
        assert torch.equal(logits_of(model, input_ids), plain)
    # The same selection through our own hooks and experts: equal up to rounding.
    with RouterPatcher(model, bh_strategy(2, 0.5, min_k=top_k, max_k=top_k)) as patcher:
        torch.testing.assert_close(logits_of(model, input_ids), plain, rtol=1e-4, atol=1e-5)
    with RouterPatcher(model, bh_strategy(2, 0.6, max_k=8)) as patcher:
        routed = logits_of(model, input_ids)
        batch = patcher.take_batch()
        assert len(batch.counts.unique()) > 1
        assert not torch.equal(routed, plain)
        # transformers' own loop over experts gives the same.
        model.set_experts_implementation("eager")
        torch.testing.assert_close(logits_of(model, input_ids), routed, rtol=1e-4, atol=1e-5)
    sums = batch.weights.sum(-1)
    torch.testing.assert_close(sums, torch.ones_like(sums))


def test_a_dense_model_is_refused():
    model = LlamaForCausalLM(LlamaConfig(**DENSE_SHAPES, intermediate_size=16))
    with pytest.raises(InputError, match="LlamaForCausalLM has no mixture-of-experts router"):
        RouterPatcher(model, topk.Strategy(8))


def test_a_router_that_no_rule_describes_is_refused():
    model = tiny_olmoe()
    gate = model.model.layers[1].mlp.gate

    def tanh_router(self, hidden_states):
        logits = torch.nn.functional.linear(hidden_states, self.weight)
        weights, indices = torch.topk(logits.tanh(), self.top_k)
        return logits, weights, indices

    gate.forward = tanh_router.__get__(gate)
    with pytest.raises(InputError, match="OlmoeTopKRouter selects or weights experts in a way that no rule"):
        RouterPatcher(model, topk.Strategy(8))
    gate.forward = (lambda self, hidden_states: tanh_router(self, hidden_states)[1:]).__get__(gate)
    with pytest.raises(InputError, match=r"\(logits, weights, indices\)"):
        RouterPatcher(model, topk.Strategy(8))


def test_more_experts_than_the_model_has_are_refused(restored):
    with pytest.raises(InputError, match="17 experts asked for, but the model has 16"):
        RouterPatcher(restored, topk.Strategy(17))


# Per-sample logging


def schema_of_samples():
    schema = read_json(ROOT / "schemas/internal_routing.schema.json")
    return schema["properties"]["samples"], schema["properties"]["aggregate_stats"]


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("strategy", [bh_strategy(), topk.Strategy(8), topk.Strategy(3)])
def test_padding_is_neither_logged_nor_counted(restored, side, strategy):
    lengths = (4, 9)
    input_ids = tokens(2, 9)
    mask = torch.ones_like(input_ids)
    mask[0, slice(4, None) if side == "right" else slice(0, 5)] = 0
    with RouterPatcher(restored, strategy) as patcher, SampleLogger(patcher) as logger:
        logger.start_sample_logging("first", "x" * 300)
        logits_of(restored, input_ids, attention_mask=mask)
        logger.end_sample_logging(1.25)
    (entry,) = logger.get_internal_logs()
    assert (entry["sample_id"], entry["loss"], entry["num_tokens"]) == ("first", 1.25, 13)
    assert entry["text_preview"] == "x" * 100
    assert entry["sequence_lengths"] == list(lengths)
    for layer in entry["layers"]:
        assert layer["router_logits_shape"] == [13, 16]
        assert len(layer["selected_experts"]) == len(layer["expert_counts"]) == 13
        assert [len(row) for row in layer["selected_experts"]] == list(layer["expert_counts"])
        assert len(layer["expert_weights"]) == sum(layer["expert_counts"])
        assert len(layer["router_logits_sample"]) == 5
    statistics = logger.get_aggregate_stats()
    assert statistics["num_tokens"] == 13
    assert [sum(histogram) for histogram in statistics["expert_count_histogram"]] == [13] * 3
    samples, aggregate = schema_of_samples()
    jsonschema.validate(orjson.loads(to_json([entry])), samples)
    jsonschema.validate(orjson.loads(to_json(statistics)), aggregate)


def test_padding_without_a_mask_is_told_by_its_token(restored):
    input_ids = tokens(4, 9)
    input_ids[input_ids == 0] = 1
    input_ids[0, 4:] = input_ids[2] = 0
    input_ids[1, 3] = input_ids[3, 0] = 0  # no padding
    with RouterPatcher(restored, bh_strategy(), pad_token_id=0) as patcher:
        logits_of(restored, input_ids)
        assert patcher.take_batch().lengths == (4, 9, 1, 9)
        logits_of(restored, input_ids, attention_mask=torch.ones_like(input_ids))  # which knows better
        assert patcher.take_batch().lengths == (9, 9, 9, 9)
    with RouterPatcher(restored, bh_strategy()) as patcher:
        logits_of(restored, input_ids)
        assert patcher.take_batch().lengths == (9, 9, 9, 9)


@pytest.fixture(scope="module")
def example_of_hflm(embedded, tmp_path_factory):
    """The example in docs/scoring.md, run on rows that are here: what each batch size logs."""
    TaskManager = pytest.importorskip("lm_eval.tasks").TaskManager
    folder = tmp_path_factory.mktemp("harness")
    (folder / "resources").symlink_to(ROOT / "resources")
    embedded.null_distribution.save(folder / "results/calibration/null_distribution.safetensors")
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/scoring.md").read_text("utf-8"), re.DOTALL)
    assert code.count('tasks=["lambada_openai"], limit=100') == code.count("batch_size=16") == 1
    code = code.replace('tasks=["lambada_openai"], limit=100', "tasks=[task], limit=12, **quick")

    def run(batch_size):
        task = make_task("lambada", ROOT / "resources/datasets/lambada.jsonl", folder / "cache")
        # Without an index of all of the harness's tasks, which takes long.
        quick = {"bootstrap_iters": 0, "task_manager": TaskManager(include_defaults=False)}
        names = {"task": task, "quick": quick}
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            patch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)  # seconds, for nothing
            exec(code.replace("batch_size=16", f"batch_size={batch_size}"), names)
        (entry,) = names["logger"].get_internal_logs()
        return entry, names["logger"].get_aggregate_stats(), names["results"]["results"]

    return run(1), run(5)


def test_the_harness_s_model_is_logged_without_its_padding(example_of_hflm, embedded):
    rows = load_rows(str(ROOT / "resources/datasets/lambada.jsonl"))
    prepared = prepare_samples("lambada", rows, embedded.tokenizer, 12, 512, 512)
    lengths = sorted(len(one.sequences[0].token_ids) - 1 for one in prepared)  # the last is only predicted
    (alone, stats, scores), (entry, batched_stats, batched_scores) = example_of_hflm
    assert len(set(lengths)) > 3  # so that there is padding
    for one, statistics in ((alone, stats), (entry, batched_stats)):
        assert sorted(one["sequence_lengths"]) == lengths
        assert one["num_tokens"] == statistics["num_tokens"] == sum(lengths)
        assert all(len(layer["expert_counts"]) == sum(lengths) for layer in one["layers"])
    # Rounding may decide single selections.
    np.testing.assert_allclose(batched_stats["avg_experts"], stats["avg_experts"], rtol=0.02)
    (of_task,), (batched_of_task,) = scores.values(), batched_scores.values()
    assert of_task["acc,none"] == batched_of_task["acc,none"]


def test_logs_accumulate_over_samples_and_are_cleared(restored):
    with RouterPatcher(restored, bh_strategy(min_k=2, max_k=5)) as patcher, SampleLogger(patcher) as logger:
        for number in range(3):
            logger.start_sample_logging(f"sample_{number}", "text")
            logits_of(restored, tokens(1, 4 + number, seed=number))
            logger.end_sample_logging()
        logits_of(restored, tokens(1, 7))  # belongs to no sample
    logs = logger.get_internal_logs()
    assert [one["sample_id"] for one in logs] == ["sample_0", "sample_1", "sample_2"]
    assert [one["num_tokens"] for one in logs] == [4, 5, 6]
    assert "sequence_lengths" not in logs[0] and logs[0]["loss"] is None
    statistics = logger.get_aggregate_stats()
    for layer in range(3):
        counts = np.concatenate([one["layers"][layer]["expert_counts"] for one in logs])
        chosen = [
            expert for one in logs for row in one["layers"][layer]["selected_experts"] for expert in row
        ]
        assert statistics["avg_experts"][layer] == pytest.approx(counts.mean())
        assert statistics["std_experts"][layer] == pytest.approx(counts.std())
        assert list(statistics["expert_usage"][layer]) == np.bincount(chosen, minlength=16).tolist()
        assert list(statistics["expert_count_histogram"][layer]) == np.bincount(counts, minlength=17).tolist()
        for one in logs:
            own = np.asarray(one["layers"][layer]["expert_counts"])
            stats = one["layers"][layer]["layer_stats"]
            assert stats["avg_experts"] == pytest.approx(own.mean())
            assert stats["std_experts"] == pytest.approx(own.std())
            assert stats["ceiling_hits"] == (own == 5).sum() and stats["floor_hits"] == (own == 2).sum()
    logger.clear_internal_logs()
    assert logger.get_internal_logs() == [] and logger.get_aggregate_stats()["num_tokens"] == 0


def test_generating_with_a_cache_logs_prompt_and_new_tokens(restored):
    """The same entry as one pass over prompt and new tokens, the last of which is never read."""
    prompt = tokens(1, 7)
    with RouterPatcher(restored, bh_strategy()) as patcher, SampleLogger(patcher) as logger:
        logger.start_sample_logging("generated", "text")
        whole = generated(restored, prompt)
        logger.end_sample_logging()
        logger.start_sample_logging("at once", "text")
        logits_of(restored, whole[:, :-1])
        logger.end_sample_logging()
    generated_entry, at_once = logger.get_internal_logs()
    assert generated_entry["num_tokens"] == at_once["num_tokens"] == 7 + 5
    assert "sequence_lengths" not in generated_entry
    for own, other in zip(generated_entry["layers"], at_once["layers"], strict=True):
        assert [list(row) for row in own["selected_experts"]] == [
            list(row) for row in other["selected_experts"]
        ]
        np.testing.assert_allclose(own["expert_weights"], other["expert_weights"], rtol=1e-3)


def test_generating_a_padded_batch_keeps_sequences_together(restored):
    prompts = tokens(2, 6)
    mask = torch.ones_like(prompts)
    mask[0, :2] = 0
    with RouterPatcher(restored, bh_strategy()) as patcher, SampleLogger(patcher) as logger:
        logger.start_sample_logging("batch", "text")
        restored.generate(prompts, attention_mask=mask, max_new_tokens=3, do_sample=False)
        logger.end_sample_logging()
        for row in range(2):
            logger.start_sample_logging(f"row {row}", "text")
            restored.generate(prompts[row : row + 1, 2 - 2 * row :], max_new_tokens=3, do_sample=False)
            logger.end_sample_logging()
    batch, *rows = logger.get_internal_logs()
    assert batch["sequence_lengths"] == [4 + 2, 6 + 2]
    for layer in range(3):
        alone = [list(one) for row in rows for one in row["layers"][layer]["selected_experts"]]
        assert [list(one) for one in batch["layers"][layer]["selected_experts"]] == alone


def test_wrong_use_of_the_logging_methods(restored):
    with RouterPatcher(restored, bh_strategy()) as patcher, SampleLogger(patcher) as logger:
        with pytest.raises(RuntimeError, match="without start_sample_logging"):
            logger.end_sample_logging(0.0)
        logger.start_sample_logging("empty", "")
        with pytest.raises(RuntimeError, match="sample empty: no forward pass"):
            logger.end_sample_logging(0.0)
        logger.start_sample_logging("first", "")
        with pytest.raises(RuntimeError, match="sample first is still open"):
            logger.start_sample_logging("second", "")
        logger.clear_internal_logs()  # forgets the open sample too
        logger.start_sample_logging("third", "")
        logits_of(restored, tokens(1, 4))
        patcher.take_batch()
        with pytest.raises(RuntimeError, match="no forward pass since"):
            patcher.take_batch()
        logger.end_sample_logging(0.5)
    assert [one["sample_id"] for one in logger.get_internal_logs()] == ["third"]


def test_the_methods_can_be_called_on_the_patcher(restored):
    with RouterPatcher(restored, bh_strategy()) as patcher, SampleLogger(patcher) as logger:
        for one in (patcher, logger):
            one.start_sample_logging("both", "text")
        logits_of(restored, tokens(1, 4))
        for one in (patcher, logger):
            one.end_sample_logging(0.5)
    assert patcher.get_internal_logs() == logger.get_internal_logs() != []
    assert patcher.get_aggregate_stats() == logger.get_aggregate_stats()
    patcher.clear_internal_logs()
    assert patcher.get_internal_logs() == [] != logger.get_internal_logs()
    with pytest.raises(AttributeError, match="no attribute 'take_batches'"):
        patcher.take_batches()


def test_an_exception_leaves_no_sample_open(restored):
    patcher = RouterPatcher(restored, bh_strategy())
    with patcher, SampleLogger(patcher) as logger:
        logger.start_sample_logging("first", "")
        logits_of(restored, tokens(1, 4))
        logger.end_sample_logging()
    with pytest.raises(KeyError), patcher, logger:
        logger.start_sample_logging("second", "")
        raise KeyError("reader's own")
    with patcher, logger:
        logits_of(restored, tokens(1, 4))  # belongs to no sample
        logger.start_sample_logging("third", "")
        logits_of(restored, tokens(1, 3))
        logger.end_sample_logging()
    assert [one["sample_id"] for one in logger.get_internal_logs()] == ["first", "third"]
