"""The figure of the null distributions: every layer's density of router logits, and where p-values are small.

Small multiples on common axes, because what a reader compares is layers: how wide, skewed or shifted the
logits are, and how large a logit must be before BH can count it as evidence.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np

from adaptive_routing.figures import style

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from adaptive_routing.null_distribution import NullDistribution

DPI = 150
LARGER = {"axes.titlesize": 9.0, "axes.titlepad": 3.0, "xtick.labelsize": 8.0, "ytick.labelsize": 8.0}
CURVE_POINTS = 400
TAIL = 1e-3  # the axes show what lies between these tails of every layer
MARKED_P_VALUES = {0.05: ":", 0.01: "--"}  # line style
LINES = "dotted: p = 0.05, dashed: p = 0.01"


def density_curve(
    null_distribution: NullDistribution, layer: int, low: float, high: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(x, density) of one layer: −dS/dx as differences of the table between CURVE_POINTS + 1 equal steps."""
    survival = null_distribution.survival[layer]
    grid = null_distribution.x0[layer] + null_distribution.dx[layer] * np.arange(len(survival))
    edges = np.linspace(low, high, CURVE_POINTS + 1)
    density = -np.diff(np.interp(edges, grid, survival)) / np.diff(edges)
    return 0.5 * (edges[1:] + edges[:-1]), density


def critical_logit(null_distribution: NullDistribution, layer: int, p: float) -> float:
    """The smallest grid point of a layer where the p-value is at most p."""
    survival = null_distribution.survival[layer]  # non-increasing
    index = min(np.searchsorted(-survival, -p), len(survival) - 1)
    return null_distribution.x0[layer] + index * null_distribution.dx[layer]


def save_null_distribution_figure(null_distribution: NullDistribution, path: Path | str) -> None:
    """Draw every layer's density into the image `path`."""
    num_layers = null_distribution.num_layers
    columns = min(4, num_layers)
    rows = math.ceil(num_layers / columns)
    low = min(critical_logit(null_distribution, layer, 1 - TAIL) for layer in range(num_layers))
    high = max(critical_logit(null_distribution, layer, TAIL) for layer in range(num_layers))

    with style.visual_language():
        mpl.rcParams.update(LARGER)  # ty: ignore[no-matching-overload]
        figure = style.new_figure((max(2.6 * columns + 0.6, 5.0), 1.5 * rows + 1.2))
        style.headline(
            figure, "Null distribution of router logits", f"{_subtitle(null_distribution)}; {LINES}", 10.0
        )
        axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
        for layer, ax in enumerate(axes[:num_layers]):
            x, density = density_curve(null_distribution, layer, low, high)
            ax.fill_between(x, density, color=style.PALE, alpha=0.5, linewidth=0)
            ax.plot(x, density, color=style.NEUTRAL, linewidth=1.2)
            for p, line in MARKED_P_VALUES.items():
                critical = critical_logit(null_distribution, layer, p)
                ax.axvline(critical, color="black", linestyle=line, linewidth=0.9)
            ax.set_title(f"layer {layer}")
        axes[0].set(xlim=(low, high), ylim=(0, None))
        for ax in axes[num_layers:]:
            ax.set_axis_off()
        for ax in axes[max(num_layers - columns, 0) : num_layers]:
            ax.tick_params(labelbottom=True)  # also above an empty place in the last row
        figure.supxlabel("router logit", fontsize=9)
        figure.supylabel("density (per unit of logit)", fontsize=9)
    style.save(figure, path, DPI)


def _subtitle(null_distribution):
    settings = null_distribution.metadata
    if settings["method"] == "table":
        return f"read from {settings['table']}"
    bandwidths = settings["bandwidth"]
    spread = (
        f"{min(bandwidths):.3g}"
        if len(set(bandwidths)) == 1
        else f"{min(bandwidths):.3g}–{max(bandwidths):.3g}"
    )
    return (
        f"{settings['kernel']} kernel, bandwidth {spread} ({settings['bandwidth_rule']}), "
        f"trim {settings['trim']}, {min(settings['num_values']):,} logits a layer"
    )
