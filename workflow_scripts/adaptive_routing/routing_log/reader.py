"""A lazy reader of an experiment's routing: any sample's and layer's logits, selection and weights as arrays.

Formats: docs/architecture.md.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
import orjson
import torch
from numpy.typing import NDArray

from adaptive_routing.null_distribution import NullDistribution
from adaptive_routing.null_distribution.table import null_distribution_file
from adaptive_routing.routing.base import ExpertWeighting
from adaptive_routing.routing.router_rule import RouterRule
from adaptive_routing.routing_log.json_file import COMPRESSED, open_to_read, other_form, present
from adaptive_routing.routing_log.sequences import LoggedSequences
from adaptive_routing.system.errors import InputError
from adaptive_routing.system.files import MADE_ANEW
from adaptive_routing.system.json_files import read_json
from adaptive_routing.system.tensor_files import TensorFile

if TYPE_CHECKING:
    from adaptive_routing.routing_log.entries import Head

_HEAD_BYTES = 4096  # of a sample's line, which can be long, read at a time


class RoutingLog:
    """Reads an experiment's routing lazily: any sample's and layer's as arrays; a context manager.

    Arrays come from the tensors; a sample's id, loss and the beginning of its text from the JSON beside them,
    which is read only when one of these is asked for. A log may hold all this of its first samples only
    (`routing_log` in the config file): what it does not hold is an InputError that says so.

    Example:
        log = RoutingLog("results/logs/16experts_bh_a030_lambada_internal_routing.json")
        log.sample(3).p_values(layer=0)  # (tokens, experts)
        [len(sample.token_ids) for sample in log]

    Args:
        path: either file, `_internal_routing.json` (or `.json.zst`) or `_internal_routing.safetensors`; the
            summary that lies beside them stands for both.
        null_distribution: `NullDistribution` the run used; needed for p-values only, and read from the
            study's `calibration/` folder when not given.

    Raises:
        InputError: the file is missing, cut short or not that of an experiment.
    """

    def __init__(self, path: Path | str, null_distribution: NullDistribution | None = None) -> None:
        self.path = _tensors_of(Path(path))
        self.tensors = TensorFile(self.path)
        try:
            self.head: Head = self.tensors.metadata_json("head")
            self.sample_offsets = self._offsets("sample_offsets")
            self.sequence_offsets = self._offsets("sequence_offsets")
            self.sequences = LoggedSequences.of_tensors(self.tensors)
        except BaseException:
            self.tensors.close()
            raise
        self._null_distribution = null_distribution

    def _offsets(self, name):
        offsets, tokens = self.tensors.read(name), self.tensors.shape("expert_counts")[0]
        if not (len(offsets) and offsets[0] == 0 and offsets[-1] == tokens and (np.diff(offsets) >= 0).all()):
            raise InputError(f"{self.path}: {name} do not divide its {tokens} tokens; {MADE_ANEW}.")
        return offsets

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.tensors.close()

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.sample_offsets) - 1

    def sample(self, index: int) -> SampleRouting:
        """The routing of one sample (`SampleRouting`)."""
        if not 0 <= index < len(self):
            raise IndexError(f"{self.path.name} has {len(self)} samples, asked for number {index}")
        start, stop = self.sample_offsets[index : index + 2].tolist()
        return SampleRouting(self, index, start, stop)

    def __iter__(self) -> Iterator[SampleRouting]:
        """All samples, in their order."""
        return map(self.sample, range(len(self)))

    @functools.cached_property
    def _json_path(self):
        return present(self.path.with_suffix(".json"))

    @functools.cached_property
    def _entry_places(self):
        """(start, end) of each sample's line in the JSON."""
        path = self._json_path
        with open_to_read(path) as file:
            ends = list(itertools.accumulate(map(len, file)))
        samples = self._kept("json_samples")
        # The head, a line a sample, and what follows the samples.
        if len(ends) != samples + 2:
            raise InputError(f"{path} does not hold the {samples} samples of its tensors; {MADE_ANEW}.")
        return list(itertools.pairwise(ends))

    @functools.cached_property
    def _pair_offsets(self):
        """(S + 1,): sample i has pairs [offsets[i], offsets[i + 1]); None where the log holds none."""
        if "pair_experts" not in self.tensors:
            return None
        of_tokens = np.cumsum(self.tensors.read("expert_counts").sum(1, dtype=np.int64))
        return np.concatenate([[0], of_tokens])[self.sample_offsets]

    @functools.cached_property
    def _texts(self):
        """Each sample's text."""
        path = self.path.parent.parent / "datasets" / f"{self.head['dataset']}.json"
        texts = [one["text"] for one in read_json(path)["samples"]]
        if len(texts) != len(self):
            raise InputError(
                f"{path} holds {len(texts)} samples, but {self.path} has {len(self)}; they are of two studies"
            )
        return texts

    def _entry_head(self, index):
        """What the JSON says of a sample beside its layers."""
        self._expect_kept(index, "json_samples", ".json", "ids, texts and losses")
        start, stop = self._entry_places[index]
        path, head = self._json_path, b""
        with open_to_read(path) as file:
            file.seek(start)
            # Within a string the quotes would be escaped.
            while b',"layers":' not in head and len(head) < stop - start:
                head += file.read(min(_HEAD_BYTES, stop - start - len(head)))
        try:
            return orjson.loads(head.partition(b',"layers":')[0] + b"}")
        except ValueError as error:
            raise InputError(f"{path}: sample number {index} is no JSON ({error}); {MADE_ANEW}.") from error

    def _kept(self, what):
        """Of how many of the first samples the log holds something, by its name in `routing_log`."""
        return self.head.get("routing_log", {}).get(what, len(self))

    def _expect_kept(self, index, what, suffix, in_words):
        if index >= self._kept(what):
            raise InputError(
                f"{self.path.with_suffix(suffix)} holds the {in_words} of the first {self._kept(what)} of "
                f"its {len(self)} samples only, by the study's routing_log.{what}; asked for number {index}"
            )

    @property
    def num_layers(self) -> int:
        """L, MoE layers."""
        return self.tensors.shape("router_logits")[1]

    @property
    def num_experts(self) -> int:
        """E, experts in each layer."""
        return self.tensors.shape("router_logits")[2]

    @property
    def has_p_values(self) -> bool:
        """Whether the run's strategy had a null distribution."""
        return self.head["alpha"] is not None or self.head.get("null") is not None

    @property
    def null_distribution(self) -> NullDistribution:
        """The null distribution that gives p-values."""
        if self._null_distribution is None:
            self._null_distribution = NullDistribution.load(
                self.path.parent.parent / "calibration" / null_distribution_file(self.head.get("null"))
            )
        return self._null_distribution

    @property
    def weighting(self) -> ExpertWeighting:
        """How the run weighted selected experts."""
        routing = self.head["routing"]
        return ExpertWeighting(
            routing["temperature"],
            routing["renormalized"],
            self.router_rule,
            routing.get("weights") == "uniform",
        )

    @functools.cached_property
    def router_rule(self) -> RouterRule:
        """What the model's router makes of its logits: scores that rank experts, and weights."""
        return RouterRule.from_log(self.head["routing"], self.tensors)


def _tensors_of(path):
    """The tensors of a log, from the path of either file or of the summary beside them."""
    path = other_form(path) if path.suffix == COMPRESSED else path
    tensors = path.with_suffix(".safetensors")
    if tensors.is_file() or path.stem.endswith("_internal_routing"):
        return tensors
    pair = path.with_name(f"{path.stem}_internal_routing.safetensors")
    if pair.is_file():
        return pair
    if path.is_file():
        raise InputError(
            f"{path} is no routing log, and has none beside it; open logs/{{config}}_{{dataset}}"
            "_internal_routing.json, or the .safetensors of the same name."
        )
    return tensors


class SampleRouting:
    """One sample's routing: T tokens (all its sequences, one after another), L layers, E experts."""

    def __init__(self, log: RoutingLog, index: int, start: int, stop: int) -> None:
        self.log, self.index, self.start, self.stop = log, index, start, stop

    def _read(self, name):
        return self.log.tensors.read(name, self.start, self.stop)

    @functools.cached_property
    def _head(self):
        return self.log._entry_head(self.index)

    @property
    def sample_id(self) -> str:
        """The data set's name and the row's number."""
        return self._head["sample_id"]

    @property
    def text_preview(self) -> str:
        """The text's first characters, at most 100."""
        return self._head["text_preview"]

    @property
    def text(self) -> str:
        """The whole text, from the study's `datasets/` folder; of prompts, without what was generated."""
        return self.log._texts[self.index]

    @property
    def loss(self) -> float | None:
        """The sample's loss; None where it has none."""
        return self._head["loss"]

    @property
    def sequence_lengths(self) -> list[int]:
        """Tokens that belong to each sequence; they sum to T."""
        return np.diff(self.log.sequence_offsets[self._sequences.start : self._sequences.stop + 1]).tolist()

    @property
    def shared_tokens(self) -> list[int]:
        """Tokens of each sequence that stand before these and belong to another one, which begins alike."""
        return self.log.sequences.shared_tokens[self._sequences.start : self._sequences.stop].tolist()

    @property
    def shared_with(self) -> int | None:
        """The index of the sample to which this one's first tokens belong; None where they are its own."""
        other = int(self.log.sequences.shared_with[self.index])
        return None if other < 0 else other

    @property
    def sequence_rows(self) -> list[NDArray[np.int64]]:
        """For each sequence, where all of its tokens stand in the log's tensors, shared ones included."""
        return list(map(self.log.sequences.rows, self._sequences))

    @property
    def _sequences(self):
        return range(*self.log.sequences.sample_sequences[self.index : self.index + 2].tolist())

    @property
    def token_ids(self) -> NDArray[np.int32]:
        """(T,) int32."""
        return self._read("token_ids")

    @property
    def token_losses(self) -> NDArray[np.float32]:
        """(T,) float32, NaN where a token was not scored."""
        return self._read("token_losses")

    @property
    def expert_counts(self) -> NDArray[np.integer]:
        """(T, L)."""
        return self._read("expert_counts")

    def router_logits(self, layer: int) -> NDArray[np.float32]:
        """(T, E) float32; InputError where the log does not hold the sample's, as `p_values`."""
        self.log._expect_kept(self.index, "router_logits", ".safetensors", "router logits")
        return self._read("router_logits")[:, layer].astype(np.float32, copy=False)

    def selected(self, layer: int) -> NDArray[np.bool_]:
        """(T, E) bool: the selection."""
        packed = self._read("selected_experts")[:, layer]
        return np.unpackbits(packed, axis=-1, count=self.log.num_experts, bitorder="little").astype(bool)

    def p_values(self, layer: int) -> NDArray[np.float64] | None:
        """(T, E) float64, or None for a strategy without a null distribution, such as top-k."""
        if not self.log.has_p_values:
            return None
        choice = self.log.weighting.choice(torch.tensor(self.router_logits(layer)), layer)
        return self.log.null_distribution.p_values(choice, layer).numpy()

    def selected_experts(self, layer: int) -> list[NDArray[np.int64]]:
        """Expert indices per token, most significant first: list of T arrays."""
        if self._pairs is not None:
            experts, _, counts = self._pairs_of(layer)
            return np.split(experts, np.cumsum(counts)[:-1])
        return [row[row < self.log.num_experts] for row in self._slots(layer)]

    def expert_weights(self, layer: int) -> NDArray[np.float32]:
        """(T, E) float32: each expert's weight as applied, 0 where it was not selected."""
        if self._pairs is not None:
            experts, weights, counts = self._pairs_of(layer)
            by_expert = np.zeros((len(counts), self.log.num_experts), np.float32)
            by_expert[np.repeat(np.arange(len(counts)), counts), experts] = weights
            return by_expert
        slots = self._slots(layer)
        logits = torch.tensor(self.router_logits(layer))
        # In the slots of the run, so that renormalizing adds up in the same order.
        weights = self.log.weighting.weights(logits, torch.tensor(slots))
        weights = weights.to(getattr(torch, self.log.head["routing"]["dtype"])).float().numpy()
        by_expert = np.zeros((len(slots), self.log.num_experts + 1), np.float32)
        np.put_along_axis(by_expert, slots, weights, axis=-1)
        return by_expert[:, :-1]

    @functools.cached_property
    def _pairs(self):
        """Experts and weights of all pairs of a token and an expert; None where the logits give them."""
        tensors, bounds = self.log.tensors, self.log._pair_offsets
        if bounds is None:
            return None
        start, stop = bounds[self.index : self.index + 2].tolist()
        experts, weights = (tensors.read(f"pair_{name}", start, stop) for name in ("experts", "weights"))
        return experts.astype(np.int64), weights.astype(np.float32, copy=False)

    def _pairs_of(self, layer):
        """(experts, weights, counts (T,)) of a layer's pairs, token after token."""
        counts = self.expert_counts
        of_layer = np.repeat(np.tile(np.arange(counts.shape[1]), len(counts)), counts.reshape(-1)) == layer
        return *(column[of_layer] for column in self._pairs), counts[:, layer]

    def _slots(self, layer):
        """(T, K) as `Selection.experts`: most significant first, E in unused slots."""
        order = np.argsort(-self.router_logits(layer), axis=-1, kind="stable")
        used = np.take_along_axis(self.selected(layer), order, axis=-1)
        slots = np.where(used, order, self.log.num_experts)
        unused_last = np.argsort(~used, axis=-1, kind="stable")[:, : self.log.head["routing"]["max_k"]]
        return np.take_along_axis(slots, unused_last, axis=-1)
