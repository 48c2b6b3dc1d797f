"""Scores and selections of real text do not depend on how samples are batched, ordered and padded.

In float32 they are equal wherever the routing strategy, and not rounding, decides; in bfloat16 the
differences stay within the tolerance that the documentation states.
"""

import copy
import random
from dataclasses import dataclass

import pytest
import torch
from adaptive_routing.data.samples import prepare_samples
from adaptive_routing.data.tasks import get_task
from adaptive_routing.evaluation.scoring import score_batch
from adaptive_routing.model.patching import RouterPatcher
from adaptive_routing.routing import make_strategy
from adaptive_routing.settings.configurations import grid
from conftest import ROOT
from harness import REAL_DATA, rows_of
from rounding import ROUNDING, undecided

EMBEDDED = ROOT / "resources/datasets"
FILES = {
    "embedded": {
        "wikitext": EMBEDDED / "wikitext.jsonl",
        "lambada": EMBEDDED / "lambada.jsonl",
        "hellaswag": EMBEDDED / "hellaswag.jsonl",
    },
    "real": {
        "wikitext": REAL_DATA / "wikitext2_raw_test.jsonl",
        "lambada": REAL_DATA / "lambada_openai_test.jsonl",
        "hellaswag": REAL_DATA / "hellaswag_validation.jsonl",
    },
}
SAMPLES = {"wikitext": 13, "lambada": 13, "hellaswag": 6}  # 32 together, one batch of the largest size
CONFIGURATIONS = {one.name: one for one in grid({"topk": {"k": [8]}, "bh": {"max_k": [16], "alpha": [0.3]}})}
ROUTING = {"min_k": 1, "temperature": 1.0, "weights": "native"}
# How else to run what ran one by one: samples in a batch, whether shuffled, padded on the left.
WAYS = [(3, False, False), (8, True, False), (32, False, False), (8, False, True)]


@dataclass(frozen=True)
class Result:
    """One sample: its tokens one sequence after another."""

    token_losses: torch.Tensor  # (N,), NaN where not scored
    greedy_tokens: torch.Tensor  # (N,)
    experts: torch.Tensor  # (N, L, K), ascending
    router_logits: torch.Tensor  # (N, L, E)
    outcome: dict | None  # of the data set's task; None where padded on the left


def load_samples(source, tokenizer):
    """(data set, `PreparedSample`) of 32 rows; longer ones cut, to keep decisions near a tie few."""
    if not FILES[source]["lambada"].exists():
        pytest.skip("the real rows are not here")
    return [
        (dataset, one)
        for dataset, path in FILES[source].items()
        for one in prepare_samples(dataset, rows_of(path), tokenizer, SAMPLES[dataset], 64, 64)
    ]


@torch.inference_mode()
def left_padded(model, sequences):
    """Token losses and greedy tokens from the whole logits of a batch padded on the left."""
    width = max(one.num_inputs for one in sequences)
    input_ids = torch.zeros((len(sequences), width), dtype=torch.long)
    mask = torch.zeros_like(input_ids)
    for row, one in enumerate(sequences):
        input_ids[row, width - one.num_inputs :] = torch.tensor(one.token_ids[: one.num_inputs])
        mask[row, width - one.num_inputs :] = 1
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    logits = model(input_ids=input_ids, attention_mask=mask, position_ids=positions).logits.float()
    losses, greedy = [], []
    for row, one in enumerate(sequences):
        own = logits[row, width - one.num_inputs :]
        targets = torch.tensor(one.token_ids[1 : one.num_inputs])
        loss = torch.full((one.num_inputs,), float("nan"))
        loss[1:] = -own[:-1].log_softmax(-1).gather(-1, targets[:, None]).squeeze(-1)
        loss[: one.num_context_tokens] = float("nan")
        losses.append(loss)
        greedy.append(own.argmax(-1))
    return losses, greedy


def run(patcher, samples, size, shuffled=False, pad_left=False):
    """`Result` of each sample, batched `size` samples at a time."""
    order = list(range(len(samples)))
    if shuffled:
        random.Random(0).shuffle(order)
    results = [None] * len(samples)
    with patcher:
        for first in range(0, len(order), size):
            batch = order[first : first + size]
            sequences = [sequence for index in batch for sequence in samples[index][1].sequences]
            if pad_left:
                losses, greedy, scores = *left_padded(patcher.model, sequences), None
            else:
                scored = score_batch(patcher.model, sequences, with_greedy_tokens=True)
                losses, greedy, scores = scored.token_losses, scored.greedy_tokens, scored.scores
            routing = patcher.take_batch()
            sequence = token = 0
            for index in batch:
                dataset, one = samples[index]
                own = slice(sequence, sequence + len(one.sequences))
                end = token + sum(routing.lengths[own])
                results[index] = Result(
                    torch.cat(losses[own]),
                    torch.cat(greedy[own]),
                    routing.experts[token:end].sort(-1).values,
                    routing.router_logits[token:end].float(),
                    get_task(dataset).outcome(one.sample, scores[own]) if scores else None,
                )
                sequence, token = own.stop, end
    return results


def reached(undecided, lengths):
    """(N, L) bool: what an undecided selection may change: itself, later layers, and there later tokens."""
    parts = [one.int().cummax(0).values.cummax(1).values.bool() for one in undecided.split(lengths)]
    return torch.cat(parts)


@pytest.fixture(scope="module")
def bfloat16_model(embedded):
    return copy.deepcopy(embedded.loaded.model).bfloat16()


@pytest.mark.parametrize("source", FILES)
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_float32_selections_and_decisions_are_the_same(embedded, name, source):
    samples = load_samples(source, embedded.tokenizer)
    strategy = make_strategy(CONFIGURATIONS[name], ROUTING, embedded.null_distribution)
    patcher = RouterPatcher(embedded.loaded.model, strategy)
    alone = run(patcher, samples, 1)
    # What one place within rounding may change is left out, and only that.
    settled = [
        ~reached(undecided(patcher.strategy, one.router_logits), [s.num_inputs for s in sample.sequences])
        for one, (_, sample) in zip(alone, samples, strict=True)
    ]
    assert torch.cat(settled).float().mean() > 0.8
    assert sum(bool(one.all()) for one in settled) > len(samples) // 2
    for way in WAYS:
        for one, other, kept in zip(alone, run(patcher, samples, *way), settled, strict=True):
            assert torch.equal(one.experts[kept], other.experts[kept])
            assert (one.router_logits - other.router_logits)[kept].abs().max() < ROUNDING
            if not kept.all():
                continue
            torch.testing.assert_close(
                one.token_losses, other.token_losses, rtol=1e-5, atol=5e-5, equal_nan=True
            )
            assert torch.equal(one.greedy_tokens, other.greedy_tokens)
            if other.outcome is not None:
                for key, value in one.outcome.items():
                    exact = not isinstance(value, float | list)
                    assert other.outcome[key] == (
                        value if exact else pytest.approx(value, rel=1e-5, abs=1e-4)
                    )


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_bfloat16_differences_stay_within_the_documented_tolerance(embedded, bfloat16_model, name):
    """A token keeps 8 bits: single losses and selections differ, and do not lean to one side."""
    samples = load_samples("embedded", embedded.tokenizer)
    strategy = make_strategy(CONFIGURATIONS[name], ROUTING, embedded.null_distribution)
    patcher = RouterPatcher(bfloat16_model, strategy)
    alone = run(patcher, samples, 1)
    for size, shuffled, pad_left in WAYS[1:]:
        others = run(patcher, samples, size, shuffled, pad_left)
        pairs = list(zip(alone, others, strict=True))
        token_losses = torch.cat([(one.token_losses - other.token_losses).abs() for one, other in pairs])
        sample_losses = torch.stack(
            [one.token_losses.nanmean() - other.token_losses.nanmean() for one, other in pairs]
        )
        differs = torch.cat([(one.experts != other.experts).any(-1).flatten() for one, other in pairs])
        greedy = torch.cat([one.greedy_tokens != other.greedy_tokens for one, other in pairs])
        assert token_losses.nanquantile(0.99) < 0.25 and token_losses.nan_to_num().max() < 1
        assert sample_losses.abs().max() < 0.2 and sample_losses.mean().abs() < 0.01
        assert differs.float().mean() < 0.03
        assert greedy.float().mean() < 0.01
