"""Loading a model onto its device.

Weights come from safetensors only, and no code from a model's repository is run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from adaptive_routing.model.description import check_folder
from adaptive_routing.system.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from adaptive_routing.model.description import ModelDescription


def resolve_device(device: str) -> str:
    """`auto` as the device that will be used; anything else as it is."""
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda"):
        if not torch.cuda.is_available():
            raise InputError(
                f"model.device: {device} asked for, but torch finds no CUDA device; use cpu or auto"
            )
        count = torch.cuda.device_count()
        if int(device.partition(":")[2] or 0) >= count:
            found = "cuda:0 alone" if count == 1 else f"cuda:0 to cuda:{count - 1}"
            raise InputError(f"model.device: {device} asked for, but torch finds {found}")
    return device


@dataclass(frozen=True)
class LoadedModel:
    """A model on its device, with what is known of it."""

    model: PreTrainedModel
    info: ModelDescription
    device_name: str

    @property
    def dtype(self) -> str:
        """The weights' dtype as a word."""
        return str(self.model.dtype).removeprefix("torch.")


def load_model(info: ModelDescription, dtype: str = "float32", device: str = "auto") -> LoadedModel:
    """Load the model that `inspect_model` described, and check that it is computed as it computes itself.

    Args:
        info: its result.
        dtype: float32, bfloat16 or float16.
        device: auto, cpu, cuda or cuda:N.

    Raises:
        InputError: there is no such device, it has too little memory, the weights are not those that the
            model's configuration describes, or the model is of a kind that would be computed wrongly.
    """
    import torch
    from transformers.utils import logging

    from adaptive_routing.model.experts import check_experts
    from adaptive_routing.model.parity import check_parity
    from adaptive_routing.model.routers import find_routers, find_rule

    check_folder(info)
    logging.disable_progress_bar()
    device = resolve_device(device)
    model = _load_weights(info, dtype, device)
    model.eval().requires_grad_(False)
    num_routers = len(find_routers(model))
    check_experts(model, num_routers)
    if num_routers != info["shapes"]["num_moe_layers"]:
        raise InputError(
            f"model.name: {info['name']} has {num_routers} routers, but its weights name "
            f"{info['shapes']['num_moe_layers']}; allowed are the families that docs/models.md lists"
        )
    _in_memory(lambda: (find_rule(model), check_parity(model)), info, dtype, device)
    name = torch.cuda.get_device_name(model.device) if device != "cpu" else "cpu"
    return LoadedModel(model, info, name)


def _load_weights(info, dtype, device):
    """The model on its device; InputError where its weights are not those of its configuration."""
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    from adaptive_routing.model.experts import ALL_SLOTS

    def load():
        return AutoModelForCausalLM.from_pretrained(
            info["folder"],
            dtype=getattr(torch, dtype),
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            experts_implementation=ALL_SLOTS,
            # Straight to the GPU, not by way of host memory.
            device_map=None if device == "cpu" else {"": device},
            # What is missing or has another shape transformers draws at random; the report tells, see below.
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )

    folder, failures = info["folder"], _allocation_failures(device)
    try:
        model, report = _in_memory(load, info, dtype, device)
    except InputError:
        raise
    except (OSError, ValueError, SafetensorError) as error:
        reason = " ".join(str(error).split()).partition(". ")[0]
        raise InputError(f"model.name: the model in {folder} cannot be loaded ({reason})") from error
    except RuntimeError as error:
        # Whatever goes wrong while tensors are converted is only printed, in a table.
        if "conversion" not in str(error):
            raise
        if _allocation_failures(device) > failures:
            raise _too_large(info, dtype, device, "while tensors were converted") from None
        raise InputError(
            f"model.name: the weights in {folder} cannot be brought into the form that config.json "
            "describes; the table above says which"
        ) from None
    faults = {
        "lack": sorted(report["missing_keys"]),
        "have another shape for": sorted(key for key, *_ in report["mismatched_keys"]),
    }
    for fault, keys in faults.items():
        if keys:
            more = f" and {len(keys) - 2} more" if len(keys) > 2 else ""
            raise InputError(
                f"model.name: the weights in {folder} {fault} {', '.join(keys[:2])}{more}; they must be "
                "those that config.json describes"
            )
    return model


def _in_memory(work, info, dtype, device):
    """The result of work; InputError where the device has too little memory for the model."""
    from adaptive_routing.model.memory import unless_out_of_memory

    result, said = unless_out_of_memory(work)
    if said:
        raise _too_large(info, dtype, device, said)
    return result


def _too_large(info, dtype, device, said):
    narrower = "model.dtype: bfloat16 or " if dtype == "float32" else ""
    return InputError(
        f"model.device: {device} has too little memory for {info['name']} in {dtype} ({said}); set "
        f"{narrower}a device with more memory, or end what else is using this one"
    )


def _allocation_failures(device):
    """How often this process has asked a GPU for memory in vain."""
    import torch

    return 0 if device == "cpu" else torch.cuda.memory_stats(device).get("num_ooms", 0)
