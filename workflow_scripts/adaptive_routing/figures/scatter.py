"""Every configuration as a point between its cost and its quality."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.collections import LineCollection

from adaptive_routing.figures import labels, scales, style
from adaptive_routing.figures.grid_axis import reference_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import pandas as pd
    from matplotlib.axes import Axes

    from adaptive_routing.analysis.study import Study
    from adaptive_routing.figures.quality import Quality

MOST_SPELLED_OUT = 6  # top-k named top-8; more are k 8
SIZE, SMALL_SIZE, MANY = 4.6, 3.4, 40  # of markers in points; for more than MANY configurations


def draw(
    axes: Axes,
    study: Study,
    x: pd.Series,
    quality: Quality,
    x_scale: Callable[..., None],
    named: Iterable[str] = (),
    cheap_is_left: bool = True,
) -> None:
    """Draw quality over a cost or a speed: lines join a rule's variants and top-k, a cross is the baseline.

    x: Series by configuration; quality: of `quality`; x_scale: of `scales`; named: adaptive configurations to
    name; cheap_is_left: on which side of the baseline's x the better ones lie, which is shaded.
    """
    table = study.configurations.assign(
        x=x.reindex(study.configurations["config"]).to_numpy(float),
        y=quality.values.reindex(study.configurations["config"]).to_numpy(float),
        error=quality.errors.reindex(study.configurations["config"]).fillna(0).to_numpy(float),
    ).dropna(subset=["x", "y"])
    is_topk = table["config"].isin(study.topk["config"])
    varied, topk = table[~is_topk], table[is_topk]
    baseline = table[table["config"] == study.baseline]
    held = np.concatenate(
        [[*part["y"] - part["error"], *part["y"] + part["error"]] for part in (varied, baseline)]
    )
    if varied.empty:
        held = table["y"].to_numpy()
    x_scale(axes, "x", table["x"])
    (scales.ratio_axis if quality.is_ratio else scales.plain_axis)(axes, "y", held)
    above, below = scales.fit_y(axes, held, topk["y"])
    axes.margins(x=0.08)
    axes.update_datalim(np.column_stack([table["x"], np.full(len(table), axes.get_ylim()[0])]))
    axes.autoscale_view(scaley=False)
    axes.set_xlim(axes.get_xlim())
    _draw_baseline(axes, study, baseline, quality.lower_is_better, cheap_is_left)
    size = SIZE if len(varied) <= MANY else SMALL_SIZE
    for max_k, rows in varied.groupby("k_or_max_k"):
        colours = style.colours(study, rows)
        for _, line in rows.groupby(rows["config"].map(study.family), sort=False):
            axes.plot(line["x"], line["y"], color=style.PALE, linewidth=0.7, zorder=2)
        axes.add_collection(_bars(rows, colours), autolim=False)
        axes.scatter(rows["x"], rows["y"], c=colours, zorder=4, **style.points(study, max_k, size))
    shown = _draw_topk(axes, topk, above, below)
    items = list(_topk_names(study, topk, shown))
    for config in named:
        row = varied[varied["config"] == config]
        items += [(row["x"].item(), row["y"].item(), style.label(config), "normal")] if len(row) else []
    marks = np.column_stack([[*varied["x"], *topk["x"]], [*varied["y"], *shown]])
    bars = [[(x, y - e), (x, y + e)] for x, y, e in varied[["x", "y", "error"]].itertuples(index=False)]
    joined = [*zip(marks[len(varied) : -1], marks[len(varied) + 1 :], strict=True)]
    (x_low, x_high), (y_low, y_high) = axes.get_xlim(), axes.get_ylim()
    cross = [
        line
        for x, y in baseline[["x", "y"]].itertuples(index=False)
        for line in ([(x_low, y), (x_high, y)], [(x, y_low), (x, y_high)])
    ]
    labels.place(axes, items, marks, [*bars, *joined, *cross])


def note(study: Study, quality: Quality, side: str) -> str:
    """How to read such a panel whose better configurations lie at a side, "left" or "right"."""
    corner = f"{'lower' if quality.lower_is_better else 'upper'} {side} is better"
    shade = "shaded: beats the baseline in both" if study.baseline_row is not None else corner
    return shade + ("; bars: ± 1 standard error" if quality.errors.notna().any() else "")


def _draw_baseline(axes, study, baseline, lower_is_better, cheap_is_left):
    """The baseline's two levels; shaded, what is no worse than it in both."""
    if baseline.empty:
        return
    x, y = baseline["x"].item(), baseline["y"].item()
    reference_line(axes, study, y)
    reference_line(axes, study, x, along="y")
    (x_low, x_high), (y_low, y_high) = axes.get_xlim(), axes.get_ylim()
    horizontal = (x_low, x) if cheap_is_left else (x, x_high)
    vertical = (y_low, y) if lower_is_better else (y, y_high)
    axes.fill_between(horizontal, *vertical, color="#56b4e9", alpha=0.16, linewidth=0, zorder=0.5)


def _bars(rows, colours):
    segments = [
        [(x, y - error), (x, y + error)] for x, y, error in rows[["x", "y", "error"]].itertuples(index=False)
    ]
    return LineCollection(segments, colors=colours, linewidths=0.8, zorder=3)


def _draw_topk(axes, rows, above, below):
    """Draw the top-k configurations; return the y at which each stands, at the edge where it is far off."""
    forward = axes.yaxis.get_transform()
    low, high = forward.transform(np.array(axes.get_ylim()))
    shares = np.array([scales.edge(axes, True), scales.edge(axes, False)])
    edges = forward.inverted().transform(low + shares * (high - low))
    shown = np.where(above, edges[0], np.where(below, edges[1], rows["y"]))
    near = rows[~above & ~below]
    joined = np.where(above | below, np.nan, shown)
    axes.plot(rows["x"], joined, color="black", linewidth=0.7, linestyle=":", zorder=1.8)
    axes.add_collection(_bars(near, "black"), autolim=False)
    axes.plot(rows["x"], shown, zorder=5, **(style.TOPK | {"markersize": 5.2}))
    return shown


def _topk_names(study, rows, shown):
    """(x, y, name, weight) of the top-k configurations; the baseline is named at the end of its line."""
    for (_, row), y in zip(rows.iterrows(), shown, strict=True):
        if row["config"] == study.baseline:
            continue
        # Many names have room only where they are short.
        name = f"{'k ' if len(rows) > MOST_SPELLED_OUT else 'top-'}{int(row['k_or_max_k'])}"
        if y != row["y"]:
            name += f" {'↑' if y < row['y'] else '↓'}{scales.three_digits(row['y'])}"
        yield row["x"], y, name, "normal"
