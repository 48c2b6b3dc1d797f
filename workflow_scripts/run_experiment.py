"""Run one routing configuration on one data set.

Outputs: results/logs/{config}_{dataset}.json (summary), _internal_routing.json (every routing decision)
and _internal_routing.safetensors (the same run's full tensors).
"""

import sys
from pathlib import Path

from adaptive_routing.jobs.host.client import execute
from adaptive_routing.jobs.host.keeper import workflow_started
from adaptive_routing.jobs.progress import describe_progress
from adaptive_routing.jobs.script import job, told
from adaptive_routing.settings.configurations import grid

with job(snakemake):
    inputs, params, config = snakemake.input, snakemake.params, snakemake.config
    request = {
        "model": inputs.model,
        "dtype": params.dtype,
        "device": config["model"]["device"],
        "configuration": params.configuration,
        "routing": params.routing,
        "null_distribution": inputs.get("null_distribution"),
        "dataset": snakemake.wildcards.dataset,
        "prepared": inputs.dataset,
        "batch_tokens": config["evaluation"]["batch_tokens"],
        "second_pass_samples": params.second_pass_samples,
        "code_version": told("code_version"),
        "outputs": dict(snakemake.output.items()),
    }
    logs = Path(snakemake.output.summary).parent
    # As a module, a workflow may have a prefix, of which its settings do not know.
    execute("run_experiment", request, config | {"results": str(logs.parent)})
    names = [one.name for one in grid(config["strategies"])]
    summaries = [logs / f"{name}_{dataset}.json" for name in names for dataset in config["datasets"]]
    print(describe_progress(summaries, workflow_started()), file=sys.stderr)
