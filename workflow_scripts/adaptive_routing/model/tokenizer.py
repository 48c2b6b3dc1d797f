"""The model's tokenizer."""

import sys

from adaptive_routing.model.description import check_folder
from adaptive_routing.system.errors import InputError


def load_tokenizer(info):
    """The model's tokenizer; InputError where it is missing or damaged."""
    from transformers import AutoTokenizer

    check_folder(info)
    folder, remedy = info["folder"], "get the model again, with tokenizer.json and tokenizer_config.json"
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder,
            local_files_only=True,
            trust_remote_code=False,
            model_max_length=sys.maxsize,  # texts are cut, and long ones need no warning
        )
    except Exception as error:  # the tokenizers library raises nothing more specific
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(
            f"model.name: the tokenizer in {folder} cannot be read ({reason}); {remedy}"
        ) from error
    if len(tokenizer) <= len(tokenizer.added_tokens_decoder):  # transformers makes one with nothing but those
        raise InputError(f"model.name: {folder} holds no tokenizer; {remedy}")
    return tokenizer
