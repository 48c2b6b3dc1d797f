"""Make the tables of expert counts by difficulty from the summaries of the prompts."""

from adaptive_routing.analysis.difficulty import difficulty_table, difficulty_trend
from adaptive_routing.analysis.tables import write_table
from adaptive_routing.jobs.script import job
from adaptive_routing.system.files import blaming
from adaptive_routing.system.json_files import read_json

with job(snakemake):
    output = snakemake.output
    with blaming("summary", *snakemake.input):
        summaries = [read_json(path) for path in snakemake.input]
        levels, trend = difficulty_table(summaries), difficulty_trend(summaries)
    write_table(levels, output.levels_csv, output.levels_json)
    write_table(trend, output.trend_csv)
