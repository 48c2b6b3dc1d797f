"""Make a model of OLMoE-1B-7B's exact shape with random weights, to measure speed without its own.

    python benchmarks/random_olmoe.py FOLDER --text rows.jsonl [more.jsonl ...]

6.92 billion parameters in bfloat16 (14 GB), saved as safetensors. Router rows are drawn so that router
logits have a standard deviation of about 1, as OLMoE's have. The tokenizer is a byte-level BPE of 16,000
tokens trained on the given rows, so that sequences are about as long as with OLMoE's own.
"""

import argparse
import json
from pathlib import Path

import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import OlmoeConfig, OlmoeForCausalLM, PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"


def rows_text(paths):
    """Every string in the rows, endings of multiple choice too."""
    for path in paths:
        for line in Path(path).read_text(encoding="utf-8").splitlines():
            for value in json.loads(line).values():
                yield from (
                    item for item in (value if isinstance(value, list) else [value]) if isinstance(item, str)
                )


def train_tokenizer(paths, vocab_size):
    """A byte-level BPE tokenizer of the rows' text."""
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(
        rows_text(paths), vocab_size=vocab_size, special_tokens=[END_OF_TEXT], show_progress=False
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer, eos_token=END_OF_TEXT, bos_token=END_OF_TEXT
    )


@torch.no_grad()
def random_model(device, seed=0):
    """OLMoE-1B-7B-0924's shape; weights N(0, 0.02²), router rows N(0, 1 / hidden size)."""
    config = OlmoeConfig(
        vocab_size=50304,
        hidden_size=2048,
        intermediate_size=1024,
        num_hidden_layers=16,
        num_attention_heads=16,
        num_experts=64,
        num_experts_per_tok=8,
        norm_topk_prob=False,
        pad_token_id=None,
    )
    torch.manual_seed(seed)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        model = OlmoeForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    for layer in model.model.layers:
        # The input is RMS-normalised, so a row of variance 1 / H gives logits of variance 1.
        layer.mlp.gate.weight.normal_(0.0, config.hidden_size**-0.5)
    return model


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--text", nargs="+", required=True, help="JSONL rows that the tokenizer is trained on"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    train_tokenizer(arguments.text, 16_000).save_pretrained(arguments.folder)
    model = random_model(arguments.device)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    model.save_pretrained(arguments.folder)
    print(f"{arguments.folder}: {parameters / 1e9:.2f} billion parameters")


if __name__ == "__main__":
    main()
