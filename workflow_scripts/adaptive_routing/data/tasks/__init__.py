"""The data sets: one module each, from a row to requests and from scores to a sample's outcome.

Each follows lm-evaluation-harness 0.4.13 (`hf` model, zero-shot), and each module is a `Task`.
"""

import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable


@dataclass(frozen=True)
class Column:
    """What a column must hold: in words, and as a test of a value.

    `alternative` names another column that does as well, with values of the same kind.
    """

    description: str
    holds: Callable[[object], bool]
    alternative: str | None = None


def is_texts(value: object) -> bool:
    """Whether a value is a list of texts, one at least."""
    return isinstance(value, list) and bool(value) and all(isinstance(item, str) for item in value)


def as_label(value: object) -> str | None:
    """A label as text, however a file writes it: "2" for 2, "2", " 2 " and 2.0 (pandas' column with gaps).

    None for what is no label: an empty text, 1.5, true, null.
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

    With an empty context the first token is scored too, after the model's prefix token; with None there
    is nothing before the text, and all its tokens but the first are scored. `rolling` scores every token
    of a text of any length, in windows that each hold as many tokens as the model reads. `keep_end` is for a
    text that will be continued: one too long for the model loses its beginning.
    """

    context: str | None
    continuation: str
    rolling: bool = False
    keep_end: bool = False


@dataclass(frozen=True)
class Sample:
    """One row, ready to score.

    Attributes:
        text: what a reader should see of it.
        requests: one, or one a choice.
        gold: index of the right choice, or None.
        attributes: what else the summary says of the sample.
    """

    text: str
    requests: tuple[Request, ...]
    gold: int | None = None
    attributes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SequenceScore:
    """What the model says of one sequence.

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
    """What a task module has."""

    COLUMNS: dict[str, Column]  # the columns a row of the data set must have, and what each must hold

    @staticmethod
    def regroup(rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """An iterator of rows that are one sample each: `iter` where the data set's rows are."""

    @staticmethod
    def sample(row: Mapping[str, Any]) -> Sample | None:
        """The row's `Sample`, or None where it holds nothing to score."""

    @staticmethod
    def outcome(sample: Sample, scores: Sequence[SequenceScore]) -> dict[str, Any]:
        """What the scores of the sample's sequences mean, as a dict that goes into the summary.

        `loss` (natural log, mean per predicted token) is always there.
        """

    @staticmethod
    def metrics(outcomes: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
        """The task's own metrics over all samples, each with its `{name}_stderr`."""


def task_module(dataset: str, protocol: str | None = None) -> str:
    """Name of a data set's module; `protocol` is that of its settings, where it has more than one."""
    return f"{__name__}.{dataset if protocol in (None, 'rows') else f'{dataset}_{protocol}'}"


def get_task(dataset: str, protocol: str | None = None) -> Task:
    """The `Task` of a data set, by `task_module`'s arguments."""
    return importlib.import_module(task_module(dataset, protocol))  # ty: ignore[invalid-explicit-return]
