"""Scores against one plain forward pass a sequence; batches and order change nothing."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from adaptive_routing.data.samples import PreparedSample
from adaptive_routing.data.tasks import Request
from adaptive_routing.data.tokens import EncodedSequence, encode_request
from adaptive_routing.evaluation.batches import BatchQueue, make_batches
from adaptive_routing.evaluation.scoring import score_batch, score_patched_batch
from adaptive_routing.model.patching import RouterPatcher
from adaptive_routing.routing import bh
from adaptive_routing.system.errors import InputError
from conftest import VOCABULARY, normal_null_distribution, tiny_olmoe

MAX_LENGTH = 64
BATCH_TOKENS = (64, 130, 400, 100_000)


def make_samples(seed=0, number=25):
    """Samples of one to four sequences: with contexts, without, and cut to the model's length."""
    rng = random.Random(seed)
    samples = []
    for index in range(number):
        sequences = []
        for _ in range(rng.choice([1, 1, 4])):
            token_ids = [rng.randrange(VOCABULARY) for _ in range(rng.randint(2, 40))]
            context = rng.choice([1, rng.randint(1, len(token_ids) - 1)])
            sequences.append(EncodedSequence(token_ids, context, len(token_ids), False))
        if index % 7 == 3:  # one token more than the model reads
            token_ids = [rng.randrange(VOCABULARY) for _ in range(MAX_LENGTH + 1)]
            sequences = [EncodedSequence(token_ids, rng.choice([1, 40, MAX_LENGTH]), MAX_LENGTH, True)]
        samples.append(PreparedSample(f"sample_{index}", None, tuple(sequences)))
    return samples


@torch.inference_mode()
def naive_score(model, sequence):
    """(log-likelihood, greedy, losses by position, greedy next tokens) from one sequence's full logits."""
    logits = model(torch.tensor([sequence.token_ids[: sequence.num_inputs]])).logits[0].double()
    log_probabilities = logits.log_softmax(-1)
    total, greedy, losses = 0.0, True, [float("nan")] * sequence.num_inputs
    for position in range(sequence.num_context_tokens, len(sequence.token_ids)):
        target = sequence.token_ids[position]
        value = float(log_probabilities[position - 1, target])
        total += value
        greedy &= int(logits[position - 1].argmax()) == target
        if position < sequence.num_inputs:
            losses[position] = -value
    return total, greedy, losses, logits.argmax(-1).tolist()


def greedy_continuation(model, sequence):
    """The sequence with every scored token replaced by the model's greedy choice."""
    token_ids = list(sequence.token_ids)
    for position in range(sequence.num_context_tokens, len(token_ids)):
        with torch.inference_mode():
            token_ids[position] = int(model(torch.tensor([token_ids[:position]])).logits[0, -1].argmax())
    return EncodedSequence(token_ids, sequence.num_context_tokens, sequence.num_inputs, sequence.truncated)


def score_all(model, samples, batch_tokens, patcher=None):
    """Scores by sample id, and the selections (N, L, E) bool where a patcher is in force."""
    scores, selections = {}, {}
    for batch in make_batches(samples, batch_tokens):
        sequences = [sequence for index in batch for sequence in samples[index].sequences]
        if patcher:
            scored, routing = score_patched_batch(model, sequences, patcher, with_greedy_tokens=True)
        else:
            scored = score_batch(model, sequences, with_greedy_tokens=True)
        first_sequence = first_token = 0
        for index in batch:
            own = slice(first_sequence, first_sequence + len(samples[index].sequences))
            scores[samples[index].sample_id] = (
                scored.scores[own], scored.token_losses[own], scored.greedy_tokens[own],
            )  # fmt: skip
            first_sequence = own.stop
            if patcher:
                count = sum(routing.lengths[own])
                selections[samples[index].sample_id] = routing.experts[first_token : first_token + count]
                first_token += count
    return scores, selections


def test_scores_equal_a_plain_forward_pass(olmoe):
    samples = make_samples()
    # Some sequences whose continuation is the model's own, so that both answers of is_greedy occur.
    samples += [
        PreparedSample(f"greedy_{index}", None, (greedy_continuation(olmoe, samples[index].sequences[0]),))
        for index in range(8)
    ]
    scores, _ = score_all(olmoe, samples, 400)
    flags = []
    for one in samples:
        own_scores, own_losses, own_greedy = scores[one.sample_id]
        for sequence, score, losses, greedy_tokens in zip(
            one.sequences, own_scores, own_losses, own_greedy, strict=True
        ):
            total, greedy, expected_losses, expected_greedy = naive_score(olmoe, sequence)
            predicted = len(sequence.token_ids) - sequence.num_context_tokens
            assert score.log_likelihood == pytest.approx(total, rel=1e-5, abs=1e-4)
            assert score.is_greedy == greedy
            assert score.num_predicted_tokens == predicted
            assert score.loss == pytest.approx(-total / predicted, rel=1e-5, abs=1e-4)
            np.testing.assert_allclose(losses, expected_losses, rtol=1e-4, atol=1e-4)
            assert greedy_tokens.tolist() == expected_greedy
            flags.append(greedy)
    assert set(flags) == {True, False}


@pytest.mark.parametrize("seed", [0, 1])
def test_batches_and_order_change_nothing(olmoe, seed):
    samples = make_samples(seed)
    shuffled = random.Random(seed).sample(samples, len(samples))
    strategy = bh.Strategy(0.5, 12, normal_null_distribution(3))
    runs = []
    with RouterPatcher(olmoe, strategy) as patcher:
        for batch_tokens in BATCH_TOKENS:
            for order in (samples, shuffled):
                runs.append(score_all(olmoe, order, batch_tokens, patcher))
    first_scores, first_selections = runs[0]
    for scores, selections in runs[1:]:
        for sample_id, (own, losses, greedy) in scores.items():
            expected, expected_losses, expected_greedy = first_scores[sample_id]
            assert [one.is_greedy for one in own] == [one.is_greedy for one in expected]
            assert [one.log_likelihood for one in own] == pytest.approx(
                [one.log_likelihood for one in expected], rel=1e-5, abs=1e-4
            )
            best = np.argmax([one.log_likelihood for one in own])
            assert best == np.argmax([one.log_likelihood for one in expected])
            assert torch.equal(selections[sample_id], first_selections[sample_id])
            for values, others in zip(losses, expected_losses, strict=True):
                np.testing.assert_allclose(values, others, rtol=1e-4, atol=1e-4)
            assert all(torch.equal(one, other) for one, other in zip(greedy, expected_greedy, strict=True))


def test_scores_in_bfloat16_stay_within_its_precision():
    """The tolerance that batching has in bfloat16: 8 bits a number."""
    model = tiny_olmoe().bfloat16()
    samples = make_samples(2)
    alone, _ = score_all(model, samples, 1)
    together, _ = score_all(model, samples, 100_000)
    for sample_id, (own, *_) in together.items():
        for one, other in zip(own, alone[sample_id][0], strict=True):
            assert one.loss == pytest.approx(other.loss, rel=0.05, abs=0.05)


@pytest.mark.parametrize("batch_tokens", BATCH_TOKENS)
def test_batches_hold_every_sample_once_within_the_limit(batch_tokens):
    samples = make_samples(3, 60)
    batches = make_batches(samples, batch_tokens)
    assert sorted(index for batch in batches for index in batch) == list(range(60))
    widths = []
    for batch in batches:
        lengths = [sequence.num_inputs for index in batch for sequence in samples[index].sequences]
        assert sum(lengths) <= batch_tokens or len(batch) == 1
        widths.append(max(lengths))
    assert widths == sorted(widths, reverse=True)
    assert make_batches(samples, batch_tokens) == batches


@pytest.mark.parametrize(("device", "multiple"), [("cuda", 1), ("cpu", 2)])
def test_batches_of_a_data_set_are_of_similar_size(device, multiple):
    """No small one is left over at the end; on a CPU there are as many for each of two workers."""
    samples = make_samples(3, 60)
    total = sum(one.num_inputs for one in samples)
    largest = max(one.num_inputs for one in samples)
    for limit in (total, total - 1, total // 3 + largest):
        queue = BatchQueue(SimpleNamespace(device=torch.device(device)), samples, limit, "", workers=1)
        sizes = [sum(samples[index].num_inputs for index in batch) for batch, _ in queue.results(len)]
        assert len(sizes) == multiple * -(-total // (multiple * limit)) and max(sizes) <= limit
        assert max(sizes) - min(sizes) <= len(sizes) * largest


class Characters:
    """A tokenizer whose tokens are characters."""

    bos_token_id, eos_token_id = None, 0

    def encode(self, text, add_special_tokens=True):
        return [ord(character) for character in text]

    def decode(self, token):
        return chr(token)


@pytest.mark.parametrize("context", [1, 5, 20, 31, 32, 33, 34, 90])
@pytest.mark.parametrize("continuation", [1, 2, 31, 32])
def test_conditional_requests_are_cut_on_the_left_as_in_the_harness(context, continuation):
    """inputs = (context + continuation)[-(max_length + 1):][:-1], the last of which predict."""
    request = Request(
        "".join(chr(97 + i % 26) for i in range(context)), "".join(map(chr, range(65, 65 + continuation)))
    )
    (sequence,) = encode_request(Characters(), request, 10, 32)
    context_ids, continuation_ids = [list(map(ord, text)) for text in (request.context, request.continuation)]
    inputs = (context_ids + continuation_ids)[-(32 + 1) :][:-1]
    assert sequence.token_ids[:-1] == inputs
    assert sequence.token_ids[sequence.num_context_tokens :] == continuation_ids
    assert sequence.num_context_tokens >= 1
    assert sequence.num_inputs <= 32 and sequence.num_inputs in (len(inputs), len(inputs) + 1)
    assert sequence.truncated == (context + continuation > 33)


def test_a_text_without_context_is_cut_on_the_right():
    sequences = encode_request(Characters(), Request(None, "abcdefgh"), 5, 32)
    assert sequences == [EncodedSequence(list(b"abcde"), 1, 5, True)]
    assert encode_request(Characters(), Request(None, "abcdefgh"), 20, 4)[0].token_ids == list(b"abcd")
    assert encode_request(Characters(), Request(None, "a"), 5, 32) == []


@pytest.mark.parametrize(("length", "kept"), [(31, 31), (32, 32), (33, 32), (90, 32)])
def test_a_text_to_be_continued_keeps_its_end(length, kept):
    """As the harness cuts what it continues; `max_length` is not for it."""
    text = "".join(chr(97 + i % 26) for i in range(length))
    (sequence,) = encode_request(Characters(), Request(None, text, keep_end=True), 5, 32)
    assert sequence == EncodedSequence(list(map(ord, text[-kept:])), 1, kept, length > 32)


def test_nothing_before_the_continuation_means_the_prefix_token():
    assert encode_request(Characters(), Request("", "word"), 5, 32) == [
        EncodedSequence([0, *b"word"], 1, 5, False)
    ]
    # A context of spaces alone belongs to the continuation, as trailing spaces do.
    assert encode_request(Characters(), Request("  ", "word"), 5, 32) == [
        EncodedSequence([0, *b"  word"], 1, 7, False)
    ]
    # It is not put before a text that starts with it.
    assert encode_request(Characters(), Request("", "\0word"), 5, 32) == [
        EncodedSequence([0, *b"word"], 1, 5, False)
    ]
    assert encode_request(Characters(), Request("on  ", "word"), 5, 32) == [
        EncodedSequence([*b"on  word"], 2, 8, False)
    ]


def test_requests_that_cannot_be_scored_are_refused():
    with pytest.raises(InputError, match="33 tokens; the model reads at most 32"):
        encode_request(Characters(), Request("a", "b" * 33), 5, 32)
    with pytest.raises(InputError, match="no tokens to score"):
        encode_request(Characters(), Request("a", ""), 5, 32)
