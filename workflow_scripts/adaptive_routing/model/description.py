"""The description of the model that `inspect.inspect_model` makes, read from its file."""

from pathlib import Path
from typing import TypedDict

from adaptive_routing.system.errors import InputError
from adaptive_routing.system.files import MADE_ANEW, excerpt
from adaptive_routing.system.json_files import read_json


class ModelShapes(TypedDict):
    """The sizes that count operations."""

    hidden_size: int
    intermediate_size: int
    dense_intermediate_size: int
    shared_expert_intermediate_size: int
    num_hidden_layers: int
    num_moe_layers: int
    num_experts: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    latent_attention: dict[str, int] | None


class ModelDescription(TypedDict):
    """What the workflow must know of a model before it is loaded: model.json."""

    name: str
    revision: str | None
    commit: str | None
    folder: str
    model_type: str | None
    native_top_k: int
    max_position_embeddings: int
    shapes: ModelShapes
    fingerprint: str


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


def read_model_info(path: Path | str) -> ModelDescription:
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


def check_folder(info: ModelDescription) -> None:
    """Raise InputError where the model was removed after it had been inspected, as from the hub's cache."""
    if not Path(info["folder"], "config.json").is_file():
        raise InputError(
            f"model.name: {info['name']} is no longer in {info['folder']}; delete model.json in the results "
            "folder and run again, which looks for it anew"
        )
