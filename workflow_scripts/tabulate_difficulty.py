"""Make the tables of expert counts by difficulty from the summaries of the prompts."""

from adaptive_routing.difficulty import difficulty_table, difficulty_trend
from adaptive_routing.files import read_json
from adaptive_routing.jobs import job
from adaptive_routing.tables import write_table

with job(snakemake):
    output = snakemake.output
    summaries = [read_json(path) for path in snakemake.input]
    write_table(difficulty_table(summaries), output.levels_csv, output.levels_json)
    write_table(difficulty_trend(summaries), output.trend_csv)
