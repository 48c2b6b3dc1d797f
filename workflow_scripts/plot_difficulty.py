"""Draw the figure of expert counts by difficulty of the prompt."""

from adaptive_routing.difficulty import LEVEL_COLUMNS
from adaptive_routing.difficulty_figure import DPI, draw_difficulty_figure
from adaptive_routing.jobs import job
from adaptive_routing.panels.style import save
from adaptive_routing.study import read_study, read_table

with job(snakemake):
    inputs, output = snakemake.input, snakemake.output
    study = read_study(
        inputs.experiments,
        inputs.configurations,
        inputs.layers,
        inputs.comparisons,
        baseline=snakemake.params.baseline,
    )
    figure = draw_difficulty_figure(study, read_table(inputs.difficulty, LEVEL_COLUMNS))
    for path in output:
        save(figure, path, DPI)
