"""The data sets: each module turns rows into requests, and scores into a sample's outcome.

Each module is a `Task` and follows lm-evaluation-harness 0.4.13 (`hf` model, zero-shot).
"""

import importlib
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable


@dataclass(frozen=True)
class Column:
    """What a column must hold, in words and as a test of a value.

    `alternative` names another column that can replace it, with values of the same kind.
    """

    description: str
    holds: Callable[[object], bool]
    alternative: str | None = None


def is_texts(value: object) -> bool:
    """Whether a value is a list of at least one text."""
    return isinstance(value, list) and bool(value) and all(isinstance(item, str) for item in value)


def as_label(value: object) -> str | None:
    """A label as text, however a file writes it: "2" for 2, "2", " 2 " and 2.0 (pandas writes that).

    None for a value that is not a label: an empty text, 1.5, true, null.
    """
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return (value.strip() or None) if isinstance(value, str) else None


TEXT = Column("a text", lambda value: isinstance(value, str))
TEXTS = Column("a list of texts", is_texts)
LABEL = Column("a label, as a text or a whole number", lambda value: as_label(value) is not None)


@dataclass(frozen=True)
class Request:
    """A text to score given a context.

    If the context is empty, the first token is scored too, after the model's prefix token. If it is None,
    nothing precedes the text, and all its tokens but the first are scored. `rolling` scores every token of a
    text of any length, in windows of the model's length. `keep_end` is for a text that will be continued: if
    it is too long for the model, it loses its beginning.
    """

    context: str | None
    continuation: str
    rolling: bool = False
    keep_end: bool = False


@dataclass(frozen=True)
class Sample:
    """One row, ready to score.

    Attributes:
        text: the text shown to readers.
        requests: one, or one per choice.
        gold: index of the right choice, or None.
        attributes: further entries of the sample in the summary.
        alike: what it shares with samples that are no independent draws: samples with a common entry are one
            cluster. Empty: the text and the scored tokens. Known while a data set is prepared, then
            `attributes` has the cluster's number.
    """

    text: str
    requests: tuple[Request, ...]
    gold: int | None = None
    attributes: dict[str, Any] = field(default_factory=dict)
    alike: tuple[Hashable, ...] = ()


@dataclass(frozen=True)
class SequenceScore:
    """The model's scores of one sequence.

    Attributes:
        log_likelihood: sum of ln p over the predicted tokens.
        num_predicted_tokens: how many there are.
        is_greedy: whether each of them is the model's most likely token.
    """

    log_likelihood: float
    num_predicted_tokens: int
    is_greedy: bool

    @property
    def loss(self) -> float:
        """Mean negative log-likelihood per predicted token."""
        return -self.log_likelihood / self.num_predicted_tokens


@runtime_checkable
class Task(Protocol):
    """The contents of a task module."""

    COLUMNS: dict[str, Column]  # the columns a row of the data set must have, and what each must hold

    @staticmethod
    def regroup(rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """An iterator of rows with one sample each: `iter` if the data set's rows already are that."""

    @staticmethod
    def sample(row: Mapping[str, Any]) -> Sample | None:
        """The row's `Sample`, or None if it holds no text to score."""

    @staticmethod
    def outcome(sample: Sample, scores: Sequence[SequenceScore]) -> dict[str, Any]:
        """The sample's outcome, from the scores of its sequences, as a dict for the summary.

        `loss` (natural log, mean per predicted token) is always there.
        """

    @staticmethod
    def metrics(outcomes: Sequence[Mapping[str, Any]], dataset: str) -> dict[str, float | None]:
        """The metrics of a data set of this kind over all samples, each with its `{name}_stderr`."""


def task_module(task: str, protocol: str | None = None) -> str:
    """The name of a task's module; `protocol` is the one in the settings, where there are several."""
    return f"{__name__}.{task if protocol in (None, 'rows') else f'{task}_{protocol}'}"


def get_task(task: str, protocol: str | None = None) -> Task:
    """The `Task`, by its name; the arguments are those of `task_module`."""
    return importlib.import_module(task_module(task, protocol))  # ty: ignore[invalid-explicit-return]
