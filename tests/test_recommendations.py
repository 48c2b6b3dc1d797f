"""Rules on the tables of a made-up study: experts of each data set, saturated data sets, speeds, widths."""

import math

import numpy as np
import pytest
import results_tables
from adaptive_routing.analysis import recommendations as rules
from adaptive_routing.analysis.statistics import smallest_attainable_p
from results_tables import BASELINE

MARGINS = rules.QualityMargins(perplexity=0.02, accuracy=0.02)
BH = "8experts_bh_a060"


def with_experts(config, **by_dataset):
    study = results_tables.study()
    for dataset, experts in by_dataset.items():
        row = (study.experiments["config"] == config) & (study.experiments["dataset"] == dataset)
        study.experiments.loc[row, "avg_experts"] = experts
    return study


def test_cheaper_is_fewer_experts_on_every_data_set():
    assert BH in rules.cheaper(results_tables.study())
    assert BH not in rules.cheaper(with_experts(BH, wikitext=8.2))
    assert BASELINE not in rules.cheaper(results_tables.study())


def test_the_missing_k_lie_on_both_sides_of_bhs_experts():
    one = {"max_ks": (8,), "alphas": (0.6,), "ks": (8, 16), "datasets": ("wikitext",)}
    study = results_tables.study(**one)
    study.experiments.loc[study.experiments["config"] == BH, "avg_experts"] = 2.71
    assert rules.fixed_k_to_add(study) == [2, 3]
    study.experiments.loc[study.experiments["config"] == BH, "avg_experts"] = 7.2
    assert rules.fixed_k_to_add(study) == [7]
    study.experiments.loc[study.experiments["config"] == BH, "avg_experts"] = 3.0
    assert rules.fixed_k_to_add(study) == [3]
    assert rules.below_every_topk(study)["config"].tolist() == [BH]
    study.experiments.loc[study.experiments["config"] == BH, "avg_experts"] = 9.0
    assert rules.fixed_k_to_add(study) == [] and rules.below_every_topk(study).empty


def with_right(dataset, right):
    study = results_tables.study()
    rows = study.comparisons["dataset"] == dataset
    study.comparisons.loc[rows & (study.comparisons["metric"] != "loss"), "baseline_value"] = right / 200
    return study


def test_a_saturated_data_set_is_named():
    assert rules.saturated(results_tables.study()) == {}
    # Three top-k configurations: 3 · 2^(1 − n) is below 0.05 from n = 7 samples on.
    assert (
        3 * smallest_attainable_p("McNemar exact", 7) < 0.05 < 3 * smallest_attainable_p("McNemar exact", 6)
    )
    assert rules.saturated(with_right("hellaswag", 199)) == {
        "hellaswag": rules.Saturation(right=199, samples=200, no_better=True, no_worse=False)
    }
    assert rules.saturated(with_right("hellaswag", 193)) == {}
    assert rules.saturated(with_right("hellaswag", 194))["hellaswag"].no_better
    assert rules.saturated(with_right("lambada", 6)) == {
        "lambada": rules.Saturation(right=6, samples=200, no_better=False, no_worse=True)
    }
    assert rules.saturated(with_right("lambada", 7)) == {}


def test_speeds_measured_once_are_not_compared():
    study = results_tables.study()
    assert rules.faster(study)
    once = results_tables.study()
    del once.experiments[rules.LOG_SPEED_STDERR]
    assert rules.faster(once) == []
    assert rules.decide(once, MARGINS).speed == rules.Choice(rules.SPEED, BASELINE, rules.UNREPEATED)
    noisy = results_tables.study()
    noisy.experiments[rules.LOG_SPEED_STDERR] = 0.5
    assert rules.faster(noisy) == []
    # One configuration measured precisely, but not on every data set.
    study.experiments.loc[
        (study.experiments["config"] == BH) & (study.experiments["dataset"] == "lambada"),
        rules.LOG_SPEED_STDERR,
    ] = np.nan
    assert BH not in rules.faster(study)


def test_identical_losses_are_the_same_quality():
    study = results_tables.study(effect=lambda config, dataset: (0.0, 0.0, 1.0))
    row = study.comparison(BH, "wikitext")
    assert not rules.excludes_loss(row, MARGINS)
    study.comparisons["identical"] = True
    del study.__dict__["_comparisons"]
    assert rules.within_margin(study, BH, MARGINS)
    assert BH in rules.adaptive_outcomes(study, MARGINS)["same"]


def test_the_typical_width_is_that_of_configurations_that_are_not_worse():
    def effect(config, dataset):
        worse = config.startswith(("8experts", "16experts"))
        return (5.0 if dataset == "wikitext" else -0.5, 4.0, 0.001) if worse else (0.0, 0.3, 1.0)

    study = results_tables.study(effect=effect)
    assert rules.typical_half_width(study, "wikitext") == pytest.approx(0.3)
    lost = results_tables.study(effect=lambda config, dataset: (5.0, 0.4, 0.001))
    assert math.isnan(rules.typical_half_width(lost, "wikitext"))
