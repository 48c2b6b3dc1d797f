"""Where the report's numbers come from: settings, versions, gaps, and how to reproduce them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import yaml

from adaptive_routing.analysis import recommendations as rules
from adaptive_routing.report import words
from adaptive_routing.settings.configurations import DEFAULTS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

    from adaptive_routing.analysis.study import Study
    from adaptive_routing.evaluation.experiment import Summary
    from adaptive_routing.settings.load import Settings

# Perplexities by kind of data set, each with a metric that exists wherever the perplexity was computed.
COMPUTED_WITH = {
    "wikitext": {
        "perplexity": "total_tokens",
        "token_perplexity": "total_tokens",
        "word_perplexity": "bits_per_byte",
        "byte_perplexity": "bits_per_byte",
    },
    "lambada": {"target_perplexity": "avg_task_accuracy"},
    "harness": {"word_perplexity": "bits_per_byte", "byte_perplexity": "bits_per_byte"},
}


def provenance_section(summaries: Sequence[Summary]) -> Iterator[str]:
    """Yield a table of the model, device and versions, and which of them differ between experiments."""
    if not summaries:
        yield "No summary of an experiment was given."
        return
    rows = []
    for name, values in (
        ("model", [s["provenance"]["model"].get("name") for s in summaries]),
        ("revision", [s["provenance"]["model"].get("revision") for s in summaries]),
        ("commit", [s["provenance"]["model"].get("commit") for s in summaries]),
        ("weights fingerprint", [s["provenance"]["model"].get("fingerprint") for s in summaries]),
        *_commits(summaries),
        ("native top-k", [s["routing"].get("native_top_k") for s in summaries]),
        ("dtype", [s["provenance"].get("dtype") for s in summaries]),
        ("device", [s["provenance"].get("device") for s in summaries]),
        ("workflow", [_code_version(s["provenance"].get("run", {}).get("code")) for s in summaries]),
    ):
        rows.append((name, words.distinct(values)))
    versions = [s["provenance"].get("versions", {}) for s in summaries]
    for package in sorted(set().union(*versions)):
        rows.append((package, words.distinct([of_experiment.get(package) for of_experiment in versions])))
    rows.append(
        ("forward time, all experiments", f"{sum(s['timings']['forward_seconds'] for s in summaries):,.1f} s")
    )
    yield words.table(["what", "value"], rows)
    varying = [name for name, value in rows if "; " in value]
    if varying:
        yield f"Different between experiments: {', '.join(varying)}. This may explain differences in results."


def _commits(summaries):
    """The rows of what was read from the hub besides the model: each repository, and its commit."""
    read = {}
    for summary in summaries:
        settings = summary["provenance"].get("settings", {})
        calibration = (settings.get("null_distribution") or {}).get("calibration")
        sources = {f"data set {summary['dataset']}": settings.get("dataset"), "calibration text": calibration}
        for name, source in sources.items():
            if source and source.get("commit"):
                read.setdefault(name, []).append(f"{source['source']}@{source['commit']}")
    return sorted(read.items())


def _code_version(code):
    """The workflow's version in words."""
    if code is None:
        return None
    commit = f", commit {code['commit']}" if code["commit"] else ""
    return f"{code['version']}{commit}{', with local changes' if code['local_changes'] else ''}"


def gap_section(study: Study, summaries: Sequence[Summary]) -> Iterator[str]:
    """Yield what is missing, skipped or truncated, as a list."""
    items = []
    missing = rules.missing_experiments(study)
    if missing:
        names = [f"{words.code(config)} on {dataset}" for config, dataset in missing]
        items.append(f"No results: {', '.join(names[:20])}{words.more(names, 20)}.")
    if study.baseline_row is None:
        items.append(f"The baseline {words.code(study.baseline)} has no results.")
    for dataset in study.datasets:
        of_dataset = [s for s in summaries if s["dataset"] == dataset]
        sizes = [s["summary"] for s in of_dataset]
        short = [size for size in sizes if size["total_samples"] < (size.get("requested_samples") or 0)]
        if short and not any(map(_small_by_nature, of_dataset)):
            items.append(
                f"{dataset}: scored {words.span([size['total_samples'] for size in short])} of "
                f"{words.span([size['requested_samples'] for size in short])} requested samples."
            )
        skipped = [size["skipped_rows"] for size in sizes if size.get("skipped_rows")]
        if skipped:
            items.append(f"{dataset}: skipped {words.plural(words.span(skipped), 'empty row')}.")
        truncated = [size["truncated_samples"] for size in sizes if size.get("truncated_samples")]
        if truncated:
            samples = words.plural(words.span(truncated), "sample")
            items.append(f"{dataset}: truncated {samples} to the maximum length.")
        items += _too_large(study, dataset, _task(dataset, of_dataset))
    uncompared = [
        dataset
        for dataset in study.datasets
        if not (study.comparisons["dataset"] == dataset).any() and len(study.configurations) > 1
    ]
    if uncompared:
        items.append(f"No comparisons: {', '.join(uncompared)}.")
    for column, name in (("latency_ms_per_token", "latency"), ("expert_overlap_score", "stability")):
        if not study.has(column):
            items.append(f"No {name}: it needs a second pass, and none was run.")
    if not items:
        yield "Nothing: every configuration ran on every requested sample of every data set, none truncated."
        return
    yield "\n".join(f"- {item}" for item in items)


def _small_by_nature(summary):
    """Whether a data set usually has fewer samples than `max_samples`: prompts, whole articles."""
    settings = summary["provenance"].get("settings", {})
    return summary["dataset"] == "prompts" or settings.get("dataset", {}).get("protocol") == "documents"


def _task(dataset, summaries):
    """Of which kind a data set is, as its summaries tell."""
    settings = [summary["provenance"].get("settings", {}).get("dataset", {}) for summary in summaries]
    return next((one["task"] for one in settings if "task" in one), dataset)


def _too_large(study, dataset, task):
    """Yield a sentence for each perplexity of a data set that exceeds the largest float."""
    rows = study.experiments[study.experiments["dataset"] == dataset]
    for column, witness in COMPUTED_WITH.get(task, {}).items():
        if column in rows and witness in rows:
            missing = rows.loc[rows[column].isna() & rows[witness].notna(), "config"]
            if len(missing):
                yield (
                    f"{dataset}: {words.score_name(column)} is too large for a float (over 1e308; "
                    f"“{words.NOTHING}” in the tables) for {', '.join(words.listed(missing))}."
                )


def reproduction_section(settings: Settings) -> Iterator[str]:
    """Yield the command and the settings that repeat the study."""
    yield "Save these settings as `study.yaml`, then run this in the project's root:"
    yield "```\nsnakemake --configfile study.yaml\n```"
    dumped = yaml.safe_dump(plain_settings(settings), sort_keys=False, allow_unicode=True)
    # A fence ends at as many backticks as began it.
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", dumped)), default=0))
    yield words.folded("study.yaml", f"{fence}yaml\n{dumped}{fence}")


def plain_settings(settings: Any) -> Any:
    """The settings as a config file holds them, without what the workflow adds.

    It adds the key `local`, and the null distribution of the section `null_distribution` to the named ones.
    """
    if isinstance(settings, dict):
        plain = {key: plain_settings(value) for key, value in settings.items() if key != "local"}
        if "null_distributions" in plain:
            plain["null_distributions"].pop(DEFAULTS["null"], None)
        return plain
    return [plain_settings(value) for value in settings] if isinstance(settings, list | tuple) else settings
