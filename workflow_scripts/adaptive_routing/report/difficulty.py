"""The report's section on the prompts: how expert counts change with difficulty."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING
from urllib.parse import quote

from adaptive_routing.analysis.difficulty import describe_difficulty
from adaptive_routing.report import words

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import pandas as pd


def difficulty_section(
    difficulty: tuple[pd.DataFrame, pd.DataFrame, Path | str] | None, folder: Path | str
) -> Iterator[str]:
    """Yield the section's parts; nothing where the study has no prompts.

    difficulty: None, or (table, trend, path of the figure), where the first two are the results of
    `analysis.difficulty.difficulty_table` and `difficulty_trend`. The figure is linked relative to `folder`.
    """
    if difficulty is None:
        return
    table, trend, figure = difficulty
    yield "## Experts by difficulty"
    yield describe_difficulty(table, trend)
    yield f"![Experts by difficulty of the prompt]({quote(os.path.relpath(figure, folder))})"
    yield (
        "Experts per token and layer, averaged over the prompts of each level, ± their standard error. ρ is "
        "Spearman's rank correlation with difficulty; p comes from a permutation test. Where the study has "
        "other data sets, the averages, panels and answers of this report leave the prompts out."
    )
    yield _table(table, trend)


def _table(table, trend):
    levels = sorted(table["difficulty"].unique())
    rows = []
    for _, correlation in trend.iterrows():
        of_config = table[table["config"] == correlation["config"]].set_index("difficulty")
        cells = [
            words.with_error(of_config.loc[level], "avg_experts_prompt", ".2f")
            if level in of_config.index
            else words.NOTHING
            for level in levels
        ]
        rows.append(
            [
                words.both_names(correlation["config"]),
                *cells,
                words.number(correlation["avg_experts_prompt_rho"], "+z.2f"),
                words.p_value(correlation["avg_experts_prompt_p_value"]),
                words.p_value(correlation["avg_experts_prompt_p_holm"]),
            ]
        )
    headings = ["configuration", *(f"level {level}" for level in levels), "ρ", "p", "p (Holm)"]
    return words.table(headings, rows)
