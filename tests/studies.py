"""Made-up studies of many kinds, for all that draws or describes one."""

import numpy as np
import results_tables
from adaptive_routing.analysis.study import make_study

ALPHAS_20 = tuple(i / 20 for i in range(1, 21))


def without(study, *configs):
    """The study as if these configurations had no results."""
    tables = (study.experiments, study.configurations, study.layers, study.comparisons)
    return make_study(*(table[~table["config"].isin(configs)] for table in tables), study.baseline)


def nulled(study, *columns):
    """The study with nothing in these columns."""
    frames = [table.copy() for table in (study.experiments, study.configurations)]
    for frame in frames:
        frame[list(columns)] = np.nan
    return make_study(*frames, study.layers, study.comparisons, study.baseline)


def unused_experts(study):
    """The study with experts that never run, the more the fewer are chosen."""
    frames = [table.copy() for table in (study.experiments, study.configurations)]
    for frame in frames:
        frame["expert_utilization"] = 1 - 0.3 / frame["avg_experts"]
    return make_study(*frames, study.layers, study.comparisons, study.baseline)


STUDIES = {
    "full": lambda: results_tables.study(),
    "older grid": lambda: results_tables.study(
        max_ks=(4, 8, 16, 32, 64), alphas=(0.01, 0.05, 0.1, 0.2), ks=(8,)
    ),
    "84 configurations": lambda: results_tables.study(alphas=ALPHAS_20),
    "many max_k": lambda: results_tables.study(max_ks=(4, 8, 12, 16, 24, 32, 48, 64), alphas=ALPHAS_20[:10]),
    "one configuration": lambda: results_tables.study(max_ks=(8,), alphas=(0.3,), ks=(8,)),
    "one max_k": lambda: results_tables.study(max_ks=(64,), alphas=ALPHAS_20, ks=(8, 16)),
    "one alpha": lambda: results_tables.study(alphas=(0.305,)),
    "three digits": lambda: results_tables.study(alphas=(0.305, 0.4, 0.575)),
    "wikitext alone": lambda: results_tables.study(datasets=("wikitext",)),
    "whole articles": lambda: results_tables.study(documents=True),
    "lambada alone": lambda: results_tables.study(datasets=("lambada",)),
    "prompts alone": lambda: results_tables.study(datasets=("prompts",)),
    "four data sets": lambda: results_tables.study(
        datasets=("wikitext", "lambada", "hellaswag", "arc_challenge")
    ),
    "top-k alone": lambda: results_tables.study(max_ks=()),
    "BH alone": lambda: results_tables.study(ks=()),
    "without the baseline": lambda: without(results_tables.study(), results_tables.BASELINE),
    "top-16 is the baseline": lambda: results_tables.study(baseline="16experts_topk_baseline"),
    "BH is the baseline": lambda: results_tables.study(baseline="16experts_bh_a040"),
    "holes in the grid": lambda: without(results_tables.study(), "16experts_bh_a040", "64experts_bh_a060"),
    "no second pass": lambda: nulled(results_tables.study(), "latency_ms_per_token", "expert_overlap_score"),
    "unused experts": lambda: unused_experts(results_tables.study()),
}
