"""Writes the routing of an experiment: the JSON of every decision, and the tensors.

Formats: docs/architecture.md. Samples arrive in any order (batches are sorted by length) and stand in
the files in theirs: JSON entries, and `PAIRS` of adaptive configurations, go to files without names and are
put in order at the end; all else goes to its place in the tensors file. Memory does not grow with the number
of samples.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import queue
import tempfile
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import orjson
import torch
from numpy.typing import NDArray

from adaptive_routing.routing_log.arrays import logged_routing, raw_array
from adaptive_routing.routing_log.entries import RoutingStatistics
from adaptive_routing.routing_log.json_file import open_to_write, other_form
from adaptive_routing.routing_log.workers import PAIRS, LogWorkers, Portion, memory_file, write_at
from adaptive_routing.system.files import atomic_path

if TYPE_CHECKING:
    from adaptive_routing.routing.base import RoutingStrategy
    from adaptive_routing.routing.batch import BatchRouting
    from adaptive_routing.routing_log.entries import Head, LoggedSample
    from adaptive_routing.routing_log.sequences import LoggedSequences

# The log is written in portions of about this many tokens, by several workers at once. With 64 of 64 experts
# and 16 layers in bfloat16 the arrays of one portion are 25 MB, its text 60 MB.
_PORTION_TOKENS = 4096

# Until it is put in order; the text of 200 samples with up to 16 of 64 experts in 16 layers fits.
_TEXT_BYTES_IN_MEMORY = 1 << 28

_SAMPLES_AT_ONCE = 16  # whose pairs are in memory while they are put in order

_SAFETENSORS_DTYPES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.uint8: "U8",
    torch.int16: "I16",
    torch.int32: "I32",
    torch.int64: "I64",
}


class RoutingLogWriter:
    """Writes one experiment's internal-routing JSON and tensors; a context manager.

    Left without an exception, it puts both files in place, whole, and removes the JSON's other form, which an
    earlier run may have left; with one, neither.

    Args:
        json_path, tensors_path: the two files; the JSON is compressed where its name ends with `.zst`.
        head: the experiment's head (config, strategy, …), first in the JSON and the tensors' metadata. Its
            `routing_log`, where there is one, says of how many of the first samples everything is kept.
        sequence_lengths: per sample, how many tokens belong to each of its sequences.
        strategy: the routing strategy in force.
        num_layers, num_experts, dtype: of the router logits.
        second_pass_samples: number of first samples that a second pass repeats.
        workers: `LogWorkers` that do the writing; by default the caller's thread does.
        sequences: `LoggedSequences` of the same lengths, which say what sequences share; by default nothing.
    """

    def __init__(
        self,
        json_path: Path | str,
        tensors_path: Path | str,
        head: Head,
        sequence_lengths: Sequence[Sequence[int]],
        strategy: RoutingStrategy,
        num_layers: int,
        num_experts: int,
        dtype: torch.dtype,
        second_pass_samples: int = 0,
        workers: LogWorkers | None = None,
        sequences: LoggedSequences | None = None,
    ) -> None:
        self.json_path, self.tensors_path = Path(json_path), Path(tensors_path)
        self.head, self.strategy = head, strategy
        self.statistics = RoutingStatistics(num_layers, num_experts)
        sample_lengths = [sum(lengths) for lengths in sequence_lengths]
        self.sample_offsets = np.concatenate([[0], np.cumsum(sample_lengths)]).astype(np.int64)
        all_lengths = [length for lengths in sequence_lengths for length in lengths]
        self.sequence_offsets = np.concatenate([[0], np.cumsum(all_lengths)]).astype(np.int64)
        self._kept = head.get("routing_log") or dict.fromkeys(
            ("json_samples", "router_logits"), len(sample_lengths)
        )
        tokens = int(self.sample_offsets[-1])
        second_tokens = int(self.sample_offsets[second_pass_samples])
        packed = -(-num_experts // 8)
        count_dtype = torch.uint8 if num_experts <= 255 else torch.int16
        self._layout = {
            "router_logits": ((self._tokens_with_logits, num_layers, num_experts), dtype),
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
        self._sharing = {}
        if sequences is not None and sequences.is_shared:
            self._sharing = {
                "shared_tokens": sequences.shared_tokens.astype(np.int32),
                "shared_with": sequences.shared_with.astype(np.int32),
                "sample_sequences": sequences.sample_sequences,
            }
        for name, values in self._sharing.items():
            self._layout[name] = values.shape, getattr(torch, str(values.dtype))
        bias = strategy.weighting.rule.bias  # what gives choice scores, and p-values, from the logits
        self._choice_bias = None if bias is None else bias.float().cpu().numpy()
        if bias is not None:
            self._layout["choice_bias"] = (tuple(bias.shape), torch.float32)
        self._pairs_per_token = num_layers * strategy.max_experts
        self._keeps_all_logits = self._tokens_with_logits == tokens
        growing = {}
        if not self._keeps_all_logits:
            # What else would come from the logits. `pairs` is the most that there can be.
            pairs = tokens * self._pairs_per_token
            self._layout["native_experts"] = ((tokens, num_layers, packed), torch.uint8)
            dtypes = count_dtype, getattr(torch, head["routing"]["dtype"])
            growing = {name: ((pairs,), dtype) for name, dtype in zip(PAIRS, dtypes, strict=True)}
        self._growing = growing
        # Of each sample the number of pairs, and the bytes where its `PAIRS` stand until they are in order.
        self._pairs: list[Any] = [None] * len(sample_lengths)
        self._pair_bytes = 0
        self._entries: list[Any] = [None] * len(sample_lengths)  # (file, start, stop) of each
        self._workers = workers or LogWorkers(0)
        self._num_threads = max(1, self._workers.count)
        # A new thread would compute with OpenMP's own number of threads, not with torch's.
        threads = torch.set_num_threads, (torch.get_num_threads(),)
        self._threads = ThreadPoolExecutor(self._num_threads, "routing log", *threads)
        self._lock = threading.Lock()
        self._disk_files = set()
        self._under_way = deque()
        self._is_assembled = self._is_abandoned = False

    @property
    def _tokens_with_logits(self):
        return int(self.sample_offsets[self._kept["router_logits"]])

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self._json = stack.enter_context(atomic_path(self.json_path, durable=False))
            tensors = stack.enter_context(atomic_path(self.tensors_path, durable=False))
            self._text_files = queue.SimpleQueue()  # one a thread, each taken while it is written to
            for _ in range(self._num_threads):
                self._text_files.put(stack.enter_context(memory_file()))
            self._tensors = stack.enter_context(
                _SafetensorsFile(tensors, self._layout, self._growing, self.head)
            )
            self._pair_file = self._tensors
            if self._growing and not self.strategy.selects_fixed_number:
                # Where they belong in the tensors depends on the counts of all samples before.
                file = tempfile.TemporaryFile(dir=self.json_path.parent)
                self._pair_file = stack.enter_context(file)
            self._tensors.write("sample_offsets", 0, self.sample_offsets)
            self._tensors.write("sequence_offsets", 0, self.sequence_offsets)
            for name, values in self._sharing.items():
                self._tensors.write(name, 0, values)
            if self._choice_bias is not None:
                self._tensors.write("choice_bias", 0, self._choice_bias)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        with self._stack:
            try:
                if error is not None:
                    raise error
                if not self._is_assembled:
                    self.end_of_samples()
                self._wait()
            finally:
                self._is_abandoned = True
                self._threads.shutdown(cancel_futures=True)
        other_form(self.json_path).unlink(missing_ok=True)

    def end_of_samples(self) -> None:
        """Say that all samples have been handed over: the JSON is put together, until the context is left."""
        self._is_assembled = True
        written, self._under_way = self._under_way, deque()
        self._begin(self._assemble, written)

    def write(
        self,
        indices: list[int],
        samples: list[LoggedSample],
        routing: BatchRouting,
        token_ids: torch.Tensor,
        token_losses: torch.Tensor,
    ) -> None:
        """Begin to write the samples of a batch, in another thread.

        Returns when all but the last portions of the batch before are written, so that memory does not grow
        with the number of samples.

        Args:
            indices: of the samples in the data set.
            samples: `LoggedSample`, in the same order.
            routing: `BatchRouting` of all their tokens, on the CPU, with the model's own selection where the
                log does not keep all logits.
            token_ids: (N,) int64 tensor.
            token_losses: (N,) float32 tensor.
        """
        while len(self._under_way) > self._num_threads:
            self._under_way.popleft().result()
        for own, tokens in _portions(samples):
            lengths = [length for one in samples[own] for length in one.lengths]
            portion = routing.tokens(tokens, lengths), token_ids[tokens], token_losses[tokens]
            self._begin(self._write, indices[own], samples[own], *portion)

    def _begin(self, work, *arguments):
        self._under_way.append(self._threads.submit(work, *arguments))

    def _wait(self):
        """Wait until everything begun is written; raises what went wrong there."""
        while self._under_way:
            self._under_way.popleft().result()

    def _write(self, indices, samples, routing, token_ids, token_losses):
        lengths = [sum(one.lengths) for one in samples]
        first_tokens = self.sample_offsets[indices]
        with_entries = [place for place, index in enumerate(indices) if index < self._kept["json_samples"]]
        tensors = {
            "expert_counts": routing.counts.numpy(),
            "selected_experts": routing.packed.numpy(),
            "token_ids": token_ids.numpy(),
            "token_losses": token_losses.numpy(),
        }
        if self._keeps_all_logits:
            tensors["router_logits"] = raw_array(routing.router_logits)
        else:
            tensors["native_experts"] = routing.native.numpy()
            self._write_kept_logits(indices, lengths, routing.router_logits)
        portion = Portion(
            lengths,
            first_tokens.tolist(),
            logged_routing(samples, routing, self.strategy, with_entries),
            (self.strategy.min_experts, self.strategy.max_experts),
            {name: self._tensors.as_stored(name, values) for name, values in tensors.items()},
            {name: self._tensors.place(name) for name in tensors},
            self._place_pairs(indices, lengths, routing.counts) if self._growing else {},
            with_entries,
            [samples[place] for place in with_entries],
        )
        text = self._text_files.get()
        try:
            start = text.seek(0, os.SEEK_END)
            entry_lengths, statistics = self._workers.write_portion(
                portion, text, self._tensors, self._pair_file
            )
        finally:
            self._text_files.put(self._with_room(text))
        for index in indices:
            self._entries[index] = text, start, start
        for place, length in zip(with_entries, entry_lengths, strict=True):
            self._entries[indices[place]] = text, start, start + length
            start += length
        with self._lock:
            self.statistics.merge(statistics)

    def _write_kept_logits(self, indices, lengths, router_logits):
        for index, of_sample in zip(indices, router_logits.split(lengths), strict=True):
            if index < self._kept["router_logits"]:
                self._tensors.write("router_logits", int(self.sample_offsets[index]), raw_array(of_sample))

    def _place_pairs(self, indices, lengths, counts):
        """`pair_places` of a portion: among the tensors, or behind the pairs that there are."""
        sizes = [self._tensors.place(name)[1] for name in PAIRS]
        bounds = np.cumsum([0, *counts.numpy().sum(1, dtype=np.int64)])[np.cumsum([0, *lengths])]
        if self._pair_file is self._tensors:
            first = self.sample_offsets[indices] * self._pairs_per_token
            starts = [begin + first * size for begin, size in map(self._tensors.place, PAIRS)]
        else:
            with self._lock:
                begin = self._pair_bytes
                self._pair_bytes += int(bounds[-1]) * sum(sizes)
            starts = [begin + bounds[:-1] * sizes[0], begin + bounds[-1] * sizes[0] + bounds[:-1] * sizes[1]]
        starts = [one.tolist() for one in starts]
        for index, number, *places in zip(indices, np.diff(bounds).tolist(), *starts, strict=True):
            self._pairs[index] = number, places
        return dict(zip(PAIRS, zip(starts, sizes, strict=True), strict=True))

    def _with_room(self, text):
        """The file that the next portion's text goes to: this one, or one on the disk when this one is full.

        Text is written twice, since samples arrive in any order. What memory holds until then saves the disk
        half of the work; a large log's text goes to the disk.
        """
        is_full = text.seek(0, os.SEEK_END) >= _TEXT_BYTES_IN_MEMORY // self._num_threads
        if not is_full or text in self._disk_files:
            return text
        with self._lock:
            file = tempfile.TemporaryFile(dir=self.json_path.parent)  # noqa: SIM115 -- closed by the stack
            self._stack.enter_context(file)
            self._disk_files.add(file)
        return file

    def write_second_pass(
        self,
        index: int,
        greedy_tokens: NDArray[np.int64],
        second_greedy_tokens: NDArray[np.int64],
        second_selection: NDArray[np.uint8],
    ) -> None:
        """Write what both passes gave for one of the first samples (greedy tokens; packed selection)."""
        start = int(self.sample_offsets[index])
        self._tensors.write("greedy_tokens", start, greedy_tokens)
        self._tensors.write("second_pass_greedy_tokens", start, second_greedy_tokens)
        self._tensors.write("second_pass_selected_experts", start, second_selection)

    def _assemble(self, written):
        for portion in written:
            portion.result()
        missing = self._entries.count(None)
        if missing:
            raise RuntimeError(f"{self.json_path.name}: {missing} samples were never written")
        if self._growing and self._pair_file is not self._tensors:
            self._assemble_pairs()
        self._assemble_json()

    def _assemble_pairs(self):
        """Put the pairs in the order of the samples."""
        self._tensors.set_rows(dict.fromkeys(PAIRS, sum(number for number, _ in self._pairs)))
        for which, name in enumerate(PAIRS):
            place, size = self._tensors.place(name)
            for first in range(0, len(self._pairs), _SAMPLES_AT_ONCE):
                if self._is_abandoned:
                    return
                some = self._pairs[first : first + _SAMPLES_AT_ONCE]
                data = b"".join(
                    os.pread(self._pair_file.fileno(), number * size, places[which])
                    for number, places in some
                )
                if len(data) < size * sum(number for number, _ in some):
                    raise OSError(f"{self.tensors_path.name}: selected experts could not be read back")
                write_at(self._tensors.fileno(), np.frombuffer(data, np.uint8), place)
                place += len(data)

    def _assemble_json(self):
        with open_to_write(self._json) as output:
            output.write(orjson.dumps(self.head)[:-1] + b',"samples":[')
            for number, (file, start, stop) in enumerate(self._entries[: self._kept["json_samples"]]):
                if self._is_abandoned:
                    return
                output.write(b",\n" if number else b"\n")
                _copy(file, output, start, stop)
            output.write(b'\n],"aggregate_stats":')
            output.write(orjson.dumps(self.statistics.aggregate(), option=orjson.OPT_SERIALIZE_NUMPY))
            output.write(b"}\n")


def _portions(samples):
    """Yield (slice of the samples, slice of their tokens) of about `_PORTION_TOKENS` tokens."""
    first = start = stop = 0
    for number, one in enumerate(samples):
        stop += sum(one.lengths)
        if stop - start >= _PORTION_TOKENS or number == len(samples) - 1:
            yield slice(first, number + 1), slice(start, stop)
            first, start = number + 1, stop


def _copy(source, target, start, stop):
    """Copy bytes [start, stop) of an open file to the end of another, within the kernel where it can."""
    source.flush()
    is_plain = isinstance(target, io.BufferedWriter)
    while start < stop:
        copied = _copy_in_kernel(source, target, start, stop) if is_plain else 0
        if not copied:
            data = os.pread(source.fileno(), min(stop - start, 1 << 22), start)
            if not data:
                raise OSError(f"the routing log's text ends {stop - start} bytes early")
            target.write(data)
            copied = len(data)
        start += copied


def _copy_in_kernel(source, target, start, stop):
    """How many bytes were copied; none where the system or the file system cannot."""
    target.flush()
    try:
        return os.sendfile(target.fileno(), source.fileno(), start, stop - start)
    except (AttributeError, OSError):  # not on Linux, or not on this file system
        return 0


class _SafetensorsFile:
    """A safetensors file of a given layout, at first all zeros, whose tensors are written piece by piece.

    The safetensors library writes whole tensors from memory only; the format itself is an 8-byte header
    length, a JSON header and the data (https://github.com/huggingface/safetensors, "Format").

    layout, growing: (shape, dtype) by name. Tensors of the second kind stand last, and may turn out to have
    fewer rows than these (`set_rows`).
    """

    def __init__(self, path, layout, growing, head):
        if growing:  # behind tensors of single bytes
            sizes = (int(np.prod(shape)) * dtype.itemsize for shape, dtype in layout.values())
            layout = layout | {"padding": ((-sum(sizes) % 8,), torch.uint8)}
        # Wide types first keeps every tensor aligned.
        self._layout = {
            name: one
            for tensors in (layout, growing)
            for name, one in sorted(tensors.items(), key=lambda item: -item[1][1].itemsize)
        }
        self._head = json.dumps(head)
        encoded = self._header()
        self._start = 8 + len(encoded) + -len(encoded) % 8
        self._file = open(path, "r+b", buffering=0)  # noqa: SIM115 -- closed by `__exit__`
        self._write_header(encoded)

    def _write_header(self, encoded):
        """Write the header, and make the file as long as the tensors need."""
        encoded = encoded.ljust(self._start - 8)
        os.pwrite(self.fileno(), len(encoded).to_bytes(8, "little") + encoded, 0)
        self._file.truncate(self._start + self._end)

    def _header(self):
        """The header as JSON; notes where each tensor begins: byte in the data, bytes of a row, dtype."""
        header: dict[str, Any] = {"__metadata__": {"head": self._head}}
        places, end = {}, 0
        for name, (shape, dtype) in self._layout.items():
            row = int(np.prod(shape[1:])) * dtype.itemsize
            numpy_dtype = np.uint16 if dtype == torch.bfloat16 else torch.empty(0, dtype=dtype).numpy().dtype
            places[name] = end, row, numpy_dtype
            begin, end = end, end + int(shape[0]) * row
            header[name] = {
                "dtype": _SAFETENSORS_DTYPES[dtype],
                "shape": [int(length) for length in shape],
                "data_offsets": [begin, end],
            }
        self._places, self._end = places, end
        return json.dumps(header).encode()

    def set_rows(self, rows):
        """Give the last tensors other numbers of rows, by name, before they are written."""
        for name, number in rows.items():
            shape, dtype = self._layout[name]
            self._layout[name] = (number, *shape[1:]), dtype
        self._write_header(self._header())  # shorter numbers: it still fits in front of the data

    def place(self, name):
        """The byte where a tensor starts, and the bytes of a row."""
        begin, row_bytes, _ = self._places[name]
        return self._start + begin, row_bytes

    def as_stored(self, name, values):
        """Values as the file holds them: C-contiguous, of the tensor's dtype."""
        return np.ascontiguousarray(values, self._places[name][2])

    def write(self, name, row, values):
        """Write rows of a tensor from `row` on."""
        offset, row_bytes = self.place(name)
        write_at(self.fileno(), self.as_stored(name, values), offset + row * row_bytes)

    def fileno(self):
        return self._file.fileno()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()
