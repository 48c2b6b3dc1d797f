"""What two studies say, and how the experiments that both have differ, on one screen.

Experiments are paired by configuration and data set and over their samples, as configurations are within a
study; all pairs are one family of Holm's correction.
"""

from __future__ import annotations

import math
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from adaptive_routing.analysis import statistics
from adaptive_routing.analysis.rule_names import label
from adaptive_routing.analysis.study import SIGNIFICANCE_LEVEL
from adaptive_routing.analysis.tables import paired_samples
from adaptive_routing.data.tasks.uncertainty import clusters_of
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
        is_loss: whether the difference is one of losses in nats per predicted token, else of shares correct.
        identical: whether every sample has the same outcome.
        p_holm: corrected over all pairs; None where there is no test.
        interval: simultaneous over all pairs, (None, None) where there is none.
    """

    config: str
    dataset: str
    is_loss: bool
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
        return "better" if (self.paired.difference < 0) == self.is_loss else "worse"


def paired_experiments(first: Path, second: Path, names: Sequence[str]) -> tuple[list[Pair], list[str]]:
    """Compare the experiments `names`, {config}_{dataset}, of two results folders.

    Returns the pairs, and the names of those that share no sample.

    Raises:
        InputError: a summary is missing or damaged.
    """
    found, apart = [], []
    for name in names:
        summaries = [read_json(folder / f"logs/{name}.json") for folder in (first, second)]
        pairs = paired_samples(*summaries)
        if not pairs:
            apart.append(name)
            continue
        before, after = zip(*pairs, strict=True)
        is_loss = "correct" not in before[0]
        key = "loss" if is_loss else "correct"
        values = [[sample[key] for sample in samples] for samples in (before, after)]
        clusters = clusters_of(before)
        if is_loss:
            sizes = [sample["num_predicted_tokens"] for sample in before]
            totals = ([v * n for v, n in zip(own, sizes, strict=True)] for own in values)
            paired = statistics.paired_losses(*totals, sizes=sizes, clusters=clusters)
        else:
            paired = statistics.paired_accuracies(*values, clusters)
        head = summaries[0]
        found.append(Pair(head["config"], head["dataset"], is_loss, values[0] == values[1], paired))
    corrected, intervals = statistics.simultaneous_intervals([one.paired for one in found])
    return [
        Pair(one.config, one.dataset, one.is_loss, one.identical, one.paired, p_value, ends)
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
    """A line a data set: how many experiments are better, worse, open and identical, and the mean change."""
    datasets = dict.fromkeys(one.dataset for one in pairs)
    width = max((len(f"{name} perplexity") for name in datasets), default=0)
    yield f"  {'':{width}} {'better':>7} {'worse':>6} {'open':>5} {'identical':>10}   mean change"
    for dataset in datasets:
        own = [one for one in pairs if one.dataset == dataset]
        counts = [sum(one.verdict == verdict for one in own) for verdict in VERDICTS]
        mean = sum(one.paired.difference for one in own) / len(own)
        name = f"{dataset} {'perplexity' if own[0].is_loss else 'accuracy'}"
        better, worse, unclear, identical = counts
        change = _number(mean, own[0].is_loss)
        yield f"  {name:{width}} {better:>7} {worse:>6} {unclear:>5} {identical:>10}   {change}"


def _change(one):
    low, high = one.interval
    text = _number(one.paired.difference, one.is_loss)
    if low is None or high is None:
        return text
    return f"{text} ({_number(low, one.is_loss)} to {_number(high, one.is_loss)})"


def _number(difference, is_loss):
    """A difference: of a perplexity in percent, of an accuracy as it is."""
    if not is_loss:
        return f"{difference:+z.3f}".replace("-", "−")
    return f"{100 * math.expm1(min(difference, 700.0)):+z.1f} %".replace("-", "−")
