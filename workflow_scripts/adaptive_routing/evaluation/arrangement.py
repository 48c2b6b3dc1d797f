"""Which tokens a forward pass reads: what its sequences have in common once, where the model allows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from numpy.typing import NDArray

from adaptive_routing.model.packing import Packing, runs_unpacked
from adaptive_routing.routing_log.sequences import LoggedSequences

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from transformers import PreTrainedModel

    from adaptive_routing.data.samples import PreparedSample
    from adaptive_routing.data.tokens import EncodedSequence
    from adaptive_routing.model.patching import RouterPatcher


@dataclass(frozen=True)
class Arrangement:
    """The N tokens that a pass over Q sequences reads, and the M of them that it is to log.

    Attributes:
        sequences: the `EncodedSequence`s.
        rows: of each sequence, the places (num_inputs,) of its tokens among the N.
        lengths: how many of the N tokens stand in each part of the row.
        beginnings: by their number, the parts that continue others, as `Packing.of` takes them.
        logged: (M,) the tokens that belong to the sequences, one sequence after another, among the N.
        log_rows: (N,) the tokens' places in the log of the data set; None where there is no log.
    """

    sequences: list[EncodedSequence]
    rows: list[NDArray[np.int64]]
    lengths: list[int]
    beginnings: Mapping[int, tuple[int, int]]
    logged: NDArray[np.int64]
    log_rows: NDArray[np.int64] | None

    @classmethod
    def of_separate(cls, sequences: Iterable[EncodedSequence]) -> Self:
        """Each sequence by itself; what they share is logged with each."""
        sequences = list(sequences)
        lengths = [sequence.num_inputs for sequence in sequences]
        rows = _split(lengths)
        return cls(sequences, rows, lengths, {}, np.arange(sum(lengths)), None)

    @property
    def logged_lengths(self) -> tuple[int, ...]:
        """How many of the logged tokens belong to each sequence."""
        if self.log_rows is None:
            return tuple(self.lengths)
        return tuple(sequence.num_own_tokens for sequence in self.sequences)

    @property
    def token_ids(self) -> torch.Tensor:
        """(N,) int64."""
        token_ids = np.empty(sum(self.lengths), np.int64)
        for sequence, rows in zip(self.sequences, self.rows, strict=True):
            token_ids[rows] = sequence.token_ids[: sequence.num_inputs]
        return torch.from_numpy(token_ids)

    def packing(self, device: torch.device) -> Packing:
        """The `Packing` of the N tokens."""
        return Packing.of(self.lengths, device, self.beginnings)


class Arranger:
    """Arranges samples of a data set for passes of a model.

    Shared tokens are read once in each pass. Where a model's sequences run on their own, or the strategy
    chooses by whole sequences, each sequence is read by itself; what is logged is the same.

    Args:
        model: the model that will read them.
        samples: all of the data set's `PreparedSample`s.
        patcher: the `RouterPatcher` that will be at work.

    Attributes:
        separately: whether each sequence is read by itself.
        logged: `LoggedSequences` of the data set.
    """

    def __init__(
        self, model: PreTrainedModel, samples: Sequence[PreparedSample], patcher: RouterPatcher
    ) -> None:
        self.logged = LoggedSequences.of_samples(samples)
        self._samples = samples
        self.separately = runs_unpacked(model) or patcher.strategy.needs_lengths

    def arrange(self, batch: Sequence[int]) -> Arrangement:
        """The `Arrangement` of some samples, by their indices, one after another."""
        bounds = self.logged.sample_sequences
        numbers = [number for index in batch for number in range(bounds[index], bounds[index + 1])]
        sequences = [sequence for index in batch for sequence in self._samples[index].sequences]
        read_with = {} if self.separately else self._read_with(numbers)
        lengths = [
            sequence.num_own_tokens if number in read_with else sequence.num_inputs
            for number, sequence in zip(numbers, sequences, strict=True)
        ]
        own = dict(zip(numbers, _split(lengths), strict=True))
        rows = {}

        def rows_of(number):
            if number not in rows:
                first = self.logged.shared_tokens[number]
                beginning = [rows_of(read_with[number])[:first]] if number in read_with else []
                rows[number] = np.concatenate([*beginning, own[number]])
            return rows[number]

        in_parts = {number: part for part, number in enumerate(n for n in numbers if len(own[n]))}
        log_rows = [self.logged.rows(number)[-len(own[number]) :] for number in in_parts]
        return Arrangement(
            sequences,
            [rows_of(number) for number in numbers],
            [len(own[number]) for number in in_parts],
            {
                part: (in_parts[read_with[number]], int(self.logged.shared_tokens[number]))
                for number, part in in_parts.items()
                if number in read_with
            },
            np.concatenate([rows_of(number)[self.logged.shared_tokens[number] :] for number in numbers]),
            np.concatenate(log_rows),
        )

    def _read_with(self, numbers):
        """{sequence: the one in the pass that it continues}, of those whose beginning is read once."""
        parents, shared = self.logged.parents, self.logged.shared_tokens
        here = set(numbers)
        # A beginning that stands in a sample outside of the pass is read by the one that has most of it.
        readers = {}
        for number in numbers:
            reader = readers.setdefault(parents[number], number)
            if shared[number] > shared[reader]:
                readers[parents[number]] = number
        found = {}
        for number in numbers:
            parent = int(parents[number])
            other = parent if parent in here else readers[parent]
            if parent >= 0 and other != number:
                found[number] = other
        return found


def _split(lengths):
    """The places of tokens that stand one after another, sequence by sequence."""
    return np.split(np.arange(sum(lengths)), np.cumsum(lengths)[:-1])
