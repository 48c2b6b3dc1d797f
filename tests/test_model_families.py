"""Every family of mixture-of-experts models: computed as it computes itself, or refused in a true sentence.

The reference for another number of experts is the family's own router with another `top_k`, its own loop over
experts and its own forward; nothing of this package takes part in it.
"""

import copy
import json

import numpy as np
import pytest
import torch
from adaptive_routing.analysis.metrics.efficiency import flops_per_token
from adaptive_routing.data.rows import load_rows
from adaptive_routing.data.samples import prepare_samples
from adaptive_routing.data.tasks import SequenceScore, get_task
from adaptive_routing.evaluation.scoring import score_batch
from adaptive_routing.model.head import head_logits
from adaptive_routing.model.inspect import inspect_model
from adaptive_routing.model.load import load_model
from adaptive_routing.model.packing import Packing, forward_packed, run_unpacked
from adaptive_routing.model.parity import TOLERANCES, check_parity
from adaptive_routing.model.patching import RouterPatcher
from adaptive_routing.model.routers import find_routers
from adaptive_routing.routing import bh, topk
from adaptive_routing.routing.base import ExpertWeighting
from adaptive_routing.routing_log.entries import LoggedSample
from adaptive_routing.routing_log.reader import RoutingLog
from adaptive_routing.routing_log.writer import RoutingLogWriter
from adaptive_routing.system.errors import InputError
from conftest import ROOT, normal_null_distribution
from model_families import FAMILIES, PAGE, VOCABULARY, tiny_model, written
from scipy.stats import false_discovery_control

REFUSED = {
    "deepseek_v4": "no mixture-of-experts router that transformers can record",
    "jetmoe": "6 routers, but 0 layers of experts",
    "llama4_text": "no mixture-of-experts router that transformers can record",
    "longcat_flash": "1 routers, but 0 layers of experts",
    "phimoe": "selects or weights experts in a way that no rule for routers describes",
}
SUPPORTED = sorted(FAMILIES.keys() - REFUSED.keys())
NUM_EXPERTS, NATIVE, GROUPED_EXPERTS = 8, 3, 4
LENGTHS = (11, 3, 17)
BOUND = 2e-5


def token_ids():
    generator = torch.Generator().manual_seed(1)
    return torch.randint(3, VOCABULARY, (sum(LENGTHS),), generator=generator)


@torch.inference_mode()
def own_logits(model):
    """The model's own logits, sequence by sequence."""
    parts = token_ids().split(LENGTHS)
    return torch.cat([model(input_ids=one[None], use_cache=False).logits[0] for one in parts])


@torch.inference_mode()
def logits_here(model):
    """Logits as experiments compute them."""
    hidden = forward_packed(model, token_ids(), Packing.of(LENGTHS, torch.device("cpu")))
    return head_logits(model, hidden)


def assert_equal(logits, expected):
    assert (logits - expected).abs().max() <= BOUND * max(1.0, float(expected.abs().max()))


def experts_seen(router):
    """How many experts a token sees: all, or those of the groups that the router keeps."""
    return GROUPED_EXPERTS if (getattr(router, "num_group", None) or 1) > 1 else NUM_EXPERTS


def with_top_k(router, args, top_k):
    """A router's own (logits, weights, indices) at another number of experts."""
    own, router.top_k = router.top_k, top_k
    try:
        return router.forward(*args)
    finally:
        router.top_k = own


def bias_of(router, args):
    """The bias of a router's choice, as its attribute or as its block hands it over; None without one."""
    for holder in (router, getattr(router, "moe_statics", None)):
        if getattr(holder, "e_score_correction_bias", None) is not None:
            return holder.e_score_correction_bias.reshape(-1)
    return args[1] if len(args) > 1 else None


def reference_bh(model, null_distribution, alpha, max_k):
    """Have a model's own routers select the experts that the BH procedure rejects; the counts come back."""
    counts = []

    def hook_of(layer):
        def hook(router, args, output):
            logits = output[0]
            bias = bias_of(router, args)
            kolibri = type(router).__name__.startswith("Kolibri")
            scores = logits if bias is None else (logits if kolibri else _scores(router, logits)) + bias
            seen = experts_seen(router)
            allowed = torch.zeros_like(scores, dtype=torch.bool)
            allowed.scatter_(1, with_top_k(router, args, seen)[2], True)
            p_values = null_distribution.p_values(scores.float(), layer).masked_fill(~allowed, 1.0)
            rejected = false_discovery_control(p_values.numpy(), axis=-1) <= alpha
            own = np.clip(rejected.sum(-1), 1, min(max_k, seen))
            counts.append(own)
            weights = torch.zeros(len(logits), max_k)
            indices = with_top_k(router, args, 1)[2].expand(-1, max_k).clone()  # weight 0 where not replaced
            for number in set(own.tolist()):
                rows = torch.from_numpy(own == number)
                _, some_weights, some_indices = with_top_k(router, args, number)
                weights[rows, :number] = some_weights[rows].float()
                indices[rows, :number] = some_indices[rows]
            return logits, weights.to(output[1].dtype), indices

        return hook

    for layer, router in enumerate(find_routers(model)):
        router.register_forward_hook(hook_of(layer))
    return counts


def _scores(router, logits):
    return logits.softmax(-1) if "Ernie" in type(router).__name__ else logits.sigmoid()


@pytest.mark.parametrize("family", SUPPORTED)
def test_a_family_is_computed_as_it_computes_itself(family):
    model = tiny_model(family)
    check_parity(model)
    reference = copy.deepcopy(model)
    reference.set_experts_implementation("eager")
    seen = experts_seen(find_routers(model)[0])
    # The model's own routing: as without a patcher, to the bit, and equal to its own forward.
    unpatched = logits_here(model)
    assert_equal(unpatched, own_logits(reference))
    with RouterPatcher(model, topk.Strategy(NATIVE)):
        assert torch.equal(logits_here(model), unpatched)
    # Other numbers of experts.
    for k in (1, 2, min(seen, 6)):
        for router in find_routers(reference):
            router.top_k = k
        with RouterPatcher(model, topk.Strategy(k)):
            assert_equal(logits_here(model), own_logits(reference))
    for router in find_routers(reference):
        router.top_k = NATIVE
    # The BH procedure.
    null = normal_null_distribution(len(find_routers(model)))
    max_k = 6
    for alpha in (0.5, 0.4, 0.45, 0.55, 0.6):  # one at which counts differ: scores are not logits everywhere
        with RouterPatcher(model, bh.Strategy(alpha, max_k, null)) as patcher:
            logits = logits_here(model)
            routing = patcher.take_batch()
        if len(routing.counts.unique()) > 1:
            break
    counts = reference_bh(reference, null, alpha, max_k)
    assert_equal(logits, own_logits(reference))
    layers = len(find_routers(model))
    by_layer = [np.concatenate(counts[layer::layers]) for layer in range(layers)]
    np.testing.assert_array_equal(routing.counts.numpy(), np.stack(by_layer, 1))
    assert len(np.unique(by_layer)) > 1


def test_a_token_gets_no_more_experts_than_it_sees():
    model = tiny_model("deepseek_v3")
    with RouterPatcher(model, topk.Strategy(6)) as patcher:
        six = logits_here(model)
        routing = patcher.take_batch()
    assert (routing.counts == GROUPED_EXPERTS).all()
    assert (routing.experts[..., GROUPED_EXPERTS:] == NUM_EXPERTS).all()
    with RouterPatcher(model, topk.Strategy(GROUPED_EXPERTS)):
        assert_equal(logits_here(model), six)


@pytest.mark.parametrize("family", SUPPORTED)
def test_a_family_passes_in_bfloat16(family):
    model = tiny_model(family, torch.bfloat16)
    check_parity(model)
    unpatched = logits_here(model)
    with RouterPatcher(model, topk.Strategy(NATIVE)):
        assert torch.equal(logits_here(model), unpatched)


@pytest.mark.parametrize("family", REFUSED)
def test_a_family_is_refused(family):
    model = tiny_model(family)
    with pytest.raises(InputError, match=REFUSED[family]):
        RouterPatcher(model, topk.Strategy(2))


def test_the_table_of_families_is_current():
    assert PAGE.read_text(encoding="utf-8") == written(), "python tests/model_families.py --write"


# Models that are broken


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize(
    "broken",
    [
        "the head leaves out a factor", "a cap is left out", "a bias is left out", "a sequence sees another",
        "positions go on", "a window is lost",
    ],
)  # fmt: skip
def test_a_wrong_pass_is_not_accepted(broken, dtype, monkeypatch, capsys):
    from adaptive_routing.model import packing, parity

    model = tiny_model("cohere2_moe" if "window" in broken else "granitemoe", dtype)
    check_parity(model)
    assert capsys.readouterr().err == ""
    head = parity.head_logits
    if broken == "the head leaves out a factor":
        monkeypatch.setattr(parity, "head_logits", lambda model, hidden: head(model, hidden) * 4.0)
    elif broken == "a cap is left out":
        monkeypatch.setattr(
            parity, "_own_logits", lambda model, one, own=parity._own_logits: 2 * (own(model, one) / 2).tanh()
        )
    elif broken == "a bias is left out":
        bias = torch.randn(VOCABULARY)
        monkeypatch.setattr(
            parity, "_own_logits", lambda model, one, own=parity._own_logits: own(model, one) + bias
        )
    elif broken == "a sequence sees another":
        padded = packing._padded

        def leaking(packing_, *args):
            whole = Packing.of((sum(packing_.lengths),), torch.device("cpu"))
            return padded(whole, *args)

        monkeypatch.setattr(packing, "_padded", leaking)
    elif broken == "positions go on":
        monkeypatch.setattr(Packing, "of", staticmethod(lambda *args, of=Packing.of: _counted_on(of(*args))))
        monkeypatch.setattr(model.model.rotary_emb, "forward", _absolute(model.model.rotary_emb))
    else:
        padded = packing._padded
        monkeypatch.setattr(packing, "_padded", lambda *args: padded(*args[:5], None, *args[6:]))
    if broken in ("the head leaves out a factor", "a cap is left out", "a bias is left out"):
        with pytest.raises(InputError, match=r"differ by .* of their norm from what its head makes"):
            check_parity(model)
    else:
        check_parity(model)
        assert "packed, its logits differ" in capsys.readouterr().err


def _counted_on(packing):
    packing.position_ids.copy_(torch.arange(packing.position_ids.shape[1])[None])
    return packing


def _absolute(rotary):
    """Rotary angles that turn queries and keys apart: positions then matter, not their differences alone."""

    def forward(x, position_ids):
        scale = 1 + position_ids[..., None].float() / 4
        shape = (*position_ids.shape, 8)
        return (scale.expand(shape).to(x.dtype), torch.zeros(shape, dtype=x.dtype))

    return forward


def test_sequences_run_alone_once_a_model_cannot_be_packed():
    model = tiny_model("olmoe")
    packed = logits_here(model)
    run_unpacked(model)
    with RouterPatcher(model, topk.Strategy(2, ExpertWeighting())) as patcher:
        logits_here(model)
        assert patcher.take_batch().lengths == LENGTHS
    assert_equal(logits_here(model), packed)


@pytest.mark.parametrize("family", ["granitemoe", "deepseek_v3", "gpt_oss", "qwen3_next"])
def test_scores_are_those_of_the_harness(family, embedded):
    """`HFLM` has the model as transformers makes it; every decision is equal, log-likelihoods within 1e-4."""
    hflm = pytest.importorskip("lm_eval.models.huggingface").HFLM
    model = tiny_model(family, vocab_size=len(embedded.tokenizer), max_position_embeddings=256)
    stock = copy.deepcopy(model)
    stock.set_experts_implementation("eager")
    check_parity(model)
    lm = hflm(pretrained=stock, tokenizer=embedded.tokenizer, batch_size=8)
    for dataset in ("hellaswag", "lambada"):
        rows = load_rows(str(ROOT / f"resources/datasets/{dataset}.jsonl"))
        samples = prepare_samples(dataset, rows, embedded.tokenizer, 12, 256, 256)
        sequences = [sequence for one in samples for sequence in one.sequences]
        requests = [
            (("", ""), one.token_ids[: one.num_context_tokens], one.token_ids[one.num_context_tokens :])
            for one in sequences
        ]
        expected = lm._loglikelihood_tokens(requests, disable_tqdm=True)
        with RouterPatcher(model, topk.Strategy(NATIVE)):
            scores = score_batch(model, sequences).scores
        for score, (log_likelihood, is_greedy) in zip(scores, expected, strict=True):
            assert score.log_likelihood == pytest.approx(log_likelihood, abs=1e-4)
            assert score.is_greedy == is_greedy
        task, first = get_task(dataset), 0
        for one in samples:
            own = slice(first, first + len(one.sequences))
            theirs = [
                SequenceScore(log_likelihood, score.num_predicted_tokens, is_greedy)
                for (log_likelihood, is_greedy), score in zip(expected[own], scores[own], strict=True)
            ]
            found, wanted = task.outcome(one.sample, scores[own]), task.outcome(one.sample, theirs)
            assert found["correct"] == wanted["correct"]
            first = own.stop


@pytest.mark.parametrize(
    "family",
    ["deepseek_v2", "deepseek_v3", "ernie4_5_moe", "glm4_moe", "gpt_oss", "granitemoeshared", "olmoe"],
)
def test_flops_are_twice_the_active_parameters(family, tmp_path):
    """Of a model as it is on disk: matrices that a token is multiplied with, and the attention scores."""
    model = tiny_model(family)
    model.save_pretrained(tmp_path)
    shapes = inspect_model(tmp_path)["shapes"]
    active = shapes["hidden_size"] * shapes["vocab_size"]
    for name, parameter in model.base_model.layers.named_parameters():
        if parameter.dim() == 3:
            active += parameter.numel() * NATIVE / NUM_EXPERTS
        elif parameter.dim() == 2 and "bias" not in name:
            active += parameter.numel()
    attention = model.base_model.layers[0].self_attn
    width = getattr(attention, "qk_head_dim", None) or attention.head_dim
    value_width = getattr(attention, "v_head_dim", None) or attention.head_dim
    scores = 2 * model.config.num_attention_heads * (width + value_width)  # of one token, in two layers
    assert flops_per_token(NATIVE, shapes, 1) == pytest.approx(2 * (active + scores))


@pytest.mark.parametrize("family", ["deepseek_v3", "gpt_oss", "hunyuan_v1_moe", "qwen3_next"])
def test_a_family_is_loaded_from_its_folder(family, tmp_path):
    model = tiny_model(family)
    model.save_pretrained(tmp_path)
    info = inspect_model(tmp_path)
    assert (info["native_top_k"], info["shapes"]["num_experts"]) == (NATIVE, NUM_EXPERTS)
    loaded = load_model(info, "float32", "cpu").model
    assert_equal(logits_here(loaded), own_logits(model))


def test_quantised_weights_are_refused(tmp_path):
    tiny_model("gpt_oss").save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"quantization_config": {"quant_method": "mxfp4"}}))
    with pytest.raises(InputError, match=r"are quantised \(mxfp4\), but must be float32"):
        inspect_model(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["deepseek_v2", "deepseek_v3", "ernie4_5_moe", "lfm2_moe"])
def test_a_log_gives_back_what_was_routed(family, dtype, tmp_path):
    """Selection, weights and p-values, from logits and the bias, as the run had them."""
    model = tiny_model(family, dtype)
    layers = len(find_routers(model))
    null = normal_null_distribution(layers)
    with RouterPatcher(model, bh.Strategy(0.8, 6, null)) as patcher:
        logits_here(model)
        routing = patcher.take_batch()
    strategy = patcher.strategy
    head = {
        "alpha": 0.8,
        "routing": {
            "temperature": 1.0, "renormalized": strategy.weighting.renormalize, "max_k": 6,
            "router": strategy.weighting.rule.description(),
            "dtype": str(patcher.weights_dtype).removeprefix("torch."),
        },
    }  # fmt: skip
    files = tmp_path / "log.json", tmp_path / "log.safetensors"
    lengths = [[length] for length in LENGTHS]
    samples = [LoggedSample(str(i), "text", 0.0, tuple(own)) for i, own in enumerate(lengths)]
    writer = RoutingLogWriter(*files, head, lengths, strategy, layers, NUM_EXPERTS, patcher.logits_dtype)
    with writer:
        losses = torch.zeros(sum(LENGTHS))
        writer.write([0, 1, 2], samples, routing, token_ids(), losses)
    with RoutingLog(files[1], null) as log:
        for index, tokens in enumerate(torch.arange(sum(LENGTHS)).split(LENGTHS)):
            for layer in range(layers):
                sample, logits = log.sample(index), routing.router_logits[tokens, layer]
                slots = routing.experts[tokens, layer].numpy()
                found = sample.selected_experts(layer)
                for one, row in zip(found, slots, strict=True):
                    assert one.tolist() == row[row < NUM_EXPERTS].tolist()
                by_expert = np.zeros((len(slots), NUM_EXPERTS + 1), np.float32)
                weights = routing.weights[tokens, layer].float().numpy()
                np.put_along_axis(by_expert, slots.astype(np.int64), weights, -1)
                # torch computes a sigmoid with one rounding more or less by where it stands in a tensor.
                np.testing.assert_allclose(sample.expert_weights(layer), by_expert[:, :-1], rtol=5e-7)
                expected = strategy.p_values(logits, layer).numpy()
                np.testing.assert_allclose(sample.p_values(layer), expected, rtol=1e-6)
