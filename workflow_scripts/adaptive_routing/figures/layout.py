"""Where things stand: the page of cells, a single cell, and the axes in a cell, all in inches.

Places are fixed rather than fitted to the text, so that all panels line up and nothing has to be drawn twice
to find them out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

PAGE = (11.69, 8.27)  # A4 landscape, for three rows of three panels
COLUMNS, ROWS = 3, 3
SINGLE = (4.7, 3.4)
EDGE = 0.12  # around the page
LEGEND_ROW = 0.17
TITLE, NOTE = 0.17, 0.32  # baselines of a panel's title and note below the top of its cell


@dataclass(frozen=True)
class Margins:
    """Room around the axes of a cell: for title and note, tick labels, axis labels, labels at the right."""

    left: float = 0.56
    right: float = 0.44
    top: float = 0.42
    bottom: float = 0.42


@dataclass(frozen=True)
class Cell:
    """A rectangle of a figure, in inches from its lower left corner, that holds one panel."""

    figure: Figure
    left: float
    bottom: float
    width: float
    height: float

    def heading(self, title: str, note: str) -> None:
        """Write a panel's title, and below it a note on how to read it."""
        top = self.bottom + self.height
        self._text(top - TITLE, title, fontsize=8.2, weight="bold", color="black")
        self._text(top - NOTE, note, fontsize=6.2, color="#555555")

    def axes(
        self,
        rows: int = 1,
        columns: int = 1,
        gap: tuple[float, float] = (0.12, 0.12),
        heights: Sequence[float] | None = None,
        share_y: bool = False,
        **margins: float,
    ) -> NDArray[np.object_]:
        """Add axes: an array (rows, columns), the first row at the top.

        gap: (between columns, between rows); heights: the rows' shares of the height; margins: of `Margins`.
        """
        around = replace(Margins(), **margins)
        shares = np.asarray(heights if heights is not None else [1.0] * rows, dtype=float)
        width = (self.width - around.left - around.right - gap[0] * (columns - 1)) / columns
        free = self.height - around.top - around.bottom - gap[1] * (rows - 1)
        every = np.empty((rows, columns), dtype=object)
        top = self.bottom + self.height - around.top
        for i, height in enumerate(free * shares / shares.sum()):
            for j in range(columns):
                left = self.left + around.left + j * (width + gap[0])
                every[i, j] = self.figure.add_axes(
                    self._fractions(left, top - height, width, height),
                    sharex=every[0, j] if i else None,
                    sharey=every[i, 0] if j and share_y else None,
                )
            top -= height + gap[1]
        return every

    def strip(self, left: float, bottom: float, width: float, height: float) -> Axes:
        """Add one axes at a place in the cell, from its lower left corner."""
        return self.figure.add_axes(self._fractions(self.left + left, self.bottom + bottom, width, height))

    def nothing_to_show(self, title: str, reason: str) -> None:
        """Fill a panel whose numbers this study does not have with the reason."""
        self.heading(title, "")
        self._text(self.bottom + self.height / 2, reason, x=0.56, color="#555555")

    def _text(self, y, text, x=0.08, **look):
        width, height = self.figure.get_size_inches()
        self.figure.text((self.left + x) / width, y / height, text, va="baseline", **look)

    def _fractions(self, left, bottom, width, height):
        page = self.figure.get_size_inches()
        return left / page[0], bottom / page[1], width / page[0], height / page[1]


def page(panels: int) -> tuple[tuple[float, float], tuple[int, int]]:
    """Size of a page of so many panels, higher than A4 for more than nine, and its (rows, columns)."""
    rows = max(ROWS, -(-panels // COLUMNS))
    return (PAGE[0], PAGE[1] * rows / ROWS), (rows, COLUMNS)


def cells(figure: Figure, rows: int, columns: int, legend_rows: int) -> list[Cell]:
    """Divide a figure above its legend into cells, row by row from the top."""
    page = figure.get_size_inches()
    below = LEGEND_ROW * legend_rows + 0.10
    width = (page[0] - 2 * EDGE) / columns
    height = (page[1] - EDGE / 2 - below) / rows
    return [
        Cell(figure, EDGE + j * width, below + (rows - 1 - i) * height, width, height)
        for i in range(rows)
        for j in range(columns)
    ]
