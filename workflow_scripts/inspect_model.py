"""Look at the model without loading it: shapes, resolved commit, fingerprint of the weights.

Downloads a hub model into the hub's cache. Output: results/model.json.
"""

from adaptive_routing.files import write_json
from adaptive_routing.jobs import job
from adaptive_routing.models import inspect_model
from adaptive_routing.settings import check_against_model, load_settings

with job(snakemake):
    model = inspect_model(**snakemake.params.model)
    check_against_model(load_settings(snakemake.config), model["shapes"]["num_experts"])
    write_json(snakemake.output[0], model)
