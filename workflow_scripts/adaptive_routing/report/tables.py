"""The report's tables: quality, compute, expert counts, and the tests on each data set."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from adaptive_routing.analysis import recommendations as rules
from adaptive_routing.analysis import statistics
from adaptive_routing.analysis.metrics import ALL_METRICS
from adaptive_routing.analysis.study import SIGNIFICANCE_LEVEL, lower_is_better
from adaptive_routing.report import words

if TYPE_CHECKING:
    from collections.abc import Iterator

    from adaptive_routing.analysis.study import Study

# Columns of the tables: name, heading, format.
PERPLEXITY_COLUMNS = (
    ("perplexity", "perplexity", ".2f"),
    ("token_perplexity", "token perplexity", ".2f"),
    ("word_perplexity", "word perplexity", ".2f"),
    ("byte_perplexity", "byte perplexity", ".3f"),
    ("bits_per_byte", "bits per byte", ".3f"),
    ("target_perplexity", "target perplexity", ".2f"),
)
# The first columns of the overview; the scores that decide follow.
OVERVIEW = (
    ("avg_experts", "experts", ".2f"),
    ("flops_reduction_exact_pct", "FLOPs saved (%)", ".1f"),
    ("tokens_per_second", "tokens/s", ",.0f"),
)
EFFICIENCY = (
    ("avg_experts", "average experts", ".2f"),
    ("expert_activation_ratio", "activation ratio", ".3f"),
    ("reduction_vs_baseline", "fewer experts than native (%)", ".1f"),
    ("flops_reduction_pct", "FLOPs saved, f = 0.6 (%)", ".1f"),
    ("flops_reduction_exact_pct", "FLOPs saved, exact (%)", ".1f"),
    ("tokens_per_second", "tokens/s", ",.0f"),
    ("latency_ms_per_token", "latency (ms/token)", ".3f"),
)
TWO_FLOPS = (
    "The two columns of FLOPs saved count differently. “f = 0.6” takes the cost of k among E experts as "
    "0.6 · k/E + 0.4 in every model, which hardly depends on k where E is large; “exact” counts the matrix "
    "products of this model's shapes."
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
# Of these the top-k that runs all experts has the best value whatever the model does.
EVEN_BY_CONSTRUCTION = ("gini_coefficient", "expert_utilization")
BETTER = {metric.name: metric.better for metric in ALL_METRICS}
# Names of tests in a sentence, where they differ from those in the comparisons table.
TEST_NAMES = {"McNemar exact": "McNemar's exact test"}


def table_sections(study: Study) -> Iterator[str]:
    """Yield the overview, the tables of all metrics and the tests, with their headings."""
    yield (
        f"{words.NOTHING}: not defined for this strategy or data set, or too large for a float. A metric "
        "is the plain mean over the data sets, a score has ± one standard error. ▲ significantly better, ▼ "
        f"significantly worse than the baseline (Holm-corrected p < {SIGNIFICANCE_LEVEL}); ○ no significant "
        "difference; no mark: not tested. Bold: the best value of its column, whether or not it differs "
        "significantly. Experts are per token and layer."
    )
    perplexities = [(*column, rules.scores_of(study, column[0])) for column in PERPLEXITY_COLUMNS]
    accuracies = [
        *((c, words.score_name(c), ".3f", [c.removesuffix("_accuracy")]) for c in study.accuracies),
        ("avg_task_accuracy", "mean accuracy", ".3f", []),
    ]
    scores = [column for column in perplexities if column[0] == study.perplexity] + accuracies
    yield "### All configurations"
    yield _table(study, [*OVERVIEW, *(score for score in scores if study.has(score[0]))])
    perplexities = [score for score in perplexities if study.has(score[0])]
    complete = [
        ("Every perplexity", perplexities),
        ("Compute and speed", EFFICIENCY),
        ("Expert counts", COUNTS),
        ("Experts and layers", EXPERTS),
    ]
    yield "### All metrics"
    for summary, columns in complete:
        if columns:
            note = (
                f"\n\n{TWO_FLOPS}" if columns is EFFICIENCY and study.has("flops_reduction_exact_pct") else ""
            )
            yield words.folded(summary, _table(study, columns) + note)
    tests = [
        words.folded(_summary_of_tests(study, dataset, rows), _test_table(study, dataset, rows))
        for dataset in study.datasets
        if (rows := _comparisons_on(study, dataset))
    ]
    if tests:
        yield "### Tests against the baseline"
        yield from tests


def _comparisons_on(study, dataset):
    """The configurations compared on a data set, each with its comparison."""
    rows = ((config, study.comparison(config, dataset)) for config in study.configurations["config"])
    return [(config, comparison) for config, comparison in rows if comparison is not None]


def _table(study, columns):
    """A table with one row per configuration.

    columns: (name, heading, format); a score has a fourth item, the data sets whose verdicts mark it.
    """
    columns = [column for column in columns if column[0] in study.configurations]
    best = {name: _best(study, name) for name, *_ in columns}
    rows = []
    for _, row in study.configurations.iterrows():
        cells = [words.named(study, row["config"])]
        for name, _, digits, *datasets in columns:
            text = words.with_error(row, name, digits)
            text = f"**{text}**" if row["config"] in best[name] else text
            marks = (study.verdict(row["config"], dataset) for dataset in (datasets[0] if datasets else ()))
            cells.append(text + "".join(words.MARKS.get(mark, "") for mark in marks))
        rows.append(cells)
    return words.table(["configuration", *(heading for _, heading, *_ in columns)], rows)


def _best(study, name):
    """The configurations with the best value of a metric; none where it has no direction or all are equal."""
    table = study.configurations
    if name in EVEN_BY_CONSTRUCTION:
        table = table[(table["strategy"] != "topk") | (table["k_or_max_k"] < table["num_experts"])]
    values = table.set_index("config")[name].dropna()
    better = "higher" if name in study.accuracies else BETTER.get(name, "none")
    if better == "none" or values.nunique() < 2:
        return set()
    return set(values.index[values == (values.max() if better == "higher" else values.min())])


def _summary_of_tests(study, dataset, comparisons):
    """How many configurations of each strategy are significantly better or worse, or neither."""
    strategies = study.configurations.set_index("config")["strategy"]
    parts = []
    # BH first, then top-k, then other strategies.
    for strategy in dict.fromkeys(("bh", "topk", *strategies)):
        verdicts = [
            study.verdict(config, dataset) for config, _ in comparisons if strategies[config] == strategy
        ]
        if verdicts:
            counts = [
                f"{verdicts.count(verdict)} {text}"
                for verdict, text in (
                    ("better", "better"),
                    ("worse", "worse"),
                    ("same", "not significantly different"),
                )
                if verdicts.count(verdict)
            ]
            parts.append(f"{words.strategy(strategy)} {', '.join(counts) or 'not tested'}")
    return f"Tests on {dataset}: {'; '.join(parts)}"


def _test_table(study, dataset, comparisons):
    """The tests on one data set: a caption, one row per configuration, and where the tests disagree."""
    first = comparisons[0][1]
    accuracy = not lower_is_better(first["metric"])
    corrected = {"p_holm": TEST_NAMES.get(first["test"], f"the {first['test']}")}
    if not accuracy:
        corrected["p_wilcoxon_holm"] = "Wilcoxon's test"
    corrected["p_bootstrap_holm"] = "the bootstrap"
    effect = "odds ratio of the discordant samples" if accuracy else "Cohen's d of the paired losses"
    interval = "Tango's score interval" if "McNemar" in first["test"] else "t interval"
    samples = words.span([c["samples"] for _, c in comparisons])
    caption = (
        f"Score: {words.score_name(first['metric'])}; baseline "
        f"{words.with_error(first, 'baseline_value', words.digits_of(study, dataset))}; {first['test']}, "
        f"{words.plural(samples, 'sample')}; effect size: {effect}; interval: "
        f"{interval}, simultaneous."
    )
    headings = [
        "configuration",
        "value",
        "difference",
        "95 % interval",
        "p",
        "p (Holm)",
        "p (BH)",
        *([] if accuracy else ["Wilcoxon p (Holm)"]),
        "bootstrap p (Holm)",
        "effect size",
    ]
    parts = [
        caption,
        words.table_of_cells(
            headings, [words.comparison_cells(study, config, dataset) for config, _ in comparisons]
        ),
        "" if accuracy else _too_few_for_ranks(study, comparisons),
        _disagreements(corrected, comparisons),
    ]
    return "\n\n".join(part for part in parts if part)


def _too_few_for_ranks(study, comparisons):
    """A sentence where the rank test cannot be significant for any configuration; empty where it can."""
    strategies = study.configurations.set_index("config")["strategy"]
    sizes = strategies.loc[[config for config, _ in comparisons]].value_counts()
    samples = max(c["samples"] for _, c in comparisons)
    if sizes.min() * statistics.smallest_attainable_p(statistics.WILCOXON, samples) < SIGNIFICANCE_LEVEL:
        return ""
    return "With so few samples, Wilcoxon's test cannot be significant, whatever the losses."


def _disagreements(tests, comparisons):
    """For which configurations one test is significant and another is not, in words; empty where none.

    tests: {column of corrected p-values: the test's name}.
    """
    groups = {}
    for config, c in comparisons:
        p_values = {name: c.get(column) for column, name in tests.items() if pd.notna(c.get(column))}
        significant = [name for name, p in p_values.items() if p < SIGNIFICANCE_LEVEL]
        others = [name for name in p_values if name not in significant]
        if significant and others:
            groups.setdefault((words.joined(significant), words.joined(others)), []).append(config)
    if not groups:
        return ""
    parts = [
        f"by {significant}, but not by {others}, for {', '.join(words.listed(configs, most=20))}"
        for (significant, others), configs in groups.items()
    ]
    return (
        f"After Holm's correction the tests disagree at the {100 * SIGNIFICANCE_LEVEL:g} % level: the "
        f"difference is significant {'; '.join(parts)}."
    )
