"""The report: its rules on studies where BH wins, loses, ties or is missing, and its files."""

import re
import runpy
import shutil
import signal
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import results_tables
import synthetic
import yaml
from adaptive_routing.analysis import recommendations as rules
from adaptive_routing.analysis import tables
from adaptive_routing.analysis.featured import featured
from adaptive_routing.analysis.metrics import METRICS, compute_metrics
from adaptive_routing.analysis.study import make_study, read_study
from adaptive_routing.figures.panels import PANELS
from adaptive_routing.report import words
from adaptive_routing.report.html import to_html
from adaptive_routing.report.markdown import plain_main_sentences, write_markdown
from adaptive_routing.report.provenance import plain_settings
from adaptive_routing.report.sentences import main_sentences
from adaptive_routing.settings.load import load_settings
from adaptive_routing.system.json_files import read_json
from adaptive_routing.system.tensor_files import TensorFile
from matplotlib.figure import Figure

REPOSITORY = Path(__file__).parents[1]
BASELINE = results_tables.BASELINE
MARGINS = rules.QualityMargins(perplexity=0.02, accuracy=0.02)


def load_study_settings(**changes):
    """The embedded study's complete settings, some sections changed."""
    config = yaml.safe_load((REPOSITORY / "config.yaml").read_text())
    for section, values in changes.items():
        config[section] = {**config[section], **values}
    settings = load_settings(config, base_dir=REPOSITORY)
    del settings["configurations"]
    return settings


SETTINGS = load_study_settings()


def effects(bh, topk=(0.5, -0.05, 0.001), half_width=None):
    """Effects by strategy: (difference in perplexity, difference in accuracy, corrected p-value)."""

    def effect(config, dataset):
        perplexity, accuracy, p_value = topk if "topk" in config else bh
        if dataset == "wikitext":
            return perplexity, half_width or 0.2, p_value
        return accuracy, half_width or 0.02, p_value

    return effect


def study_of(bh, **options):
    half_width = options.pop("half_width", None)
    return results_tables.study(effect=effects(bh, half_width=half_width), **options)


WINS = (-1.0, 0.05, 0.001)
LOSES = (3.0, -0.2, 0.001)
TIES = (0.05, -0.005, 0.9)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder with an image for the page and for each panel."""
    folder = tmp_path_factory.mktemp("report with a space") / "visualizations"
    folder.mkdir()
    for name in ("page", *PANELS):
        Figure(figsize=(0.2, 0.2)).savefig(folder / f"{name}.png")
    return folder


def summary(dataset="wikitext", **changes):
    return {
        "dataset": dataset,
        "routing": {"native_top_k": 8},
        "provenance": {
            "model": {"name": "a/b", "commit": "c0ffee", "fingerprint": "f" * 8},
            "dtype": "float32",
            "device": changes.pop("device", "cpu"),
            "versions": {"torch": "2.12"},
        },
        "summary": {"total_samples": 200, "requested_samples": 200, "truncated_samples": 0} | changes,
        "timings": {"forward_seconds": 1.5},
    }


def report(study, images, summaries=None, settings=None):
    summaries = [summary(dataset) for dataset in study.datasets] if summaries is None else summaries
    panels = [images / f"{panel}.png" for panel in PANELS]
    settings = settings or SETTINGS
    return write_markdown(study, summaries, settings, images / "page.png", panels, images.parent)


def section(text, heading):
    return text.split(f"\n{heading}\n")[1].split("\n#")[0]


def folded(text, summary):
    """What stands in the folded part whose summary begins so."""
    return text.split(f"<summary>{summary}")[1].split("</details>")[0]


def decision_of(study):
    return rules.decide(study, MARGINS)


def sentences_of(study):
    """The sentences against the baseline; a study without controls says first that it cannot tell more."""
    first, *others = main_sentences(study, MARGINS)
    if study.adaptive.empty:
        return [first, *others]
    assert first.startswith("This study cannot tell whether")
    assert "at the same compute" in first and "`controls: {of: [all]}`" in first
    return others


# The rules: what is decided, and the words that say it


def test_where_bh_wins_it_is_chosen_for_every_aim():
    study = study_of(WINS)
    decision = decision_of(study)
    fewest = study.bh.loc[study.bh["avg_experts"].idxmin(), "config"]
    fastest = study.bh.loc[study.bh["tokens_per_second"].idxmax(), "config"]
    assert decision.verdict == "better"
    assert set(decision.outcomes["better"]) == set(study.bh["config"])
    assert decision.compute == rules.Choice(rules.COMPUTE, fewest, rules.SHOWN)
    assert decision.speed == rules.Choice(rules.SPEED, fastest, rules.SHOWN)
    assert decision.quality == rules.Choice(rules.QUALITY, fewest, rules.SHOWN)  # all are equally good
    verdict, use, price = sentences_of(study)
    assert verdict.startswith(
        f"BH beats the baseline `{BASELINE}` (8.00 experts per token and layer): all 16 BH"
    )
    assert use.startswith(f"Use `{fewest}` for every aim")
    assert price.startswith(f"`{fewest}` runs 4.08 experts per token and layer instead of 8.00")
    assert "wikitext token perplexity by −9.1 % (95 % interval −10.9 to −7.3 %)" in price
    assert "lambada accuracy by +0.050 (+0.030 to +0.070)" in price
    assert price.endswith("it is significantly better on wikitext, lambada and hellaswag.")


def test_where_bh_loses_the_baseline_is_kept_and_the_price_named():
    study = study_of(LOSES)
    decision = decision_of(study)
    assert decision.verdict == "worse"
    assert set(decision.outcomes["worse"]) == set(study.bh["config"])
    assert [choice.config for choice in decision.choices] == [BASELINE] * 3
    reasons = [choice.reason for choice in decision.choices]
    assert reasons == [rules.NO_CANDIDATE, rules.LOSES, rules.LOSES]
    verdict, use, price = sentences_of(study)
    assert (
        verdict.startswith("BH loses quality: ")
        and "all 16 BH configurations are significantly worse" in verdict
    )
    assert use.startswith(f"Keep `{BASELINE}` for every aim: no configuration measured better")
    assert "loses least" in price and price.endswith("worse on wikitext, lambada and hellaswag.")
    assert "token perplexity by +27.3 % (95 % interval +25.5 to +29.1 %)" in price


def test_a_tie_inside_the_margin_saves_compute():
    study = study_of(TIES, half_width=0.005)
    decision = decision_of(study)
    assert decision.verdict == "cheaper"
    assert set(decision.outcomes["same"]) == set(study.bh["config"])
    assert decision.compute.reason == decision.speed.reason == rules.SHOWN
    assert decision.compute.config == "8experts_bh_a030"
    assert decision.quality.config == BASELINE
    verdict, use, _ = sentences_of(study)
    assert verdict.startswith("BH saves compute at the same quality: 9 of 16 BH configurations stay within")
    assert "For least compute and highest speed within the margin, use `8experts_bh_a030`" in use
    # The margin is stated where it is first mentioned, and only there.
    definition = (
        "the 95 % interval excludes a loss of more than 2 % of perplexity or 0.02 of accuracy on every data "
        "set"
    )
    assert f"within the margin ({definition})" in verdict and definition not in use


def test_a_tie_inside_the_noise_supports_no_claim_of_equality():
    study = study_of(TIES, half_width=0.5)
    decision = decision_of(study)
    assert decision.verdict == "open"
    assert set(decision.outcomes["open"]) == set(study.bh["config"])
    assert decision.compute == rules.Choice(rules.COMPUTE, BASELINE, rules.UNPROVEN, "8experts_bh_a030")
    assert decision.speed.config == BASELINE and decision.speed.reason == rules.UNPROVEN
    verdict, use, price = sentences_of(study)
    assert verdict.startswith("Whether BH helps is open: ")
    assert "show no significant difference, but a loss beyond the margin" in verdict
    assert "no configuration with fewer experts is confirmed to be within the margin" in use
    assert price.startswith(
        "The cheapest configuration whose measured loss is within the margin, "
        "`8experts_bh_a030`, runs 4.08 experts"
    )
    assert price.endswith("no difference is significant on any data set.")


def test_a_shown_loss_smaller_than_the_margin_is_the_same_quality_and_is_said():
    study = study_of((0.1, -0.01, 0.001), half_width=0.005)
    decision = decision_of(study)
    assert decision.verdict == "cheaper" and decision.outcomes["worse"] == []
    assert decision.compute.reason == rules.SHOWN
    assert sentences_of(study)[2].endswith(
        "worse on wikitext, lambada and hellaswag, but by less than the margin."
    )


def test_the_margin_decides_what_is_the_same_quality():
    study = study_of((0.3, -0.01, 0.9), half_width=0.005)  # 2.8 % of perplexity at most
    assert not rules.within_margin(study, "8experts_bh_a030", MARGINS)
    wide = rules.QualityMargins(perplexity=0.03, accuracy=0.02)
    assert rules.within_margin(study, "8experts_bh_a030", wide)
    assert rules.decide(study, wide).compute.reason == rules.SHOWN
    assert "3 % of perplexity or 0.02 of accuracy" in main_sentences(study, wide)[1]
    strict = rules.QualityMargins(perplexity=0.03, accuracy=0.01)
    assert not rules.within_margin(study, "8experts_bh_a030", strict)


def test_of_unproven_configurations_one_with_a_small_measured_loss_is_named():
    def effect(config, dataset):
        large = dataset == "wikitext" and "a060" not in config
        return (1.5 if large else 0.0), 2.0, 0.9

    study = results_tables.study(effect=effect)
    assert decision_of(study).compute.candidate == "8experts_bh_a060"
    lossy = results_tables.study(effect=lambda config, dataset: (1.5 * (dataset == "wikitext"), 2.0, 0.9))
    assert decision_of(lossy).compute.candidate == "8experts_bh_a030"
    assert (
        "The cheapest configuration without a significant loss, `8experts_bh_a030`," in sentences_of(lossy)[2]
    )


def test_a_significant_loss_smaller_than_the_margin_is_no_reason_against_a_configuration():
    def effect(config, dataset):
        if dataset == "wikitext":
            return (0.05, 0.02, 0.001) if config == "8experts_bh_a060" else (3.0, 0.5, 0.001)
        return 0.0, 0.1, 0.9

    study = results_tables.study(effect=effect)
    choice = decision_of(study).compute
    assert (choice.reason, choice.candidate) == (rules.UNPROVEN, "8experts_bh_a060")
    cost = sentences_of(study)[2]
    assert cost.startswith(
        "The cheapest configuration whose measured loss is within the margin, `8experts_bh_a060`,"
    )
    assert cost.endswith("; it is significantly worse on wikitext, but by less than the margin.")


def test_accuracy_against_perplexity_is_a_conflict():
    study = study_of((-1.0, -0.05, 0.001))
    decision = decision_of(study)
    assert decision.verdict == "mixed"
    assert set(decision.outcomes["mixed"]) == set(study.bh["config"])
    assert decision.quality == rules.Choice(rules.QUALITY, BASELINE, rules.CONFLICT, "8experts_bh_a030")
    assert decision.compute.reason == rules.LOSES
    verdict, use, price = sentences_of(study)
    assert verdict.startswith("BH helps on one data set and hurts on another")
    assert verdict.endswith("better on wikitext but significantly worse on lambada and hellaswag.")
    assert "`8experts_bh_a030` is significantly better on wikitext but worse on lambada and hellaswag" in use
    assert "significantly better on wikitext and significantly worse on lambada and hellaswag" in price


def test_one_improvement_without_a_loss_is_best_quality_whatever_its_strategy():
    def effect(config, dataset):
        better = config == "16experts_topk_baseline" and dataset == "wikitext"
        return (-0.4, 0.2, 0.001) if better else effects(TIES, topk=(0.1, -0.001, 0.9))(config, dataset)

    study = results_tables.study(effect=effect)
    decision = decision_of(study)
    assert decision.quality == rules.Choice(rules.QUALITY, "16experts_topk_baseline", rules.SHOWN)
    assert decision.verdict == "open"  # that top-k is better says nothing of BH
    assert "For best quality, use `16experts_topk_baseline`" in sentences_of(study)[1]


def test_a_better_value_that_is_not_shown_is_no_choice():
    study = study_of((-0.1, 0.001, 0.8))
    decision = decision_of(study)
    assert decision.quality == rules.Choice(rules.QUALITY, BASELINE, rules.UNPROVEN, "8experts_bh_a030")
    assert "no configuration is significantly better" in sentences_of(study)[1]


def test_a_choice_must_save_something():
    study = results_tables.study(effect=effects(TIES, half_width=0.005), max_ks=(64,), alphas=(0.5, 0.6))
    assert (study.bh["avg_experts"] > 8).all()
    decision = decision_of(study)
    assert decision.verdict == "no gain"
    assert decision.compute.reason == decision.speed.reason == rules.NO_CANDIDATE
    verdict, use, price = sentences_of(study)
    assert verdict.startswith(
        "BH gains nothing here: both BH configurations stay within the margin (the 95 %"
    )
    assert "no configuration runs fewer experts; no configuration was faster on every data set" in use
    assert price == "BH saves no experts: no BH configuration compared with the baseline runs fewer."


def test_faster_is_faster_on_every_data_set():
    study = study_of(TIES, half_width=0.005)
    fastest = decision_of(study).speed.config
    slower_once = (study.experiments["config"] == fastest) & (study.experiments["dataset"] == "lambada")
    study.experiments.loc[slower_once, "tokens_per_second"] = 1.0
    assert fastest not in rules.faster(study)
    assert decision_of(study).speed.config not in (fastest, BASELINE)
    study.configurations["tokens_per_second"] = np.nan
    assert decision_of(study).speed == rules.Choice(rules.SPEED, BASELINE, rules.UNMEASURED)
    assert "speed was not measured" in sentences_of(study)[1]


def test_one_lost_data_set_excludes_a_configuration():
    def effect(config, dataset):
        lost = config == "8experts_bh_a030" and dataset == "hellaswag"
        return (-0.3, 0.02, 0.001) if lost else effects(TIES, half_width=0.005)(config, dataset)

    study = results_tables.study(effect=effect)
    decision = decision_of(study)
    assert decision.outcomes["worse"] == ["8experts_bh_a030"]
    assert decision.compute.config == "16experts_bh_a030"  # the next in experts


def test_a_missing_experiment_excludes_a_configuration_from_every_aim():
    study = study_of(WINS)
    first = "8experts_bh_a030"
    assert {choice.config for choice in decision_of(study).choices} == {first}
    frames = [
        t[(t["config"] != first) | (t["dataset"] != "lambada")]
        for t in (study.experiments, study.comparisons)
    ]
    study = make_study(frames[0], study.configurations, study.layers, frames[1], BASELINE)
    decision = decision_of(study)
    assert decision.outcomes["untested"] == [first]
    assert {choice.config for choice in decision.choices} == {"16experts_bh_a030"}
    assert rules.missing_experiments(study) == [(first, "lambada")]


def test_where_nothing_was_tested_everywhere_no_verdict_is_given():
    study = study_of(WINS)
    study.comparisons.loc[study.comparisons["dataset"] == "lambada", "p_holm"] = np.nan
    decision = decision_of(study)
    assert decision.verdict == "untested"
    assert decision.quality.reason == decision.compute.reason == rules.UNTESTED
    assert sentences_of(study)[0].startswith("The data support no verdict on BH")


@pytest.mark.parametrize(
    "dataset, unit", [("wikitext", "2 % of perplexity"), ("lambada", "0.02 of accuracy")]
)
def test_one_data_set_alone_decides(dataset, unit):
    study = study_of(WINS, datasets=(dataset,))
    decision = decision_of(study)
    assert decision.verdict == "better" and decision.compute.reason == rules.SHOWN
    text = " ".join(sentences_of(study))
    assert f"a loss of more than {unit} on every data set" in text
    other = "accuracy" if dataset == "wikitext" else "perplexity"
    assert other not in text


def test_the_older_grid_with_a_single_top_k_is_decided_too():
    study = results_tables.study(
        effect=effects(LOSES), max_ks=(4, 8, 16, 32, 64), alphas=(0.01, 0.05, 0.1, 0.2), ks=(8,)
    )
    decision = decision_of(study)
    assert decision.verdict == "worse" and len(decision.outcomes["worse"]) == 20
    assert rules.same_compute(study, "token_perplexity") is None
    assert min(rules.fixed_k_to_add(study)) >= 1 and max(rules.fixed_k_to_add(study)) < 8


def test_one_bh_configuration_is_spoken_of_in_the_singular():
    study = results_tables.study(effect=effects(LOSES), max_ks=(8,), alphas=(0.3,), ks=(8,))
    assert "the only BH configuration is significantly worse" in sentences_of(study)[0]


def test_a_study_without_bh_does_not_answer_whether_it_helps():
    study = results_tables.study(max_ks=(), effect=effects(TIES))
    decision = decision_of(study)
    assert decision.verdict == "absent"
    assert {choice.config for choice in decision.choices} == {BASELINE}
    assert sentences_of(study)[0].startswith("This study does not say whether adaptive routing helps")


@pytest.mark.parametrize("strategy", ["top-k", "BH"])
def test_a_baseline_that_is_not_the_models_own_routing(images, strategy):
    """Prices are against the baseline, also where it is not what the model was trained with."""
    baseline = "16experts_topk_baseline" if strategy == "top-k" else "16experts_bh_a060"
    tables_ = results_tables.tables(effect=lambda *_: (-0.5, 0.1, 0.001), datasets=("wikitext",))
    kept = tables_["comparisons"]["config"] != baseline
    # The rows of the table's own baseline stand in for those against another.
    tables_["comparisons"] = tables_["comparisons"][kept]
    study = make_study(**tables_, baseline=baseline)
    decision = rules.decide(study, MARGINS)
    assert decision.verdict == "better"
    assert not any(baseline in configs for configs in decision.outcomes.values())
    saved = study.configurations.set_index("config")["flops_reduction_exact_pct"]
    ratio = (100 - saved["8experts_bh_a030"]) / (100 - saved[baseline])
    assert rules.flops_ratio(study, "8experts_bh_a030") == pytest.approx(ratio)
    assert rules.flops_ratio(study, baseline) == 1
    text = report(study, images)
    assert "It is not the model's own routing, which is top-8." in text
    assert f"`{baseline}` (baseline)" in section(text, "### All configurations")
    assert "not the model's own routing" not in report(study_of(WINS), images)


@pytest.mark.parametrize(
    "metric, low, high, expected", [("perplexity", -0.1, 0.3, 0.3), ("x_accuracy", -0.1, 0.3, 0.1)]
)
def test_the_largest_loss_is_at_the_bad_end_of_the_interval(metric, low, high, expected):
    assert rules.largest_loss({"metric": metric, "ci_low": low, "ci_high": high}) == pytest.approx(expected)


def test_a_data_set_without_a_score_decides_nothing():
    with_prompts = study_of(TIES, datasets=("wikitext", "lambada", "prompts"), half_width=0.005)
    assert with_prompts.scored_datasets == ["wikitext", "lambada"]
    assert decision_of(with_prompts).compute.reason == rules.SHOWN
    assert rules.scores_of(with_prompts, "token_perplexity") == ["wikitext"]
    assert with_prompts.comparison("8experts_bh_a030", "prompts")["metric"] == "loss"
    assert with_prompts.verdict("8experts_bh_a030", "prompts") == "worse"
    assert with_prompts.comparison("8experts_bh_a030", "wikitext")["metric"] == "token_perplexity"
    assert "prompts" not in " ".join(sentences_of(with_prompts))


def test_same_compute_reads_the_line_through_top_k():
    study = results_tables.study()
    table = study.configurations
    # A line in log k: perplexity 10 at 8 experts and one more for each doubling.
    topk = table["strategy"] == "topk"
    # Perplexity is wikitext's, and so are the experts that it is compared at.
    on_wikitext = study.experiments[study.experiments["dataset"] == "wikitext"].set_index("config")
    experts = table["config"].map(on_wikitext["avg_experts"])
    assert not np.allclose(experts[~topk], table.loc[~topk, "avg_experts"])
    table["token_perplexity"] = 10 + np.log2(experts / 8)
    inside = ~topk & experts.between(8, 64)
    better = table.index[inside][::2]
    table.loc[table.index[inside], "token_perplexity"] += 0.01
    table.loc[better, "token_perplexity"] -= 0.02
    result = rules.same_compute(study, "token_perplexity")
    assert result.better == table.loc[better, "config"].tolist()
    assert set(result.worse) == set(table.loc[inside, "config"]) - set(result.better)
    assert set(result.outside) == set(table.loc[~inside & ~topk, "config"])
    assert rules.same_compute(results_tables.study(ks=(8,)), "token_perplexity") is None


# The text


def test_the_answer_names_the_winner_with_its_numbers(images):
    study = study_of(WINS)
    text = report(study, images)
    opening = section(text, "## Answers").strip().splitlines()
    assert opening[:4] == [f"{i}. {one}" for i, one in enumerate(main_sentences(study, MARGINS), start=1)]
    use = section(text, "### What to use")
    best = (
        "| best quality | BH max_k 8, α 0.3<br>`8experts_bh_a030` | significantly better on wikitext, lambada"
    )
    assert best in use
    assert "4.08 experts instead of 8.00; a loss beyond the margin is excluded on every data set" in use
    assert "95 % interval excludes a loss of more than 2 % of perplexity or 0.02 of accuracy" in use
    costs = section(text, "### What it costs")
    cells = row_of(costs, "8experts_bh_a030")
    uses = ["best quality", "same quality, least compute", "same quality, fastest"]
    assert cells["configuration"] == "<br>use: ".join(["BH max_k 8, α 0.3<br>`8experts_bh_a030`", *uses])
    assert cells["experts"] == "4.08"
    assert cells["wikitext token perplexity"] == "−9.1 % ▲<br>(−10.9 to −7.3 %)"
    assert cells["lambada accuracy"] == "+0.050 ▲<br>(+0.030 to +0.070)"
    assert row_of(costs, BASELINE)["wikitext token perplexity"] == "11.00 ± 0.50"
    evidence = section(text, "### The tests behind these answers")
    values = "10.00 ± 0.50 | 11.00 ± 0.50 | −1.00 ▲ | −1.20 to −0.80"
    assert f"<br>`8experts_bh_a030` | wikitext token perplexity | {values} | 0.001 | excluded |" in evidence


def test_a_loss_is_called_a_loss(images):
    text = report(study_of(LOSES), images)
    assert f"| best quality | top-8<br>`{BASELINE}` (keep) | no configuration measured better" in text
    assert "closest: `8experts_bh_a030`" in section(text, "### What to use")
    where = section(text, "### Where BH does not help")
    assert "Significantly worse than the baseline on wikitext: all 16." in where
    assert section(text, "### All configurations").count("14.00 ± 0.50 ▼") == 16
    evidence = section(text, "### The tests behind these answers")
    assert row_of(evidence, "8experts_bh_a030", "lambada accuracy")["loss beyond the margin"] == "confirmed"
    assert "BH 16 worse" in folded(text, "Tests on lambada: ").split("</summary>")[0]


def test_a_tie_supports_no_claim_of_equality(images):
    text = report(study_of(TIES, half_width=0.5), images)
    evidence = section(text, "### The tests behind these answers")
    assert row_of(evidence, "8experts_bh_a030", "lambada accuracy")["loss beyond the margin"] == "possible"
    bh = [line for line in section(text, "### All configurations").splitlines() if "_bh_" in line]
    assert len(bh) == 16
    assert not any(mark in line for line in bh for mark in "▲▼")
    assert all(line.count("○") == 3 for line in bh)


def test_how_many_samples_it_takes_is_said(images):
    """Half a width shrinks with the root of the number of samples."""
    text = section(report(study_of(TIES, half_width=0.1), images), "### Uncertainty")
    cells = row_of(text, "lambada accuracy")
    assert (cells["half-width of the 95 % interval"], cells["margin"]) == ("±0.100", "0.020")
    assert (cells["samples"], cells["samples for 50 % power"]) == ("200", "about 5,000")
    # 2 % of 11 is 0.22: wide enough as it is.
    assert row_of(text, "wikitext token perplexity")["samples for 50 % power"] == "enough"
    study = study_of(TIES, half_width=0.03)
    assert rules.samples_needed(study, "lambada", MARGINS) == 450
    assert rules.samples_needed(study, "wikitext", MARGINS) is None
    assert rules.samples_needed(study_of(TIES, half_width=0.02), "lambada", MARGINS) is None


def test_what_no_top_k_can_be_compared_with_is_said_to_be_open(images):
    text = section(report(study_of(TIES), images), "### Beside the curve of fixed top-k")
    assert "10 of 16 BH configurations run fewer experts than any top-k" in text
    assert "**not answered here**" in text and "add k = 3, 4, 5, 6 and 7 to `strategies.topk.k`" in text
    low = results_tables.study(ks=(2, 8, 64), effect=effects(TIES))
    assert rules.fixed_k_to_add(low) == []
    text = section(report(low, images), "### Beside the curve of fixed top-k")
    assert "not answered" not in text and "it is not a test" in text


def test_what_the_two_settings_do_is_said(images):
    def effect(config, dataset):
        if "topk" in config:
            return 0.5, 0.2, 0.001
        alpha = int(config[-3:]) / 100
        return (11 * (alpha - 0.3), 0.2, 0.5) if dataset == "wikitext" else (-alpha / 10, 0.02, 0.5)

    study = results_tables.study(effect=effect)
    effects = [
        ("wikitext", "token_perplexity", -0.2, -0.3, 0.0, 0.6),
        ("wikitext", "token_perplexity", -0.1, -0.15, -0.05, 0.001),
        ("lambada", "lambada_accuracy", 0.03, 0.01, 0.05, 0.001),
    ]
    columns = ["dataset", "metric", "difference", "ci_low", "ci_high", "p_holm"]
    study = replace(
        study, setting_effects=pd.DataFrame(effects, columns=columns).assign(setting="alpha", family="bh")
    )
    assert rules.effects_on_experts(study)["alpha"][:2] == (0.3, 0.6)
    text = section(report(study, images), "### What it costs")
    assert "Raising α from 0.3 to 0.6 at the same max_k multiplies experts by" in text
    # exp(−0.2) is 18.1 % less.
    assert (
        "and changes wikitext token perplexity by −18.1 to −9.5 % (intervals within −25.9 to +0.0 %; "
        "1 of 2 significant); lambada accuracy by +0.030 (intervals within +0.010 to +0.050; "
    ) in text
    one = results_tables.study(max_ks=(8,), alphas=(0.3,), effect=effect)
    assert "Raising" not in report(one, images)


def test_without_the_baseline_nothing_is_recommended(images):
    study = study_of(WINS)
    tables_ = (study.experiments, study.configurations, study.layers)
    study = make_study(*(t[t["config"] != BASELINE] for t in tables_), study.comparisons.iloc[:0], BASELINE)
    assert rules.obstacle(study) == "baseline"
    verdict, use, held = sentences_of(study)
    assert verdict == f"This study cannot tell whether BH helps: the baseline `{BASELINE}` has no results."
    assert use == "No configuration can be recommended for any aim."
    assert "57 experiments on wikitext, lambada and hellaswag" in held
    text = report(study, images)
    assert "### What to use" not in text
    assert f"The baseline `{BASELINE}` has no results." in section(text, "### Missing, skipped and shortened")
    assert "### All configurations" in text


def row_of(table, *names):
    """The cells of the row that begins so (a configuration's name, and more), by the table's headings."""
    lines = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("|")]

    def begins_so(cells):
        named = [re.search("<br>`([^`]+)`", cell) for cell in cells]
        plain = [name[1] if name else cell.strip("`") for name, cell in zip(named, cells, strict=True)]
        return plain[: len(names)] == list(names)

    ((first, cells),) = [(_table_above(lines, i), line) for i, line in enumerate(lines) if begins_so(line)]
    return dict(zip(first, cells, strict=True))


def _table_above(lines, i):
    """The headings of the table that holds line i: those before the nearest rule."""
    return lines[max(j for j in range(i) if set(lines[j]) == {"---"}) - 1]


def test_every_quality_value_stands_with_its_standard_error(images):
    study = study_of(LOSES, documents=True)
    study.configurations["target_perplexity"], study.configurations["target_perplexity_stderr"] = 9.5, 0.25
    text = report(study, images)
    cells = row_of(folded(text, "Every perplexity"), "8experts_bh_a030")
    del cells["configuration"]
    # Of whole articles the word perplexity is what is tested.
    assert cells == {
        "perplexity": "15.00 ± 0.40",
        "token perplexity": "14.00 ± 0.50",
        "word perplexity": "28.00 ± 1.20 ▼",
        "byte perplexity": "1.700 ± 0.012",
        "bits per byte": "0.766 ± 0.010",
        "target perplexity": "9.50 ± 0.25",
    }
    cells = row_of(section(text, "### All configurations"), "8experts_bh_a030")
    assert cells["word perplexity"] == "28.00 ± 1.20 ▼" and "perplexity" not in cells
    assert cells["lambada accuracy"] == "0.640 ± 0.027 ▼"
    assert cells["hellaswag accuracy"] == "0.570 ± 0.027 ▼"
    assert cells["mean accuracy"] == "0.605 ± 0.027"
    baseline = row_of(section(text, "### All configurations"), BASELINE)
    assert not any(mark in cell for cell in baseline.values() for mark in "▲▼○")
    rows_alone = folded(report(study_of(LOSES), images), "Every perplexity")
    assert "token perplexity" in rows_alone and "word perplexity" not in rows_alone


def test_the_best_value_of_a_column_is_bold_where_there_is_a_better(images):
    study = study_of(LOSES)
    text = report(study, images)
    baseline = row_of(section(text, "### All configurations"), BASELINE)
    assert (
        baseline["token perplexity"] == "**11.00 ± 0.50**"
        and baseline["lambada accuracy"] == "**0.840 ± 0.027**"
    )
    assert baseline["tokens/s"] == "33,333"
    fewest = row_of(section(text, "### All configurations"), "8experts_bh_a030")
    assert fewest["experts"] == "**4.08**" and fewest["tokens/s"].startswith("**")
    # A range is neither good nor bad, and all are equally stable.
    assert "**" not in folded(text, "Expert counts")
    assert "0.9990" in folded(text, "Experts and layers") and "**0.9990**" not in text


@pytest.mark.parametrize("effect, mark", [(WINS, " ▲"), (LOSES, " ▼"), (TIES, " ○")])
def test_the_tables_of_tests_mark_what_differs_after_holm(images, effect, mark):
    text = report(study_of(effect), images)
    difference = words.number(effect[0], "+z.2f")
    cells = row_of(folded(text, "Tests on wikitext"), "16experts_bh_a040")
    assert cells["difference"] == difference + mark
    assert cells["value"] == f"{11 + effect[0]:.2f} ± 0.50"
    cells = row_of(folded(text, "Tests on lambada"), "16experts_bh_a040")
    assert cells["difference"] == words.number(effect[1], "+z.3f") + mark


def test_tests_that_agree_stand_side_by_side_without_a_remark(images):
    text = report(study_of((3.0, -0.2, 0.004)), images)
    wikitext, lambada = (folded(text, f"Tests on {d}") for d in ("wikitext", "lambada"))
    cells = row_of(wikitext, "16experts_bh_a040")
    assert [cells[f"{name}p (Holm)"] for name in ("", "Wilcoxon ", "bootstrap ")] == ["0.004"] * 3
    cells = row_of(lambada, "16experts_bh_a040")
    assert cells["bootstrap p (Holm)"] == cells["p (Holm)"] == "0.004"
    assert "Wilcoxon p (Holm)" not in cells
    assert "disagree" not in text


def test_tests_that_disagree_are_named_with_their_configurations(images):
    study = study_of(TIES)
    table = study.comparisons
    rows = (table["metric"] == "token_perplexity") & table["config"].isin(
        ["8experts_bh_a030", "8experts_bh_a040"]
    )
    table.loc[rows, ["p_wilcoxon_holm", "p_bootstrap_holm"]] = 0.049
    rows = (table["metric"] == "token_perplexity") & (table["config"] == "64experts_bh_a060")
    table.loc[rows, "p_bootstrap_holm"] = 0.01
    rows = (table["metric"] == "lambada_accuracy") & (table["config"] == "8experts_bh_a050")
    table.loc[rows, "p_holm"] = 0.01
    # Beyond the level, and uncorrected: nothing to remark.
    table.loc[table["config"] == "8experts_bh_a060", ["p_wilcoxon_holm", "p_value"]] = 0.05, 0.001
    text = report(study, images)
    assert (
        "After Holm's correction the tests disagree at the 5 % level: the difference is significant by "
        "Wilcoxon's test and the bootstrap, but not by the linearised paired t-test, for `8experts_bh_a030`, "
        "`8experts_bh_a040`; by the bootstrap, but not by the linearised paired t-test and Wilcoxon's test, "
        "for `64experts_bh_a060`."
    ) in folded(text, "Tests on wikitext")
    assert "significant by McNemar's exact test, but not by the bootstrap, for `8experts_bh_a050`." in folded(
        text, "Tests on lambada"
    )
    assert "disagree" not in folded(text, "Tests on hellaswag")


def test_a_data_set_without_a_score_has_its_tests_and_no_say(images):
    text = report(study_of(TIES, datasets=("wikitext", "prompts")), images)
    tests = folded(text, "Tests on prompts")
    assert "Score: loss; baseline 2.400 ± 0.027; paired t-test" in tests
    assert row_of(tests, "8experts_bh_a030")["difference"] == "+0.500 ▼"
    assert "Left out of the answers (no perplexity or accuracy): prompts." in text
    assert "prompts" not in section(text, "### What to use") + section(text, "### What it costs")
    assert "prompts" not in section(text, "### Where BH does not help")
    cells = row_of(section(text, "### All configurations"), "8experts_bh_a030")
    assert cells["token perplexity"] == "11.05 ± 0.50 ○"
    assert "Left out of the answers" not in report(study_of(TIES), images)


def test_losses_alone_recommend_nothing(images):
    study = results_tables.study(datasets=("prompts",))
    assert rules.obstacle(study) == "scores"
    assert "no data set of this study has a perplexity or an accuracy" in sentences_of(study)[0]
    text = report(study, images)
    assert "### What to use" not in text
    assert "Score: loss" in folded(text, "Tests on prompts")


def test_the_baseline_alone_recommends_nothing(images):
    study = results_tables.study(max_ks=(), ks=(8,))
    assert rules.obstacle(study) == "comparisons"
    assert f"no configuration was compared with the baseline `{BASELINE}`" in sentences_of(study)[0]
    assert "### What to use" not in report(study, images)


def guessing(perplexity=11.0, **accuracies):
    """A study whose baseline has this token perplexity and these accuracies, and its summaries."""
    study = study_of(WINS)
    experiments, is_baseline = study.experiments.copy(), study.experiments["config"] == BASELINE
    experiments.loc[is_baseline & (experiments["dataset"] == "wikitext"), "token_perplexity"] = perplexity
    for dataset, accuracy in accuracies.items():
        rows = is_baseline & (experiments["dataset"] == dataset)
        experiments.loc[rows, ["avg_task_accuracy", "avg_task_accuracy_stderr"]] = accuracy, 0.03
    tables_ = experiments, study.configurations, study.layers, study.comparisons
    summaries = [summary(dataset) for dataset in study.datasets]
    for one in summaries:
        one["provenance"]["model"]["shapes"] = {"vocab_size": 1000}
    return make_study(*tables_, BASELINE), summaries


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (
            {"perplexity": 1000.0},
            "its perplexity on wikitext is 1,000, and that of a guess among all tokens of the vocabulary is "
            "1,000",
        ),
        (
            {"lambada": 0.05, "hellaswag": 0.30},
            "no accuracy is more than 2 standard errors above chance: 0.050 ± 0.030 on lambada (chance is 0) "
            "and 0.300 ± 0.030 on hellaswag (chance is 0.25)",
        ),
    ],
)  # fmt: skip
def test_a_model_that_guesses_gets_a_warning_instead_of_advice(images, model, sentence):
    study, summaries = guessing(**model)
    first = f"The model does no better than guessing: with the baseline `{BASELINE}` {sentence}."
    text = report(study, images, summaries)
    assert (
        section(text, "## Answers").strip().startswith(f"1. {first}\n2. No configuration can be recommended")
    )
    assert "### What to use" not in text
    assert "### The tests behind these answers" not in text
    plain = plain_main_sentences(study, SETTINGS, summaries).splitlines()
    assert plain[0] == words.plain(first)
    assert len(plain) == 3


@pytest.mark.parametrize(
    "model",
    [
        {"perplexity": 999.0},
        {"lambada": 0.05},  # hellaswag is far above chance
        {"hellaswag": 0.25},  # lambada is
        {"lambada": 0.05, "hellaswag": 0.32},
    ],
)
def test_a_model_above_chance_gets_advice(images, model):
    study, summaries = guessing(**model)
    text = report(study, images, summaries)
    assert "guessing" not in text
    assert "### What to use" in text
    assert plain_main_sentences(study, SETTINGS, summaries) == plain_main_sentences(study, SETTINGS)


STUDIES = {
    "full": lambda: results_tables.study(),
    "with prompts": lambda: results_tables.study(datasets=("wikitext", "hellaswag", "prompts")),
    "prompts alone": lambda: results_tables.study(datasets=("prompts",)),
    "lambada alone": lambda: results_tables.study(datasets=("lambada",)),
    "wikitext alone": lambda: results_tables.study(datasets=("wikitext",)),
    "one configuration": lambda: results_tables.study(max_ks=(8,), alphas=(0.3,), ks=(8,)),
    "top-k alone": lambda: results_tables.study(max_ks=()),
    "baseline alone": lambda: results_tables.study(max_ks=(), ks=(8,)),
}


@pytest.mark.parametrize("name", STUDIES)
def test_a_value_that_does_not_exist_is_a_dash(images, name):
    text = report(STUDIES[name](), images)
    assert not re.search(r"\b(nan|None|inf)\b", text.split("## How to reproduce")[0])
    assert row_of(folded(text, "Expert counts"), BASELINE)["entropy (nats)"] == "–"  # of a constant count


def test_gaps_and_differences_between_experiments_are_stated(images):
    study = results_tables.study()
    summaries = [
        summary("wikitext", truncated_samples=4, skipped_rows=7),
        summary("lambada", total_samples=150, device="NVIDIA H200"),
        summary("hellaswag"),
    ]
    text = report(study, images, summaries)
    gaps = section(text, "### Missing, skipped and shortened")
    assert "wikitext: truncated 4 samples to the maximum length." in gaps
    assert "wikitext: skipped 7 empty rows." in gaps
    assert "lambada: scored 150 of 200 requested samples" in gaps
    assert "hellaswag" not in gaps
    assert "Different between experiments: device." in section(text, "## Settings and versions")


def test_fewer_samples_than_asked_for_in_some_configurations_are_stated(images):
    summaries = [summary("wikitext"), summary("wikitext", total_samples=62), summary("lambada")]
    gaps = section(report(results_tables.study(), images, summaries), "### Missing, skipped and shortened")
    assert "wikitext: scored 62 of 200 requested samples" in gaps
    assert "lambada" not in gaps
    whole = section(report(results_tables.study(), images), "### Missing, skipped and shortened")
    assert "every requested sample" in whole


def test_the_commits_of_what_was_read_are_told(images):
    hub = {"source": "owner/data", "commit": "c1"}
    settings = [
        {"dataset": hub, "null_distribution": None},
        {"dataset": hub, "null_distribution": {"calibration": {"source": "owner/text", "commit": "c2"}}},
        {"dataset": {"source": "lambada.jsonl"}, "null_distribution": {"calibration": {"source": "a.jsonl"}}},
    ]
    summaries = [summary(dataset) for dataset in ("wikitext", "wikitext", "lambada")]
    for one, own in zip(summaries, settings, strict=True):
        one["provenance"]["settings"] = own
    text = section(report(results_tables.study(), images, summaries), "## Settings and versions")
    rows = [re.split(r" *\| *", line)[1:3] for line in text.splitlines() if line.startswith("|")]
    assert ["data set wikitext", "`owner/data@c1`"] in rows and [
        "calibration text",
        "`owner/text@c2`",
    ] in rows
    assert "data set lambada" not in text and "Different between experiments" not in text
    summaries[1]["provenance"]["settings"] = settings[1] | {"dataset": hub | {"commit": "c3"}}
    text = section(report(results_tables.study(), images, summaries), "## Settings and versions")
    assert "Different between experiments: data set wikitext." in text


def test_a_data_set_that_is_small_by_nature_is_no_gap(images):
    articles = summary("wikitext", total_samples=62)
    articles["provenance"]["settings"] = {"dataset": {"protocol": "documents"}}
    rows = summary("wikitext", total_samples=62)
    rows["provenance"]["settings"] = {"dataset": {"protocol": "rows"}}
    prompts = summary("prompts", total_samples=12)
    study = results_tables.study(datasets=("wikitext", "prompts"))
    gaps = section(report(study, images, [articles, prompts]), "### Missing, skipped and shortened")
    assert "requested samples" not in gaps
    gaps = section(report(study, images, [rows, prompts]), "### Missing, skipped and shortened")
    assert "wikitext: scored 62 of 200 requested samples" in gaps and "prompts" not in gaps


def test_a_perplexity_too_large_for_a_number_is_a_dash_and_said(images):
    study = study_of(TIES, documents=True)
    lost = ["word_perplexity", "word_perplexity_stderr"]
    for table in (study.experiments, study.configurations):
        table.loc[table["config"] == "8experts_bh_a030", lost] = np.nan
        table.loc[table["config"] == "8experts_bh_a040", lost] = 3.4e306
    rows = (study.comparisons["config"] == "8experts_bh_a030") & (
        study.comparisons["metric"] == "word_perplexity"
    )
    study = make_study(
        study.experiments, study.configurations, study.layers, study.comparisons[~rows], BASELINE
    )
    text = report(study, images)
    cells = row_of(folded(text, "Every perplexity"), "8experts_bh_a030")
    assert cells["word perplexity"] == "–"
    cells = row_of(folded(text, "Every perplexity"), "8experts_bh_a040")
    assert cells["word perplexity"].startswith("3.40e+306 ±")
    assert (
        "wikitext: word perplexity is too large for a float (over 1e308; “–” in the tables) for "
        "`8experts_bh_a030`."
    ) in section(text, "### Missing, skipped and shortened")
    assert decision_of(study).outcomes["untested"] == ["8experts_bh_a030"]
    # Where the baseline's does not exist, the mean of sample losses is the score again.
    for table in (study.experiments, study.configurations):
        table.loc[table["config"] == BASELINE, lost] = np.nan
    again = make_study(study.experiments, study.configurations, study.layers, study.comparisons, BASELINE)
    assert again.scores["wikitext"] == "token_perplexity"


def test_whole_articles_are_judged_by_their_word_perplexity(images):
    study = study_of(LOSES, documents=True)
    comparison = study.comparison("8experts_bh_a030", "wikitext")
    assert comparison["metric"] == "word_perplexity"
    assert MARGINS.of(comparison) == pytest.approx(0.02 * 22)
    assert "changes wikitext word perplexity by +13.6 %" in sentences_of(study)[2]
    source = SETTINGS["datasets"]["wikitext"]["source"]
    settings = load_study_settings(datasets={"wikitext": {"source": source, "protocol": "documents"}})
    text = report(study, images, settings=settings)
    tests = folded(text, "Tests on wikitext")
    assert "Score: word perplexity; baseline 22.00" in tests and "linearised paired t-test" in tests
    assert "linearised ratio of sums" in section(text, "### Statistics")
    assert "whole articles" in section(text, "### Scores")
    by_token = section(report(study_of(LOSES), images), "### Statistics")
    assert "per token as a linearised ratio of sums" in by_token


def test_nothing_is_proved_by_few_samples_or_by_an_interval_without_width():
    few = study_of(TIES, half_width=0.005)
    few.comparisons["samples"] = 29
    same = study_of((0.0, 0.0, 1.0), half_width=1e-300)
    same.comparisons["ci_low"] = same.comparisons["ci_high"] = 0.0
    unknown = study_of(TIES, half_width=0.005)
    unknown.comparisons["ci_high"] = unknown.comparisons["ci_low"] = np.nan
    for one in (few, same, unknown):
        decision = decision_of(one)
        assert decision.verdict == "open" and decision.compute.reason == rules.UNPROVEN


@pytest.mark.parametrize("samples, strategies", [(6, ("topk", "bh")), (9, ("bh",)), (10, None)])
def test_tests_that_cannot_reject_are_said_to(images, samples, strategies):
    # Three top-k and 16 BH configurations: 3 · 2⁻⁵ and 16 · 2⁻⁸ are above the level.
    study = study_of(TIES)
    study.comparisons.loc[study.comparisons["dataset"] == "lambada", "samples"] = samples
    expected = {"lambada": (strategies, samples)} if strategies else {}
    assert rules.powerless(study) == expected
    text = report(study, images)
    limits = section(text, "### Uncertainty")
    assert ("| lambada accuracy |" in limits) == (not expected)
    assert "| wikitext token perplexity | ±0.20 | 0.22 |" in limits
    sentence = f"**Too few samples for any significant difference** on lambada ({samples} samples; "
    assert (sentence in section(text, "## Answers")) == bool(expected)
    if strategies == ("bh",):
        assert f"{sentence}BH configurations)" in text


def test_where_no_test_can_reject_nothing_is_said_of_bh():
    study = study_of(TIES, datasets=("lambada", "hellaswag"))
    study.comparisons["samples"] = 6
    assert decision_of(study).verdict == "powerless"
    verdict = sentences_of(study)[0]
    assert verdict.startswith("Nothing can be said about BH")
    assert "with 6 samples per data set, no difference can be significant" in verdict


def test_a_rank_test_that_cannot_reject_is_said_to(images):
    study = study_of(TIES)
    sentence = "With so few samples, Wilcoxon's test cannot be significant"
    assert sentence not in report(study, images)
    study = study_of(TIES)
    study.comparisons.loc[study.comparisons["dataset"] == "wikitext", "samples"] = 5
    text = report(study, images)
    assert sentence in folded(text, "Tests on wikitext")
    assert rules.powerless(study) == {}  # the t-test, which decides, can


def test_an_interval_that_does_not_exist_is_a_dash():
    row = {"ci_low": np.nan, "ci_high": np.nan}
    assert words.interval(row, "+z.2f") == "–"
    assert words.interval(row | {"ci_low": -1.5}, "+z.2f") == "−1.50 to –"
    assert words.interval({"ci_low": -1.5, "ci_high": 2.25}, "+z.2f") == "−1.50 to +2.25"


def test_one_is_singular_and_a_data_set_keeps_its_name(images):
    study = results_tables.study(max_ks=(8,), alphas=(0.3,), ks=(8,), datasets=("wikitext", "arc_challenge"))
    text = report(study, images, [summary("wikitext", total_samples=1), summary("arc_challenge")])
    assert "2 top-k" not in text
    assert "1 top-k configuration and 1 BH configuration on wikitext (1 sample), " in text
    assert "arc_challenge accuracy" in section(text, "### All configurations")
    assert "arc challenge" not in text
    assert "4 experiments:" in text


def test_a_perplexity_that_grows_tenfold_is_a_multiple_not_a_percentage(images):
    row = {"metric": "token_perplexity", "baseline_value": 10.0, "difference": 1690.0}
    row |= {"ci_low": 1500.0, "ci_high": 1880.0}
    assert words.change(row) == ("170 times", "151 to 189 times")
    assert words.change(row | {"difference": 95.0}) == ("10.5 times", "151.0 to 189.0 times")
    assert words.change(row | {"difference": 89.0})[0] == "+890.0 %"
    assert words.change(row | {"ci_low": np.nan, "ci_high": np.nan}) == ("170 times", "–")
    study = study_of((1859.0, -0.2, 0.001))
    assert (
        "changes wikitext token perplexity to 170 times the baseline's (95 % interval"
        in sentences_of(study)[2]
    )
    costs = section(report(study, images), "### What it costs")
    assert row_of(costs, "8experts_bh_a030")["wikitext token perplexity"].startswith("170 times ▼<br>(")


def setting_of(study, images):
    """The paragraph on what was run."""
    (found,) = [part for part in report(study, images).split("\n\n") if part.startswith("Model ")]
    return found


def test_clusters_are_told_where_samples_are_not_independent(images):
    study = study_of(TIES)
    samples = "wikitext (200 samples), lambada (200 samples) and hellaswag (200 samples)"
    assert samples.replace(" and", ",") in setting_of(study, images)
    clusters = study.comparisons["dataset"].map({"wikitext": 40, "lambada": 1, "hellaswag": 200})
    said = setting_of(replace(study, comparisons=study.comparisons.assign(clusters=clusters)), images)
    assert "wikitext (200 samples in 40 clusters), lambada (200 samples in 1 cluster), hellaswag (200" in said


def test_of_two_perplexities_the_score_is_named(images):
    said = setting_of(study_of(TIES), images)
    assert (
        "The score of wikitext is token perplexity" in said and "`perplexity`, the metric of panel 1" in said
    )
    assert "is token perplexity" not in setting_of(study_of(TIES, documents=True), images)
    assert "is token perplexity" not in setting_of(study_of(TIES, datasets=("lambada",)), images)


def test_configurations_that_ran_the_same_are_named(images):
    study = study_of(TIES)
    assert "ran exactly what" not in setting_of(study, images)
    first = study.experiments["config"] == "8experts_bh_a030"
    for config in ("16experts_bh_a030", "32experts_bh_a030"):
        same = study.experiments["config"] == config
        for column in set(study.experiments) - {"config", "k_or_max_k"}:
            study.experiments.loc[same, column] = study.experiments.loc[first, column].to_numpy()
    said = setting_of(replace(study), images)
    assert (
        "2 configurations ran exactly what another of the study ran (`16experts_bh_a030` and "
        "`32experts_bh_a030` as `8experts_bh_a030`)"
    ) in said


def test_a_models_note_stands_above_the_answers(images):
    study = study_of(TIES)
    panels = [images / f"{panel}.png" for panel in PANELS]
    text = write_markdown(
        study, [summary()], SETTINGS, images / "page.png", panels, images.parent, model_note="it is small"
    )
    assert text.index("\n\n**About the model.** It is small\n\n") < text.index("## Answers")
    assert "About the model" not in report(study, images)


def test_the_two_figures_for_flops_are_told_apart(images):
    text = folded(report(study_of(TIES), images), "Compute and speed")
    assert "FLOPs saved, f = 0.6 (%)" in text and "FLOPs saved, exact (%)" in text
    assert "“f = 0.6” takes the cost of k among E experts as 0.6 · k/E + 0.4 in every model" in text


def test_counts_are_written_as_a_reader_would():
    assert [words.of(*counts) for counts in ((16, 16), (2, 2), (3, 16), (1, 1))] == [
        "all 16",
        "both",
        "3 of 16",
        "1 of 1",
    ]
    assert words.of(1, 1, "comparison") == "the only comparison"
    assert words.of(2, 2, "comparison") == "both comparisons"
    assert words.of(1, 3, "comparison") == "1 of 3 comparisons"


def test_names_cannot_break_the_table():
    row = words.table(["what", "value"], [("model", words.code("a|b`c`"))]).splitlines()[-1]
    assert row.count("|") == 3
    assert row.count("`") == 2


def test_printed_settings_are_a_config_file_of_the_same_study(images):
    text = report(results_tables.study(), images)
    assert "snakemake --configfile study.yaml" in section(text, "## How to reproduce")
    printed = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
    assert printed == plain_settings(SETTINGS)
    again = load_settings(printed, base_dir=REPOSITORY)
    del again["configurations"]
    assert again == SETTINGS


def test_the_margins_are_settings(images):
    settings = load_study_settings(report={"perplexity_margin": 0.05, "accuracy_margin": 0.01})
    study = study_of(TIES, half_width=0.005)
    text = report(study, images, settings=settings)
    assert "5 % of perplexity or 0.01 of accuracy" in text.split("### What to use")[0]
    assert "5 % of the baseline's perplexity or 0.01 of accuracy" in section(text, "### Statistics")
    assert "2 % of" not in text


def test_the_summary_is_the_main_sentences_as_plain_text():
    study = study_of(WINS)
    lines = plain_main_sentences(study, SETTINGS).splitlines()
    assert len(lines) == 4
    assert lines == [sentence.replace("`", "") for sentence in main_sentences(study, MARGINS)]
    assert not set("`*{}") & set("".join(lines).replace("controls: {of: [all]}", ""))


def test_the_method_defines_every_metric_with_its_unit(images):
    text = report(results_tables.study(), images)
    for metric in METRICS:
        cells = row_of(section(text, "### The 16 metrics"), metric.name)
        assert cells["category"] == metric.category and cells["definition"] == metric.description
        assert cells["unit"] == (metric.unit or "–")
        assert cells["better"] == ("–" if metric.better == "none" else metric.better)


def test_the_method_says_how_this_run_was_routed(images):
    usual = section(report(results_tables.study(), images), "### Routing")
    assert "gaussian kernel, Silverman's bandwidth" in usual and "at least 1 and at most max_k" in usual
    assert "left as the model computes them" in usual
    changed = load_study_settings(
        routing={"min_k": 2, "weights": "renormalized", "temperature": 0.5},
        null_distribution={"trim": 4, "bandwidth": 0.2, "kernel": "tophat"},
    )
    text = section(report(results_tables.study(), images, settings=changed), "### Routing")
    assert "tophat kernel, bandwidth 0.2" in text and "4 largest and 4 smallest" in text
    assert "at least 2" in text and "sum to 1 per token" in text and "logits / 0.5" in text


class Links(HTMLParser):
    """Collects what a page would load, and its headings."""

    def __init__(self):
        super().__init__()
        self.sources, self.links, self.ids = [], [], []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        assert tag not in ("script", "link", "iframe")
        assert tag != "img" or attributes["alt"]
        self.sources += [attributes["src"]] if "src" in attributes else []
        self.links += [attributes["href"]] if "href" in attributes else []
        self.ids += [attributes["id"]] if "id" in attributes else []


def test_markdown_links_its_images_relatively(images):
    text = report(results_tables.study(), images)
    links = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text)
    panels = [f"visualizations/{panel}.png" for panel in PANELS]
    assert links == [panels[4], *panels]  # that which answers stands on the first screen too
    assert "All nine on one page: [page.png](visualizations/page.png)" in text


def test_html_needs_nothing_but_itself(images):
    page = to_html(report(results_tables.study(), images), images.parent)
    parser = Links()
    parser.feed(page)
    assert len(parser.sources) == 10
    assert all(source.startswith("data:image/png;base64,iVBOR") for source in parser.sources)
    beside = [link for link in parser.links if not link.startswith("#")]
    assert beside == ["visualizations/page.png"]
    assert all(link[1:] in parser.ids for link in parser.links if link not in beside)
    assert "answers" in parser.ids
    assert page.count("<table>") == page.count("</table>") == page.count("<div aria-label=") >= 9
    assert "url(" not in page and "@import" not in page


def test_only_sections_that_follow_each_other_stand_in_columns(images):
    def section(name, *more):
        return "\n\n".join([f"### {name}", "A text.", *more, "![a picture](visualizations/page.png)"])

    text = "\n\n".join(
        [
            "# T",
            section("alone"),
            "## Two",
            section("b"),
            section("c"),
            "After.",
            section("d", "| x |\n| - |\n| 1 |"),
        ]
    )
    page = to_html(text, images.parent)
    (columns,) = re.findall(r'<div class="panels">(.*?)</div>', page, re.DOTALL)
    assert re.findall(r"<h3[^>]*>(\w+)", columns) == ["b", "c"]
    body = page.split("<main>")[1]
    assert re.findall(r"<h[23][^>]*>(\w+)", body) == ["alone", "Two", "b", "c", "d"]


def test_html_opens_with_answer_picture_and_costs(images):
    page = to_html(report(study_of(WINS), images), images.parent)
    first = page.split('<div class="first">')[1].split("</ol>\n</div>")[0].split('class="reasons"')[0]
    places = [first.index(part) for part in ('<ol class="answer">', 'class="picture"', "What it costs")]
    assert places == sorted(places)
    assert 'start="2"' in page and page.count('<details class="picture">') == page.count("<img")
    # A model that guesses has no advice, so no picture of one.
    study, summaries = guessing(perplexity=1000.0)
    warned = to_html(report(study, images, summaries), images.parent)
    assert "The answer as a picture" not in warned


def test_html_sets_apart_what_markdown_cannot(images):
    page = to_html(report(study_of(WINS), images), images.parent)
    rows = re.findall(r'<tr class="baseline">\s*<td>(.*?)</td>', page)
    assert len(rows) >= 6 and all(BASELINE in row for row in rows)
    panels = page.split('<div class="panels">')[1].split("</div>")[0]
    assert panels.count("<section>") == panels.count("<img") == 9
    assert '−1.00 <span class="better">▲</span></td>' in page
    assert '<td class="number">10.00 ± 0.50</td>' in page
    # Folded parts are tables, not Markdown left as it was.
    parts = re.findall(r"<details>(.*?)</details>", page, re.DOTALL)
    assert len(parts) == 9 and not any("| ---" in part for part in parts)
    assert "baseline: 8experts_topk_baseline" in parts[-1]


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (apt-get install chromium)")
@pytest.mark.parametrize("width", [1300, 700])
def test_a_browser_shows_it_without_complaint(images, tmp_path, width):
    """No console message, every image decoded, nothing wider than the window."""
    page = to_html(report(results_tables.study(), images), images.parent)
    measure = (
        "<script>addEventListener('load', () => { const e = document.documentElement; document.title ="
        " [e.scrollWidth - e.clientWidth, ...[...document.images].map(i => i.naturalWidth > 0)].join(' ')"
        " })</script>"
    )
    # The page itself forbids scripts: a copy without that says how it is laid out.
    copy = re.sub(r"<meta http-equiv.*?>", measure, page, flags=re.DOTALL)
    browser = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path / 'profile'}",
    ]
    browser += [f"--window-size={width},900", "--enable-logging=stderr", "--dump-dom"]
    output = {}
    for name, text in (("page", page), ("copy", copy)):
        (tmp_path / f"{name}.html").write_text(text, encoding="utf-8")
        done = subprocess.run(
            [*browser, (tmp_path / f"{name}.html").as_uri()], capture_output=True, text=True, timeout=300
        )
        output[name] = done.stdout
        assert "CONSOLE" not in done.stderr
    assert "Adaptive expert routing" in output["page"]
    title = re.search("<title>(.*?)</title>", output["copy"])[1]
    assert title == " ".join(["0", *["true"] * 10])


# The scripts, as Snakemake runs them


class Files(list):
    """Snakemake's list of files, some of which have names."""

    def __init__(self, *files, **named):
        super().__init__(files)
        for name, value in named.items():
            setattr(self, name, value)
            self += value if isinstance(value, list) else [value]


@pytest.fixture
def run_script(monkeypatch):
    """Run a rule's script in this process; the terminate handler that it sets is put back."""
    handler = signal.getsignal(signal.SIGTERM)

    def run(name, **job):
        script = REPOSITORY / "workflow_scripts" / f"{name}.py"
        snakemake = SimpleNamespace(threads=1, **job)
        runpy.run_path(str(script), init_globals={"snakemake": snakemake})

    yield run
    signal.signal(signal.SIGTERM, handler)


def test_from_logs_to_figure_and_report(tmp_path, run_script):
    study = synthetic.write_study(tmp_path, max_ks=(8, 16), alphas=(0.3, 0.6), num_samples=8)
    summaries = [read_json(path) for path in study.summaries]
    metrics = []
    for one, path in zip(summaries, study.tensors, strict=True):
        with TensorFile(path) as tensors:
            metrics.append(compute_metrics(one, tensors))
    frames = {
        "experiments": tables.experiments_table(metrics),
        "configurations": tables.configurations_table(metrics),
        "layers": tables.layers_table(metrics),
        "comparisons": tables.comparisons_table(summaries, study.baseline),
    }
    for name, frame in frames.items():
        frame.to_csv(tmp_path / f"{name}.csv", index=False)
    csv = {name: str(tmp_path / f"{name}.csv") for name in frames}
    images = tmp_path / "visualizations"
    panels = {s: [str(images / f"panel_{panel}.{s}") for panel in PANELS] for s in ("png", "svg")}
    page = {f"figure_{s}": str(images / f"page.{s}") for s in ("png", "svg")}
    params = SimpleNamespace(
        baseline=study.baseline, settings=SETTINGS, atlas=str(tmp_path / "routing_atlas.html")
    )

    output = Files(*panels["svg"], **page, panels=panels["png"])
    run_script("plot_panels", input=Files(**csv), output=output, params=params, log=[tmp_path / "p.log"])
    assert sorted(path.name for path in images.iterdir()) == sorted(Path(path).name for path in output)

    inputs = Files(
        **csv,
        summaries=list(map(str, study.summaries)),
        figure=page["figure_png"],
        panels=panels["png"],
    )
    output = Files(**{name: str(tmp_path / f"report.{name}") for name in ("markdown", "html", "summary")})
    run_script("write_report", input=inputs, output=output, params=params, log=[tmp_path / "r.log"])
    text = Path(output.markdown).read_text()
    links = re.findall(r"\(routing_atlas.html#config=(\w+)&dataset=(\w+)\)", section(text, "## Panels"))
    assert [dataset for _, dataset in links] == ["wikitext", "lambada", "hellaswag"]
    (linked,) = {config for config, _ in links}
    assert linked == featured(read_study(**csv, baseline=study.baseline), MARGINS)
    costs = section(text, "### What it costs")
    lowest = frames["configurations"].set_index("config")["token_perplexity"].idxmin()
    assert row_of(costs, lowest)["configuration"].startswith(f"{words.label(lowest)}<br>`{lowest}`<br>")
    lines = Path(output.summary).read_text().splitlines()
    assert len(lines) == 4 and all(f"{i}. " in text for i in (1, 2, 3, 4))
    parser = Links()
    parser.feed(Path(output.html).read_text())
    assert len(parser.sources) == 10


def test_an_empty_table_ends_the_job_with_one_sentence(tmp_path, run_script, capsys):
    csv = {}
    for name, table in results_tables.tables().items():
        csv[name] = str(tmp_path / f"{name}.csv")
        (table if name != "experiments" else pd.DataFrame(columns=table.columns)).to_csv(
            csv[name], index=False
        )
    output = Files(figure_png=str(tmp_path / "f.png"), figure_svg=str(tmp_path / "f.svg"))
    params = SimpleNamespace(baseline=BASELINE)
    with pytest.raises(SystemExit) as ended:
        run_script("plot_panels", input=Files(**csv), output=output, params=params, log=[tmp_path / "p.log"])
    assert ended.value.code == 1
    assert capsys.readouterr().err == "error: the table of experiments is empty: there is nothing to show\n"
    assert not Path(output.figure_png).exists()
