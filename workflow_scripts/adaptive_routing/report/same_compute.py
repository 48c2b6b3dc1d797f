"""The report's first answer: does an adaptive rule beat a fixed number of experts at the same compute?

Each adaptive configuration is compared with its `fixed` control, which gives every layer the
configuration's mean number of experts. The rules are in `analysis/control_outcomes.py`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

from adaptive_routing.analysis import contrasts
from adaptive_routing.analysis import control_outcomes as controls
from adaptive_routing.analysis.contrasts import ANSWER, BETTER, OPEN, SAME, WORSE
from adaptive_routing.analysis.control_outcomes import MIXED
from adaptive_routing.report import words

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pandas as pd

    from adaptive_routing.analysis.control_outcomes import RuleOutcome
    from adaptive_routing.analysis.recommendations import QualityMargins
    from adaptive_routing.analysis.study import Study

# Behind a difference. An open one has no mark.
MARKS = {BETTER: " ▲", WORSE: " ▼", SAME: " ≈"}
FIXED = "a fixed number of experts"
HOW_TO_GET_IT = "`controls: {of: [all]}`"


def same_compute_sentences(study: Study, margins: QualityMargins) -> list[str]:
    """Return the sentence on the same compute, in a list; an empty list without an adaptive configuration."""
    if study.adaptive.empty:
        return []
    if not controls.has_answer(study):
        name = words.adaptive_subject(study)
        return [
            f"This study cannot tell whether {name} beats {FIXED} at the same compute, because it has no "
            f"controls. To find out, add {HOW_TO_GET_IT} to the settings and run it again; only the controls "
            "will run."
        ]
    outcomes = controls.by_rule(study, ANSWER)
    bounds = [one for one in outcomes if upper_bound(study, one)]
    outcomes = [one for one in outcomes if one not in bounds] or outcomes
    if len(outcomes) == 1:
        sentence = _of_one_rule(study, outcomes[0])
    else:
        sentence = _of_many_rules(outcomes, "no rule that can generate text" if bounds else "no rule")
    parts = [sentence, *_of_bounds(bounds, outcomes), _best(study, outcomes, margins)]
    return [f"At the same compute, {' '.join(parts)}"]


def upper_bound(study: Study, outcome: RuleOutcome) -> bool:
    """Whether a rule is one of `Study.upper_bounds`."""
    return study.upper_bounds.issuperset(outcome.configs)


def _of_bounds(bounds, outcomes):
    """Sentences on the rules that look at later tokens and do better."""
    too = " too" if any(one.verdict == BETTER for one in outcomes if one not in bounds) else ""
    for one in bounds:
        name = words.capitalized(words.rule(one.family))
        if one in outcomes:
            yield f"{name} looks at later tokens and is only an upper bound."
        elif one.verdict == BETTER:
            yield (
                f"{name} ({_count(one)}) does better{too}, but it looks at later tokens and is only an upper "
                "bound."
            )


def _of_one_rule(study, outcome):
    name, total = words.rule(outcome.family), len(outcome.configs)
    noun = f"{name} configuration"
    better, worse, mixed, same, unclear = (outcome.count(each) for each in controls.OUTCOMES)

    def counted(count):
        return f"{words.of(count, total, noun)} {'is' if count == 1 else 'are'}"

    match outcome.verdict:
        case contrasts.BETTER:
            return (
                f"{name} does better than {FIXED}: {counted(better)} significantly better on at least one "
                f"data set, and none is significantly worse{_rest(same, unclear)}."
            )
        case contrasts.WORSE:
            return (
                f"{name} does worse than {FIXED}: {counted(worse)} significantly worse on at least one data "
                f"set, and none is significantly better{_rest(same, unclear)}."
            )
        case controls.MIXED:
            both = f", and {mixed} better on one data set and worse on another" if mixed else ""
            return (
                f"{name} does better than {FIXED} in some cases and worse in others: of "
                f"{words.plural(total, noun)}, {better} {'is' if better == 1 else 'are'} significantly "
                f"better on at least one data set and worse on none, {worse} worse on at least one and "
                f"better on none{both}{_rest(same, unclear)}."
            )
        case contrasts.SAME:
            return f"{name} does as well as {FIXED}: {counted(same)} within the margin on every data set."
    return (
        f"it is open whether {name} beats {FIXED}: no difference is significant, but for "
        f"{words.of(unclear, total, noun)} a difference beyond the margin is not excluded."
    )


def _rest(same, unclear):
    """The configurations that do not differ, as the end of a sentence."""
    parts = [f"{same} {'does' if same == 1 else 'do'} as well within the margin"] if same else []
    parts += [f"{unclear} {'is' if unclear == 1 else 'are'} open"] if unclear else []
    return f"; {' and '.join(parts)}" if parts else ""


def _of_many_rules(outcomes, none):
    """What each rule does, grouped by verdict: min-p does better (3 of 4 configurations), BH does worse …"""
    if {outcome.verdict for outcome in outcomes} == {OPEN}:
        names = words.joined(words.rule(outcome.family) for outcome in outcomes)
        return f"it is open for every rule ({names}) whether it beats {FIXED}: no difference is significant."
    phrases = {BETTER: "{} {} better", WORSE: "{} {} worse", SAME: "{} {} as well", OPEN: "for {} it is open"}
    phrases[MIXED] = "{} {} better in some cases and worse in others"
    parts = []
    for verdict in (BETTER, WORSE, MIXED, SAME, OPEN):
        group = [outcome for outcome in outcomes if outcome.verdict == verdict]
        if group:
            names = words.joined(f"{words.rule(one.family)} ({_count(one)})" for one in group)
            parts.append(phrases[verdict].format(names, "do" if len(group) > 1 else "does"))
    text = "; ".join(parts)
    if any(outcome.verdict == BETTER for outcome in outcomes):
        text = text.replace(" better", f" better than {FIXED}", 1)
    else:
        text = f"{none} is shown to do better than {FIXED}: {text}"
    # The first count says of what.
    text = re.sub(r"(\d+ of \d+)\)", r"\1 configurations)", text, count=1)
    return text.replace("of 1 configurations", "of 1 configuration") + "."


def _count(outcome):
    """How many of a rule's configurations have its verdict."""
    total = len(outcome.configs)
    if outcome.verdict == MIXED:
        return f"{outcome.count(BETTER)} better, {outcome.count(WORSE)} worse of {total}"
    return f"{outcome.count(outcome.verdict)} of {total}"


def _best(study, outcomes, margins):
    """The configuration that does best against its control, with its differences."""
    config = controls.best(study, [c for outcome in outcomes for c in outcome.configs], margins)
    several = sum(len(outcome.configs) for outcome in outcomes) > 1
    rows = controls.rows_of(study, ANSWER, [config])
    label, parts = "simultaneous 95 % interval ", []
    for _, row in rows.iterrows():
        value, interval = difference(row)
        by = f"to {value} the control's" if value.endswith("times") else f"by {value}"
        parts.append(f"{score_name(row)} {by} ({label}{interval})")
        label = ""
    name = f"{words.code(config)} ({_experts(rows)} experts)"
    subject = f"The best against its control, {name}," if several else name
    return f"{subject} changes {words.joined(parts)}."


def _experts(rows):
    """The numbers of experts of a configuration, by data set."""
    values = rows["avg_experts"].dropna().astype(float)
    return words.span_of(values, ".2f") if len(values) else words.NOTHING


def score_name(row: pd.Series) -> str:
    """A row's score in words, with its data set: wikitext token perplexity, lambada accuracy."""
    name = words.score_name(row["metric"])
    return name if name.startswith(row["dataset"]) else f"{row['dataset']} {name}"


def difference(row: pd.Series) -> tuple[str, str]:
    """A row's difference and its simultaneous interval, as two texts.

    The difference of a perplexity is in nats in the table, and here in percent, or a multiple from
    `words.TIMES` on.
    """
    ends = [row["difference"], row["ci_low"], row["ci_high"]]
    unit, digits = "", "+z.3f"
    if "perplexity" in row["metric"]:
        ratios = np.exp(np.minimum(np.asarray(ends, dtype=float), 700.0))
        if ratios[0] >= words.TIMES:
            ends, unit, digits = list(ratios), " times", ",.1f" if ratios[0] < 100 else ",.0f"
        else:
            ends, unit, digits = list(100 * (ratios - 1)), " %", "+z.1f"
    value = words.number(ends[0], digits)
    low_high = words.interval({"ci_low": ends[1], "ci_high": ends[2]}, digits)
    return f"{value}{unit}", low_high if low_high == words.NOTHING else f"{low_high}{unit}"


def same_compute_section(study: Study, margins: QualityMargins, figure: str | None = None) -> Iterator[str]:
    """Yield the section's parts; nothing where the study has no adaptive configuration.

    figure: the link to the figure.
    """
    if study.adaptive.empty:
        return
    yield "### At the same compute"
    if not controls.has_answer(study):
        yield (
            "A control of an adaptive configuration runs as many experts on the same data set, without what "
            "makes the configuration adaptive. This study has none, so it compares adaptive configurations "
            "only with top-k that runs more or fewer experts."
        )
        return
    outcomes = controls.by_rule(study, ANSWER)
    yield (
        "Each adaptive configuration is compared with its control `fixed`, which gives every layer the "
        "configuration's mean number of experts on the data set. Both run equally many experts. Differences "
        "are adaptive − fixed on the same samples. The intervals are simultaneous: with 95 % they hold for "
        "all configurations and data sets together."
    )
    yield _rule_table(study, outcomes, margins)
    yield (
        "▲ significantly better than the control, ▼ significantly worse (Holm-corrected p < 0.05); ≈ the "
        "same within the margin; no mark: open. In the line “all”: how many configurations of the rule are "
        "better and worse on that data set."
    )
    if missing := controls.without_controls(study):
        yield f"Without controls, and so without an answer: {words.joined(map(words.rule, missing))}."
    if figure:
        yield f"![Adaptive against fixed at the same compute]({figure})"
    if len(outcomes) > 1 or len(outcomes[0].configs) > 1:
        yield words.folded("Every configuration against its control", _config_table(study, outcomes))


def _rule_table(study: Study, outcomes: list[RuleOutcome], margins: QualityMargins) -> str:
    datasets = list(dict.fromkeys(controls.rows_of(study, ANSWER)["dataset"]))
    names = [score_name(_first(study, dataset)) for dataset in datasets]
    rows = []
    for outcome in outcomes:
        best = controls.best(study, outcome.configs, margins)
        counts = [outcome.count(name) or words.NOTHING for name in controls.OUTCOMES]
        cells = [
            cell + _counts_on(study, outcome.configs, dataset)
            for cell, dataset in zip(_cells(study, best, datasets), datasets, strict=True)
        ]
        rows.append(
            [words.rule(outcome.family), len(outcome.configs), *counts, words.both_names(best), *cells]
        )
    headings = ["rule", "configurations", "better", "worse", "both", "the same", "open"]
    return words.table([*headings, "best configuration", *names], rows)


def _counts_on(study, configs, dataset):
    """How many of several configurations are better and worse on a data set, as another line of a cell."""
    rows = controls.rows_of(study, ANSWER, configs)
    verdicts = rows.loc[rows["dataset"] == dataset, "verdict"].tolist()
    if len(verdicts) < 2:
        return ""
    return f"<br>all: ▲ {verdicts.count(BETTER)}, ▼ {verdicts.count(WORSE)} of {len(verdicts)}"


def _config_table(study, outcomes):
    datasets = list(dict.fromkeys(controls.rows_of(study, ANSWER)["dataset"]))
    names = [score_name(_first(study, dataset)) for dataset in datasets]
    rows = [
        [
            words.both_names(config),
            _experts(controls.rows_of(study, ANSWER, [config])),
            *_cells(study, config, datasets),
        ]
        for outcome in outcomes
        for config in sorted(outcome.configs, key=study.adaptive["config"].tolist().index)
    ]
    return words.table(["configuration", "experts", *names], rows)


def _first(study, dataset):
    rows = controls.rows_of(study, ANSWER)
    return rows[rows["dataset"] == dataset].iloc[0]


def _cells(study, config, datasets):
    """A configuration's difference from its control on each data set, with interval and mark."""
    rows = controls.rows_of(study, ANSWER, [config]).set_index("dataset")
    cells = []
    for dataset in datasets:
        if dataset not in rows.index:
            cells.append(words.NOTHING)
            continue
        row = rows.loc[dataset].copy()
        row["dataset"] = dataset
        value, interval = difference(row)
        cells.append(f"{value}{MARKS.get(row['verdict'], '')}<br>({interval})")
    return cells
