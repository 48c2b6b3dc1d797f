"""Draw the figures of adaptive against fixed at the same compute: answer, decomposition and where."""

from pathlib import Path

from adaptive_routing.analysis.recommendations import QualityMargins
from adaptive_routing.analysis.study import read_study_inputs
from adaptive_routing.figures.same_compute import draw_decomposition, draw_same_compute, draw_where
from adaptive_routing.figures.style import save
from adaptive_routing.jobs.script import job

with job(snakemake):
    inputs, params = snakemake.input, snakemake.params
    study = read_study_inputs(inputs, params.baseline)
    margins = QualityMargins.from_settings(params.margins)
    figures = {"same_compute": draw_same_compute(study), "decomposition": draw_decomposition(study, margins)}
    if hasattr(inputs, "where"):
        figures["where"] = draw_where(study, margins)
    for path in snakemake.output:
        save(figures[Path(path).stem], path)
