"""What sequences have in common is read, logged and counted once, and nothing else changes by it."""

import json
import random
from dataclasses import replace

import jsonschema
import numpy as np
import pytest
import torch
from adaptive_routing.analysis.metrics import compute_metrics
from adaptive_routing.analysis.routing_summary import summarize_routing
from adaptive_routing.analysis.where import token_differences
from adaptive_routing.data.samples import (
    PreparedSample,
    prepare_samples,
    prepared_to_json,
    read_prepared,
)
from adaptive_routing.data.shared import share_beginnings
from adaptive_routing.data.tasks import Request, Sample
from adaptive_routing.data.tokens import EncodedSequence
from adaptive_routing.evaluation import arrangement
from adaptive_routing.evaluation.arrangement import Arranger
from adaptive_routing.evaluation.batches import make_batches
from adaptive_routing.evaluation.experiment import ExperimentFiles, run_experiment
from adaptive_routing.evaluation.scoring import score_alone, score_samples
from adaptive_routing.model.packing import Packing, forward_packed, run_unpacked
from adaptive_routing.model.patching import RouterPatcher
from adaptive_routing.model.routers import find_routers, native_top_k
from adaptive_routing.routing import bh, make_control, make_strategy, topk
from adaptive_routing.routing_log.reader import RoutingLog
from adaptive_routing.routing_log.sequences import LoggedSequences
from adaptive_routing.settings.configurations import Configuration, grid
from adaptive_routing.system.json_files import read_json, write_json
from adaptive_routing.system.tensor_files import TensorFile
from conftest import ROOT, VOCABULARY, normal_null_distribution, tiny_olmoe
from harness import REAL_DATA, rows_of
from model_families import tiny_model
from rounding import ROUNDING, undecided
from test_bad_inputs import ShortOfMemory
from test_batch_independence import reached
from test_packing import MODELS

CPU = torch.device("cpu")
CONFIGURATIONS = {
    one.name: one
    for one in grid(
        {
            "topk": {"k": [8]},
            "bh": {"max_k": [16], "alpha": [0.5]},
            "pooled": {"max_k": [8], "budget": [3]},
        }
    )
}
NAMES = ("8experts_topk_baseline", "16experts_bh_a050")
ROUTING = {"min_k": 1, "temperature": 1.0, "weights": "native"}
FILES = {
    "embedded": ROOT / "resources/datasets/hellaswag.jsonl",
    "real": REAL_DATA / "hellaswag_validation.jsonl",
}


def sequence(context, ending):
    token_ids = [*context, *ending]
    return EncodedSequence(token_ids, len(context), len(token_ids), False)


def sample(number, sequences, gold=None):
    requests = tuple(Request("question", " answer") for _ in sequences)
    attributes = {"cluster": number}
    return PreparedSample(f"hellaswag_{number}", Sample("question", requests, gold, attributes), sequences)


def few_shot(single_tokens=False, samples=9, examples=70, vocabulary=VOCABULARY):
    """Questions after the same examples, of which two lie between others; choices of 1 to 4 tokens."""
    rng = random.Random(0)

    def draw(number):
        return [rng.randrange(3, vocabulary) for _ in range(number)]

    beginnings = [draw(examples), draw(examples + 9)]
    made = []
    for number in range(samples):
        context = beginnings[number % 4 == 2] + draw(rng.randrange(3, 12))
        lengths = [1] * 4 if single_tokens else [rng.randrange(1, 5) for _ in range(4)]
        made.append(sample(number, tuple(sequence(context, draw(length)) for length in lengths), number % 4))
    return made


def mixed(vocabulary=VOCABULARY):
    """Samples with and without anything in common, in sequences of all kinds."""
    rng = random.Random(1)

    def draw(number):
        return [rng.randrange(3, vocabulary) for _ in range(number)]

    context, *others = (draw(length) for length in (20, 12, 12, 30))
    apart = (sequence(others[0], draw(3)), sequence(others[1], draw(2)))  # as in WinoGrande
    same = tuple(sequence(context, draw(length)) for length in (4, 1, 6, 2))
    cut = tuple(EncodedSequence([*others[2], *draw(3), rng.randrange(3, 9)], 30, 33, True) for _ in range(3))
    alone = (sequence(draw(5), draw(1)),)
    return [sample(n, one, 0) for n, one in enumerate((alone, same, apart, cut, same[:1], alone))]


@pytest.mark.parametrize("lengths", [(9, 4, 1, 6, 3), (30, 1, 2, 3, 17)])
@pytest.mark.parametrize("name", MODELS)
def test_what_continues_a_beginning_is_computed_as_a_whole_sequence(name, lengths):
    """1 continues 0, 2 continues 1 and so 0, 3 stands alone, and 4 continues a part of it."""
    generator = torch.Generator().manual_seed(0)
    model, token_ids = MODELS[name](), torch.randint(0, VOCABULARY, (sum(lengths),), generator=generator)
    own = token_ids.split(lengths)
    beginnings = {1: (0, 7), 2: (1, 7 + lengths[1]), 4: (3, 2)}
    whole = [own[0], torch.cat([own[0][:7], own[1]])]
    whole += [torch.cat([whole[1], own[2]]), own[3], torch.cat([own[3][:2], own[4]])]
    with torch.inference_mode():
        packed = forward_packed(model, token_ids, Packing.of(lengths, CPU, beginnings))
        alone = [model.base_model(one[None], use_cache=False).last_hidden_state[0] for one in whole]
    expected = torch.cat([one[-length:] for one, length in zip(alone, lengths, strict=True)])
    torch.testing.assert_close(packed, expected, rtol=1e-4, atol=1e-4)


def test_which_tokens_are_shared():
    alone, same, apart, cut, again, _ = share_beginnings(mixed())
    assert [one.shared_tokens for one in same.sequences] == [0, 20, 20, 20]
    assert [one.num_own_tokens for one in same.sequences] == [24, 1, 6, 2]
    assert [one.shared_tokens for one in cut.sequences] == [0, 30, 30]
    assert [one.num_own_tokens for one in cut.sequences] == [33, 3, 3]
    for one in (alone, apart, again):  # too few tokens are the same, or those of another sample are too few
        assert {sequence.shared_tokens for sequence in one.sequences} == {0} and one.shared_with is None


def test_questions_share_their_examples_with_the_first_that_has_them():
    prepared = few_shot()
    shared = share_beginnings(prepared)
    assert [one.shared_with for one in shared] == [None, 0, None, 0, 0, 0, 2, 0, 0]
    for before, one in zip(prepared, shared, strict=True):
        base, *choices = one.sequences
        examples = 0 if one.shared_with is None else 70 + 9 * (one.shared_with == 2)
        assert examples <= base.shared_tokens < base.num_context_tokens
        assert {choice.shared_tokens for choice in choices} == {base.num_context_tokens}
        assert one.num_inputs == base.num_inputs + sum(choice.num_own_tokens for choice in choices)
        assert [s.token_ids for s in one.sequences] == [s.token_ids for s in before.sequences]


def test_the_same_question_twice_has_tokens_of_its_own_each_time():
    one = few_shot(samples=1)[0]
    first, second = share_beginnings([one, one])
    assert second.shared_with == 0
    assert second.sequences[0].shared_tokens == one.sequences[0].num_context_tokens - 1
    assert [choice.num_own_tokens for choice in second.sequences[1:]] == [
        choice.num_own_tokens for choice in first.sequences[1:]
    ]


@pytest.mark.parametrize("gold", [2, None])
def test_single_tokens_after_one_context_are_one_sequence(gold):
    one = few_shot(single_tokens=True, samples=1)[0]
    (shared,) = share_beginnings([replace(one, sample=replace(one.sample, gold=gold))])
    context, read = one.sequences[0].num_context_tokens, gold or 0
    assert [s.num_own_tokens for s in shared.sequences] == [
        context + 1 if place == read else 0 for place in range(4)
    ]
    assert shared.num_inputs == context + 1
    (short,) = share_beginnings([sample(0, tuple(sequence([5, 6, 7], [n]) for n in range(10, 14)), gold)])
    assert short.num_inputs == 4


def test_prepared_samples_survive_the_file(tmp_path):
    for prepared in (few_shot(), few_shot(single_tokens=True), mixed()):
        shared = share_beginnings(prepared)
        write_json(tmp_path / "prepared.json", prepared_to_json("hellaswag", shared, {}))
        assert read_prepared(tmp_path / "prepared.json")[1] == shared


def test_places_in_the_log():
    """Against the sequences' own tokens, put in their place one by one."""
    for prepared in (few_shot(), few_shot(single_tokens=True), mixed()):
        shared = share_beginnings(prepared)
        logged = LoggedSequences.of_samples(shared)
        all_sequences = [one for of_sample in shared for one in of_sample.sequences]
        token_ids = np.concatenate([s.token_ids[s.shared_tokens : s.num_inputs] for s in all_sequences])
        position, before = logged.positions(), logged.before()
        for number, one in enumerate(all_sequences):
            rows = logged.rows(number)
            assert token_ids[rows].tolist() == one.token_ids[: one.num_inputs]
            assert position[rows].tolist() == list(range(one.num_inputs))
            assert before[rows].tolist() == [-1, *rows[:-1]]


def of_study(name, null_distribution=None):
    return make_strategy(CONFIGURATIONS[name], ROUTING, null_distribution)


def passes(model, strategy, samples, batch_tokens=10_000):
    """Of each sample: scores, and of its own tokens losses, greedy tokens and `BatchRouting`."""
    results = [None] * len(samples)
    with RouterPatcher(model, strategy) as patcher:
        for batch in score_samples(model, patcher, samples, batch_tokens, len(samples), workers=1):
            stop = 0
            for one in batch.samples:
                own = slice(stop, stop := stop + sum(one.lengths))
                routing = batch.routing.tokens(own, one.lengths)
                results[one.index] = one.scores, batch.token_losses[own], one.greedy_tokens, routing
    return results


def assert_as_separately(strategy, samples, shared, separate_results, shared_results):
    """Scores, losses, greedy tokens and routing of all sequences' tokens; near ties may fall otherwise."""
    logged = LoggedSequences.of_samples(shared)
    _, losses, greedy, routing = zip(*shared_results, strict=True)
    losses, greedy = torch.cat(losses), torch.cat(greedy)
    experts, logits = (
        torch.cat([getattr(one, key) for one in routing]) for key in ("experts", "router_logits")
    )
    number, settled = 0, []
    for one, (own_scores, own_losses, own_greedy, own), (scores, *_) in zip(
        samples, separate_results, shared_results, strict=True
    ):
        lengths = [sequence.num_inputs for sequence in one.sequences]
        columns = (own_losses, own_greedy, own.experts, own.router_logits)
        parts = zip(*(column.split(lengths) for column in columns), strict=True)
        for sequence, own_score, score, part in zip(one.sequences, own_scores, scores, parts, strict=True):
            rows = logged.rows(number)
            number += 1
            # A single token after a context, which is one of several, is not read any more.
            own_losses, own_greedy, own_experts, own_logits = (column[: len(rows)] for column in part)
            kept = ~reached(undecided(strategy, own_logits), [len(rows)])
            settled.append(bool(kept.all()))
            assert torch.equal(experts[rows].sort(-1).values[kept], own_experts.sort(-1).values[kept])
            assert (logits[rows] - own_logits)[kept].abs().max() < ROUNDING
            if not settled[-1]:
                continue
            assert score.loss == pytest.approx(own_score.loss, abs=1e-5)
            assert score.is_greedy == own_score.is_greedy
            targets = slice(sequence.num_context_tokens, None)
            assert not losses[rows][targets].isnan().any()
            torch.testing.assert_close(losses[rows][targets], own_losses[targets], rtol=1e-6, atol=1e-5)
            assert torch.equal(greedy[rows], own_greedy)
    assert sum(settled) > len(settled) / 3


@pytest.mark.parametrize("source", FILES)
@pytest.mark.parametrize("name", NAMES)
def test_endings_are_computed_as_separately(embedded, name, source):
    if not FILES[source].exists():
        pytest.skip("the real rows are not here")
    samples = prepare_samples("hellaswag", rows_of(FILES[source]), embedded.tokenizer, 12, 64, 512)
    shared = share_beginnings(samples)
    assert sum(one.num_inputs for one in shared) < 0.7 * sum(one.num_inputs for one in samples)
    model, strategy = embedded.loaded.model, of_study(name, embedded.null_distribution)
    strategy = RouterPatcher(model, strategy).strategy
    separate, once = (passes(model, strategy, one) for one in (samples, shared))
    assert_as_separately(strategy, samples, shared, separate, once)


@pytest.mark.parametrize("made", [few_shot, lambda: few_shot(single_tokens=True), mixed])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("family", ["olmoe", "gpt_oss", "mixtral"])
def test_other_models_and_texts_are_computed_as_separately(family, name, made):
    """Grouped queries; a sliding window with sinks; another router."""
    model = tiny_olmoe(max_position_embeddings=128) if family == "olmoe" else tiny_model(family)
    routers = find_routers(model)
    null = normal_null_distribution(len(routers))
    strategy = {
        "8experts_topk_baseline": topk.Strategy(native_top_k(model)),
        "16experts_bh_a050": bh.Strategy(0.5, routers[0].num_experts - 1, null),
    }[name]
    strategy = RouterPatcher(model, strategy).strategy
    samples = made()
    shared = share_beginnings(samples)
    separate = passes(model, strategy, samples)
    for batch_tokens in (10_000, 200):
        assert_as_separately(
            strategy, samples, shared, separate, passes(model, strategy, shared, batch_tokens)
        )


def arranger_of(samples, model=None, strategy=None):
    model = model or tiny_olmoe()
    return Arranger(model, samples, RouterPatcher(model, strategy or of_study(NAMES[0])))


def test_a_beginning_is_read_once_in_a_batch():
    shared = share_beginnings(few_shot(samples=40))
    batches = make_batches(shared, 300)
    assert sorted(index for batch in batches for index in batch) == list(range(40))
    arranger = arranger_of(shared)
    read = [len(arranger.arrange(batch).token_ids) for batch in batches]
    assert max(read) <= 300 and sum(read) < sum(one.num_own_tokens for one in shared) + 79 * len(batches)
    every = arranger.arrange(range(40))
    assert len(every.token_ids) == len(every.logged) == sum(one.num_own_tokens for one in shared)


def test_the_next_configuration_reads_what_is_arranged_already(monkeypatch):
    """For one model and one data set; more than a bound is arranged each time."""
    model, shared = tiny_olmoe(), share_beginnings(few_shot(samples=10))
    first = arranger_of(shared, model)
    kept = first.inputs([2, 0]), first.inputs([1])
    again = arranger_of(shared, model, of_study("16experts_bh_a050"))
    assert (again.inputs([2, 0]), again.inputs([1])) == kept
    assert torch.equal(kept[0].token_ids, first.arrange([2, 0]).token_ids)
    separately = arranger_of(shared, model, of_study("8experts_pooled_b3"))
    assert len(separately.inputs([2, 0]).token_ids) > len(kept[0].token_ids)
    assert again.inputs([0, 2]) is not kept[0]
    other = share_beginnings(few_shot(samples=11))
    assert arranger_of(other, model).inputs([10]).arrangement.sequences == list(other[10].sequences)
    assert again.inputs([1]) is not kept[1]
    monkeypatch.setattr(arrangement, "_MOST_KEPT_TOKENS", 1)
    bounded = arranger_of(shared, tiny_olmoe())
    assert bounded.inputs([0]) is bounded.inputs([0]) and bounded.inputs([1]) is not bounded.inputs([1])


def test_memory_that_runs_out_makes_batches_smaller():
    """A batch's size is what it reads: half of what its samples read alone may be more than that."""
    model, shared = tiny_olmoe(max_position_embeddings=128), share_beginnings(few_shot(samples=20))
    strategy = of_study(NAMES[0])
    expected = passes(model, strategy, shared)
    with ShortOfMemory(model, most_tokens=180, watches=False) as device:
        found = passes(model, strategy, shared)
    assert device.failures and max(device.passes[-3:]) <= 180
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one[1], other[1], rtol=0, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("unpacked", [False, True])
def test_who_reads_each_sequence_by_itself_logs_the_same_tokens(unpacked):
    """A rule by whole sequences, and a model whose sequences run on their own."""
    model, shared = tiny_olmoe(max_position_embeddings=128), share_beginnings(few_shot())
    if unpacked:
        run_unpacked(model)
    strategy = of_study(NAMES[0] if unpacked else "8experts_pooled_b3")
    every = arranger_of(shared, model, strategy).arrange(range(len(shared)))
    assert len(every.token_ids) == sum(s.num_inputs for one in shared for s in one.sequences)
    assert not every.beginnings
    arranger = arranger_of(shared, model, strategy)
    batches = make_batches(shared, 800, separately=arranger.separately)
    assert max(len(arranger.arrange(batch).token_ids) for batch in batches) <= 800 and len(batches) < 9
    every = passes(model, strategy, shared)
    assert [one[3].lengths for one in every] == [
        tuple(s.num_own_tokens for s in one.sequences) for one in shared
    ]
    if unpacked:
        packed = passes(tiny_olmoe(max_position_embeddings=128), strategy, shared)
        for one, other in zip(every, packed, strict=True):
            torch.testing.assert_close(one[1], other[1], rtol=0, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("unpacked", [False, True])
@pytest.mark.parametrize("batch_tokens", [10_000, 150])
def test_a_shared_token_has_one_count_of_a_control(unpacked, batch_tokens):
    model, shared = tiny_olmoe(max_position_embeddings=128), share_beginnings(few_shot())
    if unpacked:
        run_unpacked(model)
    tokens = sum(one.num_own_tokens for one in shared)
    counts = np.random.default_rng(0).integers(1, 5, (tokens, model.config.num_hidden_layers))
    configuration = Configuration("c_shuffled", "control", 4, {"max_k": 4, "control": "shuffled"}, "c")
    results = passes(model, make_control(configuration, ROUTING, counts), shared, batch_tokens)
    assert np.array_equal(torch.cat([one[3].counts for one in results]).numpy(), counts)
    alone = arranger_of(shared, model)
    with RouterPatcher(model, make_control(configuration, ROUTING, counts)) as patcher:
        _, routing = score_alone(model, shared, 3, alone, patcher)
    assert torch.equal(routing.counts, results[3][3].counts)
    torch.testing.assert_close(routing.router_logits, results[3][3].router_logits, rtol=0, atol=1e-4)


def experiment(folder, embedded, name, prepared, dataset="hellaswag", control_of=None, **others):
    """Run one of the configurations, or its shuffled control: (summary, path of the tensors)."""
    folder.mkdir(exist_ok=True)
    files = ExperimentFiles(
        *(
            str(folder / f"{name}{end}")
            for end in (".json", "_r_internal_routing.json", "_r_internal_routing.safetensors")
        )
    )
    configuration, null = CONFIGURATIONS[name], embedded.null_distribution
    settings = {
        "configuration": configuration.parameters,
        "routing": ROUTING,
        "dataset": {"max_samples": len(prepared)},
        "second_pass_samples": 3,
        "null_distribution": null.metadata if configuration.strategy == "bh" else None,
    }
    strategy = of_study(name, null)
    summary = run_experiment(
        embedded.loaded, configuration, strategy, dataset, prepared, 400, 3, settings, files, **others
    )
    return summary, files


@pytest.mark.parametrize("routing_log", [None, {"json_samples": 4, "router_logits": 2}])
@pytest.mark.parametrize("single_tokens", [False, True])
def test_logs_say_what_is_shared_and_count_it_once(tmp_path, embedded, single_tokens, routing_log):
    samples = few_shot(single_tokens, vocabulary=2048)
    shared = share_beginnings(samples)
    summary, files = experiment(tmp_path, embedded, "16experts_bh_a050", shared, routing_log=routing_log)
    entries = read_json(files.internal_routing)
    schema = json.loads((ROOT / "schemas/internal_routing.schema.json").read_text())
    jsonschema.validators.validator_for(schema)(schema).validate(entries)
    own = [one.num_own_tokens for one in shared]
    assert [one["num_tokens"] for one in summary["samples"]] == own
    assert summary["summary"]["total_tokens"] == entries["aggregate_stats"]["num_tokens"] == sum(own)
    assert summary["summary"]["total_sequences"] == 4 * len(shared)
    assert summary["timings"]["single_sample"]["tokens"] == [one.num_inputs for one in shared[:3]]
    for one, entry in zip(shared, entries["samples"], strict=routing_log is None):
        assert entry["sequence_lengths"] == [s.num_own_tokens for s in one.sequences]
        assert entry["shared_tokens"] == [s.shared_tokens for s in one.sequences]
        other = None if one.shared_with is None else shared[one.shared_with].sample_id
        assert entry["shared_with"] == other
    log = RoutingLog(files.tensors, embedded.null_distribution)
    token_ids = log.tensors.read("token_ids")
    for one, logged in zip(shared, log, strict=True):
        assert logged.sequence_lengths == [s.num_own_tokens for s in one.sequences]
        assert logged.shared_tokens == [s.shared_tokens for s in one.sequences]
        assert logged.shared_with == one.shared_with
        assert [token_ids[rows].tolist() for rows in logged.sequence_rows] == [
            s.token_ids[: s.num_inputs] for s in one.sequences
        ]
        assert int(logged.expert_counts.sum()) == sum(int(logged.selected(n).sum()) for n in range(16))


def test_logs_of_samples_that_share_nothing_are_as_ever(tmp_path, embedded):
    alone = [sample(0, few_shot(vocabulary=2048)[0].sequences[:1], 0)]
    assert share_beginnings(alone) == alone
    _, files = experiment(tmp_path, embedded, NAMES[0], alone)
    assert "shared_tokens" not in read_json(files.internal_routing)["samples"][0]
    with TensorFile(files.tensors) as tensors:
        assert "shared_tokens" not in tensors and "sample_sequences" not in tensors


def test_what_is_made_of_logs(tmp_path, embedded):
    """Metrics, atlas and paired losses: a token that stands once still has its place in each sequence."""
    samples = prepare_samples("hellaswag", rows_of(FILES["embedded"]), embedded.tokenizer, 8, 64, 512)
    shared = share_beginnings(samples)
    made = {}
    for kind, prepared in (("separate", samples), ("shared", shared)):
        made[kind] = {name: experiment(tmp_path / kind, embedded, name, prepared) for name in NAMES}
    separate, once = (made[kind]["16experts_bh_a050"] for kind in ("separate", "shared"))
    for key, value in separate[0]["metrics"].items():
        assert once[0]["metrics"][key] == pytest.approx(value, abs=1e-5)
    opened = {kind: TensorFile(one[1].tensors) for kind, one in (("separate", separate), ("shared", once))}
    metrics = {
        kind: compute_metrics(one[0], opened[kind])["metrics"]
        for kind, one in (("separate", separate), ("shared", once))
    }
    counts = {kind: one.read("expert_counts") for kind, one in opened.items()}
    assert metrics["shared"]["avg_experts"] == pytest.approx(float(counts["shared"].mean()))
    assert metrics["shared"]["total_tokens"] == len(counts["shared"]) < len(counts["separate"])
    arrays = {
        kind: summarize_routing(opened[kind], one[0]["samples"])[0]
        for kind, one in (("separate", separate), ("shared", once))
    }
    # Every scored token is predicted by the same experts as before.
    for key in ("loss_tokens", "mean_loss_tokens"):
        assert np.array_equal(arrays["shared"][key], arrays["separate"][key])
    np.testing.assert_allclose(arrays["shared"]["loss_sums"], arrays["separate"]["loss_sums"], atol=1e-3)
    first = arrays["shared"]["position_tokens"][0]  # each context begins once
    assert first == len(samples) and arrays["separate"]["position_tokens"][0] == 4 * len(samples)
    found = {}
    for kind, one in opened.items():
        with TensorFile(made[kind][NAMES[0]][1].tensors) as baseline:
            found[kind] = token_differences(one, baseline, baseline)
    for key in ("differences", "position", "token_ids", "baseline_loss", "experts", "clusters"):
        np.testing.assert_allclose(getattr(found["shared"], key), getattr(found["separate"], key), atol=2e-5)
