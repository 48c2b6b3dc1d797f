"""The x axis of panels over the grid: a group a max_k, in it the top-k of the same k, then alpha rising,
then the configurations of other strategies.

Every configuration has a place of its own, so that no point and no error bar hides another, and each BH
configuration stands beside the top-k that may run as many experts.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.collections import LineCollection
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from adaptive_routing.analysis.rule_names import only_rule
from adaptive_routing.figures import scales, style

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from adaptive_routing.analysis.study import Study

WIDEST = 0.64  # of a group's width, what its variants take
CROWDED, WIDER = 8, 0.67  # with more variants than this they take more
NARROW = 0.3  # width of a group of top-k alone, beside groups of width 1


@dataclass(frozen=True)
class Places:
    """x of every configuration; a group with adaptive configurations is 1 wide, one of top-k alone less."""

    study: Study
    groups: list[int]
    variants: list[float | str]
    topk_beside: bool

    @classmethod
    def of(cls, study: Study, topk: bool = True) -> Self:
        """The places of a study. topk: whether top-k configurations are shown."""
        ks = [int(k) for k in study.topk["k_or_max_k"]] if topk else []
        return cls(study, sorted({*study.max_ks, *ks}), study.variants, bool(ks))

    @property
    def step(self) -> float:
        """Distance between neighbours in a group."""
        return (WIDEST if len(self.variants) <= CROWDED else WIDER) / max(len(self.variants), 2)

    @cached_property
    def edges(self) -> NDArray[np.float64]:
        """Where groups begin and end, one more than there are groups; the first is at −0.5."""
        varied = set(self.study.max_ks)
        widths = [1.0 if k in varied or not varied else NARROW for k in self.groups]
        return np.concatenate([[0.0], np.cumsum(widths)]) - 0.5

    def centre(self, k: float) -> float:
        """The middle of a group."""
        i = self.groups.index(int(k))
        return float(self.edges[i] + self.edges[i + 1]) / 2

    def x(self, row: pd.Series) -> float:
        """The place of a configuration's row."""
        group = self.centre(row["k_or_max_k"])
        if row["config"] in self._topk:
            left = 0.34 if len(self.variants) <= CROWDED else 0.41
            return group - left if int(row["k_or_max_k"]) in self.study.max_ks else group
        rank = self.variants.index(self.study.variant(row)) - (len(self.variants) - 1) / 2
        return group + (0.08 if self.topk_beside else 0.0) + rank * self.step

    @property
    def label(self) -> str:
        """What the axis shows."""
        order = "as in the legend" if self.study.others else "α rising"
        within = f"; in a group: {order}" if len(self.variants) > 1 else ""
        return f"{', '.join(counts_shown(self.study, self.topk_beside))} (experts){within}"

    def span(self, k: float) -> tuple[float, float]:
        """(left, right) end of a group."""
        i = self.groups.index(int(k))
        room = 0.08 * (self.edges[i + 1] - self.edges[i])
        return float(self.edges[i] + room), float(self.edges[i + 1] - room)

    @cached_property
    def _topk(self):
        return set(self.study.topk["config"])


def counts_shown(study: Study, topk: bool) -> list[str]:
    """What numbers of experts a grid is over: max_k of BH, k of top-k. topk: whether top-k is shown."""
    alone = only_rule(study)
    names = [f"max_k of {alone}" if alone else "max_k"] * bool(study.variants)
    return names + ["k of top-k"] * topk


def draw(
    axes: Axes,
    study: Study,
    values: pd.Series,
    bars: tuple[pd.Series, pd.Series] | None = None,
    scale: Callable[..., None] = scales.plain_axis,
    named: bool = True,
    whole: bool = False,
) -> None:
    """Draw a value a configuration over the grid.

    values: Series by configuration; bars: (low ends, high ends), Series by configuration; scale: sets the y
    scale, one of `scales`; named: whether to name the baseline's level at the right; whole: whether the scale
    shows every top-k, however far from the rest.
    """
    places = Places.of(study)
    prepare(axes, study, places)
    table = study.configurations.assign(
        value=values.reindex(study.configurations["config"]).to_numpy(float),
        low=_bar(study, values, bars, 0),
        high=_bar(study, values, bars, 1),
    )
    table = table.assign(x=[places.x(row) for _, row in table.iterrows()]).dropna(subset=["value"])
    is_topk = table["config"].isin(study.topk["config"])
    varied, topk = table[~is_topk], table[is_topk]
    baseline = table[table["config"] == study.baseline]
    shown = table if whole or varied.empty else pd.concat([varied, baseline])
    held = [*shown["low"], *shown["value"], *shown["high"]]
    scale(axes, "y", held)
    above, below = scales.fit_y(axes, held, topk["value"])
    _draw_varied(axes, study, varied, _size(axes, places))
    _draw_topk(axes, places, topk, above, below)
    if len(baseline):
        reference_line(axes, study, baseline["value"].item(), named)


def prepare(axes: Axes, study: Study, places: Places) -> None:
    """Give axes the x axis of the grid: groups, the line between them, a coloured tick an alpha."""
    count = len(places.groups)
    axes.set_xlim(places.edges[0], places.edges[-1])
    axes.xaxis.set_major_locator(FixedLocator([places.centre(k) for k in places.groups]))
    axes.xaxis.set_major_formatter(FixedFormatter([f"{k}" for k in places.groups]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.tick_params(axis="x", length=0, pad=6.5)
    axes.grid(axis="x", visible=False)
    axes.set_xlabel(places.label)
    for i in range(1, count):
        axes.axvline(places.edges[i], color="#dddddd", linewidth=0.5, zorder=0)
    rows = study.beside_topk
    point = axes.figure.dpi / 72 / axes.bbox.height  # as a fraction of the axes
    ticks = [[(x, -1.5 * point), (x, -4.5 * point)] for x in (places.x(row) for _, row in rows.iterrows())]
    strip = LineCollection(
        ticks, colors=style.colours(study, rows), clip_on=False,
        linewidths=float(np.clip(places.step * _points_a_group(axes, places) * 0.8, 0.8, 5)),
        transform=axes.get_xaxis_transform(),
    )  # fmt: skip
    strip.set_capstyle("butt")
    axes.add_collection(strip, autolim=False)


def reference_line(axes: Axes, study: Study, value: float, named: bool = True, along: str = "x") -> None:
    """Draw the baseline's level as a dashed line, named at its end unless the legend is to do that."""
    (axes.axhline if along == "x" else axes.axvline)(value, zorder=1.5, **style.BASELINE)
    if named and along == "x":
        axes.annotate(
            style.reference_name(study), (1, value), xytext=(2.5, 0), textcoords="offset points",
            xycoords=axes.get_yaxis_transform(), va="center_baseline", fontsize=style.SMALL, weight="bold",
            annotation_clip=False,
        )  # fmt: skip


def _draw_varied(axes, study, rows, size):
    """A point a configuration beside top-k; those of one rule are joined."""
    for max_k, group in rows.groupby("k_or_max_k"):
        colours = style.colours(study, group)
        for _, line in group.groupby(group["config"].map(study.family), sort=False):
            axes.plot(line["x"], line["value"], color=style.PALE, linewidth=0.8, zorder=2)
        ends = group[["low", "high"]].to_numpy(float)
        bars = [[(x, low), (x, high)] for x, (low, high) in zip(group["x"], ends, strict=True)]
        axes.add_collection(LineCollection(bars, colors=colours, linewidths=0.9, zorder=3), autolim=False)
        axes.scatter(group["x"], group["value"], c=colours, zorder=4, **style.points(study, max_k, size))


def _draw_topk(axes, places, rows, above, below):
    """White circles, each with its level across its group; a far value at the edge, written beside it."""
    low, high = axes.get_ylim()
    levels, bars = [], []
    for (_, row), over, under in zip(rows.iterrows(), above, below, strict=True):
        if over or under:
            place = scales.edge(axes, over)
            axes.plot([row["x"]], [place], transform=axes.get_xaxis_transform(), zorder=5, **style.TOPK)
            text = f"{'↑' if over else '↓'}{scales.three_digits(row['value'])}"
            axes.annotate(
                text, (row["x"], place), xytext=(4.5, 0), xycoords=axes.get_xaxis_transform(),
                textcoords="offset points", va="center_baseline", fontsize=style.SMALL, color=style.NEUTRAL,
            )  # fmt: skip
            continue
        left, right = places.span(row["k_or_max_k"])
        levels.append([(left, row["value"]), (right, row["value"])])
        bars.append([(row["x"], row["low"]), (row["x"], row["high"])])
        axes.plot([row["x"]], [row["value"]], zorder=5, **style.TOPK)
    axes.add_collection(
        LineCollection(levels, colors="black", linewidths=0.7, linestyles=":", zorder=1.8), autolim=False
    )
    axes.add_collection(LineCollection(bars, colors="black", linewidths=0.9, zorder=4.5), autolim=False)
    axes.set_ylim(low, high)


def _bar(study, values, bars, end):
    """One end of the error bars in the order of `configurations`; the value itself where there is none."""
    own = values.reindex(study.configurations["config"]).astype(float)
    if bars is None:
        return own.to_numpy()
    return bars[end].reindex(own.index).astype(float).fillna(own).to_numpy()


def _points_a_group(axes, places):
    """The width of a group with adaptive configurations."""
    return axes.bbox.width * 72 / axes.figure.dpi / (places.edges[-1] - places.edges[0])


def _size(axes, places):
    """A marker's size in points: as large as its neighbours leave room for."""
    return float(np.clip(1.1 * places.step * _points_a_group(axes, places), 2.4, 4.6))


def around(values: pd.Series, errors: pd.Series) -> tuple[pd.Series, pd.Series]:
    """(low, high) ends of bars of ± one standard error, Series by configuration."""
    errors = errors.reindex(values.index).astype(float)
    return values - errors, values + errors


def by_config(study: Study, column: str) -> pd.Series:
    """A column of the configurations as a Series by configuration; NaN where there is no such column."""
    table = study.configurations.set_index("config")
    return table[column] if column in table else pd.Series(np.nan, index=table.index)
