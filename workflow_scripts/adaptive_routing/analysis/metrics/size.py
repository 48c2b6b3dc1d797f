"""Size: how much was evaluated, and in what time."""

from adaptive_routing.analysis.metrics.declaration import metric


@metric("size", "samples", "none", "evaluated samples", minimum=1, over_datasets="sum")
def total_samples(num_samples) -> int:
    """Give the number of evaluated samples."""
    return num_samples


@metric("size", "tokens", "none", "evaluated tokens", minimum=1, over_datasets="sum")
def total_tokens(num_tokens) -> int:
    """Give the number of evaluated tokens."""
    return num_tokens


@metric("size", "s", "none", "forward time of the run", minimum=0, over_datasets="sum", timed=True)
def forward_seconds(forward_seconds) -> float:
    """Give the forward time of the run."""
    return forward_seconds
