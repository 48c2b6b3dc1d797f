"""Where the report's numbers come from: settings, versions, what is missing, how to reproduce them."""

import yaml

from adaptive_routing.report import recommendations as rules
from adaptive_routing.report import words


def provenance(summaries):
    if not summaries:
        yield "No summary of an experiment was given."
        return
    rows = []
    for name, values in (
        ("model", [s["provenance"]["model"].get("name") for s in summaries]),
        ("revision", [s["provenance"]["model"].get("revision") for s in summaries]),
        ("commit", [s["provenance"]["model"].get("commit") for s in summaries]),
        ("weights fingerprint", [s["provenance"]["model"].get("fingerprint") for s in summaries]),
        ("native top-k", [s["routing"].get("native_top_k") for s in summaries]),
        ("dtype", [s["provenance"].get("dtype") for s in summaries]),
        ("device", [s["provenance"].get("device") for s in summaries]),
    ):
        rows.append((name, words.distinct(values)))
    versions = [s["provenance"].get("versions", {}) for s in summaries]
    for package in sorted({package for one in versions for package in one}):
        rows.append((package, words.distinct([one.get(package) for one in versions])))
    rows.append(
        ("forward time, all experiments", f"{sum(s['timings']['forward_seconds'] for s in summaries):,.1f} s")
    )
    yield words.table(["what", "value"], rows)
    varying = [name for name, value in rows if "; " in value]
    if varying:
        yield f"Not the same in all experiments: {', '.join(varying)}. Differences may have this cause."


def gaps(study, summaries):
    items = []
    missing = rules.missing_experiments(study)
    if missing:
        names = [f"{words.code(config)} on {dataset}" for config, dataset in missing]
        items.append(f"Without results: {', '.join(names[:20])}{words.more(names, 20)}.")
    if study.baseline_row is None:
        items.append(f"The baseline {words.code(study.baseline)} has no results.")
    for dataset in study.datasets:
        own = [s["summary"] for s in summaries if s["dataset"] == dataset]
        short = [one for one in own if one["total_samples"] < (one.get("requested_samples") or 0)]
        if short:
            items.append(
                f"{dataset}: {words.span([one['total_samples'] for one in short])} of "
                f"{words.span([one['requested_samples'] for one in short])} samples asked for were scored."
            )
        truncated = [one["truncated_samples"] for one in own if one.get("truncated_samples")]
        if truncated:
            items.append(
                f"{dataset}: {words.span(truncated)} samples were cut to the longest length allowed."
            )
    uncompared = [
        dataset
        for dataset in study.datasets
        if not (study.comparisons["dataset"] == dataset).any() and len(study.configurations) > 1
    ]
    if uncompared:
        items.append(f"Without comparisons: {', '.join(uncompared)}.")
    for column, name in (("latency_ms_per_token", "latency"), ("expert_overlap_score", "stability")):
        if not study.has(column):
            items.append(f"There are no figures of {name}: no second pass was run.")
    if not items:
        yield "Nothing: every configuration ran on every data set, with every sample asked for, uncut."
        return
    yield "\n".join(f"- {item}" for item in items)


def reproduction(settings):
    yield "Save these settings as `study.yaml`, then run from the top of the project:"
    yield "```\nsnakemake --cores 1 --resources gpu=1 --configfile study.yaml\n```"
    yield f"```yaml\n{yaml.safe_dump(plain_settings(settings), sort_keys=False, allow_unicode=True)}```"


def plain_settings(settings):
    """The settings as a config file holds them: without what the workflow has found out by itself."""
    if isinstance(settings, dict):
        return {key: plain_settings(value) for key, value in settings.items() if key != "local"}
    return [plain_settings(value) for value in settings] if isinstance(settings, list | tuple) else settings
