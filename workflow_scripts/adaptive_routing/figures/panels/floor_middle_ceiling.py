"""Panel 6: how often a rule selects min_k experts, max_k experts, or a number between.

The floor holds tokens whose count was raised to min_k, as where BH rejects nothing, and those that chose it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from adaptive_routing.analysis.rule_names import adaptive_noun, adaptive_subject, capitalized
from adaptive_routing.figures import grid_axis, style
from adaptive_routing.figures.panels import TITLES

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from numpy.typing import NDArray

    from adaptive_routing.analysis.study import Study
    from adaptive_routing.figures.layout import Cell

TITLE = f"6  {TITLES['6_floor_middle_ceiling']}"
# Greys, so that no share looks like a configuration.
FILLS = {"floor": "#dedede", "middle": "#9b9b9b", "ceiling": "#3a3a3a"}
TIGHT = 30  # bars; more of them touch


def draw(cell: Cell, study: Study) -> None:
    rows, *parts = shares(study)
    if rows.empty:
        return cell.nothing_to_show(TITLE, "no adaptive configuration has these shares")
    note = "count is min_k, raised to it or chosen: floor; max_k: ceiling; between: middle"
    cell.heading(TITLE, "top-k always runs k: all ceiling" if study.beside_topk.empty else note)
    axes = cell.axes()[0, 0]
    places = grid_axis.Places.of(study, topk=study.beside_topk.empty)
    grid_axis.prepare(axes, study, places)
    x = np.array([places.x(row) for _, row in rows.iterrows()])
    width = places.step * (0.86 if len(rows) <= TIGHT else 1.0)
    bottom = np.zeros(len(rows))
    labels = []
    for share, (name, fill) in zip(parts, FILLS.items(), strict=True):
        axes.bar(
            x, share, bottom=bottom, width=width, color=fill, edgecolor="white",
            linewidth=0.4 if len(rows) <= TIGHT else 0,
        )  # fmt: skip
        labels.append((bottom[-1] + share[-1] / 2, name))
        bottom += share
    axes.set(ylim=(0, 100), yticks=range(0, 101, 20))
    axes.set_ylabel("share of token-layers (%)")
    for place, (middle, name) in zip(spread([m for m, _ in labels], 6.5, 2, 98), labels, strict=True):
        axes.annotate(
            name, (1, middle), xytext=(1.02, place), xycoords=axes.get_yaxis_transform(),
            textcoords=axes.get_yaxis_transform(), va="center", fontsize=style.SMALL, color=style.INK,
            annotation_clip=False,
        )  # fmt: skip


def spread(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move ascending places apart until neighbours are `gap` from each other, within [low, high]."""
    moved = []
    for place in places:
        moved.append(max(place, moved[-1] + gap if moved else low))
    limit = high
    for i in reversed(range(len(moved))):
        moved[i] = min(moved[i], limit)
        limit = moved[i] - gap
    return moved


def shares(
    study: Study,
) -> tuple[pd.DataFrame, NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return the rows beside top-k with both rates, and their floor, middle and ceiling shares in percent.

    Where min_k = max_k the one count is floor and ceiling at once; it is shown as ceiling. In a study of
    top-k alone the rows are those of top-k, which always runs k.
    """
    if study.beside_topk.empty:
        none = np.zeros(len(study.topk))
        return study.topk, none, none, none + 100
    rows = study.beside_topk.dropna(subset=["floor_hit_rate", "ceiling_hit_rate"])
    ceiling = rows["ceiling_hit_rate"].to_numpy(float)
    floor = np.minimum(rows["floor_hit_rate"].to_numpy(float), 100 - ceiling)
    return rows, floor, np.clip(100 - floor - ceiling, 0, 100), ceiling


def describe(study: Study) -> str:
    rows, floor, middle, ceiling = shares(study)
    varied = (rows["strategy"] != "topk").to_numpy()
    rows, floor, middle, ceiling = rows[varied], floor[varied], middle[varied], ceiling[varied]
    if rows.empty:
        return f"No {adaptive_noun(study)} has these shares."
    names = rows["config"].tolist()
    free, bound, lowest = int(middle.argmax()), int(ceiling.argmax()), int(floor.argmax())
    return (
        f"{capitalized(adaptive_subject(study))} chooses the number itself, between floor and ceiling, most "
        f"often in `{names[free]}` ({middle[free]:.0f} % of token-layers); the ceiling cuts it off most "
        f"often in `{names[bound]}` ({ceiling[bound]:.0f} %), and it stands at the floor most often in "
        f"`{names[lowest]}` ({floor[lowest]:.0f} %)."
    )
