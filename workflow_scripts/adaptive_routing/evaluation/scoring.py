"""Runs batches of token sequences through the model and computes log-likelihoods of the scored tokens.

The language-model head runs at scored positions only. Batches are packed and no sequence sees another, but
for the beginning that they share, so scores do not depend on how samples are batched, apart from float
rounding.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from adaptive_routing.data.tasks import SequenceScore
from adaptive_routing.evaluation.arrangement import Arranger, PassInputs
from adaptive_routing.evaluation.batches import BatchQueue
from adaptive_routing.evaluation.finiteness import check_finite, check_scores, finite_total
from adaptive_routing.model.devices import Clock, HostCopies, devices_of
from adaptive_routing.model.fused import score_targets
from adaptive_routing.model.head import head_logits
from adaptive_routing.model.memory import run_alone
from adaptive_routing.model.packing import forward_packed, packed_attention
from adaptive_routing.routing.batch import BatchRouting

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

    from transformers import PreTrainedModel

    from adaptive_routing.data.samples import PreparedSample
    from adaptive_routing.data.tokens import EncodedSequence
    from adaptive_routing.model.patching import RouterPatcher

_warm = weakref.WeakSet()  # models that have run in this process
_SHORTER = "for wikitext rows a smaller evaluation.max_length,"
_HEAD_ROWS = 2048  # positions whose logits are in memory at once: 2048 x 50,304 float32 are 0.4 GB


@dataclass(frozen=True)
class BatchScores:
    """Scores of a batch's sequences. Tokens that a sequence shares belong to one of those that do.

    Attributes:
        scores: `SequenceScore` per sequence.
        token_losses: per sequence, (its own tokens,) float32: −ln p of each token given those before it,
            NaN where it was not scored.
        greedy_tokens: per sequence, (its own tokens,) int64: the most likely next token at each position;
            None unless requested.
        seconds: synchronised time of the forward pass and the head.
    """

    scores: list[SequenceScore]
    token_losses: Sequence[torch.Tensor]
    greedy_tokens: Sequence[torch.Tensor] | None
    seconds: float


@dataclass(frozen=True)
class SampleResult:
    """The results of one sample, its sequences one after another.

    Attributes:
        index: the sample's index in its data set.
        scores: `SequenceScore` per sequence.
        greedy_tokens: (its own tokens,) int64, or None if not requested.
        lengths: its own tokens, per sequence.
        details: further entries of the sample in the summary.
    """

    index: int
    scores: list[SequenceScore]
    greedy_tokens: torch.Tensor | None
    lengths: tuple[int, ...]
    details: dict[str, Any]


@dataclass(frozen=True)
class BatchResult:
    """The results of a batch of samples, one after another, on the CPU.

    Attributes:
        seconds: time of the forward pass and the head. Where passes run side by side, overlapping time counts
            once.
        samples: `SampleResult`s.
        routing: `BatchRouting` of all N tokens.
        token_ids: (N,) int64.
        token_losses: (N,) float32, as in `BatchScores`.
    """

    seconds: float
    samples: list[SampleResult]
    routing: BatchRouting
    token_ids: torch.Tensor
    token_losses: torch.Tensor


def score_samples(
    model: PreTrainedModel,
    patcher: RouterPatcher,
    samples: Sequence[PreparedSample],
    batch_tokens: int,
    num_with_greedy_tokens: int,
    workers: int | None = None,
    arranger: Arranger | None = None,
) -> Iterator[BatchResult]:
    """Score samples batch by batch under an active patcher.

    A batch that does not fit into the device's memory is split into smaller ones.

    Args:
        model: a causal language model of transformers.
        patcher: an active `RouterPatcher` on it.
        samples: list of `samples.PreparedSample`.
        batch_tokens: the largest number of tokens in a batch.
        num_with_greedy_tokens: for how many of the first samples greedy tokens are returned.
        workers: number of passes side by side, as in `BatchQueue`.
        arranger: an `Arranger` of the same, where there is one already.

    Yields:
        `BatchResult`, batch by batch.

    Raises:
        InputError: a single sample does not fit into the device's memory, or what the model computes is not
            finite.
    """
    arranger = arranger or Arranger(model, samples, patcher)
    queue = BatchQueue(model, samples, batch_tokens, _SHORTER, workers, arranger.separately)

    def begin(batch):
        return _Pass(model, arranger.inputs(batch), patcher, min(batch) < num_with_greedy_tokens)

    with packed_attention(model):
        if model not in _warm:
            # A process's first pass loads code and allocates memory, which must not count as forward time.
            queue.warm_up(lambda batch: begin(batch).finish())
            _warm.add(model)
        # Nor must what a strategy computes only once, such as thresholds.
        score_alone(model, samples, queue.last_index(), arranger, patcher)
        covered = 0.0
        for batch, forward_pass in queue.results(begin):
            scored, routing = forward_pass.finish()
            seconds, covered = forward_pass.clock.seconds_after(covered)
            yield _batch_result(
                batch, forward_pass, scored, routing, seconds, samples, num_with_greedy_tokens
            )


def score_alone(
    model: PreTrainedModel,
    samples: Sequence[PreparedSample],
    index: int,
    arranger: Arranger,
    patcher: RouterPatcher,
    with_greedy_tokens: bool = False,
) -> tuple[BatchScores, BatchRouting]:
    """Score one of the samples that an arranger is of, in a pass of its own.

    Returns (`BatchScores`, `BatchRouting` on the CPU); InputError if it does not fit into memory.
    """

    def score():
        return _Pass(model, arranger.inputs([index]), patcher, with_greedy_tokens).finish()

    return run_alone(model, samples[index], score, _SHORTER)


def _batch_result(batch, forward_pass, scored, routing, seconds, samples, num_with_greedy_tokens):
    results, first = [], 0
    for index in batch:
        of_sample = slice(first, first + len(samples[index].sequences))
        greedy_tokens = torch.cat(scored.greedy_tokens[of_sample]) if index < num_with_greedy_tokens else None
        lengths = routing.lengths[of_sample]
        results.append(SampleResult(index, scored.scores[of_sample], greedy_tokens, lengths, {}))
        first = of_sample.stop
    check_finite([samples[index] for index in batch], routing.router_logits, forward_pass.logits_total)
    for result in results:
        check_scores(samples[result.index], result.scores, routing.router_logits.dtype)
    token_losses = torch.cat(scored.token_losses)
    return BatchResult(seconds, results, routing, forward_pass.token_ids, token_losses)


def score_batch(
    model: PreTrainedModel, sequences: Sequence[EncodedSequence], with_greedy_tokens: bool = False
) -> BatchScores:
    """Score `tokens.EncodedSequence`s in one forward pass, each by itself, and wait for the `BatchScores`.

    Args:
        model: a causal language model of transformers.
        sequences: the batch.
        with_greedy_tokens: whether to return the most likely next token at every position.
    """
    return _Pass(model, PassInputs.of_separate(sequences, model.device), None, with_greedy_tokens).finish()[0]


def score_patched_batch(
    model: PreTrainedModel,
    sequences: Sequence[EncodedSequence],
    patcher: RouterPatcher,
    with_greedy_tokens: bool = False,
) -> tuple[BatchScores, BatchRouting]:
    """`score_batch` under an active patcher: (`BatchScores`, the tokens' `BatchRouting` on the CPU)."""
    return _Pass(model, PassInputs.of_separate(sequences, model.device), patcher, with_greedy_tokens).finish()


class _Pass:
    """An asynchronous forward pass: the constructor starts it, `finish` waits for it."""

    @torch.inference_mode()
    def __init__(self, model, read, patcher, with_greedy_tokens):
        self._read, self.token_ids = read, read.logged_ids
        arrangement = read.arrangement
        if patcher and arrangement.log_rows is not None:
            patcher.expect(arrangement.log_rows)
        self.clock = Clock(*devices_of(model))
        hidden = forward_packed(model, read.token_ids, read.packing)  # (N, H)
        scored = score_positions(model, hidden, read.positions, read.targets)
        self.clock.stop()
        greedy = routing = total = None
        if with_greedy_tokens:
            states = hidden if read.logged is None else hidden[read.logged.to(hidden.device)]
            greedy = most_likely_tokens(model, states)
        if patcher:
            routing = patcher.take_batch()
            tokens = slice(None) if read.logged is None else read.logged.to(routing.counts.device)
            routing = routing.tokens(tokens, arrangement.logged_lengths)
            total = finite_total(routing.router_logits)
        self._routing = routing
        self._copies = HostCopies([*scored, greedy, total, *(routing.tensors() if routing else ())])

    def finish(self):
        """Wait for the pass: (`BatchScores`, `BatchRouting` on the CPU or None)."""
        log_probabilities, is_greedy, greedy, self.logits_total, *routing = self._copies.wait()
        arrangement = self._read.arrangement
        predicted = [sequence.num_predicted_tokens for sequence in arrangement.sequences]
        starts = np.cumsum([0, *predicted[:-1]])
        totals = np.add.reduceat(log_probabilities.double().numpy(), starts).tolist()
        all_greedy = np.logical_and.reduceat(is_greedy.numpy(), starts).tolist()
        scores = [SequenceScore(*one) for one in zip(totals, predicted, all_greedy, strict=True)]
        lengths = arrangement.logged_lengths
        token_losses = torch.full((sum(lengths),), float("nan"))
        token_losses[self._read.read_targets] = -log_probabilities[self._read.was_read]
        token_losses = token_losses.split(lengths)
        if greedy is not None:
            greedy = greedy.split(lengths)
        scores = BatchScores(scores, token_losses, greedy, self.clock.seconds())
        return scores, self._routing.replace_tensors(routing) if self._routing else None


def score_positions(
    model: PreTrainedModel, hidden: torch.Tensor, positions: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Score the targets (P,) that follow positions (P,) of the hidden states (N, H).

    Returns ln p of the targets (float32) and whether each is the most likely token, both (P,), on the device
    of the head.
    """
    log_probabilities, is_greedy = [], []
    positions = positions.to(hidden.device)
    for chunk, target in zip(positions.split(_HEAD_ROWS), targets.split(_HEAD_ROWS), strict=True):
        logits = head_logits(model, hidden[chunk])  # (rows, V)
        target = target.to(logits.device)
        log_probability, most_likely = score_targets(logits, target)
        log_probabilities.append(log_probability)
        is_greedy.append(most_likely == target)
    return torch.cat(log_probabilities), torch.cat(is_greedy)


def most_likely_tokens(model: PreTrainedModel, hidden: torch.Tensor) -> torch.Tensor:
    """The most likely next token after each of N hidden states (N, H): (N,) int64."""
    return torch.cat([head_logits(model, rows).argmax(-1) for rows in hidden.split(_HEAD_ROWS)])
