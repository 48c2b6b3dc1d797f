"""Inspecting a model without loading it, and loading it onto a device.

Weights come from safetensors only, and no code from a model's repository is run.
"""

import functools
import hashlib
import importlib.metadata
import os
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from adaptive_routing.errors import InputError
from adaptive_routing.files import read_json

_SHA256 = re.compile(r"[0-9a-f]{64}")
_DIGEST_BYTES = 1 << 28  # hashed by one thread
_HUB_FILES = ("*.json", "*.safetensors", "tokenizer*", "*.txt", "*.model")


def inspect_model(name, revision=None):
    """What the workflow must know of a model before it is loaded; downloads a hub model.

    Returns:
        dict: name, revision asked for, resolved commit (null for a folder), folder, architecture, the
        shapes that count operations, native top-k, and a fingerprint (SHA-256) of configuration,
        tokenizer and weights.

    Raises:
        InputError: there is no such model, no safetensors, or it is not a mixture of experts.
    """
    folder, commit = _locate(name, revision)
    config = read_json(folder / "config.json")
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise InputError(
            f"model.name: {name} has no *.safetensors; only safetensors are read, so convert other weights "
            "with save_pretrained(..., safe_serialization=True)"
        )
    num_experts = _first(config, "num_experts", "num_local_experts", "n_routed_experts")
    native_top_k = _first(config, "num_experts_per_tok", "num_experts_per_token", "moe_topk")
    if num_experts is None or native_top_k is None:
        raise InputError(
            f"model.name: {name} ({config.get('model_type', 'unknown type')}) is not a mixture of experts: "
            "its config.json has no num_experts and num_experts_per_tok"
        )
    heads = config["num_attention_heads"]
    return {
        "name": str(name),
        "revision": revision,
        "commit": commit,
        "folder": str(folder),
        "model_type": config.get("model_type"),
        "native_top_k": native_top_k,
        "max_position_embeddings": config.get("max_position_embeddings", 2048),
        "shapes": {
            "hidden_size": config["hidden_size"],
            "intermediate_size": config.get("moe_intermediate_size") or config["intermediate_size"],
            "dense_intermediate_size": config["intermediate_size"],
            "shared_expert_intermediate_size": config.get("shared_expert_intermediate_size") or 0,
            "num_hidden_layers": config["num_hidden_layers"],
            "num_moe_layers": _num_moe_layers(weights, config),
            "num_experts": num_experts,
            "num_attention_heads": heads,
            "num_key_value_heads": config.get("num_key_value_heads") or heads,
            "head_dim": config.get("head_dim") or config["hidden_size"] // heads,
            "vocab_size": config["vocab_size"],
        },
        "fingerprint": _fingerprint(folder, weights),
    }


def _locate(name, revision):
    folder = Path(name)
    if (folder / "config.json").exists():
        return folder, None
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=_HUB_FILES))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"model.name: {name!r} (revision {revision or 'main'}) is neither a folder with config.json "
            f"nor a model that can be had from the hub ({reason})"
        ) from error
    return folder, folder.name  # the hub's cache names a snapshot by its commit


def _first(config, *keys):
    return next((config[key] for key in keys if config.get(key) is not None), None)


def _num_moe_layers(weights, config):
    """Layers that have a router, counted from the weights' names."""
    from safetensors import safe_open

    layers = set()
    for path in weights:
        with safe_open(path, framework="numpy") as file:
            for key in file.keys():  # noqa: SIM118 (not a dict)
                if match := re.search(r"layers\.(\d+)\..*\b(gate|router)\.weight$", key):
                    layers.add(int(match[1]))
    return len(layers) or config["num_hidden_layers"]


def _fingerprint(folder, weights):
    paths = [folder / "config.json", *sorted(folder.glob("tokenizer*.json")), *weights]
    total = hashlib.sha256()
    with ThreadPoolExecutor(cpu_count()) as pool:
        for path in paths:
            total.update(f"{path.name} {_digest(path, pool)}\n".encode())
    return total.hexdigest()


def _digest(path, pool):
    """SHA-256 of a file; of a large one, that of its portions' digests, which the pool makes side by side."""
    blob = path.resolve().name
    if path.is_symlink() and _SHA256.fullmatch(blob):
        return blob  # the hub's cache names large files by their SHA-256
    starts = range(0, max(path.stat().st_size, 1), _DIGEST_BYTES)
    digests = list(pool.map(functools.partial(_digest_portion, path), starts))
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def _digest_portion(path, start):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        file.seek(start)
        left = _DIGEST_BYTES
        while left and (data := file.read(min(left, 1 << 22))):
            digest.update(data)
            left -= len(data)
    return digest.hexdigest()


def resolve_device(device):
    """`auto` as the device that will be used; anything else as it is."""
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"model.device: {device} asked for, but torch finds no CUDA device; use cpu or auto")
    return device


@dataclass(frozen=True)
class LoadedModel:
    """A model on its device, with what is known of it."""

    model: object
    info: dict
    device_name: str

    @property
    def dtype(self):
        """The weights' dtype as a word."""
        return str(self.model.dtype).removeprefix("torch.")


def load_model(info, dtype, device):
    """Load the model that `inspect_model` described.

    Args:
        info: its result.
        dtype: float32, bfloat16 or float16.
        device: auto, cpu, cuda or cuda:N.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    from adaptive_routing.experts import ALL_SLOTS
    from adaptive_routing.packing import check_packing

    logging.disable_progress_bar()
    device = resolve_device(device)
    if device == "cpu":
        # The job holds the whole device; Snakemake's --cores would leave it one thread of it.
        torch.set_num_threads(cpu_count())
    model = AutoModelForCausalLM.from_pretrained(
        info["folder"],
        dtype=getattr(torch, dtype),
        use_safetensors=True,
        trust_remote_code=False,
        local_files_only=True,
        attn_implementation="sdpa",
        experts_implementation=ALL_SLOTS,
        # Straight to the GPU, not by way of host memory.
        device_map=None if device == "cpu" else {"": device},
    )
    model.eval().requires_grad_(False)
    check_packing(model)
    name = torch.cuda.get_device_name(model.device) if device != "cpu" else "cpu"
    return LoadedModel(model, info, name)


def cpu_count():
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def load_tokenizer(info):
    """The model's tokenizer."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(
        info["folder"],
        local_files_only=True,
        trust_remote_code=False,
        model_max_length=sys.maxsize,  # texts are cut, and long ones need no warning
    )


def package_versions():
    """Versions of the packages that decide results."""
    names = ("torch", "transformers", "numpy", "safetensors", "datasets", "snakemake")
    return {name: importlib.metadata.version(name) for name in names}
