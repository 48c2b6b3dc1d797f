"""Where the tokens of sequences stand in a log: a beginning that several of them share stands there once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Iterable

    from adaptive_routing.data.samples import PreparedSample
    from adaptive_routing.system.tensor_files import TensorFile


class LoggedSequences:
    """The Q sequences of a log's S samples, T tokens in all.

    A sample's base is its first sequence with tokens of its own. The other ones continue it, where they have
    shared tokens; the base continues that of the sample named in `shared_with`.

    Attributes:
        offsets: (Q + 1,) int64, sequence q has the tokens `[offsets[q], offsets[q + 1])` of its own.
        sample_sequences: (S + 1,) int64, the same for samples: sequences `[…[i], …[i + 1])` are sample i's.
        shared_tokens: (Q,) int64, tokens of each sequence that stand before these, in the sequence `parents`.
        shared_with: (S,) int64, the sample that each base continues, −1 for none.
        parents: (Q,) int64, the sequence that each one continues, −1 for none.
    """

    def __init__(
        self,
        offsets: NDArray[np.int64],
        sample_sequences: NDArray[np.int64],
        shared_tokens: NDArray[np.integer],
        shared_with: NDArray[np.integer],
    ) -> None:
        self.offsets, self.sample_sequences = offsets, sample_sequences
        self.shared_tokens, self.shared_with = shared_tokens.astype(np.int64), shared_with.astype(np.int64)
        if not self.is_shared:
            self.parents = np.full(len(shared_tokens), -1)
            return
        sample_of = np.repeat(np.arange(len(shared_with)), np.diff(sample_sequences))
        has_tokens = np.flatnonzero(np.diff(offsets))
        bases = has_tokens[np.searchsorted(has_tokens, sample_sequences[:-1])]  # (S,)
        of_base = np.where(self.shared_with >= 0, bases[self.shared_with], -1)
        is_base = np.arange(len(sample_of)) == bases[sample_of]
        parents = np.where(is_base, of_base[sample_of], bases[sample_of])
        self.parents = np.where(self.shared_tokens > 0, parents, -1)

    @classmethod
    def of_samples(cls, samples: Iterable[PreparedSample]) -> Self:
        """Of a data set's `PreparedSample`s, all of them."""
        samples = list(samples)
        sequences = [sequence for one in samples for sequence in one.sequences]
        return cls(
            np.cumsum([0, *(sequence.num_own_tokens for sequence in sequences)]),
            np.cumsum([0, *(len(one.sequences) for one in samples)]),
            np.array([sequence.shared_tokens for sequence in sequences]),
            np.array([-1 if one.shared_with is None else one.shared_with for one in samples]),
        )

    @classmethod
    def of_tensors(cls, tensors: TensorFile) -> Self:
        """Of a log's open tensors."""
        offsets, of_samples = tensors.read("sequence_offsets"), tensors.read("sample_offsets")
        if "shared_tokens" in tensors:
            shared = tensors.read("shared_tokens"), tensors.read("shared_with")
            first = tensors.read("sample_sequences")
        else:
            shared = np.zeros(len(offsets) - 1, np.int64), np.full(len(of_samples) - 1, -1)
            first = np.searchsorted(offsets, of_samples)
        return cls(offsets, first, *shared)

    @property
    def is_shared(self) -> bool:
        """Whether any token belongs to several sequences."""
        return bool(self.shared_tokens.any())

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(Q,) tokens of each sequence, shared ones included."""
        return np.diff(self.offsets) + self.shared_tokens

    def rows(self, sequence: int) -> NDArray[np.int64]:
        """The places in the log, from 0 to T, of all tokens of a sequence."""
        own = np.arange(self.offsets[sequence], self.offsets[sequence + 1])
        if self.parents[sequence] < 0:
            return own
        beginning = self.rows(int(self.parents[sequence]))[: self.shared_tokens[sequence]]
        return np.concatenate([beginning, own])

    def positions(self) -> NDArray[np.int64]:
        """(T,) the position of each token in its sequence, from 0."""
        starts = self.offsets[:-1] - self.shared_tokens
        return np.arange(self.offsets[-1]) - np.repeat(starts, np.diff(self.offsets))

    def before(self) -> NDArray[np.int64]:
        """(T,) the place of the token before each one in its sequence; −1 for the first."""
        before = np.arange(self.offsets[-1]) - 1
        starts = np.diff(self.offsets) > 0
        before[self.offsets[:-1][starts]] = -1
        for sequence in np.flatnonzero(starts & (self.parents >= 0)):
            parent, shared = int(self.parents[sequence]), int(self.shared_tokens[sequence])
            before[self.offsets[sequence]] = self.rows(parent)[shared - 1]
        return before
