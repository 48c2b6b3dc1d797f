"""Run one routing configuration on one data set.

Outputs: results/logs/{config}_{dataset}.json (summary), _internal_routing.json (every routing decision)
and _internal_routing.safetensors (the same run's full tensors).
"""

from pathlib import Path

from adaptive_routing.jobs.host.client import execute
from adaptive_routing.jobs.script import job, told

with job(snakemake):
    inputs, params, config = snakemake.input, snakemake.params, snakemake.config
    request = {
        "model": inputs.model,
        "dtype": params.dtype,
        "device": config["model"]["device"],
        "gpus": config["model"]["gpus_per_experiment"],
        "configuration": params.configuration,
        "routing": params.routing,
        "null_distribution": inputs.get("null_distribution"),
        "control": params.control and params.control | {"tensors": inputs.controlled},
        "dataset": snakemake.wildcards.dataset,
        "prepared": inputs.dataset,
        "batch_tokens": config["evaluation"]["batch_tokens"],
        "second_pass_samples": params.second_pass_samples,
        "routing_log": params.routing_log,
        "code_version": told("code_version"),
        "planned": told("planned"),
        "outputs": dict(snakemake.output.items()),
    }
    # As a module, a workflow may have a prefix, of which its settings do not know.
    results = str(Path(snakemake.output.summary).parents[1])
    execute("run_experiment", request, config | {"results": results})
