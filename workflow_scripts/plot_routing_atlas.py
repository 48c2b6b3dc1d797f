"""Draw the pictures of the routing atlas: the baseline and some BH configurations on every data set."""

from pathlib import Path

from adaptive_routing.atlas.figures import DPI, draw_atlas
from adaptive_routing.atlas.summary import read_summary
from adaptive_routing.jobs import job
from adaptive_routing.panels.style import save
from adaptive_routing.study import read_study

with job(snakemake):
    inputs = snakemake.input
    study = read_study(
        inputs.experiments,
        inputs.configurations,
        inputs.layers,
        inputs.comparisons,
        baseline=snakemake.params.baseline,
    )
    summaries = {}
    for path in inputs.atlas:
        head, arrays, _ = read_summary(path)
        summaries[head["config"], head["dataset"]] = arrays
    figures = draw_atlas(study, summaries)
    for path in snakemake.output:
        save(figures[Path(path).stem], path, DPI)
