"""Panel 9: measured speed against accuracy (against perplexity where the study has no accuracy)."""

import numpy as np

from adaptive_routing.panels import TITLES, style

TITLE = f"9  {TITLES['9_speed_quality']}"


def draw(figure, cell, study):
    column = quality_column(study)
    if column is None or not study.has("tokens_per_second"):
        return style.nothing_to_show(figure, cell, TITLE, "no speed or no quality was measured")
    higher = column == "avg_task_accuracy"
    axes = figure.add_subplot(cell)
    style.heading(axes, TITLE, f"{'upper' if higher else 'lower'} right is better; bars: ± 1 standard error")
    style.scatter(axes, study, "tokens_per_second", column, error=f"{column}_stderr")
    style.ratio_axis(axes, "x", study.configurations["tokens_per_second"])
    if not higher:
        style.ratio_axis(axes, "y", study.configurations[column])
    if np.isfinite(study.baseline_value(column)):
        axes.axhline(study.baseline_value(column), zorder=2, **style.BASELINE)
    if np.isfinite(study.baseline_value("tokens_per_second")):
        axes.axvline(study.baseline_value("tokens_per_second"), zorder=2, **style.BASELINE)
    axes.set_xlabel("evaluated tokens per second of forward time")
    axes.set_ylabel(
        "mean task accuracy (share correct)" if higher else "wikitext perplexity, exp(mean sample loss)"
    )


def quality_column(study):
    """The column that stands for quality: the mean accuracy, else perplexity, else None."""
    return next((column for column in ("avg_task_accuracy", "perplexity") if study.has(column)), None)


def describe(study):
    table = study.configurations.dropna(subset=["tokens_per_second"])
    if table.empty:
        return "No speed was measured."
    first = table.loc[table["tokens_per_second"].idxmax()]
    speed = first["tokens_per_second"]
    sentence = f"The fastest configuration is `{first['config']}` with {speed:,.0f} tokens per second"
    reference = study.baseline_value("tokens_per_second")
    if not np.isfinite(reference):
        return sentence + "."
    if first["config"] == study.baseline:
        return sentence + ": no configuration is faster than the baseline."
    faster = int((study.bh["tokens_per_second"] > reference).sum())
    return (
        f"{sentence}, {first['tokens_per_second'] / reference:.2f} times the baseline's {reference:,.0f}; "
        f"BH configurations faster than the baseline: {faster} of {len(study.bh)}."
    )
