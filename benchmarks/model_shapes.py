"""One experiment of each strategy at the shapes of larger models, with random weights made on the device.

    PYTHONPATH=workflow_scripts python benchmarks/model_shapes.py qwen3_30b_a3b gpt_oss_20b

Needs torch, transformers and this package, and no network. Loading checks are included: the routers' rule has
to be found, and the passes have to be the model's own. Text is random tokens in sequences of unequal length,
packed as in an experiment; a model with random weights knows nothing, so its loss is about ln(vocabulary).
Weights take 61 GB at Qwen3-30B-A3B's 48 layers and 42 GB at GPT-OSS-20B's 24, in bfloat16.
"""

import argparse
import math
import time

import torch
from adaptive_routing.model.experts import check_experts
from adaptive_routing.model.packing import runs_unpacked
from adaptive_routing.model.parity import check_parity
from adaptive_routing.model.routers import find_routers, find_rule
from random_models import normal_null_distribution, random_model, random_samples, run, strategies
from transformers import GptOssConfig, Qwen3MoeConfig

# The numbers of the models' own config.json.
SHAPES = {
    "qwen3_30b_a3b": (
        Qwen3MoeConfig,
        {
            "vocab_size": 151936,
            "hidden_size": 2048,
            "intermediate_size": 6144,
            "moe_intermediate_size": 768,
            "num_hidden_layers": 48,
            "num_attention_heads": 32,
            "num_key_value_heads": 4,
            "head_dim": 128,
            "num_experts": 128,
            "num_experts_per_tok": 8,
            "norm_topk_prob": True,
            "max_position_embeddings": 40960,
        },
    ),
    "gpt_oss_20b": (
        GptOssConfig,
        {
            "vocab_size": 201088,
            "hidden_size": 2880,
            "intermediate_size": 2880,
            "num_hidden_layers": 24,
            "num_attention_heads": 64,
            "num_key_value_heads": 8,
            "head_dim": 64,
            "num_local_experts": 32,
            "num_experts_per_tok": 4,
            "sliding_window": 128,
        },
    ),
}
# For trying this script on a CPU: the same code on a model of no size.
TINY = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 64,
    "moe_intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}


def config_of(name, layers, tiny):
    """A model's configuration, with fewer layers or tiny if asked for."""
    kind, numbers = SHAPES[name]
    numbers = {key: TINY.get(key, value) if tiny else value for key, value in numbers.items()}
    if layers:
        numbers["num_hidden_layers"] = layers
    return kind(**numbers, tie_word_embeddings=False, pad_token_id=None, bos_token_id=None, eos_token_id=None)


def benchmark(name, arguments):
    """Make a model, check it as loading does, and print a line for each strategy."""
    config = config_of(name, arguments.layers, arguments.tiny)
    started = time.perf_counter()
    model = random_model(config, arguments.device, getattr(torch, arguments.dtype))
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters()) / 1e9
    made = time.perf_counter() - started
    started = time.perf_counter()
    check_experts(model, len(find_routers(model)))
    rule = find_rule(model)
    check_parity(model)
    checked = time.perf_counter() - started
    samples = random_samples(config.vocab_size, arguments.samples, arguments.length)
    null_distribution, deviation = normal_null_distribution(model, samples)
    num_tokens, num_experts = sum(one.num_inputs for one in samples), find_routers(model)[0].num_experts
    print(
        f"\n{name}: {config.num_hidden_layers} layers, {num_experts} experts, {size:.1f} GB in "
        f"{arguments.dtype}; made in {made:.1f} s, checked in {checked:.1f} s; "
        f"{'one sequence at a time' if runs_unpacked(model) else 'packed'}, weights by {rule.scores}"
        f"{', sum 1' if rule.normalized else ''}\n"
        f"router logits: standard deviation {deviation.min():.2f} to {deviation.max():.2f} by layer; "
        f"{num_tokens:,} tokens in {len(samples)} sequences; ln(vocabulary) "
        f"{math.log(config.vocab_size):.2f}",
        flush=True,
    )
    print(f"{'strategy':24} {'experts':>8} {'loss':>8} {'tokens/s':>10} {'peak GB':>8}")
    for label, strategy in strategies(model, null_distribution).items():
        outcome = run(model, strategy, samples, arguments.batch_tokens)
        print(
            f"{label:24} {outcome.experts:8.2f} {outcome.token_loss:8.3f} {outcome.tokens_per_second:10,.0f} "
            f"{max(outcome.peak_gigabytes):8.1f}",
            flush=True,
        )


def main():
    has_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", default=list(SHAPES), help=f"of {', '.join(SHAPES)}")
    parser.add_argument("--layers", type=int, help="fewer layers, where memory is too small for all")
    parser.add_argument("--samples", type=int, default=128, help="sequences of random tokens")
    parser.add_argument("--length", type=int, default=512, help="tokens of the longest sequence")
    parser.add_argument("--batch-tokens", type=int, default=16384)
    parser.add_argument("--device", default="cuda" if has_gpu else "cpu")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--tiny", action="store_true", help="models of no size, to try the script on a CPU")
    arguments = parser.parse_args()
    if unknown := set(arguments.models) - set(SHAPES):
        parser.error(f"{', '.join(sorted(unknown))}: known are {', '.join(SHAPES)}")
    where = torch.cuda.get_device_name(arguments.device) if arguments.device.startswith("cuda") else "cpu"
    print(f"{where}, torch {torch.__version__}")
    for name in arguments.models:
        benchmark(name, arguments)
        if has_gpu:
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
