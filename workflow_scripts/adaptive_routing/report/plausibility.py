"""A model that knows nothing of the text: what stands in the place of advice.

Differences between configurations of such a model are differences of noise. It is told by the baseline: its
perplexity is no lower than that of a guess among all tokens of the vocabulary, or none of its accuracies can
be told from chance.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from adaptive_routing.report import words

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from adaptive_routing.analysis.study import Study

# The accuracy of guessing: four endings or, for nearly all questions, four choices; any word for lambada.
CHANCE = {"hellaswag": 0.25, "arc_challenge": 0.25, "lambada": 0.0}
STANDARD_ERRORS = 2
PERPLEXITIES = ("token_perplexity", "perplexity")


def vocabulary_size(summaries: Iterable[Mapping[str, Any]]) -> int | None:
    """The size of the model's vocabulary, as the experiments' summaries tell it; None if none does."""
    models = (summary["provenance"]["model"] for summary in summaries)
    sizes = (model.get("shapes", {}).get("vocab_size") for model in models)
    return next((size for size in sizes if size), None)


def warning(study: Study, vocabulary: int | None, tasks: Mapping[str, str]) -> list[str]:
    """The sentences that take the place of the report's main ones, in Markdown; none for a model that works.

    Args:
        study: the results tables.
        vocabulary: number of tokens, None where it is unknown.
        tasks: of which kind data sets are whose name does not tell.
    """
    found = _perplexity_of_a_guess(study, vocabulary) or _accuracies_of_a_guess(study, tasks)
    if not found:
        return []
    return [
        f"The model does no better than guessing: with the baseline {words.code(study.baseline)} {found}.",
        "No configuration can be recommended for any aim, because differences between configurations of such "
        "a model tell nothing about routing.",
        "Check that the weights, the tokenizer and the language of the data sets belong together; the tables "
        "hold what was measured.",
    ]


def _baseline_rows(study):
    return study.experiments[study.experiments["config"] == study.baseline].set_index("dataset")


def _perplexity_of_a_guess(study, vocabulary):
    for dataset, row in _baseline_rows(study).iterrows():
        value = next((row[name] for name in PERPLEXITIES if np.isfinite(row.get(name, np.nan))), np.nan)
        if vocabulary and value >= vocabulary:
            return (
                f"its perplexity on {dataset} is {value:,.0f}, and that of a guess among all tokens of the "
                f"vocabulary is {vocabulary:,}"
            )
    return None


def _accuracies_of_a_guess(study, tasks):
    parts = []
    for dataset, row in _baseline_rows(study).iterrows():
        value = row.get("avg_task_accuracy", np.nan)  # that of the data set
        if not np.isfinite(value):
            continue
        error, chance = row.get("avg_task_accuracy_stderr", np.nan), CHANCE.get(tasks.get(dataset, dataset))
        if chance is None or not np.isfinite(error) or value > chance + STANDARD_ERRORS * error:
            return None
        parts.append(f"{value:.3f} ± {error:.3f} on {dataset} (chance is {chance:g})")
    if not parts:
        return None
    return f"no accuracy is more than {STANDARD_ERRORS} standard errors above chance: {words.joined(parts)}"
