"""Which tokens a forward pass reads: what its sequences have in common once, where the model allows it."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from numpy.typing import NDArray

from adaptive_routing.model.devices import to_device
from adaptive_routing.model.packing import Packing, count_up, runs_unpacked
from adaptive_routing.routing_log.sequences import LoggedSequences

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from transformers import PreTrainedModel

    from adaptive_routing.data.samples import PreparedSample
    from adaptive_routing.data.tokens import EncodedSequence
    from adaptive_routing.model.patching import RouterPatcher


_MOST_KEPT_TOKENS = 1 << 22  # some 200 MB on the device, and twice that in memory

_kept = weakref.WeakKeyDictionary()  # model: the `_KeptInputs` of the data set that it read last


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


@dataclass(frozen=True)
class PassInputs:
    """What a pass over an `Arrangement` takes, whatever routes it: P targets, of which it reads R.

    The last target of a sequence that was cut to the model's length is not read. Of choices of one token
    after the same context one is read.

    Attributes:
        arrangement: as given.
        token_ids: (N,) int64, on the device.
        packing: the `Packing` of the N tokens, on the device.
        positions, targets: (P,) int64, on the device: positions whose next token is scored, and that token.
        logged: (M,) int64, on the device: the logged tokens among the N; None where all are, in their order.
        logged_ids: (M,) int64, their token ids, on the CPU.
        was_read: (P,) bool, on the CPU: whether the pass reads a target.
        read_targets: (R,) int64, on the CPU: the places of those among the logged tokens.
    """

    arrangement: Arrangement
    token_ids: torch.Tensor
    packing: Packing
    positions: torch.Tensor
    targets: torch.Tensor
    logged: torch.Tensor | None
    logged_ids: torch.Tensor
    was_read: torch.Tensor
    read_targets: torch.Tensor

    @classmethod
    def of(cls, arrangement: Arrangement, device: torch.device) -> Self:
        """The inputs for a model whose first layer is on a device."""
        token_ids, logged = arrangement.token_ids, torch.from_numpy(arrangement.logged)
        positions, targets, was_read, read_targets = _scored_positions(arrangement)
        logged_ids = token_ids[logged]
        is_whole = len(logged) == len(token_ids)  # in the same order then
        return cls(
            arrangement,
            to_device(token_ids, device),
            Packing.of(arrangement.lengths, device, arrangement.beginnings),
            to_device(positions, device),
            to_device(targets, device),
            None if is_whole else to_device(logged, device),
            logged_ids,
            was_read,
            read_targets,
        )

    @classmethod
    def of_separate(cls, sequences: Iterable[EncodedSequence], device: torch.device) -> Self:
        """The inputs of `Arrangement.of_separate`."""
        return cls.of(Arrangement.of_separate(sequences), device)


@dataclass
class _KeptInputs:
    """Kept `PassInputs`, by whether sequences are read separately and the indices of the samples."""

    samples: Sequence[PreparedSample]
    inputs: dict[tuple[bool, tuple[int, ...]], PassInputs] = field(default_factory=dict)
    tokens: int = 0


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
        self._model, self._samples = model, samples
        self.separately = runs_unpacked(model) or patcher.strategy.needs_lengths

    def inputs(self, batch: Sequence[int]) -> PassInputs:
        """The `PassInputs` of some samples, by their indices, one after another.

        They are kept for the next configuration, whose batches are the same, until the model reads other
        samples: a GPU would wait for them each time.
        """
        if self._model not in _kept or _kept[self._model].samples is not self._samples:
            _kept[self._model] = _KeptInputs(self._samples)
        kept, key = _kept[self._model], (self.separately, tuple(batch))
        inputs = kept.inputs.get(key)
        if inputs is None:
            inputs = PassInputs.of(self.arrange(batch), self._model.device)
            if kept.tokens < _MOST_KEPT_TOKENS:
                kept.inputs[key] = inputs
                kept.tokens += sum(map(len, inputs.packing.seen))  # a beginning with each sequence
        return inputs

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


def _scored_positions(arrangement):
    """`positions`, `targets`, `was_read` and `read_targets` of `PassInputs`, on the CPU."""
    positions, targets, first, end, num_inputs = [], [], [], [], []
    for one, rows in zip(arrangement.sequences, arrangement.rows, strict=True):
        first.append(one.num_context_tokens)
        end.append(len(one.token_ids))
        num_inputs.append(one.num_inputs)
        positions.append(rows[first[-1] - 1 : end[-1] - 1])
        targets += one.token_ids[first[-1] :]
    first, num_inputs = np.array(first), np.array(num_inputs)
    num_targets = np.array(end) - first
    was_read = count_up(num_targets, first) < np.repeat(num_inputs, num_targets)
    # The last of a sequence's tokens belong to it.
    stops = np.cumsum(arrangement.logged_lengths)
    num_read = num_inputs - first
    read_targets = count_up(num_read, stops - num_read)
    columns = np.concatenate(positions), was_read, read_targets
    positions, was_read, read_targets = (torch.from_numpy(column) for column in columns)
    return positions, torch.tensor(targets), was_read, read_targets
