"""Panel 5: experts against quality; which configurations no other one beats in both."""

import numpy as np

from adaptive_routing.panels import TITLES, style

TITLE = f"5  {TITLES['5_pareto_frontier']}"


def draw(figure, cell, study):
    column = quality_column(study)
    if column is None:
        return style.nothing_to_show(figure, cell, TITLE, "no quality was measured")
    lower = column == "perplexity"
    axes = figure.add_subplot(cell)
    style.heading(
        axes,
        TITLE,
        f"{'lower' if lower else 'upper'} left is better; grey: frontier; bars: ± 1 standard error",
    )
    style.scatter(axes, study, "avg_experts", column, error=f"{column}_stderr")
    style.count_axis(axes, "x", study.configurations["avg_experts"])
    if lower:
        style.ratio_axis(axes, "y", study.configurations[column])
    if np.isfinite(study.baseline_value(column)):
        axes.axhline(study.baseline_value(column), zorder=2, **style.BASELINE)
    best = frontier(study, column)
    # Between two frontier points nothing better is known than the cheaper one: a staircase.
    (x_low, x_high), (y_low, y_high) = axes.get_xlim(), axes.get_ylim()
    x = np.concatenate([best["avg_experts"][:1], best["avg_experts"], [x_high]])
    y = np.concatenate([[y_high if lower else y_low], best[column], best[column][-1:]])
    axes.plot(x, y, drawstyle="steps-post", color="#b5b5b5", linewidth=3.5, alpha=0.6, zorder=1)
    axes.set(xlim=(x_low, x_high), ylim=(y_low, y_high))
    axes.set_xlabel("average experts per token and layer")
    axes.set_ylabel(
        "wikitext perplexity, exp(mean sample loss)" if lower else "mean task accuracy (share correct)"
    )


def quality_column(study):
    """The column that stands for quality: perplexity, else the mean accuracy, else None."""
    return next((column for column in ("perplexity", "avg_task_accuracy") if study.has(column)), None)


def frontier(study, column):
    """The configurations that no other one equals or beats in both experts and quality, cheapest first."""
    table = study.configurations.dropna(subset=["avg_experts", column])
    sign = 1 if column == "perplexity" else -1
    table = table.assign(loss=sign * table[column]).sort_values(["avg_experts", "loss"], kind="stable")
    best_so_far = table["loss"].astype(float).cummin().shift(fill_value=np.inf)
    return table[table["loss"] < best_so_far]


def describe(study):
    column = quality_column(study)
    if column is None:
        return "No quality was measured, so there is no frontier."
    best = frontier(study, column)
    count = int((best["strategy"] == "bh").sum())
    what = "perplexity" if column == "perplexity" else "mean accuracy"
    sentence = (
        f"On the frontier of average experts and {what}: {len(best)} of "
        f"{study.configurations[column].notna().sum()} configurations, {count} of them BH"
    )
    row = study.baseline_row
    if row is None or not np.isfinite(study.baseline_value(column)):
        return sentence + "."
    if study.baseline in set(best["config"]):
        return sentence + "; the baseline is on it: no configuration measured is as cheap and as good."
    table = study.configurations
    as_good = table[column] <= row[column] if column == "perplexity" else table[column] >= row[column]
    rivals = table[
        as_good & (table["avg_experts"] <= row["avg_experts"]) & (table["config"] != study.baseline)
    ]
    names = ", ".join(f"`{config}`" for config in rivals["config"][:3])
    more = f" and {len(rivals) - 3} more" if len(rivals) > 3 else ""
    return sentence + f"; the baseline is not: {names}{more} run no more experts and measured no worse."
