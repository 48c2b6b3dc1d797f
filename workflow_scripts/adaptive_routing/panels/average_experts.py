"""Panel 3: experts that run per token and layer, over alpha."""

import pandas as pd

from adaptive_routing.panels import TITLES, style

TITLE = f"3  {TITLES['3_average_experts']}"


def draw(figure, cell, study):
    axes = figure.add_subplot(cell)
    style.heading(axes, TITLE, "mean over the data sets; bars: range over the data sets")
    interval = study.range_over_datasets("avg_experts")
    style.lines_over_alpha(axes, study, "avg_experts", interval=interval)
    style.count_axis(axes, "y", pd.concat([series.reindex(study.bh["config"]) for series in interval]))
    axes.set_ylabel("experts per token and layer")
    style.topk_levels(axes, study, "avg_experts")


def describe(study):
    rows = study.bh[study.bh["avg_experts"].notna()].sort_values("avg_experts", kind="stable")
    if rows.empty:
        return "No BH configuration has results."
    first, last = rows.iloc[0], rows.iloc[-1]
    sentence = (
        f"BH runs from {first['avg_experts']:.2f} (`{first['config']}`) to {last['avg_experts']:.2f} "
        f"(`{last['config']}`) experts per token and layer"
    )
    reference = study.baseline_value("avg_experts")
    if reference == reference:
        fewer = int((rows["avg_experts"] < reference).sum())
        sentence += f"; {fewer} of {len(rows)} configurations run fewer than the baseline's {reference:.2f}"
    return sentence + "."
