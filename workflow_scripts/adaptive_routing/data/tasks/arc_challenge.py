"""ARC-Challenge (Clark et al. 2018): grade-school science questions with their choices."""

from collections.abc import Mapping, Sequence
from typing import Any

from adaptive_routing.data.tasks import LABEL, TEXT, Column, Sample, as_label, is_texts
from adaptive_routing.data.tasks.multiple_choice import choice_metrics, choice_outcome, choice_sample
from adaptive_routing.system.errors import InputError


def _are_choices(value):
    return (
        isinstance(value, dict)
        and is_texts(value.get("text"))
        and isinstance(value.get("label"), list)
        and all(map(LABEL.holds, value["label"]))
        and len(value["text"]) == len(value["label"])
    )


COLUMNS = {
    "question": TEXT,
    "choices": Column(
        "{'text': [...], 'label': [...]}, lists of texts and labels of equal length", _are_choices
    ),
    "answerKey": LABEL,
}
regroup = iter


def sample(row: Mapping[str, Any]) -> Sample | None:
    """`Question: …\\nAnswer:`, and one request per choice (three to five of them)."""
    question, choices, answer = row["question"], row["choices"], as_label(row["answerKey"])
    labels = [as_label(label) for label in choices["label"]]
    if answer not in labels:
        raise InputError(f"answerKey is {row['answerKey']!r}; allowed are {', '.join(map(repr, labels))}")
    context = f"Question: {question}\nAnswer:"
    return choice_sample(question, context, choices["text"], labels.index(answer))


outcome = choice_outcome


def metrics(outcomes: Sequence[Mapping[str, Any]], dataset: str) -> dict[str, float | None]:
    """`{dataset}_accuracy` (length-normalised) and `{dataset}_acc`."""
    return choice_metrics(dataset, outcomes)
