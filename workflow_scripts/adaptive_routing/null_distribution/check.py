"""Checks of a null distribution on calibration text held out from its fit.

Per layer: whether p-values of the held-out router logits are uniform, how many experts BH would select (k*,
before it is clamped), and how much of that the token's mean logit decides.

If the E logits of a token were independent draws from the null distribution, BH at level α would select none
with probability exactly 1 − α (Simes 1986, "An improved Bonferroni procedure for multiple tests of
significance"). Logits of a token are dependent; the measured share stands beside that number.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from adaptive_routing.null_distribution.estimate import centered
from adaptive_routing.null_distribution.table import NullDistribution
from adaptive_routing.system.errors import InputError
from adaptive_routing.system.files import atomic_path
from adaptive_routing.system.tensor_files import sort_metadata

HELD_OUT = 0.25  # of the calibration tokens
LEVELS = np.linspace(0.0, 1.0, 201)  # where the distribution of p-values is tabulated
P_001 = 2  # the level 0.01
# All logits of a token; without its t largest and t smallest, which the null distribution is of; without
# the k largest, which the model selects.
POPULATIONS = ("all", "kept", "unselected")
BINS = 20  # of tokens, by their mean logit


@dataclass(frozen=True)
class NullCheck:
    """What the check found.

    Attributes:
        rows: one dict per layer and level α, with the keys `COLUMNS`; one per layer where there is no level.
        curves: (3, L, 201) shares of p-values up to `LEVELS`, in the order of `POPULATIONS`.
        count_histogram: (A, L, E + 1) tokens with each k*.
        bin_mean_logit: (L, B) mean logit of each bin of tokens, ascending; B is 20, or fewer with few tokens.
        bin_mean_count: (A, L, B) mean k* of these tokens.
        alphas: (A,) the levels.
    """

    rows: list[dict[str, Any]]
    curves: NDArray[np.float64]
    count_histogram: NDArray[np.int64]
    bin_mean_logit: NDArray[np.float64]
    bin_mean_count: NDArray[np.float64]
    alphas: NDArray[np.float64]


COLUMNS = (
    "layer",
    "alpha",
    "tokens",
    "trim",
    "distance_all",
    "distance_kept",
    "distance_unselected",
    "share_p_001_kept",
    "share_zero",
    "share_zero_if_independent",
    "share_below_min_k",
    "share_one",
    "share_all_experts",
    "mean_count",
    "std_count",
    "r2_mean_logit",
)


def held_out_from(sequence_offsets: NDArray[np.integer]) -> int:
    """The first token held out: the last quarter of the tokens, from the nearest beginning of a sequence.

    With a single sequence its last quarter is held out. sequence_offsets: (Q + 1,), the first is 0.

    Raises:
        InputError: there is only one token.
    """
    tokens = int(sequence_offsets[-1])
    aim = (1 - HELD_OUT) * tokens
    inner = sequence_offsets[1:-1]
    start = int(inner[np.abs(inner - aim).argmin()]) if len(inner) else int(aim)
    if not 0 < start < tokens:
        raise InputError(
            f"The calibration text has {tokens} token; a check of the null distribution needs 2 at least: "
            "use more calibration text."
        )
    return start


def check(
    null_distribution: NullDistribution,
    router_logits: NDArray[np.floating],
    alphas: Sequence[float],
    trim: int,
    top_k: int,
    min_k: int,
) -> NullCheck:
    """Check a null distribution on router logits (T, L, E) of text that it was not fitted to.

    Args:
        alphas: the levels of BH.
        trim: how many of each token's largest and smallest logits the null distribution is not of.
        top_k: how many experts the model itself selects, those with the largest logits.
        min_k: how many BH selects at least.
    """
    num_tokens, num_layers, num_experts = router_logits.shape
    num_bins = min(BINS, num_tokens)
    curves = np.empty((len(POPULATIONS), num_layers, len(LEVELS)))
    histogram = np.zeros((len(alphas), num_layers, num_experts + 1), np.int64)
    bin_logits = np.empty((num_layers, num_bins))
    bin_counts = np.empty((len(alphas), num_layers, num_bins))
    rows = []
    for layer in range(num_layers):
        logits = router_logits[:, layer].astype(np.float64)  # (T, E)
        p_values = sorted_p_values(null_distribution, logits, layer)
        distances = {}
        for i, of_tokens in enumerate(_populations(p_values, trim, top_k)):
            distances[f"distance_{POPULATIONS[i]}"], curves[i, layer] = uniformity(of_tokens)
        mean_logits = logits.mean(axis=1)
        bins = np.array_split(np.argsort(mean_logits, kind="stable"), num_bins)
        bin_logits[layer] = [mean_logits[tokens].mean() for tokens in bins]
        head = {"layer": layer, "alpha": None, "tokens": num_tokens, "trim": trim, **distances}
        head["share_p_001_kept"] = curves[POPULATIONS.index("kept"), layer, P_001]
        if not len(alphas):
            rows.append(dict.fromkeys(COLUMNS) | head)
        for i, alpha in enumerate(alphas):
            counts = rejections(p_values, alpha)
            histogram[i, layer] = np.bincount(counts, minlength=num_experts + 1)
            bin_counts[i, layer] = [counts[tokens].mean() for tokens in bins]
            rows.append(
                head
                | {
                    "alpha": float(alpha),
                    "share_zero": (counts == 0).mean(),
                    "share_zero_if_independent": 1.0 - alpha,
                    "share_below_min_k": (counts < min_k).mean(),
                    "share_one": (counts == 1).mean(),
                    "share_all_experts": (counts == num_experts).mean(),
                    "mean_count": counts.mean(),
                    "std_count": counts.std(),
                    "r2_mean_logit": explained_variance(counts, mean_logits),
                }
            )
    return NullCheck(rows, curves, histogram, bin_logits, bin_counts, np.array(alphas, np.float64))


def sorted_p_values(
    null_distribution: NullDistribution, router_logits: NDArray[np.float64], layer: int
) -> NDArray[np.float64]:
    """p-values (T, E) of one layer's router logits (T, E), ascending along each token's experts.

    They are those of `NullDistribution.p_values`, without torch.
    """
    tested = centered(router_logits) if null_distribution.center == "mean" else router_logits
    descending = -np.sort(-tested, axis=-1)
    survival = null_distribution.survival[layer]  # (G,)
    grid = null_distribution.x0[layer] + null_distribution.dx[layer] * np.arange(len(survival))
    return np.interp(descending, grid, survival)


def _populations(p_values, trim, top_k):
    """The p-values of each of `POPULATIONS`, from a token's ascending ones (T, E)."""
    num_experts = p_values.shape[-1]
    return p_values, p_values[:, trim : num_experts - trim], p_values[:, min(top_k, num_experts - 1) :]


def uniformity(p_values: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
    """Kolmogorov's distance between p-values and uniform ones, and their shares up to `LEVELS` (201,)."""
    ascending = np.sort(p_values, axis=None)
    ranks = np.arange(len(ascending) + 1) / len(ascending)
    distance = max((ranks[1:] - ascending).max(), (ascending - ranks[:-1]).max())
    return float(distance), np.searchsorted(ascending, LEVELS, side="right") / len(ascending)


def rejections(p_values: NDArray[np.float64], alpha: float) -> NDArray[np.int64]:
    """k* of each token (T,): the largest k with p_(k) ≤ k·α/E, 0 if none, from ascending p-values (T, E)."""
    num_experts = p_values.shape[-1]
    ranks = np.arange(1, num_experts + 1)
    return ((p_values * (num_experts / ranks) <= alpha) * ranks).max(axis=-1)


def explained_variance(counts: NDArray[np.integer], mean_logits: NDArray[np.float64]) -> float | None:
    """R² of a straight line of counts (T,) on mean logits (T,); None where either is constant."""
    if np.ptp(counts) == 0 or np.ptp(mean_logits) <= 1e-12 * np.abs(mean_logits).max():
        return None
    x, y = mean_logits - mean_logits.mean(), counts - counts.mean()
    # Sums of products, not np.dot, whose last bits depend on the number of threads.
    return float((x * y).sum() ** 2 / ((x * x).sum() * (y * y).sum()))


def save_check(
    found: NullCheck, table_path: Path | str, curves_path: Path | str, metadata: Mapping[str, Any]
) -> None:
    """Write the rows as CSV and everything else as safetensors, with the metadata as JSON in its header."""
    with atomic_path(table_path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(
            {key: float(value) if isinstance(value, np.floating) else value for key, value in row.items()}
            for row in found.rows
        )
    with atomic_path(curves_path) as temporary:
        tensors = {
            "levels": LEVELS,
            "curves": found.curves,
            "alphas": found.alphas,
            "count_histogram": found.count_histogram,
            "bin_mean_logit": found.bin_mean_logit,
            "bin_mean_count": found.bin_mean_count,
        }
        save_file(tensors, temporary, metadata={key: json.dumps(value) for key, value in metadata.items()})
        sort_metadata(temporary)
