"""Prompts in levels of difficulty, each continued greedily: how does the number of experts adapt?

A prompt is scored like a WikiText row, except that one too long for the model keeps its end. The model
generates the new tokens (`generation.py`).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from adaptive_routing.data.tasks import TEXT, Column, Request, Sample, SequenceScore, as_label
from adaptive_routing.data.tasks.uncertainty import clusters_of, exp_mean_with_stderr


def _is_level(value):
    text = as_label(value)
    return text is not None and text.isdecimal() and int(text) >= 1


COLUMNS = {"prompt": TEXT, "difficulty": Column("a whole number from 1 up", _is_level)}
regroup = iter


def sample(row: Mapping[str, Any]) -> Sample | None:
    """A prompt with its level; None if it is blank."""
    prompt = row["prompt"]
    if not prompt.strip():
        return None
    level = int(as_label(row["difficulty"]))  # ty: ignore[invalid-argument-type]
    return Sample(prompt, (Request(None, prompt, keep_end=True),), attributes={"difficulty": level})


def outcome(sample: Sample, scores: Sequence[SequenceScore]) -> dict[str, Any]:
    """The prompt's loss."""
    return {"loss": scores[0].loss}


def metrics(outcomes: Sequence[Mapping[str, Any]], dataset: str) -> dict[str, float | None]:
    """`prompt_perplexity` = exp(mean of the prompts' losses)."""
    perplexity, stderr = exp_mean_with_stderr([one["loss"] for one in outcomes], clusters_of(outcomes))
    return {"prompt_perplexity": perplexity, "prompt_perplexity_stderr": stderr}
