"""Panel 1: perplexity over alpha, one line a max_k, the top-k configurations as levels.

WikiText's perplexity, or that of LAMBADA's target words where the study has no WikiText.
"""

from adaptive_routing.panels import TITLES, style
from adaptive_routing.study import lower_is_better

TITLE = f"1  {TITLES['1_perplexity']}"
TEXTS = {"perplexity": "wikitext", "target_perplexity": "lambada's target words"}
LABELS = {
    "perplexity": "perplexity, exp(mean sample loss)",
    "target_perplexity": "perplexity, exp(mean loss of a word)",
}


def draw(figure, cell, study):
    column = perplexity_column(study)
    if column is None:
        return style.nothing_to_show(figure, cell, TITLE, "no data set of this study has a perplexity")
    axes = figure.add_subplot(cell)
    bars = "; bars: ± 1 standard error" if study.has(f"{column}_stderr") else ""
    style.heading(axes, TITLE, f"{TEXTS[column]}; lower is better{bars}")
    style.lines_over_alpha(axes, study, column, error=f"{column}_stderr")
    style.ratio_axis(axes, "y", [*study.bh[column], study.baseline_value(column)])
    axes.set_ylabel(LABELS[column])
    style.topk_levels(axes, study, column)


def perplexity_column(study):
    """The column shown, None where the study has no perplexity."""
    return next((column for column in TEXTS if study.has(column)), None)


def describe(study):
    column = perplexity_column(study)
    if column is None:
        return "No data set of this study has a perplexity."
    return describe_extremes(study, column, f"perplexity on {TEXTS[column]}", ".2f")


def describe_extremes(study, column, name, digits):
    """Say between which configurations' values BH lies, and how many are better than the baseline's."""
    rows = study.bh[study.bh[column].notna()].sort_values(column, kind="stable")
    reference = study.baseline_value(column)
    against = f" (baseline: {reference:{digits}})" if reference == reference else ""
    if rows.empty:
        return f"No BH configuration has a {name}{against}."
    first, last = rows.iloc[0], rows.iloc[-1]
    if len(rows) == 1:
        return f"The one BH configuration, `{first['config']}`, has {name} {first[column]:{digits}}{against}."
    sentence = (
        f"Over {len(rows)} BH configurations {name} runs from {first[column]:{digits}} (`{first['config']}`) "
        f"to {last[column]:{digits}} (`{last['config']}`){against}"
    )
    if reference == reference:
        below = rows[column] < reference if lower_is_better(column) else rows[column] > reference
        word = "below" if lower_is_better(column) else "above"
        count = int(below.sum())
        subject = f"{count} of them lie" if count > 1 else ("none of them lies", "one of them lies")[count]
        sentence += f"; {subject} {word} the baseline, before any test"
    return sentence + "."
