"""Draw the figure of expert counts by difficulty of the prompt."""

from adaptive_routing.analysis.difficulty import LEVEL_COLUMNS
from adaptive_routing.analysis.study import read_study_inputs, read_table
from adaptive_routing.figures.difficulty import DPI, draw_difficulty_figure
from adaptive_routing.figures.style import save
from adaptive_routing.jobs.script import job

with job(snakemake):
    inputs, output = snakemake.input, snakemake.output
    study = read_study_inputs(inputs, snakemake.params.baseline)
    figure = draw_difficulty_figure(study, read_table(inputs.difficulty, LEVEL_COLUMNS))
    for path in output:
        save(figure, path, DPI)
