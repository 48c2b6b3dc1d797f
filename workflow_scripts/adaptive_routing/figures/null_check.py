"""The figure of a null distribution's check on held-out calibration text.

Top: shares of p-values, layer by layer, on the diagonal where they are uniform. Middle: their histograms,
flat where they are uniform. Bottom: the distribution of k*, what BH would select before its limits apply, and
k* against the token's mean logit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
import pandas as pd

from adaptive_routing.figures import style
from adaptive_routing.system.tensor_files import TensorFile

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

DPI = 150
LARGER = {
    "font.size": 8.5,
    "axes.titlesize": 9.5,
    "axes.labelsize": 8.5,
    "xtick.labelsize": 8.0,
    "ytick.labelsize": 8.0,
}
WIDTH, CURVES_HEIGHT, HISTOGRAMS_HEIGHT = 8.6, 3.5, 2.2
BINS = 20  # of the p-values
LAYERS = mpl.colormaps["Blues"]  # first layer pale, last one dark
PALEST = 0.35
FEWEST_LABELLED = 0.045  # shares of the bars; narrower ones have no room for a number
TITLES = {"kept": "All logits of a token", "unselected": "Logits of experts not selected"}


@dataclass(frozen=True)
class CheckTables:
    """A check as `null_distribution.check` saves it: one row per layer and level, and its arrays by name."""

    rows: pd.DataFrame
    arrays: dict[str, NDArray[Any]]
    settings: dict[str, Any]


def read_check(table_path: Path | str, curves_path: Path | str) -> CheckTables:
    """Read the two files of a check."""
    with TensorFile(curves_path) as file:
        arrays = {name: file.read(name) for name in file.keys()}  # noqa: SIM118 -- not a mapping
        settings = {key: file.metadata_json(key) for key in file.metadata}
    return CheckTables(pd.read_csv(table_path), arrays, settings)


def draw_null_check(check: CheckTables) -> Figure:
    """Draw the six panels; of a check without levels the first four."""
    alphas = check.arrays["alphas"]
    bars_height = max(2.6, 0.42 * len(alphas) + 2.0) if len(alphas) else 0.0
    with style.visual_language():
        mpl.rcParams.update(LARGER)  # ty: ignore[no-matching-overload]
        figure = style.new_figure((WIDTH, CURVES_HEIGHT + HISTOGRAMS_HEIGHT + bars_height + 0.7))
        style.headline(
            figure, f"Check of the null distribution: {check.settings['null']}", _note(check), 11.0
        )
        heights = [CURVES_HEIGHT, HISTOGRAMS_HEIGHT, *([bars_height] if len(alphas) else [])]
        axes = figure.subplots(len(heights), 2, height_ratios=heights, squeeze=False)
        for ax, population in zip(axes[0], ("kept", "unselected"), strict=True):
            _draw_curves(ax, check, population)
        for ax, population in zip(axes[1], ("kept", "unselected"), strict=True):
            _draw_histogram(ax, check, population)
        if len(alphas):
            _draw_counts(axes[2, 0], check)
            _draw_mean_logit(axes[2, 1], check)
        _layer_key(figure, axes[0, 1], check.arrays["curves"].shape[1])
    return figure


def count_bands(num_experts: int) -> list[tuple[int, int]]:
    """Ranges of expert counts, both ends in them: 0, 1, 2–3, 4–7, … and E alone."""
    bands, low = [(0, 0)], 1
    while low < num_experts:
        bands.append((low, min(2 * low, num_experts) - 1))
        low *= 2
    return [*bands, (num_experts, num_experts)]


def _note(check):
    settings = check.settings
    made = (
        f"table {settings['table']}"
        if "table" in settings
        else f"{settings['kernel']} kernel, {settings['bandwidth']} bandwidth, trim {settings['trim']}"
    )
    centred = ", logits less their token's mean" if settings["center"] == "mean" else ""
    tokens = f"{int(check.rows['tokens'].iloc[0]):,} tokens of calibration text"
    fitted = settings["fitted_tokens"]
    held_out = f"{tokens}, held out from a fit to {fitted:,}" if fitted else tokens
    return f"{made}{centred}; checked on {held_out}"


def _layer_colours(num_layers):
    return [LAYERS(PALEST + (1 - PALEST) * (i + 1) / num_layers) for i in range(num_layers)]


def _draw_curves(ax: Axes, check: CheckTables, population: str) -> None:
    """Shares of p-values up to each level, one line a layer, and the diagonal."""
    curves = _curves(check, population)
    for curve, colour in zip(curves, _layer_colours(len(curves)), strict=True):
        ax.plot(check.arrays["levels"], curve, color=colour, linewidth=1.0)
    ax.plot([0, 1], [0, 1], label="uniform", **style.BASELINE)
    distances = check.rows.drop_duplicates("layer")[f"distance_{population}"]
    ax.set_title(_title(check, population))
    text = (
        f"furthest from uniform\nmean over layers: {distances.mean():.3f}\nworst layer: {distances.max():.3f}"
    )
    # On the side of the diagonal where the curves are not.
    if curves.mean() < 0.5:
        ax.text(0.025, 0.9, text, transform=ax.transAxes, va="top", color=style.INK)
    else:
        ax.text(0.97, 0.05, text, transform=ax.transAxes, ha="right", color=style.INK)
    ax.set(xlim=(0, 1), ylim=(0, 1), xlabel="p-value", ylabel="share of p-values up to it")
    ax.legend(loc="upper left", handlelength=2.2)


def _curves(check, population):
    """Shares of a population's p-values up to the levels: (L, 201)."""
    return check.arrays["curves"][("all", "kept", "unselected").index(population)]


def _title(check, population):
    trim = check.settings["trim"]
    if population == "kept" and trim:
        return f"Logits but each token's {trim} largest and {trim} smallest"
    return TITLES[population]


def histogram(curves: NDArray[np.float64]) -> NDArray[np.float64]:
    """Density of p-values in `BINS` equal bins (L, 20), 1 where uniform, from their shares (L, 201)."""
    every = (curves.shape[1] - 1) // BINS
    # A p-value of 0 is in the first bin.
    return BINS * np.diff(curves[:, every::every], axis=1, prepend=0.0)


def _draw_histogram(ax: Axes, check: CheckTables, population: str) -> None:
    """The p-values' histogram: bars: mean over layers; a line a layer; dashed: uniform."""
    densities = histogram(_curves(check, population))
    edges = np.linspace(0, 1, BINS + 1)
    ax.stairs(densities.mean(0), edges, fill=True, color="#d9d9d9", label="mean over layers")
    for density, colour in zip(densities, _layer_colours(len(densities)), strict=True):
        ax.stairs(density, edges, color=colour, linewidth=0.9, baseline=None)
    ax.axhline(1, label="uniform", **style.BASELINE)
    ax.set(xlim=(0, 1), xlabel="p-value", ylabel="density of p-values")
    ax.set_ylim(0, 1.25 * max(1.0, densities.max()))
    ax.set_title(f"{_title(check, population)}: histogram")
    ax.legend(loc="upper right", ncols=2, handlelength=1.6)


def _layer_key(figure, ax, num_layers):
    """A colour bar of the layers, at the curves' right."""
    colours = mpl.colors.ListedColormap(_layer_colours(num_layers))
    shown = mpl.cm.ScalarMappable(mpl.colors.Normalize(-0.5, num_layers - 0.5), colours)
    bar = figure.colorbar(shown, ax=ax, label="MoE layer", aspect=30, pad=0.02)
    bar.set_ticks(sorted({0, (num_layers - 1) // 2, num_layers - 1}))
    bar.ax.tick_params(length=0)
    bar.outline.set_visible(False)


def _draw_counts(ax: Axes, check: CheckTables) -> None:
    """A bar a level: shares of token-layers by k*, and 1 − α, the share at 0 of independent logits."""
    histogram, alphas = check.arrays["count_histogram"], check.arrays["alphas"]
    shares = histogram.sum(1) / histogram.sum((1, 2))[:, None]  # (A, E + 1)
    bands = count_bands(histogram.shape[-1] - 1)
    colours = ["#e3e3e3", *mpl.colormaps["YlOrBr"](np.linspace(0.22, 0.95, len(bands) - 1))]
    places, lefts = np.arange(len(alphas)), np.zeros(len(alphas))
    for (low, high), colour in zip(bands, colours, strict=True):
        widths = shares[:, low : high + 1].sum(1)
        label = f"{low}" if low == high else f"{low}–{high}"
        ax.barh(places, widths, left=lefts, height=0.68, color=colour, label=label, linewidth=0)
        for place, left, width in zip(places, lefts, widths, strict=True):
            if width >= FEWEST_LABELLED:
                ax.text(
                    left + width / 2, place, f"{100 * width:.0f}", ha="center", va="center",
                    color=style.ink_on(colour), fontsize=8,
                )  # fmt: skip
        lefts += widths
    # Above the bars, where it covers no number.
    expected: dict[str, Any] = {
        "color": "black",
        "marker": "v",
        "markersize": 5.5,
        "linestyle": "none",
        "clip_on": False,
    }
    label = "1 − α: share of 0 if a token's logits were independent"
    ax.plot(1 - alphas, places - 0.42, label=label, **expected)
    ax.set_yticks(places, [f"α {style.alpha_text(alpha)}" for alpha in alphas])
    ax.set_xticks(np.linspace(0, 1, 5), ["0", "25", "50", "75", "100"])
    ax.set(xlim=(0, 1), ylim=(len(alphas) - 0.5, -0.5), xlabel="% of token-layers")
    ax.grid(visible=False, axis="y")
    ax.set_title("Experts that BH would select (k*)")
    handles, labels = ax.get_legend_handles_labels()
    under: dict[str, Any] = {"loc": "upper left", "borderpad": 0.1, "handletextpad": 0.3, "fontsize": 8}
    of_bars = ax.legend(
        handles[1:], labels[1:], bbox_to_anchor=(-0.01, -0.16), ncols=len(bands), columnspacing=0.7,
        handlelength=0.8, **under,
    )  # fmt: skip
    ax.add_artist(of_bars)
    ax.legend(handles[:1], labels[:1], bbox_to_anchor=(-0.01, -0.235), **under)


def _draw_mean_logit(ax: Axes, check: CheckTables) -> None:
    """Mean k* of a layer's tokens, in bins of equally many by their mean logit, at the largest level."""
    counts = check.arrays["bin_mean_count"][-1]  # (L, B)
    alpha = check.arrays["alphas"][-1]
    places = (np.arange(counts.shape[1]) + 0.5) * 100 / counts.shape[1]
    for of_layer, colour in zip(counts, _layer_colours(len(counts)), strict=True):
        ax.plot(places, of_layer, color=colour, linewidth=1.0)
    ax.plot(places, counts.mean(0), color="black", linewidth=1.8, label="mean over layers")
    explained = check.rows.loc[check.rows["alpha"] == alpha, "r2_mean_logit"].mean()
    num_experts = check.arrays["count_histogram"].shape[-1] - 1
    # As far as there are experts, so that pictures of several null distributions compare.
    ax.set(
        xlim=(0, 100), ylim=(0, num_experts), xlabel="% of tokens with a smaller mean logit", ylabel="mean k*"
    )
    ax.set_title(f"k* by the token's mean logit, α {style.alpha_text(alpha)}")
    text = "k* is constant" if np.isnan(explained) else f"R² = {explained:.2f}"
    ax.text(0.04, 0.82, text, transform=ax.transAxes, color=style.INK)
    ax.legend(loc="upper left", handlelength=2.2)
