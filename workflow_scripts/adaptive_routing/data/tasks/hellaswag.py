"""HellaSwag (Zellers et al. 2019): which of four endings continues an activity."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from adaptive_routing.data.tasks import LABEL, TEXT, TEXTS, Sample, as_label
from adaptive_routing.data.tasks.multiple_choice import choice_metrics, choice_outcome, choice_sample
from adaptive_routing.system.errors import InputError

COLUMNS = {
    "activity_label": TEXT,
    "ctx_a": TEXT,
    "ctx_b": TEXT,
    "endings": TEXTS,
    "label": LABEL,
}
regroup = iter


def clean(text: str) -> str:
    """The harness's clean-up: remove WikiHow's bracketed marks, make double spaces single."""
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


def sample(row: Mapping[str, Any]) -> Sample | None:
    """`activity: context`, and one request per ending."""
    context = clean(f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}")
    endings = [clean(ending) for ending in row["endings"]]
    label = as_label(row["label"])
    if not label.isdecimal() or int(label) >= len(endings):  # ty: ignore[missing-union-attribute, invalid-argument-type]
        raise InputError(f"label is {row['label']!r}; allowed are 0 to {len(endings) - 1}")
    text = "" if context.strip() == ":" else context  # the colon is there even without any text
    return choice_sample(text, context, endings, int(label))  # ty: ignore[invalid-argument-type]


outcome = choice_outcome


def metrics(outcomes: Sequence[Mapping[str, Any]], dataset: str) -> dict[str, float | None]:
    """`{dataset}_accuracy` (length-normalised) and `{dataset}_acc`."""
    return choice_metrics(dataset, outcomes)
