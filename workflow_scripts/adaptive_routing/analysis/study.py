"""The results tables as one object, the way the figure and the report read them."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from adaptive_routing.analysis.tables import PERPLEXITIES, averaged_datasets
from adaptive_routing.system.errors import InputError
from adaptive_routing.system.files import reading

SIGNIFICANCE_LEVEL = 0.05  # of Holm-corrected p-values

HEAD = ("config", "strategy", "k_or_max_k", "alpha", "num_experts")
REQUIRED_COLUMNS = {
    "experiments": (*HEAD, "dataset"),
    "configurations": (*HEAD, "avg_experts"),
    "layers": ("config", "dataset", "layer", "avg_experts"),
    "comparisons": ("config", "dataset", "metric", "difference", "ci_low", "ci_high", "p_holm"),
}

TEXT_COLUMNS = {"config", "strategy", "dataset", "datasets", "metric", "test"}
NEVER_EMPTY = {"config", "strategy", "dataset", "metric", "k_or_max_k", "num_experts", "layer", "difficulty"}


@dataclass(frozen=True)
class Study:
    """Four tables of docs/architecture.md and the name of the configuration that all are compared with.
    `configurations` is sorted: top-k by k, then BH by max_k and alpha, then other strategies. A value that
    does not exist is NaN.
    """

    experiments: pd.DataFrame
    configurations: pd.DataFrame
    layers: pd.DataFrame
    comparisons: pd.DataFrame
    baseline: str

    @property
    def topk(self):
        return self.configurations[self.configurations["strategy"] == "topk"]

    @property
    def bh(self):
        return self.configurations[self.configurations["strategy"] == "bh"]

    @property
    def beside_topk(self):
        """The configurations of BH and of every other strategy."""
        return self.configurations[self.configurations["strategy"] != "topk"]

    @cached_property
    def max_ks(self):
        """Every max_k of a configuration beside top-k, ascending."""
        return sorted({int(max_k) for max_k in self.beside_topk["k_or_max_k"]})

    @cached_property
    def alphas(self):
        """Every alpha of a BH configuration, ascending."""
        return sorted({float(alpha) for alpha in self.bh["alpha"]})

    @cached_property
    def others(self):
        """The variants of strategies other than top-k and BH, in table order."""
        rows = self.beside_topk[self.beside_topk["strategy"] != "bh"]
        return list(dict.fromkeys(self.variant(row) for _, row in rows.iterrows()))

    @property
    def variants(self):
        """What tells configurations of one max_k apart: the alphas of BH, then `others`."""
        return [*self.alphas, *self.others]

    def variant(self, row):
        """Which of `variants` a row is: alpha, or the end of the name, such as `topp_p030`."""
        return float(row["alpha"]) if row["strategy"] == "bh" else row["config"].partition("experts_")[2]

    @cached_property
    def datasets(self):
        return list(dict.fromkeys(self.experiments["dataset"]))

    @cached_property
    def scores(self):
        """Each data set's own score: `{dataset}_accuracy`, `word_perplexity` or `perplexity`.

        Where the baseline's does not exist (an exp too large), the next that does; a data set with a mean
        loss alone is missing.
        """
        columns = {"avg_task_accuracy": "{}_accuracy", **{name: name for name in PERPLEXITIES}}
        scores = {}
        for dataset in self.datasets:
            rows = self.experiments[self.experiments["dataset"] == dataset]
            if (rows["config"] == self.baseline).any():
                rows = rows[rows["config"] == self.baseline]
            held = [name for column, name in columns.items() if column in rows and rows[column].notna().any()]
            if held:
                scores[dataset] = held[0].format(dataset)
        return scores

    @property
    def scored_datasets(self):
        """The data sets with a score of their own, perplexity or accuracy; others have only a mean loss."""
        return list(self.scores)

    @property
    def perplexity(self):
        """The perplexity that is a data set's score; None where none is."""
        return next((score for score in self.scores.values() if score in PERPLEXITIES), None)

    @cached_property
    def accuracies(self):
        """The columns `{dataset}_accuracy` that hold a value, in table order."""
        return [
            column
            for column in self.configurations.columns
            if column.endswith("_accuracy") and column != "avg_task_accuracy" and self.has(column)
        ]

    @property
    def baseline_row(self):
        """The baseline's row of `configurations`, or None when it has no results."""
        rows = self.configurations[self.configurations["config"] == self.baseline]
        return None if rows.empty else rows.iloc[0]

    def has(self, column):
        """Whether any configuration has a value in `column`."""
        return column in self.configurations and self.configurations[column].notna().any()

    def baseline_value(self, column):
        """The baseline's value in `column`, NaN when there is none."""
        row = self.baseline_row
        return np.nan if row is None or column not in row else float(row[column])

    def range_over_datasets(self, column):
        """Return (lowest, highest) of `column` over the data sets, each a Series indexed by configuration.

        The data sets here and in `layer_means` are those that the configurations' averages are over.
        """
        by_config = self._averaged(self.experiments).groupby("config")[column]
        return by_config.min(), by_config.max()

    def layer_means(self, column="avg_experts"):
        """Mean over the data sets of a per-layer metric: a frame of configurations x layers."""
        layers = self._averaged(self.layers)
        return layers.pivot_table(index="config", columns="layer", values=column, aggfunc="mean")

    def _averaged(self, table):
        """The rows of the data sets that averages are over."""
        return table[table["dataset"].isin(averaged_datasets(self.datasets))]

    def comparison(self, config, dataset):
        """The row that compares `config` with the baseline on a data set, or None.

        It is the row of the data set's own score, or else that of the mean loss.
        """
        return self._comparisons.get((config, dataset, self.scores.get(dataset, "loss")))

    @cached_property
    def _comparisons(self):
        """The rows of `comparisons` by configuration, data set and metric."""
        rows = (row for _, row in self.comparisons.iterrows())
        return {(row["config"], row["dataset"], row["metric"]): row for row in rows}

    def verdict(self, config, dataset):
        """'better', 'worse' or 'same' than the baseline after Holm's correction; None when not compared.

        'same' means that no difference was shown, not that there is none.
        """
        row = self.comparison(config, dataset)
        if row is None or pd.isna(row["p_holm"]) or pd.isna(row["difference"]):
            return None
        if row["p_holm"] >= SIGNIFICANCE_LEVEL or row["difference"] == 0:
            return "same"
        improved = row["difference"] < 0 if lower_is_better(row["metric"]) else row["difference"] > 0
        return "better" if improved else "worse"


def lower_is_better(metric):
    """Whether a smaller value of a score is the better one: of perplexity and loss, not of accuracy."""
    return "perplexity" in metric or metric == "loss"


def make_study(experiments, configurations, layers, comparisons, baseline):
    """Check and sort four data frames into a `Study`; `InputError` when one lacks rows or columns."""
    tables = {
        "experiments": experiments,
        "configurations": configurations,
        "layers": layers,
        "comparisons": comparisons,
    }
    for name, table in tables.items():
        _check_columns(table, REQUIRED_COLUMNS[name], f"the table of {name}")
        # A study of the baseline alone has nothing to compare; the other tables must hold something.
        if table.empty and name != "comparisons":
            raise InputError(f"the table of {name} is empty: there is nothing to show")
    strategies = ["topk", "bh", *sorted({*configurations["strategy"]} - {"topk", "bh"})]
    ordered = configurations.sort_values(
        by=["strategy", "k_or_max_k", "alpha"],
        key=lambda column: column.map(strategies.index) if column.name == "strategy" else column,
        kind="stable",
    )
    return Study(experiments, ordered.reset_index(drop=True), layers, comparisons, baseline)


def read_study(experiments, configurations, layers, comparisons, baseline):
    """Read the four CSV files into a `Study`."""
    paths = (experiments, configurations, layers, comparisons)
    return make_study(*map(read_table, paths, REQUIRED_COLUMNS.values()), baseline)


def read_table(path, required):
    """Read a CSV table that the workflow made.

    Args:
        path: the file.
        required: columns that it must have.

    Raises:
        InputError: it is missing or no table, a column is missing, or holds a text in place of a number.
    """
    with reading(path):
        table = pd.read_csv(path)
        _check_columns(table, required, f"{path}, a table that the workflow made,")
        for column, values in table.items():
            numbers = values if column in TEXT_COLUMNS else pd.to_numeric(values, errors="coerce")
            wrong = values[numbers.isna() & (values.notna() | (column in NEVER_EMPTY))]
            if len(wrong):  # line 1 holds the names
                found = "empty" if pd.isna(wrong.iloc[0]) else repr(wrong.iloc[0])
                raise ValueError(f"line {wrong.index[0] + 2}: {column} is {found}")
    return table


def _check_columns(table, required, name):
    missing = [column for column in required if column not in table]
    if missing:
        raise InputError(f"{name} has no column {', '.join(missing)}")
