"""Panel 2: accuracy over alpha on each data set that has one."""

from adaptive_routing.panels import TITLES, style
from adaptive_routing.panels.perplexity import describe_extremes

TITLE = f"2  {TITLES['2_task_accuracy']}"


def draw(figure, cell, study):
    if not study.accuracies:
        return style.nothing_to_show(figure, cell, TITLE, "no experiment on a data set with an accuracy")
    grid = cell.subgridspec(1, len(study.accuracies))
    for i, column in enumerate(study.accuracies):
        axes = figure.add_subplot(grid[i])
        if i == 0:
            style.heading(axes, TITLE, "share correct; higher is better; bars: ± 1 standard error")
        style.lines_over_alpha(axes, study, column, error=f"{column}_stderr")
        if len(study.accuracies) > 1:
            style.alpha_axis(
                axes, study, most_ticks=4 if len(study.accuracies) == 2 else 2, label="α (target FDR)"
            )
        axes.set_ylabel(f"{column.removesuffix('_accuracy')} accuracy (share)")
        style.topk_levels(axes, study, column, named=len(study.accuracies) <= 2)


def describe(study):
    if not study.accuracies:
        return "There is no experiment on a data set with an accuracy."
    return " ".join(
        describe_extremes(study, column, f"{column.removesuffix('_accuracy')} accuracy", ".3f")
        for column in study.accuracies
    )
