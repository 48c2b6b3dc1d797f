"""Random models and random text for benchmarks that need torch, transformers and this package alone."""

import resource
from dataclasses import dataclass

import numpy as np
import torch
from adaptive_routing.data.samples import PreparedSample
from adaptive_routing.data.tokens import EncodedSequence
from adaptive_routing.evaluation.scoring import score_samples
from adaptive_routing.model.devices import devices_of
from adaptive_routing.model.experts import ALL_SLOTS
from adaptive_routing.model.packing import Packing, forward_packed
from adaptive_routing.model.patching import RouterPatcher
from adaptive_routing.model.routers import find_routers, find_rule, native_top_k
from adaptive_routing.null_distribution import NullDistribution
from adaptive_routing.routing.bh import Strategy as BH
from adaptive_routing.routing.topk import Strategy as TopK
from transformers import AutoModelForCausalLM

# A null distribution as wide as the logits themselves would leave most tokens the fewest experts. Narrower,
# some logits of each token stand out, as on a trained model.
NULL_WIDTH = 0.8
GRID_POINTS = 2001


@torch.no_grad()
def random_model(config, device, dtype, seed=0):
    """A model made on its device: weights N(0, 0.02²) or what its family draws, router rows N(0, 1 / H).

    Routers read hidden states with a mean square of 1, so a row of variance 1 / H gives logits of variance 1.
    Biases and attention sinks are drawn too, N(0, 0.02²).
    """
    torch.manual_seed(seed)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    for name, parameter in model.named_parameters():
        if name.endswith("bias") or "sinks" in name:
            parameter.normal_(0.0, 0.02)
    for router in find_routers(model):
        router.weight.normal_(0.0, router.weight.shape[-1] ** -0.5)
    model.set_experts_implementation(ALL_SLOTS)  # as `load_model` has it
    return model.eval().requires_grad_(False)


def random_samples(vocabulary, number, length, seed=0):
    """Samples of one sequence each: random tokens, between half of `length` and all of it."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(max(2, length // 2), length + 1, (number,), generator=generator).tolist()
    samples = []
    for index, tokens in enumerate(lengths):
        token_ids = torch.randint(vocabulary, (tokens,), generator=generator).tolist()
        samples.append(
            PreparedSample(f"random_{index}", None, (EncodedSequence(token_ids, 1, tokens, False),))
        )
    return samples


@torch.inference_mode()
def normal_null_distribution(model, samples):
    """A normal null distribution of each layer, from one sample's choice scores: (it, their deviations)."""
    rule, sequence = find_rule(model), samples[0].sequences[0]
    with RouterPatcher(model, TopK(native_top_k(model))) as patcher:
        token_ids = torch.tensor(sequence.token_ids, device=model.device)
        forward_packed(model, token_ids, Packing.of([sequence.num_inputs], model.device))
        layers = patcher.take_batch().router_logits.unbind(1)
    scores = [rule.unmasked_choice(one, layer).double() for layer, one in enumerate(layers)]
    mean = np.array([float(one.mean()) for one in scores])
    deviation = np.array([float(one.std()) for one in scores])
    z = torch.linspace(-10, 10, GRID_POINTS, dtype=torch.float64)
    survival = (0.5 * torch.special.erfc(z / 2**0.5)).numpy()
    scale = NULL_WIDTH * deviation
    tables = np.tile(survival, (len(scores), 1))
    return NullDistribution(mean - 10 * scale, 20 * scale / (GRID_POINTS - 1), tables), deviation


def strategies(model, null_distribution):
    """One of each kind, by name: the model's own routing, another top-k, and BH at two settings."""
    native, num_experts = native_top_k(model), find_routers(model)[0].num_experts
    twice = min(2 * native, num_experts)
    return {
        f"top-{native}, native": TopK(native),
        f"top-{twice}": TopK(twice),
        f"BH 0.30, at most {native}": BH(0.30, native, null_distribution),
        f"BH 0.60, at most {twice}": BH(0.60, twice, null_distribution),
    }


@dataclass
class Outcome:
    """What a strategy gave on all samples.

    Attributes:
        log_likelihoods: of each sample.
        token_loss: mean loss of a predicted token.
        experts: mean number a token and layer.
        tokens_per_second: of the passes, synchronised.
        peak_gigabytes: the most memory in use on one device; of a CPU that of the process so far.
    """

    log_likelihoods: torch.Tensor
    token_loss: float
    experts: float
    tokens_per_second: float
    peak_gigabytes: list[float]


def run(model, strategy, samples, batch_tokens):
    """Score samples under a strategy as an experiment does (`Outcome`)."""
    gpus = [device for device in devices_of(model) if device.type == "cuda"]
    for gpu in gpus:
        torch.cuda.reset_peak_memory_stats(gpu)
    seconds = tokens = experts = 0
    log_likelihoods, predicted = torch.zeros(len(samples), dtype=torch.float64), 0
    with RouterPatcher(model, strategy) as patcher:
        for batch in score_samples(model, patcher, samples, batch_tokens, 0):
            seconds += batch.seconds
            tokens += len(batch.token_ids)
            experts += float(batch.routing.counts.double().mean()) * len(batch.token_ids)
            for one in batch.samples:
                log_likelihoods[one.index] = one.scores[0].log_likelihood
                predicted += one.scores[0].num_predicted_tokens
    loss = -float(log_likelihoods.sum()) / predicted
    return Outcome(log_likelihoods, loss, experts / tokens, tokens / seconds, _peak_gigabytes(gpus))


def _peak_gigabytes(gpus):
    if not gpus:
        return [resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9]
    return [torch.cuda.max_memory_allocated(gpu) / 1e9 for gpu in gpus]
