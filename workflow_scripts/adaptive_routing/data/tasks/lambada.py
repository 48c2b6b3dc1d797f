"""LAMBADA (Paperno et al. 2016): the last word of a passage, given everything before it."""

from collections.abc import Mapping, Sequence
from typing import Any

from adaptive_routing.data.tasks import TEXT, Request, Sample, SequenceScore
from adaptive_routing.data.tasks.accuracy import accuracy_with_stderr
from adaptive_routing.data.tasks.uncertainty import clusters_of, exp_mean_with_stderr

COLUMNS = {"text": TEXT}
regroup = iter


def sample(row: Mapping[str, Any]) -> Sample | None:
    """Split at the last space, like the harness's `text.split(' ')`: a final space leaves an empty word."""
    context, _, word = row["text"].rpartition(" ")
    return Sample(row["text"], (Request(context, " " + word),)) if row["text"].strip() else None


def outcome(sample: Sample, scores: Sequence[SequenceScore]) -> dict[str, Any]:
    """Correct if every token of the word is the greedy choice; the loss is the word's."""
    return {
        "loss": scores[0].loss,
        "log_likelihood": scores[0].log_likelihood,
        "correct": scores[0].is_greedy,
    }


def metrics(outcomes: Sequence[Mapping[str, Any]], dataset: str) -> dict[str, float | None]:
    """Accuracy, and the target perplexity exp(−mean ln p(word)), as in the harness."""
    clusters = clusters_of(outcomes)
    accuracy, stderr = accuracy_with_stderr([one["correct"] for one in outcomes], clusters)
    perplexity, perplexity_stderr = exp_mean_with_stderr(
        [-one["log_likelihood"] for one in outcomes], clusters
    )
    return {
        f"{dataset}_accuracy": accuracy,
        f"{dataset}_accuracy_stderr": stderr,
        f"{dataset}_perplexity": perplexity,
        f"{dataset}_perplexity_stderr": perplexity_stderr,
    }
