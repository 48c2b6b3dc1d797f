"""The report's section on costs: what notable configurations save and lose against the baseline."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from adaptive_routing.analysis import control_outcomes as controls
from adaptive_routing.analysis import recommendations as rules
from adaptive_routing.analysis.featured import featured
from adaptive_routing.analysis.paired import percent_of
from adaptive_routing.analysis.study import SIGNIFICANCE_LEVEL
from adaptive_routing.report import words
from adaptive_routing.report.same_compute import score_name
from adaptive_routing.report.sentences import subject

if TYPE_CHECKING:
    from collections.abc import Iterator

    from adaptive_routing.analysis.recommendations import Decision, QualityMargins
    from adaptive_routing.analysis.study import Study

COST_HEADING = "What it costs"


def cost_section(study: Study, decision: Decision, margins: QualityMargins) -> Iterator[str]:
    """Yield a table of the notable configurations, its caption, and what alpha and max_k do."""
    yield _table(study, _roles(study, decision, margins))
    yield (
        "Experts are per token and layer. The baseline's row holds values ± one standard error. The other "
        "rows hold changes against it, with simultaneous 95 % intervals of the paired differences. ▲ "
        "significantly better, ▼ significantly worse than the baseline (Holm-corrected p < "
        f"{SIGNIFICANCE_LEVEL}), ○ no significant difference. The intervals hold for all configurations of a "
        "strategy and all data sets together. Tokens/s are over all data sets"
        + (
            "; the range over the data sets is in brackets."
            if rules.speeds_repeated(study)
            else ", measured once, which is too little to compare them."
        )
    )
    effects = list(filter(None, (_setting_effect(study, setting) for setting in ("alpha", "k_or_max_k"))))
    if effects:
        remark = (
            "These are paired changes between the two ends of BH's grid, with simultaneous 95 % intervals; "
            "in between, the change need not be monotone."
        )
        yield " ".join([*effects, remark])


def cost_at_a_glance(study: Study, margins: QualityMargins) -> Iterator[str]:
    """Yield what the configurations cost that the main sentences name, for the report's first screen.

    Nothing where none can be recommended.
    """
    if rules.obstacle(study):
        return
    decision = rules.decide(study, margins)
    roles = {config: list(own) for config, own in _shown(study, decision).items()}
    if controls.has_answer(study):
        roles.setdefault(featured(study, margins), []).append("best against its control")
    config, _ = subject(study, decision, margins)
    if config is not None:
        roles.setdefault(config, [])
    link = f"#{COST_HEADING.lower().replace(' ', '-')}"
    names = ["<br>".join([words.named(study, config), *own]) for config, own in roles.items()]
    columns = [_against_baseline(study, config) for config in roles]
    rows = zip(_measured(study), *columns, strict=True)
    table = words.table([f"[**{COST_HEADING}**]({link})", *names], rows)
    # Its columns are configurations, so that it fits beside the answer and on a phone.
    yield f'<div class="costs" markdown="1">\n\n{table}\n\n</div>'


def _table(study, roles):
    """The costs of some configurations; roles: {configuration: [role, ...]}."""
    rows = [
        ("<br>".join([words.named(study, config), *own]), *_against_baseline(study, config))
        for config, own in roles.items()
    ]
    return words.table(["configuration", *_measured(study)], rows)


def _measured(study):
    """What the cells of `_against_baseline` are."""
    return ["experts", "FLOPs", "tokens/s", *(words.score_of(study, d) for d in study.scored_datasets)]


def _shown(study, decision):
    """The baseline and the configurations to use, each with its aims: {config: [role, ...]}."""
    roles = {study.baseline: []}
    for choice in decision.choices:
        if choice.reason == rules.SHOWN:
            roles.setdefault(choice.config, []).append(f"use: {words.AIMS[choice.aim]}")
    return roles


def _roles(study, decision, margins):
    """The notable configurations and why each is listed: {config: [role, ...]}, the baseline first."""
    roles = _shown(study, decision)
    chosen = set(roles)

    def add(config, role):
        if config is not None and config not in chosen:
            roles.setdefault(config, []).append(role)

    if decision.compute.reason == rules.UNPROVEN:
        add(decision.compute.candidate, "cheapest without significant loss")
    if decision.quality.reason == rules.CONFLICT:
        add(decision.quality.candidate, "better and worse")
    add(rules.least_loss(study, margins), "fewer experts, least loss")
    adaptive = study.candidates.dropna(subset=["avg_experts"])
    if len(adaptive):
        name = words.adaptive(study)
        add(adaptive.loc[adaptive["avg_experts"].idxmin(), "config"], f"{name} with fewest experts")
    if study.has("tokens_per_second") and rules.speeds_repeated(study):
        fastest = study.configurations["tokens_per_second"].idxmax()
        add(study.configurations.loc[fastest, "config"], "fastest")
    for column, name in words.measures(study).items():
        add(rules.best_measured(study, column), f"best {name} measured")
    return roles


def _against_baseline(study, config):
    """Cells of a configuration: experts, FLOPs, speed, and its change on each data set."""
    row = study.configurations.set_index("config").loc[config]
    cells = [words.number(row["avg_experts"], ".2f")]
    speed = row.get("tokens_per_second")
    if config == study.baseline:
        scores = (
            words.with_error(row, score, words.digits_of(study, d)) for d, score in study.scores.items()
        )
        return [*cells, words.NOTHING, words.number(speed, ",.0f"), *scores]
    cells.append(words.percent(rules.flops_ratio(study, config), ".0f"))
    if rules.speeds_repeated(study):
        speeds = 100 * (rules.speed_ratios(study).loc[config].dropna() - 1)
        ends = f"<br>({words.span_of(speeds, '+z.0f')} %)" if len(speeds) > 1 else ""
        cells.append(words.percent(speed / study.baseline_value("tokens_per_second"), ".0f") + ends)
    else:
        cells.append(words.number(speed, ",.0f"))
    changes = (words.comparison_cells(study, config, d)["change"] for d in study.scored_datasets)
    return [*cells, *changes]


def _setting_effect(study, setting):
    """What alpha or max_k does to experts and scores, the other held; empty where it has one value."""
    name, other = {"alpha": ("α", "max_k"), "k_or_max_k": ("max_k", "α")}[setting]
    if setting not in (on_experts := rules.effects_on_experts(study)):
        return ""
    first, last, low, high = on_experts[setting]
    rows = study.setting_effects
    rows = rows[(rows["setting"] == setting) & (rows["family"] == study.family(study.bh["config"].iloc[0]))]
    changes = [_change(of_dataset) for _, of_dataset in rows.groupby("dataset", sort=False)]
    return (
        f"Raising {name} from {first:g} to {last:g} at the same {other} multiplies experts by "
        f"{words.span_of((low, high), '.2f')}"
        + (f" and changes {'; '.join(changes)}" if changes else "")
        + "."
    )


def _change(rows):
    """A score's change over the values of the other setting, with the outermost ends of its intervals."""
    is_ratio = "perplexity" in rows["metric"].iloc[0]
    unit, digits, scale = (" %", "+z.1f", percent_of) if is_ratio else ("", "+z.3f", np.asarray)
    values, lows, highs = (scale(rows[name].to_numpy(float)) for name in ("difference", "ci_low", "ci_high"))
    significant = int((rows["p_holm"].astype(float) < SIGNIFICANCE_LEVEL).sum())
    return (
        f"{score_name(rows.iloc[0])} by {words.span_of(values, digits)}{unit} (intervals within "
        f"{words.number(lows.min(), digits)} to {words.number(highs.max(), digits)}{unit}; "
        f"{words.of(significant, len(rows))} significant)"
    )
