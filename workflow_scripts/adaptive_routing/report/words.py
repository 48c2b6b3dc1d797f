"""Numbers, names and small tables as the report writes them, in Markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any

    from adaptive_routing.analysis.study import Study

NOTHING = "–"
MARKS = {"better": " ▲", "worse": " ▼", "same": " ○"}
BASELINE_MARK = "(baseline)"
STRATEGIES = {"bh": "BH", "topk": "top-k"}
AIMS = {
    "quality": "best quality",
    "compute": "same quality, least compute",
    "speed": "same quality, fastest",
}
LARGE = 1e6  # from here on numbers are written with an exponent: a perplexity can have hundreds of digits


def strategy(name: str) -> str:
    """What to call a strategy."""
    return STRATEGIES.get(name, name)


def number(value: float | None, digits: str) -> str:
    """Format a number, a dash where there is none."""
    if value is None or pd.isna(value):
        return NOTHING
    return f"{value:{'.2e' if abs(value) >= LARGE else digits}}".replace("-", "−")


def p_value(value: float | None) -> str:
    """Format a p-value."""
    if value is None or pd.isna(value):
        return NOTHING
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def code(text: object) -> str:
    """A name as a Markdown code span that also holds inside a table."""
    return f"`{str(text).replace('`', chr(39)).replace('|', '∣')}`"


def named(study: Study, config: str) -> str:
    """A configuration's name in a table; the HTML report finds the baseline's row by it."""
    return f"{code(config)} {BASELINE_MARK}" if config == study.baseline else code(config)


def with_error(row: pd.Series, column: str, digits: str) -> str:
    value, error = row.get(column), row.get(f"{column}_stderr")
    text = number(value, digits)
    return text if text == NOTHING or error is None or pd.isna(error) else f"{text} ± {number(error, digits)}"


def interval(row: Mapping[str, Any] | pd.Series, digits: str) -> str:
    """The ends of a comparison's interval; an end can be missing alone, where an exp is too large."""
    if pd.isna(row["ci_low"]) and pd.isna(row["ci_high"]):
        return NOTHING
    return f"{number(row['ci_low'], digits)} to {number(row['ci_high'], digits)}"


def percent(ratio: float, digits: str = ".1f") -> str:
    """A ratio as a change in percent, with its sign: 1.103 is +10.3 %."""
    text = number(100 * (ratio - 1), f"+z{digits}")
    return text if text == NOTHING else f"{text} %"


def change(comparison: pd.Series) -> tuple[str, str]:
    """A comparison's change against the baseline and its interval: of a perplexity in percent.

    Returns two texts; the second is a dash where there is no interval.
    """
    ends = comparison["difference"], comparison["ci_low"], comparison["ci_high"]
    if "perplexity" not in comparison["metric"]:
        low_high = interval(comparison, "+z.3f")
        return number(ends[0], "+z.3f"), low_high
    value, low, high = (100 * end / comparison["baseline_value"] for end in ends)
    low_high = interval({"ci_low": low, "ci_high": high}, "+z.1f")
    return f"{number(value, '+z.1f')} %", low_high if low_high == NOTHING else f"{low_high} %"


def plain(text: str) -> str:
    """Markdown as plain text: without code marks and emphasis."""
    return text.replace("`", "").replace("**", "")


def digits_of(study: Study, dataset: str) -> str:
    """Two digits for a perplexity, three for an accuracy or a loss."""
    return ".2f" if "perplexity" in study.scores.get(dataset, "loss") else ".3f"


def score_name(metric: str) -> str:
    """A score's name in words; a data set keeps its own."""
    if metric.endswith("_accuracy") and metric != "avg_task_accuracy":
        return f"{metric.removesuffix('_accuracy')} accuracy"
    return metric.replace("_", " ")


def score_of(study: Study, dataset: str) -> str:
    """A data set's score, named with its data set: wikitext perplexity, lambada accuracy."""
    name = score_name(study.scores[dataset])
    return name if name.startswith(dataset) else f"{dataset} {name}"


def score(study: Study, dataset: str, value: float | None) -> str:
    return number(value, digits_of(study, dataset))


def folded(summary: str, *parts: str) -> str:
    """Parts that a reader opens: they stay Markdown inside the element."""
    return "\n\n".join([f'<details markdown="1"><summary>{summary}</summary>', *parts, "</details>"])


def table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def listed(configs: Sequence[str], most: int = 8) -> list[str]:
    """Names as code spans, and how many more there are."""
    configs = list(configs)
    return [*map(code, configs[:most]), *([f"{len(configs) - most} more"] if len(configs) > most else [])]


def more(names: Sequence[str], most: int) -> str:
    return f" and {len(names) - most} more" if len(names) > most else ""


def joined(words: Iterable[object]) -> str:
    """a, b and c."""
    *first, last = map(str, words)
    return f"{', '.join(first)} and {last}" if first else last


def of(count: int, total: int) -> str:
    return f"all {total}" if count == total > 1 else f"{count} of {total}"


def plural(count: int | str, noun: str) -> str:
    """A count and its noun: 1 sample, 2 samples; the count may be a span such as 3 to 5."""
    return f"{count} {noun}{'' if str(count) == '1' else 's'}"


def span(values: Iterable[float]) -> str:
    low, high = min(values, default=0), max(values, default=0)
    return f"{low}" if low == high else f"{low} to {high}"


def distinct(values: Iterable[Any]) -> str:
    values = list(dict.fromkeys(NOTHING if value is None else str(value) for value in values))
    return "; ".join(value if value == NOTHING else code(value) for value in values)


def span_of(values: Iterable[float], digits: str) -> str:
    """The smallest and the largest of some values: 0.94 to 1.17; one alone where they look the same."""
    low, high = number(min(values), digits), number(max(values), digits)
    return low if low == high else f"{low} to {high}"


def measures(study: Study) -> dict[str, str]:
    """What quality is measured by: column of the configurations table to its name."""
    perplexity = {study.perplexity: score_name(study.perplexity)} if study.perplexity else {}
    return perplexity | ({"avg_task_accuracy": "mean accuracy"} if study.accuracies else {})
