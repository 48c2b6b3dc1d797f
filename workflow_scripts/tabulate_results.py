"""Make the results tables from the metrics and summaries of all experiments."""

import gc

from adaptive_routing.analysis import tables
from adaptive_routing.analysis.harness import with_harness_scores
from adaptive_routing.analysis.metrics import metrics_schema
from adaptive_routing.analysis.setting_effects import setting_effects_table
from adaptive_routing.jobs.script import job
from adaptive_routing.system.files import blaming
from adaptive_routing.system.json_files import read_json

with job(snakemake):
    output = snakemake.output
    with blaming(metrics_schema, *snakemake.input.metrics):
        experiments = [read_json(path) for path in snakemake.input.metrics]
        tables.check_distinct(snakemake.input.metrics, experiments)
        made = {
            "experiments": tables.experiments_table(experiments),
            "configurations": tables.configurations_table(experiments),
            "layers": tables.layers_table(experiments),
        }
    with blaming("summary", *snakemake.input.summaries):
        summaries = [read_json(path) for path in snakemake.input.summaries]
        tables.check_distinct(snakemake.input.summaries, summaries)
        # The lists of inputs are in the same order.
        summaries = list(map(with_harness_scores, summaries, experiments))
        gc.freeze()  # statsmodels collects garbage in every correction: 20 ms each over all that is loaded
        made["comparisons"] = tables.comparisons_table(summaries, snakemake.params.baseline)
        made["setting_effects"] = setting_effects_table(summaries)
    for name, table in made.items():
        tables.write_table(table, getattr(output, f"{name}_csv"), getattr(output, f"{name}_json", None))
