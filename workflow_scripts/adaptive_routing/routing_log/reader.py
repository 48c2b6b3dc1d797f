"""A lazy reader of an experiment's routing: any sample's and layer's logits, selection and weights as arrays.

Formats: docs/architecture.md.
"""

from pathlib import Path

import numpy as np
import torch

from adaptive_routing.null_distribution import NullDistribution
from adaptive_routing.routing.base import ExpertWeighting
from adaptive_routing.system.files import reading
from adaptive_routing.system.tensor_files import TensorFile


class RoutingLog:
    """Reads an experiment's tensors lazily: any sample's and layer's routing as arrays; a context manager.

    Example:
        log = RoutingLog("results/logs/16experts_bh_a030_lambada_internal_routing.safetensors")
        log.sample(3).p_values(layer=0)  # (tokens, experts)

    Args:
        path: the `_internal_routing.safetensors` file; the summary stands beside it.
        null_distribution: `NullDistribution` the run used; needed for p-values only, and read from the
            study's `calibration/` folder when not given.

    Raises:
        InputError: the file is missing, cut short or not that of an experiment.
    """

    def __init__(self, path, null_distribution=None):
        self.path = Path(path)
        self.tensors = TensorFile(path)
        try:
            self.head = self.tensors.metadata_json("head")
            self.sample_offsets = self._offsets("sample_offsets")
            self.sequence_offsets = self._offsets("sequence_offsets")
        except BaseException:
            self.tensors.close()
            raise
        self._null_distribution = null_distribution

    def _offsets(self, name):
        offsets, tokens = self.tensors.read(name), self.tensors.shape("router_logits")[0]
        with reading(self.path):
            if [*offsets[:1], *offsets[-1:]] != [0, tokens] or (np.diff(offsets) < 0).any():
                raise ValueError(f"{name} do not divide its {tokens} tokens")
        return offsets

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.tensors.close()

    def __len__(self):
        """Number of samples."""
        return len(self.sample_offsets) - 1

    def sample(self, index):
        """The routing of one sample (`SampleRouting`)."""
        if not 0 <= index < len(self):
            raise IndexError(f"{self.path.name} has {len(self)} samples, asked for number {index}")
        return SampleRouting(self, int(self.sample_offsets[index]), int(self.sample_offsets[index + 1]))

    @property
    def num_experts(self):
        """E, experts in each layer."""
        return self.tensors.shape("router_logits")[2]

    @property
    def null_distribution(self):
        """The null distribution that gives p-values."""
        if self._null_distribution is None:
            self._null_distribution = NullDistribution.load(
                self.path.parent.parent / "calibration" / "null_distribution.safetensors"
            )
        return self._null_distribution

    @property
    def weighting(self):
        """How the run weighted selected experts."""
        routing = self.head["routing"]
        return ExpertWeighting(routing["temperature"], routing["renormalized"])


class SampleRouting:
    """One sample's routing: T tokens (all its sequences, one after another), L layers, E experts."""

    def __init__(self, log, start, stop):
        self.log, self.start, self.stop = log, start, stop

    def _read(self, name):
        return self.log.tensors.read(name, self.start, self.stop)

    @property
    def token_ids(self):
        """(T,) int32."""
        return self._read("token_ids")

    @property
    def token_losses(self):
        """(T,) float32, NaN where a token was not scored."""
        return self._read("token_losses")

    @property
    def expert_counts(self):
        """(T, L)."""
        return self._read("expert_counts")

    def router_logits(self, layer):
        """(T, E) float32."""
        return self._read("router_logits")[:, layer].astype(np.float32, copy=False)

    def selected(self, layer):
        """(T, E) bool: the selection."""
        packed = self._read("selected_experts")[:, layer]
        return np.unpackbits(packed, axis=-1, count=self.log.num_experts, bitorder="little").astype(bool)

    def p_values(self, layer):
        """(T, E) float64, or None for a strategy without a level alpha, such as top-k."""
        if self.log.head["alpha"] is None:
            return None
        return self.log.null_distribution.p_values(torch.tensor(self.router_logits(layer)), layer).numpy()

    def selected_experts(self, layer):
        """Expert indices per token, most significant first: list of T arrays."""
        return [row[row < self.log.num_experts] for row in self._slots(layer)]

    def expert_weights(self, layer):
        """(T, E) float32: each expert's weight as applied, 0 where it was not selected."""
        slots = self._slots(layer)
        logits = torch.tensor(self.router_logits(layer))
        # In the slots of the run, so that renormalizing adds up in the same order.
        weights = self.log.weighting.weights(logits, torch.tensor(slots))
        weights = weights.to(getattr(torch, self.log.head["routing"]["dtype"])).float().numpy()
        by_expert = np.zeros((len(slots), self.log.num_experts + 1), np.float32)
        np.put_along_axis(by_expert, slots, weights, axis=-1)
        return by_expert[:, :-1]

    def _slots(self, layer):
        """(T, K) as `Selection.experts`: most significant first, E in unused slots."""
        order = np.argsort(-self.router_logits(layer), axis=-1, kind="stable")
        used = np.take_along_axis(self.selected(layer), order, axis=-1)
        slots = np.where(used, order, self.log.num_experts)
        unused_last = np.argsort(~used, axis=-1, kind="stable")[:, : self.log.head["routing"]["max_k"]]
        return np.take_along_axis(slots, unused_last, axis=-1)
