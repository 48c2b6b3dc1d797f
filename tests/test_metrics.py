"""Each metric against a plain implementation with Python sets and loops, and against hand-computed values."""

import itertools
import math
import statistics as python_statistics
import subprocess
import sys
from collections import Counter

import jsonschema
import numpy as np
import pytest
import synthetic
from adaptive_routing.analysis import metrics
from adaptive_routing.analysis.metrics import (
    behaviour,
    constraint,
    cross_layer,
    distribution,
    efficiency,
    quality,
    quantities,
    selections,
    speed,
    stability,
)
from adaptive_routing.system.errors import InputError
from adaptive_routing.system.json_files import read_json, to_json
from adaptive_routing.system.tensor_files import TensorFile, bfloat16_to_float32, order_preserving_integers
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors import TensorSpec, serialize_file
from safetensors.numpy import save_file


@st.composite
def selection_masks(draw, copies=1):
    """Draw boolean masks (T, L, E), any of them empty sets too; E need not be a multiple of 8."""
    experts = st.integers(1, 19) | st.sampled_from([63, 64, 65, 128])
    shape = draw(st.tuples(st.integers(1, 6), st.integers(1, 4), experts))
    return [draw(hnp.arrays(bool, shape)) for _ in range(copies)]


def sets(mask):
    """List the selected sets of a mask (T, L, E), tokens outermost."""
    return [set(np.flatnonzero(row).tolist()) for row in mask.reshape(-1, mask.shape[-1])]


def naive_jaccard(a, b):
    return len(a & b) / len(a | b) if a | b else 1.0


# --- sets of experts ---


@given(selection_masks(copies=2))
def test_overlap_is_the_mean_jaccard_similarity_of_sets(masks):
    first, second = masks
    expected = python_statistics.fmean(map(naive_jaccard, sets(first), sets(second)))
    actual = stability.expert_overlap_score(synthetic.pack(first), synthetic.pack(second))
    assert actual == pytest.approx(expected)


@given(selection_masks())
def test_expert_usage_counts_selections(masks):
    (mask,) = masks
    usage = selections.expert_usage(synthetic.pack(mask), mask.shape[2])
    for layer in range(mask.shape[1]):
        used = Counter(itertools.chain.from_iterable(sets(mask[:, [layer]])))
        assert usage[layer].tolist() == [used[e] for e in range(mask.shape[2])]


def test_expert_usage_counts_beyond_a_byte():
    mask = np.ones((1000, 2, 3), dtype=bool)
    mask[::4, 1, 2] = False
    usage = selections.expert_usage(synthetic.pack(mask), 3)
    assert usage.tolist() == [[1000, 1000, 1000], [1000, 1000, 750]]


@given(st.data())
def test_native_overlap_takes_the_largest_logits_and_the_lower_index_of_equal_ones(data):
    (mask,) = data.draw(selection_masks())
    # Few distinct values: ties are common, as in bfloat16. The two zeros are one.
    values = st.sampled_from([-1.5, -0.0, 0.0, 0.25, 2.0])
    logits = data.draw(hnp.arrays(np.float32, mask.shape, elements=values))
    k = data.draw(st.integers(1, mask.shape[2]))
    natives = [
        set(sorted(range(mask.shape[2]), key=lambda e, row=row: (-row[e], e))[:k])
        for row in logits.reshape(-1, mask.shape[2])
    ]
    expected = list(map(naive_jaccard, sets(mask), natives))
    bfloat16 = (logits.view(np.uint32) >> 16).astype(np.uint16)
    for given_as in (logits, order_preserving_integers(logits), order_preserving_integers(bfloat16)):
        similarity = behaviour.native_similarity(given_as, synthetic.pack(mask), k)
        assert similarity.shape == mask.shape[:2]
        assert similarity.ravel().tolist() == expected


# --- counts ---

counts_arrays = hnp.arrays(
    np.uint8, st.tuples(st.integers(2, 8), st.integers(2, 4)), elements=st.integers(1, 9)
)


@given(counts_arrays)
def test_layer_consistency_is_the_mean_pearson_correlation_of_adjacent_layers(counts):
    columns = counts.T.tolist()
    score = cross_layer.layer_consistency_score(counts)
    if any(len(set(column)) == 1 for column in columns):
        assert score is None
    else:
        pairs = [python_statistics.correlation(a, b) for a, b in itertools.pairwise(columns)]
        assert score == pytest.approx(python_statistics.fmean(pairs), abs=1e-9)


@given(counts_arrays)
def test_layer_expert_variance_is_that_of_the_layer_means(counts):
    means = [python_statistics.fmean(column) for column in counts.T.tolist()]
    expected = python_statistics.pvariance(means)
    assert cross_layer.layer_expert_variance(counts) == pytest.approx(expected, abs=1e-9)


def test_one_layer_has_no_cross_layer_metrics():
    counts = np.array([[1], [2], [5]], dtype=np.uint8)
    assert cross_layer.layer_expert_variance(counts) is None
    assert cross_layer.layer_consistency_score(counts) is None


def test_counts_that_move_against_each_other_correlate_at_minus_one():
    counts = np.array([[1, 250], [2, 249], [3, 248]], dtype=np.uint8)  # uint8 products would wrap around
    assert cross_layer.layer_consistency_score(counts) == pytest.approx(-1)


@given(counts_arrays)
def test_entropy_range_and_hit_rates_of_counts(counts):
    flat = counts.reshape(-1).tolist()
    histogram = np.bincount(flat, minlength=10)
    shares = [n / len(flat) for n in Counter(flat).values()]
    entropy = -sum(p * math.log(p) for p in shares)
    assert behaviour.selection_entropy(histogram) == pytest.approx(entropy)
    assert behaviour.selection_entropy_normalized(histogram, 9) == pytest.approx(entropy / math.log(9))
    assert behaviour.adaptive_range(counts) == max(flat) - min(flat)
    assert constraint.ceiling_hit_rate(counts, 9) == pytest.approx(100 * flat.count(9) / len(flat))
    assert constraint.floor_hit_rate(counts, 1) == pytest.approx(100 * flat.count(1) / len(flat))


def test_entropy_of_equally_common_counts_is_the_logarithm_of_how_many():
    assert behaviour.selection_entropy([0, 5, 5, 5, 5]) == pytest.approx(math.log(4))
    assert behaviour.selection_entropy_normalized([0, 5, 5, 5, 5], 4) == pytest.approx(1)
    assert behaviour.selection_entropy([0, 0, 7, 0]) == 0
    assert behaviour.selection_entropy_normalized([0, 9], 1) is None
    assert behaviour.selection_entropy([3, 0, 0]) is None


# --- distribution ---


@given(hnp.arrays(np.int64, st.tuples(st.integers(1, 3), st.integers(1, 9)), elements=st.integers(0, 1000)))
def test_gini_is_half_the_relative_mean_absolute_difference(usage):
    ginis = []
    for row in usage.tolist():
        if sum(row):
            differences = sum(abs(a - b) for a in row for b in row)
            ginis.append(differences / (2 * len(row) * sum(row)))
    expected = pytest.approx(python_statistics.fmean(ginis), abs=1e-12) if ginis else None
    assert distribution.gini_coefficient(usage) == expected


def test_utilization_and_gini_by_hand():
    usage = np.array([[4, 4, 4, 4], [0, 0, 0, 9]])
    assert distribution.gini_coefficient(usage) == pytest.approx((0 + 3 / 4) / 2)
    assert distribution.expert_utilization(usage) == pytest.approx((1 + 1 / 4) / 2)


# --- quality, efficiency, speed, stability by hand ---


def test_quality():
    assert quality.avg_task_accuracy([0.5, 0.25]) == 0.375
    assert quality.avg_task_accuracy([]) is None


def test_flops_reduction_of_the_cost_model():
    # c(8) = 0.6·8/64 + 0.4 = 0.475 and c(4) = 0.4375
    assert efficiency.flops_reduction_pct(4, 8, 64) == pytest.approx(100 * 0.0375 / 0.475)
    assert efficiency.flops_reduction_pct(8, 8, 64) == 0
    assert efficiency.flops_reduction_pct(16, 8, 64) < 0
    assert efficiency.expert_activation_ratio(4, 16) == 0.25
    assert efficiency.reduction_vs_baseline(6, 8) == 25


OLMOE_SHAPES = {
    "hidden_size": 2048,
    "intermediate_size": 1024,
    "dense_intermediate_size": 1024,
    "shared_expert_intermediate_size": 0,
    "num_hidden_layers": 16,
    "num_experts": 64,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "head_dim": 128,
    "vocab_size": 50304,
    "num_moe_layers": 16,
}


def test_exact_flops_of_olmoe_are_twice_its_active_parameters_and_the_attention_scores():
    # OLMoE-1B-7B-0924 has 6,919,161,856 parameters. Experts that are not selected, the input embedding and
    # the norms (4 of 2048 in each layer and a last one) multiply nothing.
    parameters, idle = 6_919_161_856, 16 * 56 * 3 * 2048 * 1024
    embedding, norms = 50304 * 2048, 16 * 4 * 2048 + 2048
    scores = 16 * 2 * 2048 * (511 + 1) / 2
    expected = 2 * (parameters - idle - embedding - norms + scores)
    assert efficiency.flops_per_token(8, OLMOE_SHAPES, 511) == pytest.approx(expected)
    # Half of the selected experts: 4 × 3 × 2048 × 1024 in each of 16 layers.
    saved = 2 * 16 * 4 * 3 * 2048 * 1024
    actual = efficiency.flops_reduction_exact_pct(4, 8, OLMOE_SHAPES, 511)
    assert actual == pytest.approx(100 * saved / expected)


def test_layers_without_experts_count_as_one_dense_feed_forward():
    dense_first = OLMOE_SHAPES | {"num_moe_layers": 15}
    difference = efficiency.flops_per_token(8, OLMOE_SHAPES, 1) - efficiency.flops_per_token(
        8, dense_first, 1
    )
    assert difference == pytest.approx(2 * (2048 * 64 + 7 * 3 * 2048 * 1024))


def test_speed():
    assert speed.tokens_per_second(500, 0.25) == 2000
    # 10, 1 and 4 ms per token
    assert speed.latency_ms_per_token([0.1, 0.1, 0.2], [10, 100, 50]) == pytest.approx(4)
    assert speed.latency_ms_per_token([], []) is None


def test_stability():
    assert stability.output_determinism(np.array([1, 2, 3, 4]), np.array([1, 2, 3, 5])) == 75
    assert stability.output_determinism(np.array([]), np.array([])) is None
    assert (
        stability.expert_overlap_score(np.zeros((3, 2, 1), np.uint8), np.zeros((0, 2, 1), np.uint8)) is None
    )


# --- whole experiments ---


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    return synthetic.write_study(folder, max_ks=(4, 8), alphas=(0.3, 0.6), num_experts=13, num_layers=3)


def computed(study):
    for summary, tensors in zip(study.summaries, study.tensors, strict=True):
        with TensorFile(tensors) as opened:
            yield read_json(summary), metrics.compute_metrics(read_json(summary), opened)


def test_metrics_files_fit_their_schema_and_are_strict_json(study, request):
    published = read_json(request.config.rootpath / "schemas" / "metrics.schema.json")
    names = [metric.name for metric in metrics.ALL_METRICS]
    for _, result in computed(study):
        to_json(result)  # refuses NaN
        for schema in (published, metrics.metrics_schema()):
            jsonschema.validate(result, schema)
        assert list(result["metrics"]) == names
    assert len(metrics.METRICS) == 16


def test_what_an_experiment_cannot_have_is_null(study):
    for summary, result in computed(study):
        values = result["metrics"]
        topk, wikitext = summary["strategy"] == "topk", summary["dataset"] == "wikitext"
        assert (values["perplexity"] is None) == (not wikitext)
        assert (values["avg_task_accuracy"] is None) == wikitext
        assert (values["avg_task_accuracy_stderr"] is None) == wikitext
        assert (values["ceiling_hit_rate"] is None) == topk
        assert (values["floor_hit_rate"] is None) == topk
        assert (values["layer_consistency_score"] is None) == topk
        assert (None in result["per_layer"]["ceiling_hit_rate"]) == topk


def test_scores_and_their_errors_are_the_summary_s(study):
    names = {
        "wikitext": {name: name for name in ("perplexity", "token_perplexity")},
        "lambada": {"avg_task_accuracy": "lambada_accuracy", "target_perplexity": "lambada_perplexity"},
        "hellaswag": {"avg_task_accuracy": "hellaswag_accuracy", "accuracy_unnormalized": "hellaswag_acc"},
    }
    quality_names = {m.name for m in metrics.ALL_METRICS if m.category == "quality"}
    for summary, result in computed(study):
        own = names[summary["dataset"]]
        expected = {
            f"{name}{suffix}": summary["metrics"][f"{theirs}{suffix}"]
            for name, theirs in own.items()
            for suffix in ("", "_stderr")
        }
        for name in quality_names:
            assert result["metrics"][name] == pytest.approx(expected.get(name))


def test_whole_articles_have_perplexities_of_words_and_bytes(study):
    path, tensors = study.summaries[0], study.tensors[0]
    summary = read_json(path)
    scores = {"word_perplexity": 30.5, "byte_perplexity": 1.75, "bits_per_byte": 0.81}
    scores |= {f"{name}_stderr": value / 100 for name, value in scores.items()}
    summary["metrics"] |= scores
    with TensorFile(tensors) as opened:
        result = metrics.compute_metrics(summary, opened)
    assert scores.items() <= result["metrics"].items()
    jsonschema.validate(result, metrics.metrics_schema())


def test_native_top_k_changes_nothing(study):
    for summary, result in computed(study):
        if summary["config"] == study.baseline:
            values = result["metrics"]
            assert values["native_overlap"] == values["expert_activation_ratio"] == 1
            assert values["flops_reduction_pct"] == values["reduction_vs_baseline"] == 0
            assert values["flops_reduction_exact_pct"] == values["std_experts"] == 0


def test_totals_are_those_of_the_selection(study):
    for path, (summary, result) in zip(study.tensors, computed(study), strict=True):
        with TensorFile(path) as tensors:
            packed, logits = tensors.read("selected_experts"), tensors.read("router_logits")
        mask = np.unpackbits(packed, axis=-1, bitorder="little")[..., : summary["num_experts"]]
        counts = [len(chosen) for chosen in sets(mask)]
        values, per_layer = result["metrics"], result["per_layer"]
        assert values["avg_experts"] == pytest.approx(python_statistics.fmean(counts))
        assert values["std_experts"] == pytest.approx(python_statistics.pstdev(counts))
        assert (values["min_experts"], values["max_experts"]) == (min(counts), max(counts))
        assert per_layer["expert_usage"] == mask.sum(axis=0).tolist()
        histogram = Counter(counts)
        summed = np.sum(per_layer["expert_count_histogram"], axis=0).tolist()
        assert summed == [histogram[n] for n in range(summary["num_experts"] + 1)]
        assert np.mean(per_layer["avg_experts"]) == pytest.approx(values["avg_experts"])
        assert np.mean(per_layer["gini_coefficient"]) == pytest.approx(values["gini_coefficient"])
        natives = sets(synthetic.select(logits, "topk", summary["routing"]["native_top_k"], None))
        overlap = python_statistics.fmean(map(naive_jaccard, sets(mask), natives))
        assert values["native_overlap"] == pytest.approx(overlap)


def test_stability_and_speed_are_those_of_the_passes(study):
    for path, (summary, result) in zip(study.tensors, computed(study), strict=True):
        with TensorFile(path) as tensors:
            first, second = (tensors.read(f"{name}selected_experts") for name in ("", "second_pass_"))
            greedy, again = (tensors.read(f"{name}greedy_tokens") for name in ("", "second_pass_"))
        one, other = (
            sets(np.unpackbits(p[: len(second)], axis=-1, bitorder="little")) for p in (first, second)
        )
        values, timings = result["metrics"], summary["timings"]
        overlap = python_statistics.fmean(map(naive_jaccard, one, other))
        assert values["expert_overlap_score"] == pytest.approx(overlap)
        same = sum(a == b for a, b in zip(greedy.tolist(), again.tolist(), strict=True))
        assert values["output_determinism"] == pytest.approx(100 * same / len(greedy))
        single = timings["single_sample"]
        latencies = [1000 * s / n for s, n in zip(single["seconds"], single["tokens"], strict=True)]
        assert values["latency_ms_per_token"] == pytest.approx(python_statistics.median(latencies))
        per_second = summary["summary"]["total_tokens"] / timings["forward_seconds"]
        assert values["tokens_per_second"] == pytest.approx(per_second)


def test_reading_in_chunks_changes_nothing(study, monkeypatch):
    whole = [result for _, result in computed(study)]
    monkeypatch.setattr(quantities, "BLOCK_ELEMENTS", 3 * 3 * 13)  # 3 tokens at a time
    assert [result for _, result in computed(study)] == whole
    monkeypatch.setattr(quantities, "CHUNK_ELEMENTS", 7 * 3 * 13)  # averaged 7 at a time
    for before, (_, after) in zip(whole, computed(study), strict=True):
        overlap = before["metrics"].pop("native_overlap")
        assert after["metrics"].pop("native_overlap") == pytest.approx(overlap)
        assert before == after


def test_a_run_without_second_pass_has_no_stability_and_no_latency(tmp_path):
    study = synthetic.write_study(
        tmp_path, datasets=("wikitext",), max_ks=(2,), alphas=(0.5,), num_experts=8, second_pass_samples=0
    )
    for _, result in computed(study):
        values = result["metrics"]
        assert values["expert_overlap_score"] is None
        assert values["output_determinism"] is None
        assert values["latency_ms_per_token"] is None


def test_importing_the_metrics_imports_no_heavy_library(request):
    code = (
        "import sys, adaptive_routing.analysis.metrics, adaptive_routing.system.tensor_files;"
        "print(sorted({'torch', 'pandas', 'scipy', 'statsmodels'} & set(sys.modules)))"
    )
    folder = request.config.rootpath / "workflow_scripts"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


# --- tensor files ---


def test_reading_slices_of_every_kind(tmp_path):
    rng = np.random.default_rng(0)
    tensors = {
        "halves": rng.normal(size=(5, 2)).astype(np.float16),
        "longs": rng.integers(-9, 9, size=(7,)),
        "bytes": rng.integers(0, 255, size=(4, 3, 1), dtype=np.uint8),
        "none": np.zeros((0, 3), np.float32),
    }
    path = tmp_path / "some.safetensors"
    save_file(tensors, path, metadata={"head": "{}"})
    with TensorFile(path) as file:
        assert file.metadata == {"head": "{}"}
        assert set(file.keys()) == set(tensors)
        for name, values in tensors.items():
            assert file.shape(name) == values.shape
            for start, stop in [(0, None), (1, 3), (2, 99), (3, 3), (4, 2)]:
                read = file.read(name, start, stop)
                assert read.dtype == values.dtype
                np.testing.assert_array_equal(read, values[start:stop])


@settings(max_examples=30, deadline=None)  # the first example imports torch
@given(st.lists(st.integers(0, 2**16 - 1), min_size=1, max_size=40))
def test_bfloat16_is_widened_as_torch_does(tmp_path_factory, bits):
    torch = pytest.importorskip("torch")
    raw = np.array(bits, dtype=np.uint16)
    path = tmp_path_factory.mktemp("bf16") / "bf16.safetensors"
    spec = TensorSpec(dtype="bfloat16", shape=[len(bits)], data_ptr=raw.ctypes.data, data_len=raw.nbytes)
    serialize_file({"x": spec}, path)
    expected = torch.from_numpy(raw.view(np.int16)).view(torch.bfloat16).float().numpy()
    with TensorFile(path) as file:
        assert file.dtype("x") == "BF16"
        np.testing.assert_array_equal(file.read("x"), expected)
        np.testing.assert_array_equal(file.read_order("x", 1), order_preserving_integers(raw)[1:])


@pytest.mark.parametrize("dtype", ["bfloat16", np.float16, np.float32, np.float64])
@given(st.data())
def test_integers_have_the_order_of_the_numbers(dtype, data):
    if dtype == "bfloat16":
        bits = data.draw(hnp.arrays(np.uint16, st.integers(0, 30)))
        bits = bits[~np.isnan(bfloat16_to_float32(bits))]
        numbers = bfloat16_to_float32(bits)
    else:
        numbers = bits = data.draw(hnp.arrays(dtype, st.integers(0, 30), elements={"allow_nan": False}))
    integers = order_preserving_integers(bits)
    assert integers.dtype.itemsize == bits.dtype.itemsize
    for compare in (np.less, np.equal):
        np.testing.assert_array_equal(compare.outer(integers, integers), compare.outer(numbers, numbers))


@pytest.mark.parametrize("kept", [0, 5, 40, -1])
def test_a_cut_off_file_is_refused_by_name(tmp_path, kept):
    path = tmp_path / "cut.safetensors"
    save_file({"x": np.arange(10.0)}, path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(InputError, match=r"cut\.safetensors"):
        TensorFile(path)


def test_other_bad_files_are_refused_by_name(tmp_path):
    path = tmp_path / "bad.safetensors"
    with pytest.raises(InputError, match=r"bad\.safetensors"):
        TensorFile(path)
    path.write_bytes((4).to_bytes(8, "little") + b"nope")
    with pytest.raises(InputError, match=r"bad\.safetensors"):
        TensorFile(path)
    save_file({"x": np.arange(10.0)}, path)
    with TensorFile(path) as file, pytest.raises(InputError, match="'y'"):
        file.read("y")
