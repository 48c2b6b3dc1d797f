"""The model's tokenizer."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from adaptive_routing.model.description import check_folder
from adaptive_routing.system.errors import InputError
from adaptive_routing.system.json_files import read_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from adaptive_routing.model.description import ModelDescription


def load_tokenizer(info: ModelDescription) -> PreTrainedTokenizerBase:
    """The model's tokenizer; InputError where it is missing or damaged."""
    check_folder(info)
    folder, remedy = info["folder"], "get the model again, with tokenizer.json and tokenizer_config.json"
    try:
        tokenizer = _tokenizer_class(folder).from_pretrained(
            folder,
            local_files_only=True,
            trust_remote_code=False,
            model_max_length=sys.maxsize,  # texts are cut, and long ones need no warning
            model_input_names=["input_ids", "attention_mask"],  # what a language model takes
        )
    except Exception as error:  # the tokenizers library raises nothing more specific
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(
            f"model.name: the tokenizer in {folder} cannot be read ({reason}); {remedy}"
        ) from error
    if len(tokenizer) <= len(tokenizer.added_tokens_decoder):  # transformers makes one with nothing but those
        raise InputError(f"model.name: {folder} holds no tokenizer; {remedy}")
    return tokenizer


def _tokenizer_class(folder):
    """The class that reads a folder's tokenizer.

    The general one, which has two names, needs no torch; `AutoTokenizer` imports it to look up a model's own.
    """
    path = Path(folder, "tokenizer_config.json")
    named = read_json(path).get("tokenizer_class") if path.exists() else None
    if named in ("PreTrainedTokenizerFast", "TokenizersBackend"):
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast
    from transformers import AutoTokenizer

    return AutoTokenizer
