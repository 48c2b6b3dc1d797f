"""Expert counts: how many experts run, over all tokens and layers."""

from adaptive_routing.analysis.metrics.declaration import metric


@metric("efficiency", "experts", "lower", "mean selected experts per token-layer", minimum=0, per_layer=True)
def avg_experts(expert_counts) -> float:
    """Average the expert counts (T, L)."""
    return float(expert_counts.mean())


@metric("behaviour", "experts", "none", "standard deviation of the expert counts", minimum=0, per_layer=True)
def std_experts(expert_counts) -> float:
    """Compute the (population) standard deviation of the expert counts (T, L)."""
    return float(expert_counts.std())


@metric("behaviour", "experts", "none", "smallest expert count", minimum=0, over_datasets="min")
def min_experts(expert_counts) -> int:
    """Find the smallest expert count (T, L)."""
    return int(expert_counts.min())


@metric("behaviour", "experts", "none", "largest expert count", minimum=0, over_datasets="max")
def max_experts(expert_counts) -> int:
    """Find the largest expert count (T, L)."""
    return int(expert_counts.max())
