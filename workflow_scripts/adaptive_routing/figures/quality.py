"""What stands for quality in a study: a perplexity, an accuracy or, where there is neither, the mean loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from adaptive_routing.analysis.rule_names import adaptive_noun
from adaptive_routing.analysis.tables import averaged_datasets
from adaptive_routing.figures.grid_axis import by_config

if TYPE_CHECKING:
    from collections.abc import Callable

    from adaptive_routing.analysis.study import Study

PERPLEXITIES = {  # column: (in sentences, on an axis)
    "perplexity": ("perplexity on {}", "perplexity, exp(mean sample loss)"),
    "token_perplexity": ("token perplexity on {}", "perplexity, exp(mean loss per token)"),
    "word_perplexity": ("word perplexity on {}", "perplexity, exp(mean loss per word)"),
    "target_perplexity": ("perplexity on {}'s target words", "perplexity, exp(mean loss per word)"),
}


@dataclass(frozen=True)
class Quality:
    """One measure of every configuration.

    values, errors: Series by configuration, errors NaN where unknown; name: in sentences; axis: an axis's
    label with its unit; dataset: the one it is of, None where it is a mean over several; is_ratio: whether
    ratios of it mean something, as of perplexities.
    """

    values: pd.Series
    errors: pd.Series
    name: str
    axis: str
    dataset: str | None
    lower_is_better: bool
    is_ratio: bool


def perplexity(study: Study) -> Quality | None:
    """The perplexity that is a data set's score, or that of LAMBADA's target words; None without one.

    It is a mean where several data sets have it.
    """
    column = next(
        (c for c in (study.perplexity, "target_perplexity") if c is not None and study.has(c)), None
    )
    if column is None:
        return None
    return _perplexity(study, column)


def row_perplexity(study: Study) -> Quality | None:
    """The metric `perplexity`, in which every row weighs the same, where a token perplexity decides."""
    if study.perplexity != "token_perplexity" or not study.has("perplexity"):
        return None
    return _perplexity(study, "perplexity")


def _perplexity(study, column):
    """A perplexity by its column, a mean over the data sets that have it."""
    rows = study.experiments[study.experiments[column].notna()]
    datasets = list(dict.fromkeys(rows["dataset"]))
    name, axis = PERPLEXITIES[column]
    name = name.format(" and ".join(datasets))
    if len(datasets) > 1:
        return Quality(*_with_errors(study, column), f"mean {name}", axis, None, True, True)
    return Quality(*_with_errors(study, column), name, axis, datasets[0], True, True)


def accuracy(study: Study) -> Quality | None:
    """The mean accuracy over the data sets that have one; None without one."""
    if not study.has("avg_task_accuracy"):
        return None
    dataset = study.accuracies[0].removesuffix("_accuracy") if len(study.accuracies) == 1 else None
    return Quality(
        *_with_errors(study, "avg_task_accuracy"), f"{dataset or 'mean'} accuracy",
        f"{dataset or 'mean task'} accuracy (share correct)", dataset, False, False,
    )  # fmt: skip


def loss(study: Study) -> Quality | None:
    """The mean loss of the first data set that was compared with the baseline; None without one."""
    for dataset in averaged_datasets(study.datasets):
        rows = study.comparisons
        rows = rows[(rows["dataset"] == dataset) & (rows["metric"] == "loss")].set_index("config")
        if rows.empty or "value" not in rows or rows["value"].isna().all():
            continue
        table = pd.DataFrame({"value": rows["value"], "error": rows["value_stderr"]})
        table.loc[study.baseline] = rows[["baseline_value", "baseline_value_stderr"]].iloc[0].to_list()
        return Quality(
            table["value"], table["error"], f"mean loss on {dataset}", f"mean loss on {dataset} (nats)",
            dataset, True, False,
        )  # fmt: skip
    return None


def frontier_measure(study: Study) -> Quality | None:
    """What is set against experts: perplexity of text, else accuracy, else a word's perplexity or loss."""
    text = perplexity(study) if study.perplexity is not None else None
    return text or first_of(study, accuracy, perplexity, loss)


def first_of(study: Study, *measures: Callable[[Study], Quality | None]) -> Quality | None:
    """The first of these measures that the study has; None without one."""
    return next((found for found in (measure(study) for measure in measures) if found is not None), None)


def extremes(study: Study, quality: Quality, digits: str) -> str:
    """Say between which values adaptive configurations lie, and how many are better than the baseline's."""
    names, noun = list(study.adaptive["config"]), adaptive_noun(study)
    values = quality.values.reindex(names).dropna().sort_values(kind="stable")
    reference = quality.values.get(study.baseline, np.nan)
    against = f" (baseline: {reference:{digits}})" if reference == reference else ""
    if values.empty:
        return f"No {noun} has a {quality.name}{against}."
    first, last = values.index[0], values.index[-1]
    if len(values) == 1:
        return f"The one {noun}, `{first}`, has {quality.name} {values.iloc[0]:{digits}}{against}."
    sentence = (
        f"Over {len(values)} {noun}s {quality.name} runs from {values.iloc[0]:{digits}} "
        f"(`{first}`) to {values.iloc[-1]:{digits}} (`{last}`){against}"
    )
    if reference == reference:
        below = values < reference if quality.lower_is_better else values > reference
        word = "below" if quality.lower_is_better else "above"
        count = int(below.sum())
        subject = f"{count} of them lie" if count > 1 else ("none of them lies", "one of them lies")[count]
        sentence += f"; {subject} {word} the baseline, before any test"
    return sentence + "."


def _with_errors(study, column):
    return by_config(study, column), by_config(study, f"{column}_stderr")
