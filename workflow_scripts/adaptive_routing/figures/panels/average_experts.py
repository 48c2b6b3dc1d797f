"""Panel 3: experts that run per token and layer, over the grid, beside the top-k that runs all it may."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adaptive_routing.analysis.rule_names import adaptive_noun, adaptive_subject, capitalized
from adaptive_routing.figures import grid_axis, scales
from adaptive_routing.figures.panels import TITLES

if TYPE_CHECKING:
    from adaptive_routing.analysis.study import Study
    from adaptive_routing.figures.layout import Cell

TITLE = f"3  {TITLES['3_average_experts']}"


def draw(cell: Cell, study: Study) -> None:
    several = len(study.range_over_datasets("avg_experts")[0].index) < len(study.experiments)
    note = "mean over the data sets; bars: their range; " if several else ""
    cell.heading(TITLE, f"{note}top-k runs all that a rule may")
    axes = cell.axes()[0, 0]
    values = grid_axis.by_config(study, "avg_experts")
    bars = study.range_over_datasets("avg_experts")
    grid_axis.draw(axes, study, values, bars, scales.count_axis, whole=True)
    axes.set_ylabel("experts per token and layer")


def describe(study: Study) -> str:
    rows = study.adaptive[study.adaptive["avg_experts"].notna()].sort_values("avg_experts", kind="stable")
    if rows.empty:
        return f"No {adaptive_noun(study)} has results."
    first, last = rows.iloc[0], rows.iloc[-1]
    sentence = (
        f"{capitalized(adaptive_subject(study))} runs from {first['avg_experts']:.2f} (`{first['config']}`) "
        f"to {last['avg_experts']:.2f} (`{last['config']}`) experts per token and layer"
    )
    reference = study.baseline_value("avg_experts")
    if reference == reference:
        fewer = int((rows["avg_experts"] < reference).sum())
        sentence += f"; {fewer} of {len(rows)} configurations run fewer than the baseline's {reference:.2f}"
    return sentence + "."
