"""Make the table of lm-evaluation-harness's own metrics from the metrics of all experiments on its tasks."""

from adaptive_routing.analysis.harness import harness_table
from adaptive_routing.analysis.metrics import metrics_schema
from adaptive_routing.analysis.tables import write_table
from adaptive_routing.jobs.script import job
from adaptive_routing.system.files import blaming
from adaptive_routing.system.json_files import read_json

with job(snakemake):
    with blaming(metrics_schema, *snakemake.input):
        table = harness_table([read_json(path) for path in snakemake.input])
    write_table(table, snakemake.output[0])
