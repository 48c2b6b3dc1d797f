"""WikiText: language modelling, row by row (protocol `rows`).

Each row that holds text is scored on its own: mean negative log-likelihood of every token but the
first, rows cut to `max_length` tokens.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from adaptive_routing.data.tasks import TEXT, Request, Sample, SequenceScore
from adaptive_routing.data.tasks.uncertainty import exp_mean_with_stderr, exp_ratio_with_stderr

COLUMNS = {"text": TEXT}
regroup = iter


def sample(row: Mapping[str, Any]) -> Sample | None:
    """A row's unchanged text; None if it is blank."""
    text = row["text"]
    return Sample(text.strip(), (Request(None, text),)) if text.strip() else None


def outcome(sample: Sample, scores: Sequence[SequenceScore]) -> dict[str, Any]:
    """The row's loss."""
    return {"loss": scores[0].loss}


def metrics(outcomes: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """`perplexity` = exp(mean of the sample losses); `token_perplexity` weights every token equally."""
    losses = [one["loss"] for one in outcomes]
    tokens = [one["num_predicted_tokens"] for one in outcomes]
    perplexity, stderr = exp_mean_with_stderr(losses)
    totals = [loss * count for loss, count in zip(losses, tokens, strict=True)]
    token_perplexity, token_stderr = exp_ratio_with_stderr(totals, tokens)
    return {
        "perplexity": perplexity,
        "perplexity_stderr": stderr,
        "token_perplexity": token_perplexity,
        "token_perplexity_stderr": token_stderr,
    }
