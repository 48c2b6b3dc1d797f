"""Does the number of selected experts follow a prompt's difficulty? Tables and sentences on `prompts`.

A trend is Spearman's rank correlation over prompts between difficulty and a prompt's value, with the
two-sided p-value of SciPy's permutation test on the ranks: levels tie, so the usual approximation by
Student's t would be rough. `summaries` are always the contents of logs/{config}_prompts.json.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import scipy  # loads `stats` when it is first used: the report does not need it

from adaptive_routing.analysis.metrics import CONFIGURATION_KEYS
from adaptive_routing.analysis.rule_names import strategy
from adaptive_routing.analysis.statistics import corrected_p_values
from adaptive_routing.analysis.study import SIGNIFICANCE_LEVEL
from adaptive_routing.data.tasks.uncertainty import mean_with_stderr

if TYPE_CHECKING:
    from adaptive_routing.evaluation.experiment import Summary

CONFIGURATION = [key for key in CONFIGURATION_KEYS if key != "num_experts"]
AVERAGED = ["loss", "avg_experts_prompt", "avg_experts_new"]
CORRELATED = ["avg_experts_prompt", "loss"]
_AVERAGES = [column for name in AVERAGED for column in (name, f"{name}_stderr")]
_TRENDS = [f"{name}_{suffix}" for name in CORRELATED for suffix in ("rho", "p_value", "p_holm")]
LEVEL_COLUMNS = [*CONFIGURATION, "difficulty", "samples", *_AVERAGES]
TREND_COLUMNS = [*CONFIGURATION, "samples", *_TRENDS]
RESAMPLES = 99_999
SEED = 0


def difficulty_table(summaries: Sequence[Summary]) -> pd.DataFrame:
    """Make one row per configuration and level: means over the level's prompts with their standard errors.

    A standard error is missing for a single prompt, a mean where no prompt has a value.
    """
    rows = []
    for summary in summaries:
        for level in sorted({sample["difficulty"] for sample in summary["samples"]}):
            samples = [sample for sample in summary["samples"] if sample["difficulty"] == level]
            row = {key: summary[key] for key in CONFIGURATION}  # ty: ignore[non-literal-typed-dict-key]
            row |= {"difficulty": level, "samples": len(samples)}
            for name in AVERAGED:
                values = [sample[name] for sample in samples if sample[name] is not None]
                if values:
                    row[name], row[f"{name}_stderr"] = mean_with_stderr(values)
            rows.append(row)
    return pd.DataFrame(rows, columns=LEVEL_COLUMNS).astype(dict.fromkeys(["alpha", *_AVERAGES], float))


def difficulty_trend(summaries: Sequence[Summary]) -> pd.DataFrame:
    """Make one row per configuration: the rank correlation of difficulty with experts, and with loss.

    Columns `{name}_rho`, `{name}_p_value` and `{name}_p_holm` for `avg_experts_prompt` and `loss`; Holm's
    correction is over the BH configurations, without BH over those of all adaptive rules. A constant, such
    as the experts of top-k, has no trend.
    """
    rows = []
    for summary in summaries:
        row = {key: summary[key] for key in CONFIGURATION} | {"samples": len(summary["samples"])}  # ty: ignore[non-literal-typed-dict-key]
        difficulty = [sample["difficulty"] for sample in summary["samples"]]
        for name in CORRELATED:
            values = [sample[name] for sample in summary["samples"]]
            row[f"{name}_rho"], row[f"{name}_p_value"] = _rank_correlation(difficulty, values)
        rows.append(row)
    tested = _tested({row["strategy"] for row in rows})
    adaptive = [row for row in rows if row["strategy"] in tested]
    for name in CORRELATED:
        corrected = corrected_p_values([row[f"{name}_p_value"] for row in adaptive], "holm")
        for row, p_value in zip(adaptive, corrected, strict=True):
            row[f"{name}_p_holm"] = p_value
    return pd.DataFrame(rows, columns=TREND_COLUMNS).astype(dict.fromkeys(["alpha", *_TRENDS], float))


def _tested(strategies):
    """The strategies whose trends are tested and told: BH, or in a study without it all but top-k."""
    return {"bh"} if "bh" in strategies else set(strategies) - {"topk"}


def _rank_correlation(x, y):
    """Spearman's ρ and its permutation p-value; (None, None) where either does not vary."""
    x, y = (scipy.stats.zscore(scipy.stats.rankdata(values)) if np.ptp(values) else None for values in (x, y))
    if x is None or y is None:
        return None, None
    # ρ is the mean product of the standardised ranks. With few prompts all permutations are enumerated.
    test = scipy.stats.permutation_test(
        (x,),
        lambda permuted, axis: np.mean(permuted * y, axis=axis),
        permutation_type="pairings",
        vectorized=True,
        n_resamples=RESAMPLES,
        random_state=SEED,
    )
    return float(test.statistic), float(test.pvalue)


def describe_difficulty(table: pd.DataFrame, trend: pd.DataFrame) -> str:
    """Say in up to three sentences how expert counts change with difficulty, and what remains undecided.

    table, trend: the results of `difficulty_table` and `difficulty_trend`.
    """
    tested = _tested(set(table["strategy"]))
    table, trend = (rows[rows["strategy"].isin(tested)] for rows in (table, trend))
    if table.empty:
        return (
            "No adaptive configuration ran on the prompts; top-k gives every token the same number of "
            "experts."
        )
    return " ".join([_describe_levels(table), *_describe_trend(table, trend)])


def _describe_levels(table):
    """How loss and expert counts change from the easiest level to the hardest."""
    configs = table["config"].unique()
    strategies = table["strategy"].unique()
    noun = strategy(strategies[0]) if len(strategies) == 1 else "adaptive"
    subject = f"In `{configs[0]}`"
    if len(configs) > 1:
        subject = f"Averaged over {len(configs)} {noun} configurations"
    means = table.groupby("difficulty")[AVERAGED].mean()
    first, last = means.iloc[0], means.iloc[-1]
    if len(means) == 1:
        return (
            f"{subject}, a prompt's token runs {first['avg_experts_prompt']:.2f} experts per layer; all "
            f"prompts have difficulty {means.index[0]}, so there is no trend to test."
        )
    sentence = (
        f"{subject}, the loss of a prompt's tokens goes from {first['loss']:.2f} at difficulty "
        f"{means.index[0]} to {last['loss']:.2f} at {means.index[-1]}, and the number of experts per token "
        f"and layer from {first['avg_experts_prompt']:.2f} to {last['avg_experts_prompt']:.2f}"
    )
    if np.isfinite([first["avg_experts_new"], last["avg_experts_new"]]).all():
        sentence += f" (new tokens: {first['avg_experts_new']:.2f} to {last['avg_experts_new']:.2f})"
    return sentence + "."


def _describe_trend(table, trend):
    """Whether the expert count rises, falls or neither, and what the number of prompts leaves undecided."""
    trend = trend.dropna(subset=["avg_experts_prompt_rho"])
    if trend.empty:
        return
    rho = trend["avg_experts_prompt_rho"]
    significant = trend["avg_experts_prompt_p_holm"] < SIGNIFICANCE_LEVEL
    rising, falling = (int(rows.sum()) for rows in (significant & (rho > 0), significant & (rho < 0)))
    flat = len(trend) - rising - falling
    span = f"{rho.min():+.2f}" if len(rho) == 1 else f"{rho.min():+.2f} to {rho.max():+.2f}"
    if len(trend) == 1:
        finding = "rises" if rising else "falls" if falling else "shows no significant trend"
        finding = f"The expert count {finding} with difficulty"
    else:
        finding = (
            f"With rising difficulty, the expert count rises in {rising} of {len(trend)} configurations, "
            f"falls in {falling} and shows no significant trend in {flat}"
        )
    yield f"{finding} (Spearman's ρ {span.replace('-', '−')}; Holm-corrected p < {SIGNIFICANCE_LEVEL})."
    if flat:
        samples = int(trend["samples"].min())
        what = "it" if flat == len(trend) else f"{flat} of them"
        # Holm's correction divides the level by the number of configurations without a significant trend.
        level = SIGNIFICANCE_LEVEL / flat
        groups = table.loc[table["config"] == trend.loc[~significant, "config"].iloc[0], "samples"].tolist()
        if smallest_attainable_p(groups) >= level:
            reason = "whatever the expert counts, the Holm-corrected p would not be below the level"
        else:
            visible = smallest_visible_correlation(samples, level)
            reason = f"a ρ within ±{visible:.2f} would not be significant"
            reason += f" among {flat} tests" if flat > 1 else ""
        yield f"So few prompts ({samples}) leave {what} undecided: {reason}."


def smallest_attainable_p(groups: Sequence[int]) -> float:
    """The smallest two-sided permutation p-value for levels of these sizes: that of a perfect order.

    Permutations within a level do not change ρ, and the reverse order is as extreme.
    """
    orders = math.factorial(sum(groups)) // math.prod(map(math.factorial, groups))
    return min(1.0, max(2 / orders, 2 / (RESAMPLES + 1)))


def smallest_visible_correlation(samples: int, level: float) -> float:
    """About the |ρ| of `samples` prompts, at least 3, with a two-sided p of `level` (Student's t)."""
    t = scipy.stats.t.isf(level / 2, samples - 2)
    return float(t / math.sqrt(samples - 2 + t**2))
