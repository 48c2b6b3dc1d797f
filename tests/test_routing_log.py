"""The log's writer and reader: what stands on disk is what the run used, whole or not at all."""

import itertools
import json
import os
import signal
import subprocess
import sys
import tracemalloc
from types import SimpleNamespace

import jsonschema
import numpy as np
import orjson
import psutil
import pytest
import pyzstd
import torch
from adaptive_routing.routing import bh, topk
from adaptive_routing.routing.base import ExpertWeighting
from adaptive_routing.routing.batch import BatchRouting, pack_native_selection, pack_selection
from adaptive_routing.routing_log import RoutingLog
from adaptive_routing.routing_log.arrays import logged_routing
from adaptive_routing.routing_log.entries import (
    SAMPLE_TOKENS,
    LoggedRouting,
    LoggedSample,
    format_samples,
    tokens_of,
)
from adaptive_routing.routing_log.workers import LogWorkers
from adaptive_routing.routing_log.writer import RoutingLogWriter, _copy, _portions
from adaptive_routing.system.errors import InputError
from adaptive_routing.system.json_files import write_json
from conftest import ROOT, normal_null_distribution
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from synthetic import PLAIN

LAYERS = 3
STRATEGIES = {
    "bh": lambda: bh.Strategy(0.5, 6, normal_null_distribution(LAYERS), 2, ExpertWeighting(0.8, False)),
    "renormalized bh": lambda: bh.Strategy(
        0.5, 12, normal_null_distribution(LAYERS), 1, ExpertWeighting(1.0, True)
    ),
    "topk": lambda: topk.Strategy(4, ExpertWeighting(1.0, False)),
}


def route(strategy, logits, lengths):
    """The record the patcher makes of logits (T, L, E)."""
    columns = [strategy.select(logits[:, layer], layer) for layer in range(logits.shape[1])]
    experts = torch.stack([one.experts for one in columns], 1).to(torch.int16)
    return BatchRouting(
        logits,
        experts,
        torch.stack([one.weights for one in columns], 1).to(logits.dtype),
        torch.stack([one.counts for one in columns], 1).to(torch.int16),
        pack_selection(experts, logits.shape[-1]),
        tuple(lengths),
        pack_native_selection(logits, strategy.weighting.rule, 4),
    )


def make_run(strategy, dtype=torch.float32, num_experts=16, sequence_lengths=None):
    """Random routing of a few samples, with everything else that the log holds of them."""
    generator = torch.Generator().manual_seed(0)
    rng = np.random.default_rng(0)
    sequence_lengths = sequence_lengths or [(7,), (3, 5, 2, 4), (1,), (30,)]
    samples = []
    for number, lengths in enumerate(sequence_lengths):
        total = sum(lengths)
        logits = (torch.randn(total, LAYERS, num_experts, generator=generator) * 1.5).to(dtype)
        losses = rng.random(total).astype(np.float32)
        losses[0] = np.nan
        samples.append(
            SimpleNamespace(
                routing=route(strategy, logits, lengths),
                sample_id=f"lambada_{number}",
                text=f"Übung {number} " * 40,
                loss=float(rng.random()),
                token_ids=rng.integers(0, 1000, total),
                token_losses=losses,
                greedy=rng.integers(0, 1000, (2, total)),
            )
        )
    return SimpleNamespace(
        strategy=strategy, dtype=dtype, num_experts=num_experts, lengths=sequence_lengths, samples=samples
    )


def head_of(run):
    adaptive = isinstance(run.strategy, bh.Strategy)
    return {
        "config": "made_up",
        "strategy": "bh" if adaptive else "topk",
        "k_or_max_k": run.strategy.max_experts,
        "alpha": run.strategy.alpha if adaptive else None,
        **PLAIN,
        "num_experts": run.num_experts,
        "dataset": "lambada",
        "routing": {
            "min_k": run.strategy.min_experts,
            "max_k": run.strategy.max_experts,
            "temperature": run.strategy.weighting.temperature,
            "weights": "renormalized" if run.strategy.weighting.renormalize else "native",
            "renormalized": run.strategy.weighting.renormalize,
            "native_top_k": 4,
            "dtype": str(run.dtype).removeprefix("torch."),
        },
    }


def write(
    folder, run, order=None, second_pass_samples=2, fail_after=None, workers=None, kept=None, batch=1,
    ending="",
):  # fmt: skip
    """Write a run's files, samples in the given order, so many at once."""
    paths = folder / f"run_internal_routing.json{ending}", folder / "run_internal_routing.safetensors"
    writer = RoutingLogWriter(
        *paths, head_of(run) | ({"routing_log": kept} if kept else {}), run.lengths, run.strategy, LAYERS,
        run.num_experts, run.dtype, second_pass_samples, workers,
    )  # fmt: skip
    indices_left = iter(order or range(len(run.samples)))
    with writer:
        for done in itertools.count():
            indices = list(itertools.islice(indices_left, batch))
            if not indices:
                break
            if done == fail_after:
                raise ArithmeticError("in the middle")
            batched = [run.samples[index] for index in indices]
            writer.write(
                indices,
                [LoggedSample(one.sample_id, one.text, one.loss, one.routing.lengths) for one in batched],
                BatchRouting.joined(
                    [one.routing for one in batched], [n for one in batched for n in one.routing.lengths]
                ),
                torch.cat([torch.from_numpy(one.token_ids) for one in batched]),
                torch.cat([torch.from_numpy(one.token_losses) for one in batched]),
            )
        writer.end_of_samples()
        for index in range(second_pass_samples):
            one = run.samples[index]
            packed = pack_selection(one.routing.experts.flip(0), run.num_experts)
            writer.write_second_pass(index, *one.greedy, packed)
    return paths


@pytest.fixture(scope="module")
def workers():
    with LogWorkers(2) as pool:
        yield pool


def validator():
    schema = json.loads((ROOT / "schemas/internal_routing.schema.json").read_text())
    return jsonschema.validators.validator_for(schema)(schema)


def test_samples_know_their_text_without_the_rest_of_the_json(tmp_path):
    run = make_run(STRATEGIES["bh"]())
    run.samples[1].text = 'He said: "so","layers":[ and \n' + "\\" * 90
    run.samples[3].loss = None
    json_path, tensors_path = write(tmp_path, run)
    with RoutingLog(json_path) as log:
        assert [sample.sample_id for sample in log] == [one.sample_id for one in run.samples]
        assert [sample.text_preview for sample in log] == [one.text[:100] for one in run.samples]
        assert [sample.loss for sample in log] == [one.loss for one in run.samples]
    lines = json_path.read_bytes().splitlines(keepends=True)
    json_path.write_bytes(b"".join([*lines[:2], *lines[3:]]))
    with RoutingLog(tensors_path) as log, pytest.raises(InputError, match="does not hold the 4 samples"):
        _ = log.sample(0).loss
    json_path.unlink()
    with RoutingLog(tensors_path) as log:
        assert np.array_equal(log.sample(1).token_ids, run.samples[1].token_ids)
        with pytest.raises(InputError, match=r"run_internal_routing\.json cannot be read"):
            _ = log.sample(1).text_preview


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", STRATEGIES)
def test_json_tensors_and_run_agree(tmp_path, name, dtype):
    run = make_run(STRATEGIES[name](), dtype)
    json_path, tensors_path = write(tmp_path, run)
    content = json.loads(json_path.read_bytes())
    validator().validate(content)
    assert {key: content[key] for key in head_of(run)} == head_of(run)
    with safe_open(tensors_path, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        assert json.loads(file.metadata()["head"]) == head_of(run)
    assert tensors["router_logits"].dtype == dtype
    assert tensors["expert_counts"].dtype == torch.uint8
    offsets = tensors["sample_offsets"].tolist()
    assert offsets == [0, 7, 21, 22, 52]
    assert tensors["sequence_offsets"].tolist() == [0, 7, 10, 15, 17, 21, 22, 52]

    log = RoutingLog(tensors_path, normal_null_distribution(LAYERS))
    assert len(log) == len(content["samples"]) == len(run.samples)
    for number, (made, entry) in enumerate(zip(run.samples, content["samples"], strict=True)):
        routing, sample = made.routing, log.sample(number)
        own = slice(offsets[number], offsets[number + 1])
        assert entry["sample_id"] == made.sample_id and entry["loss"] == made.loss
        assert entry["text_preview"] == made.text[:100]
        assert entry["num_tokens"] == own.stop - own.start
        lengths = run.lengths[number]
        assert entry.get("sequence_lengths") == (list(lengths) if len(lengths) > 1 else None)
        assert torch.equal(tensors["router_logits"][own], routing.router_logits)
        assert np.array_equal(sample.token_ids, made.token_ids)
        np.testing.assert_array_equal(sample.token_losses, made.token_losses)
        assert np.array_equal(sample.expert_counts, routing.counts)
        for layer, logged in enumerate(entry["layers"]):
            logits = routing.router_logits[:, layer]
            counts = routing.counts[:, layer].tolist()
            experts = [row[:n] for row, n in zip(routing.experts[:, layer].tolist(), counts, strict=True)]
            weights = [row[:n] for row, n in zip(routing.weights[:, layer].tolist(), counts, strict=True)]
            # The reader gives what the run used, to the bit.
            np.testing.assert_array_equal(sample.router_logits(layer), logits.float())
            assert [row.tolist() for row in sample.selected_experts(layer)] == experts
            applied = sample.expert_weights(layer)
            assert [applied[t][row].tolist() for t, row in enumerate(experts)] == weights
            assert ((applied > 0) == sample.selected(layer)).all()
            # And so does the JSON.
            assert logged["layer"] == layer
            assert logged["router_logits_shape"] == list(logits.shape)
            assert logged["selected_experts"] == experts
            assert logged["expert_counts"] == counts
            np.testing.assert_array_equal(
                np.float32(logged["expert_weights"]), np.float32(list(itertools.chain(*weights)))
            )
            np.testing.assert_array_equal(np.float32(logged["router_logits_sample"]), logits[:5].float())
            p_values = run.strategy.p_values(logits, layer)
            if name == "topk":
                assert logged["p_values_sample"] is None and sample.p_values(layer) is None
            else:
                np.testing.assert_array_equal(sample.p_values(layer), p_values)
                np.testing.assert_array_equal(logged["p_values_sample"], p_values[:5])
            stats = logged["layer_stats"]
            assert stats["avg_experts"] == pytest.approx(np.mean(counts))
            assert stats["std_experts"] == pytest.approx(np.std(counts))
            ends = (run.strategy.max_experts, run.strategy.min_experts)
            hits = [None, None] if name == "topk" else [counts.count(end) for end in ends]
            assert [stats["ceiling_hits"], stats["floor_hits"]] == hits

    # The aggregate is that of all tokens.
    counts = tensors["expert_counts"].numpy().astype(int)
    aggregate = content["aggregate_stats"]
    assert aggregate["num_tokens"] == 52
    np.testing.assert_allclose(aggregate["avg_experts"], counts.mean(0))
    np.testing.assert_allclose(aggregate["std_experts"], counts.std(0), atol=1e-12)
    selected = np.unpackbits(
        tensors["selected_experts"].numpy(), axis=-1, count=run.num_experts, bitorder="little"
    )
    assert np.array_equal(selected.sum(-1), counts)
    assert aggregate["expert_usage"] == selected.sum(0).tolist()
    assert aggregate["expert_count_histogram"] == [
        np.bincount(counts[:, layer], minlength=run.num_experts + 1).tolist() for layer in range(LAYERS)
    ]
    # The second pass of the first samples.
    for position, key in enumerate(("greedy_tokens", "second_pass_greedy_tokens")):
        made = np.concatenate([one.greedy[position] for one in run.samples[:2]])
        assert np.array_equal(tensors[key], made)
    flipped = [pack_selection(one.routing.experts.flip(0), run.num_experts) for one in run.samples[:2]]
    assert np.array_equal(tensors["second_pass_selected_experts"], np.concatenate(flipped))


@pytest.mark.parametrize("num_experts", [2, 7, 8, 9, 255, 256, 300])
def test_packed_selection_and_counts_for_any_number_of_experts(tmp_path, num_experts):
    strategy = topk.Strategy(num_experts, ExpertWeighting(1.0, False))
    run = make_run(strategy, num_experts=num_experts, sequence_lengths=[(4,)])
    _, path = write(tmp_path, run, second_pass_samples=0)
    sample = RoutingLog(path).sample(0)
    assert (sample.expert_counts == num_experts).all()
    assert sample.selected(1).shape == (4, num_experts) and sample.selected(1).all()
    one = RoutingLog(
        write(tmp_path, make_run(topk.Strategy(1, ExpertWeighting(1.0, False)), num_experts=num_experts))[1]
    )
    assert np.array_equal(one.sample(3).selected(2).argmax(1), one.sample(3).router_logits(2).argmax(1))


def test_files_do_not_depend_on_the_order_of_writing(tmp_path):
    run = make_run(STRATEGIES["bh"]())
    contents = set()
    for order in itertools.permutations(range(4)):
        paths = write(tmp_path, run, order)
        contents.add(tuple(path.read_bytes() for path in paths))
    assert len(contents) == 1


@pytest.mark.parametrize("fail_after", [0, 2])
def test_an_exception_leaves_no_file(tmp_path, fail_after):
    run = make_run(STRATEGIES["bh"]())
    with pytest.raises(ArithmeticError, match="in the middle"):
        write(tmp_path, run, fail_after=fail_after)
    assert list(tmp_path.iterdir()) == []


def test_an_exception_keeps_the_files_of_the_run_before(tmp_path):
    run = make_run(STRATEGIES["bh"]())
    before = [path.read_bytes() for path in write(tmp_path, run)]
    with pytest.raises(ArithmeticError):
        write(tmp_path, run, fail_after=1)
    assert [path.read_bytes() for path in sorted(tmp_path.iterdir())] == before


def test_a_missing_sample_leaves_no_file(tmp_path):
    run = make_run(STRATEGIES["bh"]())
    with pytest.raises(RuntimeError, match="1 samples were never written"):
        write(tmp_path, run, order=[0, 1, 3])
    assert list(tmp_path.iterdir()) == []


def test_nothing_has_its_name_before_the_end(tmp_path):
    run = make_run(STRATEGIES["topk"]())
    names = set()

    class Watched(list):
        def __iter__(self):
            for item in super().__iter__():
                names.update(path.name for path in tmp_path.iterdir())
                yield item

    paths = write(tmp_path, run, order=Watched(range(4)))
    assert names and not names & {path.name for path in paths}
    assert sorted(tmp_path.iterdir()) == sorted(paths)


def test_memory_does_not_grow_with_the_number_of_samples(tmp_path):
    peaks = []
    for repeats in (5, 60):
        run = make_run(STRATEGIES["bh"](), sequence_lengths=[(40,)] * 4)
        run.lengths, run.samples = run.lengths * repeats, run.samples * repeats
        tracemalloc.start()
        json_path, _ = write(tmp_path, run)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert len(orjson.loads(json_path.read_bytes())["samples"]) == 4 * repeats
    assert json_path.stat().st_size > 4 * peaks[1]  # holding the entries would show
    assert peaks[1] < 1.5 * peaks[0] + 100_000


def test_the_reader_finds_the_null_distribution_of_the_study(tmp_path):
    run = make_run(STRATEGIES["bh"]())
    (tmp_path / "logs").mkdir()
    _, path = write(tmp_path / "logs", run)
    normal_null_distribution(LAYERS).save(tmp_path / "calibration" / "null_distribution.safetensors")
    logits = run.samples[1].routing.router_logits[:, 2]
    np.testing.assert_array_equal(
        RoutingLog(path).sample(1).p_values(2), run.strategy.p_values(logits, 2).numpy()
    )


def test_sequences_and_texts_of_samples(tmp_path):
    run = make_run(STRATEGIES["bh"]())
    with RoutingLog(write(tmp_path / "logs", run)[1]) as log:
        assert [tuple(sample.sequence_lengths) for sample in log] == run.lengths
        with pytest.raises(InputError, match=r"datasets/lambada\.json cannot be read"):
            _ = log.sample(0).text
    for number in (3, 4):
        texts = [{"text": one.text} for one in run.samples[:number]]
        write_json(tmp_path / "datasets/lambada.json", {"samples": texts})
        with RoutingLog(tmp_path / "logs/run_internal_routing.json") as log:
            if number == 4:
                assert [sample.text for sample in log] == [one.text for one in run.samples]
                continue
            with pytest.raises(
                InputError, match=r"holds 3 samples, but .*run_internal.* has 4; they are of two"
            ):
                _ = log.sample(0).text


def test_the_reader_refuses_samples_that_are_not_there(tmp_path):
    log = RoutingLog(write(tmp_path, make_run(STRATEGIES["topk"]()))[1])
    for index in (-1, 4):
        with pytest.raises(IndexError, match=f"has 4 samples, asked for number {index}"):
            log.sample(index)


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_entries_hold_any_selection(data):
    """Counts from 0 to all slots, several samples at once: the text says what plain lists say."""
    num_experts = data.draw(st.sampled_from([2, 9, 11, 120]))
    slots = data.draw(st.integers(1, min(num_experts, 12)))
    lengths = data.draw(st.lists(st.integers(1, 7), min_size=1, max_size=4))
    total = sum(lengths)
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    lowest = data.draw(st.sampled_from([0, 1, slots]))
    counts = rng.integers(lowest, slots + 1, (total, 2)).astype(np.int16)
    experts = rng.permuted(np.tile(np.arange(num_experts), (total, 2, 1)), axis=-1)[..., :slots]
    experts = np.where(np.arange(slots) < counts[..., None], experts, num_experts).astype(np.int16)
    weights = rng.random(experts.shape).astype(np.float32)
    samples = [LoggedSample(f"s{number}", "t", None, (length,)) for number, length in enumerate(lengths)]
    shown = len(tokens_of([sum(one.lengths) for one in samples], range(len(samples)), SAMPLE_TOKENS))
    routing = LoggedRouting(experts, weights, counts, np.zeros((shown, 2, num_experts), np.float32), None)
    entries = [json.loads(entry) for entry in format_samples(samples, routing, lowest, slots)]
    start = 0
    for length, entry in zip(lengths, entries, strict=True):
        for layer, logged in enumerate(entry["layers"]):
            own = counts[start : start + length, layer].tolist()
            rows = experts[start : start + length, layer].tolist()
            assert logged["selected_experts"] == [row[:n] for row, n in zip(rows, own, strict=True)]
            used = weights[start : start + length, layer][np.arange(slots) < np.array(own)[:, None]]
            assert np.array_equal(np.float32(logged["expert_weights"]), used)
            assert logged["expert_counts"] == own
            assert logged["layer_stats"]["avg_experts"] == pytest.approx(np.mean(own))
            assert logged["layer_stats"]["std_experts"] == pytest.approx(np.std(own), abs=1e-12)
            if len(set(own)) == 1:
                assert logged["layer_stats"]["std_experts"] == 0
        start += length


# Logs that keep everything of the first samples only


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("kept", [(0, 0), (1, 2), (3, 1), (2, 4), (4, 3)])
def test_a_log_of_the_first_samples_holds_what_the_whole_one_does(tmp_path, name, dtype, kept):
    run = make_run(STRATEGIES[name](), dtype)
    whole_json, whole_tensors = write(tmp_path / "whole", run)
    json_samples, router_logits = kept
    head = {"json_samples": json_samples, "router_logits": router_logits}
    json_path, tensors_path = write(tmp_path / "part", run, [2, 0, 3, 1], kept=head, batch=3)
    content, whole = (orjson.loads(path.read_bytes()) for path in (json_path, whole_json))
    validator().validate(content)
    assert content == whole | {"routing_log": head, "samples": whole["samples"][:json_samples]}
    with safe_open(tensors_path, framework="pt") as part, safe_open(whole_tensors, framework="pt") as full:
        for key in set(full.keys()) - {"router_logits"}:
            assert part.get_tensor(key).equal(full.get_tensor(key)) or key == "token_losses"
        logits = full.get_tensor("router_logits")
        tokens = [0, 7, 21, 22, 52][router_logits]
        assert part.get_tensor("router_logits").equal(logits[:tokens])
        if router_logits < 4:
            native = np.packbits(
                [[row.argsort(stable=True, descending=True).argsort() < 4 for row in one] for one in logits],
                axis=-1, bitorder="little",
            )  # fmt: skip
            assert np.array_equal(part.get_tensor("native_experts"), native)
    null = normal_null_distribution(LAYERS)
    with RoutingLog(tensors_path, null) as part, RoutingLog(whole_tensors, null) as full:
        for one, other in zip(part, full, strict=True):
            np.testing.assert_array_equal(one.token_losses, other.token_losses)
            for layer in range(LAYERS):
                for row, expected in zip(
                    one.selected_experts(layer), other.selected_experts(layer), strict=True
                ):
                    assert row.tolist() == expected.tolist()
                assert np.array_equal(one.expert_weights(layer), other.expert_weights(layer))
                assert np.array_equal(one.selected(layer), other.selected(layer))
            if one.index < router_logits:
                assert np.array_equal(one.router_logits(1), other.router_logits(1))
                assert np.array_equal(one.p_values(1), other.p_values(1))
            else:
                sentence = rf"holds the router logits of the first {router_logits} of its 4 samples only, by "
                with pytest.raises(InputError, match=sentence):
                    one.p_values(1) if part.has_p_values else one.router_logits(1)
            if one.index < json_samples:
                assert (one.sample_id, one.loss) == (other.sample_id, other.loss)
            else:
                sentence = rf"\.json holds the ids, texts and losses of the first {json_samples} of its 4 "
                with pytest.raises(InputError, match=sentence):
                    _ = one.loss


def test_a_log_of_the_first_samples_is_the_same_however_it_is_written(tmp_path, workers):
    run, kept = make_run(STRATEGIES["bh"]()), {"json_samples": 2, "router_logits": 1}
    contents = {
        tuple(path.read_bytes() for path in write(tmp_path, run, order, workers=pool, kept=kept, batch=batch))
        for order in itertools.permutations(range(4))
        for batch in (1, 3, 4)
        for pool in (None, workers)
    }
    assert len(contents) == 1


@pytest.mark.parametrize("name", STRATEGIES)
def test_pairs_stand_in_the_order_of_samples_however_they_come(tmp_path, monkeypatch, workers, name):
    run = make_run(STRATEGIES[name](), torch.bfloat16)
    kept = {"json_samples": 4, "router_logits": 0}
    before = write(tmp_path, run, kept=kept)[1].read_bytes()
    for at_once, order, pool in ((1, [3, 0, 2, 1], None), (3, [1, 3, 2, 0], workers)):
        monkeypatch.setattr("adaptive_routing.routing_log.writer._SAMPLES_AT_ONCE", at_once)
        assert write(tmp_path, run, order, kept=kept, workers=pool)[1].read_bytes() == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("lengths", [[(3,), (2, 2)], [(1,)], [(5,), (6,), (1, 1)]])
def test_tensors_behind_bytes_are_aligned(tmp_path, dtype, lengths):
    """As torch needs them that maps a file into memory."""
    run = make_run(STRATEGIES["bh"](), dtype, sequence_lengths=lengths)
    kept = {"json_samples": 0, "router_logits": 0}
    _, path = write(tmp_path, run, second_pass_samples=0, kept=kept)
    length = int.from_bytes(path.read_bytes()[:8], "little")
    header = json.loads(path.read_bytes()[8 : 8 + length])
    assert length % 8 == 0 and list(header)[-2:] == ["pair_weights", "pair_experts"]
    assert header["pair_weights"]["data_offsets"][0] % 8 == 0 and header["padding"]["shape"][0] < 8
    with safe_open(path, "torch") as file:
        weights = file.get_tensor("pair_weights")
        assert len(weights) == len(file.get_tensor("pair_experts")) == file.get_tensor("expert_counts").sum()
    assert weights.dtype == dtype


# Compressed JSON


@pytest.fixture
def small_frames(monkeypatch):
    """Many frames in a short text."""
    monkeypatch.setattr("adaptive_routing.routing_log.json_file._FRAME_BYTES", 1000)


@pytest.mark.parametrize("kept", [None, {"json_samples": 3, "router_logits": 1}])
def test_a_compressed_log_holds_what_a_plain_one_does(tmp_path, workers, small_frames, kept):
    run = make_run(STRATEGIES["bh"]())
    plain, tensors = write(tmp_path / "plain", run, kept=kept)
    for number, (order, batch) in enumerate([([3, 1, 0, 2], 2), (None, 1)]):
        path, _ = write(
            tmp_path / f"{number}", run, order, kept=kept, workers=workers, ending=".zst", batch=batch
        )
        assert pyzstd.decompress(path.read_bytes()) == plain.read_bytes()  # as any program reads it
        assert not path.with_suffix("").exists()
        with RoutingLog(tensors) as one:
            for given in (path, path.with_name("run_internal_routing.safetensors")):
                with RoutingLog(given) as other:
                    for i in (2, 0, 1):
                        heads = [
                            (log.sample(i).sample_id, log.sample(i).text_preview) for log in (one, other)
                        ]
                        assert heads[0] == heads[1] and one.sample(i).loss == other.sample(i).loss
                    assert np.array_equal(one.sample(3).expert_counts, other.sample(3).expert_counts)


def test_one_form_of_the_json_takes_the_place_of_the_other(tmp_path):
    run = make_run(STRATEGIES["topk"]())
    plain, tensors = write(tmp_path, run)
    compressed = plain.with_name(f"{plain.name}.zst")
    for ending, there, gone in ((".zst", compressed, plain), ("", plain, compressed)):
        with pytest.raises(ArithmeticError):
            write(tmp_path, run, fail_after=1, ending=ending)
        assert gone.exists() and not there.exists()
        write(tmp_path, run, ending=ending)
        assert there.exists() and not gone.exists()
        with RoutingLog(tensors) as log:
            assert log.sample(1).sample_id == "lambada_1"


def test_a_compressed_json_that_is_cut_or_changed_is_refused(tmp_path, small_frames):
    path, _ = write(tmp_path, make_run(STRATEGIES["bh"]()), ending=".zst")
    whole = path.read_bytes()
    middle = len(whole) // 2
    for damaged in (whole[:middle], b"", whole[:middle] + bytes(200) + whole[middle + 200 :]):
        path.write_bytes(damaged)
        with (
            pytest.raises(InputError, match=r"run_internal_routing\.json\.zst cannot be read .*; delete it"),
            RoutingLog(path) as log,
        ):
            print([sample.loss for sample in log])


@pytest.mark.parametrize("counts", [(3, 3, 3), (1, 3, 2), (0, 0, 0)])
def test_slots_that_no_token_uses_are_not_handed_on_and_change_no_text(counts):
    counts = torch.tensor(counts, dtype=torch.int16)[:, None].expand(-1, LAYERS)
    used = torch.arange(12) < counts[..., None]
    experts = torch.where(used, torch.arange(12), 16).to(torch.int16)
    logits, weights = torch.zeros(3, LAYERS, 16), torch.rand(3, LAYERS, 12) * used
    routing = BatchRouting(logits, experts, weights, counts, pack_selection(experts, 16), (3,))
    samples = [LoggedSample("s", "t", None, (3,))]
    logged = logged_routing(samples, routing, STRATEGIES["topk"]())
    assert logged.experts.shape[-1] == logged.weights.shape[-1] == max(1, counts.max())
    whole = LoggedRouting(experts.numpy(), weights.numpy(), counts.numpy(), logged.first_logits, None)
    assert list(format_samples(samples, logged, 0, 12)) == list(format_samples(samples, whole, 0, 12))


# Workers

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT / "workflow_scripts")}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", STRATEGIES)
def test_workers_write_what_the_process_itself_writes(tmp_path, workers, name, dtype):
    lengths = [(2500,), (3, 5, 2, 4), (1,), (3000, 10), (30,)]  # more than a portion
    run = make_run(STRATEGIES[name](), dtype, sequence_lengths=lengths)
    own = [path.read_bytes() for path in write(tmp_path / "own", run)]
    assert [path.read_bytes() for path in write(tmp_path / "workers", run, workers=workers)] == own


def test_portions_hold_every_sample_once():
    samples = [
        LoggedSample(str(number), "", None, (length,)) for number, length in enumerate([5000, 1, 4095, 9])
    ]
    portions = list(_portions(samples))
    assert portions == [
        (slice(0, 1), slice(0, 5000)), (slice(1, 3), slice(5000, 9096)), (slice(3, 4), slice(9096, 9105)),
    ]  # fmt: skip
    assert list(_portions(samples[:1])) == portions[:1]


@pytest.mark.parametrize("count", [0, 2])
def test_open_files_do_not_grow_with_the_number_of_samples(tmp_path, workers, count):
    run = make_run(STRATEGIES["bh"](), sequence_lengths=[(2,)] * 150)
    opened = set()

    class Watched(list):
        def __iter__(self):
            for item in super().__iter__():
                opened.add(psutil.Process().num_fds())
                yield item

    write(tmp_path, run, order=Watched(range(150)), workers=workers if count else None)
    assert max(opened) - min(opened) < 10


def test_a_fault_in_a_worker_is_told_and_leaves_no_file(tmp_path, workers):
    run = make_run(STRATEGIES["bh"]())
    run.samples[1].sample_id = "\ud800"  # half a character, which no JSON can hold
    with pytest.raises(RuntimeError, match=r"a log worker failed:\n(.|\n)*surrogates"):
        write(tmp_path, run, workers=workers)
    assert list(tmp_path.iterdir()) == []
    run.samples[1].sample_id = "whole"
    write(tmp_path, run, workers=workers)  # it goes on working


def test_a_worker_that_dies_is_told_and_leaves_no_file(tmp_path):
    run = make_run(STRATEGIES["bh"]())
    with LogWorkers(1) as pool:
        (worker,) = psutil.Process().children()[-1:]
        worker.kill()
        with pytest.raises(RuntimeError, match=r"a log worker \(process \d+\) ended by SIGKILL"):
            write(tmp_path, run, workers=pool)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_workers_end_with_their_process(end):
    code = (
        "import time\nfrom adaptive_routing.routing_log.workers import LogWorkers\n"
        "pool = LogWorkers(3)\nprint('ready', flush=True)\ntime.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], env=ENVIRONMENT, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"ready\n"
        children = psutil.Process(process.pid).children()
        assert len(children) == 3
        process.send_signal(end)
        assert psutil.wait_procs(children, timeout=20)[1] == []


def test_workers_import_nothing_heavy():
    code = "import sys, adaptive_routing.routing_log.workers\nprint(*sys.modules)"
    command = [sys.executable, "-c", code]
    output = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=True)
    assert not {"torch", "transformers", "pandas", "scipy", "datasets"} & set(output.stdout.split())


def test_text_that_is_shorter_than_noted_is_an_error(tmp_path):
    """A file that somebody cut, or a file system that copies nothing, must not hang the run."""
    with open(tmp_path / "source", "w+b") as source, open(tmp_path / "target", "wb") as target:
        source.write(b"some text")
        with pytest.raises(OSError, match="ends 11 bytes early"):
            _copy(source, target, 0, 20)
    assert (tmp_path / "target").read_bytes() == b"some text"


def test_the_summary_beside_a_log_opens_it_and_another_file_says_which_does(tmp_path):
    run = make_run(STRATEGIES["bh"]())
    write(tmp_path, run)
    path = tmp_path / "run_internal_routing.json"
    summary = path.with_name(path.name.replace("_internal_routing", ""))
    summary.write_text("{}")
    with RoutingLog(summary) as log, RoutingLog(path) as expected:
        assert log.path == expected.path and len(log) == len(run.samples)
    other = tmp_path / "metrics.json"
    other.write_text("{}")
    with pytest.raises(InputError, match=r"metrics\.json is no routing log.*_internal_routing\.json"):
        RoutingLog(other)
