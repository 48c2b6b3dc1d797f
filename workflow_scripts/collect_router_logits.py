"""Run calibration text through the model as it is and keep every layer's router logits.

Output: results/calibration/router_logits.safetensors, (tokens, layers, experts) in the model's dtype.
"""

from pathlib import Path

from adaptive_routing.jobs.host.client import execute
from adaptive_routing.jobs.script import job

with job(snakemake):
    config = snakemake.config
    request = {
        "model": snakemake.input.model,
        "dtype": snakemake.params.dtype,
        "device": config["model"]["device"],
        "gpus": config["model"]["gpus_per_experiment"],
        "calibration": snakemake.params.calibration,
        "batch_tokens": config["evaluation"]["batch_tokens"],
        "output": snakemake.output[0],
    }
    # As a module, a workflow may have a prefix, of which its settings do not know.
    results = Path(snakemake.output[0]).parents[1]
    execute("collect_router_logits", request, config | {"results": str(results)})
