"""What two studies say, and how the experiments that both have differ, on one screen.

Experiments are paired by configuration and data set and over their samples, as configurations are within a
study; all pairs are one family of Holm's correction.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from adaptive_routing.analysis import statistics
from adaptive_routing.analysis.harness import with_harness_scores
from adaptive_routing.analysis.paired import LOSS, compare_pair, deciding_metric, percent_of
from adaptive_routing.analysis.rule_names import label
from adaptive_routing.analysis.study import SIGNIFICANCE_LEVEL, lower_is_better
from adaptive_routing.analysis.tables import paired_samples
from adaptive_routing.system.json_files import read_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from adaptive_routing.analysis.statistics import PairedDifference

WIDTH = 100
ANSWER_LINES = 6  # of each study's answers; its report has all
VERDICTS = ("better", "worse", "open", "identical")
MOST_LISTED = 8  # experiments that differ


@dataclass(frozen=True)
class Pair:
    """An experiment of both studies: how far the second is from the first on the samples that both have.

    Attributes:
        metric: the one that decides on the data set; `compare_pair` has the unit of its difference.
        identical: whether every sample has the same losses and scores.
        p_holm: corrected over all pairs; None where there is no test.
        interval: simultaneous over all pairs, (None, None) where there is none.
    """

    config: str
    dataset: str
    metric: str
    identical: bool
    paired: PairedDifference
    p_holm: float | None = None
    interval: tuple[float | None, float | None] = (None, None)

    @property
    def verdict(self) -> str:
        """`identical`, `better`, `worse` (of the second, significantly) or `open`."""
        if self.identical:
            return "identical"
        if self.p_holm is None or self.p_holm >= SIGNIFICANCE_LEVEL:
            return "open"
        return "better" if (self.paired.difference < 0) == lower_is_better(self.metric) else "worse"


def paired_experiments(first: Path, second: Path, names: Sequence[str]) -> tuple[list[Pair], list[str]]:
    """Compare the experiments `names`, {config}_{dataset}, of two results folders.

    Returns the pairs, and the names of those that share no sample.

    Raises:
        InputError: a summary is missing or damaged.
    """
    found, apart = [], []
    for name in names:
        summaries = [_summary(folder, name) for folder in (first, second)]
        pairs = paired_samples(*summaries)
        if not pairs:
            apart.append(name)
            continue
        before, after = zip(*pairs, strict=True)
        metric = deciding_metric(summaries) or LOSS
        columns = compare_pair(metric, after, before)
        head = summaries[0]
        identical = before == after
        found.append(Pair(head["config"], head["dataset"], metric, identical, columns["paired"]))
    corrected, intervals = statistics.simultaneous_intervals([one.paired for one in found])
    return [
        replace(one, p_holm=p_value, interval=ends)
        for one, p_value, ends in zip(found, corrected, intervals, strict=True)
    ], apart


def describe_summary(first: Path, second: Path, names: Sequence[str], others: Sequence[str]) -> Iterator[str]:
    """Yield the summary as lines of text.

    names, others: the experiments of each folder, as `experiments_of` finds them.
    """
    for word, folder in (("FIRST", first), ("SECOND", second)):
        yield f"{word}: {folder}"
        yield from _answers(folder)
        yield ""
    shared = [name for name in names if name in others]
    pairs, apart = paired_experiments(first, second, shared)
    yield (
        f"SECOND − FIRST on the same samples, {len(pairs)} experiments; Holm-corrected, simultaneous 95 % "
        "intervals"
    )
    yield from _counts(pairs)
    differing = [one for one in pairs if one.verdict in ("better", "worse")]
    differing.sort(key=lambda one: one.p_holm or 0.0)
    for one in differing[:MOST_LISTED]:
        yield f"  {one.verdict:6} {_change(one):38} {label(one.config)} on {one.dataset}"
    if len(differing) > MOST_LISTED:
        yield f"  and {len(differing) - MOST_LISTED} more that differ significantly"
    notes = {
        "only in FIRST": len(names) - len(shared),
        "only in SECOND": len(others) - len(shared),
        "without a shared sample": len(apart),
    }
    if told := [f"{count} {text}" for text, count in notes.items() if count]:
        yield f"experiments not paired: {', '.join(told)}"
    yield "Every difference, from settings to single decisions: the same command without --summary."


def _answers(folder):
    """The study's main sentences, cut to a few lines; the report's place where it has none."""
    path = folder / "bh_routing_summary.txt"
    if not path.is_file():
        yield "  no answers yet: bh_routing_summary.txt is missing"
        return
    text = path.read_text(encoding="utf-8", errors="replace")
    lines = [
        line
        for sentence in text.splitlines()
        for line in textwrap.wrap(sentence, WIDTH, initial_indent="  ", subsequent_indent="    ")
    ]
    yield from lines[:ANSWER_LINES]
    if len(lines) > ANSWER_LINES:
        yield f"    […] {path}"


def _counts(pairs):
    """A line a data set and metric: how many are better, worse, open and identical, and the mean change."""
    groups: dict[str, list[Pair]] = {}
    for one in pairs:
        of_dataset = one.metric.startswith(one.dataset)
        name = one.metric if of_dataset else f"{one.dataset} {one.metric}"
        groups.setdefault(name.replace("_", " "), []).append(one)
    width = max(map(len, groups), default=0)
    yield f"  {'':{width}} {'better':>7} {'worse':>6} {'open':>5} {'identical':>10}   mean change"
    for name, own in groups.items():
        better, worse, unclear, identical = (
            sum(one.verdict == verdict for one in own) for verdict in VERDICTS
        )
        change = _number(sum(one.paired.difference for one in own) / len(own), own[0].metric)
        yield f"  {name:{width}} {better:>7} {worse:>6} {unclear:>5} {identical:>10}   {change}"


def _change(one):
    low, high = one.interval
    text = _number(one.paired.difference, one.metric)
    if low is None or high is None:
        return text
    return f"{text} ({_number(low, one.metric)} to {_number(high, one.metric)})"


def _number(difference, metric):
    """A difference: of a perplexity in percent, of a loss or an accuracy as it is."""
    if "perplexity" not in metric:
        return f"{difference:+z.3f}".replace("-", "−")
    return f"{percent_of(difference):+z.1f} %".replace("-", "−")


def _summary(folder, name):
    """An experiment's summary, with the harness's scores where they judge it."""
    summary, judged = folder / f"logs/{name}.json", folder / f"metrics/{name}.json"
    return with_harness_scores(read_json(summary), read_json(judged) if judged.exists() else {})
