"""What the atlas shows of one experiment, from its tensors: atlas/{config}_{dataset}.safetensors.

Almost everything is a sum over tokens, and of the selection a block at a time is read. Names, shapes and
dtypes: docs/architecture.md.
"""

import json

import numpy as np
from safetensors.numpy import save_file

from adaptive_routing.system.files import atomic_path
from adaptive_routing.system.tensor_files import TensorFile, sort_metadata

# Unpacked bits of the selection held at a time: few enough to stay in the processor's cache.
BLOCK_ELEMENTS = 1 << 20
SHOWN_SAMPLES = 8
SHOWN_TOKENS = 400  # of each sample
FEWEST_OCCURRENCES = 5  # of a token's type: the mean of fewer says little
MOST_TYPES = 2000
# Exact up to 4, then two bins a doubling: early positions differ most, and late ones have few tokens.
POSITION_EDGES = np.array([0, 1, 2, 3] + [edge << i for i in range(22) for edge in (4, 6)], dtype=np.int64)


def summarize_routing(tensors, samples):
    """Condense an experiment's tensors (an open `TensorFile`) into a dict of arrays.

    samples: those of the summary. Returns (arrays, ids of the samples whose tokens are kept).
    """
    num_layers, num_experts = tensors.shape("router_logits")[1:]
    counts, token_ids = tensors.read("expert_counts"), tensors.read("token_ids")  # (T, L), (T,)
    losses, sequences = tensors.read("token_losses"), tensors.read("sequence_offsets")
    histogram = np.stack([np.bincount(layer, minlength=num_experts + 1) for layer in counts.T])
    shown = shown_samples(samples)
    arrays = {
        "count_histogram": histogram.astype(np.uint32),
        "co_selection": co_selection(tensors, num_layers, num_experts),
        **counts_by_position(counts, sequences),
        **counts_by_type(counts, token_ids),
        **losses_by_count(counts, losses, sequences, num_experts),
        **sample_tokens(shown, tensors.read("sample_offsets"), sequences, token_ids, losses, counts),
    }
    return arrays, [samples[i]["sample_id"] for i in shown]


def co_selection(tensors, num_layers, num_experts):
    """Count the tokens that chose both experts of each pair: (L, E, E) uint32; the diagonal is usage."""
    num_tokens = tensors.shape("selected_experts")[0]
    together = np.zeros((num_layers, num_experts, num_experts), dtype=np.uint32)
    block = max(1, BLOCK_ELEMENTS // (num_layers * num_experts))
    for start in range(0, num_tokens, block):
        packed = tensors.read("selected_experts", start, min(start + block, num_tokens))
        bits = np.unpackbits(packed, axis=-1, bitorder="little")  # (block, L, 8·⌈E/8⌉)
        for layer in range(num_layers):
            # Processors are fastest with floats, which are exact here: a block has fewer than 2²⁴ tokens.
            chosen = bits[:, layer, :num_experts].astype(np.float32)
            together[layer] += (chosen.T @ chosen).astype(np.uint32)
    return together


def counts_by_position(counts, sequence_offsets):
    """Sum expert counts (T, L) over the tokens of each range of positions in their sequences."""
    lengths = np.diff(sequence_offsets)
    position = np.arange(len(counts)) - np.repeat(sequence_offsets[:-1], lengths)
    bins = np.searchsorted(POSITION_EDGES, position, side="right") - 1
    used = int(bins.max()) + 1
    return {
        "position_edges": POSITION_EDGES[: used + 1].astype(np.int32),
        "position_tokens": np.bincount(bins, minlength=used).astype(np.int32),
        "position_count_sums": _sums_by_group(counts, bins, used),
    }


def counts_by_type(counts, token_ids):
    """Sum expert counts (T, L) over the occurrences of each frequent token id, most frequent first."""
    types, inverse, occurrences = np.unique(token_ids, return_inverse=True, return_counts=True)
    order = np.argsort(-occurrences, kind="stable")[:MOST_TYPES]
    order = order[occurrences[order] >= FEWEST_OCCURRENCES]
    return {
        "type_ids": types[order].astype(np.int32),
        "type_tokens": occurrences[order].astype(np.int32),
        "type_count_sums": _sums_by_group(counts, inverse, len(types))[order],
    }


def losses_by_count(counts, losses, sequence_offsets, num_experts):
    """Sum losses, and their squares, over the tokens of each expert count.

    First axis: the loss of the token itself, and that of the token after it, which is what the experts chosen
    for a token work on. `loss_*` (2, L, E + 1) are by a layer's count; `mean_loss_*` (2, 2E + 1) by the
    count's mean over the layers, rounded to the nearest half.
    """
    following = np.append(losses[1:], np.float32(np.nan))
    following[sequence_offsets[1:] - 1] = np.nan  # the next token is another sequence's
    num_layers = counts.shape[1]
    halves = np.rint(2 * counts.sum(axis=1, dtype=np.int64) / num_layers).astype(np.int64)
    by_layer, by_mean = [], []
    for values in (losses, following):
        scored = np.isfinite(values)
        moments = values[scored].astype(float) ** np.arange(3)[:, None]  # (3, scored)
        by_layer.append([_moment_sums(layer[scored], moments, num_experts + 1) for layer in counts.T])
        by_mean.append(_moment_sums(halves[scored], moments, 2 * num_experts + 1))
    by_layer, by_mean = np.array(by_layer), np.array(by_mean)  # (2, L, 3, E + 1), (2, 3, 2E + 1)
    return {
        "loss_tokens": by_layer[:, :, 0].astype(np.uint32),
        "loss_sums": by_layer[:, :, 1].copy(),
        "loss_square_sums": by_layer[:, :, 2].copy(),
        "mean_loss_tokens": by_mean[:, 0].astype(np.uint32),
        "mean_loss_sums": by_mean[:, 1].copy(),
        "mean_loss_square_sums": by_mean[:, 2].copy(),
    }


def shown_samples(samples):
    """List the samples whose tokens are kept: the longest in each of `SHOWN_SAMPLES` parts of the data set.

    What was generated does not count as length, so that all configurations have the same ones.
    """
    lengths = np.array([sample.get("num_prompt_tokens", sample["num_tokens"]) for sample in samples])
    parts = np.array_split(np.arange(len(samples)), min(SHOWN_SAMPLES, len(samples)))
    return [int(part[np.argmax(lengths[part])]) for part in parts]


def sample_tokens(shown, sample_offsets, sequence_offsets, token_ids, losses, counts):
    """Keep the first `SHOWN_TOKENS` tokens of the shown samples, with what was routed and lost at each."""
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


def write_summary(path, head, arrays, sample_ids):
    """Write a summary with the experiment's head and the shown samples' ids as metadata."""
    metadata = {"head": json.dumps(head), "sample_ids": json.dumps(sample_ids)}
    with atomic_path(path) as temporary:
        save_file(arrays, temporary, metadata=metadata)
        sort_metadata(temporary)


def read_summary(path):
    """Read a summary: (head, arrays, ids of the shown samples); `InputError` when it is none."""
    with TensorFile(path) as file:
        file.shape("co_selection")  # other tensor files have none
        arrays = {name: file.read(name) for name in file.keys()}  # noqa: SIM118 -- not a dict
        return file.metadata_json("head"), arrays, file.metadata_json("sample_ids")


def _sums_by_group(counts, group, num_groups):
    """Sum counts (T, L) over the tokens of each group: (groups, L) uint32."""
    sums = [np.bincount(group, weights=layer, minlength=num_groups) for layer in counts.T]
    return np.stack(sums, axis=1).astype(np.uint32)


def _moment_sums(count, moments, num_counts):
    """Sum moments (3, N) over the tokens of each count: (3, num_counts)."""
    return [np.bincount(count, weights=moment, minlength=num_counts) for moment in moments]
