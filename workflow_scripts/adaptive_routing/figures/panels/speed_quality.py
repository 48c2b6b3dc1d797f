"""Panel 9: measured speed against accuracy (against perplexity or loss where the study has no accuracy)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from adaptive_routing.figures import grid_axis, quality, scales, scatter
from adaptive_routing.figures.panels import TITLES

if TYPE_CHECKING:
    from adaptive_routing.analysis.study import Study
    from adaptive_routing.figures.layout import Cell

TITLE = f"9  {TITLES['9_speed_quality']}"


def draw(cell: Cell, study: Study) -> None:
    measure = quality.first_of(study, quality.accuracy, quality.perplexity, quality.loss)
    if measure is None or not study.has("tokens_per_second"):
        return cell.nothing_to_show(TITLE, "no speed or no quality was measured")
    cell.heading(TITLE, scatter.note(study, measure, "right"))
    axes = cell.axes()[0, 0]
    speeds = grid_axis.by_config(study, "tokens_per_second").astype(float)
    varied = speeds.reindex(study.adaptive["config"]).dropna()
    named = [varied.idxmax()] if len(varied) else []
    scatter.draw(axes, study, speeds, measure, scales.ratio_axis, named, cheap_is_left=False)  # ty: ignore[invalid-argument-type]
    axes.set_xlabel("speed (evaluated tokens per second of forward time)")
    axes.set_ylabel(measure.axis)


def describe(study: Study) -> str:
    table = study.configurations.dropna(subset=["tokens_per_second"])
    if table.empty:
        return "No speed was measured."
    first = table.loc[table["tokens_per_second"].idxmax()]
    speed = first["tokens_per_second"]
    sentence = f"The fastest configuration is `{first['config']}` with {speed:,.0f} tokens per second"
    reference = study.baseline_value("tokens_per_second")
    if not np.isfinite(reference):
        return sentence + "."
    if first["config"] == study.baseline:
        return sentence + ": no configuration measured faster than the baseline."
    return (
        f"{sentence}, {first['tokens_per_second'] / reference:.2f} times the baseline's {reference:,.0f}. "
        "Every speed was measured once, so small differences mean nothing."
    )
