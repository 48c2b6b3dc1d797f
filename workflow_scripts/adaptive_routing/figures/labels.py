"""Names beside points, none over another name or over a mark, where there is room."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.font_manager import FontProperties

from adaptive_routing.figures import style

if TYPE_CHECKING:
    from collections.abc import Iterable

    from matplotlib.axes import Axes
    from numpy.typing import ArrayLike

DISTANCES = (5.0, 9.0, 14.0, 20.0, 27.0, 35.0)  # of a name from its point, in points
# Towards which a name lies from its point, in halves of its own width and height.
DIRECTIONS = (
    (1, 1), (1, -1), (-1, 1), (-1, -1), (1, 0), (-1, 0), (0, 1), (0, -1),
    (0.6, 1), (0.6, -1), (-0.6, 1), (-0.6, -1),
)  # fmt: skip
HIDDEN = 10  # a name that would cover a mark is left out
SAMPLES = 48  # of a line, where it is looked for under a name
LEADER = 9.0  # from this distance on a thin line leads to the point


def place(
    axes: Axes, items: Iterable[tuple[float, float, str, str]], marks: ArrayLike, lines: ArrayLike
) -> None:
    """Name points of axes that have their limits.

    items: (x, y, text, weight) in data coordinates, the most important first; marks: (points, 2) and lines:
    (lines, 2 ends, 2), what a name should not cover. A name without room anywhere near its point is left out.
    """
    scale = axes.figure.dpi / 72  # pixels a point
    renderer = axes.figure.canvas.get_renderer()  # ty: ignore[missing-attribute]
    marks = axes.transData.transform(np.asarray(marks, dtype=float)) / scale
    ends = axes.transData.transform(np.asarray(lines, dtype=float).reshape(-1, 2)).reshape(-1, 2, 2) / scale
    steps = np.linspace(0, 1, SAMPLES)[:, None, None]
    inked = (ends[:, 0] * (1 - steps) + ends[:, 1] * steps).reshape(-1, 2)
    frame = axes.bbox.extents / scale  # ty: ignore[unsupported-operator]
    taken = []
    for x, y, text, weight in items:
        font = FontProperties(family="sans-serif", size=style.SMALL, weight=weight)
        width, height, _ = np.array(renderer.get_text_width_height_descent(text, font, False)) / scale
        point = axes.transData.transform((x, y)) / scale
        found = _free(point, width, height, frame, taken, marks, inked)
        if found is None:
            continue
        (dx, dy), box = found
        taken.append(box)
        far = np.hypot(dx, dy) >= LEADER
        centre = (box[:2] + box[2:]) / 2 - point
        axes.annotate(
            text, (x, y), xytext=centre, textcoords="offset points", ha="center", va="center",
            fontsize=style.SMALL, weight=weight, color=style.INK, zorder=6,
            arrowprops={"arrowstyle": "-", "color": style.INK, "linewidth": 0.4, "shrinkA": 0, "shrinkB": 3}
            if far else None,
        )  # fmt: skip


def _free(point, width, height, frame, taken, marks, inked):
    """(offset, box) of the nearest place with the least under it; None where all cover something."""
    best, fewest = None, HIDDEN
    for distance in DISTANCES:
        for direction in DIRECTIONS:
            step = np.array(direction) / np.hypot(*direction)
            near = point + distance * step
            # The box lies on the far side of `near`.
            half = np.array([width, height]) / 2
            centre = near + np.array(direction) * half
            box = np.concatenate([centre - half, centre + half])
            if (box[:2] < frame[:2] + 1).any() or (box[2:] > frame[2:] - 1).any():
                continue
            if any(_meet(box, other) for other in taken):
                continue
            # A mark under a name is worse than a line, and a name far away is a little worse than a near one.
            covered = HIDDEN * _inside(box, marks, 2.6) + 4 * _inside(box, inked, 0.6) + distance / 5
            if covered < fewest:
                best, fewest = (distance * step, box), covered
    return best


def _inside(box, points, margin):
    return int(((points > box[:2] - margin) & (points < box[2:] + margin)).all(axis=1).sum())


def _meet(a, b):
    return bool((a[:2] < b[2:] + 1).all() and (b[:2] < a[2:] + 1).all())
