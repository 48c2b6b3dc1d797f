"""Quality: how well the model does under a routing configuration. Perplexities come from the summary."""

from collections.abc import Sequence

import numpy as np

from adaptive_routing.analysis.metrics.declaration import metric


def _declare(name, key, unit, better, description, **more):
    """Declare a score that the summary has under a key, in which {dataset} stands for the data set's name."""

    def score(scores, dataset) -> float | None:
        return scores.get(key.format(dataset=dataset))

    score.__name__ = name
    metric("quality", unit, better, description, **more)(score)


def _declare_with_error(name, key, better, description, error=None, unit="", **more):
    """Declare a score and its standard error."""
    _declare(name, key, unit, better, description, **more)
    _declare_error(name, key, error or f"standard error of {name}", unit)


def _declare_error(name, key, description, unit=""):
    _declare(f"{name}_stderr", f"{key}_stderr", unit, "none", description, minimum=0)


_declare_with_error(
    "perplexity", "perplexity", "lower", "exp of the mean sample loss", one_of_16=True, minimum=1
)
_declare_with_error(
    "token_perplexity", "token_perplexity", "lower", "exp of total loss / total predicted tokens", minimum=1
)
_declare_with_error(
    "word_perplexity", "word_perplexity", "lower", "exp of total loss / words of whole articles", minimum=1
)
_declare_with_error(
    "byte_perplexity", "byte_perplexity", "lower", "exp of total loss / bytes of whole articles", minimum=1
)
_declare_with_error(
    "bits_per_byte", "bits_per_byte", "lower", "total loss in bits / bytes of whole articles",
    unit="bits", minimum=0,
)  # fmt: skip


@metric(
    "quality", "", "higher", "accuracy, mean over the accuracy data sets",
    one_of_16=True, minimum=0, maximum=1,
)  # fmt: skip
def avg_task_accuracy(accuracies: Sequence[float]) -> float | None:
    """Average the accuracies of a configuration's accuracy data sets; None without one."""
    return float(np.mean(accuracies)) if len(accuracies) else None


_declare_error("avg_task_accuracy", "{dataset}_accuracy", "standard error of the accuracy")
_declare_with_error(
    "target_perplexity", "{dataset}_perplexity", "lower", "perplexity of lambada's target words", minimum=1
)
_declare_with_error(
    "accuracy_unnormalized", "{dataset}_acc", "higher", "accuracy without length normalisation",
    error="standard error of the same", minimum=0, maximum=1,
)  # fmt: skip
