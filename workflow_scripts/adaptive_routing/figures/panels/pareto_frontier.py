"""Panel 5: experts against quality; which configurations no other one beats in both."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from adaptive_routing.analysis.rule_names import adaptive
from adaptive_routing.figures import grid_axis, quality, scales, scatter, style
from adaptive_routing.figures.panels import TITLES

if TYPE_CHECKING:
    import pandas as pd

    from adaptive_routing.analysis.study import Study
    from adaptive_routing.figures.layout import Cell
    from adaptive_routing.figures.quality import Quality

TITLE = f"5  {TITLES['5_pareto_frontier']}"


def draw(cell: Cell, study: Study) -> None:
    measure = quality.frontier_measure(study)
    if measure is None:
        return cell.nothing_to_show(TITLE, "no quality was measured")
    cell.heading(TITLE, f"grey: frontier; {scatter.note(study, measure, 'left')}")
    axes = cell.axes()[0, 0]
    x = grid_axis.by_config(study, "avg_experts")
    best = frontier(x, measure)
    varied = [config for config in best if config in set(study.adaptive["config"])]
    scatter.draw(axes, study, x, measure, scales.count_axis, named=dict.fromkeys(varied[:1] + varied[-1:]))
    (x_low, x_high), (y_low, y_high) = axes.get_xlim(), axes.get_ylim()
    # Between two frontier points nothing better is known than the cheaper one: a staircase.
    steps = [*x[best][:1], *x[best], x_high], [
        y_high if measure.lower_is_better else y_low, *measure.values[best], *measure.values[best][-1:],
    ]  # fmt: skip
    axes.plot(*steps, drawstyle="steps-post", color=style.PALE, linewidth=3.2, alpha=0.55, zorder=1)
    axes.set(xlim=(x_low, x_high), ylim=(y_low, y_high))
    axes.set_xlabel("average experts per token and layer")
    axes.set_ylabel(measure.axis)


def frontier(costs: pd.Series, measure: Quality) -> list[str]:
    """The configurations that no other one equals or beats in both cost and quality, cheapest first.

    costs: Series by configuration; measure: a `quality.Quality`.
    """
    sign = 1 if measure.lower_is_better else -1
    table = costs.rename("cost").to_frame().assign(loss=sign * measure.values).dropna()
    table = table.sort_values(["cost", "loss"], kind="stable")
    best_so_far = table["loss"].astype(float).cummin().shift(fill_value=np.inf)
    return list(table.index[table["loss"] < best_so_far])


def describe(study: Study) -> str:
    measure = quality.frontier_measure(study)
    if measure is None:
        return "No quality was measured, so there is no frontier."
    costs = grid_axis.by_config(study, "avg_experts")
    best = frontier(costs, measure)
    count = int(study.adaptive["config"].isin(best).sum())
    values = measure.values.reindex(costs.index)
    sentence = (
        f"On the frontier of average experts and {measure.name}: {len(best)} of "
        f"{values.notna().sum()} configurations, {count} of them {adaptive(study)}"
    )
    cost, value = costs.get(study.baseline, np.nan), values.get(study.baseline, np.nan)
    if not np.isfinite(value):
        return sentence + "."
    if study.baseline in best:
        return sentence + "; the baseline is on it: no configuration measured is as cheap and as good."
    as_good = values <= value if measure.lower_is_better else values >= value
    rivals = [config for config in costs.index[as_good & (costs <= cost)] if config != study.baseline]
    names = ", ".join(f"`{config}`" for config in rivals[:3])
    more = f" and {len(rivals) - 3} more" if len(rivals) > 3 else ""
    return sentence + f"; the baseline is not: {names}{more} run no more experts and measured no worse."
