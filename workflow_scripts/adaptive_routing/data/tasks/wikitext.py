"""WikiText: language modelling, row by row (protocol `rows`).

Each row that holds text is scored on its own: mean negative log-likelihood of every token but the
first, rows cut to `max_length` tokens.

The rows of an article are one cluster. Articles that share a row are one cluster too, unless it is the
heading of a section: "= = History = =" stands in many articles and would tie unrelated ones together. Text
without titles has no articles: its rows are clusters of their own, except repeated ones.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from adaptive_routing.data.tasks import TEXT, Request, Sample, SequenceScore
from adaptive_routing.data.tasks.uncertainty import clusters_of, exp_mean_with_stderr, exp_ratio_with_stderr

COLUMNS = {"text": TEXT}
_ARTICLE = "number of the article"


def regroup(rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The rows, each with the number of its article: a title starts an article."""
    article = 0
    for row in rows:
        article += is_title(row["text"])
        yield row | {_ARTICLE: article}


def is_title(line: str) -> bool:
    """Whether a line is an article's title, " = Title = "; a section's heading has more equals signs."""
    return re.fullmatch(r"= (?!=).*(?<!=) =", line.strip()) is not None


def sample(row: Mapping[str, Any]) -> Sample | None:
    """A row's unchanged text; None if it is blank."""
    text, shown = row["text"], row["text"].strip()
    if not shown:
        return None
    article = row.get(_ARTICLE)  # 0: before the first title, so that nothing says what belongs together
    alike = [("article", article)] if article else []
    if not article or not (shown.startswith("= =") and shown.endswith("= =")):
        alike.append(("text", shown))
    return Sample(shown, (Request(None, text),), alike=tuple(alike))


def outcome(sample: Sample, scores: Sequence[SequenceScore]) -> dict[str, Any]:
    """The row's loss."""
    return {"loss": scores[0].loss}


def metrics(outcomes: Sequence[Mapping[str, Any]], dataset: str) -> dict[str, float | None]:
    """`perplexity` = exp(mean of the sample losses); `token_perplexity` weights every token equally."""
    losses = [one["loss"] for one in outcomes]
    tokens = [one["num_predicted_tokens"] for one in outcomes]
    clusters = clusters_of(outcomes)
    perplexity, stderr = exp_mean_with_stderr(losses, clusters)
    totals = [loss * count for loss, count in zip(losses, tokens, strict=True)]
    token_perplexity, token_stderr = exp_ratio_with_stderr(totals, tokens, clusters)
    return {
        "perplexity": perplexity,
        "perplexity_stderr": stderr,
        "token_perplexity": token_perplexity,
        "token_perplexity_stderr": token_stderr,
    }
