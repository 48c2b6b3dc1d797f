"""Draw the null distributions."""

from adaptive_routing.jobs import job
from adaptive_routing.null_distribution import NullDistribution
from adaptive_routing.null_distribution_figure import save_null_distribution_figure

with job(snakemake):
    save_null_distribution_figure(NullDistribution.load(snakemake.input[0]), snakemake.output[0])
