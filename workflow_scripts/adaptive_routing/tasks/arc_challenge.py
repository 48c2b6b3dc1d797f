"""ARC-Challenge (Clark et al. 2018): grade-school science questions with their choices."""

from adaptive_routing.errors import InputError
from adaptive_routing.tasks import TEXT, Column, Request, Sample, is_texts
from adaptive_routing.tasks.multiple_choice import choice_metrics, choice_outcome


def _are_choices(value):
    return (
        isinstance(value, dict)
        and is_texts(value.get("text"))
        and is_texts(value.get("label"))
        and len(value["text"]) == len(value["label"])
    )


COLUMNS = {
    "question": TEXT,
    "choices": Column("{'text': [...], 'label': [...]}, two lists of texts of one length", _are_choices),
    "answerKey": TEXT,
}


def sample(row):
    """`Question: …\\nAnswer:`, and one request a choice (three to five of them)."""
    context = f"Question: {row['question']}\nAnswer:"
    labels = row["choices"]["label"]
    if row["answerKey"] not in labels:
        raise InputError(f"answerKey is {row['answerKey']!r}; allowed are {', '.join(map(repr, labels))}")
    requests = tuple(Request(context, " " + choice) for choice in row["choices"]["text"])
    return Sample(row["question"], requests, labels.index(row["answerKey"]))


outcome = choice_outcome


def metrics(outcomes):
    """`arc_challenge_accuracy` (length-normalised) and `arc_challenge_acc`."""
    return choice_metrics("arc_challenge", outcomes)
