"""The tensors of a forward pass as the arrays that the log is made of."""

import torch

from adaptive_routing.routing_log.entries import LoggedRouting, first_tokens


def logged_routing(samples, routing, strategy):
    """The arrays that the log's entries are made of.

    Args:
        samples: `LoggedSample`s.
        routing: `BatchRouting` of all their tokens, on the CPU.
        strategy: gives the p-values.
    """
    shown = routing.router_logits[torch.from_numpy(first_tokens(samples))].float()  # (F, L, E)
    p_values = [strategy.p_values(shown[:, layer], layer) for layer in range(shown.shape[1])]
    return LoggedRouting(
        routing.experts.numpy(),
        raw_array(routing.weights),
        routing.counts.numpy(),
        shown.numpy(),
        None if p_values[0] is None else torch.stack(p_values, 1).numpy(),
    )


def raw_array(tensor):
    """A tensor as NumPy, bfloat16 as its bits."""
    tensor = tensor.contiguous()
    return tensor.view(torch.uint16).numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()
