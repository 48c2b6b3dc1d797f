"""WikiText, article by article: the word and byte perplexities that papers report.

This is lm-evaluation-harness's `wikitext` task. The corpus's tokenisation marks are removed from an article.
All its tokens are scored, each given as many of the tokens before it as fit into the model's length. Words
and bytes are counted in the original article.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from adaptive_routing.data.tasks import TEXT, Column, Request, Sample, SequenceScore, wikitext
from adaptive_routing.data.tasks.uncertainty import clusters_of, exp_ratio_with_stderr, ratio_with_stderr

COLUMNS = {"page": Column("a text", TEXT.holds, alternative="text")}

# Spaces that the corpus puts around punctuation, in the order in which the harness removes them.
_MARKS = (
    ("s '", "s'"), (" @-@ ", "-"), (" @,@ ", ","), (" @.@ ", "."),
    (" : ", ": "), (" ; ", "; "), (" . ", ". "), (" ! ", "! "), (" ? ", "? "), (" , ", ", "),
)  # fmt: skip
_PAIRS = (
    (r"\(", r"[^\)]", r"\)"), (r"\[", r"[^\]]", r"\]"), ("{", "[^}]", "}"),
    ('"', '[^"]', '"'), ("'", "[^']", "'"),
)  # fmt: skip
_REST = (
    ("= = = =", "===="), ("= = =", "==="), ("= =", "=="), (" ° ", "°"),
    (" \n", "\n"), ("\n ", "\n"), (" N ", " 1 "), (" 's", "'s"),
)  # fmt: skip


def regroup(rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Articles as rows with a column `page`.

    Rows that have this column are passed on. Rows with a column `text` are lines, and a line with a title
    starts an article. Blank lines alone are not an article.
    """
    lines = []
    for row in rows:
        if "page" in row:
            yield row
            continue
        if wikitext.is_title(row["text"]):
            yield from _article(lines)
            lines = []
        # The corpus's empty lines hold a space, which rows lack.
        lines.append(row["text"].removesuffix("\n") or " ")
    yield from _article(lines)


def _article(lines):
    page = "\n".join(lines)
    return [{"page": page}] if page.strip() else []


def sample(row: Mapping[str, Any]) -> Sample | None:
    """An article; None if it is blank."""
    page = row["page"]
    return Sample(page, (Request(None, detokenize(page), rolling=True),)) if page.strip() else None


def detokenize(page: str) -> str:
    """Remove the spaces and marks of the corpus's tokenisation."""
    for mark, plain in _MARKS:
        page = page.replace(mark, plain)
        if mark == "s '":
            # A bug of the harness: it inserts the pattern, not the digit. Equal scores need it.
            page = re.sub("/' [0-9]/", "/'[0-9]/", page)
    for opening, inside, closing in _PAIRS:
        page = re.sub(rf"({opening})\s*({inside}*?)\s*({closing})", r"\1\2\3", page)
    for mark, plain in _REST:
        page = page.replace(mark, plain)
    return page


def outcome(sample: Sample, scores: Sequence[SequenceScore]) -> dict[str, Any]:
    """The article's log-likelihood over all its windows, and its length in words and bytes."""
    log_likelihood = math.fsum(score.log_likelihood for score in scores)
    return {
        "loss": -log_likelihood / sum(score.num_predicted_tokens for score in scores),
        "log_likelihood": log_likelihood,
        "num_words": len(re.split(r"\s+", sample.text)),
        "num_bytes": len(sample.text.encode()),
    }


def metrics(outcomes: Sequence[Mapping[str, Any]], dataset: str) -> dict[str, float | None]:
    """`perplexity` and `token_perplexity` as for rows; also per word, per byte, and bits per byte."""
    totals = [-one["log_likelihood"] for one in outcomes]
    num_bytes = [one["num_bytes"] for one in outcomes]
    clusters = clusters_of(outcomes)
    word, word_stderr = exp_ratio_with_stderr(totals, [one["num_words"] for one in outcomes], clusters)
    byte, byte_stderr = exp_ratio_with_stderr(totals, num_bytes, clusters)
    bits, bits_stderr = ratio_with_stderr([total / math.log(2) for total in totals], num_bytes, clusters)
    return {
        **wikitext.metrics(outcomes, dataset),
        "word_perplexity": word,
        "word_perplexity_stderr": word_stderr,
        "byte_perplexity": byte,
        "byte_perplexity_stderr": byte_stderr,
        "bits_per_byte": bits,
        "bits_per_byte_stderr": bits_stderr,
    }
