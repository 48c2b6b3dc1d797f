"""Efficiency: how much work a routing configuration saves compared with the model's native top-k."""

from collections.abc import Mapping
from typing import Any

from adaptive_routing.analysis.metrics.declaration import metric

# Share of a model's compute that its experts take at the native top-k, in the cost model of
# `flops_reduction_pct`.
EXPERT_SHARE = 0.6


@metric("efficiency", "", "lower", "mean selected experts per token-layer / k or max_k", one_of_16=True)
def expert_activation_ratio(avg_experts: float, k_or_max_k: int) -> float:
    """Compute mean selected experts per token and layer / k or max_k."""
    return avg_experts / k_or_max_k


@metric("efficiency", "%", "higher", "compute saved against native top-k, 60 % in experts", one_of_16=True)
def flops_reduction_pct(avg_experts: float, native_top_k: int, num_experts: int) -> float:
    """Compute 100·(c(native) − c(avg)) / c(native) with c(k) = f·k/E + (1 − f), f = 0.6."""

    def cost(k):
        return EXPERT_SHARE * k / num_experts + (1 - EXPERT_SHARE)

    return 100 * (cost(native_top_k) - cost(avg_experts)) / cost(native_top_k)


@metric("efficiency", "%", "higher", "fewer experts than the native top-k")
def reduction_vs_baseline(avg_experts: float, native_top_k: int) -> float:
    """Compute the percentage by which fewer experts run than at the native top-k."""
    return 100 * (1 - avg_experts / native_top_k)


@metric("efficiency", "%", "higher", "compute saved, from the model's shapes")
def flops_reduction_exact_pct(
    avg_experts: float, native_top_k: int, shapes: Mapping[str, Any], mean_sequence_length: float
) -> float:
    """Compute the same reduction with `flops_per_token` instead of the cost model."""
    native = flops_per_token(native_top_k, shapes, mean_sequence_length)
    return 100 * (native - flops_per_token(avg_experts, shapes, mean_sequence_length)) / native


def flops_per_token(experts: float, shapes: Mapping[str, Any], mean_sequence_length: float) -> float:
    """Count the floating-point operations of one token's forward pass, two for each multiply–add.

    With hidden size h, expert width m, attention heads a of size d, key-value heads g, sequences of s tokens:

        attention projections   h·a·d (q) + 2·h·g·d (k, v) + a·d·h (o)       every layer
        attention scores        2·a·d·(s + 1)/2 (q·k and weights·v, causal)  every layer
        router                  h·E                                          MoE layers
        selected experts        experts·3·h·m (gate, up, down)               MoE layers
        shared experts          3·h·m' (m' their width together, 0 if none)  MoE layers
        dense feed-forward      3·h·m'' (m'' its width)                      layers that are not MoE
        lm_head                 h·vocabulary                                 once

    Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1) has other projections and scores,
    with ranks r' (queries, 0 where they are projected at once) and r (keys and values), and head widths d_c
    (content), d_r (rotary) and d_v (values):

        projections             h·r' + r'·a·(d_c + d_r), or h·a·(d_c + d_r) (q)
                                + h·(r + d_r) + r·a·(d_c + d_v) (k, v) + a·d_v·h (o)
        scores                  a·(d_c + d_r + d_v)·(s + 1)/2

    Normalisation, activations, softmax and the embedding look-up are left out: they are no matrix products.
    `shapes` is the summary's `provenance.model.shapes`.
    """
    hidden = shapes["hidden_size"]
    layers, moe_layers = shapes["num_hidden_layers"], shapes["num_moe_layers"]
    projections, scored_width = _attention(shapes)
    expert, shared_expert, dense = (
        3 * hidden * shapes[f"{kind}intermediate_size"] for kind in ("", "shared_expert_", "dense_")
    )
    multiply_adds = (
        layers * projections
        + layers * scored_width * (mean_sequence_length + 1) / 2
        + moe_layers * (hidden * shapes["num_experts"] + experts * expert + shared_expert)
        + (layers - moe_layers) * dense
        + hidden * shapes["vocab_size"]
    )
    return 2 * multiply_adds


def _attention(shapes):
    """Multiply–adds of a layer's projections, and those of its scores for each token that is seen."""
    hidden, heads = shapes["hidden_size"], shapes["num_attention_heads"]
    latent = shapes.get("latent_attention")
    if latent is None:
        query_width = heads * shapes["head_dim"]
        key_value_width = shapes["num_key_value_heads"] * shapes["head_dim"]
        return 2 * hidden * query_width + 2 * hidden * key_value_width, 2 * query_width
    key_dim, value_dim = latent["qk_nope_head_dim"] + latent["qk_rope_head_dim"], latent["v_head_dim"]
    query_rank, rank = latent["q_lora_rank"], latent["kv_lora_rank"]
    query = query_rank * (hidden + heads * key_dim) if query_rank else hidden * heads * key_dim
    key_value = hidden * (rank + latent["qk_rope_head_dim"])
    key_value += rank * heads * (latent["qk_nope_head_dim"] + value_dim)
    return query + key_value + heads * value_dim * hidden, heads * (key_dim + value_dim)
