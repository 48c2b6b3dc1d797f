"""Panel 7: the share of experts that run at all, and how unevenly the work is spread over them."""

from adaptive_routing.panels import TITLES, style
from adaptive_routing.panels.perplexity import describe_extremes

TITLE = f"7  {TITLES['7_expert_utilization']}"


def draw(figure, cell, study):
    grid = cell.subgridspec(1, 2)
    interval = study.range_over_datasets("expert_utilization")
    axes = figure.add_subplot(grid[0])
    style.heading(axes, TITLE, "mean over layers and data sets; bars: range over the data sets")
    style.lines_over_alpha(axes, study, "expert_utilization", interval=interval)
    style.alpha_axis(axes, study, most_ticks=4, label="α (target FDR)")
    axes.set_ylabel("experts used at all (share)")
    style.topk_levels(axes, study, "expert_utilization")

    axes = figure.add_subplot(grid[1])
    interval = study.range_over_datasets("gini_coefficient")
    style.lines_over_alpha(axes, study, "gini_coefficient", interval=interval)
    style.alpha_axis(axes, study, most_ticks=4, label="α (target FDR)")
    axes.set_ylabel("Gini coefficient (0: all used alike)")
    style.topk_levels(axes, study, "gini_coefficient")


def describe(study):
    rows = study.bh.dropna(subset=["expert_utilization"])
    if rows.empty:
        return "No BH configuration has results."
    least = rows.loc[rows["expert_utilization"].idxmin()]
    sentence = (
        f"On average over the layers, BH uses at least {100 * least['expert_utilization']:.1f} % of the "
        f"experts at all (least: `{least['config']}`)."
    )
    return sentence + " " + describe_extremes(study, "gini_coefficient", "Gini coefficient", ".3f")
