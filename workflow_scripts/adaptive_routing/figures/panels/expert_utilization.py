"""Panel 7: how unevenly the work is spread over the experts, and how many never run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from adaptive_routing.analysis.rule_names import adaptive_noun, adaptive_subject
from adaptive_routing.figures import grid_axis, quality
from adaptive_routing.figures.panels import TITLES

if TYPE_CHECKING:
    from adaptive_routing.analysis.study import Study
    from adaptive_routing.figures.layout import Cell

TITLE = f"7  {TITLES['7_expert_utilization']}"
UNUSED_WORTH_AN_AXIS = 0.5  # percent of experts; with fewer a sentence says it


def draw(cell: Cell, study: Study) -> None:
    means = study.layer_means("gini_coefficient")
    unused = 100 * (1 - grid_axis.by_config(study, "expert_utilization").astype(float))
    most = unused.max()
    worth = most >= UNUSED_WORTH_AN_AXIS
    used = "" if worth or not np.isfinite(most) else f"; at least {_percent(100 - most)} % of experts run"
    cell.heading(TITLE, f"spread of use, 0: even; bars: range over layers{used}")
    every = cell.axes(rows=2 if worth else 1, heights=(0.34, 0.66) if worth else (1,), gap=(0, 0.16))[:, 0]
    if worth:
        grid_axis.draw(every[0], study, unused, named=False)
        every[0].set_ylabel("unused (%)")
        every[0].set_xlabel("")
        every[0].tick_params(labelbottom=False)
    values = grid_axis.by_config(study, "gini_coefficient").astype(float)
    bars = means.min(axis=1), means.max(axis=1)
    grid_axis.draw(every[-1], study, values, bars)
    every[-1].set_ylabel("Gini coefficient (0 to 1)")


def describe(study: Study) -> str:
    rows = study.adaptive.dropna(subset=["expert_utilization"])
    if rows.empty:
        return f"No {adaptive_noun(study)} has results."
    least = rows.loc[rows["expert_utilization"].idxmin()]
    sentence = (
        f"On average over the layers, {adaptive_subject(study)} uses at least "
        f"{100 * least['expert_utilization']:.1f} % of the experts at all (least: `{least['config']}`)."
    )
    values = grid_axis.by_config(study, "gini_coefficient")
    name = "Gini coefficient"
    measure = quality.Quality(values, values * np.nan, name, name, None, True, False)
    # Lower is more even, not better: the words of `extremes` hold for either.
    sentence += " " + quality.extremes(study, measure, ".3f")
    means = study.layer_means("gini_coefficient").reindex(study.adaptive["config"]).mean()
    if means.notna().any() and len(means) > 1:
        sentence += (
            f" Over the layers the work is spread most evenly in layer {means.idxmin()} "
            f"({means.min():.3f}) and least in layer {means.idxmax()} ({means.max():.3f})."
        )
    return sentence


def _percent(value):
    return f"{np.floor(10 * value) / 10:g}"
