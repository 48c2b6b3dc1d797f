"""Speed: synchronised forward time on the device, without loading, tokenising and writing."""

import numpy as np


def tokens_per_second(num_tokens, forward_seconds):
    """Compute evaluated tokens / forward time."""
    return num_tokens / forward_seconds


def latency_ms_per_token(seconds, tokens):
    """Compute the median over samples of batch-of-one forward time / tokens; None without samples."""
    if len(seconds) == 0:
        return None
    return float(np.median(1000 * np.asarray(seconds) / np.asarray(tokens)))
