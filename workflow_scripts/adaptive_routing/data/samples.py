"""Rows of a data set as samples that are ready to score, and the file that holds them.

The prepared file holds everything that experiments need of a data set, so that text is read and tokenised
once per study.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adaptive_routing.data.tasks import Request, Sample, get_task
from adaptive_routing.data.tokens import EncodedSequence, encode_request
from adaptive_routing.system.errors import InputError
from adaptive_routing.system.files import MADE_ANEW
from adaptive_routing.system.json_files import read_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class PreparedSample:
    """A sample with its token sequences: one per request, or one per window of a rolling request.

    Its id is the data set's name and the row's number. All rows are numbered, from 0. `shared_with` is the
    index of an earlier sample, to which its first tokens belong (`data.shared`), or None.
    """

    sample_id: str
    sample: Sample
    sequences: tuple[EncodedSequence, ...]
    shared_with: int | None = None

    @property
    def base(self) -> int:
        """The place of the sequence that the others continue, where they share tokens."""
        return next(place for place, sequence in enumerate(self.sequences) if sequence.num_own_tokens)

    @property
    def num_own_tokens(self) -> int:
        """The number of its tokens, each counted once, without those that belong to another sample."""
        return sum(sequence.num_own_tokens for sequence in self.sequences)

    @property
    def num_inputs(self) -> int:
        """The number of tokens that the model reads where it reads this sample alone."""
        return self.num_own_tokens + self.num_others_tokens

    @property
    def num_others_tokens(self) -> int:
        """The number of its tokens that belong to another sample."""
        return 0 if self.shared_with is None else self.sequences[self.base].shared_tokens


def prepare_samples(
    dataset: str,
    rows: Iterable[dict[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    max_samples: int,
    max_length: int,
    model_max_length: int,
    protocol: str | None = None,
    task: str | None = None,
) -> list[PreparedSample]:
    """The first `max_samples` rows that can be scored, as a list of `PreparedSample`.

    Args:
        dataset: name of the data set.
        rows: its rows, as dicts.
        tokenizer: a `PreTrainedTokenizerBase`.
        max_samples: how many; all rows where there are fewer.
        max_length, model_max_length: see `encode_request`.
        protocol: the protocol of the data set's settings, where there are several.
        task: of which kind the data set is; by default the one of its name.

    Raises:
        InputError: a column is missing, a row is malformed, or no row can be scored.
    """
    kind = get_task(task or dataset, protocol)
    prepared = []
    for number, row in enumerate(kind.regroup(_checked(dataset, kind.COLUMNS, rows))):
        try:
            sample = kind.sample(row)
            encoded = [
                encode_request(tokenizer, request, max_length, model_max_length)
                for request in (sample.requests if sample else ())
            ]
        except InputError as error:
            raise InputError(f"datasets.{dataset}: row {number}: {error}") from error
        if sample is None or [] in encoded:
            continue
        sequences = tuple(sequence for of_request in encoded for sequence in of_request)
        prepared.append(PreparedSample(f"{dataset}_{number}", sample, sequences))
        if len(prepared) == max_samples:
            break
    if not prepared:
        raise InputError(f"datasets.{dataset}: no row holds text that can be scored")
    return with_clusters(prepared)


def with_clusters(prepared: Sequence[PreparedSample]) -> list[PreparedSample]:
    """Give each sample the number of its cluster: samples that share a key, directly or through others."""
    parents = {}

    def root(key):
        while parents.setdefault(key, key) != key:
            key = parents[key]
        return key

    keys_of = [_shared_keys(one) for one in prepared]
    for first, *others in keys_of:
        for key in others:
            parents[root(key)] = root(first)
    numbers, numbered = {}, []  # in the order of the clusters' first samples
    for one, (key, *_) in zip(prepared, keys_of, strict=True):
        cluster = numbers.setdefault(root(key), len(numbers))
        attributes = one.sample.attributes | {"cluster": cluster}
        numbered.append(replace(one, sample=replace(one.sample, attributes=attributes, alike=())))
    return numbered


def _shared_keys(one):
    """What makes a sample the same draw as another: its own `alike`, or its text and the tokens scored."""
    if one.sample.alike:
        return one.sample.alike
    tokens = tuple(tuple(sequence.token_ids) for sequence in one.sequences)
    return (tokens, one.sample.text) if one.sample.text.strip() else (tokens,)


def _checked(dataset, columns, rows):
    """Yield the rows, after checking their columns."""
    for number, row in enumerate(rows):
        for column, needed in columns.items():
            present = needed.alternative if column not in row and needed.alternative in row else column
            if present not in row:
                either = [repr(name) for name in (column, needed.alternative) if name]
                raise InputError(
                    f"datasets.{dataset}: column {' or '.join(either)} is missing; "
                    f"found {', '.join(map(repr, row))}, needed {', '.join(map(repr, columns))}"
                )
            if not needed.holds(row[present]):
                raise InputError(
                    f"datasets.{dataset}: row {number}: column {present!r} holds {_shorten(row[present])}; "
                    f"needed is {needed.description}"
                )
        yield row


def skipped_rows(prepared: Sequence[PreparedSample]) -> int:
    """How many rows before the last sample were skipped because they hold no text to score."""
    last_row = int(prepared[-1].sample_id.rpartition("_")[2])
    return last_row + 1 - len(prepared)


def _shorten(value):
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def prepared_to_json(
    dataset: str, prepared: Sequence[PreparedSample], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """The prepared data set as a JSON value."""
    return {
        "dataset": dataset,
        "settings": settings,
        "samples": [
            {
                "sample_id": one.sample_id,
                "text": one.sample.text,
                "gold": one.sample.gold,
                "attributes": one.sample.attributes,
                "requests": [asdict(request) for request in one.sample.requests],
                "sequences": [asdict(sequence) for sequence in one.sequences],
                "shared_with": one.shared_with,
            }
            for one in prepared
        ],
    }


def read_prepared(path: Path | str) -> tuple[dict[str, Any], list[PreparedSample]]:
    """Read a prepared data set: (settings, list of `PreparedSample`).

    Raises:
        InputError: the file was not made by `prepared_to_json`.
    """
    content = read_json(path)
    try:
        samples = [
            PreparedSample(
                one["sample_id"],
                Sample(
                    one["text"],
                    tuple(Request(**request) for request in one["requests"]),
                    one["gold"],
                    one["attributes"],
                ),
                tuple(EncodedSequence(**sequence) for sequence in one["sequences"]),
                one["shared_with"],
            )
            for one in content["samples"]
        ]
        settings = content["settings"]
    except (KeyError, TypeError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        raise InputError(f"{path} is not a prepared data set: {reason}; {MADE_ANEW}") from error
    if not samples or not isinstance(settings, dict):
        raise InputError(f"{path} is not a prepared data set: it has no samples or settings; {MADE_ANEW}")
    for index, one in enumerate(samples):
        if not one.sequences or not all(map(_is_whole, one.sequences)) or not _has_own_tokens(index, one):
            raise InputError(f"{path}: the token sequences of {one.sample_id} are inconsistent; {MADE_ANEW}")
    return settings, samples


def _is_whole(sequence):
    """Whether a sequence that was read from a file has token ids, in the numbers that it states."""
    token_ids, context, inputs = sequence.token_ids, sequence.num_context_tokens, sequence.num_inputs
    return (
        isinstance(token_ids, list)
        and all(type(number) is int for number in (*token_ids, context, inputs))
        and 1 <= context < len(token_ids)
        and context <= inputs <= len(token_ids)
        and 0 <= sequence.shared_tokens <= context
    )


def _has_own_tokens(index, one):
    """Whether the tokens of a sample that belong to others can be found there."""
    other = one.shared_with
    return one.num_own_tokens > 0 and (other is None or (type(other) is int and 0 <= other < index))


def check_vocabulary(samples: Iterable[PreparedSample], vocab_size: int, name: str) -> None:
    """Raise InputError if `PreparedSample`s hold a token that is not in the model's vocabulary.

    On a GPU such a token would end the process, and with it other jobs' work.
    """
    for one in samples:
        for sequence in one.sequences:
            if min(sequence.token_ids) < 0 or max(sequence.token_ids) >= vocab_size:
                wrong = next(token for token in sequence.token_ids if not 0 <= token < vocab_size)
                raise InputError(
                    f"{name}: {one.sample_id} holds token {wrong}, but the model knows 0 to "
                    f"{vocab_size - 1}; the tokenizer must be the model's own"
                )
