"""The report in Markdown: answers first, then tables, panels, settings and how to reproduce."""

import os
from urllib.parse import quote

from adaptive_routing.panels import PANELS, TITLES, describe_panel
from adaptive_routing.report import words
from adaptive_routing.report.answers import answers
from adaptive_routing.report.difficulty import by_difficulty
from adaptive_routing.report.provenance import gaps, provenance, reproduction
from adaptive_routing.report.tables import tables

TITLE = "Adaptive expert routing: Benjamini–Hochberg against fixed top-k"


def write_markdown(study, summaries, settings, figure, panels, folder, difficulty=None):
    """Return the report as Markdown.

    summaries: contents of logs/{config}_{dataset}.json. settings: the config of the run. figure: path of the
    nine-panel PNG; panels: paths of the panels' PNGs in the order of `PANELS`; both are linked relative to
    `folder`, where the report will lie. difficulty: see `difficulty.by_difficulty`.
    """
    figure, *panels = (quote(os.path.relpath(path, folder)) for path in (figure, *panels))
    sections = [
        f"# {TITLE}",
        _introduction(study, summaries),
        "## Answers",
        *answers(study),
        "## Tables",
        *tables(study),
        "## Figure",
        f"![All nine panels]({figure})",
        *_panels(study, panels),
        *by_difficulty(difficulty, folder),
        "## Settings and versions",
        *provenance(summaries),
        "## Missing, skipped and shortened",
        *gaps(study, summaries),
        "## How to reproduce",
        *reproduction(settings),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _introduction(study, summaries):
    models = sorted({s["provenance"]["model"]["name"] for s in summaries})
    totals = {
        d: [s["summary"]["total_samples"] for s in summaries if s["dataset"] == d] for d in study.datasets
    }
    samples = ", ".join(f"{d} ({words.plural(words.span(values), 'sample')})" for d, values in totals.items())
    return (
        f"Model {', '.join(map(words.code, models))}; {words.plural(len(study.experiments), 'experiment')}: "
        f"{words.plural(len(study.topk), 'top-k configuration')} and "
        f"{words.plural(len(study.bh), 'BH configuration')} on {samples}. Everything is compared "
        f"with the baseline, {words.code(study.baseline)}, sample by sample."
    )


def _panels(study, links):
    for panel, link in zip(PANELS, links, strict=True):
        yield f"### {panel.split('_')[0]}. {TITLES[panel]}"
        yield describe_panel(panel, study)
        yield f"![{TITLES[panel]}]({link})"
