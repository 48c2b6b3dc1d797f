"""The routing log written by processes of their own, so that the process with the model only computes.

Text is made by one core at a time in a Python process. A worker gets open files: the arrays, in one without a
name, and those to write to. However a run ends, nothing stays behind. It ends with its parent, which closes
its socket.
"""

import contextlib
import itertools
import json
import mmap
import os
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from adaptive_routing.routing_log.entries import (
    LoggedRouting,
    LoggedSample,
    RoutingStatistics,
    format_samples,
    tokens_of,
)
from adaptive_routing.system.cores import usable_cores
from adaptive_routing.system.errors import HostError
from adaptive_routing.system.processes import describe_end

# In a log that keeps the logits of some samples only: each token's selected experts, layer after layer,
# and their weights.
PAIRS = "pair_experts", "pair_weights"

MOST_WORKERS = 8
_CORES_FOR_OTHERS = 2  # the process with the model, and what Snakemake runs beside it


class OpenFile(Protocol):
    """An open file of the system."""

    def fileno(self) -> int:
        """Its descriptor."""


@dataclass(frozen=True)
class Portion:
    """Some samples of a run, on their way into its two log files.

    Attributes:
        lengths: tokens of each sample, N in all.
        first_tokens: of each sample, its first token among all the run's.
        routing: `LoggedRouting` of the N tokens.
        limits: the fewest and the most experts of the strategy.
        tensors: arrays (N, ...) for the tensors file, by name, as they stand there.
        places: by the same names, the byte in the file where the tensor starts, and the bytes of a token.
        pair_places: of `PAIRS`, by name, the byte in the file of pairs where each sample's start, and the
            bytes of one; empty where the log has none.
        with_entries: places of the samples that the JSON holds, among those of the portion.
        samples: these `LoggedSample`s.
    """

    lengths: list[int]
    first_tokens: list[int]
    routing: LoggedRouting
    limits: tuple[int, int]
    tensors: dict[str, NDArray[Any]]
    places: dict[str, tuple[int, int]]
    pair_places: dict[str, tuple[list[int], int]]
    with_entries: list[int]
    samples: list[LoggedSample]


def write_portion(
    portion: Portion, text: BinaryIO, tensors: OpenFile, pairs: OpenFile
) -> tuple[list[int], RoutingStatistics]:
    """Append a portion's JSON entries to a file, and put its tensors and pairs in their places in others.

    Returns (bytes of each entry, `RoutingStatistics` of all tokens).
    """
    routing, stops = portion.routing, np.cumsum([0, *portion.lengths])
    for (start, stop), first in zip(itertools.pairwise(stops), portion.first_tokens, strict=True):
        for name, array in portion.tensors.items():
            offset, size = portion.places[name]
            write_at(tensors.fileno(), array[start:stop], offset + first * size)
    if portion.pair_places:
        _write_pairs(portion, stops, pairs)
    if portion.samples:
        told = routing
        if len(portion.with_entries) < len(portion.lengths):
            told = routing.tokens(tokens_of(portion.lengths, portion.with_entries))
        entries = format_samples(portion.samples, told, *portion.limits)
        lengths = [text.write(entry) for entry in entries]
    else:
        lengths = []
    text.flush()
    statistics = RoutingStatistics(*routing.first_logits.shape[1:])
    statistics.add(routing.experts, routing.counts)
    return lengths, statistics


def _write_pairs(portion, stops, file):
    """Write each sample's selected experts and their weights, sample after sample up to the given tokens."""
    routing = portion.routing
    used = np.arange(routing.experts.shape[-1]) < routing.counts[..., None]  # (N, L, K)
    bounds = np.cumsum([0, *routing.counts.sum(1, dtype=np.int64)])[stops]
    for name, values in zip(PAIRS, (routing.experts, routing.weights), strict=True):
        starts, size = portion.pair_places[name]
        pairs = values[used].astype(f"u{size}" if name == PAIRS[0] else values.dtype)
        for (start, stop), place in zip(itertools.pairwise(bounds), starts, strict=True):
            write_at(file.fileno(), pairs[start:stop], place)


def write_at(descriptor: int, array: NDArray[Any], offset: int) -> None:
    """Write a C-contiguous array to a file from a byte on; several processes may, each its own bytes."""
    data = memoryview(array).cast("B") if array.size else b""  # ty: ignore[invalid-argument-type]
    while data:
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written


class LogWorkers:
    """A pool of workers, used by threads: each call of `write_portion` takes one. A context manager.

    Args:
        count: how many; with 0 the calling thread does the work. By default for each core to spare.
    """

    def __init__(self, count: int | None = None) -> None:
        if count is None:
            count = min(MOST_WORKERS, max(0, usable_cores() - _CORES_FOR_OTHERS))
        self.count = count
        self._workers = [_Worker() for _ in range(count)]
        self._idle = queue.SimpleQueue()
        for worker in self._workers:
            self._idle.put(worker)

    def write_portion(
        self, portion: Portion, text: BinaryIO, tensors: OpenFile, pairs: OpenFile
    ) -> tuple[list[int], RoutingStatistics]:
        """As the function of that name, by a worker."""
        if not self._workers:
            return write_portion(portion, text, tensors, pairs)
        worker = self._idle.get()
        try:
            return worker.write_portion(portion, text, tensors, pairs)
        finally:
            self._idle.put(worker)

    def close(self) -> None:
        """End the workers."""
        for worker in self._workers:
            worker.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Worker:
    """The parent's side of one worker."""

    def __init__(self):
        self._socket, other = socket.socketpair()
        paths = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
        with other:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", __name__, str(other.fileno())],
                pass_fds=[other.fileno()],
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
            )

    def write_portion(self, portion, *files):
        with memory_file() as arrays:
            _write_request(arrays, portion)
            try:
                socket.send_fds(self._socket, [b"\n"], [file.fileno() for file in (arrays, *files)])
                with self._socket.makefile("rb") as replies:
                    reply = replies.readline()
            except OSError:
                reply = b""
        if not reply:
            end = describe_end(self._process.wait())
            raise HostError(f"a log worker (process {self._process.pid}) {end}")
        answer = json.loads(reply)
        if "error" in answer:
            message = f"a log worker failed:\n{answer['error']}"
            raise OSError(answer["errno"], message) if answer["errno"] else RuntimeError(message)
        statistics = RoutingStatistics(*portion.routing.first_logits.shape[1:])
        statistics.count_histogram[:] = answer["count_histogram"]
        statistics.expert_usage[:] = answer["expert_usage"]
        return answer["lengths"], statistics

    def close(self):
        self._socket.close()
        self._process.wait()


def memory_file() -> BinaryIO:
    """An open file in memory, or where there is no such thing a temporary one; it has no name."""
    if hasattr(os, "memfd_create"):
        return open(os.memfd_create("portion"), "w+b")
    return tempfile.TemporaryFile()


_ARRAYS = "routing", "tensors"  # of a portion; the rest goes into the header


def _write_request(file, portion):
    """The length of a JSON header, the header, and the arrays, each at a multiple of 8 bytes."""
    arrays = {f"routing.{one.name}": getattr(portion.routing, one.name) for one in fields(portion.routing)}
    arrays |= {f"tensors.{name}": array for name, array in portion.tensors.items()}
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items() if array is not None}
    header = {one.name: getattr(portion, one.name) for one in fields(portion) if one.name not in _ARRAYS}
    header["samples"] = [vars(one) for one in portion.samples]
    header["arrays"] = {name: (array.dtype.str, array.shape) for name, array in arrays.items()}
    encoded = json.dumps(header).encode()
    file.write(len(encoded).to_bytes(8, "little") + encoded + bytes(-len(encoded) % 8))
    for array in arrays.values():
        file.write(array)
        file.write(bytes(-array.nbytes % 8))
    file.flush()


def _read_request(memory):
    length = int.from_bytes(memory[:8], "little")
    header = json.loads(memory[8 : 8 + length])
    tuples = ("lengths", "shared_tokens")
    header["samples"] = [
        LoggedSample(**(one | {name: tuple(one[name]) for name in tuples})) for one in header["samples"]
    ]
    arrays, offset = {"routing": {"first_p_values": None}, "tensors": {}}, 8 + length + -length % 8
    for name, (dtype, shape) in header.pop("arrays").items():
        kind, _, name = name.partition(".")
        array = np.frombuffer(memory, dtype, int(np.prod(shape)), offset).reshape(shape)
        arrays[kind][name] = array
        offset += array.nbytes + -array.nbytes % 8
    routing = LoggedRouting(**arrays["routing"])  # ty: ignore[invalid-argument-type]
    return Portion(routing=routing, tensors=arrays["tensors"], **header)  # ty: ignore[invalid-argument-type]


def _serve(connection):
    """Do what comes until the parent closes the socket or dies."""
    while True:
        message, descriptors, *_ = socket.recv_fds(connection, 1, 4)
        if not message:
            return
        with contextlib.ExitStack() as stack:
            modes = "rb", "wb", "r+b", "r+b"
            arrays, text, tensors, pairs = (
                stack.enter_context(open(one, mode)) for one, mode in zip(descriptors, modes, strict=True)
            )
            try:
                memory = mmap.mmap(arrays.fileno(), 0, access=mmap.ACCESS_READ)
                lengths, statistics = write_portion(_read_request(memory), text, tensors, pairs)
                answer = {
                    "lengths": lengths,
                    "count_histogram": statistics.count_histogram.tolist(),
                    "expert_usage": statistics.expert_usage.tolist(),
                }
            except Exception as error:
                answer = {"error": traceback.format_exc(), "errno": getattr(error, "errno", None)}
        connection.sendall(json.dumps(answer).encode() + b"\n")


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    with contextlib.suppress(ConnectionError), socket.socket(fileno=int(sys.argv[1])) as _connection:
        _serve(_connection)
