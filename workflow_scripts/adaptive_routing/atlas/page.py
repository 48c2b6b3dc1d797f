"""The page routing_atlas.html: every experiment's routing, to explore in a browser without a network.

The page holds plotly.js, its own script (`page/atlas.js`) and each experiment as a compressed safetensors
file, which the script reads when the experiment is chosen.
"""

from __future__ import annotations

import base64
import importlib.resources
import json
import re
import string
import zlib
from html import escape
from typing import TYPE_CHECKING

import numpy as np
from plotly.offline import get_plotlyjs
from safetensors.numpy import save

from adaptive_routing.analysis.routing_curves import (
    COUNT_STARTS,
    loss_correlations,
    loss_curves,
    mean_count,
    position_means,
    ranges_within,
)
from adaptive_routing.analysis.routing_summary import read_routing_summary
from adaptive_routing.analysis.rule_names import label
from adaptive_routing.atlas.tokens import token_texts
from adaptive_routing.system.errors import InputError
from adaptive_routing.system.text import visible

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path
    from typing import Any

    from numpy.typing import NDArray

    from adaptive_routing.model.description import ModelDescription

EXTREME_TYPES = 15  # listed tokens with the most experts, and with the fewest
# Pairs of experts in all experiments. With more, the page would be too large to mail and slow to open.
MOST_PAIRS = 8_000_000
NEVER, NEUTRAL_LIFT, LIFT_STEPS = 1, 128, 10  # codes of lift; steps per octave
LOSS_UNITS = 1000  # per nat
NOT_SCORED = 65535
NO_GAIN = 32767  # the largest difference of losses; one less than its negative: not scored


def make_page(
    paths: Iterable[Path | str],
    model: ModelDescription,
    baseline: str,
    featured: str | None = None,
    fixed: Iterable[Path | str] = (),
) -> str:
    """Make the page of the experiments whose summaries are in `paths`.

    Args:
        model: content of model.json.
        baseline: the configuration that is shown first.
        featured: the one beside it; by default that of `chosen_first`.
        fixed: summaries of `fixed` controls, for whose configurations the text shows on which tokens adapting
            gains and loses.

    Returns:
        the page as an HTML string.
    """
    heads, means, experiments, used_tokens = {}, {}, {}, set()
    paths = list(paths)
    if not paths:
        raise InputError("the routing atlas has nothing to show: there is no summary of an experiment.")
    controls = {}
    for path in fixed:
        head, arrays, _ = read_routing_summary(path)
        controls[head["control_of"], head["dataset"]] = arrays["token_losses"]
    for path in paths:
        head, arrays, sample_ids = read_routing_summary(path)
        num_layers, num_experts, _ = arrays["co_selection"].shape
        with_pairs = len(paths) * num_layers * num_experts * (num_experts - 1) // 2 <= MOST_PAIRS
        data = page_data(arrays, with_pairs)
        used_tokens.update(np.unique(data["token_ids"]).tolist(), np.unique(data["type_ids"]).tolist())
        if (of_control := controls.get((head["config"], head["dataset"]))) is not None:
            data["token_gains"] = _gain_units(of_control - arrays["token_losses"])
        experiments.setdefault(head["config"], {})[head["dataset"]] = _pack(data, sample_ids)
        heads[head["config"]] = head
        means.setdefault(head["config"], []).append(float(mean_count(arrays["count_histogram"].sum(axis=0))))
    configurations = sorted(heads.values(), key=_place)
    texts = token_texts(model["folder"], sorted(used_tokens))
    first, second = chosen_first(configurations, means, baseline)
    second = featured if featured in heads and featured != first else second
    content = {
        "model": model["name"],
        "num_layers": num_layers,
        "num_experts": num_experts,
        "count_starts": ranges_within(COUNT_STARTS, num_experts + 1),
        "configurations": [{"name": one["config"], "label": label(one["config"])} for one in configurations],
        "datasets": list(dict.fromkeys(name for of_config in experiments.values() for name in of_config)),
        "baseline": baseline,
        "first": first,
        "second": second,
        "tokens": texts,
        "experiments": experiments,
    }
    data = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    # Inside a script element, only "<" could end the element; a lone surrogate is no UTF-8.
    data = re.sub("[<\ud800-\udfff]", lambda match: f"\\u{ord(match[0]):04x}", data)
    name = escape(visible(model["name"]))
    return string.Template(_resource("atlas.html")).substitute(
        title=f"Routing atlas of {name}",
        heading=f"Routing atlas of {name.replace('/', '/<wbr>')}",
        scope=_scope(content),
        style=_resource("atlas.css"),
        plotly=get_plotlyjs(),
        data=data,
        script=_resource("atlas.js"),
    )


def page_data(arrays: Mapping[str, NDArray[Any]], with_pairs: bool) -> dict[str, NDArray[Any]]:
    """Convert a summary's arrays to what the page draws, in compact types that a browser can read."""
    histogram, together = arrays["count_histogram"], arrays["co_selection"]
    num_tokens = int(histogram[0].sum())
    largest = int(np.flatnonzero(histogram.any(axis=0))[-1])
    data = {
        "count_histogram": histogram[:, : largest + 1],
        "usage": np.einsum("lee->le", together),
        "position_edges": arrays["position_edges"],
        "position_tokens": arrays["position_tokens"],
        "position_means": position_means(arrays).astype(np.float32),
        **extreme_types(arrays["type_ids"], arrays["type_tokens"], arrays["type_count_sums"]),
        "typical_ids": arrays["typical_ids"],
        "typical_shares": _shares(arrays["typical_tokens"], arrays["typical_occurrences"]),
        "loss_correlation": loss_correlations(arrays).astype(np.float32),
        "token_losses": _loss_units(arrays["token_losses"]),
    }
    for name in ("sample_offsets", "sample_sizes", "sequence_starts", "token_ids", "expert_counts"):
        data[name] = arrays[name]
    for name in ("loss", "mean_loss"):
        tokens, counts, values, errors = loss_curves(arrays, name)
        data[f"{name}_tokens"], data[f"{name}_counts"] = tokens.astype(np.uint32), counts.astype(np.float32)
        data[f"{name}_means"], data[f"{name}_errors"] = _loss_units(values), _loss_units(errors)
    if with_pairs:
        data["pair_lift"] = lift_codes(together, num_tokens)
    return data


def lift_codes(together: NDArray[np.uint32], num_tokens: int) -> NDArray[np.uint8]:
    """Encode the lift of every pair of experts, i < j, in one byte: (L, E·(E − 1)/2).

    Lift is how much more often two experts are chosen together than if they were independent,
    P(i, j) / (P(i)·P(j)) (Brin, Motwani, Ullman & Tsur, SIGMOD 1997, who call it interest). The code is
    128 + 10·log₂(lift); 1: never together; 0: one of the two is never chosen.
    """
    first, second = np.triu_indices(together.shape[1], k=1)
    usage = np.einsum("lee->le", together).astype(float)
    both, independent = together[:, first, second], usage[:, first] * usage[:, second] / num_tokens
    with np.errstate(divide="ignore", invalid="ignore"):
        code = NEUTRAL_LIFT + np.rint(LIFT_STEPS * np.log2(both / independent))
    code = np.where(both == 0, NEVER, np.clip(code, NEVER + 1, 255))
    return np.where(independent == 0, 0, code).astype(np.uint8)


def extreme_types(
    ids: NDArray[np.integer], tokens: NDArray[np.integer], count_sums: NDArray[np.integer]
) -> dict[str, NDArray[Any]]:
    """Find the token types with the most and the fewest experts.

    The first row is for the mean over layers, the others for one layer each. A row lists up to
    `EXTREME_TYPES` with the most experts, most first, then as many with the fewest, fewest first.
    """
    by_layer = count_sums / tokens[:, None]
    means = np.column_stack([by_layer.mean(axis=1), by_layer])  # (M, 1 + L)
    listed = min(EXTREME_TYPES, len(ids) // 2)
    # Ties go to the more frequent type, which comes first.
    most, fewest = (np.argsort(sign * means, axis=0, kind="stable")[:listed].T for sign in (-1, 1))
    rows = np.concatenate([most, fewest], axis=1)  # (1 + L, 2 · listed)
    shown = np.take_along_axis(means.T, rows, axis=1)
    return {
        "type_ids": ids[rows].astype(np.int32),
        "type_tokens": tokens[rows].astype(np.int32),
        "type_means": shown.astype(np.float32),
    }


def chosen_first(
    configurations: Sequence[Mapping[str, Any]], means: Mapping[str, Sequence[float]], baseline: str
) -> tuple[str, str | None]:
    """Choose the two configurations that the page shows first: the baseline and the most similar BH.

    The similar one has the mean count closest to the baseline's. None if there is no second configuration.
    """
    names = [one["config"] for one in configurations]
    first = baseline if baseline in names else names[0]
    others = [one for one in configurations if one["config"] != first]
    others = [one for one in others if one["strategy"] == "bh"] or others
    if not others:
        return first, None
    reference = np.mean(means[first])
    return first, min(
        (one["config"] for one in others), key=lambda name: abs(np.mean(means[name]) - reference)
    )


def _scope(content):
    """How many configurations, data sets, layers and experts there are, in words."""
    parts = {
        "configuration": len(content["configurations"]),
        "data set": len(content["datasets"]),
        "MoE layer": content["num_layers"],
        "expert": content["num_experts"],
    }
    configurations, datasets, layers, experts = (
        f"{n} {name}{'' if n == 1 else 's'}" for name, n in parts.items()
    )
    return f"{configurations}, {datasets}; {layers} of {experts}"


def _place(head):
    """The sort key of a configuration: top-k first, by k; then others by max_k and alpha."""
    return head["strategy"] != "topk", head["strategy"], head["k_or_max_k"], head["alpha"] or 0.0


def _shares(part, total):
    """Parts of totals in percent as uint8; 0 of 0 is 0."""
    return np.rint(100 * part / np.maximum(total, 1)).astype(np.uint8)


def _loss_units(losses):
    """Losses in thousandths of a nat as uint16; the largest value means "not scored"."""
    units = np.clip(np.rint(LOSS_UNITS * np.nan_to_num(losses)), 0, NOT_SCORED - 1)
    return np.where(np.isfinite(losses), units, NOT_SCORED).astype(np.uint16)


def _gain_units(gains):
    """Differences of losses in thousandths of a nat as int16; the smallest value means "not scored"."""
    units = np.clip(np.rint(LOSS_UNITS * np.nan_to_num(gains)), -NO_GAIN, NO_GAIN)
    return np.where(np.isfinite(gains), units, -NO_GAIN - 1).astype(np.int16)


def _pack(data, sample_ids):
    """Encode arrays as a compressed safetensors file in base64."""
    # safetensors writes the buffer as it is in memory.
    arrays = {name: np.ascontiguousarray(array) for name, array in data.items()}
    file = save(arrays, metadata={"sample_ids": json.dumps(sample_ids)})
    return base64.b64encode(zlib.compress(file, 6)).decode("ascii")


def _resource(name):
    return (
        importlib.resources.files("adaptive_routing.atlas").joinpath("page", name).read_text(encoding="utf-8")
    )
