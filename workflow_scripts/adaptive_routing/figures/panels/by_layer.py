"""Panel 8: experts in every layer, mean and spread over tokens: a column a max_k, a line a variant."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.ticker import FixedLocator

from adaptive_routing.analysis.rule_names import adaptive_noun
from adaptive_routing.figures import scales, style
from adaptive_routing.figures.panels import TITLES

if TYPE_CHECKING:
    from adaptive_routing.analysis.study import Study
    from adaptive_routing.figures.layout import Cell

TITLE = f"8  {TITLES['8_by_layer']}"
MOST_COLUMNS = 8
MOST_NAMED = 5  # columns whose title has room for "max_k"


def draw(cell: Cell, study: Study) -> None:
    means, deviations = study.layer_means(), study.layer_means("std_experts")
    max_ks = _spread(study.max_ks, MOST_COLUMNS)
    left_out = f"; {len(max_ks)} of {len(study.max_ks)} max_k" if len(max_ks) < len(study.max_ks) else ""
    number = "" if len(max_ks) <= MOST_NAMED else "; columns: max_k"
    what = "by max_k" if study.max_ks else "top-k"
    cell.heading(TITLE, f"{what}; above: mean over tokens; below: standard deviation{number}{left_out}")
    every = cell.axes(rows=2, columns=max(1, len(max_ks)), gap=(0.1, 0.1), share_y=True, top=0.55)
    for above, below, max_k in zip(*every, max_ks, strict=False):
        above.set_title(f"max_k {max_k}" if not number else f"{max_k}", fontsize=6.4, pad=2, loc="center")
        rows = study.beside_topk[study.beside_topk["k_or_max_k"] == max_k]
        _lines(above, study, means, rows)
        _lines(below, study, deviations, rows)
    if not max_ks:
        for axes, table in zip(every[:, 0], (means, deviations), strict=True):
            for config in study.topk["config"]:
                axes.plot(table.columns, table.loc[config], color="black", linestyle=":", linewidth=0.8)
    reference = study.baseline_row
    shown = means.reindex((study.beside_topk if max_ks else study.topk)["config"]).to_numpy().ravel()
    if reference is not None and study.baseline in means.index:
        for j, axes in enumerate(every[0]):
            axes.plot(means.columns, means.loc[study.baseline], zorder=1.5, **style.BASELINE)
            if j == every.shape[1] - 1:
                axes.annotate(
                    style.reference_name(study), (1, means.loc[study.baseline].iloc[-1]),
                    xytext=(2.5, 0), xycoords=axes.get_yaxis_transform(), textcoords="offset points",
                    va="center_baseline", fontsize=style.SMALL, weight="bold", annotation_clip=False,
                )  # fmt: skip
        shown = np.append(shown, means.loc[study.baseline])
    _scales(every, means.columns, shown)


def describe(study: Study) -> str:
    means = study.layer_means().reindex(study.adaptive["config"]).dropna(how="all")
    if means.empty:
        return f"No {adaptive_noun(study)} has per-layer results."
    ratio = (means.max(axis=1) / means.min(axis=1)).sort_values(kind="stable")
    config = ratio.index[-1]
    row = means.loc[config]
    over_all = means.mean(axis=0)
    return (
        f"Averaged over the {adaptive_noun(study)}s, layer {over_all.idxmin()} runs fewest experts "
        f"({over_all.min():.2f}) and layer {over_all.idxmax()} most ({over_all.max():.2f}); the layers "
        f"differ most in `{config}`, from {row.min():.2f} (layer {row.idxmin()}) to {row.max():.2f} (layer "
        f"{row.idxmax()})."
    )


def _lines(axes, study, table, rows):
    width = 1.1 if len(study.variants) <= style.MOST_SWATCHES else 0.8
    for _, row in rows.iterrows():
        if row["config"] in table.index:
            one_layer = {"marker": "_"} if len(table.columns) == 1 else {}
            axes.plot(
                table.columns, table.loc[row["config"]], color=style.colour(study, row["config"]),
                linewidth=width, zorder=3, **one_layer,
            )  # fmt: skip


def _scales(every, layers, shown):
    scales.count_axis(every[0, 0], "y", shown)
    held = shown[np.isfinite(shown)]
    scales.fit_y(every[0, 0], held, [])
    scales.plain_axis(every[1, 0], "y", most=4)
    every[1, 0].set_ylim(0, max(every[1, 0].get_ylim()[1], 1.0))
    first, last = layers[0], layers[-1]
    columns = every.shape[1]
    ticks = [first, last] if columns > MOST_NAMED else sorted({first, last, *_spread(list(layers), 4)})
    for i, row in enumerate(every):
        for j, axes in enumerate(row):
            axes.set_xlim(first - 0.7, last + 0.7)
            axes.xaxis.set_major_locator(FixedLocator(ticks))
            axes.tick_params(labelleft=j == 0, left=j == 0, labelbottom=i == 1, bottom=i == 1)
            axes.spines["left"].set_visible(j == 0)
    every[0, 0].set_ylabel("mean\n(experts)")
    every[1, 0].set_ylabel("deviation\n(experts)")
    middle = every[1, columns // 2]
    middle.set_xlabel("MoE layer (0: first)", x=0.5 if columns % 2 else -0.035 * columns / 2)


def _spread(values, most):
    """At most `most` of the values, evenly spread, the first and the last among them."""
    if len(values) <= most:
        return list(values)
    return [values[round(i)] for i in np.linspace(0, len(values) - 1, most)]
