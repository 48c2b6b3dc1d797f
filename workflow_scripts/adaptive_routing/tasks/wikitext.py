"""WikiText: language modelling, row by row.

Each row that holds text is scored on its own: mean negative log-likelihood of every token but the
first, rows cut to `max_length` tokens.
"""

import math

from adaptive_routing.tasks import TEXT, Request, Sample

COLUMNS = {"text": TEXT}


def sample(row):
    """A row's text as it stands; None if there is none."""
    text = row["text"]
    return Sample(text.strip(), (Request(None, text),)) if text.strip() else None


def outcome(sample, scores):
    """The row's loss."""
    return {"loss": scores[0].loss}


def metrics(outcomes):
    """`perplexity` = exp(mean of the sample losses); `token_perplexity` weights every token alike."""
    losses = [one["loss"] for one in outcomes]
    tokens = [one["num_predicted_tokens"] for one in outcomes]
    mean = math.fsum(losses) / len(losses)
    total = math.fsum(loss * count for loss, count in zip(losses, tokens, strict=True))
    perplexity = math.exp(mean)
    stderr = None
    if len(losses) > 1:
        variance = math.fsum((loss - mean) ** 2 for loss in losses) / (len(losses) - 1)
        # Delta method: the derivative of exp at the mean is the perplexity itself.
        stderr = perplexity * math.sqrt(variance / len(losses))
    return {
        "perplexity": perplexity,
        "perplexity_stderr": stderr,
        "token_perplexity": math.exp(total / sum(tokens)),
    }
