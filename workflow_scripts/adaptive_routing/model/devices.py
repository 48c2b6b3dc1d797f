"""Working with a device that computes on its own: copies that do not wait, and a clock of its time."""

import functools
import time
from collections.abc import Sequence
from typing import Any

import torch

from adaptive_routing.model.memory import keep_freed_memory
from adaptive_routing.system.cores import usable_cores


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A copy of a CPU tensor on a device, for which nobody waits."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def passes_at_once(device: torch.device) -> int:
    """How many forward passes a device makes side by side: on a CPU, as many as use all cores."""
    if device.type != "cpu":
        return 1
    return max(1, usable_cores() // torch.get_num_threads())


def use_cores_for_passes() -> None:
    """Have this process compute on the CPU with one thread a pass, and keep the memory that passes free."""
    torch.set_num_threads(1)
    keep_freed_memory()


class Clock:
    """The time from being made to `stop`, in the device's own work: seconds, once that is done."""

    def __init__(self, device: torch.device) -> None:
        self._is_cuda, self._device = device.type == "cuda", device
        self._start = self._now()

    def stop(self) -> None:
        """End the time."""
        self._stop = self._now()

    def seconds(self) -> float:
        """Wait for the device, and give the time between."""
        if not self._is_cuda:
            return self._stop - self._start
        self._stop.synchronize()
        return self._start.elapsed_time(self._stop) / 1e3

    def seconds_after(self, covered: float) -> tuple[float, float]:
        """The part of the time that no pass before has covered: (seconds, what is covered now).

        `covered` is 0 at first, then what the call for the pass before gave. On a CPU several passes run at
        once; their seconds in this sense are those in which any did. A GPU makes one pass after another.
        """
        if self._is_cuda:
            return self.seconds(), covered
        return max(0.0, self._stop - max(self._start, covered)), max(self._stop, covered)

    def _now(self):
        if not self._is_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event


@functools.cache
def _copy_stream(device):
    return torch.cuda.Stream(device)


class HostCopies:
    """Copies of tensors in host memory, begun when made, on a stream beside the one that computes.

    Tensors that are on the CPU are not copied; None stays None.
    """

    def __init__(self, tensors: Sequence[torch.Tensor | None]) -> None:
        self._tensors, self._done = tensors, None
        device = next(tensor.device for tensor in tensors if tensor is not None)
        if device.type != "cuda":
            return
        stream = _copy_stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            self._tensors = [None if one is None else self._copy(one, stream) for one in tensors]
            self._done = stream.record_event()

    @staticmethod
    def _copy(tensor, stream):
        tensor.record_stream(stream)  # its memory is not used again before the copy is made
        return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)

    def wait(self) -> list[Any]:
        """The copies, complete."""
        if self._done is not None:
            self._done.synchronize()
        return self._tensors  # ty: ignore[invalid-explicit-return]
