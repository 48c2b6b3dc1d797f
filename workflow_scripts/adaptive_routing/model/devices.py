"""Working with devices that compute on their own: copies that do not wait, and a clock of their time."""

import functools
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from adaptive_routing.model.memory import keep_freed_memory
from adaptive_routing.system.cores import usable_cores


def devices_of(model: nn.Module) -> list[torch.device]:
    """The devices that a model is spread over, that of its first layer first; one for most models."""
    placed = [torch.device(one) for one in (getattr(model, "hf_device_map", None) or {}).values()]
    first = next(model.parameters()).device
    return list(dict.fromkeys([first, *placed])) if len(set(placed)) > 1 else [first]


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
    """The time from being made to `stop`, in the devices' own work: seconds, once that is done.

    Of several devices, the first waits for what the others have been given so far: at the start, so that work
    from before does not count, and at the stop, so that all work from between does.
    """

    def __init__(self, *devices: torch.device) -> None:
        self._gpus = [device for device in devices if device.type == "cuda"]
        self._start = self._now()

    def stop(self) -> None:
        """End the time."""
        self._stop = self._now()

    def seconds(self) -> float:
        """Wait for the device, and give the time between."""
        if not self._gpus:
            return self._stop - self._start
        self._stop.synchronize()
        return self._start.elapsed_time(self._stop) / 1e3

    def seconds_after(self, covered: float) -> tuple[float, float]:
        """The part of the time that no pass before has covered: (seconds, what is covered now).

        `covered` is 0 at first, then what the call for the pass before gave. On a CPU several passes run at
        once; their seconds in this sense are those in which any did. A GPU makes one pass after another.
        """
        if self._gpus:
            return self.seconds(), covered
        return max(0.0, self._stop - max(self._start, covered)), max(self._stop, covered)

    def _now(self):
        if not self._gpus:
            return time.perf_counter()
        first, *others = map(torch.cuda.current_stream, self._gpus)
        for stream in others:
            first.wait_stream(stream)
        event = torch.cuda.Event(enable_timing=True)
        event.record(first)
        return event


@functools.cache
def _copy_stream(device):
    return torch.cuda.Stream(device)


class HostCopies:
    """Copies of tensors in host memory, begun when made, on a stream beside the one that computes.

    Tensors that are on the CPU are not copied; None stays None.
    """

    def __init__(self, tensors: Sequence[torch.Tensor | None]) -> None:
        self._tensors, self._done = list(tensors), []
        for device in {tensor.device for tensor in tensors if tensor is not None}:
            if device.type == "cuda":
                self._begin(device)

    def _begin(self, device):
        stream = _copy_stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            for index, tensor in enumerate(self._tensors):
                if tensor is not None and tensor.device == device:
                    self._tensors[index] = self._copy(tensor, stream)
            self._done.append(stream.record_event())

    @staticmethod
    def _copy(tensor, stream):
        tensor.record_stream(stream)  # its memory is not used again before the copy is made
        return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)

    def wait(self) -> list[Any]:
        """The copies, complete."""
        for copied in self._done:
            copied.synchronize()
        return self._tensors
