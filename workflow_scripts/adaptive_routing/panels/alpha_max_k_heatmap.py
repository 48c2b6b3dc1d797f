"""Panel 4: change of quality against the baseline for each alpha and max_k, with what it costs in experts.

The quality is perplexity, or the mean accuracy where the study has no perplexity. A star marks a
difference that is significant after Holm's correction on at least one data set.
"""

import matplotlib as mpl
import numpy as np

from adaptive_routing.panels import TITLES, style

TITLE = f"4  {TITLES['4_alpha_max_k_heatmap']}"


def draw(figure, cell, study):
    measure = quality_measure(study)
    if measure is None or study.bh.empty:
        reason = "no BH configuration" if study.bh.empty else "no quality was measured for the baseline"
        return style.nothing_to_show(figure, cell, TITLE, reason)
    changes, name, unit, lower_is_better = measure
    axes = figure.add_subplot(cell)
    values = _grid(study, changes)
    lines_per_cell = 2 if len(study.max_ks) <= 6 and len(study.alphas) <= 6 else 1
    note = "paler is better; * differs after Holm's correction"
    style.heading(axes, TITLE, note + ("; below: average experts" if lines_per_cell == 2 else ""))

    colours = mpl.colormaps["cividis_r" if lower_is_better else "cividis"].with_extremes(bad="white")
    low, high = min(0.0, np.nanmin(values)), max(0.0, np.nanmax(values))
    norm = mpl.colors.Normalize(low, high if high > low else low + 1)
    image = axes.imshow(np.ma.masked_invalid(values), cmap=colours, norm=norm, aspect="auto", origin="lower")
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("α (target false discovery rate)")
    axes.set_ylabel("max_k (experts)")
    axes.set_xticks(range(len(study.alphas)), [f"{alpha:.4g}" for alpha in study.alphas])
    if len(study.alphas) > 10:
        axes.tick_params(axis="x", rotation=90)
    axes.set_yticks(range(len(study.max_ks)), [str(max_k) for max_k in study.max_ks])
    if values.size <= 100:
        _write_values(axes, study, values, image, lines_per_cell)

    bar = figure.colorbar(image, ax=axes, pad=0.02, fraction=0.06, aspect=25)
    bar.set_label(f"{name} ({unit}) against {style.baseline_label(study)}")
    bar.outline.set_visible(False)
    bar.ax.axhline(0.0, **style.BASELINE)


def quality_measure(study):
    """Return (change by configuration, its name, its unit, whether lower is better), or None."""
    table = study.configurations.set_index("config")
    if study.has("perplexity") and np.isfinite(study.baseline_value("perplexity")):
        ratio = table["perplexity"] / study.baseline_value("perplexity")
        return 100 * (ratio - 1), "perplexity", "%", True
    if study.has("avg_task_accuracy") and np.isfinite(study.baseline_value("avg_task_accuracy")):
        change = table["avg_task_accuracy"] - study.baseline_value("avg_task_accuracy")
        return 100 * change, "mean accuracy", "points", False
    return None


def describe(study):
    measure = quality_measure(study)
    if measure is None or study.bh.empty:
        return "There is no BH configuration whose quality can be set against the baseline's."
    changes, name, unit, lower_is_better = measure
    changes = changes.reindex(study.bh["config"]).dropna()
    if changes.empty:
        return "There is no BH configuration whose quality can be set against the baseline's."
    best = changes.idxmin() if lower_is_better else changes.idxmax()
    worst = changes.idxmax() if lower_is_better else changes.idxmin()
    starred = sum(_starred(study, config) for config in changes.index)
    low, high = (f"{changes[config]:+z.1f} {unit}".replace("-", "−") for config in (best, worst))
    return (
        f"Against the baseline, {name} changes by {low} at best (`{best}`) and by {high} at worst "
        f"(`{worst}`); different from the baseline on at least one data set after Holm's correction: "
        f"{starred} of {len(changes)}."
    )


def _grid(study, changes):
    values = np.full((len(study.max_ks), len(study.alphas)), np.nan)
    for _, row in study.bh.iterrows():
        place = study.max_ks.index(int(row["k_or_max_k"])), study.alphas.index(float(row["alpha"]))
        values[place] = changes[row["config"]]
    return values


def _starred(study, config):
    return any(study.verdict(config, dataset) in ("better", "worse") for dataset in study.scored_datasets)


def _write_values(axes, study, values, image, lines_per_cell):
    size = 6.0 if lines_per_cell == 2 else 5.0
    for _, row in study.bh.iterrows():
        i, j = study.max_ks.index(int(row["k_or_max_k"])), study.alphas.index(float(row["alpha"]))
        if np.isnan(values[i, j]):
            continue
        red, green, blue, _ = image.cmap(image.norm(values[i, j]))
        ink = "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "white"
        text = f"{values[i, j]:+z.1f}".replace("-", "−") + ("*" if _starred(study, row["config"]) else "")
        if lines_per_cell == 2:
            text += f"\n{row['avg_experts']:.1f}"
        axes.text(j, i, text, ha="center", va="center", color=ink, fontsize=size, linespacing=1.25)
