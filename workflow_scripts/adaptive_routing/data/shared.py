"""Which tokens of a data set stand at the beginning of several sequences, and are therefore read once.

The choices of a question continue the same context, and the questions of a few-shot task the same examples.
A sample's sequences continue its first one that has tokens of its own (its base), and that one may continue
the base of an earlier sample. Between samples the last token before the scored ones is not shared either, so
that every sample has tokens of its own.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adaptive_routing.data.samples import PreparedSample
    from adaptive_routing.data.tokens import EncodedSequence

# Shorter beginnings are read again: to share them saves little (docs/speed.md).
FEWEST_TOKENS = 8  # within a sample
FEWEST_TOKENS_OF_SAMPLES = 64  # of an earlier sample, whose log one has to look into for them


def share_beginnings(prepared: Sequence[PreparedSample]) -> list[PreparedSample]:
    """Mark what sequences have in common with others: `shared_tokens` and `shared_with`.

    Where all choices of a sample are single tokens after the same context, that context is their one
    sequence: only the right choice, the first where there is none, is read too.
    """
    shared = []
    bases = {}  # by their first tokens, sequences that others continue, each with its sample's index
    for number, one in enumerate(prepared):
        sequences = list(one.sequences)
        own, fewest = 0, FEWEST_TOKENS
        if _is_one_context(sequences):
            own, fewest = one.sample.gold or 0, 1
            sequences = [
                sequence if place == own else replace(sequence, num_inputs=sequence.num_context_tokens)
                for place, sequence in enumerate(sequences)
            ]
        base = sequences[own]
        for place, sequence in enumerate(sequences):
            if place != own:
                tokens = _tokens_in_common(base, sequence, sequence.num_context_tokens)
                sequences[place] = replace(sequence, shared_tokens=tokens if tokens >= fewest else 0)
        beginning = tuple(base.token_ids[:FEWEST_TOKENS_OF_SAMPLES])
        other = bases.setdefault(beginning, (number, base))
        tokens = _tokens_in_common(other[1], base, base.num_context_tokens - 1)
        shared_with = None
        if other[0] != number and tokens >= FEWEST_TOKENS_OF_SAMPLES:
            sequences[own], shared_with = replace(base, shared_tokens=tokens), other[0]
        shared.append(replace(one, sequences=tuple(sequences), shared_with=shared_with))
    return shared


def _is_one_context(sequences: Sequence[EncodedSequence]) -> bool:
    """Whether sequences are one context with single tokens after it."""
    contexts = {tuple(one.token_ids[:-1]) for one in sequences}
    ends = {one.num_predicted_tokens for one in sequences}
    return len(sequences) > 1 and len(contexts) == 1 and ends == {1}


def _tokens_in_common(base, sequence, most):
    """How many of a sequence's first tokens are those that the model reads of another one; at most `most`."""
    most = min(most, base.num_inputs)
    pairs = enumerate(zip(base.token_ids[:most], sequence.token_ids[:most], strict=True))
    return next((place for place, (one, other) in pairs if one != other), most)
