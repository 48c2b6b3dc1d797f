"""The report's method: how experts were selected, results scored and compared, and metrics defined."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adaptive_routing.analysis import recommendations as rules
from adaptive_routing.analysis.metrics import EXTRA_METRICS, METRICS
from adaptive_routing.analysis.study import SIGNIFICANCE_LEVEL, lower_is_better
from adaptive_routing.report import words
from adaptive_routing.settings.load import task_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from adaptive_routing.analysis.study import Study
    from adaptive_routing.settings.load import Settings

SCORES = {
    "wikitext": (
        "token perplexity is exp of the total negative log-likelihood divided by the number of predicted "
        "tokens; perplexity is exp of the mean over rows of each row's mean"
    ),
    "wikitext documents": (
        "whole articles in windows of the model's length; word perplexity is exp of the total loss divided "
        "by the number of words"
    ),
    "lambada": "the last word, given all text before it; correct if each of its tokens is the greedy choice",
    "hellaswag": "of four endings, the one with the largest log-likelihood per character",
    "arc_challenge": "the choice with the largest log-likelihood per character",
    "prompts": "no score; prompts are continued greedily for their expert counts",
}


def method_sections(study: Study, settings: Settings) -> Iterator[str]:
    """Yield how experts were routed, scores computed and configurations compared, and what each metric is."""
    yield "### Routing"
    yield _routing(settings)
    yield "### Scores"
    yield _scores(study, settings)
    yield "### Statistics"
    yield _statistics(study, settings)
    yield "### The 16 metrics"
    yield _definitions(METRICS)
    extra = [metric for metric in EXTRA_METRICS if not metric.name.endswith("_stderr")]
    yield words.folded("Further columns of the tables", _definitions(extra))


def _routing(settings):
    routing, null = settings["routing"], settings["null_distribution"]
    weights = {
        "native": "are left as the model computes them",
        "renormalized": "are made to sum to 1 per token",
        "uniform": "are replaced by 1/n for each of a token's n experts",
    }[routing["weights"]]
    return "\n".join(
        f"- {item}"
        for item in (
            "**Top-k** selects the k experts with the largest router logits of a token. With the model's own "
            "k, routing is the model's own.",
            "**BH** turns a token's E router logits z into p-values p = S(z), with S the survival "
            "function of the layer's null distribution, and sorts them. It selects the k* experts with "
            "the smallest p-values, where k* is the largest k with p₍ₖ₎ ≤ k·α/E (Benjamini and Hochberg, "
            f"J. R. Stat. Soc. B 57, 1995), but at least {routing['min_k']} and at most max_k. Experts "
            "that are not selected are not run. The floor holds two kinds of tokens: those where no expert "
            "passed (k* = 0) and those where min_k or fewer did. For independent logits from the null "
            "distribution, no expert passes for a share 1 − α of the tokens (Simes, Biometrika 73, 1986). "
            "The logits of a token depend on each other, so α sets the share at the floor only roughly, and "
            "is no error rate of the routing.",
            f"**Null distribution** of each layer: {_null_distribution(null)}",
            *(
                f"**{words.capitalized(words.strategy(strategy))}** {words.definition(strategy)}"
                for strategy in settings["strategies"]
                if strategy not in ("topk", "bh")
            ),
            f"**Weights** are the softmax over all E logits{_temperature(routing['temperature'])} at the "
            f"selected experts; they {weights}, in every configuration.",
        )
        if not item.startswith(_unused(settings["strategies"]))
    )


def _unused(strategies):
    """How the items begin on what none of the strategies uses."""
    bh = () if "bh" in strategies else ("**BH**",)
    return bh if {"bh", "hc"} & set(strategies) else (*bh, "**Null distribution**")


def _temperature(temperature):
    return "" if temperature == 1 else f" / {temperature:g}"


def _null_distribution(null):
    if null["table"]:
        return f"read from the table {words.code(null['table'])}."
    bandwidth = null["bandwidth"]
    width = (
        f"{bandwidth.capitalize()}'s bandwidth" if isinstance(bandwidth, str) else f"bandwidth {bandwidth:g}"
    )
    trimmed = (
        f", without each token's {null['trim']} largest and {null['trim']} smallest" if null["trim"] else ""
    )
    calibration = null["calibration"]
    return (
        f"a kernel density estimate ({null['kernel']} kernel, {width}) of the router logits{trimmed} under "
        f"the model's own routing, on up to {calibration['max_tokens']:,} tokens of "
        f"{words.code(calibration['source'])}, which no evaluation uses."
    )


def _scores(study, settings):
    items = []
    for dataset in study.datasets:
        own = settings["datasets"].get(dataset, {})
        if "harness" in own:
            has_accuracy = study.scores.get(dataset, "").endswith("_accuracy")
            items.append(f"- **{dataset}**: {_of_harness(own, has_accuracy)}.")
            continue
        documents = own.get("protocol") == "documents"
        task = task_of(settings, dataset)
        name = f"{task} documents" if documents else task
        kind = f" (as {task})" if task != dataset else ""
        how = SCORES.get(name, f"see its module, `data/tasks/{task}.py`")
        items.append(f"- **{dataset}**{kind}: {how}.")
    return "Zero-shot, as in lm-evaluation-harness:\n\n" + "\n".join(items)


def _of_harness(own, has_accuracy):
    """How a task of lm-evaluation-harness is scored."""
    shots = own["num_fewshot"]
    examples = "the task's own number of examples" if shots is None else words.plural(shots, "example")
    parts = [f"lm-evaluation-harness's {words.code(own['harness'])} with {examples} in the context"]
    if has_accuracy:
        metric = words.code(own["metric"] or "acc_norm") + ("" if own["metric"] else ", else `acc`")
        parts.append(f"accuracy is the share of samples, of all its tasks alike, that are right by {metric}")
    return "; ".join([*parts, "the harness's own metrics are in `bh_routing_harness.csv`"])


def _statistics(study, settings):
    kinds = {lower_is_better(score) for score in study.scores.values()}
    margins = settings["report"]
    items = [
        "Every configuration is compared with the baseline over the same samples. Samples with "
        "the same text, and rows of one article, are one cluster; standard errors, intervals and tests take "
        "clusters as independent, not samples.",
    ]
    if True in kinds or not kinds:
        unit = {"word_perplexity": "word", "token_perplexity": "token"}.get(study.perplexity)
        items.append(
            "**Losses** (perplexities): paired t-test, by clusters, and its interval"
            + (f", per {unit} as a linearised ratio of sums" if unit else "")
            + ". Wilcoxon's signed-rank test is reported as well."
        )
    if False in kinds:
        items.append(
            "**Accuracies**: McNemar's exact test and Tango's score interval, which belongs to McNemar's "
            "asymptotic test and is slightly less strict; where samples form clusters, the t-test by "
            "clusters and its interval."
        )
    items += [
        "**Correction**: Holm's, over the configurations of one strategy on all data sets, at "
        f"{SIGNIFICANCE_LEVEL}. Intervals are simultaneous over the same comparisons and never contradict "
        "it. The tables also hold Benjamini and Hochberg's correction and a paired bootstrap, for "
        "information only.",
        "**Same quality** (non-inferiority): on every data set the 95 % interval excludes a loss of more "
        f"than {100 * margins['perplexity_margin']:g} % of the baseline's perplexity or "
        f"{margins['accuracy_margin']:g} of accuracy. An interval of fewer than {rules.FEWEST_SAMPLES} "
        "samples, or of zero width, proves nothing; identical losses are the same quality. The margins are "
        "settings (`report`); fix them before looking at results.",
        "**At the same compute**: each adaptive configuration against its controls, on the same samples. The "
        "answer (against `fixed`) is one family of Holm's correction over all configurations and data sets, "
        "the three contrasts that it is the sum of are another. A perplexity is compared per predicted "
        "token or word. The same means that the whole simultaneous interval lies within the margin, on both "
        "sides.",
        "**Ranking** where one configuration has to be named: the measured loss in units of the margin, "
        "averaged over the data sets.",
        "**FLOPs** are those of one token's forward pass, counted from the model's shapes. “FLOPs” is "
        "relative to the baseline, “FLOPs saved” to the model's own top-k.",
    ]
    return "\n".join(f"- {item}" for item in items)


def _definitions(metrics):
    rows = [
        (
            words.code(metric.name),
            metric.category,
            metric.unit or words.NOTHING,
            words.NOTHING if metric.better == "none" else metric.better,
            metric.description,
        )
        for metric in metrics
    ]
    return words.table(["metric", "category", "unit", "better", "definition"], rows)
