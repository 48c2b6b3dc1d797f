"""Panel 2: accuracy over the grid on each data set that has one.

Where none has, the paired difference of the mean loss from the baseline, which panel 1 does not show.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from adaptive_routing.analysis.tables import averaged_datasets
from adaptive_routing.figures import grid_axis, quality
from adaptive_routing.figures.panels import TITLES

if TYPE_CHECKING:
    import pandas as pd

    from adaptive_routing.analysis.study import Study
    from adaptive_routing.figures.layout import Cell

MOST_SPELLED_OUT = 2  # data sets, above each other, whose axes are long enough
TITLE = f"2  {TITLES['2_task_accuracy']}"


def draw(cell: Cell, study: Study) -> None:
    if not study.accuracies:
        return _draw_differences(cell, study)
    cell.heading(TITLE, "share correct by data set; higher is better; bars: ± 1 standard error")
    every = cell.axes(rows=len(study.accuracies), gap=(0, 0.22), top=0.53)[:, 0]
    for axes, column in zip(every, study.accuracies, strict=True):
        values = grid_axis.by_config(study, column)
        errors = grid_axis.by_config(study, f"{column}_stderr")
        grid_axis.draw(axes, study, values, grid_axis.around(values, errors))
        axes.set_title(column.removesuffix("_accuracy"), fontsize=6.4, pad=2.5)
        axes.set_ylabel("share correct" if len(every) <= MOST_SPELLED_OUT else "share")
        if axes is not every[-1]:
            axes.set_xlabel("")
            axes.tick_params(labelbottom=False)


def describe(study: Study) -> str:
    if not study.accuracies:
        dataset, rows = differences(study)
        if rows.empty:
            return "There is no experiment on a data set with an accuracy, and no loss to compare."
        worse, better = (int((sign * rows[end] > 0).sum()) for sign, end in ((1, "ci_low"), (-1, "ci_high")))
        return (
            "There is no experiment on a data set with an accuracy; shown is the paired difference of the "
            f"mean loss on {dataset} from the baseline. Its 95 % interval lies above 0 (worse) for {worse} "
            f"of {len(rows)} configurations and below 0 (better) for {better}, before any correction."
        )
    return " ".join(_sentence(study, column) for column in study.accuracies)


def differences(study: Study) -> tuple[str | None, pd.DataFrame]:
    """The first data set whose mean loss is compared, and its rows of `comparisons` by configuration."""
    for dataset in averaged_datasets(study.datasets):
        rows = study.comparisons
        rows = rows[(rows["dataset"] == dataset) & (rows["metric"] == "loss") & rows["difference"].notna()]
        if not rows.empty:
            return dataset, rows.set_index("config")
    return None, study.comparisons.iloc[:0].set_index("config")


def _sentence(study, column):
    values = grid_axis.by_config(study, column)
    name = f"{column.removesuffix('_accuracy')} accuracy"
    measure = quality.Quality(values, values * np.nan, name, name, None, False, False)
    return quality.extremes(study, measure, ".3f")


def _draw_differences(cell, study):
    dataset, rows = differences(study)
    if rows.empty:
        return cell.nothing_to_show(TITLE, "no data set of this study has an accuracy")
    cell.heading(TITLE, f"no accuracy: paired loss difference on {dataset}; bars: 95 % interval")
    at_baseline = pd.Series({study.baseline: 0.0})
    values, low, high = (pd.concat([rows[c], at_baseline]) for c in ("difference", "ci_low", "ci_high"))
    axes = cell.axes()[0, 0]
    grid_axis.draw(axes, study, values, (low, high))
    axes.set_ylabel("difference of the mean loss (nats)")
