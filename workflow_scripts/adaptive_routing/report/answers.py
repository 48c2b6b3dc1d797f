"""The report's answers: which configuration for which aim, with the numbers and tests behind it.

The rules are in `recommendations.py`; every sentence is chosen by the study's numbers, and none says
more than the tests do.
"""

import numpy as np

from adaptive_routing.report import recommendations as rules
from adaptive_routing.report import words
from adaptive_routing.study import SIGNIFICANCE_LEVEL, lower_is_better

STRATEGIES = {"bh": "BH", "topk": "top-k"}


def _measures(study):
    """What quality is measured by: column of the configurations table to its name."""
    perplexity = {study.perplexity: words.score_name(study.perplexity)} if study.perplexity else {}
    return perplexity | {"avg_task_accuracy": "mean task accuracy"}


def answers(study):
    if study.baseline_row is None:
        yield (
            f"**The baseline {words.code(study.baseline)} has no results, so nothing can be recommended:** "
            "the tables below hold what was measured, without comparisons."
        )
        return
    if study.comparisons.empty:
        yield (
            "**No configuration was compared with the baseline, so nothing can be recommended:** the tables "
            "below hold what was measured."
        )
        return
    if not study.scored_datasets:
        yield (
            "**No data set of this study has a perplexity or an accuracy, so nothing can be recommended:** "
            "the tables below compare mean losses."
        )
        return
    yield _verdict_on_bh(study)
    if powerless := rules.powerless(study):
        yield _too_few_samples(powerless)
    yield _aims(study)
    for column, name in _measures(study).items():
        best = rules.best_quality(study, column)
        if best is not None:
            yield f"### Best {name}"
            yield _best_quality(study, best, name)
    yield "### Same quality, least compute"
    yield from _least_compute(study)
    yield "### Fastest at the same quality"
    yield _fastest(study)
    yield "### Against top-k at the same compute"
    yield _same_compute(study)
    yield "### Where BH does not help"
    yield _where_not(study)
    yield "### How far these answers reach"
    yield _limits(study)


def _verdict_on_bh(study):
    outcomes = rules.bh_outcomes(study)
    total = sum(map(len, outcomes.values()))
    if total == 0:
        return "**This study holds no BH configuration.**"
    cheaper = set(study.bh.loc[study.bh["avg_experts"] < study.baseline_value("avg_experts"), "config"])
    better, undecided = outcomes["better"], outcomes["undecided"]
    if better:
        sentence = (
            f"BH beats the baseline in {words.of(len(better), total)} BH configurations: significantly "
            "better on at least one data set, worse on none. With fewer experts: "
            f"{len(cheaper & set(better))} of them."
        )
    elif cheaper & set(undecided):
        sentence = (
            "No BH configuration is shown to be better than the baseline; fewer experts with no significant "
            f"loss on any data set: {words.of(len(cheaper & set(undecided)), total)}."
        )
    elif undecided:
        sentence = (
            "BH is not shown to help: no BH configuration is significantly better than the baseline without "
            "being worse elsewhere, and those that show no loss do not run fewer experts."
        )
    elif outcomes["worse"]:
        sentence = "BH does not help here: no tested BH configuration is without a significant loss."
    else:
        sentence = "The data support no verdict on BH: no BH configuration was compared on every data set."
    rest = [
        f"{len(outcomes[name])} {text}"
        for name, text in (
            ("worse", "significantly worse on at least one data set"),
            ("undecided", "without a significant difference"),
            ("untested", "not compared on every data set"),
        )
        if outcomes[name]
    ]
    return f"**{sentence}**" + (
        f" All in all: {', '.join([f'{len(better)} better', *rest])}." if rest else ""
    )


def _too_few_samples(powerless):
    parts = [
        f"on {dataset} ({words.plural(samples, 'sample')}; "
        f"{words.joined([STRATEGIES[s] for s in strategies])} configurations)"
        for dataset, (strategies, samples) in powerless.items()
    ]
    return (
        f"**So few samples cannot show any difference** {words.joined(parts)}: if all samples differed in "
        "the same direction, the test's p, corrected by Holm, would still not be below "
        f"{SIGNIFICANCE_LEVEL}. That no loss is shown there says nothing."
    )


def _aims(study):
    rows = []
    for column, name in _measures(study).items():
        best = rules.best_quality(study, column)
        if best is None:
            continue
        supported = best.config == study.baseline or (best.better_on and not best.worse_on)
        use = words.code(best.config) if supported else f"undecided; best measured: {words.code(best.config)}"
        rows.append((f"best {name}", use, *_key_numbers(study, best.config)))
    not_worse, proven = rules.not_worse(study), rules.within_margin(study)
    for aim, config in (
        ("least compute, no significant loss", rules.least_compute(study, not_worse)),
        ("least compute, loss within the margin", rules.least_compute(study, proven)),
        ("fastest, no significant loss", rules.fastest(study, not_worse)),
    ):
        use = words.code(config) if config else f"none; keep {words.code(study.baseline)}"
        rows.append((aim, use, *_key_numbers(study, config or study.baseline)))
    perplexity = words.score_name(study.perplexity or "perplexity")
    headings = ["aim", "configuration", "average experts", perplexity, "mean accuracy", "tokens/s"]
    return words.table(headings, rows)


def _key_numbers(study, config):
    row = study.configurations.set_index("config").loc[config]
    return (
        words.number(row.get("avg_experts"), ".2f"),
        words.with_error(row, study.perplexity or "perplexity", ".2f"),
        words.with_error(row, "avg_task_accuracy", ".3f"),
        words.number(row.get("tokens_per_second"), ",.0f"),
    )


def _best_quality(study, best, name):
    row = study.configurations.set_index("config").loc[best.config]
    value = words.with_error(row, best.column, ".2f" if lower_is_better(best.column) else ".3f")
    extreme = "lowest" if lower_is_better(best.column) else "highest"
    if best.config == study.baseline:
        return f"The baseline itself has the {extreme} {name}, {value}: no configuration measured better."
    opening = (
        f"{words.code(best.config)} has the {extreme} {name}, {value}, with {row['avg_experts']:.2f} experts."
    )
    evidence = _evidence(study, best.config, rules.scores_of(study, best.column))
    if best.better_on and not best.worse_on:
        verdict = f"It is significantly better than the baseline on {words.joined(best.better_on)}."
    elif best.worse_on:
        verdict = (
            f"Yet it is significantly worse than the baseline on {words.joined(best.worse_on)}: no clear "
            "choice."
        )
    else:
        verdict = "The data do not show that it is better than the baseline, so they do not support a choice."
    return (
        f"{opening} {verdict} The best of {len(study.configurations)} measured values flatters the "
        f"configuration that has it.\n\n{evidence}"
    )


def _least_compute(study):
    not_worse, proven = rules.not_worse(study), rules.within_margin(study)
    config, sure = rules.least_compute(study, not_worse), rules.least_compute(study, proven)
    if config is None:
        yield (
            "No configuration that runs fewer experts than the baseline was compared with it on every data "
            "set and significantly worse on none: the data support no choice but "
            f"{words.code(study.baseline)}."
        )
        return
    row = study.configurations.set_index("config").loc[config]
    reference = study.baseline_value("avg_experts")
    yield (
        f"{words.code(config)} runs fewest experts among those not significantly worse than the baseline on "
        f"any data set: {row['avg_experts']:.2f} a token and layer against {reference:.2f} "
        f"({100 * (1 - row['avg_experts'] / reference):.0f} % fewer)."
    )
    yield _evidence(study, config, study.scored_datasets)
    yield (
        "“Not significantly worse” means that no loss was shown, not that there is none: the intervals "
        "above say which losses remain possible."
    )
    margins = ", ".join(
        f"{words.score(study, d, rules.margin(study, d))} on {d}" for d in study.scored_datasets
    )
    margins += f"; {100 * rules.PERPLEXITY_MARGIN:g} % of perplexity, {rules.ACCURACY_MARGIN} of accuracy"
    if sure is None:
        yield (
            "No configuration with fewer experts than the baseline has 95 % intervals that exclude a loss "
            f"beyond a margin ({margins}) on every data set: for each of them such a loss remains possible."
        )
    elif sure == config:
        yield f"Its intervals also exclude losses beyond the margins ({margins}) on every data set."
    else:
        experts = study.configurations.set_index("config").loc[sure, "avg_experts"]
        yield (
            f"If a loss beyond a margin ({margins}) must be excluded by the 95 % intervals on every data "
            f"set, the choice is {words.code(sure)} with {experts:.2f} experts."
        )
        yield _evidence(study, sure, study.scored_datasets)


def _fastest(study):
    reference = study.baseline_value("tokens_per_second")
    if not np.isfinite(reference):
        return "The baseline's speed was not measured, so the data support no choice."
    config = rules.fastest(study, rules.not_worse(study))
    if config is None:
        return (
            f"No configuration without a significant loss was faster than the baseline's {reference:,.0f} "
            f"tokens/s: keep {words.code(study.baseline)}."
        )
    speed = study.configurations.set_index("config").loc[config, "tokens_per_second"]
    return (
        f"{words.code(config)} was the fastest of those not significantly worse on any data set: "
        f"{speed:,.0f} tokens/s against {reference:,.0f}, {speed / reference:.2f} times the baseline. Speed "
        "was measured once a configuration, on the machine named below, and has no standard error: small "
        f"ratios mean little.\n\n{_evidence(study, config, study.scored_datasets)}"
    )


def _same_compute(study):
    items = []
    for column, name in _measures(study).items():
        result = rules.same_compute(study, column)
        if result is None:
            continue
        compared = len(result.better) + len(result.worse)
        if compared:
            items.append(
                f"{name.capitalize()}, BH better than the line at its own average number of experts: "
                f"{_counted(result.better, compared)}."
            )
        if result.outside:
            items.append(
                f"{name.capitalize()}, BH with fewer or more experts than any top-k configuration of this "
                f"study, so with nothing to compare: {_counted(result.outside, len(study.bh))}."
            )
    if not items:
        return (
            "With fewer than two top-k configurations there is no line to compare with at the same compute."
        )
    return (
        "BH against the line through the top-k configurations, interpolated in log k. This describes the "
        "measured values; it is no test.\n\n" + "\n".join(f"- {item}" for item in items)
    )


def _where_not(study):
    table = study.bh[study.bh["config"] != study.baseline].set_index("config")
    if table.empty:
        return "This study holds no BH configuration to compare."
    items = []
    for dataset in study.scored_datasets:
        worse = [config for config in table.index if study.verdict(config, dataset) == "worse"]
        if worse:
            items.append(
                f"Significantly worse than the baseline on {dataset}: {_counted(worse, len(table))}."
            )
    better = rules.bh_outcomes(study)["better"]
    dear = table.index[table["avg_experts"] >= study.baseline_value("avg_experts")]
    vain = [config for config in dear if config not in better]
    if vain:
        items.append(
            "As many experts as the baseline or more, without being shown to be better: "
            f"{_counted(vain, len(table))}."
        )
    slow = table.index[table["tokens_per_second"] < study.baseline_value("tokens_per_second")]
    if len(slow):
        items.append(f"Slower than the baseline: {_counted(slow, len(table))}.")
    if not items:
        return (
            "No loss was shown: every BH configuration runs fewer experts than the baseline, none was "
            "slower, and none is significantly worse on a data set it was compared on. What losses remain "
            "possible, the intervals below say."
        )
    return "\n".join(f"- {item}" for item in items)


def _counted(configs, total):
    """How many of `total`, and which."""
    names = f" ({', '.join(words.listed(configs))})" if len(configs) else ""
    return f"{words.of(len(configs), total)}{names}"


def _limits(study):
    families = study.comparisons[
        study.comparisons["metric"] == study.comparisons["dataset"].map(study.scores)
    ].merge(study.configurations[["config", "strategy"]], on="config")
    sizes = families.groupby(["strategy", "dataset"]).size().groupby("strategy").max()
    sizes = " and ".join(f"{size} {'BH' if s == 'bh' else 'top-k'}" for s, size in sizes.items())
    powerless = rules.powerless(study)
    widths = ", ".join(
        f"±{words.score(study, d, rules.typical_half_width(study, d))} on {d}"
        for d in study.scored_datasets
        if d not in powerless and np.isfinite(rules.typical_half_width(study, d))
    )
    visible = (
        f" Half an interval's width is typically {widths}; smaller differences cannot be told from none here."
        if widths
        else ""
    )
    per_word = (
        " Word perplexity is exp of all articles' total loss by all their words; its test is a paired "
        "t-test of the articles' differences in total loss by the mean number of words, linearised as a "
        "ratio."
        if study.perplexity == "word_perplexity"
        else ""
    )
    unscored = [dataset for dataset in study.datasets if dataset not in study.scored_datasets]
    left_out = (
        f" Left out of the answers, without a perplexity or an accuracy: {words.joined(unscored)}."
        if unscored
        else ""
    )
    return (
        f"A difference counts as significant where Holm's corrected p is below {SIGNIFICANCE_LEVEL}; the "
        f"correction runs over the configurations of one strategy on one data set ({sizes} comparisons). "
        "The tests are the paired t-test of losses and McNemar's exact test of accuracies; Wilcoxon's "
        "signed-rank test and the bootstrap stand beside them in the tables and decide nothing. Tests are "
        "paired over the same samples; like the standard errors, they take samples as independent, also "
        f"where texts repeat or belong together.{left_out} The 95 % intervals are those of the t-test for "
        "losses and Tango's score interval for accuracies (it belongs to McNemar's asymptotic test, a "
        "little less strict than the exact one). They are not corrected: one in twenty misses by "
        f"chance.{visible} A loss is within the margin where the interval of at least "
        f"{rules.FEWEST_SAMPLES} samples excludes one of more than {100 * rules.PERPLEXITY_MARGIN:g} % of "
        f"perplexity and {rules.ACCURACY_MARGIN} of accuracy; an interval without width, of results that "
        "are the same on every sample, proves nothing. Perplexity is exp of the mean loss a "
        f"sample.{per_word} Speeds come from one timed pass over each data set, on a machine that may have "
        "been doing other work: small differences between them mean nothing."
    )


def _evidence(study, config, datasets):
    rows = []
    for dataset in datasets:
        c = study.comparison(config, dataset)
        if c is None:
            rows.append((dataset, *[words.NOTHING] * 7))
            continue
        digits = words.digits_of(study, dataset)
        rows.append(
            (
                dataset,
                words.score_name(c["metric"]),
                words.with_error(c, "value", digits),
                words.with_error(c, "baseline_value", digits),
                words.number(c["difference"], "+z" + digits),
                words.interval(c, "+z" + digits),
                words.p_value(c["p_holm"]),
                {"better": "better", "worse": "worse", "same": "not shown"}.get(
                    study.verdict(config, dataset), words.NOTHING
                ),
            )
        )
    name = words.code(config)
    return words.table(
        [
            "data set",
            "score",
            name,
            "baseline",
            "difference",
            "95 % interval",
            "p (Holm)",
            "difference shown",
        ],
        rows,
    )
