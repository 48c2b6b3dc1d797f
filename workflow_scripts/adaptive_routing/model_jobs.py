"""The jobs that need the model on its device, and what they keep from one job to the next.

A job is a function (request, cache). The request is a dict of JSON values; it runs the same in a process
of its own as in the model host (`host`).
"""

import functools
import json
import os
import sys
import time

from adaptive_routing import calibration, experiment
from adaptive_routing.configurations import Configuration
from adaptive_routing.data import load_rows, read_prepared
from adaptive_routing.files import read_json
from adaptive_routing.log_workers import LogWorkers
from adaptive_routing.models import load_model, load_tokenizer
from adaptive_routing.null_distribution import NullDistribution
from adaptive_routing.routing import make_strategy


class Cache:
    """What jobs load: the model, prepared data sets and null distributions, each read once while unchanged.

    Args:
        before_batch: called before every forward pass; what it raises ends the job.
    """

    def __init__(self, before_batch=None):
        self._before_batch = before_batch
        self._model = functools.lru_cache(maxsize=1)(self._load_model)
        self._prepared = functools.lru_cache(maxsize=8)(lambda path, *_: read_prepared(path))
        self._null_distribution = functools.lru_cache(maxsize=2)(lambda path, *_: NullDistribution.load(path))

    @functools.cached_property
    def log_workers(self):
        """`LogWorkers`, started when first asked for."""
        return LogWorkers()

    def close(self):
        """End what runs beside this process."""
        if "log_workers" in self.__dict__:
            self.log_workers.close()

    def model(self, info, dtype, device):
        """The `LoadedModel` that `inspect_model`'s result describes."""
        return self._model(json.dumps(info), dtype, device)

    def prepared(self, path):
        """`data.read_prepared` of a file."""
        return self._prepared(path, *_version(path))

    def null_distribution(self, path):
        """`NullDistribution.load` of a file."""
        return self._null_distribution(path, *_version(path))

    def _load_model(self, info, dtype, device):
        info, started = json.loads(info), time.perf_counter()
        loaded = load_model(info, dtype, device)
        if self._before_batch:
            loaded.model.base_model.register_forward_pre_hook(lambda *_: self._before_batch())
        seconds = time.perf_counter() - started
        print(f"loaded {info['name']}, {dtype}, on {loaded.device_name} in {seconds:.1f} s", file=sys.stderr)
        return loaded


def _version(path):
    status = os.stat(path)
    return status.st_mtime_ns, status.st_size


def run_experiment(request, cache):
    """One routing configuration on one data set: its three log files."""
    configuration = Configuration(**request["configuration"])
    null_distribution = None
    if request["null_distribution"]:
        null_distribution = cache.null_distribution(request["null_distribution"])
    strategy = make_strategy(configuration, request["routing"], null_distribution)
    dataset_settings, prepared = cache.prepared(request["prepared"])
    loaded = cache.model(read_json(request["model"]), request["dtype"], request["device"])
    summary = experiment.run_experiment(
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
            "seed": request["seed"],
        },
        experiment.ExperimentFiles(**request["outputs"]),
        cache.log_workers,
    )
    scores = ", ".join(
        f"{name} {'too large' if value is None else f'{value:.4g}'}"
        for name, value in summary["metrics"].items()
        if not name.endswith("stderr")
    )
    speed = summary["summary"]["total_tokens"] / summary["timings"]["forward_seconds"]
    print(f"{configuration.name} on {request['dataset']}: {scores}; {speed:,.0f} tokens/s", file=sys.stderr)


def collect_router_logits(request, cache):
    """Router logits of calibration text under the model's own routing."""
    text, info = request["calibration"], read_json(request["model"])
    source = {key: text[key] for key in ("source", "subset", "split", "revision")}
    samples = calibration.encode_calibration_text(
        load_rows(**source, name="null_distribution.calibration"),
        text["column"],
        load_tokenizer(info),
        text["max_tokens"],
        text["max_length"],
    )
    loaded = cache.model(info, request["dtype"], request["device"])
    router_logits = calibration.collect_router_logits(loaded, samples, request["batch_tokens"])
    calibration.save_router_logits(
        request["output"], router_logits, {"calibration": text, "dtype": request["dtype"]}
    )


JOBS = {"run_experiment": run_experiment, "collect_router_logits": collect_router_logits}
