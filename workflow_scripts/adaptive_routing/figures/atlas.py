"""The pictures of the atlas: expert counts by layer, expert usage, and counts over position and loss.

One row or column a data set; the look of configurations is that of the nine panels (`style.py`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from adaptive_routing.analysis.routing_curves import (
    COUNT_STARTS,
    loss_curves,
    mean_count,
    position_means,
    ranges_within,
)
from adaptive_routing.figures import style
from adaptive_routing.figures.layout import PAGE, SINGLE

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    import pandas as pd
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from adaptive_routing.analysis.study import Study

DPI = 200
MOST_CONFIGURATIONS = 4  # adaptive
FEWEST_TOKENS = 10  # of a mean count that is drawn
FEWEST_SCORED = 20  # of a mean loss, which varies more
LIGHT_TO_DARK = "viridis_r"


def shown_configurations(study: Study, featured: str | None = None) -> list[pd.Series]:
    """Choose the adaptive configurations of the pictures: up to four, spread evenly, at the largest max_k.

    There the ceiling hides least of how many experts a rule finds. They are BH's by rising alpha, or in a
    study without BH those of all rules. `featured`, if given, is one of them.
    """
    rows = study.adaptive if study.bh.empty else study.bh
    rows = rows[rows["k_or_max_k"] == rows["k_or_max_k"].max()].sort_values("alpha", kind="stable")
    first = study.adaptive[study.adaptive["config"] == featured]
    rows = rows[rows["config"] != featured]
    count = min(MOST_CONFIGURATIONS - len(first), len(rows))
    spread = rows.iloc[np.linspace(0, len(rows) - 1, count).round().astype(int)]
    shown = {*first["config"], *spread["config"]}
    return [row for _, row in study.adaptive.iterrows() if row["config"] in shown]


def draw_atlas(
    study: Study,
    summaries: Mapping[tuple[str, str], Mapping[str, NDArray[Any]]],
    featured: str | None = None,
) -> dict[str, Figure]:
    """Draw the figures of the atlas: a dict of name to matplotlib figure.

    summaries: arrays of `read_routing_summary` by (configuration, data set); those of the baseline
    and of `shown_configurations`, where there are any. featured: one that is to be among these.
    """
    rows = shown_configurations(study, featured)
    datasets = [dataset for dataset in study.datasets if any(key[1] == dataset for key in summaries)]
    with style.visual_language():
        return {
            "atlas_counts": _counts(study, summaries, rows, datasets),
            "atlas_usage": _usage(study, summaries, rows, datasets),
            "atlas_position_loss": _position_loss(study, summaries, rows, datasets),
        }


def _counts(study, summaries, rows, datasets):
    """Shares of expert counts by layer, one map a data set and configuration, with the mean on top."""
    if not rows:
        return _nothing_adaptive()
    figure, axes = _maps(len(datasets), len(rows))
    largest = max(int(row["k_or_max_k"]) for row in rows)
    starts = ranges_within(COUNT_STARTS, largest + 1)
    edges = np.append(starts, largest + 1) - 0.5  # of the ranges, in experts
    reference = study.baseline_value("avg_experts")
    for ax, arrays in _cells(axes, rows, datasets, summaries):
        histogram = arrays["count_histogram"][:, : largest + 1]  # (L, counts)
        shares = np.add.reduceat(histogram, starts, axis=1) / histogram.sum(axis=1, keepdims=True)
        shown = ax.imshow(
            np.where(shares > 0, 100 * shares, np.nan).T, origin="lower", aspect="auto", cmap=LIGHT_TO_DARK,
            norm=mpl.colors.LogNorm(0.1, 100), interpolation="nearest",
        )  # fmt: skip
        # Ranges are equally high: a number of experts lies between the places of its range's edges.
        places = np.interp(mean_count(histogram), edges, np.arange(len(edges)) - 0.5)
        ax.plot(
            np.arange(len(places)), places, color="white", marker="o", markersize=3, markeredgecolor="black",
            markeredgewidth=0.6, linewidth=1.2,
        )  # fmt: skip
        if np.isfinite(reference):
            ax.axhline(np.interp(reference, edges, np.arange(len(edges)) - 0.5), **style.BASELINE)
        ax.set_ylim(0.5, len(starts) - 0.5)
        ax.yaxis.set_major_locator(FixedLocator(range(1, len(starts))))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda place, _: _range_name(starts, int(place), largest)))
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    _label_maps(axes, rows, datasets, "MoE layer (0: first)", "experts per token")
    bar = figure.colorbar(
            shown, ax=axes, label="% of the layer's tokens (log)", extend="min", aspect=40, pad=0.01,
            ticks=[0.1, 1, 10, 100], format=FuncFormatter(lambda value, _: f"{value:g}"),
        )  # fmt: skip
    bar.ax.yaxis.set_minor_locator(NullLocator())
    baseline = f"; dashed: baseline, {style.baseline_label(study)}" if np.isfinite(reference) else ""
    _heading(figure, f"How many experts, layer by layer; white line: mean{baseline}")
    return figure


def _usage(study, summaries, rows, datasets):
    """How often each expert of each layer is chosen, one map a data set and configuration."""
    columns = rows if study.baseline_row is None else [study.baseline_row, *rows]
    shares = {
        key: 100 * np.einsum("lee->le", arrays["co_selection"]) / arrays["count_histogram"][0].sum()
        for key, arrays in summaries.items()
        if key[0] in {row["config"] for row in columns}
    }
    figure, axes = _maps(len(datasets), len(columns))
    norm = mpl.colors.Normalize(0, max(share.max() for share in shares.values()))
    for ax, share in _cells(axes, columns, datasets, shares):
        shown = ax.imshow(share, aspect="auto", cmap=LIGHT_TO_DARK, norm=norm, interpolation="nearest")
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_locator(MaxNLocator(5, integer=True))
    _label_maps(axes, columns, datasets, "expert", "MoE layer (0: first)")
    figure.colorbar(shown, ax=axes, label="% of the tokens that chose the expert", aspect=40, pad=0.01)
    _heading(figure, "Which experts: how many of the tokens chose each expert of each layer")
    return figure


def _position_loss(study, summaries, rows, datasets):
    """Mean counts over the position in the sequence, above, and loss over counts, below."""
    figure = style.new_figure(PAGE)
    axes = figure.subplots(2, len(datasets), squeeze=False)
    for column, dataset in enumerate(datasets):
        above, below = axes[:, column]
        above.set_title(dataset)
        for row in rows:
            if (arrays := summaries.get((row["config"], dataset))) is not None:
                look = _look(study, row)
                above.plot(*_over_position(arrays), **look)
                x, y, errors = _over_counts(arrays)
                below.errorbar(x, y, errors, elinewidth=0.7, **look)
        arrays = summaries.get((study.baseline, dataset))
        if arrays is not None:
            above.plot(
                *_over_position(arrays), label=f"baseline, {style.baseline_label(study)}", **style.BASELINE
            )
            x, y, errors = _over_counts(arrays)
            below.errorbar(
                x, y, errors, fmt="o", color="black", markerfacecolor="white", elinewidth=0.7, zorder=4
            )
        above.set_xscale("log", base=2)
        above.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        above.set_ylim(bottom=0)
        above.set_xlabel("place in the sequence (1: first token; log)")
        below.set_xscale("log", base=2)
        below.xaxis.set_major_locator(FixedLocator(2.0 ** np.arange(10)))  # ty: ignore[invalid-argument-type]
        below.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        below.xaxis.set_minor_locator(NullLocator())
        below.set_ylim(bottom=0)
        below.set_xlabel("experts per token, mean over layers (log)")
    axes[0, 0].set_ylabel("experts per token")
    axes[1, 0].set_ylabel("loss of the tokens (nats)")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=6)
    _heading(
        figure,
        "Above: where in the sequence many experts are chosen. Below: is a token that gets more of them a "
        "surprise? Mean loss; bars: ± 1 standard error; circle: the baseline",
    )
    return figure


def _over_position(arrays):
    """(place, mean count over layers) of the ranges of positions with enough tokens; the first place is 1."""
    enough = arrays["position_tokens"] >= FEWEST_TOKENS
    first, last = arrays["position_edges"][:-1] + 1, arrays["position_edges"][1:]
    return np.sqrt(first * last.astype(float))[enough], position_means(arrays).mean(axis=1)[enough]


def _over_counts(arrays):
    """(mean count, mean loss, standard error) of the ranges of counts with enough scored tokens."""
    tokens, counts, means, errors = (values[0] for values in loss_curves(arrays, "mean_loss"))
    enough = tokens >= FEWEST_SCORED
    return counts[enough], means[enough], errors[enough]


def _look(study, row):
    """Line, marker and label of an adaptive configuration."""
    config = row["config"]
    return {
        "color": style.colour(study, config),
        "marker": style.marker(study, config),
        "markeredgecolor": style.INK,
        "markeredgewidth": 0.4,
        "label": style.label(row["config"]),
    }


def _range_name(starts, i, largest):
    last = starts[i + 1] - 1 if i + 1 < len(starts) else largest
    return str(starts[i]) if last == starts[i] else f"{starts[i]}–{last}"


def _maps(rows, columns):
    width, _ = PAGE
    figure = style.new_figure((width, 2.0 * rows + 1.0))
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for ax in axes.flat:
        ax.grid(False)
    return figure, axes


def _cells(axes, rows, datasets, values):
    """Pair each map with its value; a map without one says so."""
    for line, dataset in zip(axes, datasets, strict=True):
        for ax, row in zip(line, rows, strict=True):
            value = values.get((row["config"], dataset))
            if value is None:
                ax.annotate(
                    "no results", (0.5, 0.5), xycoords="axes fraction", ha="center", color=style.NEUTRAL
                )
            else:
                yield ax, value


def _label_maps(axes, rows, datasets, x, y):
    for ax, row in zip(axes[0], rows, strict=True):
        ax.set_title(style.label(row["config"]), pad=4)
    for ax, dataset in zip(axes[:, 0], datasets, strict=True):
        ax.set_ylabel(f"{dataset}\n{y}")
    for ax in axes[-1]:
        ax.set_xlabel(x)


def _heading(figure, text):
    figure.suptitle(text, x=0.01, ha="left", fontsize=9)


def _nothing_adaptive():
    figure = style.new_figure(SINGLE)
    _heading(figure, "How many experts, layer by layer")
    figure.text(
        0.5, 0.5, "no adaptive configuration has results", ha="center", va="center", color=style.NEUTRAL
    )
    return figure
