"""Shared by multiple-choice tasks: the most likely choice, with and without length normalisation."""

from collections.abc import Mapping, Sequence
from typing import Any

from adaptive_routing.data.tasks import Request, Sample, SequenceScore
from adaptive_routing.data.tasks.accuracy import accuracy_with_stderr
from adaptive_routing.data.tasks.uncertainty import clusters_of


def choice_sample(text: str, context: str, choices: Sequence[str], gold: int) -> Sample | None:
    """One request per choice, joined by a space; None if the text and all choices are blank."""
    if not any(one.strip() for one in (text, *choices)):
        return None
    return Sample(text, tuple(Request(context, " " + choice) for choice in choices), gold)


def choice_outcome(sample: Sample, scores: Sequence[SequenceScore]) -> dict[str, Any]:
    """Predictions of a multiple-choice sample; the loss is the gold choice's.

    `prediction` normalises each log-likelihood by the choice's length in characters, without the space
    that joins it to the context (the harness's `acc_norm`); `prediction_unnormalized` does not (`acc`).
    Ties go to the first choice, as with `numpy.argmax`.
    """
    log_likelihoods = [score.log_likelihood for score in scores]
    lengths = [len(request.continuation.removeprefix(" ")) for request in sample.requests]
    normalized = [
        # An empty choice has no length to divide by; NumPy gives -inf there, too.
        value / length if length else float("-inf")
        for value, length in zip(log_likelihoods, lengths, strict=True)
    ]
    prediction = normalized.index(max(normalized))
    prediction_unnormalized = log_likelihoods.index(max(log_likelihoods))
    return {
        "loss": scores[sample.gold].loss,  # ty: ignore[invalid-argument-type]
        "log_likelihoods": log_likelihoods,
        "prediction": prediction,
        "prediction_unnormalized": prediction_unnormalized,
        "gold": sample.gold,
        "correct": prediction == sample.gold,
    }


def choice_metrics(dataset: str, outcomes: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """`{dataset}_accuracy` (length-normalised) and `{dataset}_acc`, each with its standard error."""
    clusters = clusters_of(outcomes)
    accuracy, stderr = accuracy_with_stderr([one["correct"] for one in outcomes], clusters)
    acc, acc_stderr = accuracy_with_stderr(
        [one["prediction_unnormalized"] == one["gold"] for one in outcomes], clusters
    )
    return {
        f"{dataset}_accuracy": accuracy,
        f"{dataset}_accuracy_stderr": stderr,
        f"{dataset}_acc": acc,
        f"{dataset}_acc_stderr": acc_stderr,
    }
