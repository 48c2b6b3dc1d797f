"""Train the byte-level BPE tokenizer of the embedded model on the world's training text.

``python -m resources.world.train_tokenizer`` writes it into ``resources/embedded_model``. All 256
bytes are in the alphabet, so any UTF-8 text round-trips; as with OLMoE's tokenizer, encoding adds
no token of its own.
"""

import argparse
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from .generate import SEED, build_datasets, training_documents

MODEL = Path(__file__).resolve().parent.parent / "embedded_model"
VOCAB_SIZE = 2048
MAX_LENGTH = 512  # the model's max_position_embeddings
END_OF_TEXT = "<|endoftext|>"
PADDING = "<|padding|>"
NUM_DOCUMENTS = 60_000


def train_tokenizer(seed: int = SEED) -> PreTrainedTokenizerFast:
    world, _, held_out = build_datasets(seed)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[END_OF_TEXT, PADDING],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    documents = training_documents(world, held_out, seed, shard=0, count=NUM_DOCUMENTS)
    tokenizer.train_from_iterator(("".join(document) for document in documents), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=PADDING,
        model_max_length=MAX_LENGTH,
        clean_up_tokenization_spaces=False,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--out", type=Path, default=MODEL)
    args = parser.parse_args()
    train_tokenizer(args.seed).save_pretrained(args.out)


if __name__ == "__main__":
    main()
