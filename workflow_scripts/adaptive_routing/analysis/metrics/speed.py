"""Speed: forward time on the device, synchronised; loading, tokenising and writing are not in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence


def tokens_per_second(num_tokens: int, forward_seconds: float) -> float:
    """Compute evaluated tokens / forward time."""
    return num_tokens / forward_seconds


def latency_ms_per_token(seconds: Sequence[float], tokens: Sequence[int]) -> float | None:
    """Compute the median over samples of batch-of-one forward time / tokens; None without a sample."""
    if len(seconds) == 0:
        return None
    return float(np.median(1000 * np.asarray(seconds) / np.asarray(tokens)))
