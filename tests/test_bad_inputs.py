"""Wrong inputs are one clear sentence each, and a device that runs out of memory costs nothing but time."""

import json
import math
import re
import shutil
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import synthetic
import torch
from adaptive_routing.analysis import tables
from adaptive_routing.analysis.metrics import compute_metrics, metrics_schema
from adaptive_routing.analysis.study import read_study
from adaptive_routing.data.rows import load_rows
from adaptive_routing.data.samples import (
    PreparedSample,
    check_vocabulary,
    prepare_samples,
    prepared_to_json,
    read_prepared,
)
from adaptive_routing.data.tasks import Request, Sample
from adaptive_routing.data.tokens import EncodedSequence
from adaptive_routing.evaluation import batches
from adaptive_routing.evaluation.calibration import collect_router_logits
from adaptive_routing.evaluation.experiment import ExperimentFiles, run_experiment
from adaptive_routing.evaluation.finiteness import check_finite, finite_total
from adaptive_routing.evaluation.generation import generate_samples
from adaptive_routing.evaluation.scoring import score_samples
from adaptive_routing.jobs.model_jobs import JOBS, Cache
from adaptive_routing.model import load
from adaptive_routing.model.description import read_model_info
from adaptive_routing.model.inspect import inspect_model
from adaptive_routing.model.load import LoadedModel, load_model
from adaptive_routing.model.patching import RouterPatcher
from adaptive_routing.model.tokenizer import load_tokenizer
from adaptive_routing.null_distribution import NullDistribution
from adaptive_routing.routing import make_strategy
from adaptive_routing.routing_log import RoutingLog
from adaptive_routing.settings.configurations import grid
from adaptive_routing.system.errors import InputError
from adaptive_routing.system.files import blaming
from adaptive_routing.system.json_files import read_json, write_json
from adaptive_routing.system.tensor_files import TensorFile
from conftest import ROOT, VOCABULARY, normal_null_distribution, tiny_olmoe
from safetensors.numpy import load_file, save_file

ROUTING = {"min_k": 1, "temperature": 1.0, "weights": "native"}
BH, TOPK = grid({"bh": {"max_k": [8], "alpha": [0.5]}, "topk": {"k": [8]}})
ADVICE = " If reserved but unallocated memory is large try setting PYTORCH_ALLOC_CONF."
CUDA_SAYS = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 8.00 GiB of which "
    "1.00 GiB is free. Including non-PyTorch memory, this process has 7.00 GiB memory in use." + ADVICE
)


def strategy_of(configuration):
    return make_strategy(configuration, ROUTING, normal_null_distribution(3))


def make_samples(lengths, dataset="wikitext", seed=0):
    """Samples of one sequence each, all tokens but the first scored."""
    generator = torch.Generator().manual_seed(seed)
    samples = []
    for number, length in enumerate(lengths):
        token_ids = torch.randint(2, VOCABULARY - 1, (length,), generator=generator).tolist()
        sequence = EncodedSequence(token_ids, 1, length, False)
        sample = Sample(f"text {number}", (Request(None, "text"),))
        samples.append(PreparedSample(f"{dataset}_{number}", sample, (sequence,)))
    return samples


SHAPES = {
    "hidden_size": 32,
    "intermediate_size": 16,
    "dense_intermediate_size": 16,
    "shared_expert_intermediate_size": 0,
    "num_hidden_layers": 3,
    "num_moe_layers": 3,
    "num_experts": 16,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": VOCABULARY,
}
LENGTHS = [17, 30, 9, 24, 12, 30, 8, 21, 15, 26, 11, 5]


def experiment(folder, model, prepared, batch_tokens=64, configuration=BH, **of_dataset):
    """Run one experiment with a model that is in memory; returns (summary, its files)."""
    info = {"name": "tiny", "folder": "nowhere", "shapes": SHAPES}
    stem = folder / "logs" / configuration.name
    files = ExperimentFiles(f"{stem}.json", f"{stem}_routing.json", f"{stem}_routing.safetensors")
    summary = run_experiment(
        LoadedModel(model, info, "cpu"),
        configuration,
        strategy_of(configuration),
        "wikitext",
        prepared,
        batch_tokens,
        2,
        {"routing": ROUTING, "dataset": {"max_samples": len(prepared), **of_dataset}},
        files,
    )
    return summary, files


# A device that runs out of memory


class ShortOfMemory:
    """Makes a model's forward passes fail as a GPU without memory does, by their tokens or their numbers.

    Attributes:
        passes: tokens of every pass, those that failed too.
        failures: how many failed.

    It watches that memory is freed between passes, where no others run beside them.
    """

    def __init__(self, model, most_tokens=math.inf, fail_at=(), error=None, watches=True):
        self._watches = watches
        self.most_tokens, self.fail_at = most_tokens, fail_at
        self.error = error or torch.OutOfMemoryError
        self.passes, self.failures, self._claimed = [], 0, []
        self._handle = model.base_model.layers[1].register_forward_pre_hook(self._hook)

    def _hook(self, layer, args):
        # What an attempt before had claimed is free again; else trying smaller ones would be in vain.
        assert not self._watches or self.all_free()
        tokens = args[0].shape[1]
        self.passes.append(tokens)
        if tokens > self.most_tokens or len(self.passes) - 1 in self.fail_at:
            claimed = torch.empty(tokens)
            self._claimed.append(weakref.ref(claimed))
            self.failures += 1
            raise self.error(CUDA_SAYS)

    def all_free(self):
        return all(one() is None for one in self._claimed)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._handle.remove()


def scored(model, samples, batch_tokens, configuration=BH, workers=1):
    """Every sample's scores, losses, tokens and routing by its index, and the batches' sizes.

    One worker makes passes in a fixed order, as a GPU does.
    """
    results, sizes = {}, []
    with RouterPatcher(model, strategy_of(configuration)) as patcher:
        for batch in score_samples(model, patcher, samples, batch_tokens, 2, workers):
            sizes.append(len(batch.token_ids))
            start = 0
            for one in batch.samples:
                own = slice(start, start + sum(one.lengths))
                start = own.stop
                assert one.index not in results
                results[one.index] = {
                    "log_likelihood": torch.tensor([score.log_likelihood for score in one.scores]),
                    "losses": batch.token_losses[own],
                    "token_ids": batch.token_ids[own],
                    "logits": batch.routing.router_logits[own],
                    "selected": batch.routing.packed[own],
                    "greedy": one.greedy_tokens if one.greedy_tokens is not None else torch.empty(0),
                }
    return results, sizes


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for index, values in expected.items():
        for name, value in values.items():
            close = {"equal_nan": True, "rtol": 1e-4, "atol": 1e-5}
            torch.testing.assert_close(found[index][name], value, **close, msg=f"{name} of sample {index}")


@pytest.mark.parametrize("configuration", [BH, TOPK], ids=["bh", "topk"])
def test_a_batch_too_large_for_memory_is_done_in_smaller_ones(capsys, configuration):
    model, samples = tiny_olmoe(), make_samples(LENGTHS)
    expected, sizes = scored(model, samples, 120, configuration)
    assert max(sizes) > 60
    fresh = tiny_olmoe()  # has not run in this process: it fails in the warm-up
    with ShortOfMemory(fresh, most_tokens=45) as device:
        found, smaller = scored(fresh, samples, 120, configuration)
    assert_same(found, expected)
    assert max(smaller) <= 45 and sum(smaller) == sum(LENGTHS)
    # 110 tokens, then 50: what did not fit once is not tried again for every batch.
    assert [tokens for tokens in device.passes if tokens > 45] == [110, 50] and device.failures == 2
    assert capsys.readouterr().err.splitlines() == [
        f"out of memory on cpu in a batch of {number} samples, {tokens} tokens (CUDA out of memory; Tried to "
        "allocate 2.00 GiB; GPU 0 has a total capacity of 8.00 GiB of which 1.00 GiB is free); going on with "
        f"at most {tokens // 2} tokens in a batch"
        for number, tokens in ((4, 110), (2, 50))
    ]


@pytest.mark.parametrize("fail_at", [(3,), (1,), (4, 6)])
def test_memory_that_runs_out_in_the_middle_loses_no_batch(capsys, fail_at):
    """Pass 0 is the shortest sample's. While pass 3 fails, the batch before is still to be handed over."""
    model, samples = tiny_olmoe(), make_samples(LENGTHS)
    expected, _ = scored(model, samples, 64)
    with ShortOfMemory(model, fail_at=fail_at) as device:
        found, sizes = scored(model, samples, 64)
    assert_same(found, expected)
    assert sum(sizes) == sum(LENGTHS) and device.failures == len(fail_at)
    assert capsys.readouterr().err.count("out of memory on cpu") == len(fail_at)


def test_one_sample_is_tried_again_without_the_batch_that_is_under_way(capsys):
    model, samples = tiny_olmoe(), make_samples([30, 29, 28])
    expected, _ = scored(model, samples, 30)
    with ShortOfMemory(model, fail_at=(2,)) as device:
        found, _ = scored(model, samples, 30)
    assert_same(found, expected)
    assert device.passes == [28, 30, 29, 29, 28]
    assert capsys.readouterr().err == ""  # nothing was halved


@pytest.mark.parametrize("says", ["DefaultCPUAllocator: can't allocate memory: you tried", "other"])
def test_only_memory_is_tried_again(says, capsys):
    def error(_):
        return RuntimeError(f"[enforce fail at alloc_cpu.cpp:127] err == 0. {says}")

    model, samples = tiny_olmoe(), make_samples(LENGTHS)
    expected, _ = scored(model, samples, 64)
    with ShortOfMemory(model, fail_at=(2,), error=error):
        if says == "other":
            with pytest.raises(RuntimeError, match="enforce fail"):
                scored(model, samples, 64)
        else:
            assert_same(scored(model, samples, 64)[0], expected)
            assert "out of memory on cpu" in capsys.readouterr().err


@pytest.mark.parametrize("lengths", [[30, 29, 31], [12, 40, 7, 9]])
def test_a_sample_that_does_not_fit_alone_is_one_sentence(lengths):
    model, samples = tiny_olmoe(), make_samples(lengths)
    longest = lengths.index(max(lengths))
    with ShortOfMemory(model, most_tokens=max(lengths) - 1) as device:
        with pytest.raises(InputError) as error:
            scored(model, samples, 64)
        assert re.fullmatch(
            rf"wikitext_{longest} alone \({max(lengths)} tokens, sequences: 1\) does not fit into the memory "
            r"of cpu beside the model in float32 \(CUDA out of memory; .* 1\.00 GiB is free\); set "
            r"model\.dtype: bfloat16, for wikitext rows a smaller evaluation\.max_length, or a "
            r"model\.device with more memory; evaluation\.batch_tokens does not help here",
            str(error.value),
        )
        assert error.value.__cause__ is None and error.value.__context__ is None
        assert device.all_free()
    scored(model, samples, 64)  # the model is as before


@pytest.fixture
def one_pass_at_a_time(monkeypatch):
    """As on a GPU, where passes are made in a fixed order."""
    monkeypatch.setattr(batches, "passes_at_once", lambda device: 1)


@pytest.mark.usefixtures("one_pass_at_a_time")
def test_an_experiment_short_of_memory_writes_the_same_log(tmp_path, capsys):
    model, samples = tiny_olmoe(), make_samples(LENGTHS)
    expected, expected_files = experiment(tmp_path / "whole", model, samples, batch_tokens=200)
    with ShortOfMemory(model, most_tokens=37) as device:
        summary, files = experiment(tmp_path / "halved", model, samples, batch_tokens=200)
    assert device.failures == 2 and capsys.readouterr().err.count("going on with at most") == 2
    for one, other in zip(summary["samples"], expected["samples"], strict=True):
        assert one.pop("loss") == pytest.approx(other.pop("loss"), rel=1e-5)
        assert one == other
    with TensorFile(files.tensors) as one, TensorFile(expected_files.tensors) as other:
        assert one.keys() == other.keys()
        for name in one.keys():  # noqa: SIM118 -- not a mapping
            np.testing.assert_allclose(one.read(name), other.read(name), rtol=1e-4, atol=1e-5)
    entries, others = (read_json(f.internal_routing)["samples"] for f in (files, expected_files))
    for one, other in zip(entries, others, strict=True):
        assert one["sample_id"] == other["sample_id"]
        for layer, expected_layer in zip(one["layers"], other["layers"], strict=True):
            assert layer["selected_experts"] == expected_layer["selected_experts"]


@pytest.mark.parametrize("most_tokens", [29, 20])
def test_an_experiment_without_enough_memory_leaves_no_files(tmp_path, most_tokens):
    model = tiny_olmoe()
    with (
        ShortOfMemory(model, most_tokens=most_tokens) as device,
        pytest.raises(InputError, match=r"wikitext_1 alone \(30 tokens"),
    ):
        experiment(tmp_path, model, make_samples(LENGTHS))
    assert device.all_free()
    assert list(tmp_path.glob("logs/*")) == []
    experiment(tmp_path, model, make_samples(LENGTHS))


@pytest.mark.usefixtures("one_pass_at_a_time")
def test_calibration_short_of_memory_gives_the_same_logits(capsys):
    loaded = LoadedModel(tiny_olmoe(), {}, "cpu")
    samples = make_samples(LENGTHS, "calibration")
    expected = collect_router_logits(loaded, samples, 200)
    with ShortOfMemory(loaded.model, most_tokens=60) as device:
        found = collect_router_logits(loaded, samples, 200)
    torch.testing.assert_close(found, expected)
    assert device.failures == 2
    assert len(capsys.readouterr().err.splitlines()) == 2
    with (
        ShortOfMemory(loaded.model, most_tokens=10),
        pytest.raises(
            InputError, match=r"calibration_1 alone .*a smaller null_distribution\.calibration\.max_l"
        ),
    ):
        collect_router_logits(loaded, samples, 200)


def test_a_prompt_that_does_not_fit_is_one_sentence():
    model = tiny_olmoe()
    prompts = make_samples([6, 9], "prompts")
    with (
        ShortOfMemory(model, most_tokens=5) as device,
        RouterPatcher(model, strategy_of(BH)) as patcher,
        pytest.raises(InputError, match=r"prompts_0 alone .*a smaller datasets\.prompts\.max_new_tokens"),
    ):
        list(generate_samples(model, patcher, None, prompts, 3))
    assert device.all_free()


# NaN and infinity in what the model computes


def fill(tensor, value):
    tensor.data.fill_(value)


LAST = VOCABULARY - 1  # a token that `make_samples` never draws
BREAKS = {
    "router": (
        lambda model: fill(model.base_model.layers[1].mlp.gate.weight[3], math.nan),
        "layer 1 hold NaN",
    ),
    "attention": (
        lambda model: fill(model.base_model.layers[1].self_attn.o_proj.weight[0], math.inf),
        "layer 1 hold (NaN|infinity)",
    ),
    "token": (lambda model: fill(model.get_input_embeddings().weight[LAST], math.nan), "layer 0 hold NaN"),
    "head": (lambda model: fill(model.lm_head.weight[5], math.nan), "log-likelihood is nan"),
}


@pytest.mark.parametrize("name", BREAKS)
@pytest.mark.parametrize("configuration", [BH, TOPK], ids=["bh", "topk"])
def test_nan_in_an_experiment_is_one_sentence_and_leaves_no_files(tmp_path, name, configuration):
    damage, fault = BREAKS[name]
    model, samples = tiny_olmoe(), make_samples(LENGTHS)
    samples[7].sequences[0].token_ids[4] = LAST
    damage(model)
    sample = "wikitext_7" if name == "token" else r"wikitext_\d+"
    with pytest.raises(InputError) as error:
        experiment(tmp_path, model, samples, configuration=configuration)
    assert re.fullmatch(
        rf"{sample}: the (router logits of )?{fault} when the model computes in float32; its weights are "
        "damaged: get the model again",
        str(error.value),
    )
    assert list(tmp_path.glob("logs/*")) == []


@pytest.mark.parametrize(
    ("dtype", "remedy"),
    [
        ("float16", "float16 ends at 65,504: set model.dtype: bfloat16"),
        ("bfloat16", "set model.dtype: float32"),
    ],
)
def test_an_overflow_suggests_another_dtype(tmp_path, dtype, remedy):
    model = tiny_olmoe().to(getattr(torch, dtype))
    fill(model.base_model.layers[2].post_attention_layernorm.weight, torch.finfo(model.dtype).max)
    with pytest.raises(InputError, match=rf"wikitext_\d+: .*layer 2 hold .* in {dtype}; {remedy}"):
        experiment(tmp_path, model, make_samples(LENGTHS))
    assert list(tmp_path.glob("logs/*")) == []


def test_nan_is_found_in_calibration_and_in_generation():
    model = tiny_olmoe()
    samples = make_samples(LENGTHS, "calibration")
    samples[3].sequences[0].token_ids[0] = LAST
    fill(model.get_input_embeddings().weight[LAST], math.nan)
    with pytest.raises(InputError, match="calibration_3: the router logits of layer 0 hold NaN"):
        collect_router_logits(LoadedModel(model, {}, "cpu"), samples, 64)
    tokenizer = SimpleNamespace(decode=lambda token_ids: "text")
    prompts = make_samples([6, 9], "prompts")
    prompts[1].sequences[0].token_ids[2] = LAST
    with RouterPatcher(model, strategy_of(TOPK)) as patcher:
        generated = generate_samples(model, patcher, tokenizer, prompts, 3)
        next(generated)
        with pytest.raises(InputError, match="prompts_1: the router logits of layer 0 hold NaN"):
            next(generated)


def test_large_logits_are_no_infinity():
    logits = torch.full((40, 2, 4), 3e38)
    assert torch.isinf(finite_total(logits))
    check_finite(make_samples([15, 25]), logits, finite_total(logits))
    logits[15, 1, 2] = -math.inf
    with pytest.raises(InputError, match="wikitext_1: the router logits of layer 1 hold infinity"):
        check_finite(make_samples([15, 25]), logits, finite_total(logits))


# Models


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory):
    """A tiny model with the embedded model's tokenizer, as on disk."""
    folder = tmp_path_factory.mktemp("model")
    tiny_olmoe().save_pretrained(folder)
    for path in (ROOT / "resources/embedded_model").glob("tokenizer*"):
        shutil.copy(path, folder)
    return folder


@pytest.fixture
def model_folder(tmp_path, tiny_folder):
    return shutil.copytree(tiny_folder, tmp_path / "model")


def change_config(**changes):
    """Sets keys of config.json; None takes one out."""

    def change(folder):
        path = folder / "config.json"
        config = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))

    return change


def change_weights(change):
    def rewrite(folder):
        path = folder / "model.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path, metadata={"format": "pt"})

    return rewrite


def cut(name, kept):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:kept])


def write(name, text):
    return lambda folder: (folder / name).write_text(text)


def split_without_a_part(folder):
    content = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))


def only_pickled(folder):
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")


GATE, Q = "model.layers.1.mlp.gate.weight", "model.layers.1.self_attn.q_proj.weight"
UNUSABLE = {
    "cut": (
        cut("model.safetensors", -10),
        r"model\.safetensors is cut short or damaged .*; get the model again",
    ),
    "cut in its header": (cut("model.safetensors", 60), r"model\.safetensors is cut short or damaged"),
    "a part is missing": (
        split_without_a_part,
        r"index\.json names model-00002-of-00002\.safetensors, which is",
    ),
    "pickled": (only_pickled, r"only safetensors are read.*\.save_pretrained\(new_folder\)"),
    "no JSON": (write("config.json", "{"), r"config\.json is not JSON \(.*\); it must be the configuration"),
    "a list": (write("config.json", "[3]"), r"config\.json must be a JSON object, but holds \[3\]"),
    "dense": (change_config(num_experts=None), r"\(olmoe\) is not a mixture of experts"),
    "a key is missing": (
        change_config(hidden_size=None),
        r"config\.json: hidden_size is null, but must be a wh",
    ),
    "a text": (
        change_config(vocab_size="96"),
        r'config\.json: vocab_size is "96", but must be a whole number',
    ),
    "experts in a list": (
        change_config(num_experts=[16, 8, 16]),
        r"layers have unequal numbers of experts, \[16,8,16\]; allowed",
    ),
    "other experts": (
        change_config(num_experts=8, num_experts_per_tok=4),
        r"router of layer 0 .* has 16 experts",
    ),
    "unequal experts": (
        change_weights(lambda tensors: tensors.update({GATE: tensors[GATE][:12]})),
        r"the router of layer 1 .* has 12 experts, but config\.json says 16",
    ),
    "top-k": (change_config(num_experts_per_tok=17), r"own top-k is 17, but it has 16 experts a layer"),
    "absurdly many layers": (
        change_config(num_hidden_layers=10**9),
        r"num_hidden_layers is 1000000000, but the weights have 3 layers; they must belong together",
    ),
    "an absurd vocabulary": (
        change_config(vocab_size=10**12),
        r"vocab_size is 10{12}, but no dimension of the weights is larger than 96",
    ),
    "an absurd width": (
        change_config(intermediate_size=10**12),
        r"intermediate_size is 10{12}, but no dimension of the weights",
    ),
    "fewer layers": (change_config(num_hidden_layers=2), r"have a layer 2, but .* num_hidden_layers: 2"),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_unusable_models_are_refused_when_inspected(model_folder, name):
    damage, sentence = UNUSABLE[name]
    damage(model_folder)
    with pytest.raises(InputError, match=sentence) as error:
        inspect_model(str(model_folder))
    assert str(model_folder) in str(error.value) and "\n" not in str(error.value)


UNLOADABLE = {
    "missing": (
        change_weights(lambda tensors: [tensors.pop(key) for key in (Q, GATE, "model.norm.weight")]),
        rf"lack {re.escape(GATE)}, {re.escape(Q)} and 1 more; they must be those",
    ),
    "shape": (
        change_weights(lambda tensors: tensors.update({Q: tensors[Q][:16]})),
        rf"have another shape for {re.escape(Q)}; they must be those",
    ),
    "experts": (
        change_weights(
            lambda tensors: tensors.update(
                {key: tensors[key][:8] for key in tensors if "layers.1.mlp.experts.0." in key}
            )
        ),
        r"cannot be brought into the form that config\.json describes",
    ),
    "more layers": (change_config(num_hidden_layers=4), r"lack model\.layers\.3\..* more;"),
    "type": (change_config(model_type="olmo_of_tomorrow"), r"cannot be loaded \(.*`olmo_of_tomorrow`"),
}


@pytest.mark.parametrize("name", UNLOADABLE)
def test_weights_of_another_model_are_refused(model_folder, name):
    """transformers loads most of these, with random numbers in the place of what is missing."""
    damage, sentence = UNLOADABLE[name]
    damage(model_folder)
    info = inspect_model(str(model_folder))
    with pytest.raises(InputError, match=sentence) as error:
        load_model(info, "float32", "cpu")
    assert str(model_folder) in str(error.value) and "\n" not in str(error.value)


def test_a_whole_model_is_loaded_and_one_that_is_gone_is_refused(model_folder):
    info = inspect_model(str(model_folder))
    assert info["shapes"]["num_moe_layers"] == 3
    loaded = load_model(info, "float32", "cpu")
    reference = tiny_olmoe().state_dict()
    assert all(torch.equal(value, reference[key]) for key, value in loaded.model.state_dict().items())
    shutil.rmtree(model_folder)
    for attempt in (lambda: load_model(info, "float32", "cpu"), lambda: load_tokenizer(info)):
        with pytest.raises(InputError, match=r"is no longer in .*; delete model\.json in the results folder"):
            attempt()


@pytest.mark.parametrize("where", ["claiming", "converting"])
def test_a_model_too_large_for_the_device_is_one_sentence(model_folder, monkeypatch, where):
    """While it converts tensors, transformers takes a lack of memory for a fault of the weights."""
    info, failures = inspect_model(str(model_folder)), []

    def fail(*args, **kwargs):
        failures.append(CUDA_SAYS)
        if where == "claiming":
            raise torch.OutOfMemoryError(CUDA_SAYS)
        raise RuntimeError("We encountered some issues during automatic conversion of the weights.")

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", fail)
    monkeypatch.setattr(load, "resolve_device", lambda device: device)
    monkeypatch.setattr(torch.cuda, "memory_stats", lambda device: {"num_ooms": len(failures)})
    with pytest.raises(
        InputError,
        match=r"model\.device: cuda has too little memory for .* in float32 \((CUDA out of memory; .*|while "
        r"tensors were converted)\); set model\.dtype: bfloat16 or a device with more memory",
    ):
        load_model(info, "float32", "cuda")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda folder: [path.unlink() for path in folder.glob("tokenizer*")], "holds no tokenizer"),
        (write("tokenizer.json", '{"a": 1}'), "the tokenizer in .* cannot be read"),
        (write("tokenizer.json", "{"), "the tokenizer in .* cannot be read"),
    ],
)
def test_a_missing_or_damaged_tokenizer_is_refused(model_folder, change, sentence):
    change(model_folder)
    with pytest.raises(
        InputError, match=rf"{sentence}.*; get the model again, with tokenizer\.json"
    ) as error:
        load_tokenizer(inspect_model(str(model_folder)))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("count", "device", "sentence"),
    [
        (0, "cuda", r"cuda asked for, but torch finds no CUDA device; use cpu or auto"),
        (0, "cuda:1", r"cuda:1 asked for, but torch finds no CUDA device; use cpu or auto"),
        (1, "cuda:1", r"cuda:1 asked for, but torch finds cuda:0 alone"),
        (4, "cuda:7", r"cuda:7 asked for, but torch finds cuda:0 to cuda:3"),
    ],
)
def test_a_device_that_does_not_exist_is_refused(model_folder, monkeypatch, count, device, sentence):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    with pytest.raises(InputError, match=rf"^model\.device: {sentence}$"):
        load_model(inspect_model(str(model_folder)), "float32", device)
    if count:
        assert load.resolve_device(f"cuda:{count - 1}") == f"cuda:{count - 1}"
        assert load.resolve_device("cuda") == "cuda"


# Files that the workflow made


@pytest.fixture
def request_of_a_job(tmp_path, model_folder):
    """What a job asks for, with all its files; damaged by the tests."""
    info = inspect_model(str(model_folder))
    write_json(tmp_path / "model.json", info)
    prepared = make_samples([9, 12])
    settings = {"max_samples": 2, "protocol": "rows"}
    write_json(tmp_path / "wikitext.json", prepared_to_json("wikitext", prepared, settings))
    null = normal_null_distribution(3)
    null.metadata["model_fingerprint"] = info["fingerprint"]
    null.save(tmp_path / "null.safetensors")
    stem = f"{tmp_path}/logs/{BH.name}_wikitext"
    return {
        "model": f"{tmp_path}/model.json",
        "dtype": "float32",
        "device": "cpu",
        "configuration": {
            "name": BH.name,
            "strategy": "bh",
            "max_experts": 8,
            "parameters": dict(BH.parameters),
        },
        "routing": ROUTING,
        "null_distribution": f"{tmp_path}/null.safetensors",
        "dataset": "wikitext",
        "prepared": f"{tmp_path}/wikitext.json",
        "batch_tokens": 64,
        "second_pass_samples": 1,
        "outputs": {
            "summary": f"{stem}.json",
            "internal_routing": f"{stem}_routing.json",
            "tensors": f"{stem}_routing.safetensors",
        },
    }


def edit(path, *keys, value):
    """Set (or with ... remove) what stands under the keys in a JSON file."""
    content = target = json.loads(path.read_text())
    for key in keys[:-1]:
        target = target[key]
    if value is ...:
        del target[keys[-1]]
    else:
        target[keys[-1]] = value
    path.write_text(json.dumps(content))


def other_null_distribution(layers, **metadata):
    def damage(folder):
        null = normal_null_distribution(layers)
        null.metadata |= metadata
        null.save(folder / "null.safetensors")

    return damage


def damaged(name, *keys, value):
    return lambda folder: edit(folder / name, *keys, value=value)


ANEW = "; delete it and run again"
TOKENS = ("samples", 0, "sequences", 0, "token_ids")
DAMAGES = {
    "null distribution of more layers": (
        other_null_distribution(4),
        r"null\.safetensors has 4 layers but the",
    ),
    "null distribution of another model": (
        other_null_distribution(3, model_fingerprint="f00d"),
        rf"null\.safetensors was made for another model than .*: its fingerprint is f00d, the \S+ \w+{ANEW}",
    ),
    "null distribution cut": (cut("null.safetensors", -4), rf"null\.safetensors is not a whole .*{ANEW}"),
    "model.json no JSON": (write("model.json", "{'a': 1}"), rf"model\.json is not JSON \(.*\){ANEW}"),
    "model.json a list": (write("model.json", "[]"), rf"model\.json: name is null, but must be text{ANEW}"),
    "model.json without shapes": (
        damaged("model.json", "shapes", value=...),
        rf"model\.json: shapes\.num_moe_layers is null, but must be a whole number{ANEW}",
    ),
    "model.json with a text": (
        damaged("model.json", "shapes", "vocab_size", value="many"),
        rf'model\.json: shapes\.vocab_size is "many", but must be a whole number{ANEW}',
    ),
    "data set no JSON": (cut("wikitext.json", -20), rf"wikitext\.json is not JSON \(.*\){ANEW}"),
    "data set without requests": (
        damaged("wikitext.json", "samples", 1, "requests", value=...),
        rf"wikitext\.json is not a prepared data set: 'requests' is missing{ANEW}",
    ),
    "data set with another key": (
        damaged("wikitext.json", "samples", 0, "sequences", 0, "tokens", value=1),
        rf"wikitext\.json is not a prepared data set: .*'tokens'{ANEW}",
    ),
    "data set a list": (
        write("wikitext.json", "[]"),
        rf"wikitext\.json is not a prepared data set: .*{ANEW}",
    ),
    "data set empty": (
        damaged("wikitext.json", "samples", value=[]),
        rf"wikitext\.json is not a prepared data set: it has no samples or settings{ANEW}",
    ),
    "tokens that are texts": (
        damaged("wikitext.json", *TOKENS, value=["a", "b"]),
        rf"wikitext\.json: the token sequences of wikitext_0 are inconsistent{ANEW}",
    ),
    "tokens too few": (
        damaged("wikitext.json", *TOKENS, value=[3]),
        rf"wikitext\.json: the token sequences of wikitext_0 are inconsistent{ANEW}",
    ),
    "tokens of another tokenizer": (
        damaged("wikitext.json", *TOKENS, 5, value=VOCABULARY),
        rf"wikitext\.json: wikitext_0 holds token {VOCABULARY}, but the model knows 0 to {LAST}; the",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_job_with_a_damaged_file_ends_before_the_model_is_loaded(
    tmp_path, request_of_a_job, monkeypatch, name
):
    damage, sentence = DAMAGES[name]
    damage(tmp_path)
    monkeypatch.setattr(Cache, "model", lambda *_: pytest.fail("the model was loaded"))
    with pytest.raises(InputError, match=sentence) as error:
        JOBS["run_experiment"](request_of_a_job, Cache())
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "logs").exists()


def test_the_same_job_with_whole_files_is_done(tmp_path, request_of_a_job):
    cache = Cache()
    try:
        JOBS["run_experiment"](request_of_a_job, cache)
    finally:
        cache.close()
        torch.set_num_threads(1)
    assert len(list((tmp_path / "logs").iterdir())) == 3
    assert read_model_info(tmp_path / "model.json")["shapes"]["vocab_size"] == VOCABULARY
    assert len(read_prepared(tmp_path / "wikitext.json")[1]) == 2


def test_a_table_of_another_model_is_refused():
    info = {"name": "tiny", "fingerprint": "cafe", "shapes": {"num_moe_layers": 3}}
    null = normal_null_distribution(3)
    null.expect_model(info, "a.safetensors")  # made by hand: it names no model
    null.metadata["model_fingerprint"] = "cafe"
    null.expect_model(info, "a.safetensors")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    return synthetic.write_study(folder, max_ks=(4,), alphas=(0.3,), num_experts=13, num_layers=2)


@pytest.fixture
def experiment_files(tmp_path, study):
    """One experiment's summary and tensors, to be damaged."""
    return (
        shutil.copy(study.summaries[0], tmp_path / "summary.json"),
        shutil.copy(study.tensors[0], tmp_path / "tensors.safetensors"),
    )


def metrics_of(summary, tensors):
    with TensorFile(tensors) as opened, blaming("summary", summary):
        return compute_metrics(read_json(summary), opened)


SUMMARY_EDITS = [
    (("metrics",), ..., r"\$: 'metrics' is a required property"),
    (("routing", "native_top_k"), "4", r"""\$\.routing\.native_top_k: "4" is not of type 'integer'"""),
    (("summary", "total_sequences"), None, r"\$\.summary\.total_sequences: null is not of type 'integer'"),
    (("timings", "forward_seconds"), "fast", r"""\$\.timings\.forward_seconds: "fast" is not of type"""),
    (("routing",), [], r"\$\.routing: \[\] is not of type 'object'"),
]


@pytest.mark.parametrize(("keys", "value", "sentence"), SUMMARY_EDITS)
def test_a_summary_edited_by_hand_is_named(experiment_files, keys, value, sentence):
    summary, tensors = experiment_files
    edit(summary, *keys, value=value)
    with pytest.raises(InputError, match=rf"summary\.json: {sentence}.*{ANEW}") as error:
        metrics_of(summary, tensors)
    assert len(str(error.value)) < 600 and "\n" not in str(error.value)


def test_faults_of_the_code_are_not_blamed_on_whole_files(experiment_files):
    with pytest.raises(ZeroDivisionError), blaming("summary", experiment_files[0]):
        raise ZeroDivisionError


def test_tensors_of_another_run_are_refused(experiment_files, study):
    summary, tensors = experiment_files
    metrics_of(summary, tensors)
    with pytest.raises(
        InputError,
        match=r"lambada.*_internal_routing\.safetensors and the summary of .* on wikitext come from "
        r'different runs: dataset is "lambada" in the tensors and "wikitext" in the summary; delete both and '
        r"run again",
    ):
        metrics_of(summary, study.tensors[1])
    edit(summary, "summary", "total_tokens", value=7)
    with pytest.raises(InputError, match=r"total_tokens is \d+ in the tensors and 7 in the summary"):
        metrics_of(summary, tensors)


def test_the_files_of_a_run_belong_together_and_those_of_another_do_not(tmp_path):
    model, samples = tiny_olmoe(), make_samples(LENGTHS)
    _, files = experiment(tmp_path / "one", model, samples)
    _, others = experiment(tmp_path / "other", model, samples, protocol="rows")
    # What a run writes into its summary alone, as the time, makes no other run of it.
    for own in (files, others):
        assert metrics_of(own.summary, own.tensors)["metrics"]["total_samples"] == len(LENGTHS)
    with pytest.raises(
        InputError, match=r"settings is .* in the tensors and .* in the summary; delete both and run"
    ):
        metrics_of(files.summary, others.tensors)


def test_a_damaged_routing_log_is_one_sentence(experiment_files):
    path = experiment_files[1]
    whole, tensors = path.read_bytes(), load_file(path)
    with RoutingLog(path) as log:
        assert len(log) == 12
    for kept in (4, 200, len(whole) - 7):
        path.write_bytes(whole[:kept])
        with pytest.raises(
            InputError, match=rf"tensors\.safetensors is not a whole safetensors file: .*{ANEW}"
        ):
            RoutingLog(path)
    head = json.dumps({"config": "one"})
    for metadata, change, sentence in (
        ({"format": "pt"}, {}, "has no 'head' in its metadata"),
        ({"head": "{"}, {}, "'head' in its metadata is no JSON"),
        (
            {"head": head},
            {"sample_offsets": np.array([0, 3])},
            r"sample_offsets do not divide its \d+ tokens",
        ),
        (
            {"head": head},
            {"sequence_offsets": np.zeros(0, int)},
            r"sequence_offsets do not divide its \d+ tokens",
        ),
    ):
        save_file(tensors | change, path, metadata=metadata)
        with pytest.raises(InputError, match=rf"tensors\.safetensors.*{sentence}{ANEW}"):
            RoutingLog(path)
    save_file({"sample_offsets": np.zeros(1, int)}, path, metadata={"head": head})
    with pytest.raises(InputError, match=rf"has no tensor 'expert_counts'; it has sample_offsets{ANEW}"):
        RoutingLog(path)


@pytest.fixture
def metrics_files(tmp_path, study):
    paths = []
    for summary, tensors in zip(study.summaries, study.tensors, strict=True):
        paths.append(tmp_path / summary.name)
        write_json(paths[-1], metrics_of(summary, tensors))
    return paths


def tabulated(paths):
    with blaming(metrics_schema, *paths):
        experiments = [read_json(path) for path in paths]
        tables.check_distinct(paths, experiments)
        tables.experiments_table(experiments)
        return tables.configurations_table(experiments), tables.layers_table(experiments)


@pytest.mark.parametrize(
    ("keys", "value", "sentence"),
    [
        (("metrics", "avg_experts"), "four", r'\$\.metrics\.avg_experts: "four" is not'),
        (("metrics", "total_tokens"), ..., r"\$\.metrics: 'total_tokens' is a required property"),
        (("per_layer",), ..., r"\$: 'per_layer' is a required property"),
        (("config",), ..., r"\$: 'config' is a required property"),
    ],
)
def test_metrics_edited_by_hand_are_named(metrics_files, keys, value, sentence):
    assert len(tabulated(metrics_files)[0]) == 2
    edit(metrics_files[4], *keys, value=value)
    with pytest.raises(InputError, match=rf"{metrics_files[4].name}: {sentence}.*{ANEW}"):
        tabulated(metrics_files)
    metrics_files[4].write_text('{"metrics": NaN}')
    with pytest.raises(InputError, match=rf"{metrics_files[4].name} is not JSON"):
        tabulated(metrics_files)


def test_a_copy_under_anothers_name_is_refused(metrics_files):
    shutil.copy(metrics_files[0], metrics_files[2])
    with pytest.raises(InputError, match=rf"{metrics_files[2].name} and .*{metrics_files[0].name} both hold"):
        tabulated(metrics_files)


HEADS = "config,strategy,k_or_max_k,alpha,weights,null,control,control_of,num_experts"
TABLES = {
    "experiments": f"{HEADS},dataset,perplexity\n8experts_topk_baseline,topk,8,,native,,,,64,wikitext,9.5\n",
    "configurations": f"{HEADS},avg_experts\n8experts_topk_baseline,topk,8,,native,,,,64,8\n"
    "8experts_bh_a030,bh,8,0.3,native,default,,,64,4.5\n",
    "layers": "config,dataset,layer,avg_experts\n8experts_topk_baseline,wikitext,0,8\n",
    "comparisons": "config,dataset,metric,difference,ci_low,ci_high,p_holm\n",
}


@pytest.mark.parametrize(
    ("table", "found", "replaced", "sentence"),
    [
        ("configurations", "4.5", "about 4", "line 3: avg_experts is 'about 4', but must be a number"),
        ("configurations", "bh,8", "bh,", "line 3: k_or_max_k is empty, but must be a number"),
        ("experiments", "topk,8", "topk,eight", "line 2: k_or_max_k is 'eight', but must be a number"),
        ("experiments", "wikitext", "", "line 2: dataset is empty, but must be filled"),
        ("layers", "layer,", "layers,", r"has no column layer$"),
        ("layers", "0,8", '0,8,9,"', "is not a table of comma-separated values"),
        ("layers", "topk", "t\xf6pk", "is not a table of comma-separated values"),
    ],
)
def test_tables_edited_by_hand_are_one_sentence(tmp_path, table, found, replaced, sentence):
    paths = {name: tmp_path / f"{name}.csv" for name in TABLES}
    for name, text in TABLES.items():
        paths[name].write_text(text)
    assert len(read_study(*paths.values(), "8experts_topk_baseline").configurations) == 2
    assert found in TABLES[table]
    paths[table].write_text(TABLES[table].replace(found, replaced), encoding="latin-1")
    with pytest.raises(InputError, match=rf"{table}\.csv.*{sentence}") as error:
        read_study(*paths.values(), "8experts_topk_baseline")
    assert "\n" not in str(error.value)


# Data files


def rows_file(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("rows.jsonl", '{"text": "Zürich"}\n'.encode("latin-1"), "can't decode byte 0xfc"),
        ("rows.jsonl", '{"text": "a"}\n{"text": \n{"text": "b"}\n', "rows.jsonl' \\("),
        ("rows.jsonl", "", "it holds no rows"),
        ("rows.json", "[]", "no data"),
        ("rows.parquet", b"PAR1" + bytes(100), "[Pp]arquet"),
    ],
)
def test_unreadable_data_files_are_one_sentence(tmp_path, name, content, sentence):
    source = rows_file(tmp_path, name, content)
    with pytest.raises(InputError, match=rf"^datasets\.wikitext: cannot read .*{sentence}") as error:
        list(load_rows(source, name="datasets.wikitext"))
    assert "\n" not in str(error.value)


def test_fewer_rows_than_asked_for_are_all_scored(tmp_path, tiny_folder):
    source = rows_file(
        tmp_path, "rows.jsonl", '{"text": "A first row."}\n{"text": ""}\n{"text": "Another."}\n'
    )
    tokenizer = load_tokenizer({"name": "tiny", "folder": str(tiny_folder)})
    prepared = prepare_samples("wikitext", load_rows(source), tokenizer, 200, 64, 64)
    assert [one.sample_id for one in prepared] == ["wikitext_0", "wikitext_2"]
    check_vocabulary(prepared, len(tokenizer), "datasets.wikitext")
    with pytest.raises(
        InputError, match=r"datasets\.wikitext: wikitext_\d holds token \d+, but .* 0 to 5; the"
    ):
        check_vocabulary(prepared, 6, "datasets.wikitext")


def test_a_table_with_pickled_arrays_is_refused_unread(tmp_path):
    path = tmp_path / "table.npz"
    np.savez(path, x=np.array([print], dtype=object), cdf=np.zeros((1, 4)))
    with pytest.raises(InputError, match=r"table\.npz holds pickled Python objects"):
        NullDistribution.from_cdf_table(path)
