"""Why a rule wins or loses at the same compute: what layers, spread and token information are worth.

The difference between a configuration and its `fixed` control is the sum of three contrasts of controls
with the same numbers of experts (`analysis/control_outcomes.py`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from adaptive_routing.analysis import contrasts
from adaptive_routing.analysis import control_outcomes as controls
from adaptive_routing.analysis.contrasts import BETTER, LAYERS, OPEN, PARTS, SAME, SPREAD, TOKEN, WORSE
from adaptive_routing.analysis.control_outcomes import MIXED
from adaptive_routing.analysis.study import lower_is_better
from adaptive_routing.report import words
from adaptive_routing.report.same_compute import score_name
from adaptive_routing.settings.configurations import DEFAULTS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from adaptive_routing.analysis.study import Study

UNITS = {"token_perplexity": " nats per token", "word_perplexity": " nats per word", "loss": " nats"}
NAMES = {TOKEN: "token information", SPREAD: "spread over tokens", LAYERS: "differences between layers"}
# What a contrast says of a single rule, by verdict.
SINGLE = {
    TOKEN: {
        BETTER: (
            "its choice of tokens carries useful information: with the same counts shuffled over the tokens "
            "it does worse"
        ),
        WORSE: (
            "its choice of tokens does harm: with the same counts shuffled over the tokens it does better"
        ),
        SAME: (
            "its choice of tokens is worth nothing: with the same counts shuffled over the tokens it does "
            "as well"
        ),
        OPEN: (
            "its choice of tokens is not shown to be worth anything: no difference from the same counts "
            "shuffled over the tokens is significant"
        ),
        MIXED: (
            "its choice of tokens helps in some cases and does harm in others, compared with the same counts "
            "shuffled over the tokens"
        ),
    },
    SPREAD: {
        BETTER: "unequal counts within a layer help, whichever tokens get them",
        WORSE: "unequal counts within a layer cost quality, whichever tokens get them",
        SAME: "unequal counts within a layer cost nothing by themselves",
        OPEN: "what unequal counts within a layer cost by themselves is open",
        MIXED: "unequal counts within a layer help in some cases and cost quality in others",
    },
    LAYERS: {
        BETTER: "different means for different layers help",
        WORSE: "different means for different layers cost quality",
        SAME: "different means for different layers make no difference",
        OPEN: "what different means for different layers are worth is open",
        MIXED: "different means for different layers help in some cases and cost quality in others",
    },
}


def why_sentences(study: Study, null_checks: Mapping[str, pd.DataFrame] | None = None) -> list[str]:
    """Return one sentence on the three parts, in a list; an empty list without controls.

    Of several rules it is about BH, or about the first one without BH. null_checks: {name of a null
    distribution: its `calibration/null_check*.csv`}, which say how much of BH's counts is the mean logit.
    """
    outcomes = {contrast: controls.by_rule(study, contrast) for contrast in PARTS}
    if not controls.has_answer(study) or not any(outcomes.values()):
        return []
    if {outcome.verdict for group in outcomes.values() for outcome in group} == {OPEN}:
        return ["Why cannot be told: of token information, spread and layers none has a significant effect."]
    compared = {outcome.family for group in outcomes.values() for outcome in group}
    families = [family for family in study.families if family in compared]
    leading = controls.leading_rules(families)
    if len(families) == 1:
        parts = [_single(group[0]) for group in outcomes.values() if group]
        text = f"Why {words.rule(families[0])} does so: {'; '.join(parts)}."
    else:
        text = "Why: " + "; ".join(_with_numbers(study, family) for family in leading) + "."
    explained = [_mean_logit(family, null_checks or {}) for family in leading]
    if explained := [one for one in explained if one]:
        text += (
            f" Of the variance of BH's counts between tokens, {words.joined(explained)} is the token's mean "
            "logit, which a softmax router does not see."
        )
    return [text]


def _single(outcome):
    text = SINGLE[outcome.contrast][outcome.verdict]
    total = len(outcome.configs)
    if outcome.verdict in (BETTER, WORSE) and total > 1:
        text += f" (significant in {words.of(outcome.count(outcome.verdict), total)})"
    return text


def _with_numbers(study, family):
    """What the parts change on one data set: the first with a perplexity, or the first."""
    rows = study.answers[study.answers["config"].map(study.family) == family]
    losses = rows[rows["metric"].map(lower_is_better)]
    dataset = (rows if losses.empty else losses)["dataset"].iloc[0]
    rows = rows[rows["dataset"] == dataset]
    metric = rows["metric"].iloc[0]
    what, unit = ("loss", UNITS[metric]) if lower_is_better(metric) else ("accuracy", "")
    means = controls.mean_parts(study, family).loc[dataset]
    parts = []
    for contrast in PARTS:
        if pd.notna(means[contrast]):
            verb, unit = ("", "") if parts else (f" changes the {what} of {words.rule(family)}", unit)
            changed = words.number(means[contrast], "+z.3f") + unit
            parts.append(f"{NAMES[contrast]}{verb} by {changed} ({_significance(rows, contrast)})")
    return f"on {dataset}, {words.joined(parts)}"


def _significance(rows, contrast):
    """How many of a rule's configurations are significantly better and worse."""
    verdicts = rows.loc[rows["contrast"] == contrast, "verdict"].tolist()
    counts = {name: verdicts.count(name) for name in (BETTER, WORSE) if name in verdicts}
    parts = [f"{name} in {words.of(count, len(verdicts))}" for name, count in counts.items()]
    return f"significantly {words.joined(parts)}" if parts else "not significant"


def _mean_logit(family, null_checks):
    """How much of a BH rule's counts is the token's mean logit, at its largest α; empty if unknown."""
    null = next((part[1:] for part in family.split("_")[1:] if part.startswith("n")), DEFAULTS["null"])
    if family.partition("_")[0] != "bh" or null not in null_checks:
        return ""
    table = null_checks[null]
    explained = table.loc[table["alpha"] == table["alpha"].max(), "r2_mean_logit"].mean()
    if pd.isna(explained):
        return ""
    return f"{words.number(100 * explained, '.0f')} % ({words.rule(family)}, α {table['alpha'].max():.4g})"


def why_section(study: Study, figure: str | None = None, null_check: Sequence[str] = ()) -> Iterator[str]:
    """Yield the section's parts; nothing without controls.

    figure: the link to the figure; null_check: parts of the report on the check of the null distributions.
    """
    if any(controls.by_rule(study, contrast) for contrast in PARTS):
        yield "### Why"
        yield (
            "An adaptive configuration C differs from `fixed` in three ways, which controls take apart. "
            "`layerwise` gives each layer C's mean in that layer; `shuffled` gives each token the number of "
            "experts of another token of its layer. So C − shuffled is what **token information** is worth, "
            "shuffled − layerwise what **spread** costs, and layerwise − fixed what differences between "
            "**layers** are worth. The three sum to C − fixed."
        )
        yield _table(study)
        yield (
            "Mean differences over the configurations of a rule: of perplexities in nats per token (per "
            "word of whole articles), where less is better; of accuracies in share of samples, where more "
            "is better. In brackets: how many configurations are significantly better (▲) and worse (▼)."
        )
        if figure:
            yield f"![What token information, spread and layers are worth]({figure})"
    yield from null_check


def _table(study):
    rows = []
    families = [outcome.family for outcome in controls.by_rule(study, contrasts.ANSWER)]
    for family in families:
        for dataset, means in controls.mean_parts(study, family).iterrows():
            of_rule = study.answers[
                (study.answers["dataset"] == dataset) & (study.answers["config"].map(study.family) == family)
            ]
            cells = [
                words.number(means[contrast], "+z.3f") + _significant(of_rule, contrast)
                for contrast in (*PARTS, contrasts.ANSWER)
            ]
            rows.append([words.rule(family), score_name(of_rule.iloc[0]), *cells])
    return words.table(["rule", "score", "token information", "spread", "layers", "together"], rows)


def _significant(rows, contrast):
    verdicts = rows.loc[rows["contrast"] == contrast, "verdict"].tolist()
    parts = [
        f"{mark} {verdicts.count(name)}" for name, mark in ((BETTER, "▲"), (WORSE, "▼")) if name in verdicts
    ]
    return f" ({', '.join(parts)} of {len(verdicts)})" if parts else ""
