"""Run one routing configuration on one data set.

Outputs: results/logs/{config}_{dataset}.json (summary), _internal_routing.json (every routing decision)
and _internal_routing.safetensors (the same run's full tensors).
"""

import sys

from adaptive_routing.configurations import Configuration
from adaptive_routing.data import read_prepared
from adaptive_routing.experiment import ExperimentFiles, run_experiment
from adaptive_routing.files import read_json
from adaptive_routing.jobs import job
from adaptive_routing.models import load_model
from adaptive_routing.null_distribution import NullDistribution
from adaptive_routing.routing import make_strategy

with job(snakemake):
    parameters, config = snakemake.params, snakemake.config
    configuration = Configuration(**parameters.configuration)
    null_distribution = None
    if "null_distribution" in snakemake.input.keys():  # noqa: SIM118 (not a dict)
        null_distribution = NullDistribution.load(snakemake.input.null_distribution)
    strategy = make_strategy(configuration, parameters.routing, null_distribution)
    dataset_settings, prepared = read_prepared(snakemake.input.dataset)
    loaded = load_model(read_json(snakemake.input.model), parameters.dtype, config["model"]["device"])
    summary = run_experiment(
        loaded,
        configuration,
        strategy,
        snakemake.wildcards.dataset,
        prepared,
        config["evaluation"]["batch_tokens"],
        parameters.second_pass_samples,
        {
            "configuration": parameters.configuration["parameters"],
            "routing": parameters.routing,
            "dataset": dataset_settings,
            "second_pass_samples": parameters.second_pass_samples,
            "null_distribution": null_distribution.metadata if null_distribution else None,
            "seed": config["seed"],
        },
        ExperimentFiles(*snakemake.output),
    )
    scores = ", ".join(
        f"{name} {value:.4g}" for name, value in summary["metrics"].items() if not name.endswith("stderr")
    )
    speed = summary["summary"]["total_tokens"] / summary["timings"]["forward_seconds"]
    print(
        f"{configuration.name} on {snakemake.wildcards.dataset}: {scores}; {speed:,.0f} tokens/s",
        file=sys.stderr,
    )
