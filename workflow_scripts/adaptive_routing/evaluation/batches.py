"""Samples grouped into batches, which get smaller when one does not fit into the device's memory."""

from __future__ import annotations

import collections
import contextlib
import functools
import math
import sys
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

import torch

from adaptive_routing.model.devices import passes_at_once
from adaptive_routing.model.memory import too_little_memory, unless_out_of_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from transformers import PreTrainedModel

    from adaptive_routing.data.samples import PreparedSample

T = TypeVar("T")


def make_batches(
    samples: Sequence[PreparedSample],
    batch_tokens: int,
    indices: Iterable[int] | None = None,
    separately: bool = False,
) -> list[list[int]]:
    """Group sample indices into batches of at most `batch_tokens` tokens that a pass reads.

    Samples are sorted by their longest sequence, longest first: the sequences of a batch have similar
    lengths, and a batch that is too large fails early. Samples with a common beginning follow one another, so
    that few batches read it. A sample's sequences stay together; a sample larger than `batch_tokens` is a
    batch by itself. `indices` are the samples to group; all by default. `separately` says that a pass reads
    what sequences share with each of them.
    """

    def longest(index):
        return max(sequence.num_inputs for sequence in samples[index].sequences)

    def order(index):
        first = _first_of(samples, index)
        return -longest(first), first, -longest(index), index

    batches, read = [], _Read(samples, separately)
    if indices is None:
        indices = range(len(samples))
    for index in sorted(indices, key=order):
        if not batches or read.tokens + read.added_tokens(index) > batch_tokens:
            batches.append([])
            read = _Read(samples, separately)
        batches[-1].append(index)
        read.add(index)
    return batches


def _first_of(samples, index):
    """The sample to which the beginning of one belongs, or itself."""
    return index if samples[index].shared_with is None else samples[index].shared_with


class _Read:
    """Counts the tokens that a pass over samples reads; `tokens` is the number so far."""

    def __init__(self, samples, separately, indices=()):
        self._samples, self._separately, self.tokens = samples, separately, 0
        self._beginnings = {}  # of samples by their index, tokens that the pass reads
        for index in indices:
            self.add(index)

    def added_tokens(self, index):
        """Tokens that are read more with one sample more."""
        one = self._samples[index]
        if self._separately:
            return sum(sequence.num_inputs for sequence in one.sequences)
        if one.shared_with is None:
            return one.num_own_tokens
        return one.num_own_tokens + max(0, one.num_others_tokens - self._beginnings.get(one.shared_with, 0))

    def add(self, index):
        self.tokens += self.added_tokens(index)
        first, one = _first_of(self._samples, index), self._samples[index]
        read = math.inf if first == index else one.num_others_tokens
        self._beginnings[first] = max(self._beginnings.get(first, 0), read)


def _evenly(samples, batch_tokens, multiple, separately):
    """The batch size for as few batches as there must be, of similar sizes, their number such a multiple."""
    total = _Read(samples, separately, range(len(samples))).tokens
    number = multiple * math.ceil(total / (multiple * batch_tokens))
    largest = max(_Read(samples, separately, [index]).tokens for index in range(len(samples)))
    return min(batch_tokens, math.ceil(total / number) + largest)


class BatchQueue:
    """The batches of a data set that are still to be done, in the order of `make_batches`.

    On a CPU several passes run side by side, each in one thread: threads that share a layer's many small
    products wait for each other at each of them, longer still when other programs use the cores. The batches
    do not depend on the number of passes, so results are the same to the bit.

    When the device's memory runs out, the failed batch and all remaining ones are regrouped with half its
    tokens, so that a size that failed is not tried again.

    Args:
        model: the model that runs them.
        samples: list of `samples.PreparedSample`.
        batch_tokens: the largest number of tokens in a batch, at first.
        shorter: which settings make samples shorter, for the error message.
        workers: number of passes side by side, by default `devices.passes_at_once`.
        separately: as in `make_batches`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        samples: Sequence[PreparedSample],
        batch_tokens: int,
        shorter: str,
        workers: int | None = None,
        separately: bool = False,
    ) -> None:
        self._model, self._samples, self._shorter = model, samples, shorter
        self._separately = separately
        # Two workers finish together; a GPU's pass takes at least as long as the host takes to begin it.
        batch_tokens = _evenly(samples, batch_tokens, 2 if model.device.type == "cpu" else 1, separately)
        self._batches = make_batches(samples, batch_tokens, separately=separately)
        self._workers = workers or passes_at_once(model.device)
        self._is_tried_alone = False

    def warm_up(self, work: Callable[[list[int]], T]) -> T:
        """Do the first batch, or smaller ones if memory runs out; it stays in the queue."""
        while True:
            result, said = unless_out_of_memory(functools.partial(work, self._batches[0]))
            if not said:
                return result  # ty: ignore[invalid-explicit-return]
            self._put_back(self._batches.pop(0), said, was_alone=True)

    def last_index(self) -> int:
        """The index of the last sample of the queue, which is a short one."""
        return self._batches[-1][-1]

    def results(self, work: Callable[[list[int]], T]) -> Iterator[tuple[list[int], T]]:
        """Do `work` of every batch, a list of sample indices: yield (batch, what it returned).

        The next batch is started before the result of the previous one is yielded, so that a GPU always has
        work.

        Raises:
            InputError: a single sample does not fit.
        """
        under_way = collections.deque()  # (batch, whether it is tried alone, future)
        with _executor(self._workers) as executor:
            while self._batches or under_way:
                while self._batches and len(under_way) < (1 if self._is_tried_alone else 2 * self._workers):
                    batch, is_alone = self._batches.pop(0), self._is_tried_alone
                    future = executor.submit(unless_out_of_memory, functools.partial(work, batch))
                    if self._workers == 1 and (said := future.result()[1]):
                        self._put_back(batch, said, is_alone or not under_way)
                    else:
                        under_way.append((batch, is_alone, future))
                if not under_way:
                    continue
                batch, is_alone, future = under_way.popleft()
                result, said = future.result()
                if said:
                    self._put_back(batch, said, is_alone)
                    continue
                if is_alone:
                    self._is_tried_alone = False
                yield batch, result

    def _put_back(self, batch, said, was_alone):
        """Requeue a batch that did not fit: in parts, or to run alone."""
        if len(batch) > 1:
            tokens = _Read(self._samples, self._separately, batch).tokens
            print(
                f"out of memory on {self._model.device} in a batch of {len(batch)} samples, {tokens:,} "
                f"tokens ({said}); going on with at most {tokens // 2:,} tokens in a batch",
                file=sys.stderr,
            )
            left = [index for remaining in (batch, *self._batches) for index in remaining]
            self._batches = make_batches(self._samples, tokens // 2, left, self._separately)
        elif was_alone:
            raise too_little_memory(self._model, self._samples[batch[0]], said, self._shorter)
        else:
            self._batches.insert(0, batch)
            self._is_tried_alone = True


class _Inline(Executor):
    """Runs what is submitted immediately, in the caller's thread."""

    def submit(self, function, *arguments):  # ty: ignore[incompatible-method-override]
        future = Future()
        try:
            future.set_result(function(*arguments))
        except BaseException as error:
            future.set_exception(error)
        return future


@contextlib.contextmanager
def _executor(workers):
    """Workers in their own threads, or the caller's; on exit, what has not started is cancelled."""
    if workers == 1:
        yield _Inline()
        return
    # A new thread would use OpenMP's default number of threads, not torch's.
    pool = ThreadPoolExecutor(workers, "forward pass", torch.set_num_threads, (torch.get_num_threads(),))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
