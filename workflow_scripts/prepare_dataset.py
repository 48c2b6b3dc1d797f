"""Read one data set, keep the samples to score and tokenise them as lm-evaluation-harness does.

Output: results/datasets/{dataset}.json, all that the experiments need of the data set.
"""

from pathlib import Path

from adaptive_routing.jobs.host.client import execute
from adaptive_routing.jobs.host.gpus import leave_a_choice
from adaptive_routing.jobs.script import job

with job(snakemake):
    dataset, config, output = snakemake.wildcards.dataset, snakemake.config, snakemake.output[0]
    model = config["model"]
    device, gpus = model["device"], model["gpus_per_experiment"]
    request = {
        "model": snakemake.input.model,
        "dataset": dataset,
        "settings": snakemake.params.settings,
        "output": output,
    }
    # The host has imported already what this takes. Of several hosts none is meant, and for none to wait for:
    # a download, and the imports of lm-evaluation-harness.
    is_quick = config["datasets"][dataset].get("local")
    if is_quick and config["execution"] == "host" and not leave_a_choice(device, gpus):
        request |= {"dtype": model["dtype"], "device": device, "gpus": gpus}
        # As a module, a workflow may have a prefix, of which its settings do not know.
        execute("prepare_dataset", request, config | {"results": str(Path(output).parents[1])})
    else:
        from adaptive_routing.jobs.preparation import prepare_dataset

        prepare_dataset(request)
