"""The report in Markdown: the answers, then the evidence, the method and the provenance."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, urlencode

from adaptive_routing.analysis import recommendations as rules
from adaptive_routing.analysis.featured import featured
from adaptive_routing.figures.panels import PANELS, TITLES, describe_panel
from adaptive_routing.report import words
from adaptive_routing.report.answers import answer_sections
from adaptive_routing.report.costs import cost_at_a_glance
from adaptive_routing.report.difficulty import difficulty_section
from adaptive_routing.report.method import method_sections
from adaptive_routing.report.null_check import null_check_section
from adaptive_routing.report.plausibility import vocabulary_size, warning
from adaptive_routing.report.provenance import gap_section, provenance_section, reproduction_section
from adaptive_routing.report.sentences import main_sentences
from adaptive_routing.report.tables import table_sections
from adaptive_routing.report.warnings import warning_section
from adaptive_routing.settings.load import task_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd

    from adaptive_routing.analysis.study import Study
    from adaptive_routing.evaluation.experiment import Summary
    from adaptive_routing.settings.load import Settings

    # {name of a null distribution: (table of its check, path of its figure)}
    NullChecks = Mapping[str, tuple[pd.DataFrame, Path | str]]

ANSWERING = "5_pareto_frontier"  # the panel that shows the answer of a study without controls
TITLE = "Adaptive expert routing: {rule} against a fixed number of experts"
MOST_IN_TITLE = 3  # rules
MOST_REPETITIONS = 2  # groups of equal configurations by name


def plain_main_sentences(
    study: Study,
    settings: Settings,
    summaries: Sequence[Summary] = (),
    null_checks: NullChecks | None = None,
) -> str:
    """Return the main sentences, or what takes their place, as plain text, one per line."""
    sentences = warning(study, vocabulary_size(summaries), _tasks(settings)) or main_sentences(
        study, rules.QualityMargins.from_settings(settings["report"]), _tables(null_checks)
    )
    return "".join(f"{words.plain(sentence)}\n" for sentence in sentences)


def _tasks(settings):
    return {dataset: task_of(settings, dataset) for dataset in settings["datasets"]}


def write_markdown(
    study: Study,
    summaries: Sequence[Summary],
    settings: Settings,
    figure: Path | str,
    panels: Sequence[Path | str],
    folder: Path | str,
    difficulty: tuple[pd.DataFrame, pd.DataFrame, Path | str] | None = None,
    atlas: Path | str | None = None,
    control_figures: Mapping[str, Path | str] | None = None,
    null_checks: NullChecks | None = None,
    model_note: str | None = None,
) -> str:
    """Return the report as Markdown.

    summaries: contents of logs/{config}_{dataset}.json. settings: the complete config of the run. figure:
    path of the PNG of all panels; panels: paths of the panels' PNGs in the order of `PANELS`; both are linked
    relative to `folder`, where the report is written. difficulty: see `difficulty_section`. atlas: path
    of the routing atlas, linked in the same way, as are `control_figures`, the paths of the figures
    `same_compute`, `decomposition` and `where`. null_checks: see `null_check_section`;
    model_note: what the model's card says that a report must tell.
    """
    beside = {name: quote(os.path.relpath(path, folder)) for name, path in (control_figures or {}).items()}
    figure, *panels = (quote(os.path.relpath(path, folder)) for path in (figure, *panels))
    margins = rules.QualityMargins.from_settings(settings["report"])
    warned = warning(study, vocabulary_size(summaries), _tasks(settings))
    sentences = warned or main_sentences(study, margins, _tables(null_checks))
    null_check = list(null_check_section(null_checks or {}, folder))
    picture = beside.pop("same_compute", None) or panels[PANELS.index(ANSWERING)]
    sections = [
        f"# {_title(study)}",
        f"**About the model.** {words.capitalized(words.escaped(model_note))}" if model_note else "",
        "## Answers",
        "\n".join(f"{i}. {sentence}" for i, sentence in enumerate(sentences, start=1)),
        "" if warned else f"![The answer as a picture]({picture})",
        *(() if warned else cost_at_a_glance(study, margins)),
        *warning_section(study, summaries),
        _setting(study, summaries),
        *(() if warned else answer_sections(study, margins, beside, null_check)),
        "### Missing, skipped and shortened",
        *gap_section(study, summaries),
        "## Panels",
        f"All nine on one page: [{Path(figure).name}]({figure}).",
        _atlas(study, margins, atlas, folder),
        *_panels(study, panels),
        *difficulty_section(difficulty, folder),
        "## Tables",
        *table_sections(study),
        "## Method",
        *method_sections(study, settings),
        "## Settings and versions",
        *provenance_section(summaries),
        "## How to reproduce",
        *reproduction_section(settings),
    ]
    text = "\n\n".join(section for section in sections if section) + "\n"
    for dataset in study.datasets:
        if re.search(r"[^\w.-]", dataset):  # a name that Markdown would take for its own
            text = text.replace(dataset, words.escaped(dataset))
    return text


def _tables(null_checks):
    return {name: table for name, (table, _) in (null_checks or {}).items()}


def _title(study):
    names = {"bh": "Benjamini–Hochberg"}
    strategies = dict.fromkeys(study.adaptive["strategy"])
    rules_ = [names.get(strategy, words.strategy(strategy)) for strategy in strategies] or ["adaptive rules"]
    several = len(rules_) > MOST_IN_TITLE
    return TITLE.format(rule=f"{len(rules_)} adaptive rules" if several else words.joined(rules_))


def _atlas(study, margins, path, folder):
    """Where the atlas is, and links into it to the configuration that the answers name, by data set."""
    if path is None:
        return ""
    link = quote(os.path.relpath(path, folder))
    text = (
        f"The [routing atlas]({link}) shows which experts each configuration chose, how many in each layer, "
        "and on which tokens of the text"
    )
    config = featured(study, margins)
    if config is None:
        return f"{text}."
    places = [
        f"[{words.escaped(dataset)}]({link}#{urlencode({'config': config, 'dataset': dataset})})"
        for dataset in study.datasets
    ]
    return f"{text}; {words.code(config)} on {words.joined(places)}."


def _setting(study, summaries):
    """What was run, and what it was compared with."""
    models = sorted({s["provenance"]["model"]["name"] for s in summaries})
    totals = {
        d: [s["summary"]["total_samples"] for s in summaries if s["dataset"] == d] for d in study.datasets
    }
    samples = ", ".join(
        f"{d} ({words.plural(words.span(values), 'sample')}{_clusters(study, d, max(values, default=0))})"
        for d, values in totals.items()
    )
    missing = len(rules.missing_experiments(study))
    counted = study.configurations["strategy"].value_counts(sort=False)
    kinds = [
        words.plural(count, f"{words.strategy(str(strategy))} configuration")
        for strategy, count in counted.items()
    ]
    native = sorted({s["routing"]["native_top_k"] for s in summaries})
    native_names = [f"{k}experts_topk_baseline" for k in native]
    return (
        f"Model {', '.join(map(words.code, models))}; {words.plural(len(study.experiments), 'experiment')}: "
        f"{words.joined(kinds)} on {samples}."
        + _controls(study)
        + _repetitions(study)
        + (f" **{words.plural(missing, 'experiment')} missing** (listed below)." if missing else "")
        + f" All are compared with the baseline, {words.code(study.baseline)}, sample by sample."
        + (
            f" It is not the model's own routing, which is top-{words.joined(native)}."
            if native and study.baseline not in native_names
            else ""
        )
        + _two_perplexities(study)
    )


def _clusters(study, dataset, samples):
    """Repeated texts and rows of one article are one cluster; nothing where every sample is one."""
    count = study.clusters.get(dataset, samples)
    return f" in {words.plural(count, 'cluster')}" if count < samples else ""


def _repetitions(study):
    """Which configurations ran what another one did."""
    if not study.repetitions:
        return ""
    repeated = words.plural(sum(map(len, study.repetitions.values())), "configuration")
    examples = [
        f"{words.joined(map(words.code, others))} as {words.code(first)}"
        for first, others in list(study.repetitions.items())[:MOST_REPETITIONS]
    ]
    more = words.more(list(study.repetitions), MOST_REPETITIONS)
    return (
        f" {repeated} ran exactly what another of the study ran ({'; '.join(examples)}{more}), as where no "
        "token reaches max_k. Answers and counts are of the others; tables and figures show them too."
    )


def _two_perplexities(study):
    if study.perplexity != "token_perplexity" or not study.has("perplexity"):
        return ""
    datasets = [dataset for dataset, score in study.scores.items() if score == "token_perplexity"]
    return (
        f" The score of {words.joined(datasets)} is token perplexity, in which every predicted token weighs "
        "the same; in `perplexity`, the metric of panel 1, every row does, headings of a few tokens too."
    )


def _controls(study):
    count = 0 if study.controls is None else len(study.controls)
    if not count:
        return ""
    return f" {words.plural(count, 'more experiment')} {'is a control' if count == 1 else 'are controls'}."


def _panels(study, links):
    for panel, link in zip(PANELS, links, strict=True):
        number, title = panel.split("_")[0], TITLES[panel]
        yield f"### {number}. {title}"
        yield describe_panel(panel, study)
        yield f"![Panel {number}: {title}]({link})"
