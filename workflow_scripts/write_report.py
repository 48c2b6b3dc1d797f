"""Write the report, as Markdown, HTML and main sentences, from the results tables, figures and summaries."""

from pathlib import Path

from adaptive_routing.analysis.difficulty import LEVEL_COLUMNS, TREND_COLUMNS
from adaptive_routing.analysis.study import read_study_inputs, read_table
from adaptive_routing.jobs.script import job
from adaptive_routing.report.html import to_html
from adaptive_routing.report.markdown import plain_main_sentences, write_markdown
from adaptive_routing.report.model_card import report_note
from adaptive_routing.report.null_check import CHECK_COLUMNS
from adaptive_routing.system.files import atomic_path, blaming
from adaptive_routing.system.json_files import read_json

with job(snakemake):
    inputs, params, output = snakemake.input, snakemake.params, snakemake.output
    study = read_study_inputs(inputs, params.baseline)
    # A summary holds every sample; only what the report states is kept.
    used = ("dataset", "routing", "provenance", "summary", "timings")
    with blaming("summary", *inputs.summaries):
        summaries = [{key: summary[key] for key in used} for summary in map(read_json, inputs.summaries)]
    folder = Path(output.markdown).parent
    difficulty = None
    if hasattr(inputs, "difficulty"):
        levels = read_table(inputs.difficulty, LEVEL_COLUMNS)
        trend = read_table(inputs.difficulty_trend, TREND_COLUMNS)
        difficulty = levels, trend, inputs.difficulty_figure
    checks = {}
    if hasattr(inputs, "null_checks"):
        files = zip(params.nulls_checked, inputs.null_checks, inputs.null_check_figures, strict=True)
        checks = {name: (read_table(table, CHECK_COLUMNS), figure) for name, table, figure in files}
    with blaming("summary", *inputs.summaries):
        text = write_markdown(
            study,
            summaries,
            params.settings,
            inputs.figure,
            inputs.panels,
            folder,
            difficulty,
            params.atlas,
            control_figures={
                name: path
                for name in ("same_compute", "decomposition", "where")
                if (path := getattr(inputs, f"{name}_figure", None))
            },
            null_checks=checks,
            model_note=report_note(getattr(inputs, "card", None)),
        )
    with atomic_path(output.markdown) as temporary:
        temporary.write_text(text, encoding="utf-8")
    with atomic_path(output.html) as temporary:
        temporary.write_text(to_html(text, folder), encoding="utf-8")
    with atomic_path(output.summary) as temporary:
        sentences = plain_main_sentences(study, params.settings, summaries, checks)
        temporary.write_text(sentences, encoding="utf-8")
