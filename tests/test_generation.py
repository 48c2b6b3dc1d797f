"""Greedy generation under a patched model: the cache changes nothing, and everything is logged."""

import numpy as np
import pytest
import torch
from adaptive_routing import generation
from adaptive_routing.data import EncodedSequence, PreparedSample
from adaptive_routing.generation import generate_samples
from adaptive_routing.patching import RouterPatcher
from adaptive_routing.routing import bh, topk
from adaptive_routing.tasks import Request, Sample
from conftest import VOCABULARY, normal_null_distribution, tiny_olmoe

STRATEGIES = {
    "native": topk.Strategy(8),
    "top-12": topk.Strategy(12),
    "BH": bh.Strategy(0.5, 12, normal_null_distribution(3)),
}


class Words:
    """A tokenizer that only reads: every token is a word."""

    def decode(self, token_ids):
        return " ".join(map(str, token_ids))


def prompts(*lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    samples = []
    for number, length in enumerate(lengths):
        token_ids = torch.randint(2, VOCABULARY, (length,), generator=generator).tolist()
        sequence = EncodedSequence(token_ids, 1, length, False)
        samples.append(PreparedSample(f"prompts_{number}", Sample("", (Request(None, ""),)), (sequence,)))
    return samples


@torch.inference_mode()
def without_cache(model, patcher, token_ids, new_tokens):
    """A plain loop: the whole text through the model for every new token; the last pass's logits, routing."""
    token_ids = list(token_ids)
    for _ in range(new_tokens):
        logits = model(torch.tensor([token_ids]), use_cache=False).logits[0]
        routing = patcher.take_batch()
        token_ids.append(int(logits[-1].argmax()))
    return token_ids, logits.double(), routing


@pytest.mark.parametrize("name", STRATEGIES)
def test_generating_equals_a_loop_without_cache_token_by_token(olmoe, name):
    samples = prompts(2, 7, 20)
    with RouterPatcher(olmoe, STRATEGIES[name]) as patcher:
        results = list(generate_samples(olmoe, patcher, Words(), samples, 9))
        expected = [without_cache(olmoe, patcher, one.sequences[0].token_ids, 9) for one in samples]
    counts = set()
    for one, (continued, seconds, result, own), (token_ids, logits, routing) in zip(
        samples, results, expected, strict=True
    ):
        length = len(one.sequences[0].token_ids)
        sequence, details = continued.sequences[0], result.details
        assert sequence == EncodedSequence(token_ids, 1, length + 8, False)
        assert details["generated_text"] == " ".join(map(str, token_ids[length:]))
        assert (details["num_prompt_tokens"], details["num_new_tokens"]) == (length, 9)
        assert seconds > 0
        # The routing of prompt and new tokens alike; the last new token is never read.
        assert own.lengths == (length + 8,)
        assert torch.equal(own.experts, routing.experts)
        assert torch.equal(own.counts, routing.counts)
        torch.testing.assert_close(own.router_logits, routing.router_logits, rtol=1e-4, atol=1e-4)
        assert details["avg_experts_prompt"] == float(routing.counts[:length].double().mean())
        assert details["avg_experts_new"] == float(routing.counts[length:].double().mean())
        counts |= set(routing.counts.flatten().tolist())
        # Scores: of the prompt; of the new tokens; token by token.
        log_probabilities = logits.log_softmax(-1)
        losses = -log_probabilities[range(length + 8), token_ids[1:]]
        assert result.scores[0].log_likelihood == pytest.approx(-float(losses[: length - 1].sum()), abs=1e-4)
        assert result.scores[0].num_predicted_tokens == length - 1
        assert details["new_tokens_loss"] == pytest.approx(float(losses[length - 1 :].mean()), abs=1e-5)
        assert result.token_losses[0].isnan()
        np.testing.assert_allclose(result.token_losses[1:].numpy(), losses[:-1].numpy(), rtol=1e-4, atol=1e-4)
        assert result.greedy_tokens.tolist() == logits.argmax(-1).tolist()
        assert result.greedy_tokens.tolist()[length - 1 :] == token_ids[length:]
    assert (len(counts) > 2) == (name == "BH")


def test_the_end_of_the_text_ends_the_generation():
    model = tiny_olmoe()
    (sample,) = prompts(6)
    with RouterPatcher(model, STRATEGIES["BH"]) as patcher:
        ((free, *_),) = generate_samples(model, patcher, Words(), [sample], 9)
        new = free.sequences[0].token_ids[6:]
        end = next(position for position in range(1, 9) if new[position] not in new[:position])
        model.generation_config.eos_token_id = new[end]
        ((ended, _, result, own),) = generate_samples(model, patcher, Words(), [sample], 9)
    assert ended.sequences[0].token_ids == free.sequences[0].token_ids[: 6 + end + 1]
    assert result.details["num_new_tokens"] == end + 1
    assert len(result.token_losses) == own.lengths[0] == 6 + end


def test_one_new_token_has_no_routing_of_its_own(olmoe):
    (sample,) = prompts(4)
    with RouterPatcher(olmoe, STRATEGIES["BH"]) as patcher:
        ((_, _, result, own),) = generate_samples(olmoe, patcher, Words(), [sample], 1)
    assert result.details["num_new_tokens"] == 1
    assert result.details["avg_experts_new"] is None
    assert own.lengths == (4,)


def test_a_models_own_sampling_settings_do_not_apply():
    """Hub models bring a generation_config; greedy means greedy."""
    model, samples = tiny_olmoe(), prompts(5)
    with RouterPatcher(model, STRATEGIES["native"]) as patcher:
        ((plain, *_),) = generate_samples(model, patcher, Words(), samples, 12)
        model.generation_config.update(do_sample=True, temperature=5.0, top_k=3, repetition_penalty=9.0)
        ((other, *_),) = generate_samples(model, patcher, Words(), samples, 12)
    assert other == plain


def test_nothing_stays_on_the_model_between_samples_or_after_an_error(olmoe, monkeypatch):
    hooks = len(olmoe.base_model._forward_hooks)
    with RouterPatcher(olmoe, STRATEGIES["native"]) as patcher:
        patched = len(olmoe.base_model._forward_hooks)
        for _ in generate_samples(olmoe, patcher, Words(), prompts(3, 4), 2):
            assert len(olmoe.base_model._forward_hooks) == patched
        monkeypatch.setattr(generation, "GenerationConfig", lambda **_: "no config")
        with pytest.raises(AttributeError):
            list(generate_samples(olmoe, patcher, Words(), prompts(3), 2))
        assert len(olmoe.base_model._forward_hooks) == patched
    assert len(olmoe.base_model._forward_hooks) == hooks
