"""Controls of an adaptive configuration: as many experts, without what makes it adaptive.

A control of a configuration C takes the expert counts that C had on the same tokens, and gives each
token-layer one of them or a mean of them (`control_counts`); the experts are the largest by choice score, as
C's are. So the difference to C is what the control leaves out:

- `fixed`: every layer has C's mean count over the data set, and
- `layerwise`: every layer has its own mean; each token gets the floor or the ceiling, drawn so that the
  layer's sum is met exactly.
- `shuffled`: the counts of a layer are permuted over its tokens, so that their histogram is C's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray

from adaptive_routing.routing.base import AdaptiveStrategy, ExpertWeighting, Selection, select_first


def control_counts(counts: NDArray[np.integer], kind: str, seed: int) -> NDArray[np.int64]:
    """The expert counts (N, L) int64 of a control, from the configuration's own (N, L).

    Args:
        counts: experts that the configuration selected, of every token and layer.
        kind: "fixed", "layerwise" or "shuffled".
        seed: of the draws; each layer has its own.
    """
    counts = np.asarray(counts, dtype=np.int64)
    num_tokens, num_layers = counts.shape
    *of_layers, of_totals = map(np.random.default_rng, np.random.SeedSequence(seed).spawn(num_layers + 1))
    if kind == "shuffled":
        columns = [draws.permutation(counts[:, layer]) for layer, draws in enumerate(of_layers)]
        return np.stack(columns, axis=1)
    if kind == "layerwise":
        totals = counts.sum(axis=0)
    elif kind == "fixed":
        totals = _spread(counts.sum(), num_layers, of_totals)
    else:
        raise ValueError(f"kind is {kind!r}; allowed are fixed, layerwise and shuffled")
    return np.stack(
        [_spread(*one) for one in zip(totals, [num_tokens] * num_layers, of_layers, strict=True)], 1
    )


def _spread(total, places, draws):
    """Integers (places,) that sum to `total` and differ by 1 at most; which are the larger is drawn."""
    floor, larger = divmod(int(total), places)
    values = np.full(places, floor, dtype=np.int64)
    values[draws.permutation(places)[:larger]] += 1
    return values


@dataclass(frozen=True, eq=False)
class Strategy(AdaptiveStrategy):
    """The experts that rank first, as many as a table says for each token of a data set and layer."""

    counts: torch.Tensor  # (N, L) int64
    max_k: int
    min_k: int = 1
    weighting: ExpertWeighting = field(default_factory=ExpertWeighting)
    needs_rows: ClassVar[bool] = True
    _on_device: dict[torch.device, torch.Tensor] = field(default_factory=dict, repr=False)

    @classmethod
    def from_counts(
        cls, parameters: Mapping[str, Any], routing: Mapping[str, Any], counts: NDArray[np.int64]
    ) -> Self:
        """Build from a control's parameters, the config's `routing` section and `control_counts`' result."""
        weighting = ExpertWeighting.from_settings(routing)
        return cls(torch.from_numpy(counts), int(parameters["max_k"]), int(routing["min_k"]), weighting)

    def select_rows(self, router_logits: torch.Tensor, layer: int, rows: torch.Tensor) -> Selection:
        choice, order = self.ranked(router_logits, layer)
        device = router_logits.device
        if device not in self._on_device:
            self._on_device[device] = self.counts.to(device)
        return select_first(
            self, router_logits, order, self._on_device[device][rows.to(device), layer], choice
        )
