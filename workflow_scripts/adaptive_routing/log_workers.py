"""Log entries formatted by processes of their own, so that the process with the model only computes.

Text is made by one core at a time in a Python process. A worker gets two open files without names, one with
the arrays and one for the entries: however a run ends, nothing stays behind. It ends with its parent, which
closes its socket.
"""

import contextlib
import functools
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
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np

from adaptive_routing.log_entries import LoggedRouting, LoggedSample, RoutingStatistics, format_samples
from adaptive_routing.models import cpu_count

MOST_WORKERS = 4
_CORES_FOR_OTHERS = 2  # the process with the model, and what Snakemake runs beside it


def format_entries(samples, routing, limits, file):
    """Append the entries of `LoggedSample`s with their `LoggedRouting` to an open file.

    Args:
        samples, routing: see `log_entries`.
        limits: the fewest and the most experts of the strategy.
        file: open for writing in binary; flushed at the end.

    Returns:
        (bytes of each entry, `RoutingStatistics` of their tokens).
    """
    lengths = [file.write(entry) for entry in format_samples(samples, routing, *limits)]
    file.flush()
    statistics = RoutingStatistics(routing.first_logits.shape[1], routing.first_logits.shape[2])
    statistics.add(routing.experts, routing.counts)
    return lengths, statistics


class LogWorkers:
    """A pool of workers, used by threads: each call of `format_entries` takes one. A context manager.

    Args:
        count: how many; 0 formats in the calling thread.
    """

    def __init__(self, count=None):
        if count is None:
            count = min(MOST_WORKERS, max(0, cpu_count() - _CORES_FOR_OTHERS))
        self.count = count
        self._workers = [_Worker() for _ in range(count)]
        self._idle = queue.SimpleQueue()
        for worker in self._workers:
            self._idle.put(worker)

    def format_entries(self, samples, routing, limits, file):
        """As the function of that name, by a worker."""
        if not self._workers:
            return format_entries(samples, routing, limits, file)
        worker = self._idle.get()
        try:
            return worker.format_entries(samples, routing, limits, file)
        finally:
            self._idle.put(worker)

    def close(self):
        """End the workers."""
        for worker in self._workers:
            worker.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class _Worker:
    """The parent's side of one worker."""

    def __init__(self):
        self._socket, other = socket.socketpair()
        paths = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
        with other:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", __name__, str(other.fileno())],
                pass_fds=[other.fileno()],
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
            )

    def format_entries(self, samples, routing, limits, file):
        with tempfile.TemporaryFile(dir=_memory_folder()) as arrays:
            _write_request(arrays, samples, routing, limits)
            try:
                socket.send_fds(self._socket, [b"\n"], [arrays.fileno(), file.fileno()])
                with self._socket.makefile("rb") as replies:
                    reply = replies.readline()
            except OSError:
                reply = b""
        if not reply:
            raise RuntimeError(f"a log worker ended with exit status {self._process.wait()}")
        answer = json.loads(reply)
        if "error" in answer:
            raise RuntimeError(f"a log worker failed:\n{answer['error']}")
        num_layers, num_experts = routing.first_logits.shape[1:]
        statistics = RoutingStatistics(num_layers, num_experts)
        statistics.count_histogram[:] = answer["count_histogram"]
        statistics.expert_usage[:] = answer["expert_usage"]
        return answer["lengths"], statistics

    def close(self):
        self._socket.close()
        self._process.wait()


@functools.cache
def _memory_folder():
    shared = Path("/dev/shm")
    return shared if os.access(shared, os.W_OK) else None


def _write_request(file, samples, routing, limits):
    """The length of a JSON header, the header, and the arrays, each at a multiple of 8 bytes."""
    arrays = {one.name: getattr(routing, one.name) for one in fields(routing)}
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items() if array is not None}
    header = {
        "samples": [asdict(one) for one in samples],
        "limits": limits,
        "arrays": {name: (array.dtype.str, array.shape) for name, array in arrays.items()},
    }
    encoded = json.dumps(header).encode()
    file.write(len(encoded).to_bytes(8, "little") + encoded + bytes(-len(encoded) % 8))
    for array in arrays.values():
        file.write(array)
        file.write(bytes(-array.nbytes % 8))
    file.flush()


def _read_request(memory):
    length = int.from_bytes(memory[:8], "little")
    header = json.loads(memory[8 : 8 + length])
    samples = [LoggedSample(**{**one, "lengths": tuple(one["lengths"])}) for one in header["samples"]]
    arrays, offset = {}, 8 + length + -length % 8
    for name, (dtype, shape) in header["arrays"].items():
        array = np.frombuffer(memory, dtype, int(np.prod(shape)), offset).reshape(shape)
        arrays[name] = array
        offset += array.nbytes + -array.nbytes % 8
    return samples, LoggedRouting(**{"first_p_values": None, **arrays}), header["limits"]


def _serve(connection):
    """Do what comes until the parent closes the socket or dies."""
    while True:
        message, descriptors, *_ = socket.recv_fds(connection, 1, 2)
        if not message:
            return
        with open(descriptors[0], "rb") as arrays, open(descriptors[1], "wb") as file:
            try:
                memory = mmap.mmap(arrays.fileno(), 0, access=mmap.ACCESS_READ)
                lengths, statistics = format_entries(*_read_request(memory), file)
                answer = {
                    "lengths": lengths,
                    "count_histogram": statistics.count_histogram.tolist(),
                    "expert_usage": statistics.expert_usage.tolist(),
                }
            except Exception:
                answer = {"error": traceback.format_exc()}
        connection.sendall(json.dumps(answer).encode() + b"\n")


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    with contextlib.suppress(ConnectionError), socket.socket(fileno=int(sys.argv[1])) as _connection:
        _serve(_connection)
