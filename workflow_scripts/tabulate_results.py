"""Make the results tables from the metrics and summaries of all experiments."""

import gc

from adaptive_routing import tables
from adaptive_routing.files import read_json
from adaptive_routing.jobs import job

with job(snakemake):
    output = snakemake.output
    experiments = [read_json(path) for path in snakemake.input.metrics]
    tables.write_table(tables.experiments_table(experiments), output.experiments_csv, output.experiments_json)
    tables.write_table(
        tables.configurations_table(experiments), output.configurations_csv, output.configurations_json
    )
    tables.write_table(tables.layers_table(experiments), output.layers_csv)

    summaries = [read_json(path) for path in snakemake.input.summaries]
    gc.freeze()  # statsmodels collects garbage in every correction: 20 ms each over all that is loaded
    comparisons = tables.comparisons_table(summaries, snakemake.params.baseline)
    tables.write_table(comparisons, output.comparisons_csv, output.comparisons_json)
