"""Reads data sets with the `datasets` library and turns rows into token sequences, ready to score.

The prepared file of a data set holds everything an experiment needs of it, so that text is read and
tokenised once a study. Tokenisation follows lm-evaluation-harness 0.4.13 (`TemplateLM._encode_pair`,
`HFLM.tok_encode`).
"""

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from adaptive_routing.errors import InputError
from adaptive_routing.files import MADE_ANEW, read_json
from adaptive_routing.tasks import Request, Sample, get_task

LOCAL_FORMATS = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}


@dataclass(frozen=True)
class EncodedSequence:
    """One request as tokens.

    Attributes:
        token_ids: context and continuation.
        num_context_tokens: tokens before the first scored one, at least 1.
        num_inputs: tokens that the model reads; the last one is only predicted where the sequence
            was cut to the model's length.
        truncated: whether tokens were cut off.
    """

    token_ids: list[int]
    num_context_tokens: int
    num_inputs: int
    truncated: bool

    @property
    def num_predicted_tokens(self):
        """Scored tokens."""
        return len(self.token_ids) - self.num_context_tokens


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


def load_rows(source, subset=None, split=None, revision=None, name="dataset"):
    """The rows of a hub data set or a local JSONL/parquet file, in order, as dicts.

    Raises:
        InputError: the source cannot be read.
    """
    import datasets

    datasets.disable_progress_bars()
    suffix = Path(source).suffix
    try:
        if suffix in LOCAL_FORMATS:
            # A local file is read anew each time: a cache would only be a second copy of it.
            with tempfile.TemporaryDirectory() as cache:
                rows = datasets.load_dataset(
                    LOCAL_FORMATS[suffix], data_files=str(source), split="train", cache_dir=cache
                )
                yield from rows
        else:
            yield from datasets.load_dataset(source, subset, split=split, revision=revision)
    except Exception as error:
        # `datasets` wraps what is wrong with a file in "An error occurred while generating the dataset".
        cause = error.__cause__ or error
        reason = " ".join(str(cause).split()) or "it holds no rows"
        raise InputError(f"{name}: cannot read {source!r} ({reason})") from error


def encode_request(tokenizer, request, max_length, model_max_length):
    """A request as a list of `EncodedSequence`: one, or as many as a rolling request has windows.

    The list is empty where fewer than two tokens leave nothing to predict.

    Args:
        tokenizer: a `PreTrainedTokenizerBase`.
        request: `tasks.Request`.
        max_length: a text without context keeps its first `max_length` tokens, one with `keep_end` excepted;
            None where the data set has no such texts.
        model_max_length: a context keeps its last tokens, so that the model reads at most this many; so does
            a text with `keep_end`.
    """
    if request.rolling:
        token_ids = encode_text(tokenizer, request.continuation)
        return _windows(_prefix_token(tokenizer), token_ids, model_max_length)
    if request.context is None:
        token_ids = encode_text(tokenizer, request.continuation)
        if request.keep_end:
            kept = token_ids[-model_max_length:]
        else:
            kept = token_ids[: min(max_length, model_max_length)]
        return [EncodedSequence(kept, 1, len(kept), len(kept) < len(token_ids))] if len(kept) >= 2 else []
    # Trailing spaces belong to the continuation: tokens of most vocabularies start with one.
    context, text = request.context.rstrip(), request.context + request.continuation
    if not context:
        context_ids = [_prefix_token(tokenizer)]
        continuation_ids = tokenizer.encode(text, add_special_tokens=False)
        if continuation_ids[:1] == context_ids:  # the text starts with that token itself
            continuation_ids = continuation_ids[1:]
    else:
        context_ids = encode_text(tokenizer, context)
        continuation_ids = encode_text(tokenizer, text)[len(context_ids) :]
    if not continuation_ids:
        raise InputError(f"continuation {request.continuation!r} has no tokens to score")
    if len(continuation_ids) > model_max_length:
        raise InputError(
            f"a continuation has {len(continuation_ids)} tokens; the model reads at most {model_max_length}"
        )
    whole = context_ids + continuation_ids
    token_ids = whole[-(model_max_length + 1) :]
    return [_cut(token_ids, len(token_ids) - len(continuation_ids), model_max_length, len(whole))]


def _windows(prefix_token, token_ids, model_max_length):
    """Every token of a text scored once (`lm_eval.utils.get_rolling_token_windows`, context_len = 1).

    The first window starts with the prefix token; the last one reaches back, so that it is full too.
    """
    whole = [prefix_token, *token_ids]
    sequences = []
    for first in range(1, len(whole), model_max_length):
        end = min(first + model_max_length, len(whole))
        start = max(0, end - model_max_length - 1)
        # The first token of a window is read and not scored, and so are those that a window before scored.
        sequences.append(_cut(whole[start:end], first - start, model_max_length, end - start))
    return sequences


def _cut(token_ids, num_context_tokens, model_max_length, num_tokens):
    """A sequence of at most one token more than the model reads, out of a text of `num_tokens`."""
    num_inputs = min(len(token_ids), model_max_length)
    return EncodedSequence(token_ids, num_context_tokens, num_inputs, len(token_ids) < num_tokens)


def encode_text(tokenizer, text):
    """Tokens with the special ones that the tokenizer adds, as the harness encodes.

    None are added to a text that starts with the start token itself.
    """
    prefix = _prefix_token(tokenizer, required=False)
    if prefix is not None and text.startswith(tokenizer.decode(prefix)):
        return tokenizer.encode(text, add_special_tokens=False)
    return tokenizer.encode(text)


def _prefix_token(tokenizer, required=True):
    token = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if token is None and required:
        raise InputError("the tokenizer has no start token to score a text without context")
    return token


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
            )
            for one in content["samples"]
        ]
        settings = content["settings"]
    except (KeyError, TypeError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        raise InputError(f"{path} is not a prepared data set: {reason}; {MADE_ANEW}") from error
    if not samples or not isinstance(settings, dict):
        raise InputError(f"{path} is not a prepared data set: it has no samples or settings; {MADE_ANEW}")
    for one in samples:
        if not one.sequences or not all(map(_is_whole, one.sequences)):
            raise InputError(f"{path}: the token sequences of {one.sample_id} do not fit; {MADE_ANEW}")
    return settings, samples


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
