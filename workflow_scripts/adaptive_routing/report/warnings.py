"""What a reader must know before the answers: one sentence each."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from adaptive_routing.analysis import control_outcomes as controls
from adaptive_routing.report import words

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from adaptive_routing.analysis.study import Study
    from adaptive_routing.evaluation.experiment import Summary

# An accuracy is saturated where fewer than this many samples could still become right.
FEWEST_WRONG = 6


def warning_section(study: Study, summaries: Sequence[Summary], note: str | None = None) -> Iterator[str]:
    """Yield a list of warnings; nothing where there are none.

    note: what the model's card says a report must tell (`model_card.report_note`).
    """
    found = [*_warnings(study, summaries), *([f"About the model: {note}"] if note else [])]
    if found:
        yield "\n".join(f"- **Note.** {words.capitalized(sentence)}" for sentence in found)


def _warnings(study, summaries):
    if not study.adaptive.empty and _weights_shrink(summaries):
        yield (
            "The weights of selected experts are not renormalised: a token that runs fewer experts gets a "
            "smaller output of the layer, so part of a difference between numbers of experts may come from "
            "that scale and not from the choice of experts; `weights: renormalized` in the settings takes "
            "it out."
        )
    if not study.adaptive.empty and not controls.has_answer(study):
        yield (
            "There is no comparison at the same compute in this study: differences between an adaptive rule "
            "and a top-k that runs more experts mix what is chosen with how much."
        )
    for dataset, clusters in controls.few_clusters(study).items():
        yield (
            f"On {dataset} the samples form only {words.plural(clusters, 'cluster')} of the same text or "
            "article: standard errors from so few are unreliable and tend to be too small."
        )
    for dataset, right, samples in saturated(study):
        yield (
            f"On {dataset} the baseline is right on {right} of {samples} samples, so no improvement can be "
            "shown there."
        )


def _weights_shrink(summaries):
    """Whether an adaptive configuration keeps weights that do not sum to 1 per token."""
    return any(
        summary["routing"].get("weights") == "native"
        and summary["routing"].get("renormalized") is False
        and "min_k" in summary["routing"]
        for summary in summaries
    )


def saturated(study: Study) -> list[tuple[str, int, int]]:
    """The data sets on which the baseline leaves too few samples wrong: [(data set, right, samples)].

    With fewer than 6 that could become right, McNemar's exact test cannot be significant: 2 · 2⁻⁵ > 0.05.
    """
    found = []
    for dataset in study.scored_datasets:
        rows = study.comparisons
        rows = rows[(rows["dataset"] == dataset) & (rows["metric"] == study.scores[dataset])]
        if rows.empty or not study.scores[dataset].endswith("_accuracy"):
            continue
        accuracy, samples = rows.iloc[0][["baseline_value", "samples"]]
        if np.isfinite(accuracy) and round((1 - accuracy) * samples) < FEWEST_WRONG <= samples:
            found.append((dataset, round(accuracy * samples), int(samples)))
    return found
