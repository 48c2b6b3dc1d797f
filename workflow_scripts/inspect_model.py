"""Look at the model without loading it: shapes, resolved commit, fingerprint of the weights.

Downloads a hub model into the hub's cache. Output: results/model.json.
"""

from adaptive_routing.configurations import grid
from adaptive_routing.files import write_json
from adaptive_routing.jobs import job
from adaptive_routing.models import inspect_model
from adaptive_routing.settings import check_against_model

with job(snakemake):
    model = inspect_model(**snakemake.params.model)
    # A hub model is known only now; a local one was checked when the workflow was read.
    settings = {**snakemake.config, "configurations": grid(snakemake.config["strategies"])}
    check_against_model(settings, model["shapes"]["num_experts"])
    write_json(snakemake.output[0], model)
