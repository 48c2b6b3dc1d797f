"""Quality: how well the model does under a routing configuration. Perplexities come from the summary."""

import numpy as np


def avg_task_accuracy(accuracies):
    """Average the accuracies of a configuration's accuracy data sets; None without one."""
    return float(np.mean(accuracies)) if len(accuracies) else None
