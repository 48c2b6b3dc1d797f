"""The description of the model that `models.inspect_model` makes, read from its file."""

from adaptive_routing.errors import InputError
from adaptive_routing.files import MADE_ANEW, excerpt, read_json

# What other modules read of it.
_NEEDED = {
    "name": str,
    "folder": str,
    "fingerprint": str,
    "max_position_embeddings": int,
    "shapes.num_moe_layers": int,
    "shapes.num_experts": int,
    "shapes.vocab_size": int,
}
_KINDS = {str: "text", int: "a whole number"}


def read_model_info(path):
    """Read the file of `inspect_model`'s result.

    Raises:
        InputError: it is damaged.
    """
    info = read_json(path)
    for key, kind in _NEEDED.items():
        found = info
        for part in key.split("."):
            found = found.get(part) if isinstance(found, dict) else None
        if not isinstance(found, kind):
            raise InputError(f"{path}: {key} is {excerpt(found)}, but must be {_KINDS[kind]}; {MADE_ANEW}")
    return info
