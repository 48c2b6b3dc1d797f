"""Panel 8: the mean number of experts in every layer, one line a configuration."""

import pandas as pd
from matplotlib.ticker import MaxNLocator

from adaptive_routing.panels import TITLES, style

TITLE = f"8  {TITLES['8_by_layer']}"
MOST_LINES = 24


def draw(figure, cell, study):
    axes = figure.add_subplot(cell)
    means = study.layer_means()
    rows = _shown(study)
    note = "mean over the data sets; paler: smaller α"
    style.heading(axes, TITLE, note + ("; smallest and largest α" if len(rows) < len(study.bh) else ""))
    layers = means.columns.to_numpy()
    step = max(1, len(layers) // 5)
    for i, (_, row) in enumerate(rows.iterrows()):
        max_k = row["k_or_max_k"]
        axes.plot(
            layers, means.loc[row["config"]], color=style.line_colour(study, max_k, row["alpha"]),
            marker=style.marker(study, max_k), markerfacecolor=style.filling(study, max_k, row["alpha"]),
            markeredgecolor=style.colour(study, max_k), markeredgewidth=0.6, markersize=3.2, linewidth=0.9,
            markevery=(i % step, step), zorder=3,
        )  # fmt: skip
    style.count_axis(axes, "y", pd.concat([means.stack(), study.topk["avg_experts"]]))
    axes.set_xlabel("MoE layer (0: first)")
    axes.set_ylabel("experts per token")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    style.topk_levels(axes, study, "avg_experts")


def describe(study):
    means = study.layer_means().reindex(study.bh["config"]).dropna(how="all")
    if means.empty:
        return "No BH configuration has per-layer results."
    ratio = (means.max(axis=1) / means.min(axis=1)).sort_values(kind="stable")
    config = ratio.index[-1]
    row = means.loc[config]
    over_all = means.mean(axis=0)
    return (
        f"Averaged over the BH configurations, layer {over_all.idxmin()} runs fewest experts "
        f"({over_all.min():.2f}) and layer {over_all.idxmax()} most ({over_all.max():.2f}); the layers "
        f"differ most in `{config}`, from {row.min():.2f} (layer {row.idxmin()}) to {row.max():.2f} (layer "
        f"{row.idxmax()})."
    )


def _shown(study):
    """The BH configurations with a line: all, or the smallest and largest alpha where all are too many."""
    rows = study.bh[study.bh["config"].isin(study.layers["config"])]
    if len(rows) <= MOST_LINES:
        return rows
    by_max_k = rows.groupby("k_or_max_k")["alpha"]
    return rows[(rows["alpha"] == by_max_k.transform("min")) | (rows["alpha"] == by_max_k.transform("max"))]
