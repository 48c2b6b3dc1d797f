"""The report's section on the prompts: what expert counts do with difficulty, the figure and the numbers."""

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


def by_difficulty(
    difficulty: tuple[pd.DataFrame, pd.DataFrame, Path | str] | None, folder: Path | str
) -> Iterator[str]:
    """Yield the section's parts; nothing where the study has no prompts.

    difficulty: None, or (table, trend, path of the figure): of `difficulty.difficulty_table` and
    `difficulty_trend`. The figure is linked relative to `folder`.
    """
    if difficulty is None:
        return
    table, trend, figure = difficulty
    yield "## Experts by difficulty"
    yield describe_difficulty(table, trend)
    yield f"![Experts by difficulty of the prompt]({quote(os.path.relpath(figure, folder))})"
    yield (
        "Experts per token and layer over the prompts' tokens of each level, ± standard error over its "
        "prompts; ρ: Spearman's rank correlation with difficulty, p by permutation. Beside other data sets "
        "the prompts enter no average, no panel and no answer of this report."
    )
    yield _table(table, trend)


def _table(table, trend):
    levels = sorted(table["difficulty"].unique())
    rows = []
    for _, own in trend.iterrows():
        of_config = table[table["config"] == own["config"]].set_index("difficulty")
        cells = [
            words.with_error(of_config.loc[level], "avg_experts_prompt", ".2f")
            if level in of_config.index
            else words.NOTHING
            for level in levels
        ]
        rows.append(
            [
                words.code(own["config"]),
                *cells,
                words.number(own["avg_experts_prompt_rho"], "+z.2f"),
                words.p_value(own["avg_experts_prompt_p_value"]),
                words.p_value(own["avg_experts_prompt_p_holm"]),
            ]
        )
    headings = ["configuration", *(f"level {level}" for level in levels), "ρ", "p", "p (Holm)"]
    return words.table(headings, rows)
