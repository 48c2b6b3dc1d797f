"""Where a configuration and its fixed control differ: paired losses of the same predicted tokens, by bins.

Both configurations predict the same tokens, so that every token gives a difference of losses in nats.
Tokens are binned by what stands in `BY`. A bin's mean difference is a ratio of sums over the clusters of
samples that have tokens in it, with the clustered standard error and t-test of `analysis/statistics.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from adaptive_routing.analysis import statistics
from adaptive_routing.analysis.routing_summary import POSITION_EDGES
from adaptive_routing.routing_log.sequences import LoggedSequences
from adaptive_routing.system.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator

    from numpy.typing import NDArray

    from adaptive_routing.system.tensor_files import TensorFile

POSITION, FREQUENCY, WORD_START, BASELINE_LOSS, EXPERTS = (
    "position",
    "frequency",
    "word_start",
    "baseline_loss",
    "experts",
)
# What tokens are binned by, in words.
BY = {
    POSITION: "position in the sequence, from 0",
    FREQUENCY: "occurrences of the token in the evaluated text",
    WORD_START: "whether the token begins a word",
    BASELINE_LOSS: "the baseline's loss of the token, in nats",
    EXPERTS: "experts per layer where the token is predicted, one position before it",
}
WHERE_COLUMNS = [
    "config",
    "dataset",
    "by",
    "bin_low",
    "bin_high",
    "label",
    "tokens",
    "clusters",
    "difference",
    "stderr",
    "ci_low",
    "ci_high",
    "p_value",
    "p_holm",
]
QUANTILES = 4


@dataclass(frozen=True)
class TokenDifferences:
    """The predicted tokens of a data set under a configuration and its control, in the order of the text.

    Attributes:
        differences: (N,) loss under the configuration − loss under the control, in nats.
        clusters: (N,) cluster of the token's sample, from 0.
        position: (N,) position in the token's sequence, from 0.
        frequency: (N,) occurrences of the token's id among all tokens of the data set.
        token_ids: (N,) ids of the predicted tokens.
        baseline_loss: (N,) loss under the baseline.
        experts: (N,) the configuration's expert count, mean over layers, at the position before the token's,
            whose output predicts it.
    """

    differences: NDArray[np.float64]
    clusters: NDArray[np.int64]
    position: NDArray[np.int64]
    frequency: NDArray[np.int64]
    token_ids: NDArray[np.int64]
    baseline_loss: NDArray[np.float64]
    experts: NDArray[np.float64]


def token_differences(
    tensors: TensorFile,
    control: TensorFile,
    baseline: TensorFile,
    clusters: Sequence[Hashable] | None = None,
) -> TokenDifferences:
    """Pair the predicted tokens of a configuration with those of its control and of the baseline.

    Args:
        tensors, control, baseline: open tensors files of the routing log, of the same data set.
        clusters: the cluster of each sample (`uncertainty.clusters_of`); None: each is its own.

    Raises:
        InputError: the files hold different tokens, or tokens that were scored in one but not in another.
    """
    token_ids = tensors.read("token_ids")
    losses = tensors.read("token_losses").astype(np.float64)
    scored = ~np.isnan(losses)
    others = []
    for other in (control, baseline):
        own = other.read("token_losses").astype(np.float64)
        same_tokens = np.array_equal(other.read("token_ids"), token_ids)
        if not same_tokens or not np.array_equal(~np.isnan(own), scored):
            raise InputError(
                f"{tensors.path} and {other.path} hold different tokens, so that their losses cannot be "
                "paired; delete both and run again"
            )
        others.append(own[scored])
    sample_sizes = np.diff(tensors.read("sample_offsets"))
    if clusters is None:
        numbers = np.arange(len(sample_sizes))
    else:
        first = {cluster: number for number, cluster in enumerate(dict.fromkeys(clusters))}
        numbers = np.array([first[cluster] for cluster in clusters], dtype=np.int64)
    if len(numbers) != len(sample_sizes):
        raise InputError(
            f"{tensors.path} holds {len(sample_sizes)} samples, its summary {len(numbers)}; delete both and "
            "run again"
        )
    sequences = LoggedSequences.of_tensors(tensors)
    _, types, occurrences = np.unique(token_ids, return_inverse=True, return_counts=True)
    experts = tensors.read("expert_counts").mean(axis=1)  # (T,)
    before = sequences.before()[scored]  # a scored token always has one before it
    return TokenDifferences(
        differences=losses[scored] - others[0],
        clusters=np.repeat(numbers, sample_sizes)[scored],
        position=sequences.positions()[scored],
        frequency=occurrences[types][scored],
        token_ids=token_ids[scored].astype(np.int64),
        baseline_loss=others[1],
        experts=experts[before],
    )


def begins_word(texts: Mapping[int, str]) -> NDArray[np.bool_]:
    """Whether each token id begins a word: whether its text starts with white space.

    texts: {token id: its text with leading spaces} (`atlas.tokens.token_texts`). Returns an array indexed by
    id, False for ids without a text. In languages without spaces few tokens begin a word by this rule.
    """
    starts = np.zeros(max(texts, default=-1) + 1, dtype=bool)
    for token_id, text in texts.items():
        starts[token_id] = text[:1].isspace()
    return starts


def where_table(
    studied: Iterable[tuple[str, str, TokenDifferences]], word_starts: NDArray[np.bool_] | None = None
) -> pd.DataFrame:
    """Make one row per configuration, data set and bin.

    studied: (configuration, data set, `TokenDifferences`), one after another, so that an iterator needs
    the memory of one. word_starts: whether each token id begins a word (`begins_word`); None leaves these
    bins out.

    Bins hold `bin_low` ≤ value < `bin_high`; the last one of quartiles includes its upper end. Positions
    have two bins per octave; frequency, the baseline's loss and expert counts are cut at the quartiles of
    the predicted tokens, into fewer bins where quartiles coincide.

    All rows are one family: Holm's correction and the simultaneous intervals are over all of them. A bin
    whose tokens lie in a single cluster has no test.
    """
    rows, family = [], []
    for config, dataset, tokens in studied:
        for by, edges, bins in _binnings(tokens, word_starts):
            for number in range(len(edges) - 1):
                chosen = bins == number
                if chosen.any():
                    paired = _paired(tokens.differences[chosen], tokens.clusters[chosen])
                    family.append(paired)
                    low, high = float(edges[number]), float(edges[number + 1])
                    last = number == len(edges) - 2
                    rows.append(
                        {
                            "config": config,
                            "dataset": dataset,
                            "by": by,
                            "bin_low": low,
                            "bin_high": high,
                            "label": _label(by, low, high, last),
                            "tokens": paired.samples,
                            "clusters": paired.clusters,
                            "difference": paired.difference,
                            "stderr": paired.stderr,
                            "p_value": paired.p_value,
                        }
                    )
    corrected, intervals = statistics.simultaneous_intervals(family)
    for row, p_holm, (low, high) in zip(rows, corrected, intervals, strict=True):
        row |= {"p_holm": p_holm, "ci_low": low, "ci_high": high}
    return pd.DataFrame(rows, columns=WHERE_COLUMNS)


def _binnings(tokens, word_starts) -> Iterator[tuple[str, NDArray, NDArray]]:
    """Yield (by, edges, bin of each token)."""
    yield POSITION, POSITION_EDGES, _bins(tokens.position, POSITION_EDGES)
    for by, values in (
        (FREQUENCY, tokens.frequency),
        (BASELINE_LOSS, tokens.baseline_loss),
        (EXPERTS, tokens.experts),
    ):
        edges = np.unique(np.quantile(values, np.linspace(0, 1, QUANTILES + 1)))
        if by == FREQUENCY:
            edges = np.unique(np.ceil(edges))  # counts: a bin starts at a whole number
        if len(edges) > 1:
            yield by, edges, np.minimum(_bins(values, edges), len(edges) - 2)
    if word_starts is not None:
        known = tokens.token_ids < len(word_starts)
        starts = known & word_starts[np.where(known, tokens.token_ids, 0)]
        yield WORD_START, np.array([0, 1, 2]), starts.astype(int)


def _bins(values, edges):
    return np.searchsorted(edges, values, side="right") - 1


def _paired(differences, clusters):
    """The mean difference of a bin's tokens, as a ratio of the clusters' sums to their numbers of tokens."""
    tokens = np.bincount(clusters)
    sums = np.bincount(clusters, differences)[tokens > 0]
    tokens = tokens[tokens > 0]
    paired = statistics.paired_losses(np.zeros(len(sums)), sums, tokens.tolist())
    return statistics.PairedDifference(
        paired.difference,
        paired.stderr,
        paired.p_value,
        statistics.CLUSTERED_RATIO_T_TEST,
        len(differences),
        paired.clusters,
    )


def _label(by, low, high, last):
    """A bin in words."""
    if by == WORD_START:
        return "begins a word" if low else "inside a word"
    if by in (POSITION, FREQUENCY):
        end = high if last and by == FREQUENCY else high - 1
        return f"{low:,.0f}" if low == end else f"{low:,.0f} to {end:,.0f}"
    return f"{low:.2f} to {high:.2f}"
