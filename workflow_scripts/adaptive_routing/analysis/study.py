"""The results tables as one object, which the figures and the report read."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from adaptive_routing.analysis.metrics import CONFIGURATION_KEYS, HEAD
from adaptive_routing.analysis.tables import SCORE_PERPLEXITIES, averaged_datasets
from adaptive_routing.settings.configurations import family
from adaptive_routing.settings.load import is_upper_bound
from adaptive_routing.system.errors import InputError
from adaptive_routing.system.files import MADE_ANEW

SIGNIFICANCE_LEVEL = 0.05  # of Holm-corrected p-values

REQUIRED_COLUMNS = {
    "experiments": HEAD,
    "configurations": (*CONFIGURATION_KEYS, "avg_experts"),
    "layers": ("config", "dataset", "layer", "avg_experts"),
    "comparisons": ("config", "dataset", "metric", "difference", "ci_low", "ci_high", "p_holm"),
}

# What is read beside them where a script has it: the last two from a study with controls.
MORE_COLUMNS = {
    "setting_effects": (
        *("family", "setting", "held_value", "dataset", "metric", "from_value", "to_value", "difference"),
        *("ci_low", "ci_high", "p_holm"),
    ),
    "same_compute": (
        *("config", "strategy", "dataset", "contrast", "metric", "avg_experts", "value", "reference_value"),
        *("difference", "ci_low", "ci_high", "p_holm", "verdict", "samples", "clusters"),
    ),
    "where": (
        *("config", "dataset", "by", "bin_low", "bin_high", "label", "tokens", "difference"),
        *("ci_low", "ci_high", "p_holm"),
    ),
}

TEXT_COLUMNS = {"config", "strategy", "dataset", "datasets", "metric", "test"}
TEXT_COLUMNS |= {"family", "setting", "weights", "null", "control", "control_of"}
TEXT_COLUMNS |= {"contrast", "compared", "reference", "verdict", "by", "label"}
NEVER_EMPTY = {"config", "strategy", "dataset", "metric", "k_or_max_k", "num_experts", "layer", "difficulty"}


@dataclass(frozen=True)
class Study:
    """The tables of docs/architecture.md and the baseline, the configuration all others are compared with.

    `configurations` is sorted: top-k by k, then BH by max_k and alpha, then other strategies. A missing
    value is NaN. Controls are in none of these tables; `controls` has their experiments. `same_compute` and
    `where` compare adaptive configurations with them (`bh_routing_same_compute.csv`,
    `bh_routing_where.csv`); both are empty in a study without controls.
    """

    experiments: pd.DataFrame
    configurations: pd.DataFrame
    layers: pd.DataFrame
    comparisons: pd.DataFrame
    baseline: str
    controls: pd.DataFrame | None = None
    setting_effects: pd.DataFrame = field(default_factory=lambda: _empty("setting_effects"))
    same_compute: pd.DataFrame = field(default_factory=lambda: _empty("same_compute"))
    where: pd.DataFrame = field(default_factory=lambda: _empty("where"))

    @cached_property
    def topk(self) -> pd.DataFrame:
        """Top-k with the first of its weights, in table order; with others it is among `others`."""
        return self._first_kind("topk", ["weights"])

    @cached_property
    def bh(self) -> pd.DataFrame:
        """BH with the first of its weights and null distributions; with others it is among `others`."""
        return self._first_kind("bh", ["weights", "null"])

    def _first_kind(self, strategy, columns):
        rows = self.configurations[self.configurations["strategy"] == strategy]
        columns = [column for column in columns if column in rows]
        if rows.empty or not columns:
            return rows
        kinds = [tuple(row) for row in rows[columns].astype(object).where(rows[columns].notna(), None).values]
        return rows[[kind == kinds[0] for kind in kinds]]

    @property
    def beside_topk(self) -> pd.DataFrame:
        """All configurations but `topk`: BH, and every other strategy or variant."""
        return self.configurations.drop(index=self.topk.index)

    @cached_property
    def adaptive(self) -> pd.DataFrame:
        """The configurations of every strategy but top-k, whatever its weights, in table order."""
        return self.configurations[self.configurations["strategy"] != "topk"]

    @cached_property
    def upper_bounds(self) -> set[str]:
        """The configurations of rules that look at later tokens: no text can be generated with them."""
        upper = {strategy for strategy in self.adaptive["strategy"].unique() if is_upper_bound(strategy)}
        return set(self.adaptive.loc[self.adaptive["strategy"].isin(upper), "config"])

    @property
    def candidates(self) -> pd.DataFrame:
        """The rows of `adaptive` that can be used, each once: without `upper_bounds` and `repeated`."""
        return self.adaptive[~self.adaptive["config"].isin(self.upper_bounds | self.repeated)]

    def family(self, config: str) -> str:
        """The rule that a configuration belongs to: `configurations.family`."""
        return family(config)

    @cached_property
    def families(self) -> list[str]:
        """The rules of the adaptive configurations, in table order."""
        return list(dict.fromkeys(map(self.family, self.adaptive["config"])))

    @cached_property
    def answers(self) -> pd.DataFrame:
        """The rows of `same_compute` whose metric decides on their data set; `contrast` tells of what.

        Without those of `repeated`: what ran twice counts once.
        """
        rows = self.same_compute[~self.same_compute["config"].isin(self.repeated)]
        return rows[rows["deciding"].astype(bool)] if "deciding" in rows else rows

    @cached_property
    def max_ks(self) -> list[int]:
        """Every max_k of a strategy other than top-k, ascending."""
        return sorted({int(max_k) for max_k in self.beside_topk["k_or_max_k"]})

    @cached_property
    def alphas(self) -> list[float]:
        """Every alpha of a BH configuration, ascending."""
        return sorted({float(alpha) for alpha in self.bh["alpha"]})

    @cached_property
    def others(self) -> list[str]:
        """The variants of all that is neither `topk` nor `bh`, in table order."""
        rows = self.beside_topk.drop(index=self.bh.index)
        return list(dict.fromkeys(self.variant(row) for _, row in rows.iterrows()))  # ty: ignore[invalid-explicit-return]

    @property
    def variants(self) -> list[float | str]:
        """What distinguishes configurations with the same max_k: the alphas of BH, then `others`."""
        return [*self.alphas, *self.others]

    def variant(self, row: pd.Series) -> float | str:
        """A row's entry in `variants`: alpha, or the end of the name, such as `topp_p030`."""
        if row["config"] in set(self.bh["config"]):
            return float(row["alpha"])
        return row["config"].partition("experts_")[2]

    @cached_property
    def datasets(self) -> list[str]:
        return list(dict.fromkeys(self.experiments["dataset"]))

    @cached_property
    def scores(self) -> dict[str, str]:
        """The score of each data set: `{dataset}_accuracy`, or the first of `SCORE_PERPLEXITIES`.

        The first that the baseline has: its word perplexity may be too large for a float. A data set that has
        only a mean loss is missing.
        """
        columns = {"avg_task_accuracy": "{}_accuracy", **{name: name for name in SCORE_PERPLEXITIES}}
        scores = {}
        for dataset in self.datasets:
            rows = self.experiments[self.experiments["dataset"] == dataset]
            if (rows["config"] == self.baseline).any():
                rows = rows[rows["config"] == self.baseline]
            present = [
                name for column, name in columns.items() if column in rows and rows[column].notna().any()
            ]
            if present:
                scores[dataset] = present[0].format(dataset)
        return scores

    @property
    def scored_datasets(self) -> list[str]:
        """The data sets with a perplexity or an accuracy; the others have only a mean loss."""
        return list(self.scores)

    @property
    def clusters(self) -> dict[str, int]:
        """How many independent clusters the samples of each data set form, where the comparisons say so."""
        tables = [table for table in (self.comparisons, self.same_compute) if "clusters" in table]
        rows = [table[["dataset", "clusters"]].dropna() for table in tables]
        rows = [table.astype({"clusters": float}) for table in rows if len(table)]
        if not rows:
            return {}
        most = pd.concat(rows).groupby("dataset", sort=False)["clusters"].max()
        return {str(dataset): int(count) for dataset, count in most.items()}

    @cached_property
    def repetitions(self) -> dict[str, list[str]]:
        """Adaptive configurations that ran what an earlier one of their rule did: {it: those that repeat it}.

        As with a max_k that no token reaches. On every data set the mean, deviation and largest number of
        experts and all scores are the same, to the last digit.
        """
        columns = ["avg_experts", "std_experts", "max_experts", *SCORE_PERPLEXITIES, "avg_task_accuracy"]
        table = self.experiments.set_index(["config", "dataset"])
        table = table[[column for column in columns if column in table]]
        found: dict[tuple, list[str]] = {}
        for config in self.adaptive["config"]:
            values = table.loc[config].reindex(self.datasets).to_numpy(float)
            found.setdefault((self.family(config), values.tobytes()), []).append(config)
        return {first: others for first, *others in found.values() if others}

    @cached_property
    def repeated(self) -> set[str]:
        """The configurations that repeat another one: all of `repetitions` but the first of each group."""
        return {config for others in self.repetitions.values() for config in others}

    @property
    def perplexity(self) -> str | None:
        """The perplexity that is a data set's score; None if no data set has one."""
        return next((score for score in self.scores.values() if score in SCORE_PERPLEXITIES), None)

    @cached_property
    def accuracies(self) -> list[str]:
        """The columns `{dataset}_accuracy` that have a value, in table order."""
        return [
            column
            for column in self.configurations.columns
            if column.endswith("_accuracy") and column != "avg_task_accuracy" and self.has(column)
        ]

    @property
    def baseline_row(self) -> pd.Series | None:
        """The baseline's row of `configurations`, or None if it has no results."""
        rows = self.configurations[self.configurations["config"] == self.baseline]
        return None if rows.empty else rows.iloc[0]

    def has(self, column: str) -> bool:
        """Whether any configuration has a value in `column`."""
        return column in self.configurations and self.configurations[column].notna().any()

    def baseline_value(self, column: str) -> float:
        """The baseline's value in `column`, NaN if there is none."""
        row = self.baseline_row
        return np.nan if row is None or column not in row else float(row[column])

    def range_over_datasets(self, column: str) -> tuple[pd.Series, pd.Series]:
        """Return (lowest, highest) of `column` over the data sets, each a Series indexed by configuration.

        The data sets here and in `layer_means` are those that enter the configurations' averages.
        """
        by_config = self._averaged(self.experiments).groupby("config")[column]
        return by_config.min(), by_config.max()

    def layer_means(self, column: str = "avg_experts") -> pd.DataFrame:
        """Mean over the data sets of a per-layer metric: a frame of configurations x layers."""
        layers = self._averaged(self.layers)
        return layers.pivot_table(index="config", columns="layer", values=column, aggfunc="mean")

    def _averaged(self, table):
        """The rows of the data sets that enter averages."""
        return table[table["dataset"].isin(averaged_datasets(self.datasets))]

    def comparison(self, config: str, dataset: str) -> pd.Series | None:
        """The row that compares `config` with the baseline on a data set, or None.

        It is the row of the data set's score, or of the mean loss where it has no score.
        """
        return self._comparisons.get((config, dataset, self.scores.get(dataset, "loss")))

    @cached_property
    def _comparisons(self):
        """The rows of `comparisons` by configuration, data set and metric."""
        rows = (row for _, row in self.comparisons.iterrows())
        return {(row["config"], row["dataset"], row["metric"]): row for row in rows}

    def verdict(self, config: str, dataset: str) -> str | None:
        """'better', 'worse' or 'same' compared with the baseline, after Holm's correction; None if untested.

        'same' means that the difference is not significant, not that there is none.
        """
        row = self.comparison(config, dataset)
        if row is None or pd.isna(row["p_holm"]) or pd.isna(row["difference"]):
            return None
        if row["p_holm"] >= SIGNIFICANCE_LEVEL or row["difference"] == 0:
            return "same"
        improved = row["difference"] < 0 if lower_is_better(row["metric"]) else row["difference"] > 0
        return "better" if improved else "worse"


def lower_is_better(metric: str) -> bool:
    """Whether a smaller value of a score is better: true for perplexities and losses."""
    return "perplexity" in metric or metric == "loss"


def make_study(
    experiments: pd.DataFrame,
    configurations: pd.DataFrame,
    layers: pd.DataFrame,
    comparisons: pd.DataFrame,
    baseline: str,
) -> Study:
    """Check four data frames and make a `Study` of them; `InputError` if one lacks rows or columns."""
    tables = {
        "experiments": experiments,
        "configurations": configurations,
        "layers": layers,
        "comparisons": comparisons,
    }
    for name, table in tables.items():
        _check_columns(table, REQUIRED_COLUMNS[name], f"the table of {name}")
        # A study of the baseline alone has no comparisons; the other tables must have rows.
        if table.empty and name != "comparisons":
            raise InputError(f"the table of {name} is empty: there is nothing to show")
    strategies = ["topk", "bh", *sorted({*configurations["strategy"]} - {"topk", "bh"})]
    controls = _controls(experiments)
    experiments, configurations, layers, comparisons = (
        table[~table["config"].isin(set(controls["config"]))]
        for table in (experiments, configurations, layers, comparisons)
    )
    ordered = configurations.sort_values(
        by=["strategy", "k_or_max_k", "alpha"],
        key=lambda column: column.map(strategies.index) if column.name == "strategy" else column,
        kind="stable",
    )
    return Study(experiments, ordered.reset_index(drop=True), layers, comparisons, baseline, controls)


def _empty(name):
    return pd.DataFrame(columns=list(MORE_COLUMNS[name]))


def _controls(experiments):
    """The experiments that are controls."""
    if "control" not in experiments:
        return experiments.iloc[:0]
    return experiments[experiments["control"].notna()]


def read_study(
    experiments: Path | str,
    configurations: Path | str,
    layers: Path | str,
    comparisons: Path | str,
    baseline: str,
    **more: Path | str,
) -> Study:
    """Read the four CSV files, and the tables named in `MORE_COLUMNS` that are given, into a `Study`."""
    paths = (experiments, configurations, layers, comparisons)
    study = make_study(*map(read_table, paths, REQUIRED_COLUMNS.values()), baseline)
    beside = {name: read_table(path, MORE_COLUMNS[name]) for name, path in more.items()}
    return replace(study, **beside)


# The inputs of a rule that are tables of a study, by the names that `read_study` takes them by.
STUDY_INPUTS = (*REQUIRED_COLUMNS, *MORE_COLUMNS)


def read_study_inputs(inputs: Any, baseline: str) -> Study:
    """`read_study` of a rule's named inputs (`snakemake.input`): those of `STUDY_INPUTS` that it has."""
    tables = {name: getattr(inputs, name) for name in STUDY_INPUTS if hasattr(inputs, name)}
    return read_study(**tables, baseline=baseline)


def read_table(path: Path | str, required: Sequence[str]) -> pd.DataFrame:
    """Read a CSV table that the workflow made.

    Args:
        path: the file.
        required: columns that it must have.

    Raises:
        InputError: it is missing or not a table, a column is missing, or a cell is text instead of a number.
    """
    if not Path(path).is_file():
        raise InputError(f"{path} does not exist")
    try:
        table = pd.read_csv(path)
    except pd.errors.EmptyDataError:
        raise InputError(f"{path} is empty: there is nothing to show; {MADE_ANEW}") from None
    except ValueError as error:  # a row too long, or no UTF-8
        reason = " ".join(str(error).split())
        raise InputError(
            f"{path} is not a table of comma-separated values ({reason}); {MADE_ANEW}"
        ) from error
    _check_columns(table, required, f"{path}, a table that the workflow made,")
    for column in table:
        values = table[column]
        fault = values.isna() & (column in NEVER_EMPTY)
        allowed = "be filled"
        if column not in TEXT_COLUMNS:
            fault |= values.notna() & pd.to_numeric(values, errors="coerce").isna()
            allowed = "be a number"
        if fault.any():
            row = int(np.flatnonzero(fault)[0])
            content = "empty" if pd.isna(values[row]) else repr(values[row])
            # Line 1 holds the names.
            raise InputError(
                f"{path}: line {row + 2}: {column} is {content}, but must {allowed}; {MADE_ANEW}"
            )
    return table


def _check_columns(table, required, name):
    missing = [column for column in required if column not in table]
    if missing:
        raise InputError(f"{name} has no column {', '.join(missing)}")
