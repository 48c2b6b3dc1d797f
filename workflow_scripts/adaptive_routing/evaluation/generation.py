"""Greedy generation with the key-value cache under a routing strategy, with its text and routing.

It uses transformers' `generate`, one prompt at a time: a batch would keep computing prompts that have ended.
The model never reads the last new token, so that token has no routing.
"""

from __future__ import annotations

import functools
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from transformers import GenerationConfig

from adaptive_routing.data.samples import PreparedSample
from adaptive_routing.data.tasks import SequenceScore
from adaptive_routing.data.tokens import EncodedSequence
from adaptive_routing.evaluation.finiteness import check_finite, check_scores, finite_total
from adaptive_routing.evaluation.scoring import BatchResult, SampleResult, most_likely_tokens, score_positions
from adaptive_routing.model.devices import Clock, devices_of
from adaptive_routing.model.memory import run_alone
from adaptive_routing.routing.batch import BatchRouting

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from adaptive_routing.data.samples import PreparedSample
    from adaptive_routing.model.patching import RouterPatcher


@torch.inference_mode()
def generate_samples(
    model: PreTrainedModel,
    patcher: RouterPatcher,
    tokenizer: PreTrainedTokenizerBase,
    samples: Sequence[PreparedSample],
    max_new_tokens: int,
) -> Iterator[tuple[PreparedSample, BatchResult]]:
    """Continue each sample's only sequence greedily, under an active patcher.

    Args:
        model: a causal language model of transformers.
        patcher: an active `RouterPatcher` on it.
        tokenizer: turns new tokens into text.
        samples: list of `samples.PreparedSample` with one sequence each, the prompt.
        max_new_tokens: fewer are generated if the model ends the text.

    Yields:
        (the sample with prompt and new tokens as its sequence, `BatchResult` of it alone). The score is the
        prompt's; the details hold the new text, its loss and both parts' average expert counts.

    Raises:
        InputError: a prompt does not fit into the device's memory, or what the model computes is not finite.
    """
    config = GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=model.generation_config.eos_token_id,
        pad_token_id=0,  # one sequence at a time is never padded
    )
    for index, one in enumerate(samples):
        work = functools.partial(_continue, model, patcher, tokenizer, index, one, config)
        yield run_alone(model, one, work, "a smaller datasets.prompts.max_new_tokens,")


def _continue(model, patcher, tokenizer, index, one, config):
    """Continue one prompt; return what `generate_samples` yields for it."""
    prompt = torch.tensor([one.sequences[0].token_ids], device=model.device)
    if index == 0:  # a process's first pass loads code, which must not count as the configuration's time
        _generate(model, patcher, prompt, config)
    clock = Clock(*devices_of(model))
    token_ids, passes = _generate(model, patcher, prompt, config)
    clock.stop()
    hidden = torch.cat([states for states, _ in passes])
    parts = [routing for _, routing in passes]
    routing = BatchRouting.joined(parts, [sum(len(part.counts) for part in parts)])
    routing = routing.replace_tensors([tensor.cpu() for tensor in routing.tensors()])
    continued, result, token_losses = _sample_result(model, tokenizer, index, one, token_ids, hidden, routing)
    check_finite([continued], routing.router_logits, finite_total(routing.router_logits))
    check_scores(continued, result.scores, model.dtype)
    return continued, BatchResult(clock.seconds(), [result], routing, token_ids[:-1].cpu(), token_losses)


def _generate(model, patcher, prompt, config):
    """Continue a prompt (1, P): token ids (P + new,), each pass's hidden states (tokens, H) and routing."""
    passes = []

    def collect(module, args, output):
        passes.append((output.last_hidden_state[0], patcher.take_batch()))

    # Registered after the patcher's hook, so that the patcher has already recorded the pass.
    handle = model.base_model.register_forward_hook(collect)
    try:
        with _generation_config(model, config):
            output = model.generate(prompt, attention_mask=torch.ones_like(prompt), generation_config=config)
    finally:
        handle.remove()
    return output[0], passes


@contextmanager
def _generation_config(model, config):
    """Replace the model's generation config, from which `generate` fills what `config` leaves open."""
    replaced = model.generation_config
    model.generation_config = config
    try:
        yield
    finally:
        model.generation_config = replaced


def _sample_result(model, tokenizer, index, one, token_ids, hidden, routing):
    num_prompt_tokens = len(one.sequences[0].token_ids)
    positions = torch.arange(len(hidden), device=hidden.device)
    log_probabilities, is_greedy = score_positions(model, hidden, positions, token_ids[1:])
    log_probabilities, is_greedy = log_probabilities.double().cpu(), is_greedy.cpu()
    losses = torch.full((len(hidden),), float("nan"))
    losses[1:] = -log_probabilities[:-1].float()
    of_prompt, of_new = log_probabilities.split([num_prompt_tokens - 1, len(hidden) - num_prompt_tokens + 1])
    counts = routing.counts.double()
    new_counts = counts[num_prompt_tokens:]
    new_token_ids = token_ids[num_prompt_tokens:].tolist()
    details = {
        "num_prompt_tokens": num_prompt_tokens,
        "num_new_tokens": len(new_token_ids),
        "generated_text": tokenizer.decode(new_token_ids),
        "new_tokens_loss": -float(of_new.mean()),
        "avg_experts_prompt": float(counts[:num_prompt_tokens].mean()),
        "avg_experts_new": float(new_counts.mean()) if len(new_counts) else None,
    }
    score = SequenceScore(
        float(of_prompt.sum()), len(of_prompt), bool(is_greedy[: num_prompt_tokens - 1].all())
    )
    sequence = EncodedSequence(token_ids.tolist(), 1, len(hidden), one.sequences[0].truncated)
    continued = PreparedSample(one.sample_id, one.sample, (sequence,))
    greedy_tokens = most_likely_tokens(model, hidden).cpu()
    return continued, SampleResult(index, [score], greedy_tokens, routing.lengths, details), losses
