"""The metrics of one experiment: one module per category, one function per metric.

A metric is a function with its declaration (`declaration.metric`) in its category's module, and nothing else:
tables, schema and report take what is declared. `METRICS` are the 16 of the study, `EXTRA_METRICS` what
stands beside them. `compute_metrics` gives the content of metrics/{config}_{dataset}.json.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from adaptive_routing.analysis.metrics import (
    behaviour,
    constraint,
    cross_layer,
    distribution,
    efficiency,
    expert_counts,
    quality,
    size,
    speed,
    stability,
)
from adaptive_routing.analysis.metrics.declaration import DECLARED, Metric
from adaptive_routing.analysis.metrics.quantities import Quantities
from adaptive_routing.system.errors import InputError
from adaptive_routing.system.files import excerpt
from adaptive_routing.system.json_files import read_json

if TYPE_CHECKING:
    from adaptive_routing.evaluation.experiment import Summary
    from adaptive_routing.system.tensor_files import TensorFile

__all__ = ["ALL_METRICS", "EXTRA_METRICS", "HEAD", "METRICS", "PER_LAYER_METRICS", "TIMING_METRICS", "Metric"]

# What identifies a configuration, and an experiment, in summaries and tables.
CONFIGURATION_KEYS = (
    "config",
    "strategy",
    "k_or_max_k",
    "alpha",
    "weights",
    "null",
    "control",
    "control_of",
    "num_experts",
)
HEAD = (*CONFIGURATION_KEYS, "dataset")

# In the order of the tables' columns.
_MODULES = (
    quality,
    expert_counts,
    efficiency,
    speed,
    distribution,
    behaviour,
    constraint,
    cross_layer,
    stability,
    size,
)
_IN_ORDER = [one for module in _MODULES for one in DECLARED if one.function.__module__ == module.__name__]
METRICS = tuple(one for one in _IN_ORDER if one.one_of_16)
EXTRA_METRICS = tuple(one for one in _IN_ORDER if not one.one_of_16)
ALL_METRICS = METRICS + EXTRA_METRICS
PER_LAYER_METRICS = tuple(one for one in _IN_ORDER if one.per_layer)
TIMING_METRICS = tuple(one.name for one in ALL_METRICS if one.timed)


def compute_metrics(summary: Summary, tensors: TensorFile) -> dict[str, Any]:
    """Compute all metrics of one experiment from its summary and its tensors (an open `TensorFile`).

    Returns the head, `metrics` (name to number or None) and `per_layer` (lists with one entry per layer).
    Raises InputError where the two come from different runs.
    """
    _check_same_run(summary, tensors)
    quantities = Quantities(summary, tensors)
    layers = [quantities.of_layer(layer) for layer in range(quantities.expert_counts.shape[1])]
    return {
        **{key: summary[key] for key in HEAD},
        "metrics": {one.name: one.of(quantities) for one in ALL_METRICS},
        "per_layer": {
            **{one.name: [one.of(layer) for layer in layers] for one in PER_LAYER_METRICS},
            "expert_count_histogram": quantities.layer_histograms.tolist(),
            "expert_usage": quantities.expert_usage.tolist(),
        },
    }


def metrics_schema() -> dict[str, Any]:
    """JSON schema of what `compute_metrics` returns: schemas/metrics.schema.json with all metrics in it."""
    schema = read_json(Path(__file__).parents[4] / "schemas" / "metrics.schema.json")
    values, per_layer = schema["properties"]["metrics"], schema["properties"]["per_layer"]
    values["properties"] = {one.name: one.schema() for one in ALL_METRICS}
    lists = {one.name: {"type": "array", "items": one.value_schema()} for one in PER_LAYER_METRICS}
    per_layer["properties"] = lists | per_layer["properties"]
    for one in (values, per_layer):
        one |= {"additionalProperties": False, "required": list(one["properties"])}
    return schema


def _check_same_run(summary, tensors):
    head, num_experts = tensors.metadata_json("head"), tensors.shape("router_logits")[2]
    provenance, num_tokens = head.pop("provenance", {}), tensors.shape("expert_counts")[0]
    stated = head | provenance | {"total_tokens": num_tokens, "num_experts": num_experts}
    # The summary's provenance holds more than the tensors': when, where and by which code it was made.
    expected = summary | summary["provenance"] | {"total_tokens": summary["summary"]["total_tokens"]}
    for key, value in stated.items():
        if value != expected.get(key):
            raise InputError(
                f"{tensors.path} and the summary of {summary['config']} on {summary['dataset']} come from "
                f"different runs: {key} is {excerpt(value)} in the tensors and "
                f"{excerpt(expected.get(key))} in the summary; delete both and run again"
            )
