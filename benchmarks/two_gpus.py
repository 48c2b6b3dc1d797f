"""One model on one GPU and spread over two: the same losses, and how fast.

    PYTHONPATH=workflow_scripts python benchmarks/two_gpus.py

Needs torch, transformers, accelerate and this package, and no network. A random model like OLMoE is saved
into a temporary folder and loaded from there as the workflow loads it, with its checks, on one GPU and then
with `gpus=2`. Each strategy scores the same random tokens on both. In float32 sums may round differently only
where a GPU chooses another kernel, so differences are 0 or tiny; in bfloat16 they are 0 or some 0.01.
"""

import argparse
import sys
import tempfile

import torch
from adaptive_routing.model.devices import devices_of
from adaptive_routing.model.inspect import inspect_model
from adaptive_routing.model.load import load_model
from random_models import normal_null_distribution, random_model, random_samples, run, strategies
from transformers import OlmoeConfig


def outcomes(loaded, samples, null_distribution, batch_tokens):
    """Every strategy's `Outcome` by name; the first has run before, so that loading code does not count."""
    model, found = loaded.model, {}
    for label, strategy in strategies(model, null_distribution).items():
        if not found:
            run(model, strategy, samples, batch_tokens)
        found[label] = run(model, strategy, samples, batch_tokens)
    return found


def main():
    has_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gpus", type=int, default=2, help="how many the model is spread over")
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--experts", type=int, default=64)
    parser.add_argument("--samples", type=int, default=128, help="sequences of random tokens")
    parser.add_argument("--length", type=int, default=512, help="tokens of the longest sequence")
    parser.add_argument("--batch-tokens", type=int, default=16384)
    parser.add_argument("--device", default="cuda" if has_gpu else "cpu")
    parser.add_argument("--dtype", default="float32", choices=["bfloat16", "float16", "float32"])
    arguments = parser.parse_args()
    config = OlmoeConfig(
        vocab_size=arguments.vocabulary,
        hidden_size=arguments.hidden,
        intermediate_size=arguments.hidden // 2,
        num_hidden_layers=arguments.layers,
        num_attention_heads=16,
        num_experts=arguments.experts,
        num_experts_per_tok=8,
        norm_topk_prob=False,
        pad_token_id=None,
        eos_token_id=None,
    )
    samples = random_samples(config.vocab_size, arguments.samples, arguments.length)
    with tempfile.TemporaryDirectory() as folder:
        random_model(config, arguments.device, getattr(torch, arguments.dtype)).save_pretrained(folder)
        info = inspect_model(folder)
        on_one = load_model(info, arguments.dtype, arguments.device)
        null_distribution, _ = normal_null_distribution(on_one.model, samples)
        expected = outcomes(on_one, samples, null_distribution, arguments.batch_tokens)
        name_of_one = on_one.device_name
        del on_one
        spread = load_model(info, arguments.dtype, arguments.device, gpus=arguments.gpus)
    found = outcomes(spread, samples, null_distribution, arguments.batch_tokens)
    num_tokens = sum(one.num_inputs for one in samples)
    print(f"torch {torch.__version__}; {arguments.dtype}; {num_tokens:,} tokens in {len(samples)} sequences")
    print(f"one device: {name_of_one}; spread: {spread.device_name}")
    if (model := spread.model) and len(devices_of(model)) > 1:
        layers = [str(next(layer.parameters()).device) for layer in model.model.layers]
        print(f"layers: {', '.join(f'{layers.count(one)} on {one}' for one in dict.fromkeys(layers))}")
    elif arguments.device != "cpu":
        sys.exit("the model stands on one device; it is too small to be divided")
    print(
        f"{'strategy':24} {'experts':>8} {'loss on one':>12} {'loss spread':>12} {'largest difference':>19} "
        f"{'tokens/s on one':>16} {'tokens/s spread':>16} {'peak GB':>12}"
    )
    for label, one in expected.items():
        other = found[label]
        # Of the log-likelihoods of sequences, in parts of their own size.
        difference = (other.log_likelihoods - one.log_likelihoods).abs() / one.log_likelihoods.abs()
        peaks = " ".join(f"{peak:.1f}" for peak in other.peak_gigabytes)
        print(
            f"{label:24} {other.experts:8.2f} {one.token_loss:12.6f} {other.token_loss:12.6f} "
            f"{float(difference.max()):19.2g} {one.tokens_per_second:16,.0f} "
            f"{other.tokens_per_second:16,.0f} {peaks:>12}"
        )


if __name__ == "__main__":
    main()
