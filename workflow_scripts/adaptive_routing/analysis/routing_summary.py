"""What the atlas shows of one experiment, computed from its tensors: atlas/{config}_{dataset}.safetensors.

Almost everything is a sum over tokens; the selection is read in blocks. Names, shapes and dtypes:
docs/architecture.md.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from adaptive_routing.routing_log.sequences import LoggedSequences
from adaptive_routing.system.errors import InputError
from adaptive_routing.system.files import MADE_ANEW, atomic_path
from adaptive_routing.system.tensor_files import TensorFile, sort_metadata

# Unpacked bits of the selection in memory at a time: few enough to stay in the processor's cache.
BLOCK_ELEMENTS = 1 << 20
TYPE_BLOCK_ELEMENTS = 1 << 24  # the same where they are only counted
SHOWN_SAMPLES = 8
SHOWN_TOKENS = 400  # of each sample
FEWEST_OCCURRENCES = 5  # of a token type: a mean of fewer says little
MOST_TYPES = 2000
TYPICAL_TOKENS = 6  # of each expert
# One bin per position up to 3, then two per octave: early positions differ most, late ones have few tokens.
POSITION_EDGES = np.array([0, 1, 2, 3] + [edge << i for i in range(22) for edge in (4, 6)], dtype=np.int64)


def summarize_routing(
    tensors: TensorFile, samples: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, NDArray[Any]], list[str]]:
    """Condense an experiment's tensors (an open `TensorFile`) into a dict of arrays.

    samples: the summary's. Returns (arrays, ids of the samples whose tokens are kept).
    """
    num_layers, num_experts = tensors.shape("router_logits")[1:]
    counts, token_ids = tensors.read("expert_counts"), tensors.read("token_ids")  # (T, L), (T,)
    losses, sequences = tensors.read("token_losses"), LoggedSequences.of_tensors(tensors)
    histogram = np.stack([np.bincount(layer, minlength=num_experts + 1) for layer in counts.T])
    shown = shown_samples(samples)
    types = counts_by_type(counts, token_ids)
    together = co_selection(tensors, num_layers, num_experts)
    by_type = experts_by_type(tensors, num_experts, token_ids, types["type_ids"])
    arrays = {
        "count_histogram": histogram.astype(np.uint32),
        "co_selection": together,
        **counts_by_position(counts, sequences.positions()),
        **types,
        **typical_tokens(by_type, np.einsum("lee->le", together), types, len(token_ids)),
        **losses_by_count(counts, losses, sequences.before(), num_experts),
        **sample_tokens(shown, tensors.read("sample_offsets"), sequences.offsets, token_ids, losses, counts),
    }
    return arrays, [samples[i]["sample_id"] for i in shown]


def co_selection(tensors: TensorFile, num_layers: int, num_experts: int) -> NDArray[np.uint32]:
    """Count the tokens that chose both experts of each pair: (L, E, E) uint32; the diagonal is usage."""
    num_tokens = tensors.shape("selected_experts")[0]
    together = np.zeros((num_layers, num_experts, num_experts), dtype=np.uint32)
    block = max(1, BLOCK_ELEMENTS // (num_layers * num_experts))
    for start in range(0, num_tokens, block):
        packed = tensors.read("selected_experts", start, min(start + block, num_tokens))
        bits = np.unpackbits(packed, axis=-1, bitorder="little")  # (block, L, 8·⌈E/8⌉)
        for layer in range(num_layers):
            # Float products are the fastest, and exact here: a block has fewer than 2²⁴ tokens.
            chosen = bits[:, layer, :num_experts].astype(np.float32)
            together[layer] += (chosen.T @ chosen).astype(np.uint32)
    return together


def experts_by_type(
    tensors: TensorFile, num_experts: int, token_ids: NDArray[np.int32], type_ids: NDArray[np.int32]
) -> NDArray[np.uint32]:
    """Count the tokens of each type, one of `type_ids` (M,), that chose an expert: (L, M, E) uint32."""
    num_tokens, num_layers, _ = tensors.shape("selected_experts")
    width = num_layers * num_experts
    # The place of every token's type among `type_ids`; M for a type that is not there.
    order = np.argsort(type_ids, kind="stable")
    near = np.append(order, len(order))[np.searchsorted(type_ids, token_ids, sorter=order)]
    place = np.where(np.append(type_ids, -1)[near] == token_ids, near, len(order))  # (T,)
    counts = np.zeros(len(type_ids) * width, dtype=np.int64)
    block = max(1, TYPE_BLOCK_ELEMENTS // width)
    for start in range(0, num_tokens, block):
        stop = min(start + block, num_tokens)
        listed = np.flatnonzero(place[start:stop] < len(type_ids))
        packed = tensors.read("selected_experts", start, stop)[listed]
        bits = np.unpackbits(packed, axis=-1, count=num_experts, bitorder="little").view(bool)
        bits = bits.reshape(len(listed), width)
        # A selected expert's place in `bits`, moved from its token's row to that of the token's type.
        moved = (place[start:stop][listed] - np.arange(len(listed))) * width
        pairs = np.flatnonzero(bits) + np.repeat(moved, np.count_nonzero(bits, axis=1))
        counts += np.bincount(pairs, minlength=len(counts))
    return counts.reshape(-1, num_layers, num_experts).swapaxes(0, 1).astype(np.uint32)


def typical_tokens(
    by_type: NDArray[np.uint32],
    usage: NDArray[np.integer],
    types: Mapping[str, NDArray[Any]],
    num_tokens: int,
) -> dict[str, NDArray[Any]]:
    """Find the token types by which each expert is over-represented: what it is chosen for more than usual.

    They are ranked by the standardised difference (n_te − n_t·p_e) / √(n_t·p_e·(1 − p_e)), where expert e was
    chosen by n_te of a type's n_t tokens and by a share p_e of all; only positive ones are listed.

    Args:
        by_type: (L, M, E) tokens of each type that chose an expert.
        usage: (L, E) tokens that chose it.
        types: of `counts_by_type`.
        num_tokens: of the experiment.

    Returns:
        `typical_ids` int32, −1 where there are fewer, `typical_tokens` and `typical_occurrences` uint32: (L,
        E, 6) each, the most typical first.
    """
    occurrences = types["type_tokens"].astype(float)[:, None]  # (M, 1)
    shape = (*usage.shape, TYPICAL_TOKENS)
    ids, tokens, totals = np.full(shape, -1, np.int32), np.zeros(shape, np.uint32), np.zeros(shape, np.uint32)
    listed = min(TYPICAL_TOKENS, len(occurrences))
    for layer, (chosen, used) in enumerate(zip(by_type, usage / num_tokens, strict=True)):
        with np.errstate(divide="ignore", invalid="ignore"):
            excess = (chosen - occurrences * used) / np.sqrt(occurrences * used * (1 - used))  # (M, E)
        # An expert that all tokens choose, or none, has no typical ones. Rounding is no excess.
        excess = np.where(np.isfinite(excess) & (excess > 1e-9), excess, 0.0)
        rows = np.argsort(-excess, axis=0, kind="stable")[:listed]  # (listed, E)
        is_typical = np.take_along_axis(excess, rows, axis=0) > 0
        ids[layer, :, :listed] = np.where(is_typical, types["type_ids"][rows], -1).T
        tokens[layer, :, :listed] = np.where(is_typical, np.take_along_axis(chosen, rows, axis=0), 0).T
        totals[layer, :, :listed] = np.where(is_typical, types["type_tokens"][rows], 0).T
    return {"typical_ids": ids, "typical_tokens": tokens, "typical_occurrences": totals}


def counts_by_position(counts: NDArray[np.integer], position: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    """Sum expert counts (T, L) over the tokens in each bin of positions (T,) in their sequences."""
    bins = np.searchsorted(POSITION_EDGES, position, side="right") - 1
    used = int(bins.max()) + 1
    return {
        "position_edges": POSITION_EDGES[: used + 1].astype(np.int32),
        "position_tokens": np.bincount(bins, minlength=used).astype(np.int32),
        "position_count_sums": _sums_by_group(counts, bins, used),
    }


def counts_by_type(counts: NDArray[np.integer], token_ids: NDArray[np.int32]) -> dict[str, NDArray[Any]]:
    """Sum expert counts (T, L) over the occurrences of each frequent token id, most frequent first."""
    types, inverse, occurrences = np.unique(token_ids, return_inverse=True, return_counts=True)
    order = np.argsort(-occurrences, kind="stable")[:MOST_TYPES]
    order = order[occurrences[order] >= FEWEST_OCCURRENCES]
    return {
        "type_ids": types[order].astype(np.int32),
        "type_tokens": occurrences[order].astype(np.int32),
        "type_count_sums": _sums_by_group(counts, inverse, len(types))[order],
    }


def losses_by_count(
    counts: NDArray[np.integer],
    losses: NDArray[np.float32],
    before: NDArray[np.int64],
    num_experts: int,
) -> dict[str, NDArray[Any]]:
    """Sum losses, and their squares, over the tokens with each expert count.

    First axis: the loss of the token itself, and that of the next token, which the experts chosen for a token
    help to predict; a token that several sequences share has one for each. `loss_*` (2, L, E + 1) are by a
    layer's count; `mean_loss_*` (2, 2E + 1) by the mean count over layers, rounded to the nearest half.
    `before` (T,) is the place of the token before each one.
    """
    scored = np.flatnonzero(np.isfinite(losses))
    predicted = scored[before[scored] >= 0]
    num_layers = counts.shape[1]
    halves = np.rint(2 * counts.sum(axis=1, dtype=np.int64) / num_layers).astype(np.int64)
    by_layer, by_mean = [], []
    for own, tokens in ((scored, scored), (predicted, before[predicted])):
        moments = losses[own].astype(float) ** np.arange(3)[:, None]  # (3, own)
        by_layer.append([_moment_sums(layer[tokens], moments, num_experts + 1) for layer in counts.T])
        by_mean.append(_moment_sums(halves[tokens], moments, 2 * num_experts + 1))
    by_layer, by_mean = np.array(by_layer), np.array(by_mean)  # (2, L, 3, E + 1), (2, 3, 2E + 1)
    return {
        "loss_tokens": by_layer[:, :, 0].astype(np.uint32),
        "loss_sums": by_layer[:, :, 1].copy(),
        "loss_square_sums": by_layer[:, :, 2].copy(),
        "mean_loss_tokens": by_mean[:, 0].astype(np.uint32),
        "mean_loss_sums": by_mean[:, 1].copy(),
        "mean_loss_square_sums": by_mean[:, 2].copy(),
    }


def shown_samples(samples: Sequence[Mapping[str, Any]]) -> list[int]:
    """List the samples whose tokens are kept: the longest in each of `SHOWN_SAMPLES` parts of the data set.

    Generated tokens do not count as length, so that the samples are the same for all configurations.
    """
    lengths = np.array([sample.get("num_prompt_tokens", sample["num_tokens"]) for sample in samples])
    parts = np.array_split(np.arange(len(samples)), min(SHOWN_SAMPLES, len(samples)))
    return [int(part[np.argmax(lengths[part])]) for part in parts]


def sample_tokens(
    shown: Sequence[int],
    sample_offsets: NDArray[np.int64],
    sequence_offsets: NDArray[np.int64],
    token_ids: NDArray[np.int32],
    losses: NDArray[np.float32],
    counts: NDArray[np.integer],
) -> dict[str, NDArray[Any]]:
    """Keep the first `SHOWN_TOKENS` tokens of the shown samples, with their losses and expert counts."""
    kept = [(sample_offsets[i], min(sample_offsets[i + 1], sample_offsets[i] + SHOWN_TOKENS)) for i in shown]
    rows = np.concatenate([np.arange(start, stop) for start, stop in kept])
    starts = np.flatnonzero(np.isin(rows, sequence_offsets[:-1]))
    return {
        "sample_offsets": np.cumsum([0] + [stop - start for start, stop in kept]).astype(np.int32),
        "sample_sizes": np.array([sample_offsets[i + 1] - sample_offsets[i] for i in shown], dtype=np.int32),
        "sequence_starts": starts.astype(np.int32),
        "token_ids": token_ids[rows],
        "token_losses": losses[rows],
        "expert_counts": counts[rows],
    }


def write_routing_summary(
    path: Path | str, head: Mapping[str, Any], arrays: dict[str, NDArray[Any]], sample_ids: list[str]
) -> None:
    """Write a routing summary; the experiment's head and the shown samples' ids are its metadata."""
    metadata = {"head": json.dumps(head), "sample_ids": json.dumps(sample_ids)}
    with atomic_path(path) as temporary:
        save_file(arrays, temporary, metadata=metadata)
        sort_metadata(temporary)


def read_routing_summary(path: Path | str) -> tuple[dict[str, Any], dict[str, NDArray[Any]], list[str]]:
    """Read a routing summary: (head, arrays, ids of the shown samples); `InputError` if it is not one."""
    with TensorFile(path) as file:
        if "co_selection" not in file:
            raise InputError(f"{path} is not a summary of the routing atlas; {MADE_ANEW}.")
        arrays = {name: file.read(name) for name in file.keys()}  # noqa: SIM118 -- not a dict
        return file.metadata_json("head"), arrays, file.metadata_json("sample_ids")


def _sums_by_group(counts, group, num_groups):
    """Sum counts (T, L) over the tokens in each group: (groups, L) uint32."""
    sums = [np.bincount(group, weights=layer, minlength=num_groups) for layer in counts.T]
    return np.stack(sums, axis=1).astype(np.uint32)


def _moment_sums(count, moments, num_counts):
    """Sum moments (3, N) over the tokens with each count: (3, num_counts)."""
    return [np.bincount(count, weights=moment, minlength=num_counts) for moment in moments]
