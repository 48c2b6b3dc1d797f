"""The figure of the null distributions: every layer's density of router logits, and where p-values are small.

Small multiples on common axes, because what a reader compares is layers: how wide, skewed or shifted the
logits are, and how large a logit must be before BH can count it as evidence.
"""

import math

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from adaptive_routing.files import atomic_path

CURVE_POINTS = 400
TAIL = 1e-3  # the axes show what lies between these tails of every layer
MARKED_P_VALUES = {0.05: ":", 0.01: "--"}  # line style


def density_curve(null_distribution, layer, low, high):
    """(x, density) of one layer: −dS/dx as differences of the table between CURVE_POINTS + 1 equal steps."""
    survival = null_distribution.survival[layer]
    grid = null_distribution.x0[layer] + null_distribution.dx[layer] * np.arange(len(survival))
    edges = np.linspace(low, high, CURVE_POINTS + 1)
    density = -np.diff(np.interp(edges, grid, survival)) / np.diff(edges)
    return 0.5 * (edges[1:] + edges[:-1]), density


def critical_logit(null_distribution, layer, p):
    """The smallest grid point of a layer where the p-value is at most p."""
    survival = null_distribution.survival[layer]  # non-increasing
    index = min(np.searchsorted(-survival, -p), len(survival) - 1)
    return null_distribution.x0[layer] + index * null_distribution.dx[layer]


def save_null_distribution_figure(null_distribution, path):
    """Draw every layer's density into the image `path`."""
    num_layers = null_distribution.num_layers
    columns = min(4, num_layers)
    rows = math.ceil(num_layers / columns)
    low = min(critical_logit(null_distribution, layer, 1 - TAIL) for layer in range(num_layers))
    high = max(critical_logit(null_distribution, layer, TAIL) for layer in range(num_layers))

    figure = Figure(figsize=(2.6 * columns + 0.6, 1.5 * rows + 1.3), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for layer, ax in enumerate(axes[:num_layers]):
        x, density = density_curve(null_distribution, layer, low, high)
        ax.fill_between(x, density, color="#0072B2", alpha=0.25, linewidth=0)
        ax.plot(x, density, color="#0072B2", linewidth=1.2)
        for p, style in MARKED_P_VALUES.items():
            critical = critical_logit(null_distribution, layer, p)
            ax.axvline(critical, color="black", linestyle=style, linewidth=0.9, label=f"p = {p:g}")
        ax.set_title(f"layer {layer}", fontsize=9, loc="left", pad=3)
        ax.tick_params(labelsize=8)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set(xlim=(low, high), ylim=(0, None))
    for ax in axes[num_layers:]:
        ax.set_axis_off()
    for ax in axes[max(num_layers - columns, 0) : num_layers]:
        ax.tick_params(labelbottom=True)  # also above an empty place in the last row
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=len(handles), fontsize=9, frameon=False)
    figure.suptitle(
        f"Null distribution of router logits\n{_subtitle(null_distribution)}", fontsize=10, x=0.01, ha="left"
    )
    figure.supxlabel("router logit", fontsize=9)
    figure.supylabel("density (per unit of logit)", fontsize=9)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150)


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
