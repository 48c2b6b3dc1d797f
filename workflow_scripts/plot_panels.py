"""Draw the nine-panel figure and each panel alone from the results tables."""

from pathlib import Path

from adaptive_routing.analysis.study import read_study_inputs
from adaptive_routing.figures.panels import PANELS, save_drawings
from adaptive_routing.jobs.script import job

with job(snakemake):
    inputs, output = snakemake.input, snakemake.output
    study = read_study_inputs(inputs, snakemake.params.baseline)
    files = {"figure": [output.figure_png, output.figure_svg]}
    for panel in PANELS:
        files[panel] = [path for path in output if Path(path).stem == f"panel_{panel}"]
    save_drawings(study, files, processes=snakemake.threads)
