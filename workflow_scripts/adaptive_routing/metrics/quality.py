"""Quality: how well the model predicts under a routing configuration."""

import math

import numpy as np


def perplexity(sample_losses):
    """Compute exp of the mean sample loss (nats per predicted token)."""
    return math.exp(float(np.mean(sample_losses)))


def avg_task_accuracy(accuracies):
    """Average the accuracies of a configuration's accuracy data sets; None without one."""
    return float(np.mean(accuracies)) if len(accuracies) else None
