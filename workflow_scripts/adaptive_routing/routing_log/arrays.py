"""The tensors of a forward pass as the arrays that the log is made of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from numpy.typing import NDArray

from adaptive_routing.routing_log.entries import SAMPLE_TOKENS, LoggedRouting, tokens_of

if TYPE_CHECKING:
    from adaptive_routing.routing.base import RoutingStrategy
    from adaptive_routing.routing.batch import BatchRouting
    from adaptive_routing.routing_log.entries import LoggedSample


def logged_routing(
    samples: Sequence[LoggedSample],
    routing: BatchRouting,
    strategy: RoutingStrategy,
    with_entries: Iterable[int] | None = None,
) -> LoggedRouting:
    """The arrays that the log's entries are made of.

    Args:
        samples: `LoggedSample`s.
        routing: `BatchRouting` of all their tokens, on the CPU.
        strategy: gives the p-values.
        with_entries: places of the samples that get entries; all unless given.
    """
    lengths = [sum(one.lengths) for one in samples]
    chosen = range(len(samples)) if with_entries is None else with_entries
    first = tokens_of(lengths, chosen, SAMPLE_TOKENS)
    shown = routing.router_logits[torch.from_numpy(first)].float()  # (F, L, E)
    p_values = [strategy.p_values(shown[:, layer], layer) for layer in range(shown.shape[1])]
    # Adaptive strategies leave most slots unused by any token; the text has nothing of them.
    slots = max(1, int(routing.counts.max()))
    return LoggedRouting(
        routing.experts[..., :slots].numpy(),
        raw_array(routing.weights[..., :slots]),
        routing.counts.numpy(),
        shown.numpy(),
        None if p_values[0] is None else torch.stack(p_values, 1).numpy(),  # ty: ignore[invalid-argument-type]
    )


def raw_array(tensor: torch.Tensor) -> NDArray[Any]:
    """A tensor as NumPy, bfloat16 as its bits."""
    tensor = tensor.contiguous()
    return tensor.view(torch.uint16).numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()
