"""The metrics of one experiment: one module a category, one function a metric.

`METRICS` are the 16 of the study, `EXTRA_METRICS` what stands beside them; `compute_metrics` gives the
content of metrics/{config}_{dataset}.json. What a strategy or a data set cannot have is None, never 0.
"""

from dataclasses import dataclass

import numpy as np

from adaptive_routing.analysis.metrics.behaviour import (
    adaptive_range,
    native_similarity,
    selection_entropy,
    selection_entropy_normalized,
)
from adaptive_routing.analysis.metrics.constraint import ceiling_hit_rate, floor_hit_rate
from adaptive_routing.analysis.metrics.cross_layer import layer_consistency_score, layer_expert_variance
from adaptive_routing.analysis.metrics.distribution import expert_utilization, gini_coefficient
from adaptive_routing.analysis.metrics.efficiency import (
    expert_activation_ratio,
    flops_reduction_exact_pct,
    flops_reduction_pct,
    reduction_vs_baseline,
)
from adaptive_routing.analysis.metrics.quality import avg_task_accuracy
from adaptive_routing.analysis.metrics.selections import expert_usage
from adaptive_routing.analysis.metrics.speed import latency_ms_per_token, tokens_per_second
from adaptive_routing.analysis.metrics.stability import expert_overlap_score, output_determinism
from adaptive_routing.system.errors import InputError
from adaptive_routing.system.files import excerpt

HEAD = ("config", "strategy", "k_or_max_k", "alpha", "num_experts", "dataset")

# Router logits held in memory at a time: few enough to stay in the processor's cache.
BLOCK_ELEMENTS = 1 << 18
# Router logits whose overlap with the native selection is averaged at a time.
CHUNK_ELEMENTS = 1 << 24


@dataclass(frozen=True)
class Metric:
    """What a reader of a table or a figure needs to know of a metric; better: higher, lower or none."""

    name: str
    category: str
    unit: str
    better: str
    description: str


METRICS = (
    Metric("perplexity", "quality", "", "lower", "exp of the mean sample loss"),
    Metric("avg_task_accuracy", "quality", "", "higher", "accuracy, mean over the accuracy data sets"),
    Metric(
        "expert_activation_ratio",
        "efficiency",
        "",
        "lower",
        "mean selected experts per token-layer / k or max_k",
    ),
    Metric(
        "flops_reduction_pct",
        "efficiency",
        "%",
        "higher",
        "compute saved against native top-k, 60 % in experts",
    ),
    Metric("tokens_per_second", "speed", "tokens/s", "higher", "evaluated tokens / forward time"),
    Metric(
        "latency_ms_per_token", "speed", "ms/token", "lower", "median batch-of-one forward time per token"
    ),
    Metric(
        "expert_utilization", "distribution", "", "higher", "share of experts used at all, mean over layers"
    ),
    Metric("gini_coefficient", "distribution", "", "lower", "inequality of expert usage, mean over layers"),
    Metric("adaptive_range", "behaviour", "experts", "none", "largest − smallest expert count"),
    Metric("selection_entropy", "behaviour", "nats", "none", "entropy of the expert counts"),
    Metric("ceiling_hit_rate", "constraint", "%", "none", "token-layers with count = max_k"),
    Metric("floor_hit_rate", "constraint", "%", "none", "token-layers with count = min_k"),
    Metric(
        "layer_expert_variance", "cross-layer", "experts²", "none", "variance over layers of the mean count"
    ),
    Metric(
        "layer_consistency_score", "cross-layer", "", "none", "mean correlation of counts in adjacent layers"
    ),
    Metric("expert_overlap_score", "stability", "", "higher", "Jaccard similarity of two passes' selections"),
    Metric(
        "output_determinism", "stability", "%", "higher", "positions with the same greedy token in two passes"
    ),
)

EXTRA_METRICS = (
    Metric("perplexity_stderr", "quality", "", "none", "standard error of perplexity"),
    Metric("token_perplexity", "quality", "", "lower", "exp of total loss / total predicted tokens"),
    Metric("token_perplexity_stderr", "quality", "", "none", "standard error of token_perplexity"),
    Metric("word_perplexity", "quality", "", "lower", "exp of total loss / words of whole articles"),
    Metric("word_perplexity_stderr", "quality", "", "none", "standard error of word_perplexity"),
    Metric("byte_perplexity", "quality", "", "lower", "exp of total loss / bytes of whole articles"),
    Metric("byte_perplexity_stderr", "quality", "", "none", "standard error of byte_perplexity"),
    Metric("bits_per_byte", "quality", "bits", "lower", "total loss in bits / bytes of whole articles"),
    Metric("bits_per_byte_stderr", "quality", "bits", "none", "standard error of bits_per_byte"),
    Metric("avg_task_accuracy_stderr", "quality", "", "none", "standard error of the accuracy"),
    Metric("target_perplexity", "quality", "", "lower", "perplexity of lambada's target words"),
    Metric("target_perplexity_stderr", "quality", "", "none", "standard error of target_perplexity"),
    Metric("accuracy_unnormalized", "quality", "", "higher", "accuracy without length normalisation"),
    Metric("accuracy_unnormalized_stderr", "quality", "", "none", "standard error of the same"),
    Metric("avg_experts", "efficiency", "experts", "lower", "mean selected experts per token-layer"),
    Metric("std_experts", "behaviour", "experts", "none", "standard deviation of the expert counts"),
    Metric("min_experts", "behaviour", "experts", "none", "smallest expert count"),
    Metric("max_experts", "behaviour", "experts", "none", "largest expert count"),
    Metric("reduction_vs_baseline", "efficiency", "%", "higher", "fewer experts than the native top-k"),
    Metric(
        "flops_reduction_exact_pct", "efficiency", "%", "higher", "compute saved, from the model's shapes"
    ),
    Metric("selection_entropy_normalized", "behaviour", "", "none", "selection entropy / ln(max_k)"),
    Metric("native_overlap", "behaviour", "", "none", "Jaccard similarity with the native top-k selection"),
    Metric("total_samples", "size", "samples", "none", "evaluated samples"),
    Metric("total_tokens", "size", "tokens", "none", "evaluated tokens"),
    Metric("forward_seconds", "size", "s", "none", "forward time of the run"),
)
# What a clock decides: it differs between equal runs.
TIMING_METRICS = ("tokens_per_second", "latency_ms_per_token", "forward_seconds")


def compute_metrics(summary, tensors):
    """Compute all metrics of one experiment from its summary and its tensors (an open `TensorFile`).

    Returns the head, `metrics` (name to number or None) and `per_layer` (lists with an entry a layer).
    Raises InputError where the two are not of one run.
    """
    _check_same_run(summary, tensors)
    dataset, scores, totals = summary["dataset"], summary["metrics"], summary["summary"]
    routing, timings = summary["routing"], summary["timings"]
    num_experts, k_or_max_k = summary["num_experts"], summary["k_or_max_k"]
    native_top_k, bounded = routing["native_top_k"], summary["strategy"] != "topk"
    counts = tensors.read("expert_counts")  # (T, L)
    usage, overlap = _usage_and_native_overlap(tensors, num_experts, routing)
    histograms = np.stack([np.bincount(layer, minlength=num_experts + 1) for layer in counts.T])  # (L, E + 1)
    histogram = histograms.sum(axis=0)
    avg_experts = float(counts.mean())
    single_sample = timings.get("single_sample") or {"seconds": [], "tokens": []}

    accuracies = [scores[f"{dataset}_accuracy"]] if f"{dataset}_accuracy" in scores else []
    values = {
        "perplexity": scores.get("perplexity"),
        "avg_task_accuracy": avg_task_accuracy(accuracies),
        "expert_activation_ratio": expert_activation_ratio(avg_experts, k_or_max_k),
        "flops_reduction_pct": flops_reduction_pct(avg_experts, native_top_k, num_experts),
        "tokens_per_second": tokens_per_second(totals["total_tokens"], timings["forward_seconds"]),
        "latency_ms_per_token": latency_ms_per_token(single_sample["seconds"], single_sample["tokens"]),
        "expert_utilization": expert_utilization(usage),
        "gini_coefficient": gini_coefficient(usage),
        "adaptive_range": adaptive_range(counts),
        "selection_entropy": selection_entropy(histogram),
        "ceiling_hit_rate": ceiling_hit_rate(counts, routing["max_k"]) if bounded else None,
        "floor_hit_rate": floor_hit_rate(counts, routing["min_k"]) if bounded else None,
        "layer_expert_variance": layer_expert_variance(counts),
        "layer_consistency_score": layer_consistency_score(counts),
        **_stability(tensors),
        "perplexity_stderr": scores.get("perplexity_stderr"),
        "token_perplexity": scores.get("token_perplexity"),
        "token_perplexity_stderr": scores.get("token_perplexity_stderr"),
        "word_perplexity": scores.get("word_perplexity"),
        "word_perplexity_stderr": scores.get("word_perplexity_stderr"),
        "byte_perplexity": scores.get("byte_perplexity"),
        "byte_perplexity_stderr": scores.get("byte_perplexity_stderr"),
        "bits_per_byte": scores.get("bits_per_byte"),
        "bits_per_byte_stderr": scores.get("bits_per_byte_stderr"),
        "avg_task_accuracy_stderr": scores.get(f"{dataset}_accuracy_stderr"),
        "target_perplexity": scores.get("lambada_perplexity"),
        "target_perplexity_stderr": scores.get("lambada_perplexity_stderr"),
        "accuracy_unnormalized": scores.get(f"{dataset}_acc"),
        "accuracy_unnormalized_stderr": scores.get(f"{dataset}_acc_stderr"),
        "avg_experts": avg_experts,
        "std_experts": float(counts.std()),
        "min_experts": int(counts.min()),
        "max_experts": int(counts.max()),
        "reduction_vs_baseline": reduction_vs_baseline(avg_experts, native_top_k),
        "flops_reduction_exact_pct": flops_reduction_exact_pct(
            avg_experts,
            native_top_k,
            summary["provenance"]["model"]["shapes"],
            totals["total_tokens"] / totals["total_sequences"],
        ),
        "selection_entropy_normalized": selection_entropy_normalized(histogram, k_or_max_k),
        "native_overlap": overlap,
        "total_samples": totals["total_samples"],
        "total_tokens": totals["total_tokens"],
        "forward_seconds": timings["forward_seconds"],
    }
    layers = range(counts.shape[1])
    columns = [counts[:, [layer]] for layer in layers]
    usage_rows = [usage[[layer]] for layer in layers]
    per_layer = {
        "avg_experts": [float(column.mean()) for column in columns],
        "std_experts": [float(column.std()) for column in columns],
        "expert_utilization": [expert_utilization(row) for row in usage_rows],
        "gini_coefficient": [gini_coefficient(row) for row in usage_rows],
        "ceiling_hit_rate": [ceiling_hit_rate(c, routing["max_k"]) if bounded else None for c in columns],
        "floor_hit_rate": [floor_hit_rate(c, routing["min_k"]) if bounded else None for c in columns],
        "expert_count_histogram": histograms.tolist(),
        "expert_usage": usage.tolist(),
    }
    return {**{key: summary[key] for key in HEAD}, "metrics": values, "per_layer": per_layer}


def _check_same_run(summary, tensors):
    head, shape = tensors.metadata_json("head"), tensors.shape("router_logits")
    provenance = head.pop("provenance", {})
    stated = head | provenance | {"total_tokens": shape[0], "num_experts": shape[2]}
    # The summary's provenance says more: when, where and by which code it was made.
    expected = summary | summary["provenance"] | {"total_tokens": summary["summary"]["total_tokens"]}
    for key, found in stated.items():
        if found != expected.get(key):
            raise InputError(
                f"{tensors.path} is not of the run that the summary of {summary['config']} on "
                f"{summary['dataset']} tells of: {key} is {excerpt(found)} there and "
                f"{excerpt(expected.get(key))} in the summary; delete both and run again"
            )


def _usage_and_native_overlap(tensors, num_experts, routing):
    """Return expert usage (L, E) and the native overlap, reading the large tensors in blocks of tokens."""
    scores_of, native_top_k = _ranking_scores(tensors, routing), routing["native_top_k"]
    num_tokens, num_layers, _ = tensors.shape("router_logits")
    chunk, block = (max(1, n // (num_layers * num_experts)) for n in (CHUNK_ELEMENTS, BLOCK_ELEMENTS))
    usage = np.zeros((num_layers, num_experts), dtype=np.int64)
    overlap = 0.0
    for start in range(0, num_tokens, chunk):
        stop = min(start + chunk, num_tokens)
        similarity = np.empty((stop - start, num_layers))
        for first in range(start, stop, block):
            last = min(first + block, stop)
            selected = tensors.read("selected_experts", first, last)
            usage += expert_usage(selected, num_experts)
            scores = scores_of(first, last)
            similarity[first - start : last - start] = native_similarity(scores, selected, native_top_k)
        overlap += float(np.mean(similarity)) * (stop - start) / num_tokens
    return usage, overlap


def _ranking_scores(tensors, routing):
    """A function from tokens [start, stop) to what their router ranks experts by, (T, L, E), or its order."""
    router = routing.get("router")
    if router is None or (router["bias"] is None and router["groups_kept"] >= router["groups"]):
        # The order of the logits is all that the native top-k needs.
        return lambda start, stop: tensors.read_order("router_logits", start, stop)
    # These import torch, which takes seconds.
    import torch

    from adaptive_routing.routing_log.reader import read_router_rule

    rule = read_router_rule(routing, tensors)

    def scores(start, stop):
        logits = torch.from_numpy(tensors.read("router_logits", start, stop))
        return np.stack([rule.choice(one, layer).numpy() for layer, one in enumerate(logits.unbind(1))], 1)

    return scores


def _stability(tensors):
    """Compare the passes over the first samples; None for both metrics without a second pass."""
    if "second_pass_selected_experts" not in tensors:
        return {"expert_overlap_score": None, "output_determinism": None}
    second = tensors.read("second_pass_selected_experts")
    return {
        "expert_overlap_score": expert_overlap_score(
            tensors.read("selected_experts", 0, len(second)), second
        ),
        "output_determinism": output_determinism(
            tensors.read("greedy_tokens"), tensors.read("second_pass_greedy_tokens")
        ),
    }
