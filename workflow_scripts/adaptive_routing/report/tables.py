"""The report's tables: quality, compute, expert counts and the tests on each data set."""

from adaptive_routing.report import recommendations as rules
from adaptive_routing.report import words
from adaptive_routing.study import SIGNIFICANCE_LEVEL, lower_is_better

# Columns of the tables beside quality: name, heading, format.
EFFICIENCY = (
    ("avg_experts", "average experts", ".2f"),
    ("expert_activation_ratio", "activation ratio", ".3f"),
    ("reduction_vs_baseline", "fewer experts than native (%)", ".1f"),
    ("flops_reduction_pct", "FLOPs saved, f = 0.6 (%)", ".1f"),
    ("flops_reduction_exact_pct", "FLOPs saved, exact (%)", ".1f"),
    ("tokens_per_second", "tokens/s", ",.0f"),
    ("latency_ms_per_token", "latency (ms/token)", ".3f"),
)
COUNTS = (
    ("std_experts", "standard deviation", ".2f"),
    ("min_experts", "smallest", ".0f"),
    ("max_experts", "largest", ".0f"),
    ("adaptive_range", "range", ".1f"),
    ("selection_entropy", "entropy (nats)", ".2f"),
    ("selection_entropy_normalized", "entropy / ln max_k", ".2f"),
    ("floor_hit_rate", "at the floor (%)", ".1f"),
    ("ceiling_hit_rate", "at the ceiling (%)", ".1f"),
)
EXPERTS = (
    ("expert_utilization", "experts used", ".3f"),
    ("gini_coefficient", "Gini", ".3f"),
    ("native_overlap", "overlap with native", ".3f"),
    ("layer_expert_variance", "variance over layers", ".2f"),
    ("layer_consistency_score", "layer consistency", ".3f"),
    ("expert_overlap_score", "overlap of two passes", ".4f"),
    ("output_determinism", "same greedy token (%)", ".2f"),
)


def tables(study):
    yield (
        "Values ± standard error. ▲ better, ▼ worse than the baseline (corrected by Holm, p < "
        f"{SIGNIFICANCE_LEVEL}); no mark: no difference shown. {words.NOTHING}: does not exist for this "
        "strategy or data set. Over several data sets a metric is the plain mean."
    )
    yield "### Quality"
    yield _quality_table(study)
    yield "### Compute and speed"
    yield _metric_table(study, EFFICIENCY)
    yield "### Expert counts"
    yield _metric_table(study, COUNTS)
    yield "### Experts and layers"
    yield _metric_table(study, EXPERTS)
    for dataset in study.datasets:
        rows = [
            (config, study.comparison(config, dataset))
            for config in study.configurations["config"]
            if study.comparison(config, dataset) is not None
        ]
        if rows:
            yield f"### Tests on {dataset}"
            yield _test_table(study, dataset, rows)


def _quality_table(study):
    scores = [("perplexity", ".2f", rules.scores_of(study, "perplexity"))] if study.has("perplexity") else []
    scores += [(column, ".3f", [column.removesuffix("_accuracy")]) for column in study.accuracies]
    if study.has("avg_task_accuracy"):
        scores.append(("avg_task_accuracy", ".3f", []))
    rows = []
    for _, row in study.configurations.iterrows():
        cells = [words.named(study, row["config"]), words.number(row["avg_experts"], ".2f")]
        for column, digits, datasets in scores:
            marks = "".join(
                words.MARKS.get(study.verdict(row["config"], dataset), "") for dataset in datasets
            )
            cells.append(words.with_error(row, column, digits) + marks)
        rows.append(cells)
    headings = [c.replace("avg_task", "mean").replace("_", " ") for c, _, _ in scores]
    return words.table(["configuration", "average experts", *headings], rows)


def _metric_table(study, columns):
    columns = [column for column in columns if column[0] in study.configurations]
    rows = [
        [words.named(study, row["config"]), *(words.number(row[name], digits) for name, _, digits in columns)]
        for _, row in study.configurations.iterrows()
    ]
    return words.table(["configuration", *(heading for _, heading, _ in columns)], rows)


def _test_table(study, dataset, comparisons):
    digits = words.digits_of(study, dataset)
    cells = []
    for config, c in comparisons:
        cells.append(
            (
                words.code(config),
                words.number(c["value"], digits),
                words.number(c["difference"], "+z" + digits)
                + words.MARKS.get(study.verdict(config, dataset), ""),
                f"{words.number(c['ci_low'], '+z' + digits)} to {words.number(c['ci_high'], '+z' + digits)}",
                *(words.p_value(c.get(column)) for column in ("p_value", "p_holm", "p_bh")),
                words.number(c.get("effect_size"), ".2f"),
            )
        )
    first = comparisons[0][1]
    accuracy = not lower_is_better(first["metric"])
    effect = "odds ratio of the samples that differ" if accuracy else "Cohen's d of the paired losses"
    caption = (
        f"{first['metric'].replace('_', ' ').capitalize()}; baseline "
        f"{words.number(first['baseline_value'], digits)}; {first['test']}, "
        f"{words.span([c['samples'] for _, c in comparisons])} samples; effect size: {effect}."
    )
    headings = [
        "configuration",
        "value",
        "difference",
        "95 % interval",
        "p",
        "p (Holm)",
        "p (BH)",
        "effect size",
    ]
    return f"{caption}\n\n{words.table(headings, cells)}"
