"""Draw the check of a null distribution."""

from adaptive_routing.figures.null_check import DPI, draw_null_check, read_check
from adaptive_routing.figures.style import save
from adaptive_routing.jobs.script import job

with job(snakemake):
    figure = draw_null_check(read_check(snakemake.input.table, snakemake.input.curves))
    for path in snakemake.output:
        save(figure, path, DPI)
