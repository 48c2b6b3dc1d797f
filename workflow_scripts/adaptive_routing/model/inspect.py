"""Inspecting a model without loading it: shapes, resolved commit, fingerprint of the weights.

Weights come from safetensors only.
"""

from __future__ import annotations

import functools
import hashlib
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from adaptive_routing.system import hub
from adaptive_routing.system.cores import usable_cores
from adaptive_routing.system.errors import InputError
from adaptive_routing.system.files import excerpt
from adaptive_routing.system.hub_faults import HubUnreachable
from adaptive_routing.system.json_files import read_json

if TYPE_CHECKING:
    from adaptive_routing.model.description import ModelDescription

_DIGEST_BYTES = 1 << 28  # hashed by one thread
# What families call the same thing in config.json.
_NUM_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_NATIVE_TOP_K = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "num_selected_experts")
_SHARED = ("n_shared_experts", "num_shared_experts", "moe_num_shared_experts", "num_shared_expert")
_HUB_FILES = re.compile(r"tokenizer[^/]*|[^/]*\.(json|safetensors|txt|model)")


def inspect_model(name: Path | str, revision: str | None = None) -> ModelDescription:
    """What the workflow must know of a model before it is loaded; downloads a hub model.

    Returns:
        dict: name, revision asked for, resolved commit (null for a folder), folder, architecture, the
        shapes that count operations, native top-k, and a fingerprint (SHA-256) of configuration,
        tokenizer and weights.

    Raises:
        InputError: there is no such model, no safetensors, or it is not a mixture of experts.
    """
    folder, commit = _locate(name, revision)
    config = _read_config(folder)
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise InputError(
            f"model.name: {name} has no *.safetensors; only safetensors are read, so convert other weights "
            "with transformers: AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder)"
        )
    _check_weights_format(name, config)
    num_experts = _common(_first(config, *_NUM_EXPERTS))
    native_top_k = _common(_first(config, *_NATIVE_TOP_K))
    if num_experts is None or native_top_k is None:
        raise InputError(
            f"model.name: {name} ({config.get('model_type', 'unknown type')}) is not a mixture of experts: "
            "its config.json has no num_experts and num_experts_per_tok"
        )
    _check_config(folder, config, num_experts, native_top_k)
    shapes = _tensor_shapes(folder, weights)
    _check_sizes(folder, config, num_experts, shapes)
    routers = _router_sizes(shapes)
    if _first(config, "num_nextn_predict_layers", "num_mtp_layers"):
        # Layers that predict a token more, behind the others; transformers does not load them.
        routers = {layer: size for layer, size in routers.items() if layer < config["num_hidden_layers"]}
    _check_routers(folder, config, num_experts, routers)
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
            "intermediate_size": _expert_width(config),
            "dense_intermediate_size": config["intermediate_size"],
            "shared_expert_intermediate_size": _shared_width(config),
            "num_hidden_layers": config["num_hidden_layers"],
            "num_moe_layers": len(routers) or config["num_hidden_layers"],
            "num_experts": num_experts,
            "num_attention_heads": heads,
            "num_key_value_heads": config.get("num_key_value_heads") or heads,
            "head_dim": config.get("head_dim") or config["hidden_size"] // heads,
            "vocab_size": config["vocab_size"],
            "latent_attention": _latent_attention(config),
        },
        "fingerprint": _fingerprint(folder, weights),
    }


def _locate(name, revision):
    folder = Path(name)
    if (folder / "config.json").exists():
        return folder, None
    repository = hub.Repository("model", str(name), "model.name")
    commit, why_not_asked = hub.resolve(repository, revision)
    if not why_not_asked:
        try:
            files = [file for file in hub.list_files(repository, commit) if _HUB_FILES.fullmatch(file.path)]
            hub.fetch(repository, commit, files)
        except HubUnreachable as error:
            why_not_asked = error.reason
    folder = repository.snapshot(commit)
    if why_not_asked:
        if not _is_whole(folder):
            part = "only a part of it" if folder.is_dir() else "nothing of it"
            raise InputError(
                f"model.name: {why_not_asked}, and the cache ({folder.parents[2]}) holds {part}: the "
                f"{repository} at commit {commit}; run again, which fetches what is missing"
            )
        print(
            f"model.name: {why_not_asked}; {name} is read from the cache, at commit {commit}", file=sys.stderr
        )
    return folder, commit


def _is_whole(folder):
    """Whether a folder of the hub's cache holds a configuration and all the weights that its index names."""
    index = folder / "model.safetensors.index.json"
    needed = {"model.safetensors"}
    if index.is_file():
        content = read_json(index, "get the model again")
        parts = content.get("weight_map") if isinstance(content, dict) else None
        needed = set(parts.values()) if isinstance(parts, dict) else set()
    return all((folder / name).is_file() for name in {"config.json", *needed})


def _first(config, *keys):
    return next((config[key] for key in keys if config.get(key) is not None), None)


def _common(value):
    """The one value of a list of a value for each layer; anything else as it is."""
    return value[0] if isinstance(value, list) and len(set(map(str, value))) == 1 else value


def _check_weights_format(name, config):
    quantization = config.get("quantization_config")
    if quantization:
        method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
        raise InputError(
            f"model.name: the weights of {name} are quantised ({method}), but must be "
            "float32, bfloat16 or float16; load it once with transformers so that it is dequantised, as by "
            "quantization_config=Mxfp4Config(dequantize=True), and use the folder that save_pretrained writes"
        )


def _expert_width(config):
    """Width of one expert: what families call it."""
    return _common(_first(config, "moe_intermediate_size", "expert_ffn_hidden_size", "intermediate_size"))


def _shared_width(config):
    """Width of all shared experts together, which every token gets; 0 where there are none."""
    width = _first(config, "shared_expert_intermediate_size", "shared_intermediate_size")
    if width is not None:
        return width
    number = _common(_first(config, *_SHARED))
    single = _first(config, "moe_shared_expert_intermediate_size") or _expert_width(config)
    return (number or 0) * single


def _latent_attention(config):
    """The ranks and widths of multi-head latent attention (DeepSeek-V2); None where attention is plain."""
    if not config.get("kv_lora_rank"):
        return None
    keys = ("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
    return {key: config.get(key) or 0 for key in keys}


def _read_config(folder):
    path = folder / "config.json"
    config = read_json(path, "it must be the configuration that the model came with")
    if not isinstance(config, dict):
        raise InputError(f"{path} must be a JSON object, but holds {excerpt(config)}")
    return config


def _check_config(folder, config, num_experts, native_top_k):
    """Raise InputError unless the numbers that the workflow needs are there and fit each other."""
    path = folder / "config.json"
    if isinstance(num_experts, list) and len(set(map(str, num_experts))) > 1:
        raise InputError(
            f"{path}: layers have unequal numbers of experts, {excerpt(num_experts)}; allowed are models "
            "whose MoE layers all have the same"
        )
    sizes = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    needed = {"the number of experts": num_experts, "the native top-k": native_top_k}
    needed |= {size: config.get(size) for size in sizes}
    for name, found in needed.items():
        if not isinstance(found, int) or isinstance(found, bool) or found < 1:
            raise InputError(f"{path}: {name} is {excerpt(found)}, but must be a whole number from 1 up")
    if native_top_k > num_experts:
        raise InputError(
            f"{path}: the model's own top-k is {native_top_k}, but it has {num_experts} experts a layer, the "
            "most allowed"
        )


def _tensor_shapes(folder, weights):
    """The shape of every tensor by name; InputError where a file is damaged or one of several is missing."""
    from safetensors import SafetensorError, safe_open

    shapes = {}
    for path in weights:
        try:
            with safe_open(path, framework="numpy") as file:
                for name in file.keys():  # noqa: SIM118 (not a dict)
                    shapes[name] = tuple(file.get_slice(name).get_shape())
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path} is cut short or damaged ({error}); get the model again") from error
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        content = read_json(index, "get the model again")
        parts = content.get("weight_map") if isinstance(content, dict) else None
        if not isinstance(parts, dict):
            raise InputError(f"{index} has no weight_map of tensors and files; get the model again")
        missing = sorted(set(parts.values()) - {path.name for path in weights})
        if missing:
            raise InputError(f"{index} names {missing[0]}, which is not there; get the model again")
    return shapes


def _check_sizes(folder, config, num_experts, shapes):
    """Raise InputError where config.json states sizes that its weights cannot have.

    transformers would make a model of those sizes before it compares, and take all time and memory for it.
    Smaller differences it tells itself.
    """
    path = folder / "config.json"
    most = max((size for shape in shapes.values() for size in shape), default=0)
    sizes = {"hidden_size": 1, "vocab_size": 1, "intermediate_size": 16, "moe_intermediate_size": 16}
    sizes |= {"num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 1}
    stated = {key: (config.get(key), times) for key, times in sizes.items()}
    stated |= {
        "the number of experts": (num_experts, 1),
        "shared experts' width": (_shared_width(config), 16),
    }
    for key, (size, times) in stated.items():
        if isinstance(size, int) and size > times * most:
            raise InputError(
                f"{path}: {key} is {excerpt(size)}, but no dimension of the weights is larger than {most}; "
                "they must belong together"
            )
    numbers = [int(match[1]) for match in (re.search(r"\.(\d+)\.", name) for name in shapes) if match]
    layers = max(numbers, default=0) + 1
    if config["num_hidden_layers"] > 2 * layers:
        raise InputError(
            f"{path}: num_hidden_layers is {excerpt(config['num_hidden_layers'])}, but the weights have "
            f"{layers} layers; they must belong together"
        )


def _router_sizes(shapes):
    """The number of experts of each layer that has a router, told by the weights' names."""
    pattern = r"layers\.(\d+)\.(?!self_attn).*\b(gate|router)(\.(wg|layer|gate))?\.weight$"
    matches = ((re.search(pattern, name), name) for name in shapes)
    return {int(match[1]): shapes[name][0] for match, name in matches if match}


def _check_routers(folder, config, num_experts, routers):
    for layer, size in sorted(routers.items()):
        if size != num_experts:
            raise InputError(
                f"model.name: the router of layer {layer} in the weights of {folder} has {size} experts, but "
                f"config.json says {num_experts}; allowed are models whose MoE layers all have that many"
            )
        if layer >= config["num_hidden_layers"]:
            raise InputError(
                f"model.name: the weights of {folder} have a layer {layer}, but config.json says "
                f"num_hidden_layers: {config['num_hidden_layers']}; they must belong together"
            )


def _fingerprint(folder, weights):
    paths = [folder / "config.json", *sorted(folder.glob("tokenizer*.json")), *weights]
    total = hashlib.sha256()
    with ThreadPoolExecutor(usable_cores()) as pool:
        names = {path: hub.content_name(path) for path in paths}
        whole = [path for path, name in names.items() if name and len(name) == 64]  # SHA-256
        digests = dict(zip(whole, pool.map(_digest_whole, whole), strict=True))
        for path in paths:
            digest = digests.get(path) or _digest(path, pool)
            total.update(f"{path.name} {digest}\n".encode())
    damaged = [path for path, digest in digests.items() if digest != names[path]]
    damaged += hub.damaged_files(folder, [path.name for path in paths if path not in whole])
    remedies = list(map(hub.remove, damaged))
    if damaged:
        raise InputError(
            f"model.name: {damaged[0]} in the hub's cache is damaged (its content is not what the hub said) "
            f"and {remedies[0]}"
        )
    return total.hexdigest()


def _digest_whole(path):
    """SHA-256 of a file of the hub's cache, which names large files by it."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(path, pool):
    """SHA-256 of a file; of a large one, that of its portions' digests, which the pool makes side by side."""
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
