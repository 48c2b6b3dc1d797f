"""Why a rule wins or loses at the same compute: what layers, spread and token information are worth.

The difference between a configuration and its `fixed` control is the sum of three contrasts of controls
with the same numbers of experts (`analysis/control_outcomes.py`).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from adaptive_routing.analysis import contrasts
from adaptive_routing.analysis import control_outcomes as controls
from adaptive_routing.analysis.contrasts import BETTER, LAYERS, OPEN, PARTS, SAME, SPREAD, TOKEN, WORSE
from adaptive_routing.analysis.control_outcomes import MIXED
from adaptive_routing.report import words
from adaptive_routing.report.same_compute import score_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from adaptive_routing.analysis.study import Study

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
# The same in a list of rules.
MANY = {
    TOKEN: {BETTER: "useful", WORSE: "harmful", SAME: "worth nothing", OPEN: "open"},
    SPREAD: {BETTER: "a gain", WORSE: "a loss", SAME: "no difference", OPEN: "open"},
    LAYERS: {BETTER: "a gain", WORSE: "a loss", SAME: "no difference", OPEN: "open"},
}


def why_sentences(study: Study) -> list[str]:
    """Return one sentence on the three parts, in a list; an empty list without controls."""
    outcomes = {contrast: controls.by_rule(study, contrast) for contrast in PARTS}
    if not controls.has_answer(study) or not any(outcomes.values()):
        return []
    if {outcome.verdict for group in outcomes.values() for outcome in group} == {OPEN}:
        return ["Why cannot be told: of token information, spread and layers none has a significant effect."]
    families = {outcome.family for group in outcomes.values() for outcome in group}
    if len(families) == 1:
        parts = [_single(group[0]) for group in outcomes.values() if group]
        return [f"Why {words.rule(families.pop())} does so: {'; '.join(parts)}."]
    sentences = [_many(contrast, group) for contrast, group in outcomes.items() if group]
    text = ". ".join([sentences[0], *(one[0].upper() + one[1:] for one in sentences[1:])])
    text = re.sub(r"(\d+ of \d+)\)", r"\1 configurations)", text, count=1).replace(
        "of 1 configurations", "of 1 configuration"
    )
    return [f"Why: {text}."]


def _single(outcome):
    text = SINGLE[outcome.contrast][outcome.verdict]
    total = len(outcome.configs)
    if outcome.verdict in (BETTER, WORSE) and total > 1:
        text += f" (significant in {words.of(outcome.count(outcome.verdict), total)})"
    return text


def _many(contrast, outcomes):
    """Token information is harmful in BH (12 of 16), open in min-p, …"""
    parts = []
    for verdict in (BETTER, WORSE, MIXED, SAME, OPEN):
        group = [one for one in outcomes if one.verdict == verdict]
        if not group:
            continue
        counted = verdict in (BETTER, WORSE)
        names = words.joined(
            words.rule(one.family) + (f" ({one.count(verdict)} of {len(one.configs)})" if counted else "")
            for one in group
        )
        if len(group) == len(outcomes) > 1:
            names = f"every rule ({words.joined(words.rule(one.family) for one in group)})"
        parts.append(f"{MANY[contrast].get(verdict, 'both')} in {names}")
    verb = {TOKEN: "is", SPREAD: "is", LAYERS: "are"}[contrast]
    return f"{NAMES[contrast]} {verb} {', '.join(parts)}"


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
