"""Draw the figure of expert counts by difficulty of the prompt."""

import pandas as pd
from adaptive_routing.difficulty_figure import DPI, draw_difficulty_figure
from adaptive_routing.jobs import job
from adaptive_routing.panels.style import save
from adaptive_routing.study import read_study

with job(snakemake):
    inputs, output = snakemake.input, snakemake.output
    study = read_study(
        inputs.experiments,
        inputs.configurations,
        inputs.layers,
        inputs.comparisons,
        baseline=snakemake.params.baseline,
    )
    figure = draw_difficulty_figure(study, pd.read_csv(inputs.difficulty))
    for path in output:
        save(figure, path, DPI)
