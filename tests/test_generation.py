"""Greedy generation under a patched model: the cache changes nothing, and everything is logged."""

import numpy as np
import pytest
import torch
from adaptive_routing.data.samples import PreparedSample
from adaptive_routing.data.tasks import Request, Sample
from adaptive_routing.data.tokens import EncodedSequence
from adaptive_routing.evaluation import generation
from adaptive_routing.evaluation.generation import generate_samples
from adaptive_routing.model.patching import RouterPatcher
from adaptive_routing.routing import bh, topk
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
    for one, (continued, batch), (token_ids, logits, routing) in zip(samples, results, expected, strict=True):
        length = len(one.sequences[0].token_ids)
        (result,), own = batch.samples, batch.routing
        sequence, details = continued.sequences[0], result.details
        assert batch.token_ids.tolist() == token_ids[:-1]
        assert sequence == EncodedSequence(token_ids, 1, length + 8, False)
        assert details["generated_text"] == " ".join(map(str, token_ids[length:]))
        assert (details["num_prompt_tokens"], details["num_new_tokens"]) == (length, 9)
        assert batch.seconds > 0
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
        assert batch.token_losses[0].isnan()
        np.testing.assert_allclose(batch.token_losses[1:].numpy(), losses[:-1].numpy(), rtol=1e-4, atol=1e-4)
        assert result.greedy_tokens.tolist() == logits.argmax(-1).tolist()
        assert result.greedy_tokens.tolist()[length - 1 :] == token_ids[length:]
    assert (len(counts) > 2) == (name == "BH")


def test_the_end_of_the_text_ends_the_generation():
    model = tiny_olmoe()
    (sample,) = prompts(6)
    with RouterPatcher(model, STRATEGIES["BH"]) as patcher:
        ((free, _),) = generate_samples(model, patcher, Words(), [sample], 9)
        new = free.sequences[0].token_ids[6:]
        end = next(position for position in range(1, 9) if new[position] not in new[:position])
        model.generation_config.eos_token_id = new[end]
        ((ended, batch),) = generate_samples(model, patcher, Words(), [sample], 9)
    assert ended.sequences[0].token_ids == free.sequences[0].token_ids[: 6 + end + 1]
    assert batch.samples[0].details["num_new_tokens"] == end + 1
    assert len(batch.token_losses) == batch.routing.lengths[0] == 6 + end


def test_one_new_token_has_no_routing_of_its_own(olmoe):
    (sample,) = prompts(4)
    with RouterPatcher(olmoe, STRATEGIES["BH"]) as patcher:
        ((_, batch),) = generate_samples(olmoe, patcher, Words(), [sample], 1)
    assert batch.samples[0].details["num_new_tokens"] == 1
    assert batch.samples[0].details["avg_experts_new"] is None
    assert batch.routing.lengths == (4,)


OF_HUB_MODELS = [
    {"do_sample": True, "temperature": 5.0, "top_k": 3},
    {"repetition_penalty": 9.0},
    {"no_repeat_ngram_size": 1},
    {"suppress_tokens": list(range(VOCABULARY // 2))},
    {"min_new_tokens": 12},
    {"num_beams": 4},
]


@pytest.mark.parametrize("settings", OF_HUB_MODELS, ids=lambda settings: next(iter(settings)))
def test_a_models_own_generation_settings_do_not_apply(settings):
    """Hub models bring a generation_config; greedy means greedy, up to the end of the text."""
    model, samples = tiny_olmoe(), prompts(5)
    with RouterPatcher(model, STRATEGIES["native"]) as patcher:
        token_ids, *_ = without_cache(model, patcher, samples[0].sequences[0].token_ids, 12)
        new = token_ids[5:]
        end = next(position for position in range(3, 12) if new[position] not in new[:position])
        model.generation_config.eos_token_id = new[end]
        model.generation_config.update(**settings)
        own, before = model.generation_config, model.generation_config.to_dict()
        # What they would do: the text is another one.
        torch.manual_seed(0)
        free = model.generate(torch.tensor([samples[0].sequences[0].token_ids]), max_new_tokens=12)
        assert free[0].tolist() != token_ids[: 5 + end + 1]
        patcher.take_batch()
        ((generated, *_),) = generate_samples(model, patcher, Words(), samples, 12)
    assert generated.sequences[0].token_ids == token_ids[: 5 + end + 1]
    assert model.generation_config is own and own.to_dict() == before


def test_nothing_stays_on_the_model_between_samples_or_after_an_error(olmoe, monkeypatch):
    hooks, generation_config = len(olmoe.base_model._forward_hooks), olmoe.generation_config
    with RouterPatcher(olmoe, STRATEGIES["native"]) as patcher:
        patched = len(olmoe.base_model._forward_hooks)
        for _ in generate_samples(olmoe, patcher, Words(), prompts(3, 4), 2):
            assert len(olmoe.base_model._forward_hooks) == patched
            assert olmoe.generation_config is generation_config
        monkeypatch.setattr(generation, "GenerationConfig", lambda **_: "no config")
        with pytest.raises(AttributeError):
            list(generate_samples(olmoe, patcher, Words(), prompts(3), 2))
        assert len(olmoe.base_model._forward_hooks) == patched
        assert olmoe.generation_config is generation_config
    assert len(olmoe.base_model._forward_hooks) == hooks
