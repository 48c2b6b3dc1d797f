"""Batches of token sequences through the model: log-likelihoods of the scored tokens.

The language-model head runs at scored positions only. Scores do not depend on how samples are batched,
beyond float rounding: batches are padded on the right, and padding is masked out.
"""

import time
from dataclasses import dataclass

import torch

from adaptive_routing.tasks import SequenceScore

_HEAD_ROWS = 2048  # positions whose logits are in memory at once: 2048 x 50,304 float32 are 0.4 GB


@dataclass(frozen=True)
class BatchScores:
    """Scores of a batch's sequences.

    Attributes:
        scores: `SequenceScore` per sequence.
        token_losses: per sequence, (tokens read,) float32: −ln p of each token given those before it,
            NaN where it was not scored.
        greedy_tokens: per sequence, (tokens read,) int64: the most likely next token at each position;
            None unless asked for.
        seconds: synchronised time of the forward pass and the head.
    """

    scores: list
    token_losses: list
    greedy_tokens: list | None
    seconds: float


@dataclass(frozen=True)
class SampleResult:
    """What a run gave for one sample, its sequences one after another.

    Attributes:
        index: of the sample in its data set.
        scores: `SequenceScore` per sequence.
        token_losses: (tokens read,) float32, as in `BatchScores`.
        greedy_tokens: (tokens read,) int64, or None where nobody asked.
        lengths: tokens read, per sequence.
        details: what else the summary says of it.
    """

    index: int
    scores: list
    token_losses: torch.Tensor
    greedy_tokens: torch.Tensor | None
    lengths: tuple[int, ...]
    details: dict


def score_samples(model, patcher, samples, batch_tokens, num_with_greedy_tokens):
    """Score samples batch by batch under a patcher in force.

    Args:
        model: a causal language model of transformers.
        patcher: a `RouterPatcher` in force on it.
        samples: list of `data.PreparedSample`.
        batch_tokens: tokens in a batch, padding included.
        num_with_greedy_tokens: the first samples of the data set, whose greedy tokens are asked for.

    Yields:
        (seconds of forward pass and head, list of `SampleResult`, their tokens' `BatchRouting` on the CPU),
        batch by batch.
    """
    batches = make_batches(samples, batch_tokens)
    # The first pass of a process loads code and claims memory; that is not the configuration's speed.
    score_batch(model, [sequence for index in batches[0] for sequence in samples[index].sequences])
    for batch in batches:
        sequences = [sequence for index in batch for sequence in samples[index].sequences]
        scored = score_batch(model, sequences, with_greedy_tokens=min(batch) < num_with_greedy_tokens)
        routing = patcher.take_batch().to("cpu")
        results, first = [], 0
        for index in batch:
            own = slice(first, first + len(samples[index].sequences))
            results.append(
                SampleResult(
                    index,
                    scored.scores[own],
                    torch.cat(scored.token_losses[own]),
                    torch.cat(scored.greedy_tokens[own]) if index < num_with_greedy_tokens else None,
                    routing.lengths[own],
                    {},
                )
            )
            first = own.stop
        yield scored.seconds, results, routing


def make_batches(samples, batch_tokens):
    """Group sample indices into batches of at most `batch_tokens` tokens, padding included.

    Samples are sorted by their longest sequence, longest first, so that little padding is needed and
    the largest batch comes first. A sample's sequences stay together; one that is too large on its own
    is a batch of its own.
    """

    def longest(index):
        return max(sequence.num_inputs for sequence in samples[index].sequences)

    batches, width, rows = [], 0, 0
    for index in sorted(range(len(samples)), key=lambda index: (-longest(index), index)):
        sequences = len(samples[index].sequences)
        if not batches or (rows + sequences) * width > batch_tokens:
            batches.append([])
            width, rows = longest(index), 0
        batches[-1].append(index)
        rows += sequences
    return batches


def pad(sequences, device, padding_token=0):
    """Token ids and mask of a batch, padded on the right: (B, S) int64 and (B, S) bool."""
    width = max(sequence.num_inputs for sequence in sequences)
    input_ids = torch.full((len(sequences), width), padding_token)
    mask = torch.zeros((len(sequences), width), dtype=torch.bool)
    for row, sequence in enumerate(sequences):
        input_ids[row, : sequence.num_inputs] = torch.tensor(sequence.token_ids[: sequence.num_inputs])
        mask[row, : sequence.num_inputs] = True
    return input_ids.to(device), mask.to(device)


@torch.inference_mode()
def score_batch(model, sequences, with_greedy_tokens=False):
    """Score `data.EncodedSequence`s in one forward pass.

    Args:
        model: a causal language model of transformers.
        sequences: the batch.
        with_greedy_tokens: also the most likely next token at every position.
    """
    device = model.device
    input_ids, mask = pad(sequences, device)
    positions, targets = _scored_positions(sequences, input_ids.shape[1])
    positions, targets = positions.to(device), targets.to(device)
    synchronize(device)
    start = time.perf_counter()
    hidden = model.base_model(input_ids=input_ids, attention_mask=mask, use_cache=False).last_hidden_state
    hidden = hidden.reshape(-1, hidden.shape[-1])  # (B * S, H)
    log_probabilities, is_greedy = score_positions(model, hidden, positions, targets)
    synchronize(device)
    seconds = time.perf_counter() - start

    greedy = None
    if with_greedy_tokens:
        greedy = most_likely_tokens(model, hidden).view(input_ids.shape).cpu()
        greedy = [row[: one.num_inputs] for row, one in zip(greedy, sequences, strict=True)]
    log_probabilities, is_greedy = log_probabilities.double().cpu(), is_greedy.cpu()
    scores, token_losses, first = [], [], 0
    for sequence in sequences:
        last = first + sequence.num_predicted_tokens
        own = log_probabilities[first:last]
        scores.append(SequenceScore(float(own.sum()), len(own), bool(is_greedy[first:last].all())))
        losses = torch.full((sequence.num_inputs,), float("nan"))
        # The last target was not read where the sequence was cut to the model's length.
        read = sequence.num_inputs - sequence.num_context_tokens
        losses[sequence.num_context_tokens :] = -own[:read].float()
        token_losses.append(losses)
        first = last
    return BatchScores(scores, token_losses, greedy, seconds)


def _scored_positions(sequences, width):
    """Flat positions whose next token is scored, and those tokens, sequence after sequence."""
    positions, targets = [], []
    for row, sequence in enumerate(sequences):
        first = row * width + sequence.num_context_tokens - 1
        positions.append(torch.arange(first, first + sequence.num_predicted_tokens))
        targets.append(torch.tensor(sequence.token_ids[sequence.num_context_tokens :]))
    return torch.cat(positions), torch.cat(targets)


def score_positions(model, hidden, positions, targets):
    """Score targets (P,) after the hidden states (N, H) at positions (P,).

    Returns ln p of the targets (float32) and whether each is the most likely token, both (P,).
    """
    head = model.get_output_embeddings()
    log_probabilities, is_greedy = [], []
    for chunk, target in zip(positions.split(_HEAD_ROWS), targets.split(_HEAD_ROWS), strict=True):
        logits = head(hidden[chunk]).float()  # (rows, V)
        chosen = logits.gather(-1, target[:, None]).squeeze(-1)
        log_probabilities.append(chosen - logits.logsumexp(-1))
        is_greedy.append(logits.argmax(-1) == target)
    return torch.cat(log_probabilities), torch.cat(is_greedy)


def most_likely_tokens(model, hidden):
    """The likeliest next token after each of N hidden states (N, H): (N,) int64."""
    head = model.get_output_embeddings()
    return torch.cat([head(rows).argmax(-1) for rows in hidden.split(_HEAD_ROWS)])


def synchronize(device):
    """Wait for all work on a device, so that a clock can be read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
