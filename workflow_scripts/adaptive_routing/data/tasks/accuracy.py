"""Accuracy and its standard error."""

import math
from collections.abc import Sequence


def accuracy_with_stderr(correct: Sequence[bool]) -> tuple[float, float | None]:
    """The share of True and its standard error sqrt(a (1 − a) / (n − 1)), as in the harness.

    The error is None for a single sample.
    """
    accuracy = sum(correct) / len(correct)
    if len(correct) == 1:
        return accuracy, None
    return accuracy, math.sqrt(accuracy * (1 - accuracy) / (len(correct) - 1))
