"""The scales of axes: logarithmic where values span decades, round ticks, and no far value that flattens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator, ScalarFormatter

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import ArrayLike, NDArray

FAR = 1.0  # a top-k value further off than this many times the height of the rest is written at the edge
EDGE = 4.5  # points from the axes' edge to the middle of what is written there


def count_axis(axes: Axes, name: str, values: ArrayLike) -> None:
    """Axis `name` ("x" or "y") shows expert counts: powers of two where the values span a factor 4."""
    positive = _positive(values)
    if len(positive) and positive.max() / positive.min() >= 4:
        low, high = np.floor(np.log2(positive.min())), np.ceil(np.log2(positive.max()))
        axis = _set_log(axes, name, base=2)
        axis.set_major_locator(FixedLocator(2.0 ** np.arange(low, high + 1)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_locator(NullLocator())
    else:
        plain_axis(axes, name, values)


def ratio_axis(axes: Axes, name: str, values: ArrayLike) -> None:
    """Axis `name` shows positive values such as perplexity: logarithmic where they span a factor 3."""
    positive = _positive(values)
    if not len(positive) or positive.max() / positive.min() <= 3:
        return plain_axis(axes, name, values)
    span = positive.max() / positive.min()
    axis = _set_log(axes, name, base=10)
    decades = np.arange(np.floor(np.log10(positive.min())), np.ceil(np.log10(positive.max())) + 1)
    steps = (1, 1.5, 2, 3, 5, 7) if span < 30 else (1, 3) if span < 1e4 else (1,)
    every = max(1, len(decades) // 6)
    axis.set_major_locator(FixedLocator(np.outer(10.0 ** decades[::every], steps).ravel()))  # ty: ignore[invalid-argument-type]
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(short))


def plain_axis(axes: Axes, name: str, values: ArrayLike = (), most: int = 5) -> None:
    """Axis `name` is linear, with about `most` ticks at most; thousands are written 10k."""
    axis = axes.xaxis if name == "x" else axes.yaxis
    axis.set_major_locator(MaxNLocator(most, steps=[1, 2, 2.5, 5, 10]))
    large = len(_finite(values)) and np.abs(_finite(values)).max() >= 1000
    axis.set_major_formatter(FuncFormatter(short) if large else ScalarFormatter(useOffset=False))


def fit_y(axes: Axes, values: ArrayLike, others: ArrayLike) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Set the y limits to hold `values`, and of `others` those that would not flatten them.

    Returns (which of `others` lie above, which lie below), each a mask; such values are to be written in the
    room that is left at that edge. To be called when the axis has its scale.
    """
    forward = axes.yaxis.get_transform()
    others = np.asarray(others, dtype=float)
    held = _finite(values)
    if not len(held):
        held = _finite(others)
    if not len(held):
        return np.zeros(len(others), bool), np.zeros(len(others), bool)
    low, high = _transformed(forward, [held.min(), held.max()])
    room = FAR * max(high - low, 1e-9 * max(1.0, abs(high)))
    places = _transformed(forward, others)
    above, below = places > high + room, places < low - room
    near = places[np.isfinite(places) & ~above & ~below]
    low, high = min([low, *near]), max([high, *near])
    height = high - low if high > low else max(0.1 * abs(high), 0.1)
    points = axes.bbox.height * 72 / axes.figure.dpi
    written = min(2.4 * EDGE / points, 0.4)
    low -= (0.06 + written * below.any()) * height
    high += (0.08 + written * above.any()) * height
    axes.set_ylim(*forward.inverted().transform(np.array([low, high])))
    return above, below


def edge(axes: Axes, above: bool) -> float:
    """Where a far value is written, as a fraction of the axes' height from below."""
    share = EDGE * axes.figure.dpi / 72 / axes.bbox.height
    return 1 - share if above else share


def short(value: float, _position: int | None = None) -> str:
    """A number as short as it can be: 10k for 10,000."""
    if abs(value) >= 1e6:
        return f"{value:.3g}"
    text = f"{value / 1000:g}k" if abs(value) >= 1000 else f"{round(value, 10):g}"
    return text.replace("-", "−")


def three_digits(value: float) -> str:
    """A number rounded to three digits, as short as it can be."""
    return short(float(f"{value:.3g}"))


def _transformed(forward, values):
    return forward.transform(np.asarray(values, dtype=float))


def _set_log(axes, name, base):
    if name == "x":
        axes.set_xscale("log", base=base)
        return axes.xaxis
    axes.set_yscale("log", base=base)
    return axes.yaxis


def _positive(values):
    values = _finite(values)
    return values[values > 0]


def _finite(values):
    values = np.asarray(values, dtype=float)
    return values[np.isfinite(values)]
