"""Speed: synchronised forward time on the device, without loading, tokenising and writing."""

from collections.abc import Sequence

import numpy as np

from adaptive_routing.analysis.metrics.declaration import metric


@metric(
    "speed", "tokens/s", "higher", "evaluated tokens / forward time", one_of_16=True, minimum=0, timed=True
)
def tokens_per_second(num_tokens: int, forward_seconds: float) -> float:
    """Compute evaluated tokens / forward time."""
    return num_tokens / forward_seconds


@metric(
    "speed", "ms/token", "lower", "median batch-of-one forward time per token",
    one_of_16=True, minimum=0, timed=True,
)  # fmt: skip
def latency_ms_per_token(
    single_sample_seconds: Sequence[float], single_sample_tokens: Sequence[int]
) -> float | None:
    """Compute the median over samples of batch-of-one forward time / tokens; None without samples."""
    if len(single_sample_seconds) == 0:
        return None
    return float(np.median(1000 * np.asarray(single_sample_seconds) / np.asarray(single_sample_tokens)))
