"""What the benchmarks share: a model, the rows of a study's config, null distributions, and tables."""

import argparse
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from adaptive_routing.data.rows import load_rows
from adaptive_routing.data.samples import prepare_samples
from adaptive_routing.evaluation.calibration import collect_router_logits, encode_calibration_text
from adaptive_routing.evaluation.experiment import ExperimentFiles, run_experiment
from adaptive_routing.model.devices import Clock
from adaptive_routing.model.inspect import inspect_model
from adaptive_routing.model.load import load_model
from adaptive_routing.model.tokenizer import load_tokenizer
from adaptive_routing.null_distribution.estimate import fit_null_distribution
from adaptive_routing.routing import make_strategy
from adaptive_routing.settings.load import load_settings

REPOSITORY = Path(__file__).parents[1]


@dataclass
class Setting:
    """A study's settings with its model loaded, its samples tokenised and its null distributions fitted."""

    settings: dict
    loaded: object
    tokenizer: object
    prepared: dict
    null_distribution: object
    max_length: int  # that the model reads

    def strategy(self, configuration):
        """The routing strategy of a configuration of the grid."""
        return make_strategy(configuration, self.settings["routing"], self.null_distribution)

    @property
    def device(self):
        return self.loaded.model.device


def parser(description):
    """The arguments that every benchmark takes."""
    arguments = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--configfile", nargs="*", default=[], help="as for snakemake; over config.yaml")
    return arguments


def merged_config(configfiles):
    """config.yaml with a study's config files over it, as Snakemake merges them."""
    config = yaml.safe_load((REPOSITORY / "config.yaml").read_text())
    for path in configfiles:
        _update(config, yaml.safe_load(Path(path).read_text()))
    return config


def load_setting(configfiles, device=None):
    """Read a study's config files and load what they name (`Setting`), on a device of one's own."""
    settings = load_settings(merged_config(configfiles), REPOSITORY)
    model = settings["model"] | ({"device": device} if device else {})
    info = inspect_model(model["name"], model["revision"])
    tokenizer = load_tokenizer(info)
    loaded = load_model(info, model["dtype"], model["device"])
    prepared = {name: prepare(settings, tokenizer, info, name) for name in settings["datasets"]}
    text = settings["null_distribution"]["calibration"]
    rows = load_rows(text["source"], text["subset"], text["split"], text["revision"])
    samples = encode_calibration_text(rows, text["column"], tokenizer, text["max_tokens"], text["max_length"])
    logits = collect_router_logits(loaded, samples, settings["evaluation"]["batch_tokens"])
    estimate = {key: settings["null_distribution"][key] for key in ("kernel", "bandwidth", "trim")}
    null_distribution = fit_null_distribution(logits.transpose(0, 1).float().numpy(), **estimate)
    return Setting(settings, loaded, tokenizer, prepared, null_distribution, info["max_position_embeddings"])


def prepare(settings, tokenizer, info, name):
    """A data set's samples, as many as its settings say."""
    data = settings["datasets"][name]
    rows = load_rows(data["source"], data["subset"], data["split"], data["revision"])
    length = settings["evaluation"]["max_length"]
    maximum = info["max_position_embeddings"]
    return prepare_samples(name, rows, tokenizer, data["max_samples"], length, maximum, data.get("protocol"))


def run_logged(setting, configuration, dataset, samples, workers):
    """Run an experiment with full logging and throw the files away: (summary, seconds of wall time)."""
    with tempfile.TemporaryDirectory() as folder:
        files = ExperimentFiles(f"{folder}/a.json", f"{folder}/a_routing.json", f"{folder}/a.safetensors")
        settings = {"routing": setting.settings["routing"], "dataset": {"max_samples": len(samples)}}
        batch_tokens = setting.settings["evaluation"]["batch_tokens"]
        strategy = setting.strategy(configuration)
        started = time.perf_counter()
        summary = run_experiment(
            setting.loaded,
            configuration,
            strategy,
            dataset,
            samples,
            batch_tokens,
            0,
            settings,
            files,
            workers,
        )
        return summary, time.perf_counter() - started


def _update(config, other):
    for key, value in other.items():
        if isinstance(value, dict) and isinstance(config.get(key), dict):
            _update(config[key], value)
        else:
            config[key] = value


def matrix_tflops(device, dtype):
    """The rate of a large matrix product on random numbers: TFLOP/s."""
    size = 8192 if device.type == "cuda" else 1024
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    seconds = timed(lambda: left @ right, device, repeats=10)
    return 2 * size**3 / seconds / 1e12


def timed(work, device, repeats=1):
    """Seconds of `work`, the mean of some calls after one that is not counted."""
    work()
    clock = Clock(device)
    for _ in range(repeats):
        work()
    clock.stop()
    return clock.seconds() / repeats


def print_table(headings, rows):
    """Print a Markdown table, numbers to the right."""
    rows = [
        [f"{cell:,.0f}" if isinstance(cell, float) and cell >= 1000 else _cell(cell) for cell in row]
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    for number, row in enumerate([headings, *rows]):
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |")
        if number == 0:
            print("| " + " | ".join("-" * width for width in widths) + " |")


def _cell(cell):
    return f"{cell:.3g}" if isinstance(cell, float) else str(cell)
