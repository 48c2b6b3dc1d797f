"""Draw the null distributions."""

from adaptive_routing.figures.null_distribution import save_null_distribution_figure
from adaptive_routing.jobs.script import job
from adaptive_routing.null_distribution import NullDistribution

with job(snakemake):
    save_null_distribution_figure(NullDistribution.load(snakemake.input[0]), snakemake.output[0])
