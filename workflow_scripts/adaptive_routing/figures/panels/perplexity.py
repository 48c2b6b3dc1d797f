"""Panel 1: perplexity over the grid, beside the top-k that may run as many experts.

WikiText's perplexity, or that of LAMBADA's target words where the study has no WikiText, else the mean loss.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from adaptive_routing.figures import grid_axis, quality, scales
from adaptive_routing.figures.panels import TITLES

if TYPE_CHECKING:
    from adaptive_routing.analysis.study import Study
    from adaptive_routing.figures.layout import Cell

TITLE = f"1  {TITLES['1_perplexity']}"


def draw(cell: Cell, study: Study) -> None:
    measure = _measure(study)
    if measure is None:
        return cell.nothing_to_show(TITLE, "no data set of this study has a perplexity or a loss to compare")
    bars = "; bars: ± 1 standard error" if measure.errors.notna().any() else ""
    name = f"{measure.name}; lower is better" if measure.is_ratio else f"no perplexity: {measure.name}"
    cell.heading(TITLE, f"{name}{bars}")
    axes = cell.axes()[0, 0]
    scale = scales.ratio_axis if measure.is_ratio else scales.plain_axis
    grid_axis.draw(axes, study, measure.values, grid_axis.around(measure.values, measure.errors), scale)
    axes.set_ylabel(measure.axis)


def describe(study: Study) -> str:
    measure = _measure(study)
    if measure is None:
        return "No data set of this study has a perplexity or a loss to compare."
    return quality.extremes(study, measure, ".2f" if measure.is_ratio else ".3f")


def _measure(study):
    return quality.first_of(study, quality.row_perplexity, quality.perplexity, quality.loss)
