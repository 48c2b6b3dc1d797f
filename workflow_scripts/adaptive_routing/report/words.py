"""Numbers, names and small tables as the report writes them, in Markdown."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import TYPE_CHECKING

import pandas as pd

from adaptive_routing.analysis.rule_names import (
    adaptive as adaptive,
)
from adaptive_routing.analysis.rule_names import (
    adaptive_noun as adaptive_noun,
)
from adaptive_routing.analysis.rule_names import (
    adaptive_subject as adaptive_subject,
)
from adaptive_routing.analysis.rule_names import (
    capitalized as capitalized,
)
from adaptive_routing.analysis.rule_names import (
    definition as definition,
)
from adaptive_routing.analysis.rule_names import (
    label as label,
)
from adaptive_routing.analysis.rule_names import (
    rule as rule,
)
from adaptive_routing.analysis.rule_names import (
    strategy as strategy,
)
from adaptive_routing.system.text import visible

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any

    from adaptive_routing.analysis.study import Study

NOTHING = "–"
MARKS = {"better": " ▲", "worse": " ▼", "same": " ○"}
BASELINE_MARK = "(baseline)"
AIMS = {
    "quality": "best quality",
    "compute": "same quality, least compute",
    "speed": "same quality, fastest",
}
LARGE = 1e6  # from here on numbers get an exponent: a perplexity can have hundreds of digits
TIMES = 10  # from this ratio on, a changed perplexity is "170 times" the baseline's, not "+16900 %"


def number(value: float | None, digits: str) -> str:
    """Format a number; a dash where there is none."""
    if value is None or pd.isna(value):
        return NOTHING
    return f"{value:{'.2e' if abs(value) >= LARGE else digits}}".replace("-", "−")


def p_value(value: float | None) -> str:
    """Format a p-value."""
    if value is None or pd.isna(value):
        return NOTHING
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def code(text: object) -> str:
    """A name as a Markdown code span that is also safe inside a table."""
    return f"`{visible(str(text)).replace('`', chr(39)).replace('|', '∣')}`"


def escaped(text: object) -> str:
    """A text as Markdown that shows it as it is, whatever it holds, on one line and safe inside a table."""
    return re.sub(r"[\\`*_{}\[\]()<>#+!|~&:-]", lambda match: f"&#{ord(match[0])};", visible(str(text)))


def both_names(config: str) -> str:
    """A configuration in a table: its name for people, and below it the one that files have."""
    return f"{label(config)}<br>{code(config)}"


def named(study: Study, config: str) -> str:
    """The same with a mark at the baseline, by which the HTML report finds its row."""
    return both_names(config) + (f" {BASELINE_MARK}" if config == study.baseline else "")


def with_error(row: pd.Series, column: str, digits: str) -> str:
    """A value, ± its standard error where there is one."""
    value, error = row.get(column), row.get(f"{column}_stderr")
    text = number(value, digits)
    return text if text == NOTHING or error is None or pd.isna(error) else f"{text} ± {number(error, digits)}"


def interval(row: Mapping[str, Any] | pd.Series, digits: str) -> str:
    """The ends of a comparison's interval; a dash for an end that is missing because an exp is too large."""
    if pd.isna(row["ci_low"]) and pd.isna(row["ci_high"]):
        return NOTHING
    return f"{number(row['ci_low'], digits)} to {number(row['ci_high'], digits)}"


def percent(ratio: float, digits: str = ".1f") -> str:
    """A ratio as a change in percent, with its sign: 1.103 is +10.3 %."""
    text = number(100 * (ratio - 1), f"+z{digits}")
    return text if text == NOTHING else f"{text} %"


def change(comparison: pd.Series) -> tuple[str, str]:
    """A comparison's change against the baseline and its interval, as two texts.

    A perplexity changes in percent, or to a multiple of the baseline's from `TIMES` on. The second text is a
    dash where there is no interval.
    """
    ends = {name: comparison[name] for name in ("difference", "ci_low", "ci_high")}
    unit, digits = "", "+z.3f"
    if "perplexity" in comparison["metric"]:
        baseline = comparison["baseline_value"]
        ratio = 1 + ends["difference"] / baseline
        if ratio >= TIMES:
            ends = {name: 1 + end / baseline for name, end in ends.items()}
            unit, digits = " times", ",.1f" if ratio < 100 else ",.0f"
        else:
            ends = {name: 100 * end / baseline for name, end in ends.items()}
            unit, digits = " %", "+z.1f"
    low_high = interval(ends, digits)
    return f"{number(ends['difference'], digits)}{unit}", (
        low_high if low_high == NOTHING else f"{low_high}{unit}"
    )


def comparison_cells(study: Study, config: str, dataset: str) -> dict[str, Any]:
    """The cells of a configuration's comparison with the baseline on a data set, by column heading.

    Every table of comparisons picks its columns from these. Dashes where the two were not compared.
    """
    names = {"configuration": both_names(config), "score": score_of(study, dataset)}
    row = study.comparison(config, dataset)
    if row is None:
        return defaultdict(lambda: NOTHING, names)
    digits, mark = digits_of(study, dataset), MARKS.get(study.verdict(config, dataset), "")
    changed, change_interval = change(row)
    p_values = {
        "p": "p_value",
        "p (Holm)": "p_holm",
        "p (BH)": "p_bh",
        "Wilcoxon p (Holm)": "p_wilcoxon_holm",
        "bootstrap p (Holm)": "p_bootstrap_holm",
    }
    return {
        **names,
        "value": with_error(row, "value", digits),
        "baseline": with_error(row, "baseline_value", digits),
        "difference": number(row["difference"], f"+z{digits}") + mark,
        "95 % interval": interval(row, f"+z{digits}"),
        "change": f"{changed}{mark}<br>({change_interval})",
        **{heading: p_value(row.get(column)) for heading, column in p_values.items()},
        "effect size": number(row.get("effect_size"), ".2f"),
    }


def plain(text: str) -> str:
    """Markdown as plain text, without code marks and emphasis."""
    return text.replace("`", "").replace("**", "")


def digits_of(study: Study, dataset: str) -> str:
    """Two digits for a perplexity, three for an accuracy or a loss."""
    return ".2f" if "perplexity" in study.scores.get(dataset, "loss") else ".3f"


def score_name(metric: str) -> str:
    """A score's name in words; a data set's name stays as it is."""
    if metric.endswith("_accuracy") and metric != "avg_task_accuracy":
        return f"{metric.removesuffix('_accuracy')} accuracy"
    return metric.replace("_", " ")


def score_of(study: Study, dataset: str) -> str:
    """A data set's score with the data set's name: wikitext perplexity, lambada accuracy."""
    name = score_name(study.scores.get(dataset, "loss"))
    return name if name.startswith(dataset) else f"{dataset} {name}"


def score(study: Study, dataset: str, value: float | None) -> str:
    """Format a value of a data set's score."""
    return number(value, digits_of(study, dataset))


def folded(summary: str, *parts: str) -> str:
    """Parts that a reader can unfold; they stay Markdown inside the element."""
    return "\n\n".join([f'<details markdown="1"><summary>{summary}</summary>', *parts, "</details>"])


def table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def table_of_cells(headings: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """A table of the headings' columns; rows: {heading: cell}."""
    return table(headings, [[cells[heading] for heading in headings] for cells in rows])


def listed(configs: Sequence[str], most: int = 8) -> list[str]:
    """Names as code spans, and how many more there are."""
    configs = list(configs)
    return [*map(code, configs[:most]), *([f"{len(configs) - most} more"] if len(configs) > most else [])]


def more(names: Sequence[str], most: int) -> str:
    """How many names are left out after the first `most`."""
    return f" and {len(names) - most} more" if len(names) > most else ""


def joined(words: Iterable[object]) -> str:
    """Write "a, b and c"."""
    *first, last = map(str, words)
    return f"{', '.join(first)} and {last}" if first else last


def of(count: int, total: int, noun: str = "") -> str:
    """How many of a total: "all 16", "both", "3 of 16", with the noun in the number that fits."""
    if noun and count == total == 1:
        return f"the only {noun}"
    counted = {2: "both"}.get(total, f"all {total}") if count == total > 1 else f"{count} of {total}"
    return f"{counted} {noun}s" if noun else counted


def plural(count: int | str, noun: str) -> str:
    """A count and its noun: 1 sample, 2 samples; the count may be a span such as 3 to 5."""
    return f"{count} {noun}{'' if str(count) == '1' else 's'}"


def span(values: Iterable[float]) -> str:
    """The smallest and the largest of some counts: 3 to 5; a single number where they are equal."""
    low, high = min(values, default=0), max(values, default=0)
    return f"{low}" if low == high else f"{low} to {high}"


def distinct(values: Iterable[Any]) -> str:
    """The different values, as code spans."""
    values = list(dict.fromkeys(NOTHING if value is None else str(value) for value in values))
    return "; ".join(value if value == NOTHING else code(value) for value in values)


def span_of(values: Iterable[float], digits: str) -> str:
    """The smallest and the largest of some values: 0.94 to 1.17; a single number where they look the same."""
    low, high = number(min(values), digits), number(max(values), digits)
    return low if low == high else f"{low} to {high}"


def measures(study: Study) -> dict[str, str]:
    """The measures of quality: {column of the configurations table: its name in text}."""
    perplexity = {study.perplexity: score_name(study.perplexity)} if study.perplexity else {}
    return perplexity | ({"avg_task_accuracy": "mean accuracy"} if study.accuracies else {})
