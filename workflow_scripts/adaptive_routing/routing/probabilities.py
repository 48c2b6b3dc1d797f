"""Router probabilities, by which several strategies tell how many experts a token gets."""

import torch


def router_probabilities(router_logits: torch.Tensor, choice: torch.Tensor) -> torch.Tensor:
    """Softmax over all E logits, 0 for an expert that the token does not see: (T, E) float32.

    It is a softmax whatever the router's own scores are, so that probabilities of several models compare.
    What a router does not let a token see gets no probability, and the others keep theirs, as in DeepSeek-V2.

    Args:
        router_logits: (T, E) of any float dtype.
        choice: the scores (T, E) that rank experts, `ExpertWeighting.choice`: −∞ for experts not seen.
    """
    return router_logits.float().softmax(-1) * (choice > -torch.inf)
