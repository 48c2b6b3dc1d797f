"""A device whose memory runs out: what an attempt claimed is given back, and the fault is one sentence."""

from __future__ import annotations

import ctypes
import gc
import sys
from typing import TYPE_CHECKING, TypeVar

import torch

from adaptive_routing.system.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import PreTrainedModel

    from adaptive_routing.data.samples import PreparedSample

T = TypeVar("T")

# What torch says in exceptions that have no class of their own: host memory, and a cuBLAS without workspace.
_STATEMENTS = ("DefaultCPUAllocator: can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")

# malloc.h of glibc. One arena: blocks freed by one thread serve all.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def unless_out_of_memory(work: Callable[[], T]) -> tuple[T, None] | tuple[None, str]:
    """Do some work: (its result, None), or (None, what torch said) where memory ran out.

    In the second case the attempt's memory is free again, also for other processes.
    """
    try:
        return work(), None
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        # Not the exception itself: its traceback holds the tensors of the attempt.
        said = _shortened(str(error))
    free_memory()
    return None, said


def run_alone(model: PreTrainedModel, sample: PreparedSample, work: Callable[[], T], shorter: str) -> T:
    """The result of work on a single sample, which cannot be split.

    Args:
        model: the model that does it.
        sample: `samples.PreparedSample`.
        work: a function without arguments.
        shorter: the keys that make samples shorter, and of which.

    Raises:
        InputError: the device has too little memory for it.
    """
    result, said = unless_out_of_memory(work)
    if said:
        raise too_little_memory(model, sample, said, shorter)
    return result  # ty: ignore[invalid-explicit-return]


def too_little_memory(model: PreTrainedModel, sample: PreparedSample, said: str, shorter: str) -> InputError:
    """The InputError for a sample that does not even fit alone; arguments as for `run_alone`."""
    dtype = str(model.dtype).removeprefix("torch.")
    narrower = "model.dtype: bfloat16, " if model.dtype == torch.float32 else ""
    return InputError(
        f"{sample.sample_id} alone ({sample.num_inputs:,} tokens, sequences: {len(sample.sequences)}) does "
        f"not fit into the memory of {model.device} beside the model in {dtype} ({said}); set "
        f"{narrower}{shorter} or a model.device with more memory; evaluation.batch_tokens does not help here"
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory, of a device or of the host, could not be had."""
    is_kind = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return is_kind or any(one in str(error) for one in _STATEMENTS)


def free_memory() -> None:
    """Give memory that nothing uses back to the device."""
    gc.collect()  # frames of an exception may refer to each other
    torch.cuda.empty_cache()  # does nothing where CUDA is not in use


def keep_freed_memory() -> None:
    """Have this process keep the host memory that it frees, for what it allocates next.

    glibc gives large blocks back to the system at once, and the system clears every page that it hands out
    again: on a CPU that took up to nine tenths of the time of an operation on large tensors. Elsewhere than
    in glibc nothing is changed.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # another C library
        return
    for option, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_ARENA_MAX, 1)):
        set_option(option, value)


def _shortened(said):
    """The part with the numbers, as one clause: advice on the allocator's settings follows."""
    line = said.partition("\n")[0].partition(" Including ")[0]
    return line.strip().rstrip(".").replace(". ", "; ")
