"""Models that several test modules share: tiny random ones, and the embedded model with its tokenizer."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from adaptive_routing.data.rows import load_rows
from adaptive_routing.evaluation.calibration import collect_router_logits, encode_calibration_text
from adaptive_routing.model.inspect import inspect_model
from adaptive_routing.model.load import LoadedModel, load_model
from adaptive_routing.model.routers import find_routers
from adaptive_routing.model.tokenizer import load_tokenizer
from adaptive_routing.null_distribution import NullDistribution
from adaptive_routing.null_distribution.estimate import fit_null_distribution
from scipy.stats import norm
from transformers import OlmoeConfig, OlmoeForCausalLM

ROOT = Path(__file__).resolve().parent.parent
VOCABULARY = 96

torch.set_num_threads(1)  # the suite runs in several processes


def normal_null_distribution(num_layers, points=4001):
    """The survival function of N(0, 1) on [-8, 8], for every layer."""
    x = np.linspace(-8, 8, points)
    return NullDistribution(
        x0=np.full(num_layers, x[0]),
        dx=np.full(num_layers, x[1] - x[0]),
        survival=np.tile(norm.sf(x), (num_layers, 1)),
        metadata={"method": "test"},
    )


def spread_routers(model, seed=0):
    """Draw router rows anew, so that logits of normalised hidden states have a standard deviation of 1."""
    generator = torch.Generator().manual_seed(seed)
    for router in find_routers(model):
        rows = torch.randn(router.weight.shape, generator=generator) / router.weight.shape[1] ** 0.5
        router.weight.data.copy_(rows)
    return model.eval().requires_grad_(False)


def tiny_olmoe(seed=0, **settings):
    """A random OLMoE: 3 layers, 16 experts, native top-8, hidden size 32."""
    config = OlmoeConfig(
        **{
            "vocab_size": VOCABULARY,
            "hidden_size": 32,
            "intermediate_size": 16,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "num_experts": 16,
            "num_experts_per_tok": 8,
            "max_position_embeddings": 64,
            "initializer_range": 0.3,  # large enough for experts to change the output
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": None,
            **settings,
        }
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = OlmoeForCausalLM(config)
    model.set_experts_implementation("eager")
    return spread_routers(model, seed)


@pytest.fixture(scope="session")
def olmoe():
    """A tiny OLMoE in float32; a test that changes it puts it back."""
    return tiny_olmoe()


@dataclass(frozen=True)
class Embedded:
    loaded: LoadedModel
    tokenizer: object
    null_distribution: NullDistribution


@pytest.fixture(scope="session")
def embedded():
    """The embedded model in float32 on the CPU, its tokenizer, and a null distribution of its own logits."""
    info = inspect_model(ROOT / "resources/embedded_model")
    loaded, tokenizer = load_model(info, "float32", "cpu"), load_tokenizer(info)
    rows = load_rows(str(ROOT / "resources/datasets/calibration.jsonl"))
    samples = encode_calibration_text(rows, "text", tokenizer, max_tokens=400, max_length=128)
    logits = collect_router_logits(loaded, samples, batch_tokens=1024)
    null_distribution = fit_null_distribution(logits.transpose(0, 1).numpy())
    return Embedded(loaded, tokenizer, null_distribution)
