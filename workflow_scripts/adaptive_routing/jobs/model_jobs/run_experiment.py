"""One routing configuration on one data set: its three log files."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

import torch

from adaptive_routing.data.samples import check_vocabulary, read_prepared
from adaptive_routing.evaluation.experiment import ExperimentFiles, run_experiment
from adaptive_routing.model.description import read_model_info
from adaptive_routing.null_distribution import NullDistribution
from adaptive_routing.routing import control_counts, make_control, make_strategy
from adaptive_routing.routing_log.json_file import COMPRESSED
from adaptive_routing.routing_log.size import log_bytes
from adaptive_routing.settings.configurations import Configuration
from adaptive_routing.system.disk import check_room, free_bytes, in_words
from adaptive_routing.system.errors import InputError
from adaptive_routing.system.tensor_files import TensorFile

if TYPE_CHECKING:
    from adaptive_routing.jobs.model_jobs.cache import Cache
    from adaptive_routing.jobs.version import CodeVersion
    from adaptive_routing.settings.load import KeptInLog, RoutingSettings


class ConfigurationRequest(TypedDict):
    """A `Configuration`."""

    name: str
    strategy: str
    max_experts: int
    parameters: dict[str, Any]
    control_of: str | None


class ControlRequest(TypedDict):
    """Where a control's expert counts come from: the configuration's tensors, and the seed of the draws."""

    tensors: str
    seed: int


class PlannedExperiments(TypedDict):
    """A configuration's experiments that a run makes."""

    experts: tuple[int, int]  # the fewest and the most of a token
    p_values: bool
    datasets: list[str]


class ExperimentRequest(TypedDict):
    """The request of this job; files by their paths."""

    model: str
    dtype: str
    device: str
    gpus: NotRequired[int]  # that the model is spread over; 1 unless set
    configuration: ConfigurationRequest
    routing: RoutingSettings
    null_distribution: str | None
    control: NotRequired[ControlRequest | None]
    dataset: str
    prepared: str
    batch_tokens: int
    second_pass_samples: int
    routing_log: NotRequired[KeptInLog]  # everything is kept unless set
    code_version: CodeVersion
    planned: NotRequired[dict[str, PlannedExperiments] | None]  # by configuration; None where nobody knows
    outputs: dict[str, str]  # of `ExperimentFiles`


def run(request: ExperimentRequest, cache: Cache) -> None:
    """Do the job: `request` and `cache` as in `model_jobs`."""
    info = read_model_info(request["model"])
    configuration = Configuration(**request["configuration"])
    null_distribution = None
    if request["null_distribution"]:
        null_distribution = cache.read(NullDistribution.load, request["null_distribution"])
        null_distribution.expect_model(info, request["null_distribution"])
    dataset_settings, prepared = cache.read(read_prepared, request["prepared"])
    check_vocabulary(prepared, info["shapes"]["vocab_size"], request["prepared"])
    if request.get("planned"):
        _check_room(request, info, cache)
    control = request.get("control")
    if control:
        counts = _control_counts(control, configuration, prepared)
        strategy = make_control(configuration, request["routing"], counts)
    else:
        strategy = make_strategy(configuration, request["routing"], null_distribution)
    loaded = cache.model(info, request["dtype"], request["device"], request.get("gpus", 1))
    summary = run_experiment(
        loaded,
        configuration,
        strategy,
        request["dataset"],
        prepared,
        request["batch_tokens"],
        request["second_pass_samples"],
        {
            "configuration": request["configuration"]["parameters"],
            "routing": request["routing"],
            "dataset": dataset_settings,
            "second_pass_samples": request["second_pass_samples"],
            "null_distribution": null_distribution.metadata if null_distribution else None,
            "control_seed": control["seed"] if control else None,
        },
        ExperimentFiles(**request["outputs"]),
        cache.log_workers,
        request.get("code_version"),
        request.get("routing_log"),
    )
    scores = ", ".join(
        f"{name} {'too large' if value is None else f'{value:.4g}'}"
        for name, value in summary["metrics"].items()
        if not name.endswith("stderr")
    )
    speed = summary["summary"]["total_tokens"] / summary["timings"]["forward_seconds"]
    print(f"{configuration.name} on {request['dataset']}: {scores}; {speed:,.0f} tokens/s", file=sys.stderr)


def _check_room(request, info, cache):
    """Say how much room the logs to come take; InputError where there is too little.

    They are those of the data sets prepared by now. It is done once, and again when further ones are.
    """
    planned, prepared = request["planned"].items(), Path(request["prepared"])
    files = {
        dataset: prepared.with_name(f"{dataset}.json") for _, one in planned for dataset in one["datasets"]
    }
    files = {dataset: path for dataset, path in sorted(files.items()) if path.exists()}
    if (checked := f"room for {list(files)}") in cache.done:
        return
    lengths = {}
    for dataset, path in files.items():
        settings, samples = cache.read(read_prepared, str(path))
        new_tokens = settings.get("max_new_tokens", 0)
        lengths[dataset] = [one.num_own_tokens + new_tokens for one in samples]
    kept = {key: None if n == "all" else n for key, n in (request.get("routing_log") or {}).items()}
    compressed = request["outputs"]["internal_routing"].endswith(COMPRESSED)
    itemsize = getattr(torch, request["dtype"]).itemsize
    of_model = info["shapes"]["num_moe_layers"], info["shapes"]["num_experts"]
    logs, number, least, most = Path(request["outputs"]["tensors"]).parent, 0, 0.0, 0.0
    for name, one in planned:
        for dataset in files.keys() & one["datasets"]:
            if (logs / f"{name}_{dataset}_internal_routing.safetensors").exists():
                continue
            fewest_bytes, most_bytes = (
                log_bytes(
                    lengths[dataset],
                    *of_model,
                    n,
                    itemsize,
                    one["p_values"],
                    **kept,
                    is_compressed=compressed,
                )
                for n in one["experts"]
            )
            number, least, most = number + 1, least + fewest_bytes, most + most_bytes
    work = f"writing the routing logs of {number} experiment{'' if number == 1 else 's'}"
    remedy = "free some, or keep less of large data sets: routing_log in the config file"
    check_room(logs, int(least), work, remedy)
    room = in_words(least) if least == most else f"{in_words(least)} to {in_words(most)}"
    print(f"{work} takes about {room}; {in_words(free_bytes(logs))} are free", file=sys.stderr)
    cache.done.add(checked)


def _control_counts(control, configuration, prepared):
    """The expert counts (N, L) of a control on the prepared samples."""
    with TensorFile(control["tensors"]) as tensors:
        counts = tensors.read("expert_counts")
    num_tokens = sum(one.num_own_tokens for one in prepared)
    if len(counts) != num_tokens:
        raise InputError(
            f"{control['tensors']} has {len(counts)} tokens, but the data set has {num_tokens}; delete it "
            "and run again"
        )
    return control_counts(counts, configuration.parameters["control"], control["seed"])
