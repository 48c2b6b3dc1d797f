"""The data sets: one module each, from a row to requests and from scores to a sample's outcome.

Each follows lm-evaluation-harness 0.4.13 (`hf` model, zero-shot). A task module has

- `COLUMNS`: the columns a row must have, and what each must hold (`Column`);
- `sample(row)`: the row's `Sample`, or None for a row that holds nothing to score;
- `outcome(sample, scores)`: what the scores of the sample's sequences mean, as a dict that goes into
  the summary; `loss` (natural log, mean per predicted token) is always there;
- `metrics(outcomes)`: the task's own metrics over all samples;
- `regroup(rows)`, if a sample is made of several rows: an iterator of rows that are one sample each.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Column:
    """What a column must hold: in words, and as a test of a value."""

    description: str
    holds: Callable[[object], bool]


def is_texts(value):
    """Whether a value is a list of texts, one at least."""
    return isinstance(value, list) and bool(value) and all(isinstance(item, str) for item in value)


TEXT = Column("a text", lambda value: isinstance(value, str))
TEXTS = Column("a list of texts", is_texts)


@dataclass(frozen=True)
class Request:
    """A text to score given a context.

    With an empty context the first token is scored too, after the model's prefix token; with None there
    is nothing before the text, and all its tokens but the first are scored. `rolling` scores every token
    of a text of any length, in windows that each hold as many tokens as the model reads.
    """

    context: str | None
    continuation: str
    rolling: bool = False


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
    attributes: dict = field(default_factory=dict)


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
    def loss(self):
        """Mean negative log-likelihood per predicted token."""
        return -self.log_likelihood / self.num_predicted_tokens


def get_task(dataset, protocol=None):
    """The task module of a data set; `protocol` is that of its settings, where it has more than one."""
    module = dataset if protocol in (None, "rows") else f"{dataset}_{protocol}"
    return importlib.import_module(f"adaptive_routing.tasks.{module}")
