"""The entries of the internal-routing JSON, and its aggregate: from arrays of many samples to text.

Formats: docs/architecture.md. NumPy and orjson only. Lists of unequal length, which is what the selected
experts of adaptive routing are, are put together from a table of ready-made pieces.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict

import numpy as np
import orjson
from numpy.typing import NDArray

from adaptive_routing.system.tensor_files import bfloat16_to_float32

PREVIEW_CHARACTERS = 100
SAMPLE_TOKENS = 5  # tokens whose logits and p-values the JSON shows


class RoutingHead(TypedDict):
    """How the experiment chose and weighted experts: `routing` of the head."""

    min_k: int
    max_k: int
    temperature: float
    weights: str
    renormalized: bool | None
    router: dict[str, Any]
    native_top_k: int
    dtype: str
    layer_counts: NotRequired[list[int]]  # of a strategy that fixes a number for each layer


class Provenance(TypedDict):
    """What the experiment was made from: `provenance` of the head; `run` stands in the summary only."""

    model: dict[str, Any]  # the model's description, without its folder
    dtype: str
    device: str
    versions: dict[str, str]
    settings: dict[str, Any]
    run: NotRequired[dict[str, Any]]


class KeptSamples(TypedDict):
    """Of how many of the first samples a log holds everything: `routing_log` of the head."""

    json_samples: int  # samples in the JSON
    router_logits: int  # samples whose router logits are in the tensors


class Head(TypedDict):
    """What stands first in every log file of an experiment."""

    config: str
    strategy: str
    k_or_max_k: int
    alpha: float | None
    weights: str
    null: str | None  # the null distribution's name
    control: str | None
    control_of: str | None
    num_experts: int
    dataset: str
    routing: RoutingHead
    provenance: Provenance
    routing_log: NotRequired[KeptSamples]  # where a log leaves samples out


@dataclass(frozen=True)
class LoggedSample:
    """What the log says of a sample beside its routing.

    Attributes:
        sample_id, text_preview, loss: of the sample.
        lengths: tokens that belong to each of its sequences.
        shared_tokens: tokens that stand before these in each, and belong to its first sequence with tokens,
            or for that one itself to the first such sequence of the sample `shared_with`.
        shared_with: id of that sample; None where there is none.
    """

    sample_id: str
    text_preview: str
    loss: float | None
    lengths: tuple[int, ...]
    shared_tokens: tuple[int, ...] = ()
    shared_with: str | None = None


@dataclass(frozen=True)
class LoggedRouting:
    """Routing of N tokens in L layers with E experts, as arrays; samples follow one another.

    Attributes:
        experts: (N, L, K) int16, most significant first; unused slots hold E.
        weights: (N, L, K) float32 or float16, or bfloat16 as its bits, uint16.
        counts: (N, L) int16.
        first_logits: (F, L, E) float32, of the first `SAMPLE_TOKENS` tokens of each sample with an entry.
        first_p_values: (F, L, E) float64, or None for a strategy without.
    """

    experts: NDArray[np.int16]
    weights: NDArray[Any]
    counts: NDArray[np.int16]
    first_logits: NDArray[np.float32]
    first_p_values: NDArray[np.float64] | None

    def tokens(self, tokens: NDArray[np.int64]) -> LoggedRouting:
        """The routing of some tokens, by their indices, among them all of samples with an entry."""
        of_tokens = (column[tokens] for column in (self.experts, self.weights, self.counts))
        return LoggedRouting(*of_tokens, self.first_logits, self.first_p_values)


def tokens_of(lengths: Sequence[int], chosen: Iterable[int], most: int | None = None) -> NDArray[np.int64]:
    """Indices of the tokens of some samples among those of all, or of the first `most` tokens of each.

    lengths: tokens of every sample.
    """
    starts = np.cumsum([0, *lengths])
    rows = [starts[one] + np.arange(lengths[one])[:most] for one in chosen]
    return np.concatenate(rows) if rows else np.empty(0, np.int64)


def format_samples(
    samples: Sequence[LoggedSample], routing: LoggedRouting, min_experts: int, max_experts: int
) -> Iterator[bytes]:
    """Yield the entry of each sample as JSON bytes.

    Args:
        samples: list of `LoggedSample`.
        routing: `LoggedRouting` of all their tokens.
        min_experts, max_experts: the strategy's limits, which make floor and ceiling hits.
    """
    num_layers, num_experts = routing.first_logits.shape[1:]
    lengths = np.array([sum(one.lengths) for one in samples])
    starts = np.concatenate([[0], np.cumsum(lengths)])
    statistics = _layer_statistics(routing.counts, starts[:-1], lengths, min_experts, max_experts)
    columns = [_LayerText(routing, layer, num_experts) for layer in range(num_layers)]
    first = 0
    for number, one in enumerate(samples):
        start, stop = int(starts[number]), int(starts[number + 1])
        shown = slice(first, first + min(stop - start, SAMPLE_TOKENS))
        first = shown.stop
        entry = {
            "sample_id": one.sample_id,
            "text_preview": one.text_preview[:PREVIEW_CHARACTERS],
            "loss": one.loss,
            "num_tokens": stop - start,
        }
        if len(one.lengths) > 1:
            entry["sequence_lengths"] = one.lengths
        if any(one.shared_tokens):
            entry["shared_tokens"] = one.shared_tokens
            entry["shared_with"] = one.shared_with
        entry["layers"] = [
            {
                "layer": layer,
                "router_logits_shape": (stop - start, num_experts),
                "selected_experts": columns[layer].selected_experts(start, stop),
                "expert_weights": columns[layer].expert_weights(start, stop),
                "expert_counts": columns[layer].counts[start:stop],
                "router_logits_sample": _contiguous(routing.first_logits[shown, layer]),
                "p_values_sample": (
                    None
                    if routing.first_p_values is None
                    else _contiguous(routing.first_p_values[shown, layer])
                ),
                "layer_stats": {name: values[number][layer] for name, values in statistics.items()},
            }
            for layer in range(num_layers)
        ]
        yield orjson.dumps(entry, option=orjson.OPT_SERIALIZE_NUMPY)


_contiguous = np.ascontiguousarray  # orjson takes no other arrays


class _LayerText:
    """One layer's selections and weights of all tokens, ready to be cut into samples."""

    def __init__(self, routing, layer, num_experts):
        self.counts = _contiguous(routing.counts[:, layer])
        experts, weights = routing.experts[:, layer], routing.weights[:, layer]
        if weights.dtype == np.uint16:
            weights = bfloat16_to_float32(weights)
        elif weights.dtype == np.float16:
            weights = weights.astype(np.float32)
        self._is_dense = bool((self.counts == experts.shape[1]).all())
        if self._is_dense:
            self._experts, self._weights = _contiguous(experts), _contiguous(weights)
            return
        used = np.arange(experts.shape[1]) < self.counts[:, None]  # (N, K)
        self._weights = weights[used]
        self._pairs = np.concatenate([[0], np.cumsum(self.counts, dtype=np.int64)])
        self._text, self._bytes = _ragged_text(experts, self.counts, used, num_experts)

    def selected_experts(self, start, stop):
        """A list per token, of tokens [start, stop)."""
        if self._is_dense:
            return self._experts[start:stop]
        first, last = self._bytes[start], self._bytes[stop]
        return orjson.Fragment(b"[[" + self._text[first : last - 2].tobytes() + b"]")

    def expert_weights(self, start, stop):
        """Of all pairs of tokens [start, stop), one after another."""
        if self._is_dense:
            return self._weights[start:stop].reshape(-1)
        return self._weights[self._pairs[start] : self._pairs[stop]]


def _ragged_text(experts, counts, used, num_experts):
    """Selected experts of N tokens as text `1,2],[3],[…],[`, and the byte where each starts (N + 1,)."""
    # The pieces: "e," within a list, "e],[" at its end, and "],[" for a token without experts.
    numbers = [str(expert).encode() for expert in range(num_experts)]
    pieces = [number + b"," for number in numbers] + [number + b"],[" for number in numbers] + [b"],["]
    lengths = np.array([len(piece) for piece in pieces])
    table = np.zeros((len(pieces), lengths.max()), np.uint8)
    for row, piece in zip(table, pieces, strict=True):
        row[: len(piece)] = np.frombuffer(piece, np.uint8)
    is_last = np.arange(experts.shape[1]) == counts[:, None] - 1
    codes = np.where(is_last, experts + num_experts, experts)
    is_empty = counts == 0
    codes[is_empty, 0] = 2 * num_experts
    used = used.copy()
    used[is_empty, 0] = True
    per_token = np.where(used, lengths[np.where(used, codes, 0)], 0).sum(1)
    codes = codes[used]
    text = table[codes][np.arange(table.shape[1]) < lengths[codes][:, None]]
    return text, np.concatenate([[0], np.cumsum(per_token)])


def _layer_statistics(counts, starts, lengths, min_experts, max_experts):
    """Per sample and layer (S, L): mean and deviation of the counts, tokens at ceiling and floor."""
    counts = counts.astype(np.int64)
    total, squares = (np.add.reduceat(values, starts) for values in (counts, counts**2))
    lengths = lengths[:, None]
    # In integers up to the root, so that equal counts have a deviation of exactly 0.
    deviation = np.sqrt((squares * lengths - total**2).astype(float)) / lengths

    def hits(limit):
        # A fixed number of experts has neither ceiling nor floor to hit.
        if min_experts == max_experts:
            return np.full(total.shape, None)
        return np.add.reduceat(counts == limit, starts, dtype=np.int64)

    return {
        "avg_experts": (total / lengths).tolist(),
        "std_experts": deviation.tolist(),
        "ceiling_hits": hits(max_experts).tolist(),
        "floor_hits": hits(min_experts).tolist(),
    }


class RoutingStatistics:
    """Sums over tokens that become `aggregate_stats`; its size does not depend on the tokens seen."""

    def __init__(self, num_layers: int, num_experts: int) -> None:
        self.num_experts = num_experts
        self.count_histogram = np.zeros((num_layers, num_experts + 1), np.int64)
        self.expert_usage = np.zeros((num_layers, num_experts), np.int64)

    def add(self, experts: NDArray[np.integer], counts: NDArray[np.integer]) -> None:
        """Add tokens: experts (N, L, K) with E in unused slots, counts (N, L)."""
        for layer in range(counts.shape[1]):
            self.count_histogram[layer] += np.bincount(counts[:, layer], minlength=self.num_experts + 1)
            used = np.bincount(experts[:, layer].reshape(-1), minlength=self.num_experts + 1)
            self.expert_usage[layer] += used[: self.num_experts]

    def merge(self, other: RoutingStatistics) -> None:
        """Add the tokens of other statistics."""
        self.count_histogram += other.count_histogram
        self.expert_usage += other.expert_usage

    def aggregate(self) -> dict[str, Any]:
        """Per layer: mean and standard deviation of counts, usage of each expert, histogram of counts."""
        tokens = self.count_histogram.sum(1)
        values = np.arange(self.num_experts + 1)
        mean = self.count_histogram @ values / np.maximum(tokens, 1)
        variance = self.count_histogram @ values**2 / np.maximum(tokens, 1) - mean**2
        return {
            "num_tokens": int(tokens[0]),
            "avg_experts": mean,
            "std_experts": np.sqrt(np.maximum(variance, 0)),
            "expert_usage": self.expert_usage,
            "expert_count_histogram": self.count_histogram,
        }
