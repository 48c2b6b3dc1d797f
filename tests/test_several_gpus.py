"""One model over several devices: everything that belongs to a layer is on that layer's device."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import dispatch_model
from adaptive_routing import Confidence, Entropy, HigherCriticism, Layerwise, MinP, Pooled, TopP
from adaptive_routing.data.samples import PreparedSample
from adaptive_routing.data.tokens import EncodedSequence
from adaptive_routing.evaluation import scoring
from adaptive_routing.evaluation.calibration import collect_router_logits
from adaptive_routing.evaluation.generation import generate_samples
from adaptive_routing.evaluation.scoring import score_patched_batch
from adaptive_routing.model.devices import Clock, devices_of
from adaptive_routing.model.experts import ALL_SLOTS
from adaptive_routing.model.inspect import inspect_model
from adaptive_routing.model.load import LoadedModel, load_model
from adaptive_routing.model.packing import Packing
from adaptive_routing.model.parity import check_parity
from adaptive_routing.model.patching import RouterPatcher
from adaptive_routing.model.routers import find_rule
from adaptive_routing.model.spread import balanced_device_map
from adaptive_routing.null_distribution import NullDistribution
from adaptive_routing.routing.bh import Strategy as BH
from adaptive_routing.routing.topk import Strategy as TopK
from adaptive_routing.system.errors import InputError
from model_families import tiny_model
from pretended_devices import CPU, FIRST, SECOND, PretendedDevices

# Sinks and biases of experts, groups and a correction bias, a scaled head, windows, sequences one at a time.
FAMILIES = ["olmoe", "gpt_oss", "deepseek_v3", "granitemoe", "lfm2_moe"]
PARTS = ("embed_tokens", "layers.0")  # what stands on the first device, by the end of its name


def spread(model):
    """Put a model's first layer on one device and the rest on another."""
    parts = [
        name
        for name, module in model.named_modules()
        if name and name.count(".") <= (2 if ".layers." in name else 1)
    ]
    leaves = [name for name in parts if not any(other.startswith(f"{name}.") for other in parts)]
    ends = (*PARTS, "lm_head") if model.config.tie_word_embeddings else PARTS
    dispatch_model(model, {name: FIRST if name.endswith(ends) else SECOND for name in leaves})
    assert devices_of(model) == [FIRST, SECOND]


def null_distribution():
    x = np.linspace(-3, 3, 101)
    survival = np.tile(1 / (1 + np.exp(2 * x)), (2, 1))
    return NullDistribution(np.full(2, -3.0), np.full(2, 0.06), survival)


def sequences():
    generator = torch.Generator().manual_seed(1)
    for length in (11, 3, 17):
        token_ids = torch.randint(3, 97, (length,), generator=generator).tolist()
        yield EncodedSequence(token_ids, 1, length, False)


class CopiesAtOnce:
    """`HostCopies` of devices that are none."""

    def __init__(self, tensors):
        self._tensors = [None if one is None else one.cpu() for one in tensors]

    def wait(self):
        return self._tensors


def outcome(model, strategy):
    """What a batch gives under a strategy: log-likelihoods, and all that is logged."""
    with RouterPatcher(model, strategy) as patcher:
        scores, routing = score_patched_batch(model, list(sequences()), patcher, with_greedy_tokens=True)
    totals = torch.tensor([one.log_likelihood for one in scores.scores])
    return [totals, torch.cat(list(scores.greedy_tokens)), *routing.tensors()]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_spread_model_gives_what_one_device_gives(family, monkeypatch, capsys):
    monkeypatch.setattr(scoring, "HostCopies", CopiesAtOnce)
    model = tiny_model(family)
    model.set_experts_implementation(ALL_SLOTS)  # as `load_model` has it
    null = null_distribution()
    strategies = [TopK(3), TopK(2), BH(0.5, 4, null), HigherCriticism("auto", 4, null), TopP(0.5, 4)]
    strategies += [MinP(0.3, 4), Confidence(4), Entropy(4, 4), Layerwise(5, 4), Pooled(2.5, 4)]
    on_one = copy.deepcopy(model)
    samples = [PreparedSample(f"{i}", None, (one,)) for i, one in enumerate(sequences())]
    check_parity(on_one)
    expected = [outcome(on_one, strategy) for strategy in strategies]
    expected_logits = collect_router_logits(LoadedModel(on_one, {}, "cpu"), samples, 64)
    with PretendedDevices() as devices:
        spread(model)
        find_rule(model)
        check_parity(model)
        devices.moves.clear()
        found = [outcome(model, strategy) for strategy in strategies]
        assert {(FIRST, SECOND), (SECOND, FIRST)} <= set(devices.moves)
        logits = collect_router_logits(LoadedModel(model, {}, "two"), samples, 64)
    for own, other in zip(sum(expected, [expected_logits]), sum(found, [logits]), strict=True):
        assert own.dtype == other.dtype
        torch.testing.assert_close(other, own, rtol=0, atol=2e-6)


def test_a_spread_model_generates_what_one_device_generates():
    model = tiny_model("olmoe")
    model.set_experts_implementation(ALL_SLOTS)
    on_one, strategy = copy.deepcopy(model), BH(0.5, 4, null_distribution())
    tokenizer = SimpleNamespace(decode=str)
    samples = [PreparedSample("one", None, (next(sequences()),))]

    def generated(model):
        with RouterPatcher(model, strategy) as patcher:
            ((continued, batch),) = generate_samples(model, patcher, tokenizer, samples, 4)
        return continued, batch

    expected_sample, expected = generated(on_one)
    with PretendedDevices():
        spread(model)
        sample, found = generated(model)
    assert sample.sequences == expected_sample.sequences
    assert len(sample.sequences[0].token_ids) == 15
    for own, other in zip(expected.routing.tensors(), found.routing.tensors(), strict=True):
        torch.testing.assert_close(other, own, rtol=0, atol=2e-6)
    torch.testing.assert_close(found.token_losses, expected.token_losses, equal_nan=True)


def test_two_devices_that_meet_are_noticed():
    """The pretended devices are as strict as real ones, so that the test above can fail."""
    with PretendedDevices():
        first, second = torch.ones(2, device=FIRST), torch.ones(2).to(SECOND)
        assert (first.device, second.device, first.view(1, 2).device) == (FIRST, SECOND, FIRST)
        for meet in (
            lambda: first + second,
            lambda: first[second.long()],
            lambda: torch.stack([first, second]),
        ):
            with pytest.raises(RuntimeError, match="lazy:0, lazy:1"):
                meet()
        with pytest.raises(TypeError):
            first.numpy()
        assert (first + second.to(FIRST)).cpu().tolist() == [2, 2]


def test_a_packing_is_copied_to_a_device_once():
    with PretendedDevices() as devices:
        packing = Packing.of((2, 3), FIRST)
        assert packing.on(FIRST) is packing
        devices.moves.clear()
        other = packing.on(SECOND)
        assert packing.on(SECOND) is other
        assert devices.moves == [(FIRST, SECOND)] * 3  # each of its tensors once
        (padding,) = other.paddings
        tensors = (other.position_ids, other.offsets, other.key_offsets, padding.queries, padding.before)
        assert {one.device for one in tensors} == {SECOND}
        assert other.offsets.cpu().tolist() == [0, 2, 5]
    assert devices_of(torch.nn.Linear(1, 1)) == [CPU]


class Stream:
    """A stream of a GPU that is none: what it is told to wait for."""

    def __init__(self, device):
        self.device, self.waits_for = device, []

    def wait_stream(self, other):
        self.waits_for.append(other.device)


def test_a_clock_of_two_gpus_starts_and_stops_when_both_are_done(monkeypatch):
    devices = [torch.device("cuda:0"), torch.device("cuda:1")]
    streams, recorded = {device: Stream(device) for device in devices}, []

    class Event:
        def record(self, stream):
            recorded.append((stream.device, list(stream.waits_for)))

    monkeypatch.setattr(torch.cuda, "current_stream", streams.get)
    monkeypatch.setattr(torch.cuda, "Event", lambda enable_timing: Event())
    Clock(*devices).stop()
    # The events of the start and of the stop, both of the first GPU, after the second has been waited for.
    assert recorded == [(devices[0], devices[1:]), (devices[0], 2 * devices[1:])]


# Which layer where


@pytest.fixture
def olmoe_info(tmp_path):
    tiny_model("olmoe", num_hidden_layers=6).save_pretrained(tmp_path)
    return inspect_model(tmp_path)


def test_layers_are_balanced_over_the_gpus_and_nothing_else(olmoe_info):
    device_map = balanced_device_map(olmoe_info, "bfloat16", [10**8, 10**8])
    assert set(device_map.values()) == {0, 1}
    assert [device_map[f"model.layers.{layer}"] for layer in range(6)] == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize(
    ("dtype", "remedy"),
    [("float32", "set model.dtype: bfloat16, more GPUs or"), ("bfloat16", "set more GPUs or")],
)
def test_a_model_too_large_for_all_gpus_is_one_sentence(olmoe_info, dtype, remedy):
    with pytest.raises(
        InputError,
        match=rf"^model\.gpus_per_experiment is 2, but .* in {dtype} \(0\.0 GB of weights\) does not fit "
        rf"into the free memory of those GPUs \(0\.0 and 0\.0 GB\); {remedy} GPUs with more memory",
    ):
        balanced_device_map(olmoe_info, dtype, [9000, 9000])


def test_a_cpu_is_not_divided(olmoe_info):
    loaded = load_model(olmoe_info, "float32", "cpu", gpus=2)
    assert loaded.device_name == "cpu"


@pytest.mark.parametrize(
    ("device", "found", "sentence"),
    [
        ("auto", 1, "must be at most 1, the number of CUDA devices that torch finds"),
        ("cuda:1", 2, "model.device is cuda:1, which is one GPU; set model.device to cuda or auto"),
    ],
)
def test_fewer_gpus_than_asked_for_are_refused(olmoe_info, monkeypatch, device, found, sentence):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: found)
    with pytest.raises(InputError) as error:
        load_model(olmoe_info, "float32", device, gpus=2)
    assert str(error.value) == f"model.gpus_per_experiment is 2, but {sentence}"
