"""What a reader must know before the answers: one sentence each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adaptive_routing.analysis import control_outcomes as controls
from adaptive_routing.analysis import recommendations as rules
from adaptive_routing.report import words

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from adaptive_routing.analysis.study import Study
    from adaptive_routing.evaluation.experiment import Summary


def warning_section(study: Study, summaries: Sequence[Summary]) -> Iterator[str]:
    """Yield a list of warnings; nothing where there are none."""
    if found := list(_warnings(study, summaries)):
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
    for dataset, found in rules.saturated(study).items():
        hidden = [
            word for word, is_hidden in (("gain", found.no_better), ("loss", found.no_worse)) if is_hidden
        ]
        yield (
            f"On {dataset} the baseline is right on {found.right} of {found.samples} samples, so that no "
            f"{' and no '.join(hidden)} can be shown there."
        )


def _weights_shrink(summaries):
    """Whether an adaptive configuration keeps weights that do not sum to 1 per token."""
    return any(
        summary["routing"].get("weights") == "native"
        and summary["routing"].get("renormalized") is False
        and "min_k" in summary["routing"]
        for summary in summaries
    )
