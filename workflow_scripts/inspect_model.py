"""Look at the model without loading it: shapes, resolved commit, fingerprint of the weights.

Downloads a hub model into the hub's cache. Output: results/model.json.
"""

from adaptive_routing.jobs.script import job
from adaptive_routing.model.inspect import inspect_model
from adaptive_routing.settings.load import check_against_model
from adaptive_routing.system.json_files import write_json

with job(snakemake):
    model = inspect_model(**snakemake.params.model)
    # A hub model is known only now; a local one was checked when the workflow was read.
    shapes = model["shapes"]
    check_against_model(snakemake.config, shapes["num_experts"], shapes["num_moe_layers"])
    write_json(snakemake.output[0], model)
