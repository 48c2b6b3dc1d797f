"""Write the report, Markdown and HTML, from the results tables, the figures and the summaries."""

from pathlib import Path

import pandas as pd
from adaptive_routing.files import atomic_path, read_json
from adaptive_routing.jobs import job
from adaptive_routing.report import write_markdown
from adaptive_routing.report.html import to_html
from adaptive_routing.study import read_study

with job(snakemake):
    inputs, params, output = snakemake.input, snakemake.params, snakemake.output
    study = read_study(
        inputs.experiments,
        inputs.configurations,
        inputs.layers,
        inputs.comparisons,
        baseline=params.baseline,
    )
    # A summary holds every sample; only what the report states is kept.
    used = ("dataset", "routing", "provenance", "summary", "timings")
    summaries = [{key: summary[key] for key in used} for summary in map(read_json, inputs.summaries)]
    folder = Path(output.markdown).parent
    difficulty = None
    if hasattr(inputs, "difficulty"):
        tables = (pd.read_csv(path) for path in (inputs.difficulty, inputs.difficulty_trend))
        difficulty = (*tables, inputs.difficulty_figure)
    text = write_markdown(study, summaries, params.settings, inputs.figure, inputs.panels, folder, difficulty)
    with atomic_path(output.markdown) as temporary:
        temporary.write_text(text, encoding="utf-8")
    with atomic_path(output.html) as temporary:
        temporary.write_text(to_html(text, folder), encoding="utf-8")
