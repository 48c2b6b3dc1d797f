"""The figure `experts_by_difficulty`: does BH give harder prompts more experts?

One column a max_k, prompt tokens above, new tokens below, all on one scale; shapes and colours as in the nine
panels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullFormatter

from adaptive_routing.figures import scales, style

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from adaptive_routing.analysis.study import Study

DPI = 300
TITLE = "Experts by difficulty of the prompt"
COLUMN, ROW = 1.75, 1.9  # inches a small multiple
SHOWN = {"avg_experts_prompt": "prompt tokens", "avg_experts_new": "new tokens"}
LARGER = {  # legible at half the figure's size
    "font.size": 9.0, "axes.titlesize": 9.5, "axes.labelsize": 9.0, "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5, "legend.fontsize": 8.5, "axes.titlepad": 6.0, "axes.titlelocation": "center",
    "lines.markersize": 5.0,
}  # fmt: skip


def draw_difficulty_figure(study: Study, table: pd.DataFrame) -> Figure:
    """Draw expert counts over difficulty; return the matplotlib figure.

    study: the `study.Study`, which gives every configuration its look; table: of `difficulty_table`.
    """
    with style.visual_language():
        mpl.rcParams.update(LARGER)  # ty: ignore[no-matching-overload]
        figure = style.new_figure((COLUMN * max(3, len(study.max_ks)) + 0.9, ROW * len(SHOWN) + 1.3))
        style.headline(figure, TITLE, "mean over a level's prompts; bars: ± 1 standard error", 10.0)
        rows = table[(table["strategy"] != "topk") & table["k_or_max_k"].isin(study.max_ks)]
        rows = rows.assign(variant=[study.variant(row) for _, row in rows.iterrows()])
        if rows.empty:
            axes = figure.subplots()
            axes.set_axis_off()
            axes.text(
                0.5, 0.5, "no adaptive configuration ran on the prompts", ha="center", color=style.NEUTRAL
            )
            return figure
        axes = figure.subplots(
            len(SHOWN), len(study.max_ks), sharex=True, sharey=True, squeeze=False
        )  # (2, max_ks)
        for above, column in zip(axes, SHOWN, strict=True):
            for ax, max_k in zip(above, study.max_ks, strict=True):
                _lines(ax, study, rows[rows["k_or_max_k"] == max_k], max_k, column)
        _scales(axes, study, rows)
        scale = " (log)" if axes[0, 0].get_yscale() == "log" else ""
        for above, tokens in zip(axes, SHOWN.values(), strict=True):
            above[0].set_ylabel(f"{tokens}: experts\nper token and layer{scale}")
        for ax, max_k in zip(axes[0], study.max_ks, strict=True):
            ax.set_title(f"max_k {max_k}")
        for ax in axes[-1]:
            ax.set_xlabel("difficulty (level)")
        _legend(figure, study)
    return figure


def _lines(axes, study, rows, max_k, column):
    """One line a variant over difficulty, each set a little apart so that bars do not hide each other."""
    shifts = np.linspace(-0.15, 0.15, len(study.variants)) if len(study.variants) > 1 else [0.0]
    drawn = False
    for one, shift in zip(study.variants, shifts, strict=True):
        own = rows[(rows["variant"] == one) & rows[column].notna()].sort_values("difficulty")
        if own.empty:
            continue
        drawn = True
        x, y = own["difficulty"].to_numpy(float) + shift, own[column].to_numpy(float)
        errors = own[f"{column}_stderr"].fillna(0).to_numpy(float)
        axes.errorbar(
            x, y, errors, color=style.variant_colour(study, one), elinewidth=0.9, zorder=3,
            marker=style.max_k_marker(study, max_k), markeredgecolor=style.INK, markeredgewidth=0.4,
        )  # fmt: skip
    if not drawn:
        axes.annotate(
            "no results", (0.5, 0.5), xycoords="axes fraction", ha="center", color=style.NEUTRAL, fontsize=8.5
        )


def _scales(axes, study, rows):
    """Ticks at the levels; one y scale for all, logarithmic where the values ask for it; the reference."""
    levels = sorted(rows["difficulty"].unique())
    values = pd.concat([rows[column] for column in SHOWN])
    reference = _reference(study)
    for ax in axes.flat:
        if reference is not None:
            ax.axhline(reference, zorder=2, **style.BASELINE)
            values = pd.concat([values, pd.Series([reference])])
        ax.xaxis.set_major_locator(FixedLocator(levels))
        ax.set_xlim(levels[0] - 0.4, levels[-1] + 0.4)
        ax.tick_params(labelsize=LARGER["ytick.labelsize"])
    scales.count_axis(axes[0, 0], "y", values)
    axes[0, 0].yaxis.set_minor_formatter(NullFormatter())


def _reference(study):
    """The number of experts of the baseline, where that is a top-k configuration."""
    row = study.baseline_row
    return float(row["k_or_max_k"]) if row is not None and row["strategy"] == "topk" else None


def _legend(figure, study):
    handles = style.variant_handles(study)
    if _reference(study) is not None:
        handles.append(Line2D([], [], label=f"baseline, {style.baseline_label(study)}", **style.BASELINE))
    figure.legend(
        handles=handles, loc="outside lower center", ncols=len(handles), handletextpad=0.4, handlelength=1.5,
        handler_map=style.HANDLERS,
    )  # fmt: skip
