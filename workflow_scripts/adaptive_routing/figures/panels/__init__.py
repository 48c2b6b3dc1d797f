"""The figure's panels: their order, and how one or all of them are drawn.

A panel is a module with `draw(cell, study)`, which fills one `layout.Cell` of the figure, and
`describe(study)`, which says in a sentence what the panel shows in this study. They share `style` (what a
configuration looks like), `grid_axis` and `scatter` (the two ways to set configurations side by side),
`scales`, `labels` and `quality`. Importing this package does not import matplotlib, so that the workflow can
read the list of panels at no cost.
"""

from __future__ import annotations

import importlib
import multiprocessing
from typing import TYPE_CHECKING

from adaptive_routing.system.errors import OutputError
from adaptive_routing.system.processes import ending_with, identity

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from matplotlib.figure import Figure

    from adaptive_routing.analysis.study import Study

TITLES = {
    "1_perplexity": "Perplexity",
    "2_task_accuracy": "Task accuracy",
    "3_average_experts": "Average experts",
    "4_alpha_max_k_heatmap": "Quality against the baseline over the grid",
    "5_pareto_frontier": "Pareto frontier: experts against quality",
    "6_floor_middle_ceiling": "Floor, middle and ceiling",
    "7_expert_utilization": "Expert utilisation",
    "8_by_layer": "Experts by layer",
    "9_speed_quality": "Speed against quality",
}
PANELS = tuple(TITLES)


def draw_figure(study: Study) -> Figure:
    """Draw all panels on one page, A4 landscape for nine; return the matplotlib figure."""
    from adaptive_routing.figures import layout

    return _draw(PANELS, study, *layout.page(len(PANELS)))


def draw_panel(panel: str, study: Study) -> Figure:
    """Draw one panel, named as in `PANELS`, alone; return the matplotlib figure."""
    from adaptive_routing.figures import layout

    return _draw([panel], study, layout.SINGLE, (1, 1))


def _draw(panels, study, size, grid):
    from adaptive_routing.figures import layout, style

    with style.visual_language():
        figure = style.new_figure(size, layout=None)
        legend = style.legend_rows(style.legend_handles(study), figure.get_figwidth())
        cells = layout.cells(figure, *grid, len(legend))
        for panel, cell in zip(panels, cells, strict=False):
            _module(panel).draw(cell, study)
        style.add_legend(figure, legend, layout.LEGEND_ROW)
    return figure


def save_drawings(study: Study, files: Mapping[str, Sequence[Path | str]], processes: int = 1) -> None:
    """Draw into files, several at a time.

    Args:
        files: the paths of each drawing, which is a panel's name or "figure".
        processes: at most this many; the first drawing, which should be the longest, has one to itself.
    """
    first, *rest = files
    shares = [[first], *(rest[i :: processes - 1] for i in range(processes - 1))]
    own, *others = shares if processes > 1 else [[first, *rest]]
    # Copies of this process, which have the study, and matplotlib without importing it again. Each knows its
    # share from the start and waits for nothing.
    importlib.import_module("adaptive_routing.figures.style")
    context = multiprocessing.get_context("fork")
    failures = context.SimpleQueue()  # of the others: sentences
    started = []
    try:
        for names in filter(None, others):
            worker = context.Process(target=_save_beside, args=(identity(), failures, study, files, names))
            worker.start()
            started.append(worker)
        _save(study, files, own)
        for worker in started:
            worker.join()
    finally:
        for worker in started:
            worker.terminate()
            worker.join()
    if not failures.empty():
        raise OutputError(failures.get())
    if any(worker.exitcode for worker in started):
        raise RuntimeError("a process that draws panels failed; its error stands above")


def _save_beside(parent, failures, *drawings):
    """Draw in another process, which ends with its parent even if that is killed."""
    with ending_with(*parent, "the process that this one draws for"):
        try:
            _save(*drawings)
        except OutputError as error:
            failures.put(str(error))


def _save(study, files, names):
    from adaptive_routing.figures import style

    for name in names:
        drawing = draw_figure(study) if name == "figure" else draw_panel(name, study)
        for path in files[name]:
            style.save(drawing, path)


def describe_panel(panel: str, study: Study) -> str:
    """Say in a sentence what the panel shows in this study."""
    return _module(panel).describe(study)


def panel_module(panel: str) -> str:
    """Name of a panel's module."""
    return f"{__name__}.{panel.split('_', 1)[1]}"


def _module(panel):
    return importlib.import_module(panel_module(panel))
