"""Panel 4: change of quality against the baseline for each alpha and max_k, paired over the same samples.

The lowest row is top-k at the same k; other strategies stand above the alphas. The quality is perplexity,
else the mean accuracy, else the loss (as a ratio of perplexities); where the baseline has none, the values
themselves. A star marks a difference that is significant after Holm's correction; where there is room, the
95 % interval of the change stands below it. Being paired, that is narrower than panel 1's bars suggest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.patches import Rectangle

from adaptive_routing.analysis.rule_names import adaptive_noun, only_rule
from adaptive_routing.figures import grid_axis, layout, quality, style
from adaptive_routing.figures.panels import TITLES

if TYPE_CHECKING:
    from adaptive_routing.analysis.study import Study
    from adaptive_routing.figures.layout import Cell

TITLE = f"4  {TITLES['4_alpha_max_k_heatmap']}"
MOST_WRITTEN = 22, 8  # rows, columns: with more there is no room for numbers
MOST_WITH_INTERVAL = 6, 5
LINE = 6.8  # points that the name of a row takes
CHARACTER = 0.66  # the width of a digit and of most signs, in font sizes


@dataclass(frozen=True)
class Changes:
    """Changes by configuration with their interval (NaN where unknown), and where they are significant."""

    values: pd.Series
    low: pd.Series
    high: pd.Series
    starred: set[str]
    name: str
    axis: str
    unit: str
    lower_is_better: bool
    from_baseline: bool = True

    @property
    def note(self) -> str:
        """How to read the colours."""
        if self.from_baseline:
            return "blue is better; * significant after Holm's correction"
        return "no baseline: the values themselves"


def draw(cell: Cell, study: Study) -> None:
    changes = quality_changes(study)
    if changes is None:
        return cell.nothing_to_show(TITLE, "no quality was measured")
    columns = grid_axis.Places.of(study).groups
    if len(columns) > MOST_WRITTEN[1] and study.max_ks:  # of top-k only those beside a max_k have room
        columns = study.max_ks
    rows = ["top-k"] * (not study.topk.empty) + [style.alpha_text(alpha) for alpha in study.alphas]
    rows += map(style.variant_text, study.others)
    cells = {
        row["config"]: _place(study, row, columns)
        for _, row in study.configurations.iterrows()
        if int(row["k_or_max_k"]) in columns
    }
    values = np.full((len(rows), len(columns)), np.nan)
    for config, place in cells.items():
        values[place] = changes.values.get(config, np.nan)
    # Top-k may be far off: the colours are those of the others, and reach further only where none is.
    varied = study.configurations if study.beside_topk.empty else study.beside_topk
    scaled = changes.values.reindex(varied["config"])
    colours, norm = _colours(changes, scaled.dropna())
    written = len(rows) <= MOST_WRITTEN[0] and len(columns) <= MOST_WRITTEN[1]
    intervals = len(rows) <= MOST_WITH_INTERVAL[0] and len(columns) <= MOST_WITH_INTERVAL[1]
    intervals = intervals and bool(changes.low.notna().any())
    more = "; below: 95 % interval" if intervals else "" if written else "; dot: better"
    cell.heading(TITLE, changes.note + more)
    axes = cell.axes(right=0.8, left=_left(study))[0, 0]
    image = axes.pcolormesh(
        np.arange(len(columns) + 1) - 0.5, np.arange(len(rows) + 1) - 0.5, np.ma.masked_invalid(values),
        cmap=colours, norm=norm, edgecolors="white", linewidth=0.8 if written else 0,
    )  # fmt: skip
    axes.set_facecolor(style.NO_VALUE)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    alone = only_rule(study)
    axes.set_xlabel(", ".join(grid_axis.counts_shown(study, not study.topk.empty)) + " (experts)")
    several = "α of BH, other rules" if study.alphas else "rule"
    axes.set_ylabel("α (level of BH)" if not study.others else alone or several)
    _ticks(axes.xaxis, columns, 12)
    _ticks(axes.yaxis, rows, int(axes.bbox.height * 72 / axes.figure.dpi / LINE))
    if not study.topk.empty and not study.beside_topk.empty:
        axes.axhline(0.5, color="white", linewidth=2.5)
    if study.baseline in cells:
        i, j = cells[study.baseline]
        axes.add_patch(Rectangle((j - 0.47, i - 0.45), 0.94, 0.9, fill=False, zorder=4, **style.BASELINE))
    if written:
        _write(axes, cells, values, changes, colours, norm, intervals, study.baseline)
    elif changes.from_baseline:
        # Without numbers, blue and orange are one in greyscale.
        better = values < 0 if changes.lower_is_better else values > 0
        axes.scatter(*np.nonzero(better)[::-1], s=2, color="black", linewidths=0)
    _colour_bar(cell, axes, image, scaled.dropna(), changes)


def quality_changes(study: Study) -> Changes | None:
    """The `Changes` of a study: the quality itself where the baseline has none; None without a quality."""
    measure = quality.frontier_measure(study)
    if measure is None:
        return None
    reference = measure.values.get(study.baseline, np.nan)
    low, high = (_interval(study, measure, end) for end in ("low", "high"))
    if not np.isfinite(reference):
        return Changes(
            measure.values, low, high, set(), measure.name, measure.axis, "", measure.lower_is_better, False
        )  # fmt: skip
    datasets = [measure.dataset] if measure.dataset else study.scored_datasets
    starred = {
        config
        for config in study.configurations["config"]
        if any(study.verdict(config, dataset) in ("better", "worse") for dataset in datasets)
    }
    name, unit, lower_is_better = measure.name.split(" on ")[0], "%", True
    if measure.is_ratio:
        values = 100 * (measure.values / reference - 1)
    elif measure.lower_is_better:
        name, values = "exp(mean loss)", 100 * (np.exp(measure.values - reference) - 1)
    else:
        values, unit, lower_is_better = 100 * (measure.values - reference), "points", False
    axis = f"{name} ({unit}) against {style.reference_name(study)}"
    return Changes(values, low, high, starred, name, axis, unit, lower_is_better)


def describe(study: Study) -> str:
    changes = quality_changes(study)
    nothing = f"There is no {adaptive_noun(study)} whose quality can be set against the baseline's."
    if changes is None or not changes.from_baseline:
        return nothing
    values = changes.values.reindex(study.adaptive["config"]).dropna()
    if values.empty:
        return nothing
    ends = [values.idxmin(), values.idxmax()]
    best, worst = ends if changes.lower_is_better else ends[::-1]
    starred = len(changes.starred & set(values.index))
    low, high = (f"{values[config]:+z.1f} {changes.unit}".replace("-", "−") for config in (best, worst))
    return (
        f"Against the baseline, {changes.name} changes by {low} at best (`{best}`) and by {high} at worst "
        f"(`{worst}`); different from the baseline after Holm's correction: {starred} of {len(values)}."
    )


def _interval(study, measure, end):
    """One end of the 95 % interval of the change, by configuration, in the change's unit."""
    configs = list(study.configurations["config"])
    nothing = pd.Series(np.nan, index=configs)
    if measure.dataset is None:
        return nothing
    metric = study.scores.get(measure.dataset, "loss")
    rows = study.comparisons
    rows = rows[(rows["dataset"] == measure.dataset) & (rows["metric"] == metric)].set_index("config")
    if not measure.lower_is_better:
        return (100 * rows[f"ci_{end}"]).reindex(configs)
    if f"ratio_ci_{end}" not in rows:
        return nothing
    return (100 * (rows[f"ratio_ci_{end}"].astype(float) - 1)).reindex(configs)


def _place(study, row, columns):
    """(row, column) of a configuration: top-k at the bottom, then the variants of the others."""
    column = columns.index(int(row["k_or_max_k"]))
    if row["config"] in set(study.topk["config"]):
        return 0, column
    return int(not study.topk.empty) + study.variants.index(study.variant(row)), column


def _left(study):
    """Room for the rows' names."""
    longest = max((len(style.variant_text(one)) for one in study.others), default=0)
    return max(layout.Margins.left, 0.32 + 0.048 * longest)


def _colours(changes, scaled):
    low, high = (scaled.min(), scaled.max()) if len(scaled) else (0.0, 0.0)
    if changes.from_baseline:
        return style.change_colours(low, high, changes.lower_is_better)
    return style.plain_colours(low, high)


def _ticks(axis, names, most):
    """Name every row or column, or every second, third … of many."""
    every = -(-len(names) // most)
    axis.set_ticks(range(0, len(names), every), names[::every])


def _write(axes, cells, values, changes, colours, norm, intervals, baseline):
    room = axes.bbox.width * 72 / axes.figure.dpi / values.shape[1]
    narrow = room < len("+10.0*") * CHARACTER * style.SMALL
    for config, (i, j) in cells.items():
        if np.isnan(values[i, j]):
            continue
        ink = style.ink_on(colours(norm(values[i, j]))[:3])
        star = "*" if config in changes.starred else ""
        ends = changes.low.get(config, np.nan), changes.high.get(config, np.nan)
        both = intervals and np.isfinite(ends).all()
        text = (
            _signed(values[i, j], 10 if narrow else 100) if changes.from_baseline else f"{values[i, j]:.3g}"
        )
        text = text if config != baseline else "0"
        axes.text(
            j, i + (0.17 if both else 0), f"{text}{star}", ha="center", va="center_baseline", color=ink,
            fontsize=6.8 if both else style.SMALL, weight="bold" if both else "normal", clip_on=True,
        )  # fmt: skip
        if both:
            axes.text(
                j, i - 0.24, _interval_text(*ends), ha="center", va="center_baseline",
                color=ink, fontsize=style.SMALL, clip_on=True,
            )  # fmt: skip


def _interval_text(low, high):
    digits = 1 if max(abs(low), abs(high)) < 2 else 0
    return f"{low:z.{digits}f} to {high:z.{digits}f}".replace("-", "−")


def _signed(value, whole_from):
    """A change with one decimal, from a size on without."""
    return f"{value:+z.{1 if abs(value) < whole_from else 0}f}".replace("-", "−")


def _colour_bar(cell, axes, image, scaled, changes):
    """A bar of the colours that occur, with the baseline's line at no change."""
    box = axes.get_position()
    width = cell.figure.get_figwidth()
    bar = cell.figure.add_axes((box.x1 + 0.1 / width, box.y0, 0.1 / width, box.height))
    cell.figure.colorbar(image, cax=bar)
    low, high = (scaled.min(), scaled.max()) if len(scaled) else (0.0, 0.0)
    if changes.from_baseline:
        low, high = min(low, 0.0), max(high, 0.0)
        bar.axhline(0.0, **style.BASELINE)
    bar.set_ylim(low, high if high > low else low + 1.0)
    bar.set_ylabel(changes.axis)
    bar.spines[:].set_visible(False)
    bar.tick_params(length=2)
