"""One model over several GPUs: whole layers on each, by accelerate's `device_map`.

Layers run one after another, so the GPUs take turns: this is for models that one GPU cannot hold, not for
speed. Nothing is put into host memory or onto a disk.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from accelerate import init_empty_weights
from accelerate.utils import compute_module_sizes, get_balanced_memory, infer_auto_device_map
from transformers import AutoConfig, AutoModelForCausalLM

from adaptive_routing.system.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adaptive_routing.model.description import ModelDescription


def free_bytes(gpus: int) -> list[int]:
    """The free memory of each of the first GPUs, in bytes."""
    return [torch.cuda.mem_get_info(gpu)[0] for gpu in range(gpus)]


def balanced_device_map(info: ModelDescription, dtype: str, free: Sequence[int]) -> dict[str, int]:
    """Which GPU each part of a model stands on, so that all hold about as much: {module: number of the GPU}.

    Args:
        info: the result of `inspect_model`.
        dtype: float32, bfloat16 or float16.
        free: bytes of free memory, one number a GPU.

    Raises:
        InputError: the weights do not fit into it.
    """
    config = AutoConfig.from_pretrained(info["folder"], local_files_only=True, trust_remote_code=False)
    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype), trust_remote_code=False)
    model.tie_weights()
    whole = list(model._no_split_modules or [])
    memory = get_balanced_memory(model, dict(enumerate(free)), no_split_module_classes=whole)
    device_map = infer_auto_device_map(model, memory, no_split_module_classes=whole)
    if {"cpu", "disk"} & set(device_map.values()):
        narrower = "model.dtype: bfloat16, " if dtype == "float32" else ""
        size = compute_module_sizes(model)[""] / 1e9
        gigabytes = " and ".join(f"{one / 1e9:.1f}" for one in free)
        raise InputError(
            f"model.gpus_per_experiment is {len(free)}, but {info['name']} in {dtype} ({size:.1f} GB of "
            f"weights) does not fit into the free memory of those GPUs ({gigabytes} GB); set {narrower}"
            "more GPUs or GPUs with more memory, or end what else is using these"
        )
    return device_map
