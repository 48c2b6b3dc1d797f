"""Prompts in levels of difficulty, each continued greedily: how the number of experts adapts.

The prompt itself is scored like a WikiText row; the new tokens are the model's own (`generation.py`).
"""

from adaptive_routing.tasks import TEXT, Column, Request, Sample
from adaptive_routing.tasks.uncertainty import exp_mean_with_stderr

COLUMNS = {
    "prompt": TEXT,
    "difficulty": Column("a whole number from 1 up", lambda value: type(value) is int and value >= 1),
}


def sample(row):
    """A prompt with its level; None if there is no text."""
    prompt = row["prompt"]
    if not prompt.strip():
        return None
    return Sample(prompt, (Request(None, prompt),), attributes={"difficulty": row["difficulty"]})


def outcome(sample, scores):
    """The prompt's loss."""
    return {"loss": scores[0].loss}


def metrics(outcomes):
    """`prompt_perplexity` = exp(mean of the prompts' losses)."""
    perplexity, stderr = exp_mean_with_stderr([one["loss"] for one in outcomes])
    return {"prompt_perplexity": perplexity, "prompt_perplexity_stderr": stderr}
