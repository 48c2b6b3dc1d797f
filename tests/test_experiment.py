"""Whole experiments on the embedded model: three files that agree, whatever the batches."""

import contextlib
import copy
import json
import math
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import jsonschema
import numpy as np
import pytest
import torch
from adaptive_routing.analysis.metrics import TIMING_METRICS, compute_metrics
from adaptive_routing.analysis.routing_summary import summarize_routing
from adaptive_routing.data.rows import load_rows
from adaptive_routing.data.samples import prepare_samples, prepared_to_json, read_prepared
from adaptive_routing.evaluation import scoring
from adaptive_routing.evaluation.experiment import ExperimentFiles, run_experiment
from adaptive_routing.jobs.model_jobs import JOBS, Cache
from adaptive_routing.model.patching import RouterPatcher
from adaptive_routing.routing import make_strategy
from adaptive_routing.routing_log import RoutingLog
from adaptive_routing.routing_log.size import log_bytes
from adaptive_routing.settings.configurations import grid
from adaptive_routing.system.errors import InputError
from adaptive_routing.system.json_files import read_json, write_json
from adaptive_routing.system.tensor_files import TensorFile
from conftest import ROOT

ROUTING = {"min_k": 1, "temperature": 1.0, "weights": "native"}
CONFIGURATIONS = {
    one.name: one for one in grid({"topk": {"k": [8, 16]}, "bh": {"max_k": [8, 16], "alpha": [0.3, 0.5]}})
}
SAMPLES = {"wikitext": 8, "lambada": 8, "hellaswag": 4, "arc_challenge": 4, "prompts": 5}
SECOND_PASS = 3


def prepare(embedded, dataset):
    rows = load_rows(str(ROOT / f"resources/datasets/{dataset}.jsonl"))
    return prepare_samples(dataset, rows, embedded.tokenizer, SAMPLES[dataset], 96, 512)


def run(
    folder, embedded, name, dataset, batch_tokens=2048, routing=ROUTING, prepared=None, routing_log=None,
    ending="", **of_dataset,
):  # fmt: skip
    """Run one experiment, with further settings of the data set; returns (summary, its files)."""
    configuration = CONFIGURATIONS[name]
    null = embedded.null_distribution if configuration.strategy == "bh" else None
    stem = f"{folder}/logs/{name}_{dataset}"
    files = ExperimentFiles(
        f"{stem}.json", f"{stem}_internal_routing.json{ending}", f"{stem}_internal_routing.safetensors"
    )
    settings = {
        "configuration": dict(configuration.parameters),
        "routing": routing,
        "dataset": {"max_samples": SAMPLES[dataset], **of_dataset},
        "second_pass_samples": SECOND_PASS,
        "null_distribution": null.metadata if null else None,
    }
    summary = run_experiment(
        embedded.loaded, configuration, make_strategy(configuration, routing, null), dataset,
        prepared or prepare(embedded, dataset), batch_tokens, SECOND_PASS, settings, files,
        routing_log=routing_log,
    )  # fmt: skip
    return summary, files


def validate(name, content):
    schema = json.loads((ROOT / f"schemas/{name}.schema.json").read_text())
    jsonschema.validators.validator_for(schema)(schema).validate(content)
    assert not undescribed(content, schema)


def undescribed(value, node, place=""):
    """The keys of a JSON value that its schema says nothing of, where it describes others beside them."""
    if isinstance(value, list):
        return {key for one in value for key in undescribed(one, node.get("items", {}), f"{place}[]")}
    if not isinstance(value, dict) or "properties" not in node:
        return set()
    found, known = set(), node["properties"]
    for key, child in value.items():
        if key in known:
            found |= undescribed(child, known[key], f"{place}.{key}")
        elif not isinstance(node.get("additionalProperties"), dict):
            found.add(f"{place}.{key}")
    return found


CASES = [
    ("8experts_topk_baseline", "wikitext"),
    ("16experts_bh_a050", "wikitext"),
    ("16experts_bh_a030", "lambada"),
    ("16experts_topk_baseline", "hellaswag"),
    ("8experts_bh_a050", "hellaswag"),
    ("16experts_bh_a050", "arc_challenge"),
]


@pytest.mark.parametrize(("name", "dataset"), CASES)
def test_the_three_files_agree(tmp_path, embedded, name, dataset):
    returned, files = run(tmp_path, embedded, name, dataset)
    summary, routing = read_json(files.summary), read_json(files.internal_routing)
    validate("summary", summary)
    validate("internal_routing", routing)
    assert summary == json.loads(json.dumps(returned))
    head = [key for key in summary if key not in ("metrics", "summary", "samples", "timings")]
    own_run = summary["provenance"].pop("run")  # the routing logs hold nothing that differs between runs
    assert own_run["batch_tokens"] == 2048 and own_run["host"] and own_run["started"].endswith("+00:00")
    assert {key: summary[key] for key in head} == {key: routing[key] for key in head}
    configuration = CONFIGURATIONS[name]
    assert summary["config"] == name and summary["dataset"] == dataset
    assert (summary["strategy"], summary["k_or_max_k"], summary["alpha"], summary["num_experts"]) == (
        configuration.strategy, configuration.max_experts, configuration.alpha, 64,
    )  # fmt: skip

    log = RoutingLog(files.tensors, embedded.null_distribution)
    assert log.head == {key: summary[key] for key in head}
    prepared = prepare(embedded, dataset)
    assert len(log) == len(prepared) == len(summary["samples"]) == summary["summary"]["total_samples"]
    for index, (one, sample, entry) in enumerate(
        zip(prepared, summary["samples"], routing["samples"], strict=True)
    ):
        own = log.sample(index)
        assert sample["sample_id"] == entry["sample_id"] == one.sample_id
        assert sample["loss"] == entry["loss"]
        assert sample["num_tokens"] == entry["num_tokens"] == len(own.token_ids)
        read = [token for sequence in one.sequences for token in sequence.token_ids[: sequence.num_inputs]]
        assert own.token_ids.tolist() == read
        # The loss is that of the gold sequence, and of the right positions.
        bounds = np.cumsum([0, *(sequence.num_inputs for sequence in one.sequences)])
        gold = one.sample.gold or 0
        losses = own.token_losses[bounds[gold] : bounds[gold + 1]]
        context = one.sequences[gold].num_context_tokens
        assert np.isnan(losses[:context]).all() and not np.isnan(losses[context:]).any()
        assert losses[context:].mean() == pytest.approx(sample["loss"], rel=1e-5)
        for layer, logged in enumerate(entry["layers"]):
            assert logged["selected_experts"] == [row.tolist() for row in own.selected_experts(layer)]
            assert logged["expert_counts"] == own.expert_counts[:, layer].tolist()
            weights = own.expert_weights(layer)
            flat = [
                weights[token, expert]
                for token, row in enumerate(logged["selected_experts"])
                for expert in row
            ]
            np.testing.assert_array_equal(np.float32(logged["expert_weights"]), flat)
            if configuration.strategy == "bh":
                np.testing.assert_array_equal(logged["p_values_sample"], own.p_values(layer)[:5])
    totals = summary["summary"]
    assert totals["total_tokens"] == sum(one["num_tokens"] for one in summary["samples"])
    assert totals["predicted_tokens"] == sum(one["num_predicted_tokens"] for one in summary["samples"])
    assert totals["total_sequences"] == sum(len(one.sequences) for one in prepared)
    assert routing["aggregate_stats"]["num_tokens"] == totals["total_tokens"]
    if configuration.strategy == "bh":
        histogram = np.sum(routing["aggregate_stats"]["expert_count_histogram"], axis=0)
        assert (histogram > 0).sum() > 1  # the number of experts really adapts

    timings = summary["timings"]
    single = timings["single_sample"]
    assert timings["forward_seconds"] > 0 and timings["total_seconds"] > timings["forward_seconds"]
    assert len(single["seconds"]) == len(single["tokens"]) == SECOND_PASS
    assert min(single["seconds"]) > 0
    assert single["tokens"] == [one["num_tokens"] for one in summary["samples"][:SECOND_PASS]]
    provenance = summary["provenance"]
    assert provenance["dtype"] == "float32" and provenance["device"] == "cpu"
    assert provenance["versions"]["torch"] == torch.__version__
    assert len(provenance["model"]["fingerprint"]) == 64 and "folder" not in provenance["model"]


def comparable(summary):
    """The summary without what may differ between equal runs, floats apart from the rest."""
    content = copy.deepcopy(summary)
    del content["timings"], content["provenance"]["run"]
    floats = []

    def walk(value):
        if isinstance(value, float):
            floats.append(value)
            return "float"
        if isinstance(value, dict):
            return {key: walk(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [walk(item) for item in value]
        return value

    return walk(content), floats


@pytest.mark.parametrize(("name", "dataset"), CASES)
def test_results_do_not_depend_on_the_batches(tmp_path, embedded, name, dataset):
    runs = [
        run(tmp_path / str(batch_tokens), embedded, name, dataset, batch_tokens)
        for batch_tokens in (512, 8192)
    ]
    (first, first_files), (second, second_files) = runs
    structure, floats = comparable(first)
    other_structure, other_floats = comparable(second)
    assert structure == other_structure
    assert floats == pytest.approx(other_floats, rel=1e-4, abs=1e-4)
    with TensorFile(first_files.tensors) as one, TensorFile(second_files.tensors) as other:
        for key in ("selected_experts", "expert_counts", "token_ids", "second_pass_selected_experts"):
            np.testing.assert_array_equal(one.read(key), other.read(key))
        for key in ("router_logits", "token_losses"):
            np.testing.assert_allclose(one.read(key), other.read(key), rtol=1e-3, atol=1e-3)
        # The batch-of-one pass decides as the batches did.
        repeated = len(one.read("second_pass_selected_experts"))
        np.testing.assert_array_equal(
            one.read("selected_experts")[:repeated], one.read("second_pass_selected_experts")
        )
        np.testing.assert_array_equal(one.read("greedy_tokens"), one.read("second_pass_greedy_tokens"))


@pytest.mark.parametrize(("name", "dataset"), CASES[:4])
def test_results_do_not_depend_on_how_much_the_log_keeps(tmp_path, embedded, name, dataset):
    def results(folder, **routing_log):
        summary, files = run(tmp_path / folder, embedded, name, dataset, routing_log=routing_log or None)
        validate("summary", read_json(files.summary))
        kept = summary.pop("routing_log", None)
        with TensorFile(files.tensors) as tensors:
            read = {**summary, "routing_log": kept} if kept else summary
            metrics, arrays = compute_metrics(read, tensors), summarize_routing(tensors, summary["samples"])
            num_logits = len(tensors.read("router_logits"))
        for timing in TIMING_METRICS:
            metrics["metrics"].pop(timing)
        del summary["timings"], summary["provenance"]["run"]
        return kept, len(read_json(files.internal_routing)["samples"]), num_logits, summary, metrics, arrays

    everything = results("whole")
    samples, tokens = everything[1], everything[2]
    assert everything[0] is None and samples == SAMPLES[dataset]
    for routing_log in (
        {"json_samples": 3, "router_logits": "all"},
        {"json_samples": "all", "router_logits": 2},
        {"json_samples": 0, "router_logits": 0},
    ):
        kept, num_json, num_logits, summary, metrics, (arrays, shown) = results("part", **routing_log)
        assert kept == {key: samples if n == "all" else n for key, n in routing_log.items()}
        assert num_json == kept["json_samples"]
        first = summary["samples"][: kept["router_logits"]]
        assert num_logits == sum(one["num_tokens"] for one in first) <= tokens
        assert (summary, metrics, shown) == (everything[3], everything[4], everything[5][1])
        for key, array in everything[5][0].items():
            np.testing.assert_array_equal(arrays[key], array)


def room_taken_and_said(embedded, summary, files, dataset, **kept):
    """The bytes of an experiment's routing log, and those that `log_bytes` says of it beforehand."""
    with TensorFile(files.tensors) as tensors:
        experts = float(tensors.read("expert_counts").mean())
    lengths = [one.num_inputs for one in prepare(embedded, dataset)]
    shapes = summary["provenance"]["model"]["shapes"]
    of_model = shapes["num_moe_layers"], shapes["num_experts"]
    said = log_bytes(lengths, *of_model, experts, 4, summary["strategy"] == "bh", **kept)
    return sum(Path(path).stat().st_size for path in (files.internal_routing, files.tensors)), said


@pytest.mark.parametrize("kept", [None, {"json_samples": 3, "router_logits": 2}])
@pytest.mark.parametrize(("name", "dataset"), CASES[:4])
def test_the_room_of_a_log_is_known_before(tmp_path, embedded, name, dataset, kept):
    summary, files = run(tmp_path, embedded, name, dataset, routing_log=kept)
    taken, said = room_taken_and_said(embedded, summary, files, dataset, **(kept or {}))
    assert said == pytest.approx(taken, rel=0.05)


@pytest.mark.parametrize(("name", "dataset"), CASES[:4])
def test_a_compressed_log_needs_no_more_room_than_is_said(tmp_path, embedded, name, dataset):
    summary, files = run(tmp_path, embedded, name, dataset, ending=".zst")
    taken, said = room_taken_and_said(embedded, summary, files, dataset, is_compressed=True)
    assert 0.75 * said < taken < 1.05 * said


def test_experiments_say_what_room_they_take_and_begin_only_where_it_is(
    tmp_path, embedded, monkeypatch, capsys
):
    """On a disk that is pretended: what is free is what the test says."""
    write_json(tmp_path / "model.json", embedded.loaded.info)
    write_json(
        tmp_path / "datasets/lambada.json",
        prepared_to_json("lambada", prepare(embedded, "lambada"), {"max_samples": SAMPLES["lambada"]}),
    )
    planned = {
        "8experts_topk_baseline": {
            "experts": (8, 8),
            "p_values": False,
            "datasets": ["lambada", "hellaswag"],
        },
        "16experts_bh_a050": {"experts": (1, 16), "p_values": True, "datasets": ["lambada"]},
    }
    stem = f"{tmp_path}/logs/8experts_topk_baseline_lambada"
    request = {
        "model": f"{tmp_path}/model.json", "dtype": "float32", "device": "cpu", "routing": ROUTING,
        "configuration": {
            "name": "8experts_topk_baseline", "strategy": "topk", "max_experts": 8, "parameters": {"k": 8},
            "control_of": None,
        },
        "null_distribution": None, "dataset": "lambada", "prepared": f"{tmp_path}/datasets/lambada.json",
        "batch_tokens": 512, "second_pass_samples": 1, "planned": planned,
        "outputs": {
            "summary": f"{stem}.json", "internal_routing": f"{stem}_internal_routing.json",
            "tensors": f"{stem}_internal_routing.safetensors",
        },
    }  # fmt: skip
    free = SimpleNamespace(free=1_500_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    with contextlib.closing(Cache()) as cache:
        with pytest.raises(InputError) as error:
            JOBS["run_experiment"](request, cache)
        assert re.fullmatch(
            r"writing the routing logs of 2 experiments needs \d\.\d MB, but \S+/logs has 1\.5 MB free; free "
            r"some, or keep less of large data sets: routing_log in the config file",
            str(error.value),
        )
        assert not Path(request["outputs"]["summary"]).exists()
        # With a bound it fits.
        JOBS["run_experiment"](request | {"routing_log": {"json_samples": 0, "router_logits": 1}}, cache)
        said = capsys.readouterr().err
        assert re.search(
            r"^writing the routing logs of 2 experiments takes about \d+ kB to .*; 1\.5 MB are free$",
            said,
            re.M,
        )
        # What is there needs no room any more, and it is said once.
        free.free = 0
        JOBS["run_experiment"](
            request | {"planned": {"8experts_topk_baseline": planned["8experts_topk_baseline"]}}, cache
        )
        assert "takes about" not in capsys.readouterr().err


def test_a_log_with_room_for_every_sample_is_the_whole_one(tmp_path, embedded):
    generous = {"json_samples": 1000, "router_logits": SAMPLES["lambada"]}
    files = [
        run(tmp_path / part, embedded, "16experts_bh_a050", "lambada", routing_log=routing_log)[1]
        for part, routing_log in (("a", None), ("b", generous))
    ]
    for name in ("internal_routing", "tensors"):
        first, second = (Path(getattr(one, name)).read_bytes() for one in files)
        assert first == second


def test_the_same_run_twice_writes_the_same_routing(tmp_path, embedded):
    paths = [run(tmp_path / part, embedded, "16experts_bh_a050", "lambada")[1] for part in ("a", "b")]
    for name in ("internal_routing", "tensors"):
        first, second = (Path(getattr(one, name)).read_bytes() for one in paths)
        assert first == second


def test_native_top_k_scores_as_the_unpatched_model(tmp_path, embedded):
    """Mean loss and perplexity of the baseline, from plain forward passes without any of our code."""
    summary, _ = run(tmp_path, embedded, "8experts_topk_baseline", "wikitext")
    model, losses = embedded.loaded.model, []
    for one in prepare(embedded, "wikitext"):
        ids = torch.tensor([one.sequences[0].token_ids])
        with torch.inference_mode():
            losses.append(float(model(input_ids=ids, labels=ids).loss))
    assert [one["loss"] for one in summary["samples"]] == pytest.approx(losses, rel=1e-4)
    assert summary["metrics"]["perplexity"] == pytest.approx(math.exp(np.mean(losses)), rel=1e-4)


def test_renormalized_weights_reach_the_model_and_the_log(tmp_path, embedded):
    renormalized, files = run(
        tmp_path / "a",
        embedded,
        "8experts_topk_baseline",
        "lambada",
        routing={**ROUTING, "weights": "renormalized"},
    )
    native, _ = run(tmp_path / "b", embedded, "8experts_topk_baseline", "lambada")
    assert renormalized["routing"]["renormalized"] and not native["routing"]["renormalized"]
    assert renormalized["samples"][0]["loss"] != native["samples"][0]["loss"]
    weights = RoutingLog(files.tensors).sample(0).expert_weights(5)
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-5)


def test_a_failure_leaves_no_file_and_an_unpatched_model(tmp_path, embedded, monkeypatch):
    model = embedded.loaded.model
    ids = torch.tensor([[5, 6, 7]])
    with torch.inference_mode():
        before = model(ids).logits
    calls, score_positions = [], scoring.score_positions

    def failing(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3:  # the second batch after the warm-up
            raise ArithmeticError("in the second batch")
        return score_positions(*args, **kwargs)

    monkeypatch.setattr(scoring, "score_positions", failing)
    with pytest.raises(ArithmeticError, match="second batch"):
        run(tmp_path, embedded, "16experts_bh_a050", "wikitext", batch_tokens=128)
    assert list((tmp_path / "logs").iterdir()) == []
    with torch.inference_mode():
        assert torch.equal(model(ids).logits, before)


@pytest.mark.parametrize("name", ["16experts_bh_a050", "8experts_topk_baseline"])
def test_prompts_are_continued_and_both_parts_are_logged(tmp_path, embedded, name):
    summary, files = run(tmp_path, embedded, name, "prompts", max_new_tokens=6)
    validate("summary", read_json(files.summary))
    validate("internal_routing", read_json(files.internal_routing))
    prepared = prepare(embedded, "prompts")
    log = RoutingLog(files.tensors, embedded.null_distribution)
    assert len(summary["samples"]) == len(log) == len(prepared) == 5
    for index, (one, sample) in enumerate(zip(prepared, summary["samples"], strict=True)):
        own, prompt = log.sample(index), one.sequences[0].token_ids
        assert sample["difficulty"] == one.sample.attributes["difficulty"]
        assert sample["num_prompt_tokens"] == len(prompt)
        assert 1 <= sample["num_new_tokens"] <= 6
        read = own.token_ids.tolist()
        assert read[: len(prompt)] == prompt
        assert len(read) == sample["num_tokens"] == len(prompt) + sample["num_new_tokens"] - 1
        assert sample["generated_text"].startswith(embedded.tokenizer.decode(read[len(prompt) :]))
        counts = own.expert_counts.astype(float)
        assert sample["avg_experts_prompt"] == pytest.approx(counts[: len(prompt)].mean())
        if len(read) > len(prompt):
            assert sample["avg_experts_new"] == pytest.approx(counts[len(prompt) :].mean())
        assert sample["loss"] == pytest.approx(own.token_losses[1 : len(prompt)].mean(), rel=1e-5)
        assert sample["num_predicted_tokens"] == len(prompt) - 1
    losses = [sample["loss"] for sample in summary["samples"]]
    assert summary["metrics"]["prompt_perplexity"] == pytest.approx(math.exp(np.mean(losses)))
    assert summary["summary"]["total_tokens"] == log.tensors.shape("token_ids")[0]
    # The second pass reads the whole text at once; the run read token by token from the cache.
    with TensorFile(files.tensors) as tensors:
        repeated = tensors.read("second_pass_selected_experts")
        assert len(repeated) == sum(sample["num_tokens"] for sample in summary["samples"][:SECOND_PASS])
        np.testing.assert_array_equal(tensors.read("selected_experts")[: len(repeated)], repeated)
        np.testing.assert_array_equal(
            tensors.read("greedy_tokens"), tensors.read("second_pass_greedy_tokens")
        )


def test_documents_are_scored_in_windows(tmp_path, embedded):
    """Longer than the model: the same total as plain passes over the windows, in one sample."""
    rows = [{"text": row["text"]} for row in load_rows(str(ROOT / "resources/datasets/wikitext.jsonl"))]
    prepared = prepare_samples("wikitext", rows, embedded.tokenizer, 2, 512, 64, "documents")
    assert [len(one.sequences) > 1 for one in prepared] == [True, True]
    summary, files = run(
        tmp_path, embedded, "16experts_bh_a050", "wikitext", prepared=prepared, protocol="documents",
        skipped_rows=7,
    )  # fmt: skip
    validate("summary", read_json(files.summary))
    validate("internal_routing", read_json(files.internal_routing))
    strategy = make_strategy(CONFIGURATIONS["16experts_bh_a050"], ROUTING, embedded.null_distribution)
    with RouterPatcher(embedded.loaded.model, strategy):
        for one, sample in zip(prepared, summary["samples"], strict=True):
            total = sum(
                score.log_likelihood
                for sequence in one.sequences
                for score in scoring.score_batch(embedded.loaded.model, [sequence]).scores
            )
            assert sample["log_likelihood"] == pytest.approx(total, rel=1e-5)
            assert sample["num_predicted_tokens"] == len(
                embedded.tokenizer.encode(one.sample.requests[0].continuation)
            )
    metrics, samples = summary["metrics"], summary["samples"]
    total = -sum(one["log_likelihood"] for one in samples)
    assert metrics["word_perplexity"] == pytest.approx(
        math.exp(total / sum(one["num_words"] for one in samples))
    )
    # Two documents were there where eight were asked for.
    assert (summary["summary"]["total_samples"], summary["summary"]["requested_samples"]) == (2, 8)
    assert summary["summary"]["skipped_rows"] == 7
    lengths = [entry["sequence_lengths"] for entry in read_json(files.internal_routing)["samples"]]
    assert lengths == [[one.num_inputs for one in sample.sequences] for sample in prepared]


def test_prepared_samples_survive_the_file(tmp_path, embedded):
    for dataset in SAMPLES:
        prepared = prepare(embedded, dataset)
        write_json(tmp_path / "prepared.json", prepared_to_json(dataset, prepared, {"max_samples": 3}))
        assert read_prepared(tmp_path / "prepared.json") == ({"max_samples": 3}, prepared)


def test_calibration_logits_are_those_of_native_routing_in_order(embedded):
    """Whatever the batches: the rows of each sample alone, one after another."""
    from adaptive_routing.evaluation.calibration import collect_router_logits, encode_calibration_text
    from adaptive_routing.routing.topk import Strategy

    rows = [
        {"text": text}
        for text in ("The king went home .", "", "A queen came to the village .", "Rain . " * 40)
    ]
    samples = encode_calibration_text(rows, "text", embedded.tokenizer, max_tokens=40, max_length=32)
    lengths = [one.sequences[0].num_inputs for one in samples]
    assert sum(lengths) == 40 and max(lengths) < 32 and len(samples) == 3
    model = embedded.loaded.model
    alone = []
    with RouterPatcher(model, Strategy(8)) as patcher, torch.inference_mode():
        for one in samples:
            model(torch.tensor([one.sequences[0].token_ids]))
            alone.append(patcher.take_batch().router_logits)
    for batch_tokens in (1, 40, 1000):
        logits = collect_router_logits(embedded.loaded, samples, batch_tokens)
        torch.testing.assert_close(logits, torch.cat(alone), rtol=1e-3, atol=1e-3)
