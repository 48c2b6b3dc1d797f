"""Where an adaptive configuration wins or loses against its `fixed` control: on which tokens of the text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adaptive_routing.analysis import control_outcomes as controls
from adaptive_routing.analysis.study import SIGNIFICANCE_LEVEL
from adaptive_routing.report import words

if TYPE_CHECKING:
    from collections.abc import Iterator

    from adaptive_routing.analysis.study import Study

DIVISIONS = {
    "position": "position in the text",
    "frequency": "frequency of the token",
    "word_start": "beginning or inside of a word",
    "baseline_loss": "the baseline's loss",
    "experts": "experts per layer where the token is predicted",
}
MOST_BINS = 4  # named in a sentence


def division(by: str) -> str:
    """What the tokens are divided by, in words."""
    return DIVISIONS.get(by, by.replace("_", " "))


def where_section(study: Study, figure: str | None = None) -> Iterator[str]:
    """Yield the section's parts; nothing where no token was compared.

    figure: the link to the figure.
    """
    if study.where.empty:
        return
    yield "### Where"
    yield (
        "The loss of every predicted token is compared between an adaptive configuration and its control "
        "`fixed`, which runs as many experts. A negative difference means that the adaptive configuration "
        "does better on these tokens. Differences count as significant where the Holm-corrected p is below "
        f"{SIGNIFICANCE_LEVEL}; the correction and the simultaneous intervals are over all bins."
    )
    yield "\n".join(f"- {sentence}" for sentence in _sentences(study))
    if figure:
        yield f"![Where adaptive configurations win and lose]({figure})"
    yield "Every bin of every configuration of every rule is a row of `bh_routing_where.csv`."


def _sentences(study):
    """A sentence a division; of many rules it is about the leading ones."""
    families = list(dict.fromkeys(map(study.family, dict.fromkeys(study.where["config"]))))
    leading = controls.leading_rules(sorted(families, key=study.families.index))
    found = {family: controls.where_counts(study, family) for family in leading}
    for by in dict.fromkeys(study.where["by"]):
        parts = [
            (f"{words.rule(family)} " if len(families) > 1 else "") + _finding(*counts[by])
            for family, counts in found.items()
            if by in counts
        ]
        if parts:
            yield f"{words.capitalized(division(by))}: {'; '.join(parts)}."


def _finding(better, worse, bins):
    if not better and not worse:
        return f"no significant difference in any of {words.plural(bins, 'bin')}"
    parts = [
        f"significantly {word} at {_bins(labels, bins)}"
        for word, labels in (("better", better), ("worse", worse))
        if labels
    ]
    return f"{' and '.join(parts)}, in at least one configuration"


def _bins(labels, bins):
    if len(labels) == bins > 1:
        return words.of(bins, bins, "bin")
    named = ", ".join(map(str, labels[:MOST_BINS]))
    return named + words.more(labels, MOST_BINS)
