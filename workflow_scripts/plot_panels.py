"""Draw the nine-panel figure and each panel alone from the results tables."""

from pathlib import Path

from adaptive_routing.jobs import job
from adaptive_routing.panels import draw_figure, draw_panel
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
    whole = {output.figure_png, output.figure_svg}
    figure = draw_figure(study)
    for path in sorted(whole):
        save(figure, path)
    for path in sorted(set(output) - whole):
        save(draw_panel(Path(path).stem.removeprefix("panel_"), study), path)
