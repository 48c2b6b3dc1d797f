"""The report's section on the null distributions: what their checks on held-out calibration text found."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING
from urllib.parse import quote

import pandas as pd

from adaptive_routing.report import words

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

HEADING = "### The null distributions"
# Of `calibration/null_check*.csv`, what the section reads.
CHECK_COLUMNS = (
    *("layer", "alpha", "trim", "distance_kept", "distance_unselected", "mean_count", "r2_mean_logit"),
    *("share_below_min_k", "share_zero", "share_zero_if_independent", "share_one", "share_all_experts"),
)


def null_check_section(
    checks: Mapping[str, tuple[pd.DataFrame, Path | str]], folder: Path | str
) -> Iterator[str]:
    """Yield the section's parts in Markdown; nothing where no null distribution was checked.

    Args:
        checks: {name of a null distribution: (its `calibration/null_check*.csv` as a table, the path of its
            figure)}, in the order of the study.
        folder: of the report; figures are linked relative to it.
    """
    if not checks:
        return
    yield HEADING
    yield (
        "Each was checked on calibration text that it was not fitted to. k\\* is the number of experts that "
        "BH would select; a token-layer with fewer than `min_k` is raised to it, so that the floor holds "
        "some by the rule and some by choice."
    )
    yield "\n".join(f"- {describe_null_check(name, table)}" for name, (table, _) in checks.items())
    if len(checks) > 1 or any(table["alpha"].nunique() > 1 for table, _ in checks.values()):
        yield words.folded("All levels", _table(checks))
    if any(table["alpha"].notna().any() for table, _ in checks.values()):
        yield (
            "If a token's logits were independent draws from the null distribution, k\\* would be 0 in "
            f"exactly 1 − α of the token-layers (Simes 1986). {_measured_floor(checks)}α sets the share at "
            "the floor only roughly, and it is no error rate, since the logits of a token depend on each "
            "other. A softmax router does not see a token's mean logit; p-values do, unless the null "
            "distribution is of centred logits."
        )
    for name, (_, figure) in checks.items():
        link = quote(os.path.relpath(figure, folder))
        yield f"![Check of the null distribution {name}]({link})"


def _measured_floor(checks):
    """The measured shares of k* = 0 against 1 − α, over all levels and null distributions."""
    means = [
        table.groupby("alpha")[["share_zero", "share_zero_if_independent"]].mean()
        for table, _ in checks.values()
    ]
    table = 100 * pd.concat(means).dropna()
    if table.empty:
        return ""
    zero, independent = (words.span_of(table[column], ".0f") for column in table)
    return f"Measured: {zero} % against {independent} %; "


def describe_null_check(name: str, table: pd.DataFrame) -> str:
    """One sentence on a null distribution: k* at the largest α, the token's mean logit, uniformity.

    table: `calibration/null_check*.csv`, a row per layer and level. Shares are means over layers.
    """
    distance = table.drop_duplicates("layer")["distance_kept"].max()
    trim = int(table["trim"].iloc[0])
    of_text = f"held-out text{f', without each token’s {trim} largest and smallest logits,' if trim else ''}"
    uniform = f"p-values of {of_text} are within {words.number(distance, '.3f')} of uniform in every layer"
    tested = table[table["alpha"].notna()]
    if tested.empty:
        return f"{words.code(name)}: {uniform}."
    rows = tested[tested["alpha"] == tested["alpha"].max()]
    alpha = f"{rows['alpha'].iloc[0]:.4g}"
    return (
        f"{words.code(name)}: at α = {alpha}, {_share(rows['share_below_min_k'])} of token-layers have "
        f"k\\* < `min_k` and are raised to it (k\\* = 0 in {_share(rows['share_zero'])}, k\\* = 1 in "
        f"{_share(rows['share_one'])}); "
        f"{_mean_logit(rows['r2_mean_logit'])}; {uniform}."
    )


def _share(values):
    return f"{words.number(100 * values.mean(), '.0f')} %"


def _mean_logit(explained):
    if explained.isna().all():
        return "k\\* is the same for every token"
    return f"{_share(explained)} of the variance of k\\* is the token's mean logit"


def _table(checks):
    rows = []
    for name, (table, _) in checks.items():
        for alpha, of_alpha in table.groupby("alpha"):
            means = of_alpha.mean()
            rows.append(
                [
                    words.code(name),
                    f"{alpha:.4g}",
                    *(words.number(100 * means[column], ".0f") for column in SHARES.values()),
                    words.number(means["mean_count"], ".2f"),
                    words.number(means["r2_mean_logit"], ".2f"),
                    words.number(of_alpha["distance_kept"].max(), ".3f"),
                    words.number(of_alpha["distance_unselected"].max(), ".3f"),
                ]
            )
    headings = ["null distribution", "α", *SHARES, "mean k\\*", "R² of mean logit"]
    headings += ["from uniform", "from uniform, not selected"]
    return words.table(headings, rows)


SHARES = {
    "k\\* < `min_k` (%)": "share_below_min_k",
    "k\\* = 0 (%)": "share_zero",
    "1 − α (%)": "share_zero_if_independent",
    "k\\* = 1 (%)": "share_one",
    "k\\* = E (%)": "share_all_experts",
}
