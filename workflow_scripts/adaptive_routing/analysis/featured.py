"""The one configuration that the report, the atlas and its pictures show first beside the baseline."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adaptive_routing.analysis import control_outcomes as controls
from adaptive_routing.analysis import recommendations as rules
from adaptive_routing.analysis.contrasts import ANSWER
from adaptive_routing.settings.load import is_upper_bound

if TYPE_CHECKING:
    from adaptive_routing.analysis.recommendations import QualityMargins
    from adaptive_routing.analysis.study import Study


def featured(study: Study, margins: QualityMargins) -> str | None:
    """Choose it of the adaptive ones: with controls the best against its own, else one to use or close to it.

    None where no adaptive configuration has results.
    """
    if controls.has_answer(study):
        compared = list(dict.fromkeys(controls.rows_of(study, ANSWER)["config"]))
        usable = [c for c in compared if not is_upper_bound(study.family(c).partition("_")[0])]
        return controls.best(study, usable or compared, margins)
    adaptive = study.adaptive["config"].tolist()
    if not rules.obstacle(study):
        quality, compute, speed = rules.decide(study, margins).choices
        named: list[str | None] = [
            choice.config for choice in (compute, quality, speed) if choice.reason == rules.SHOWN
        ]
        named += [compute.candidate] * (compute.reason == rules.UNPROVEN)
        named += [quality.candidate] * (quality.reason == rules.CONFLICT)
        named += [rules.least_loss(study, margins)]
        adaptive = [config for config in named if config is not None and config in adaptive] + adaptive
    return next(iter(adaptive), None)
