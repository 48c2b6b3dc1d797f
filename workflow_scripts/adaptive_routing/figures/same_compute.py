"""The figures `same_compute`, `decomposition` and `where`: adaptive against fixed at the same compute.

Colours and markers say which configuration, as in the nine panels. A filled marker is a significant
difference, a white one is none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator

from adaptive_routing.analysis import contrasts
from adaptive_routing.analysis import control_outcomes as controls
from adaptive_routing.analysis.paired import percent_of
from adaptive_routing.analysis.study import SIGNIFICANCE_LEVEL, lower_is_better
from adaptive_routing.figures import layout, scales, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from adaptive_routing.analysis.recommendations import QualityMargins
    from adaptive_routing.analysis.study import Study

COLUMN, ROW = 3.7, 2.9  # inches of a panel
FEWEST_ON_CURVE = 3  # top-k whose curve is drawn
MOST_ROWS = 24  # configurations of the decomposition; of more, the best of each rule
MOST_LINES = 6  # configurations of the figure by tokens
PARTS = {  # look of a contrast, and its name
    contrasts.TOKEN: ("o", "#000000", "token information (adaptive − shuffled)"),
    contrasts.SPREAD: ("s", "#8a8a8a", "spread (shuffled − layerwise)"),
    contrasts.LAYERS: ("^", "#c4c4c4", "layers (layerwise − fixed)"),
    contrasts.ANSWER: ("D", "#ffffff", "together (adaptive − fixed)"),
}
DIVISIONS = {
    "position": "position",
    "frequency": "token frequency",
    "word_start": "beginning of a word",
    "baseline_loss": "baseline's loss",
    "experts": "experts per layer",
}


def draw_same_compute(study: Study) -> Figure:
    """Draw each adaptive configuration's difference from its `fixed` control over experts, by data set.

    Below it, where the study has a curve of top-k, the scores themselves beside that curve.
    """
    with style.visual_language():
        rows = controls.rows_of(study, contrasts.ANSWER)
        datasets = list(dict.fromkeys(rows["dataset"]))
        curve = len(study.topk) >= FEWEST_ON_CURVE
        legend = [*style.legend_handles(study)[: 2 if study.variants else 1]]
        marks = [_mark("black", "significant", "s"), _mark("white", "not significant", "s")]
        marks += [Line2D([], [], label="top-k", **style.TOPK)] if curve else []
        marks += [_cross("fixed control")] if curve else []
        figure, cells = _cells(len(datasets), 2 if curve else 1, [*legend, marks])
        for i, dataset in enumerate(datasets):
            _differences(cells[i], study, rows[rows["dataset"] == dataset], dataset, i == 0)
            if curve:
                _curve(cells[len(datasets) + i], study, rows[rows["dataset"] == dataset], dataset)
        style.add_legend(figure, _legend_rows(figure, [*legend, marks]), layout.LEGEND_ROW)
    return figure


def draw_decomposition(study: Study, margins: QualityMargins) -> Figure:
    """Draw what token information, spread and layers are worth, by configuration and data set."""
    with style.visual_language():
        configs, what = _of_decomposition(study, margins)
        datasets = list(dict.fromkeys(study.answers["dataset"]))
        handles = [_mark(colour, name, shape) for shape, colour, name in PARTS.values()]
        height = max(ROW, 1.1 + 0.34 * len(configs))
        names = list(configs)
        left = 0.25 + 0.052 * max(map(len, names))
        legend = [handles]
        size = (left + (COLUMN - 0.9) * len(datasets) + 0.6, height)
        figure = style.new_figure(size, layout=None)
        rows = _legend_rows(figure, legend)
        room = layout.LEGEND_ROW * len(rows) + 0.1
        width = (size[0] - left - 0.15) / len(datasets)
        places = np.arange(len(configs), dtype=float)
        for i, dataset in enumerate(datasets):
            cell = layout.Cell(figure, left + i * width - 0.08, room, width, size[1] - room - 0.06)
            table = study.answers[study.answers["dataset"] == dataset]
            unit, scale = _unit(table["metric"].iloc[0])
            cell.heading(
                dataset, _direction(table["metric"].iloc[0]) + (f"; {what}" if what and i == 0 else "")
            )
            axes = cell.axes(left=0.08, right=0.2)[0, 0]
            for j, (contrast, (shape, colour, _)) in enumerate(PARTS.items()):
                part = table[table["contrast"] == contrast].set_index("config").reindex(configs)
                y = places + (j - 1.5) * 0.19
                values, low, high = (
                    scale(part[name].to_numpy(float)) for name in ("difference", "ci_low", "ci_high")
                )
                axes.hlines(y, low, high, color="#555555", linewidth=0.8, zorder=2)
                axes.plot(
                    values, y, linestyle="none", marker=shape, color=colour, markersize=4.0,
                    markeredgecolor="black", markeredgewidth=0.6, zorder=3,
                )  # fmt: skip
            axes.axvline(0, zorder=1, **style.BASELINE)
            for place in places[:-1]:
                axes.axhline(place + 0.5, color="#e0e0e0", linewidth=0.5, zorder=0)
            axes.set_ylim(len(configs) - 0.5, -0.5)
            axes.grid(axis="y", visible=False)
            axes.yaxis.set_major_locator(FixedLocator(places.tolist()))
            axes.yaxis.set_minor_locator(NullLocator())
            axes.tick_params(axis="y", length=0)
            axes.set_yticklabels(names if i == 0 else [""] * len(names))
            scales.plain_axis(axes, "x", most=4)
            axes.set_xlabel(unit)
        style.add_legend(figure, rows, layout.LEGEND_ROW)
    return figure


def draw_where(study: Study, margins: QualityMargins) -> Figure:
    """Draw the difference of the loss by position, frequency and so on, for some configurations."""
    with style.visual_language():
        table = study.where
        configs = _of_where(study, margins)
        datasets = list(dict.fromkeys(table["dataset"]))
        divisions = list(dict.fromkeys(table["by"]))
        handles = [
            Line2D(
                [], [], linestyle="none", marker=style.marker(study, config), markeredgecolor="black",
                color=style.colour(study, config), markeredgewidth=0.5, markersize=4.6,
                label=style.label(config),
            )
            for config in configs
        ]  # fmt: skip
        marks = [_mark("black", "significant"), _mark("white", "not significant")]
        table = table[table["config"].isin(configs)].assign(bin=controls.bins_of(table))
        left = 0.22 + 0.05 * max(map(len, table["bin"].map(lambda one: one[1])))
        columns = min(5, len(divisions))
        rows_each = -(-len(divisions) // columns)
        most = table.groupby(["dataset", "by"])["bin"].nunique().max()
        height = max(2.1, 0.85 + 0.14 * most)
        size = (columns * (left + 1.45) + 2 * layout.EDGE, height * rows_each * len(datasets) + 0.4)
        figure = style.new_figure(size, layout=None)
        legend = _legend_rows(figure, [handles, marks])
        cells = layout.cells(figure, rows_each * len(datasets), columns, len(legend))
        for d, dataset in enumerate(datasets):
            for b, by in enumerate(divisions):
                cell = cells[(d * rows_each + b // columns) * columns + b % columns]
                part = table[(table["dataset"] == dataset) & (table["by"] == by)]
                if part.empty:
                    cell.nothing_to_show(f"{dataset}: by {_division(by)}", "not compared")
                else:
                    _bins(cell, study, part, configs, f"{dataset}: by {_division(by)}", left)
        style.add_legend(figure, legend, layout.LEGEND_ROW)
    return figure


def _cells(columns, rows, groups):
    size = (COLUMN * columns + 2 * layout.EDGE, ROW * rows)
    figure = style.new_figure(size, layout=None)
    legend = _legend_rows(figure, groups)
    figure.set_figheight(size[1] + layout.LEGEND_ROW * len(legend))
    return figure, layout.cells(figure, rows, columns, len(legend))


def _legend_rows(figure, groups):
    return style.legend_rows([group for group in groups if group], figure.get_figwidth())


def _mark(colour, name, shape="o"):
    return Line2D(
        [], [], linestyle="none", marker=shape, color=colour, markeredgecolor="black", markeredgewidth=0.7,
        markersize=4.6, label=name,
    )  # fmt: skip


def _cross(name):
    return Line2D(
        [], [], linestyle="none", marker="x", color=style.NEUTRAL, markeredgewidth=0.9, markersize=4.2,
        label=name,
    )  # fmt: skip


def _differences(cell, study, rows, dataset, first):
    metric = rows["metric"].iloc[0]
    unit, scale = _unit(metric)
    note = f"{_direction(metric)}; bars: simultaneous 95 % intervals"
    cell.heading(f"{dataset}: adaptive − fixed", note)
    axes = cell.axes(left=0.62, right=0.15)[0, 0]
    experts = rows["avg_experts"].to_numpy(float)
    values, low, high = (scale(rows[name].to_numpy(float)) for name in ("difference", "ci_low", "ci_high"))
    significant = rows["verdict"].isin((contrasts.BETTER, contrasts.WORSE)).to_numpy()
    _points(axes, study, rows["config"].tolist(), experts, (values, low, high), significant)
    scales.count_axis(axes, "x", experts)
    axes.margins(x=0.08)
    scales.plain_axis(axes, "y")
    axes.set_ylim(*_limits(values, low, high))
    bottom, top = axes.get_ylim()
    good = (bottom, 0) if lower_is_better(metric) else (0, top)
    axes.axhspan(*good, color="#56b4e9", alpha=0.14, linewidth=0, zorder=0)
    axes.set_ylim(bottom, top)
    axes.axhline(0, zorder=1.5, **style.BASELINE)
    axes.set_xlabel("average experts per token and layer")
    axes.set_ylabel(unit)


def _limits(values, low, high):
    """Limits that hold 0, every value, and of intervals what does not flatten the values."""
    values = np.asarray(values, dtype=float)
    held = np.array([0.0, *values[np.isfinite(values)]])
    halves = (np.asarray(high, dtype=float) - np.asarray(low, dtype=float)) / 2
    halves = halves[np.isfinite(halves)]
    reach = 2 * float(np.median(halves)) if len(halves) else 0.0
    ends = np.concatenate([low, high])
    ends = ends[np.isfinite(ends)]
    bottom = max(min([*ends, held.min()]), held.min() - reach)
    top = min(max([*ends, held.max()]), held.max() + reach)
    room = 0.07 * max(top - bottom, 1e-9)
    return bottom - room, top + room


def _curve(cell, study, rows, dataset):
    """The scores themselves: the curve of top-k, the adaptive configurations and their controls."""
    metric = rows["metric"].iloc[0]
    name = metric.replace("_", " ") if "perplexity" in metric or metric == "loss" else "share correct"
    better = "lower" if lower_is_better(metric) else "higher"
    cell.heading(f"{dataset}: beside the curve of fixed top-k", f"{name}; {better} is better")
    axes = cell.axes(left=0.62, right=0.15)[0, 0]
    table = study.experiments[study.experiments["dataset"] == dataset]
    topk = table[table["config"].isin(study.topk["config"])]
    column = metric if metric in topk else "avg_task_accuracy"
    experts = rows["avg_experts"].to_numpy(float)
    values = rows["value"].to_numpy(float)
    reference = rows["reference_value"].to_numpy(float)
    held = np.concatenate([values, reference])
    if column in topk:
        # Of top-k, what lies around the numbers of experts that adaptive configurations run.
        near = topk["avg_experts"].between(experts.min() / 2, 2 * experts.max())
        topk = topk[near].dropna(subset=[column]).sort_values("avg_experts")
        x, y = topk["avg_experts"].to_numpy(float), topk[column].to_numpy(float)
    else:
        x = y = np.array([])
    scales.count_axis(axes, "x", np.concatenate([experts, x]))
    axis = scales.ratio_axis if lower_is_better(metric) else scales.plain_axis
    axis(axes, "y", held)
    above, below = scales.fit_y(axes, held, y)
    shown = np.where(above | below, np.nan, y)
    axes.plot(x, shown, color="black", linewidth=0.7, linestyle=":", zorder=1.8)
    axes.plot(x, shown, zorder=5, **style.TOPK)
    axes.plot(experts, reference, linestyle="none", marker="x", color=style.NEUTRAL, markersize=4.2, zorder=3)
    _points(axes, study, rows["config"].tolist(), experts, (values,), np.ones(len(rows), bool))
    axes.margins(x=0.08)
    axes.set_xlabel("average experts per token and layer")
    axes.set_ylabel(name)


def _points(axes: Axes, study: Study, configs, x, bars, filled) -> None:
    """A marker a configuration, with its bar where there is one; white where not `filled`."""
    for i, config in enumerate(configs):
        colour = style.colour(study, config)
        shape = style.marker(study, config)
        if len(bars) == 3:
            axes.vlines(x[i], bars[1][i], bars[2][i], color=colour, linewidth=0.9, zorder=2.5)
        axes.plot(
            [x[i]], [bars[0][i]], linestyle="none", marker=shape, zorder=4,
            markersize=4.4 * style.LARGER.get(shape, 1.0), markerfacecolor=colour if filled[i] else "white",
            markeredgecolor=style.INK if filled[i] else colour, markeredgewidth=0.4 if filled[i] else 1.0,
        )  # fmt: skip


def _bins(cell, study, rows, configs, title, left):
    """One division of the tokens: a row a bin, in it a marker a configuration."""
    cell.heading(title, "left of 0: adaptive is better")
    axes = cell.axes(left=left, right=0.15)[0, 0]
    places = sorted(set(rows["bin"]))
    bins = [name for _, name in places]
    shown = [config for config in configs if (rows["config"] == config).any()]
    for j, config in enumerate(shown):
        own = rows[rows["config"] == config]
        y = np.array([places.index(one) for one in own["bin"]]) + _shift(j, len(shown))
        colour, shape = style.colour(study, config), style.marker(study, config)
        significant = (own["p_holm"].astype(float) < SIGNIFICANCE_LEVEL).to_numpy()
        axes.hlines(y, own["ci_low"], own["ci_high"], color=colour, linewidth=0.9, zorder=2)
        for x, place, filled in zip(own["difference"], y, significant, strict=True):
            axes.plot(
                [x], [place], linestyle="none", marker=shape, zorder=3, markersize=4.2,
                markerfacecolor=colour if filled else "white", markeredgewidth=0.5 if filled else 1.0,
                markeredgecolor=style.INK if filled else colour,
            )  # fmt: skip
    axes.axvline(0, zorder=1, **style.BASELINE)
    for i in range(1, len(bins)):
        axes.axhline(i - 0.5, color="#e0e0e0", linewidth=0.5, zorder=0)
    axes.set_ylim(len(bins) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    axes.yaxis.set_major_locator(FixedLocator(range(len(bins))))
    axes.set_yticklabels(bins)
    axes.tick_params(axis="y", length=0)
    axes.set_xlim(*_limits(*(rows[name].astype(float) for name in ("difference", "ci_low", "ci_high"))))
    scales.plain_axis(axes, "x", most=3)
    axes.set_xlabel("loss, adaptive − fixed (nats)")


def _shift(i, count):
    return 0.0 if count == 1 else 0.6 * (i / (count - 1) - 0.5)


def _of_decomposition(study, margins):
    """The configurations shown, and which these are in words."""
    outcomes = controls.by_rule(study, contrasts.ANSWER)
    everyone = [config for outcome in outcomes for config in outcome.configs]
    order = study.configurations["config"].tolist()
    if len(everyone) <= MOST_ROWS:
        return sorted(everyone, key=order.index), ""
    best = [controls.best(study, outcome.configs, margins) for outcome in outcomes]
    return best[:MOST_ROWS], "the best of each rule"


def _of_where(study, margins):
    """The best configuration of each rule; of a single rule also those with fewest and most experts."""
    compared = set(study.where["config"])
    outcomes = controls.by_rule(study, contrasts.ANSWER)
    groups = [[config for config in outcome.configs if config in compared] for outcome in outcomes]
    groups = [group for group in groups if group]
    if not groups:
        return list(dict.fromkeys(study.where["config"]))[:MOST_LINES]
    best = [controls.best(study, group, margins) for group in groups]
    if len(groups) == 1 and len(groups[0]) > 1:
        rows = controls.rows_of(study, contrasts.ANSWER, groups[0])
        experts = rows.groupby("config", sort=False)["avg_experts"].mean()
        ends = [str(experts.idxmin()), str(experts.idxmax())]
        best = list(dict.fromkeys([*best, *ends]))
    return best[:MOST_LINES]


def _division(by):
    return DIVISIONS.get(by, str(by).replace("_", " "))


def _unit(metric):
    """(axis label, function of the table's differences to its unit)."""
    if "perplexity" in metric:
        return f"{metric.replace('_', ' ')}, change (%)", percent_of
    if metric == "loss":
        return "loss, difference (nats)", lambda nats: nats
    return "accuracy, difference (points)", lambda share: 100 * share


def _direction(metric):
    return f"{'below' if lower_is_better(metric) else 'above'} 0: adaptive is better"
