"""Writes the routing of an experiment: the JSON of every decision, and the tensors.

Formats: docs/architecture.md. Samples arrive in any order (batches are sorted by length) and stand in
the files in theirs: JSON entries go to a spool and are put in order at the end, tensors go to their
place in a preallocated file. Memory does not grow with the number of samples.
"""

import contextlib
import json
import tempfile
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import orjson
import torch

from adaptive_routing.files import atomic_path
from adaptive_routing.log_entries import LoggedRouting, RoutingStatistics, first_tokens, format_samples

BATCHES_UNDER_WAY = 2  # in memory and not yet written

_SAFETENSORS_DTYPES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.uint8: "U8",
    torch.int16: "I16",
    torch.int32: "I32",
    torch.int64: "I64",
}


def logged_routing(samples, routing, strategy):
    """The arrays that the log's entries are made of.

    Args:
        samples: `LoggedSample`s.
        routing: `patching.BatchRouting` of all their tokens, on the CPU.
        strategy: gives the p-values.
    """
    shown = routing.router_logits[torch.from_numpy(first_tokens(samples))].float()  # (F, L, E)
    p_values = [strategy.p_values(shown[:, layer], layer) for layer in range(shown.shape[1])]
    return LoggedRouting(
        routing.experts.numpy(),
        routing.weights.float().numpy(),
        routing.counts.numpy(),
        shown.numpy(),
        None if p_values[0] is None else torch.stack(p_values, 1).numpy(),
    )


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
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="routing log")
        self._under_way = deque()

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
            try:
                if error is not None:
                    raise error
                self._finish()
            finally:
                self._thread.shutdown(cancel_futures=True)

    def _finish(self):
        self.wait()
        missing = self._entries.count(None)
        if missing:
            raise RuntimeError(f"{self.json_path.name}: {missing} samples were never written")
        self._assemble_json()
        for array in self._tensors.values():
            if isinstance(array, np.memmap):
                array.flush()

    def write(self, *batch):
        """Begin to write the samples of a batch, in a thread of its own; see `_write`.

        Waits while `BATCHES_UNDER_WAY` are being written, so that memory does not grow with the samples.
        """
        while len(self._under_way) >= BATCHES_UNDER_WAY:
            self._under_way.popleft().result()
        self._under_way.append(self._thread.submit(self._write, *batch))

    def wait(self):
        """Wait until everything begun is written; raises what went wrong there."""
        while self._under_way:
            self._under_way.popleft().result()

    def _write(self, indices, samples, routing, token_ids, token_losses):
        """Write the samples of a batch.

        Args:
            indices: of the samples in the data set.
            samples: `LoggedSample`, in the same order.
            routing: `BatchRouting` of all their tokens, on the CPU.
            token_ids: (N,) int64 tensor.
            token_losses: (N,) float32 tensor.
        """
        counts, experts = routing.counts.numpy(), routing.experts.numpy()
        tokens = {
            "router_logits": _raw(routing.router_logits),
            "expert_counts": counts,
            "selected_experts": pack_selection(routing.experts, self.num_experts),
            "token_ids": token_ids.numpy(),
            "token_losses": token_losses.numpy(),
        }
        first = 0
        for index, one in zip(indices, samples, strict=True):
            last = first + sum(one.lengths)
            for name, values in tokens.items():
                self._put(name, int(self.sample_offsets[index]), values[first:last])
            first = last
        self.statistics.add(experts, counts)
        entries = format_samples(
            samples,
            logged_routing(samples, routing, self.strategy),
            self.strategy.min_experts,
            self.strategy.max_experts,
        )
        for index, entry in zip(indices, entries, strict=True):
            begin = self._spool.tell()
            self._spool.write(entry)
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
