"""HellaSwag (Zellers et al. 2019): which of four endings continues an activity."""

import re

from adaptive_routing.errors import InputError
from adaptive_routing.tasks import TEXT, TEXTS, Column, Request, Sample
from adaptive_routing.tasks.multiple_choice import choice_metrics, choice_outcome

COLUMNS = {
    "activity_label": TEXT,
    "ctx_a": TEXT,
    "ctx_b": TEXT,
    "endings": TEXTS,
    "label": Column("the number of the right ending", lambda value: isinstance(value, str | int)),
}


def clean(text):
    """The harness's clean-up: WikiHow's bracketed marks go, double spaces become single ones."""
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


def sample(row):
    """`activity: context`, and one request an ending."""
    context = clean(f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}")
    endings = [clean(ending) for ending in row["endings"]]
    label = str(row["label"]).strip()
    if not label.isdecimal() or int(label) >= len(endings):
        raise InputError(f"label is {row['label']!r}; allowed are 0 to {len(endings) - 1}")
    return Sample(context, tuple(Request(context, " " + ending) for ending in endings), int(label))


outcome = choice_outcome


def metrics(outcomes):
    """`hellaswag_accuracy` (length-normalised) and `hellaswag_acc`."""
    return choice_metrics("hellaswag", outcomes)
