"""Router logits of calibration text under the model's own routing, to which null distributions are fitted."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file

from adaptive_routing.data.samples import PreparedSample
from adaptive_routing.data.tokens import EncodedSequence, encode_text
from adaptive_routing.evaluation.batches import BatchQueue
from adaptive_routing.evaluation.finiteness import check_finite, finite_total
from adaptive_routing.model.packing import Packing, forward_packed, packed_attention
from adaptive_routing.model.patching import RouterPatcher
from adaptive_routing.model.routers import find_rule, native_top_k
from adaptive_routing.routing.topk import Strategy as TopK
from adaptive_routing.system.errors import InputError
from adaptive_routing.system.files import atomic_path
from adaptive_routing.system.tensor_files import sort_metadata

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path
    from typing import Any

    from transformers import PreTrainedTokenizerBase

    from adaptive_routing.model.load import LoadedModel


def encode_calibration_text(
    rows: Iterable[Mapping[str, Any]],
    column: str,
    tokenizer: PreTrainedTokenizerBase,
    max_tokens: int,
    max_length: int,
) -> list[PreparedSample]:
    """Encode the first rows, up to `max_tokens` tokens in total, each row cut to `max_length`.

    Returns:
        list of `samples.PreparedSample` with one sequence each.

    Raises:
        InputError: the column is missing, or there is no text.
    """
    samples, total = [], 0
    for number, row in enumerate(rows):
        if column not in row:
            raise InputError(
                f"null_distribution.calibration.column: {column!r} is missing; "
                f"found {', '.join(map(repr, row))}"
            )
        text = row[column]
        if not isinstance(text, str) or not text.strip():
            continue
        token_ids = encode_text(tokenizer, text)
        kept = token_ids[: min(max_length, max_tokens - total)]
        sequence = EncodedSequence(kept, 1, len(kept), len(kept) < len(token_ids))
        samples.append(PreparedSample(f"calibration_{number}", None, (sequence,)))  # ty: ignore[invalid-argument-type]
        total += len(kept)
        if total >= max_tokens:
            break
    if not samples:
        raise InputError("null_distribution.calibration: the source holds no text")
    return samples


@torch.inference_mode()
def collect_router_logits(
    loaded: LoadedModel, samples: Sequence[PreparedSample], batch_tokens: int
) -> torch.Tensor:
    """Compute router logits of every token and layer under native routing: (T, L, E) in the model's dtype.

    Where something else than logits ranks experts, it is that, in float32: `RouterRule.unmasked_choice`.
    Tokens are in the order of the samples, however they are batched.

    Raises:
        InputError: a single sample does not fit into the device's memory, or router logits are not finite.
    """
    model = loaded.model
    native, rule = TopK(native_top_k(model)), find_rule(model)
    queue = BatchQueue(model, samples, batch_tokens, "a smaller null_distribution.calibration.max_length")
    per_sample: list[Any] = [None] * len(samples)

    @torch.inference_mode()  # applies to the current thread only
    def forward(batch):
        sequences = [samples[index].sequences[0] for index in batch]
        packing = Packing.of([sequence.num_inputs for sequence in sequences], model.device)
        token_ids = [token for sequence in sequences for token in sequence.token_ids]
        forward_packed(model, torch.tensor(token_ids, device=model.device), packing)
        routing = patcher.take_batch()
        scores = routing.router_logits
        if rule.bias is not None:
            scores = torch.stack([rule.unmasked_choice(one, i) for i, one in enumerate(scores.unbind(1))], 1)
        return scores.cpu(), routing.lengths

    with RouterPatcher(model, native) as patcher, packed_attention(model):
        for batch, (logits, lengths) in queue.results(forward):
            check_finite([samples[index] for index in batch], logits, finite_total(logits))
            for index, of_sample in zip(batch, logits.split(lengths), strict=True):
                per_sample[index] = of_sample
    return torch.cat(per_sample)


def save_router_logits(
    path: Path | str, router_logits: torch.Tensor, lengths: Sequence[int], metadata: Mapping[str, Any]
) -> None:
    """Write (T, L, E) router logits as safetensors; the metadata, in JSON, tells how they were made.

    lengths: tokens of each of the Q sequences; `sequence_offsets` (Q + 1,) int64 tells where they begin.
    """
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    with atomic_path(path) as temporary:
        save_file(
            {"router_logits": router_logits.contiguous(), "sequence_offsets": offsets},
            temporary,
            metadata={key: json.dumps(value) for key, value in metadata.items()},
        )
        sort_metadata(temporary)
