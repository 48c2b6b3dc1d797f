"""Make the interactive page of the routing atlas from the summaries of all experiments."""

from adaptive_routing.analysis.featured import featured
from adaptive_routing.analysis.recommendations import QualityMargins
from adaptive_routing.analysis.study import read_study_inputs
from adaptive_routing.atlas.page import make_page
from adaptive_routing.jobs.script import job
from adaptive_routing.system.files import atomic_path
from adaptive_routing.system.json_files import read_json

with job(snakemake):
    inputs, params = snakemake.input, snakemake.params
    study = read_study_inputs(inputs, params.baseline)
    first = featured(study, QualityMargins.from_settings(params.margins))
    fixed = getattr(inputs, "fixed", ())
    page = make_page(inputs.atlas, read_json(inputs.model), params.baseline, first, fixed)
    with atomic_path(snakemake.output[0]) as temporary:
        temporary.write_text(page, encoding="utf-8")
