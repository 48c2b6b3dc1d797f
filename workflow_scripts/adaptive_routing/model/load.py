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


def _check_gpus(device, gpus):
    """Raise InputError unless a device is so many GPUs."""
    import torch

    if (count := torch.cuda.device_count()) < gpus:
        raise InputError(
            f"model.gpus_per_experiment is {gpus}, but must be at most {count}, the number of CUDA devices "
            "that torch finds"
        )
    if device != "cuda":
        raise InputError(
            f"model.gpus_per_experiment is {gpus}, but model.device is {device}, which is one GPU; set "
            "model.device to cuda or auto"
        )


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


def load_model(
    info: ModelDescription, dtype: str = "float32", device: str = "auto", gpus: int = 1
) -> LoadedModel:
    """Load the model that `inspect_model` described, and check that it is computed as it computes itself.

    Args:
        info: its result.
        dtype: float32, bfloat16 or float16.
        device: auto, cpu, cuda or cuda:N.
        gpus: how many GPUs the model is spread over, where it runs on cuda.

    Raises:
        InputError: there is no such device or not so many GPUs, memory is too small, the weights are not
            those that the model's configuration describes, or the model is of a kind that would be computed
            wrongly.
    """
    from transformers.utils import logging

    from adaptive_routing.model.experts import check_experts
    from adaptive_routing.model.parity import check_parity
    from adaptive_routing.model.routers import find_routers, find_rule

    check_folder(info)
    logging.disable_progress_bar()
    device = resolve_device(device)
    gpus = 1 if device == "cpu" else gpus
    if gpus > 1:
        _check_gpus(device, gpus)
    model = _load_weights(info, dtype, device, gpus)
    model.eval().requires_grad_(False)
    num_routers = len(find_routers(model))
    check_experts(model, num_routers)
    if num_routers != info["shapes"]["num_moe_layers"]:
        raise InputError(
            f"model.name: {info['name']} has {num_routers} routers, but its weights name "
            f"{info['shapes']['num_moe_layers']}; allowed are the families that docs/models.md lists"
        )
    _in_memory(lambda: (find_rule(model), check_parity(model)), info, dtype, device)
    return LoadedModel(model, info, _device_name(model))


def _device_name(model):
    """What a model runs on: cpu, the GPU's name, or of several how many and their names."""
    import torch

    from adaptive_routing.model.devices import devices_of

    devices = devices_of(model)
    if devices[0].type == "cpu":
        return "cpu"
    names = [torch.cuda.get_device_name(device) for device in devices]
    return names[0] if len(names) == 1 else f"{len(names)} x {' + '.join(dict.fromkeys(names))}"


def _load_weights(info, dtype, device, gpus):
    """The model on its device; InputError where its weights are not those of its configuration."""
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    from adaptive_routing.model.experts import ALL_SLOTS
    from adaptive_routing.model.spread import balanced_device_map, free_bytes

    # Straight to the GPU, not by way of host memory.
    device_map = None if device == "cpu" else {"": device}
    if gpus > 1:
        device_map = balanced_device_map(info, dtype, free_bytes(gpus))

    def load():
        return AutoModelForCausalLM.from_pretrained(
            info["folder"],
            dtype=getattr(torch, dtype),
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            experts_implementation=ALL_SLOTS,
            device_map=device_map,
            # What is missing or has another shape transformers draws at random; the report tells, see below.
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )

    folder, failures = info["folder"], _allocation_failures(device, gpus)
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
        if _allocation_failures(device, gpus) > failures:
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


def _allocation_failures(device, gpus):
    """How often this process has asked its GPUs for memory in vain."""
    import torch

    if device == "cpu":
        return 0
    devices = [device] if gpus == 1 else range(gpus)
    return sum(torch.cuda.memory_stats(one).get("num_ooms", 0) for one in devices)
