"""How much room a log takes, before it is written.

No result depends on this module, and nothing is stale after an edit of it (`jobs.fingerprint`).
"""

from collections.abc import Sequence

from adaptive_routing.routing_log.entries import SAMPLE_TOKENS

# Bytes in the JSON, measured on experiments with the embedded model, in float32, within 4 %.
_PAIR = 14.3  # a selected expert and its weight
_TOKEN = 5.3  # brackets and count of a token in a layer
_LOGIT, _P_VALUE = 10.6, 19.4
_ENTRY = 330  # the rest of a sample's entry, a layer
_COMPRESSION = 2.2  # by zstd, at least


def log_bytes(
    sample_lengths: Sequence[int],
    num_layers: int,
    num_experts: int,
    experts: float,
    itemsize: int,
    has_p_values: bool,
    json_samples: int | None = None,
    router_logits: int | None = None,
    is_compressed: bool = False,
) -> float:
    """Estimate the bytes of an experiment's internal-routing JSON and tensors.

    Args:
        sample_lengths: tokens of each sample.
        num_layers, num_experts: of the model's MoE layers.
        experts: that a token gets in a layer, on average.
        itemsize: bytes of a router logit, and of a weight.
        has_p_values: whether the JSON shows p-values.
        json_samples, router_logits: of how many first samples the log holds these; all unless given.
        is_compressed: whether the JSON is, with zstd.
    """
    tokens, told = sum(sample_lengths), sample_lengths[:json_samples]
    shown = sum(min(length, SAMPLE_TOKENS) for length in told) * num_experts
    text = sum(told) * (_TOKEN + _PAIR * experts) + len(told) * _ENTRY
    text += shown * (_LOGIT + _P_VALUE * has_p_values)
    text /= _COMPRESSION if is_compressed else 1
    with_logits = sum(sample_lengths[:router_logits])
    selection = -(-num_experts // 8)
    tensors = with_logits * num_experts * itemsize + tokens * (1 + selection)
    if with_logits < tokens:  # see `RoutingLogWriter`
        tensors += tokens * (selection + (1 + itemsize) * experts)
    return num_layers * (text + tensors) + 8 * tokens
