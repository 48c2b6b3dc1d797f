"""The routing of an experiment on disk: the writer of the JSON log and of the tensors, and a lazy reader.

Formats: docs/architecture.md. Samples arrive in any order (batches are sorted by length) and stand in
the files in theirs: JSON entries go to a spool and are put in order at the end, tensors go to their
place in a preallocated file. Memory does not grow with the number of samples.
"""

import contextlib
import json
import tempfile
from pathlib import Path

import numpy as np
import orjson
import torch

from adaptive_routing.files import atomic_path
from adaptive_routing.tensor_files import TensorFile

PREVIEW_CHARACTERS = 100
SAMPLE_TOKENS = 5  # tokens whose logits and p-values the JSON shows

_SAFETENSORS_DTYPES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.uint8: "U8",
    torch.int16: "I16",
    torch.int32: "I32",
    torch.int64: "I64",
}


class RoutingStatistics:
    """Sums over tokens that become `aggregate_stats`; its size does not depend on the tokens seen."""

    def __init__(self, num_layers, num_experts):
        self.num_experts = num_experts
        self.count_histogram = np.zeros((num_layers, num_experts + 1), np.int64)
        self.expert_usage = np.zeros((num_layers, num_experts), np.int64)

    def add(self, experts, counts):
        """Add tokens: experts (N, L, K) with E in unused slots, counts (N, L)."""
        for layer in range(counts.shape[1]):
            self.count_histogram[layer] += np.bincount(counts[:, layer], minlength=self.num_experts + 1)
            used = np.bincount(experts[:, layer].reshape(-1), minlength=self.num_experts + 1)
            self.expert_usage[layer] += used[: self.num_experts]

    def aggregate(self):
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


def sample_log(sample_id, text_preview, loss, routing, strategy):
    """One entry of `samples`.

    Args:
        sample_id: str.
        text_preview: text, cut to 100 characters.
        loss: float or None.
        routing: `patching.BatchRouting` of the sample, on the CPU; more than one length means that
            several sequences follow one another.
        strategy: gives the p-values and the limits that make ceiling and floor hits.
    """
    entry = {"sample_id": sample_id, "text_preview": text_preview[:PREVIEW_CHARACTERS], "loss": loss}
    entry["num_tokens"] = int(routing.counts.shape[0])
    if len(routing.lengths) > 1:
        entry["sequence_lengths"] = list(routing.lengths)
    num_layers, num_experts = routing.router_logits.shape[1:]
    experts, counts = routing.experts.numpy(), routing.counts.numpy()
    weights = routing.weights.float().numpy()
    first_logits = routing.router_logits[:SAMPLE_TOKENS].float()
    used = experts < num_experts
    entry["layers"] = [
        {
            "layer": layer,
            "router_logits_shape": [len(counts), num_experts],
            "selected_experts": _ragged(experts[:, layer], counts[:, layer]),
            "expert_weights": weights[:, layer][used[:, layer]],
            "expert_counts": np.ascontiguousarray(counts[:, layer]),
            "router_logits_sample": first_logits[:, layer].contiguous().numpy(),
            "p_values_sample": _p_values(strategy, first_logits[:, layer], layer),
            "layer_stats": _layer_stats(counts[:, layer], strategy),
        }
        for layer in range(num_layers)
    ]
    return entry


def _ragged(experts, counts):
    if (counts == counts[0]).all():
        return np.ascontiguousarray(experts[:, : counts[0]])
    return [row[:count] for row, count in zip(experts.tolist(), counts.tolist(), strict=True)]


def _p_values(strategy, router_logits, layer):
    p_values = strategy.p_values(router_logits, layer)
    return None if p_values is None else p_values.numpy()


def _layer_stats(counts, strategy):
    # A fixed number of experts has neither ceiling nor floor to hit.
    adaptive = strategy.min_experts < strategy.max_experts
    return {
        "avg_experts": float(counts.mean()),
        "std_experts": float(counts.std()),
        "ceiling_hits": int((counts == strategy.max_experts).sum()) if adaptive else None,
        "floor_hits": int((counts == strategy.min_experts).sum()) if adaptive else None,
    }


def pack_selection(experts, num_experts):
    """Selected experts (N, L, K), unused slots E, as packed bits (N, L, ceil(E / 8)) uint8."""
    selected = torch.zeros(*experts.shape[:2], num_experts + 1, dtype=torch.bool, device=experts.device)
    selected.scatter_(-1, experts.long(), True)
    return np.packbits(selected[..., :num_experts].cpu().numpy(), axis=-1, bitorder="little")


class RoutingLogWriter:
    """Writes one experiment's internal-routing JSON and tensors; a context manager.

    Leaving it without an exception puts both files in place, whole; with one, neither.

    Args:
        json_path, tensors_path: the two files.
        head: the experiment's head (config, strategy, …), first in the JSON and the tensors' metadata.
        sequence_lengths: per sample, the lengths of its sequences in tokens.
        strategy: the routing strategy in force.
        num_layers, num_experts, dtype: of the router logits.
        second_pass_samples: number of first samples that a second pass repeats.
    """

    def __init__(
        self, json_path, tensors_path, head, sequence_lengths, strategy, num_layers, num_experts, dtype,
        second_pass_samples=0,
    ):  # fmt: skip
        self.json_path, self.tensors_path = Path(json_path), Path(tensors_path)
        self.head, self.strategy, self.num_experts = head, strategy, num_experts
        self.statistics = RoutingStatistics(num_layers, num_experts)
        sample_lengths = [sum(lengths) for lengths in sequence_lengths]
        self.sample_offsets = np.concatenate([[0], np.cumsum(sample_lengths)]).astype(np.int64)
        all_lengths = [length for lengths in sequence_lengths for length in lengths]
        self.sequence_offsets = np.concatenate([[0], np.cumsum(all_lengths)]).astype(np.int64)
        tokens = int(self.sample_offsets[-1])
        second_tokens = int(self.sample_offsets[second_pass_samples])
        packed = -(-num_experts // 8)
        count_dtype = torch.uint8 if num_experts <= 255 else torch.int16
        self._layout = {
            "router_logits": ((tokens, num_layers, num_experts), dtype),
            "expert_counts": ((tokens, num_layers), count_dtype),
            "selected_experts": ((tokens, num_layers, packed), torch.uint8),
            "token_ids": ((tokens,), torch.int32),
            "token_losses": ((tokens,), torch.float32),
            "sample_offsets": (self.sample_offsets.shape, torch.int64),
            "sequence_offsets": (self.sequence_offsets.shape, torch.int64),
            "greedy_tokens": ((second_tokens,), torch.int32),
            "second_pass_greedy_tokens": ((second_tokens,), torch.int32),
            "second_pass_selected_experts": ((second_tokens, num_layers, packed), torch.uint8),
        }
        self._entries = [None] * len(sample_lengths)  # (start, stop) in the spool

    def __enter__(self):
        with contextlib.ExitStack() as stack:
            self._json = stack.enter_context(atomic_path(self.json_path))
            tensors = stack.enter_context(atomic_path(self.tensors_path))
            self._spool = stack.enter_context(tempfile.TemporaryFile(dir=self.json_path.parent))
            self._tensors = _create_safetensors(tensors, self._layout, self.head)
            self._put("sample_offsets", 0, self.sample_offsets)
            self._put("sequence_offsets", 0, self.sequence_offsets)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind, error, traceback):
        with self._stack:
            if error is not None:
                raise error
            self._finish()

    def _finish(self):
        missing = self._entries.count(None)
        if missing:
            raise RuntimeError(f"{self.json_path.name}: {missing} samples were never written")
        self._assemble_json()
        for array in self._tensors.values():
            if isinstance(array, np.memmap):
                array.flush()

    def write_sample(self, index, sample_id, text_preview, loss, routing, token_ids, token_losses):
        """Write one sample: its `BatchRouting` on the CPU, token ids and losses (NumPy, one per token)."""
        start = int(self.sample_offsets[index])
        counts, experts = routing.counts.numpy(), routing.experts
        self._put("router_logits", start, _raw(routing.router_logits))
        self._put("expert_counts", start, counts)
        self._put("selected_experts", start, pack_selection(experts, self.num_experts))
        self._put("token_ids", start, token_ids)
        self._put("token_losses", start, token_losses)
        self.statistics.add(experts.numpy(), counts)
        entry = sample_log(sample_id, text_preview, loss, routing, self.strategy)
        begin = self._spool.tell()
        self._spool.write(orjson.dumps(entry, option=orjson.OPT_SERIALIZE_NUMPY))
        self._entries[index] = (begin, self._spool.tell())

    def write_second_pass(self, index, greedy_tokens, second_greedy_tokens, second_selection):
        """Write what both passes gave for one of the first samples (greedy tokens; packed selection)."""
        start = int(self.sample_offsets[index])
        self._put("greedy_tokens", start, greedy_tokens)
        self._put("second_pass_greedy_tokens", start, second_greedy_tokens)
        self._put("second_pass_selected_experts", start, second_selection)

    def _put(self, name, start, values):
        if len(values):
            self._tensors[name][start : start + len(values)] = values

    def _assemble_json(self):
        with open(self._json, "wb") as output:
            output.write(orjson.dumps(self.head)[:-1] + b',"samples":[')
            for number, (start, stop) in enumerate(self._entries):
                output.write(b",\n" if number else b"\n")
                self._spool.seek(start)
                _copy(self._spool, output, stop - start)
            output.write(b'\n],"aggregate_stats":')
            output.write(orjson.dumps(self.statistics.aggregate(), option=orjson.OPT_SERIALIZE_NUMPY))
            output.write(b"}\n")


def _copy(source, target, size):
    while size:
        chunk = source.read(min(size, 1 << 22))
        target.write(chunk)
        size -= len(chunk)


def _raw(tensor):
    """A tensor as NumPy, bfloat16 as its bits."""
    tensor = tensor.contiguous()
    return tensor.view(torch.uint16).numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()


def _create_safetensors(path, layout, head):
    """Create a safetensors file of the given layout, zero-filled; returns writable arrays by name.

    The safetensors library writes whole tensors from memory only; the format itself is an 8-byte header
    length, a JSON header and the data (https://github.com/huggingface/safetensors, "Format").
    """
    header = {"__metadata__": {"head": json.dumps(head)}}
    end = 0
    # Wide types first keeps every tensor aligned.
    for name, (shape, dtype) in sorted(layout.items(), key=lambda item: -item[1][1].itemsize):
        size = int(np.prod(shape)) * dtype.itemsize
        header[name] = {
            "dtype": _SAFETENSORS_DTYPES[dtype],
            "shape": [int(length) for length in shape],
            "data_offsets": [end, end + size],
        }
        end += size
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with open(path, "r+b") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        file.truncate(8 + len(encoded) + end)
    arrays = {}
    for name, (shape, dtype) in layout.items():
        numpy_dtype = np.uint16 if dtype == torch.bfloat16 else torch.empty(0, dtype=dtype).numpy().dtype
        offset = 8 + len(encoded) + header[name]["data_offsets"][0]
        empty = 0 in shape
        arrays[name] = (
            np.empty(shape, numpy_dtype)
            if empty
            else np.memmap(path, numpy_dtype, "r+", offset=offset, shape=tuple(int(n) for n in shape))
        )
    return arrays


class RoutingLog:
    """Reads an experiment's tensors lazily: any sample's and layer's routing as arrays.

    Example:
        log = RoutingLog("results/logs/16experts_bh_a030_lambada_internal_routing.safetensors")
        log.sample(3).p_values(layer=0)  # (tokens, experts)

    Args:
        path: the `_internal_routing.safetensors` file; the summary stands beside it.
        null_distribution: `NullDistribution` the run used; needed for p-values only, and read from the
            study's `calibration/` folder when not given.
    """

    def __init__(self, path, null_distribution=None):
        self.path = Path(path)
        self.tensors = TensorFile(path)
        self.head = json.loads(self.tensors.metadata["head"])
        self.sample_offsets = self.tensors.read("sample_offsets")
        self.sequence_offsets = self.tensors.read("sequence_offsets")
        self._null_distribution = null_distribution

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
            from adaptive_routing.null_distribution import NullDistribution

            self._null_distribution = NullDistribution.load(
                self.path.parent.parent / "calibration" / "null_distribution.safetensors"
            )
        return self._null_distribution

    @property
    def weighting(self):
        """How the run weighted selected experts."""
        from adaptive_routing.routing.base import ExpertWeighting

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
        return self._read("router_logits")[:, layer]

    def selected(self, layer):
        """(T, E) bool: the selection."""
        packed = self._read("selected_experts")[:, layer]
        return np.unpackbits(packed, axis=-1, count=self.log.num_experts, bitorder="little").astype(bool)

    def p_values(self, layer):
        """(T, E) float64, or None for top-k."""
        if self.log.head["strategy"] == "topk":
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
