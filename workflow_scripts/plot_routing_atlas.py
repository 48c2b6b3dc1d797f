"""Draw the pictures of the routing atlas: the baseline and some adaptive configurations on every data set."""

from pathlib import Path

from adaptive_routing.analysis.featured import featured
from adaptive_routing.analysis.recommendations import QualityMargins
from adaptive_routing.analysis.routing_summary import read_routing_summary
from adaptive_routing.analysis.study import read_study_inputs
from adaptive_routing.figures.atlas import DPI, draw_atlas
from adaptive_routing.figures.style import save
from adaptive_routing.jobs.script import job

with job(snakemake):
    inputs = snakemake.input
    study = read_study_inputs(inputs, snakemake.params.baseline)
    summaries = {}
    for path in inputs.atlas:
        head, arrays, _ = read_routing_summary(path)
        summaries[head["config"], head["dataset"]] = arrays
    margins = QualityMargins.from_settings(snakemake.params.margins)
    figures = draw_atlas(study, summaries, featured(study, margins))
    for path in snakemake.output:
        save(figures[Path(path).stem], path, DPI)
