"""Rows of a data set as samples that are ready to score, and the file that holds them.

The prepared file of a data set holds everything an experiment needs of it, so that text is read and
tokenised once a study.
"""

from dataclasses import asdict, dataclass

from adaptive_routing.data.tasks import Request, Sample, get_task
from adaptive_routing.data.tokens import EncodedSequence, encode_request
from adaptive_routing.system.errors import InputError
from adaptive_routing.system.files import read_json, reading


@dataclass(frozen=True)
class PreparedSample:
    """A sample with its token sequences: one a request, or one a window of a rolling request.

    Its id is the data set's name and the row's number; every row counts, from 0.
    """

    sample_id: str
    sample: Sample
    sequences: tuple[EncodedSequence, ...]

    @property
    def num_inputs(self):
        """Tokens that the model reads of it."""
        return sum(sequence.num_inputs for sequence in self.sequences)


def prepare_samples(dataset, rows, tokenizer, max_samples, max_length, model_max_length, protocol=None):
    """The first `max_samples` rows that can be scored, as a list of `PreparedSample`.

    Args:
        dataset: name of the data set.
        rows: its rows, as dicts.
        tokenizer: a `PreTrainedTokenizerBase`.
        max_samples: how many; all where there are fewer.
        max_length, model_max_length: see `encode_request`.
        protocol: of the data set's settings, where it has more than one.

    Raises:
        InputError: a column is missing, a row is malformed, or no row can be scored.
    """
    task = get_task(dataset, protocol)
    prepared = []
    for number, row in enumerate(task.regroup(_checked(dataset, task.COLUMNS, rows))):
        try:
            sample = task.sample(row)
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
    return prepared


def _checked(dataset, columns, rows):
    """The rows, each with every column that it needs."""
    for number, row in enumerate(rows):
        for column, needed in columns.items():
            found = needed.alternative if column not in row and needed.alternative in row else column
            if found not in row:
                either = [repr(name) for name in (column, needed.alternative) if name]
                raise InputError(
                    f"datasets.{dataset}: column {' or '.join(either)} is missing; "
                    f"found {', '.join(map(repr, row))}, needed {', '.join(map(repr, columns))}"
                )
            if not needed.holds(row[found]):
                raise InputError(
                    f"datasets.{dataset}: row {number}: column {found!r} holds {_shorten(row[found])}; "
                    f"needed is {needed.description}"
                )
        yield row


def skipped_rows(prepared):
    """How many rows before the last of the samples hold nothing to score."""
    last_row = int(prepared[-1].sample_id.rpartition("_")[2])
    return last_row + 1 - len(prepared)


def _shorten(value):
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def prepared_to_json(dataset, prepared, settings):
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
            }
            for one in prepared
        ],
    }


def read_prepared(path):
    """Read a prepared data set: (settings, list of `PreparedSample`).

    Raises:
        InputError: the file is not one that `prepared_to_json` made.
    """
    with reading(path):
        content = read_json(path)
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
            )
            for one in content["samples"]
        ]
        if not samples or not isinstance(content["settings"], dict):
            raise ValueError("it has no samples or settings")
        for one in samples:
            if not one.sequences or not all(map(_is_whole, one.sequences)):
                raise ValueError(f"the token sequences of {one.sample_id} do not fit")
    return content["settings"], samples


def _is_whole(sequence):
    """Whether a sequence that was read from a file has token ids, and as many as it says."""
    token_ids, context, inputs = sequence.token_ids, sequence.num_context_tokens, sequence.num_inputs
    return (
        isinstance(token_ids, list)
        and all(type(number) is int for number in (*token_ids, context, inputs))
        and 1 <= context < len(token_ids)
        and context <= inputs <= len(token_ids)
    )


def check_vocabulary(samples, vocab_size, name):
    """Raise InputError where `PreparedSample`s hold a token that the model does not know.

    On a GPU such a token would end the process, and with it the work of others.
    """
    for one in samples:
        for sequence in one.sequences:
            if min(sequence.token_ids) < 0 or max(sequence.token_ids) >= vocab_size:
                wrong = next(token for token in sequence.token_ids if not 0 <= token < vocab_size)
                raise InputError(
                    f"{name}: {one.sample_id} holds token {wrong}, but the model knows 0 to "
                    f"{vocab_size - 1}; the tokenizer must be the model's own"
                )
