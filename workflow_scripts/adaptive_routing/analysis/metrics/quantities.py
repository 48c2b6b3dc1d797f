"""What metrics are functions of: the quantities of one experiment, each made when a metric first needs it."""

from __future__ import annotations

from functools import cached_property
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from adaptive_routing.analysis.metrics.behaviour import native_similarity
from adaptive_routing.analysis.metrics.selections import expert_usage, jaccard_similarity
from adaptive_routing.routing_log.sequences import LoggedSequences

if TYPE_CHECKING:
    from adaptive_routing.evaluation.experiment import Summary
    from adaptive_routing.system.tensor_files import TensorFile

# Router logits held in memory at a time: few enough to stay in the processor's cache.
BLOCK_ELEMENTS = 1 << 18
# Router logits whose overlap with the native selection is averaged at a time.
CHUNK_ELEMENTS = 1 << 24


class Quantities:
    """An experiment's quantities, from its summary and its tensors (an open `TensorFile`).

    T tokens, L layers, E experts; T2 tokens of the first samples, which have a second pass.

    Attributes:
        tensors: the open file itself.
        dataset: the data set's name.
        scores: the summary's `metrics`, name to number.
        accuracies: the data set's accuracy alone; empty where it has none.
        k_or_max_k: k of top-k, max_k of others.
        min_k, max_k: bounds of the expert counts; None where they are fixed, as with top-k.
        native_top_k, num_experts, shapes: the model's.
        num_samples, num_tokens: what was evaluated.
        forward_seconds: of all passes.
        single_sample_seconds, single_sample_tokens: of each pass of one sample alone.
    """

    def __init__(self, summary: Summary, tensors: TensorFile) -> None:
        dataset, scores, totals = summary["dataset"], summary["metrics"], summary["summary"]
        routing, timings = summary["routing"], summary["timings"]
        bounded = summary["strategy"] != "topk"
        single_sample = timings.get("single_sample") or {"seconds": [], "tokens": []}
        self.tensors, self.dataset, self.scores = tensors, dataset, scores
        self._routing = routing
        self.accuracies = [scores[f"{dataset}_accuracy"]] if f"{dataset}_accuracy" in scores else []
        self.k_or_max_k, self.native_top_k = summary["k_or_max_k"], routing["native_top_k"]
        self.min_k, self.max_k = (routing[key] if bounded else None for key in ("min_k", "max_k"))
        self.num_experts, self.shapes = summary["num_experts"], summary["provenance"]["model"]["shapes"]
        self.num_samples, self.num_tokens = totals["total_samples"], totals["total_tokens"]
        self._num_sequences = totals["total_sequences"]
        self.forward_seconds = timings["forward_seconds"]
        self.single_sample_seconds = single_sample["seconds"]
        self.single_sample_tokens = single_sample["tokens"]

    def of_layer(self, layer: int) -> SimpleNamespace:
        """What the metrics of a layer are functions of."""
        counts, usage = self.expert_counts[:, [layer]], self.expert_usage[[layer]]
        return SimpleNamespace(expert_counts=counts, expert_usage=usage, min_k=self.min_k, max_k=self.max_k)

    @cached_property
    def expert_counts(self) -> NDArray[np.integer]:
        """(T, L)."""
        return self.tensors.read("expert_counts")

    @cached_property
    def mean_sequence_length(self) -> float:
        """Mean number of tokens of a sequence, shared ones included."""
        return int(LoggedSequences.of_tensors(self.tensors).lengths.sum()) / self._num_sequences

    @cached_property
    def avg_experts(self) -> float:
        """Mean expert count."""
        return float(self.expert_counts.mean())

    @cached_property
    def layer_histograms(self) -> NDArray[np.int64]:
        """(L, E + 1): tokens with 0, 1, … E experts."""
        columns = self.expert_counts.T
        return np.stack([np.bincount(layer, minlength=self.num_experts + 1) for layer in columns])

    @cached_property
    def histogram(self) -> NDArray[np.int64]:
        """(E + 1,): token-layers with 0, 1, … E experts."""
        return self.layer_histograms.sum(axis=0)

    @property
    def expert_usage(self) -> NDArray[np.int64]:
        """(L, E): how often each expert is selected."""
        return self._usage_and_native_overlap[0]

    @property
    def mean_native_similarity(self) -> float:
        """`native_similarity`, mean over token-layers."""
        return self._usage_and_native_overlap[1]

    @cached_property
    def _usage_and_native_overlap(self):
        """Both from one reading of the large tensors, in blocks of tokens."""
        num_tokens, num_layers, _ = self.tensors.shape("selected_experts")
        num_experts = self.num_experts
        chunk, block = (max(1, n // (num_layers * num_experts)) for n in (CHUNK_ELEMENTS, BLOCK_ELEMENTS))
        usage, similarity_of = np.zeros((num_layers, num_experts), np.int64), self._native_similarity()
        overlap = 0.0
        for start in range(0, num_tokens, chunk):
            stop = min(start + chunk, num_tokens)
            similarity = np.empty((stop - start, num_layers))
            for first in range(start, stop, block):
                last = min(first + block, stop)
                selected = self.tensors.read("selected_experts", first, last)
                usage += expert_usage(selected, num_experts)
                similarity[first - start : last - start] = similarity_of(first, last, selected)
            overlap += float(np.mean(similarity)) * (stop - start) / num_tokens
        return usage, overlap

    def _native_similarity(self):
        """A function from tokens [start, stop) and their selection to `native_similarity`."""
        if "native_experts" in self.tensors:  # of a log without all router logits
            return lambda start, stop, selected: jaccard_similarity(
                selected, self.tensors.read("native_experts", start, stop)
            )
        scores_of = self._ranking_scores()
        return lambda start, stop, selected: native_similarity(
            scores_of(start, stop), selected, self.native_top_k
        )

    def _ranking_scores(self):
        """A function from tokens [start, stop) to what ranks their experts, (T, L, E), or its order."""
        router = self._routing.get("router")
        if router is None or (router["bias"] is None and router["groups_kept"] >= router["groups"]):
            # The order of the logits is all that the native top-k needs.
            return lambda start, stop: self.tensors.read_order("router_logits", start, stop)
        # These import torch, which takes seconds.
        import torch

        from adaptive_routing.routing.router_rule import RouterRule

        rule = RouterRule.from_log(self._routing, self.tensors)

        def scores(start, stop):
            logits = torch.from_numpy(self.tensors.read("router_logits", start, stop))
            return np.stack(
                [rule.choice(one, layer).numpy() for layer, one in enumerate(logits.unbind(1))], 1
            )

        return scores

    @cached_property
    def second_pass_selected_experts(self) -> NDArray[np.uint8] | None:
        """(T2, L, ⌈E/8⌉) packed; None without a second pass."""
        return self._of_second_pass("second_pass_selected_experts")

    @cached_property
    def first_pass_selected_experts(self) -> NDArray[np.uint8] | None:
        """The same tokens' selection in the run."""
        second = self.second_pass_selected_experts
        return None if second is None else self.tensors.read("selected_experts", 0, len(second))

    @property
    def second_pass_greedy_tokens(self) -> NDArray[np.int32] | None:
        """(T2,) the greedy next token at each position; None without a second pass."""
        return self._of_second_pass("second_pass_greedy_tokens")

    @property
    def greedy_tokens(self) -> NDArray[np.int32] | None:
        """The same of the run."""
        return self._of_second_pass("greedy_tokens")

    def _of_second_pass(self, name):
        return self.tensors.read(name) if "second_pass_selected_experts" in self.tensors else None
