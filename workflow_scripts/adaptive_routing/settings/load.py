"""A study's settings: the config file, checked against its schema and across keys, and completed.

Every fault is an InputError of one sentence that names the key, what was found and what is allowed. Snakemake
imports this module each time it parses the workflow, so it imports nothing heavy.
"""

import copy
import difflib
import json
import os
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

import yaml

from adaptive_routing.settings.configurations import CONTROLS, DEFAULTS, EXPERT_COUNTS, Configuration, grid
from adaptive_routing.settings.schema import alternatives, schema, shown, validated
from adaptive_routing.system.errors import InputError
from adaptive_routing.system.harness_tasks import find_task, installed_version
from adaptive_routing.system.hub import Repository, fetch_file

DATA_SUFFIXES = (".jsonl", ".json", ".parquet")
PICKLE_SUFFIXES = (".pkl", ".pickle", ".pt", ".pth", ".bin", ".joblib")
# A name with one of these endings is a local file, whether or not it can be read.
PATH_SUFFIXES = (*DATA_SUFFIXES, *PICKLE_SUFFIXES, ".csv", ".tsv", ".txt", ".gz", ".zst", ".safetensors")
HUB_NAME = re.compile(r"(?!.*(--|\.\.))[A-Za-z0-9_]([\w.-]*\w)?(/[A-Za-z0-9_]([\w.-]*\w)?)?", re.ASCII)

# Hub data sets with several subsets and no default, each with the subset that lm-evaluation-harness scores.
USUAL_SUBSETS = {
    "Salesforce/wikitext": "wikitext-2-raw-v1",
    "EleutherAI/wikitext_document_level": "wikitext-2-raw-v1",
    "allenai/ai2_arc": "ARC-Challenge",
}

# Keys of the number of experts in the config.json of mixture-of-experts models.
NUM_EXPERTS_KEYS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
# The same for the number that a token gets.
NATIVE_TOP_K_KEYS = (
    "num_experts_per_tok",
    "num_experts_per_token",
    "moe_topk",
    "moe_k",
    "num_selected_experts",
)
NATIVE = "native"

DATASET_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*", re.ASCII)
# Names of columns begin with these: `avg_task_accuracy`, `token_perplexity`.
NO_DATASET_NAMES = ("avg_task", "byte", "mean", "target", "token", "word")


class ModelSettings(TypedDict):
    """The section `model`."""

    name: str
    revision: str | None
    dtype: str
    device: str
    gpus_per_experiment: int
    local: bool


class SourceSettings(TypedDict):
    """Where text or rows come from; null in all but `source` for a local file."""

    source: str
    subset: str | None
    split: str | None
    revision: str | None
    local: bool


class DatasetSettings(SourceSettings):
    """One of the section `datasets`."""

    max_samples: int
    task: NotRequired[str]  # of a data set under a name of its own
    protocol: NotRequired[str]  # wikitext
    max_new_tokens: NotRequired[int]  # prompts


class HarnessSettings(TypedDict):
    """One of the section `datasets` that is a task of lm-evaluation-harness."""

    harness: str
    task: Literal["harness"]
    include_path: str | None
    num_fewshot: int | None
    metric: str | None
    max_samples: int
    bootstrap_iters: int


class CalibrationSettings(SourceSettings):
    """The section `null_distribution.calibration`."""

    column: str
    max_tokens: int
    max_length: int


class NullDistributionVariant(TypedDict):
    """How one null distribution is made: one of the section `null_distributions`."""

    table: str | None
    kernel: str
    bandwidth: str | float
    trim: int
    center: Literal["none", "mean"]


class NullDistributionSettings(NullDistributionVariant):
    """The section `null_distribution`."""

    calibration: CalibrationSettings


class ControlSettings(TypedDict):
    """The section `controls`."""

    of: list[str]
    kinds: list[str]
    seed: int


class EvaluationSettings(TypedDict):
    """The section `evaluation`."""

    max_samples: int
    max_length: int
    batch_tokens: int
    share_contexts: bool
    second_pass_samples: int


class KeptInLog(TypedDict):
    """Of how many of the first samples a log keeps everything."""

    json_samples: int | Literal["all"]
    router_logits: int | Literal["all"]


class RoutingLogSettings(KeptInLog):
    """The section `routing_log`."""

    json_compression: Literal["none", "zstd"]


class RoutingSettings(TypedDict):
    """The section `routing`."""

    min_k: int
    temperature: float
    weights: str


class ReportSettings(TypedDict):
    """The section `report`."""

    perplexity_margin: float
    accuracy_margin: float


class Settings(TypedDict):
    """A study's settings, complete: what `load_settings` returns."""

    results: str
    model: ModelSettings
    datasets: dict[str, DatasetSettings | HarnessSettings]
    evaluation: EvaluationSettings
    strategies: dict[str, dict[str, list[Any]]]
    routing: RoutingSettings
    baseline: str
    report: ReportSettings
    controls: ControlSettings
    null_distribution: NullDistributionSettings
    null_distributions: dict[str, NullDistributionVariant]
    routing_log: RoutingLogSettings
    execution: Literal["host", "process"]
    configurations: list[Configuration]


def load_settings(
    config: Mapping[str, Any], base_dir: Path | str = ".", command_line: Mapping[str, Any] | None = None
) -> Settings:
    """Check a study's config and return its settings: nested dicts like `config`, completed, and in addition

    - `configurations`: the list of Configurations of the grid, followed by their controls
    - in `null_distributions.{name}` every key
    - `model.local`, `datasets.{dataset}.local`, `null_distribution.calibration.local`: whether the name is a
      path (relative to the working directory) rather than a hub name
    - in `datasets.{dataset}.max_samples`, and in every `split` of a hub data set, the value that applies. A
      local file has no `subset`, `split` and `revision`: they are null, whatever another config file set.

    Strategies and data sets that are null are left out. Paths are relative to `base_dir`. `command_line` is
    the part of `config` that came from `--config`: see `schema.validated`.
    """
    base_dir = Path(base_dir)
    settings: Any = validated(config, command_line)
    _resolve_paths(settings)
    for group in ("datasets", "strategies"):
        settings[group] = {key: value for key, value in settings[group].items() if value is not None}
        if not settings[group]:
            names = alternatives(schema()["properties"][group]["properties"])
            raise InputError(f"{group} is empty, but must hold at least one of {names}")
    _resolve_native(settings, base_dir)
    settings["configurations"] = grid(settings["strategies"])
    settings["configurations"] += _controls(settings)
    _check_results(settings["results"], base_dir)
    _check_baseline(settings)
    _check_limits(settings)
    _check_gpus(settings["model"])
    _check_dataset_names(settings)
    _resolve_datasets(settings, base_dir)
    _resolve_null_distribution(settings, base_dir)
    num_experts = _resolve_model(settings["model"], base_dir)
    if num_experts is not None:
        check_against_model(settings, num_experts)
    return settings


def imported_config(config: dict[str, Any], folder: Path | str) -> dict[str, Any]:
    """The config of a study in a workflow that imports this one: `config` laid over `folder`/config.yaml.

    So it names what differs from there alone, as a file given with --configfile does. Models, data sets and
    tables that are named by a relative path are looked for in the working directory, then in `folder`, and
    get the absolute one: before relative paths Snakemake puts the prefix of a module.
    """
    folder = Path(folder)
    config = _merged(yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8")), config)
    null_distribution = _section(config, "null_distribution")
    named = [(_section(config, "model"), "name"), (null_distribution, "table")]
    others = _section(config, "null_distributions")
    named += [(_section(others, name), "table") for name in others]
    named += [(_section(null_distribution, "calibration"), "source")]
    datasets = _section(config, "datasets")
    named += [(_section(datasets, name), key) for name in datasets for key in ("source", "include_path")]
    for section, key in named:
        if isinstance(section.get(key), str):
            places = (Path.cwd() / section[key], folder / section[key])
            section[key] = next((str(path) for path in places if path.exists()), section[key])
    return config


def _merged(below, above):
    """A copy of nested dicts laid over others; all else replaces what is below it."""
    if not (isinstance(below, dict) and isinstance(above, dict)):
        return copy.deepcopy(above)
    return {
        key: _merged(below[key], above[key])
        if key in below and key in above
        else copy.deepcopy({**below, **above}[key])
        for key in {**below, **above}
    }


def _section(config, key):
    """A section of a config that may be wrong: {} where it is none."""
    section = config.get(key)
    return section if isinstance(section, dict) else {}


def needs_p_values(configuration: Configuration) -> bool:
    """Whether a Configuration's strategy needs p-values, according to its entry in the schema."""
    strategies = schema()["properties"]["strategies"]["properties"]
    return strategies.get(configuration.strategy, {}).get("p_values", False)


def is_upper_bound(strategy: str) -> bool:
    """Whether a strategy looks at later tokens, according to its entry in the schema."""
    strategies = schema()["properties"]["strategies"]["properties"]
    return strategies.get(strategy, {}).get("upper_bound", False)


def null_distributions(settings: Settings) -> dict[str, NullDistributionVariant]:
    """Every null distribution by name: `default`, the section `null_distribution`, and all others."""
    default = {key: value for key, value in settings["null_distribution"].items() if key != "calibration"}
    return {DEFAULTS["null"]: default, **settings["null_distributions"]}  # ty: ignore[invalid-explicit-return]


def check_against_model(settings: Settings, num_experts: int, num_moe_layers: int | None = None) -> None:
    """Raise InputError if `settings` ask for more than the `num_experts` of a layer.

    Also, where the number of layers with experts is given, if their numbers cannot sum to a budget.
    """
    for configuration in grid(settings["strategies"]):
        if configuration.max_experts > num_experts:
            key = next(key for key in EXPERT_COUNTS if key in configuration.parameters)
            index = settings["strategies"][configuration.strategy][key].index(configuration.max_experts)
            raise InputError(
                f"strategies.{configuration.strategy}.{key}[{index}] is {configuration.max_experts}, but the "
                f"model {settings['model']['name']} has {num_experts} experts per layer, the most allowed"
            )
        if configuration.strategy == "layerwise" and num_moe_layers is not None:
            _check_layer_budget(settings, configuration, num_moe_layers)
    for name, null_distribution in null_distributions(settings).items():
        trim = null_distribution["trim"]
        if 2 * trim < num_experts:
            continue
        key = "null_distribution" if name == DEFAULTS["null"] else f"null_distributions.{name}"
        raise InputError(
            f"{key}.trim is {trim}, but the model {settings['model']['name']} has {num_experts} "
            "experts per layer; twice the trim must be less, so that logits remain"
        )


def _check_layer_budget(settings, configuration, num_moe_layers):
    budget, min_k = configuration.parameters["budget"], settings["routing"]["min_k"]
    least, most = num_moe_layers * min_k, num_moe_layers * configuration.max_experts
    if not least <= budget <= most:
        index = settings["strategies"]["layerwise"]["budget"].index(budget)
        raise InputError(
            f"strategies.layerwise.budget[{index}] is {budget}, but with max_k {configuration.max_experts} "
            f"must be from {least} to {most}, since the model {settings['model']['name']} has "
            f"{num_moe_layers} MoE layers, each with {min_k} to {configuration.max_experts} experts"
        )


def _controls(settings):
    """The controls that the section `controls` asks for, in the order of the grid."""
    configurations, strategies = settings["configurations"], settings["strategies"]
    adaptive = [one for one in configurations if one.is_adaptive]
    allowed = ["all", *dict.fromkeys(one.strategy for one in adaptive), *(one.name for one in adaptive)]
    for index, name in enumerate(settings["controls"]["of"]):
        if name not in allowed:
            closest = difflib.get_close_matches(name, allowed, n=1)
            known = name in strategies or any(one.name == name for one in configurations)
            raise InputError(
                f"controls.of[{index}] is {shown(name)}, which "
                + ("gives every token the same number of experts" if known else "is not in the grid")
                + (f" (did you mean {closest[0]}?)" if closest and not known else "")
                + "; it must be all, an adaptive strategy or the name of an adaptive configuration"
            )
    asked = set(settings["controls"]["of"])
    return [
        one.control(kind)
        for one in adaptive
        if asked & {"all", one.strategy, one.name}
        for kind in CONTROLS
        if kind in settings["controls"]["kinds"]
    ]


def _resolve_paths(settings):
    """Have paths mean what they do in a shell: `~` is the home folder, and `./a//b` is `a/b`."""
    if settings["results"]:
        settings["results"] = os.path.normpath(os.path.expanduser(settings["results"]))
    null_distribution = settings["null_distribution"]
    named = [(settings["model"], "name"), (null_distribution, "table")]
    named += [(one, "table") for one in settings["null_distributions"].values()]
    sources = [*settings["datasets"].values(), null_distribution["calibration"]]
    named += [(one, key) for one in sources for key in ("source", "include_path")]
    for section, key in named:
        if section and (section.get(key) or "").startswith("~"):
            section[key] = os.path.expanduser(section[key])


# Checks across keys


def _check_results(results, base_dir):
    """Check that the results folder is writable, or can be created."""
    folder = base_dir / results
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not existing.is_dir():
        raise InputError(f"results is {shown(results)}, but {existing} is a file; it must be a folder")
    if not os.access(existing, os.W_OK):
        raise InputError(f"results is {shown(results)}, but {existing} cannot be written to; choose another")


def _resolve_native(settings, base_dir):
    """Put the model's own number of experts where the grid or the baseline says native."""
    strategies, is_baseline = settings["strategies"], settings["baseline"] == NATIVE
    lists = [
        lists for lists in strategies.values() for count in EXPERT_COUNTS if NATIVE in lists.get(count, [])
    ]
    if not is_baseline and not lists:
        return
    native = _native_top_k(settings["model"], base_dir)
    for of_strategy in lists:
        for count in EXPERT_COUNTS:
            numbers = [native if number == NATIVE else number for number in of_strategy.get(count, [])]
            if numbers:
                of_strategy[count] = list(dict.fromkeys(numbers))  # a number beside native may be the same
    if is_baseline:
        settings["baseline"] = f"{native}experts_topk_baseline"
        numbers = strategies.get("topk", {"k": []})["k"]
        if native not in numbers:
            settings["strategies"] = {"topk": {"k": [native, *numbers]}} | {
                name: lists for name, lists in strategies.items() if name != "topk"
            }


def _native_top_k(model, base_dir):
    """The number of experts that a model itself selects, told by its config.json."""
    name = model["name"]
    path = base_dir / name / "config.json"
    if not is_local(name, base_dir):
        try:
            path = fetch_file(Repository("model", name, "model.name"), model["revision"], "config.json")
        except InputError as error:
            raise InputError(f"{error} (native is told by config.json of {name})") from error
    if not path.is_file():
        raise InputError(f"model.name is {shown(name)}, which holds no config.json to tell what native is")
    config = json.loads(path.read_text(encoding="utf-8"))
    found = next((config[key] for key in NATIVE_TOP_K_KEYS if isinstance(config.get(key), int)), None)
    if found is None:
        raise InputError(
            f"model.name: {path} has no {alternatives(NATIVE_TOP_K_KEYS)}, so that it does not tell what "
            "native is; write the number"
        )
    return found


def _check_baseline(settings):
    names = [one.name for one in settings["configurations"] if one.control_of is None]
    baseline = settings["baseline"]
    if baseline not in names:
        closest = difflib.get_close_matches(baseline, names, n=1)
        shortened = ", ".join(names[:6]) + (f", … ({len(names)} in all)" if len(names) > 6 else "")
        raise InputError(
            f"baseline is {shown(baseline)}, which is not in the grid"
            f"{f' (did you mean {closest[0]}?)' if closest else ''}; its configurations are {shortened}"
        )


def _check_limits(settings):
    min_k = settings["routing"]["min_k"]
    for configuration in settings["configurations"]:
        if configuration.is_adaptive and min_k > configuration.max_experts:
            raise InputError(
                f"routing.min_k is {min_k}, but strategies.{configuration.strategy}.max_k holds "
                f"{configuration.max_experts}; min_k must be at most the smallest max_k"
            )
    evaluation = settings["evaluation"]
    if evaluation["batch_tokens"] < evaluation["max_length"]:
        raise InputError(
            f"evaluation.batch_tokens is {evaluation['batch_tokens']}, but must be at least "
            f"evaluation.max_length, {evaluation['max_length']}, for a batch to hold one sample"
        )


def _check_gpus(model):
    gpus, device = model["gpus_per_experiment"], model["device"]
    if gpus > 1 and device.startswith("cuda:"):
        raise InputError(
            f"model.gpus_per_experiment is {gpus}, but model.device is {device}, which is one GPU; set "
            "model.device to cuda or auto"
        )


def _check_dataset_names(settings):
    """Files and columns are named after data sets, so no two of them may get the same name."""
    files = {}
    for name in settings["datasets"]:
        if not DATASET_NAME.fullmatch(name) or name in NO_DATASET_NAMES:
            raise InputError(
                f"datasets holds the name {shown(name)}, but a name must be letters, digits and underscores "
                f"that begin with a letter, and none of {alternatives(NO_DATASET_NAMES)}"
            )
        for configuration in settings["configurations"]:
            for suffix in ("", "_internal_routing"):
                file = f"{configuration.name}_{name}{suffix}"
                other = files.setdefault(file.casefold(), name)
                if other != name:
                    raise InputError(
                        f"datasets.{name} and datasets.{other} would both have a file {file}.json; names "
                        "must keep files apart"
                    )


def task_of(settings: Mapping[str, Any], dataset: str) -> str:
    """Of which kind a data set of a study's settings is: its `task`, by default its name."""
    return settings["datasets"].get(dataset, {}).get("task", dataset)


def _resolve_datasets(settings, base_dir):
    for name, dataset in settings["datasets"].items():
        if dataset.get("task") == name:
            del dataset["task"]
        if dataset["max_samples"] is None:
            dataset["max_samples"] = settings["evaluation"]["max_samples"]
        if "harness" in dataset:
            _check_harness_task(f"datasets.{name}", dataset, base_dir)
            continue
        # The splits that lm-evaluation-harness scores: HellaSwag's test split has no answers.
        _resolve_source(dataset, base_dir, "validation" if task_of(settings, name) == "hellaswag" else "test")
        _check_source(f"datasets.{name}.source", dataset, base_dir)


def _check_harness_task(key, dataset, base_dir):
    """Check that the harness has the task, and that it asks for log-likelihoods only."""
    installed_version(f"{key}.harness")
    include_path = dataset["include_path"]
    if include_path is not None and not (base_dir / include_path).is_dir():
        raise InputError(f"{key}.include_path is {shown(include_path)}, which is no folder")
    folder = None if include_path is None else str(base_dir / include_path)
    generating = find_task(dataset["harness"], folder, f"{key}.harness").generating
    if generating is not None:
        of = "" if generating == dataset["harness"] else f", which holds {generating}"
        raise InputError(
            f"{key}.harness is {shown(dataset['harness'])}{of}, which generates text; it must be a task, "
            "group or tag that asks for log-likelihoods only"
        )


def _resolve_null_distribution(settings, base_dir):
    shared = null_distributions(settings)[DEFAULTS["null"]]
    calibration = settings["null_distribution"]["calibration"]
    for name, own in settings["null_distributions"].items():
        settings["null_distributions"][name] = shared | own
    variants = null_distributions(settings)
    _resolve_source(calibration, base_dir, "train")
    used = {one.null: one for one in settings["configurations"] if needs_p_values(one)}
    for name, configuration in used.items():
        if name not in variants:
            index = settings["strategies"][configuration.strategy]["null"].index(name)
            raise InputError(
                f"strategies.{configuration.strategy}.null[{index}] is {shown(name)}, which is not in "
                f"null_distributions; there are {alternatives(variants, 'and')}"
            )
        table = variants[name]["table"]
        if table is not None:
            key = "null_distribution" if name == DEFAULTS["null"] else f"null_distributions.{name}"
            _check_table(f"{key}.table", table, base_dir)
    if all(variants[name]["table"] is not None for name in used):
        return
    key = "null_distribution.calibration.source"
    _check_source(key, calibration, base_dir)
    for name, dataset in settings["datasets"].items():
        if all(calibration[part] == dataset.get(part) for part in ("source", "subset", "split")):
            raise InputError(
                f"{key} is {shown(calibration['source'])}, which datasets.{name} evaluates; it must be text "
                "that no evaluation uses"
            )


def _resolve_source(data, base_dir, hub_split):
    data["local"] = is_local(data["source"], base_dir)
    if data["local"]:
        data.update(subset=None, split=None, revision=None)
    elif data["split"] is None:
        data["split"] = hub_split


def _resolve_model(model, base_dir):
    """Check the model's folder and return its number of experts; for a hub name, that in the hub's cache.

    None where it is unknown until the model is inspected.
    """
    name = model["name"]
    model["local"] = is_local(name, base_dir)
    allowed = "a folder with config.json and *.safetensors, or a hub name (owner/name)"
    if not model["local"]:
        _check_hub_name("model.name", name, allowed)
        # Imported here because it takes longer than all other imports of this module.
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(name, "config.json", revision=model["revision"])
        return _num_experts(Path(cached)) if isinstance(cached, str) else None
    folder = base_dir / name
    if not folder.is_dir():
        found = "is a file" if folder.exists() else _not_found(name, base_dir)
        raise InputError(f"model.name is {shown(name)}, which {found}; it must be {allowed}")
    if not (folder / "config.json").is_file():
        raise InputError(f"model.name is {shown(name)}, a folder without config.json; it must be {allowed}")
    if not any(folder.glob("*.safetensors")):
        pickled = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLE_SUFFIXES)
        raise InputError(
            f"model.name is {shown(name)}, a folder whose weights are "
            + (
                f"pickled ({pickled[0]}), and weights are read from *.safetensors only; convert them with "
                "transformers: AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder)"
                if pickled
                else f"missing (it holds no *.safetensors); it must be {allowed}"
            )
        )
    return _num_experts(folder / "config.json")


def _num_experts(path):
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"model.name: {path} must be JSON, but cannot be read ({error})") from error
    if not isinstance(config, dict):
        raise InputError(f"model.name: {path} must be a JSON object, but holds {shown(config)}")
    return next((config[key] for key in NUM_EXPERTS_KEYS if isinstance(config.get(key), int)), None)


# Paths and hub names


def is_local(name: str, base_dir: Path | str = ".") -> bool:
    """Whether `name` is a path: it looks like one, or its first part exists. Otherwise it is a hub name."""
    return (
        name.startswith((".", "/", "~"))
        or name.endswith((*PATH_SUFFIXES, "/"))
        or name.count("/") > 1
        or (Path(base_dir) / name.split("/")[0]).exists()
    )


def _check_source(key, data, base_dir):
    source = data["source"]
    allowed = f"a local {alternatives(DATA_SUFFIXES)} file or a hub name (owner/name)"
    if not data["local"]:
        # Without an owner it would be a builder of the `datasets` library (text, json) as well as a data set.
        _check_hub_name(key, source, allowed, with_owner=True)
        if data["subset"] is None and source in USUAL_SUBSETS:
            raise InputError(
                f"{key.removesuffix('source')}subset is null, but must be a subset of {source}, which has "
                f"no default, such as {USUAL_SUBSETS[source]}"
            )
        return
    path = base_dir / source
    if not path.is_file():
        found = "is a folder" if path.exists() else _not_found(source, base_dir)
    elif not source.endswith(DATA_SUFFIXES):
        found = "is a file of another kind"
    else:
        return
    raise InputError(f"{key} is {shown(source)}, which {found}; it must be {allowed}")


def _check_table(key, table, base_dir):
    if table.endswith(PICKLE_SUFFIXES):
        raise InputError(
            f"{key} is {shown(table)}, and a pickle can run any code when it is read; it must be a .npz: if "
            "you trust the file, load it and write numpy.savez(path, x=x, cdf=cdf), both (layers, points)"
        )
    if not table.endswith(".npz"):
        raise InputError(f"{key} is {shown(table)}, but must be a .npz file with the arrays x and cdf")
    path = base_dir / table
    if not path.is_file():
        raise InputError(
            f"{key} is {shown(table)}, which {_not_found(table, base_dir)}; it must be a .npz file or null"
        )
    arrays = zipfile.ZipFile(path).namelist() if zipfile.is_zipfile(path) else []
    if not {"x.npy", "cdf.npy"} <= set(arrays):
        found = ", ".join(name.removesuffix(".npy") for name in arrays) or "none"
        raise InputError(
            f"{key} is {shown(table)}, whose arrays are {found}; it must be a .npz file with x and cdf"
        )


def _check_hub_name(key, name, allowed, with_owner=False):
    if not HUB_NAME.fullmatch(name) or (with_owner and "/" not in name):
        raise InputError(f"{key} is {shown(name)}, which is neither; it must be {allowed}")


def _not_found(name, base_dir):
    """Say that the local `name` does not exist, and why it was not taken for a hub name."""
    first = name.split("/")[0]
    if HUB_NAME.fullmatch(name) and not name.endswith(PATH_SUFFIXES) and (base_dir / first).exists():
        return f"does not exist here, and is not taken for a hub name because {first!r} does exist here"
    return "does not exist (paths are relative to the working directory)"
