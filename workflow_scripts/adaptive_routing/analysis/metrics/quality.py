"""Quality: how well the model does under a routing configuration; its perplexities are the summary's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence


def avg_task_accuracy(accuracies: Sequence[float]) -> float | None:
    """Average the accuracies of a configuration's accuracy data sets; None without one."""
    return float(np.mean(accuracies)) if len(accuracies) else None
