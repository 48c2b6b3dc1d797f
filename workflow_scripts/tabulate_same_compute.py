"""Make the table of adaptive configurations against their controls from the summaries of both."""

from adaptive_routing.analysis.harness import with_harness_scores
from adaptive_routing.analysis.recommendations import QualityMargins
from adaptive_routing.analysis.same_compute import same_compute_table
from adaptive_routing.analysis.tables import write_table
from adaptive_routing.jobs.script import job
from adaptive_routing.system.files import blaming
from adaptive_routing.system.json_files import read_json

with job(snakemake):
    inputs, params, output = snakemake.input, snakemake.params, snakemake.output
    margins = QualityMargins.from_settings(params.margins)
    with blaming("summary", *inputs.summaries, *inputs.metrics):
        summaries = [read_json(path) for path in inputs.summaries]
        experiments = [read_json(path) for path in inputs.metrics]
        # The lists of inputs are in the same order.
        summaries = list(map(with_harness_scores, summaries, experiments))
        table = same_compute_table(summaries, experiments, margins)
    write_table(table, output.csv, output.json)
