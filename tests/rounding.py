"""Where float rounding, and not the routing strategy, decides which experts are selected."""

import torch

ROUNDING = 1e-5  # float32 router logits of the embedded model differ by less between two ways to batch


def undecided(strategy, router_logits, delta=ROUNDING):
    """(N, L) bool: whether logits (N, L, E) that each move by up to `delta` can select other experts.

    A larger logit never selects fewer experts, so that all logits moved down and all moved up bound the
    count; where both agree, the set is the same unless the logits at the cut lie too close.
    """
    columns = []
    for layer, logits in enumerate(router_logits.float().unbind(1)):
        fewest, counts, most = (
            strategy.select(logits + shift, layer).counts for shift in (-delta, 0.0, delta)
        )
        ordered = logits.sort(descending=True).values
        at_cut = torch.stack([counts - 1, counts], dim=1)  # every strategy here leaves an expert out
        last, next_one = ordered.gather(1, at_cut).unbind(1)
        columns.append((fewest != most) | (last - next_one <= 2 * delta))
    return torch.stack(columns, dim=1)
