"""The report: its rules on studies where BH wins, loses, ties or is missing, and its files."""

import re
import runpy
import signal
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import results_tables
import synthetic
import yaml
from adaptive_routing import tables
from adaptive_routing.files import read_json
from adaptive_routing.metrics import compute_metrics
from adaptive_routing.panels import PANELS
from adaptive_routing.report import recommendations as rules
from adaptive_routing.report import words, write_markdown
from adaptive_routing.report.html import to_html
from adaptive_routing.report.provenance import plain_settings
from adaptive_routing.settings import load_settings
from adaptive_routing.study import make_study
from adaptive_routing.tensor_files import TensorFile
from matplotlib.figure import Figure

REPOSITORY = Path(__file__).parents[1]
BASELINE = results_tables.BASELINE


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
    return write_markdown(study, summaries, settings or {}, images / "page.png", panels, images.parent)


def section(text, heading):
    return text.split(f"\n{heading}\n")[1].split("\n#")[0]


# The rules


def test_where_bh_wins_it_is_chosen_for_every_aim():
    study = study_of(WINS)
    assert rules.best_quality(study, "perplexity").better_on == ("wikitext",)
    assert rules.best_quality(study, "avg_task_accuracy").better_on == ("lambada", "hellaswag")
    assert set(rules.not_worse(study)) == set(study.bh["config"]) == set(rules.within_margin(study))
    fewest = study.bh.loc[study.bh["avg_experts"].idxmin(), "config"]
    assert rules.least_compute(study, rules.not_worse(study)) == fewest
    fastest = study.bh.loc[study.bh["tokens_per_second"].idxmax(), "config"]
    assert rules.fastest(study, rules.not_worse(study)) == fastest
    assert set(rules.bh_outcomes(study)["better"]) == set(study.bh["config"])


def test_where_bh_loses_nothing_is_chosen():
    study = study_of(LOSES)
    assert rules.best_quality(study, "perplexity").config == BASELINE
    assert rules.not_worse(study) == []
    assert rules.least_compute(study, []) is None
    assert rules.fastest(study, []) is None
    assert set(rules.bh_outcomes(study)["worse"]) == set(study.bh["config"])


def test_a_tie_is_no_loss_and_no_proof_either():
    wide = study_of(TIES, half_width=0.5)
    assert set(rules.not_worse(wide)) == set(wide.bh["config"])
    assert rules.within_margin(wide) == []
    narrow = study_of(TIES, half_width=0.005)
    assert set(rules.within_margin(narrow)) == set(narrow.bh["config"])
    assert rules.best_quality(narrow, "perplexity").config == BASELINE


def test_a_choice_must_save_something():
    study = study_of(TIES)
    more = study.bh.loc[study.bh["avg_experts"] > 8, "config"].tolist()
    slower = study.bh.loc[study.bh["tokens_per_second"] < study.baseline_value("tokens_per_second"), "config"]
    assert more
    assert rules.least_compute(study, more) is None
    assert rules.fastest(study, slower.tolist()) is None


def test_one_lost_data_set_excludes_a_configuration():
    def effect(config, dataset):
        lost = config == "8experts_bh_a030" and dataset == "hellaswag"
        return (-0.3, 0.02, 0.001) if lost else effects(TIES)(config, dataset)

    study = results_tables.study(effect=effect)
    assert "8experts_bh_a030" not in rules.not_worse(study)
    assert "8experts_bh_a040" in rules.not_worse(study)


def test_an_untested_data_set_excludes_a_configuration():
    study = study_of(WINS)
    rows = study.comparisons
    kept = rows[(rows["config"] != "8experts_bh_a030") | (rows["dataset"] != "lambada")]
    study = make_study(study.experiments, study.configurations, study.layers, kept, BASELINE)
    assert "8experts_bh_a030" not in rules.not_worse(study)
    assert rules.bh_outcomes(study)["untested"] == ["8experts_bh_a030"]


def test_a_p_value_that_does_not_exist_is_no_verdict():
    study = study_of(WINS)
    study.comparisons.loc[study.comparisons["dataset"] == "lambada", "p_holm"] = np.nan
    assert rules.not_worse(study) == []


def test_best_quality_is_of_complete_configurations():
    study = study_of(WINS)
    best = rules.best_quality(study, "perplexity").config
    rows = study.experiments
    kept = rows[(rows["config"] != best) | (rows["dataset"] != "hellaswag")]
    study = make_study(kept, study.configurations, study.layers, study.comparisons, BASELINE)
    assert rules.best_quality(study, "perplexity").config != best
    assert rules.missing_experiments(study) == [(best, "hellaswag")]


@pytest.mark.parametrize(
    "metric, low, high, expected", [("perplexity", -0.1, 0.3, 0.3), ("x_accuracy", -0.1, 0.3, 0.1)]
)
def test_the_largest_loss_is_at_the_bad_end_of_the_interval(metric, low, high, expected):
    assert rules.largest_loss({"metric": metric, "ci_low": low, "ci_high": high}) == pytest.approx(expected)


def test_a_data_set_without_a_score_decides_nothing():
    with_prompts = study_of(TIES, datasets=("wikitext", "lambada", "prompts"))
    assert with_prompts.scored_datasets == ["wikitext", "lambada"]
    assert set(rules.not_worse(with_prompts)) == set(with_prompts.bh["config"])
    assert rules.scores_of(with_prompts, "perplexity") == ["wikitext"]
    assert with_prompts.comparison("8experts_bh_a030", "prompts")["metric"] == "loss"
    assert with_prompts.verdict("8experts_bh_a030", "prompts") == "worse"
    assert with_prompts.comparison("8experts_bh_a030", "wikitext")["metric"] == "perplexity"


def test_same_compute_reads_the_line_through_top_k():
    study = results_tables.study()
    table = study.configurations
    # A line in log k: perplexity 10 at 8 experts and one more for each doubling.
    topk = table["strategy"] == "topk"
    table["perplexity"] = 10 + np.log2(table["avg_experts"] / 8)
    inside = ~topk & table["avg_experts"].between(8, 64)
    better = table.index[inside][::2]
    table.loc[table.index[inside], "perplexity"] += 0.01
    table.loc[better, "perplexity"] -= 0.02
    result = rules.same_compute(study, "perplexity")
    assert result.better == table.loc[better, "config"].tolist()
    assert set(result.worse) == set(table.loc[inside, "config"]) - set(result.better)
    assert set(result.outside) == set(table.loc[~inside & ~topk, "config"])
    assert rules.same_compute(results_tables.study(ks=(8,)), "perplexity") is None


# The text


def test_the_answer_names_the_winner_with_its_numbers(images):
    text = report(study_of(WINS), images)
    assert "**BH beats the baseline in all 16 BH configurations" in section(text, "## Answers")
    answer = section(text, "### Best perplexity")
    assert "significantly better than the baseline on wikitext" in answer
    values = "10.00 ± 0.50 | 11.00 ± 0.50 | −1.00 | −1.20 to −0.80"
    assert f"| wikitext | perplexity | {values} | 0.001 | better |" in answer
    assert "exclude losses beyond the margins" in section(text, "### Same quality, least compute")


def test_a_loss_is_called_a_loss(images):
    text = report(study_of(LOSES), images)
    assert "**BH does not help here" in section(text, "## Answers")
    assert "The baseline itself has the lowest perplexity" in section(text, "### Best perplexity")
    assert f"no choice but `{BASELINE}`" in section(text, "### Same quality, least compute")
    assert "Significantly worse than the baseline on wikitext: all 16 (`8experts_bh_a030`," in section(
        text, "### Where BH does not help"
    )
    assert section(text, "### Perplexity").count("14.00 ± 0.50 ▼") == 16


def test_a_tie_supports_no_claim_of_equality(images):
    text = report(study_of(TIES, half_width=0.5), images)
    assert "No BH configuration is shown to be better" in section(text, "## Answers")
    answer = section(text, "### Same quality, least compute")
    assert "no loss was shown, not that there is none" in answer
    assert "such a loss remains possible" in answer
    for heading, tested in (("### Perplexity", 1), ("### Accuracy", 2)):
        bh = [line for line in section(text, heading).splitlines() if "_bh_" in line]
        assert len(bh) == 16
        assert not any(mark in line for line in bh for mark in "▲▼")
        assert all(line.count("○") == tested for line in bh)


def test_a_best_value_without_significance_is_left_undecided(images):
    text = report(study_of((-0.1, 0.001, 0.8)), images)
    assert "| best perplexity | undecided; best measured:" in section(text, "## Answers")
    assert "do not support a choice" in section(text, "### Best perplexity")


def test_without_the_baseline_nothing_is_recommended(images):
    study = study_of(WINS)
    tables_ = (study.experiments, study.configurations, study.layers)
    study = make_study(*(t[t["config"] != BASELINE] for t in tables_), study.comparisons.iloc[:0], BASELINE)
    text = report(study, images)
    assert "nothing can be recommended" in section(text, "## Answers")
    assert f"The baseline `{BASELINE}` has no results." in section(text, "## Missing, skipped and shortened")


def row_of(table, config):
    """The cells of a configuration's row, by the table's headings."""
    lines = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("|")]
    (cells,) = [line for line in lines if line[0].strip("*") == f"`{config}`"]
    return dict(zip(lines[0], cells, strict=True))


def test_every_quality_value_stands_with_its_standard_error(images):
    study = study_of(LOSES, documents=True)
    study.configurations["target_perplexity"], study.configurations["target_perplexity_stderr"] = 9.5, 0.25
    text = report(study, images)
    cells = row_of(section(text, "### Perplexity"), "8experts_bh_a030")
    del cells["configuration"], cells["average experts"]
    # Of whole articles the word perplexity is what is tested.
    assert cells == {
        "perplexity": "14.00 ± 0.50",
        "token perplexity": "13.00 ± 0.40",
        "word perplexity": "28.00 ± 1.20 ▼",
        "byte perplexity": "1.700 ± 0.012",
        "bits per byte": "0.766 ± 0.010",
        "lambada target perplexity": "9.50 ± 0.25",
    }
    cells = row_of(section(text, "### Accuracy"), "8experts_bh_a030")
    del cells["configuration"], cells["average experts"]
    assert cells == {
        "lambada accuracy": "0.640 ± 0.027 ▼",
        "hellaswag accuracy": "0.570 ± 0.027 ▼",
        "mean accuracy": "0.605 ± 0.027",
    }
    baseline = row_of(section(text, "### Perplexity"), BASELINE)
    assert not any(mark in cell for cell in baseline.values() for mark in "▲▼○")
    rows_alone = section(report(study_of(LOSES), images), "### Perplexity")
    assert "token perplexity" in rows_alone and "word perplexity" not in rows_alone


@pytest.mark.parametrize("effect, mark", [(WINS, " ▲"), (LOSES, " ▼"), (TIES, " ○")])
def test_the_tables_of_tests_mark_what_differs_after_holm(images, effect, mark):
    text = report(study_of(effect), images)
    difference = words.number(effect[0], "+z.2f")
    cells = row_of(section(text, "### Tests on wikitext"), "16experts_bh_a040")
    assert cells["difference"] == difference + mark
    assert cells["value"] == f"{11 + effect[0]:.2f} ± 0.50"
    cells = row_of(section(text, "### Tests on lambada"), "16experts_bh_a040")
    assert cells["difference"] == words.number(effect[1], "+z.3f") + mark


def test_tests_that_agree_stand_side_by_side_without_a_remark(images):
    text = report(study_of((3.0, -0.2, 0.004)), images)
    wikitext, lambada = (section(text, f"### Tests on {d}") for d in ("wikitext", "lambada"))
    cells = row_of(wikitext, "16experts_bh_a040")
    assert [cells[f"{name}p (Holm)"] for name in ("", "Wilcoxon ", "bootstrap ")] == ["0.004"] * 3
    cells = row_of(lambada, "16experts_bh_a040")
    assert cells["bootstrap p (Holm)"] == cells["p (Holm)"] == "0.004"
    assert "Wilcoxon p (Holm)" not in cells
    assert "disagree" not in text


def test_tests_that_disagree_are_named_with_their_configurations(images):
    study = study_of(TIES)
    table = study.comparisons
    rows = (table["metric"] == "perplexity") & table["config"].isin(["8experts_bh_a030", "8experts_bh_a040"])
    table.loc[rows, ["p_wilcoxon_holm", "p_bootstrap_holm"]] = 0.049
    rows = (table["metric"] == "perplexity") & (table["config"] == "64experts_bh_a060")
    table.loc[rows, "p_bootstrap_holm"] = 0.01
    rows = (table["metric"] == "lambada_accuracy") & (table["config"] == "8experts_bh_a050")
    table.loc[rows, "p_holm"] = 0.01
    # Beyond the level, and uncorrected: nothing to remark.
    table.loc[table["config"] == "8experts_bh_a060", ["p_wilcoxon_holm", "p_value"]] = 0.05, 0.001
    text = report(study, images)
    assert (
        "Corrected by Holm, the tests disagree at the 5 % level: a difference is shown by Wilcoxon's test "
        "and the bootstrap, not by the paired t-test, for `8experts_bh_a030`, `8experts_bh_a040`; by the "
        "bootstrap, not by the paired t-test and Wilcoxon's test, for `64experts_bh_a060`."
    ) in section(text, "### Tests on wikitext")
    assert ("shown by McNemar's exact test, not by the bootstrap, for `8experts_bh_a050`.") in section(
        text, "### Tests on lambada"
    )
    assert "disagree" not in section(text, "### Tests on hellaswag")


def test_a_data_set_without_a_score_has_its_tests_and_no_say(images):
    text = report(study_of(TIES, datasets=("wikitext", "prompts")), images)
    tests = section(text, "### Tests on prompts")
    assert "Score: loss; baseline 2.400 ± 0.027; paired t-test" in tests
    assert row_of(tests, "8experts_bh_a030")["difference"] == "+0.500 ▼"
    assert "Left out of the answers, without a perplexity or an accuracy: prompts." in text
    assert "prompts" not in section(text, "### Same quality, least compute")
    assert "prompts" not in section(text, "### Where BH does not help")
    assert row_of(section(text, "### Perplexity"), "8experts_bh_a030")["perplexity"] == "11.05 ± 0.50 ○"
    assert "Left out of the answers" not in report(study_of(TIES), images)


def test_losses_alone_recommend_nothing(images):
    text = report(results_tables.study(datasets=("prompts",)), images)
    assert "nothing can be recommended" in section(text, "## Answers")
    assert "### Tests on prompts" in text


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
    rows = [line for line in section(text, "### Expert counts").splitlines() if BASELINE in line]
    assert rows[0].split(" | ")[5].strip() == "–"  # entropy of a constant count


def test_gaps_and_differences_between_experiments_are_stated(images):
    study = results_tables.study()
    summaries = [
        summary("wikitext", truncated_samples=4, skipped_rows=7),
        summary("lambada", total_samples=150, device="NVIDIA H200"),
        summary("hellaswag"),
    ]
    text = report(study, images, summaries)
    gaps = section(text, "## Missing, skipped and shortened")
    assert "wikitext: 4 samples cut" in gaps
    assert "wikitext: 7 rows with nothing to score passed over" in gaps
    assert "lambada: 150 of 200 samples asked for were scored" in gaps
    assert "hellaswag" not in gaps
    assert "Not the same in all experiments: device." in section(text, "## Settings and versions")


def test_fewer_samples_than_asked_for_in_some_configurations_are_stated(images):
    summaries = [summary("wikitext"), summary("wikitext", total_samples=62), summary("lambada")]
    gaps = section(report(results_tables.study(), images, summaries), "## Missing, skipped and shortened")
    assert "wikitext: 62 of 200 samples asked for were scored" in gaps
    assert "lambada" not in gaps
    whole = section(report(results_tables.study(), images), "## Missing, skipped and shortened")
    assert "every sample asked for" in whole


def test_a_data_set_that_is_small_by_nature_is_no_gap(images):
    articles = summary("wikitext", total_samples=62)
    articles["provenance"]["settings"] = {"dataset": {"protocol": "documents"}}
    rows = summary("wikitext", total_samples=62)
    rows["provenance"]["settings"] = {"dataset": {"protocol": "rows"}}
    prompts = summary("prompts", total_samples=12)
    study = results_tables.study(datasets=("wikitext", "prompts"))
    gaps = section(report(study, images, [articles, prompts]), "## Missing, skipped and shortened")
    assert "asked for were scored" not in gaps
    gaps = section(report(study, images, [rows, prompts]), "## Missing, skipped and shortened")
    assert "wikitext: 62 of 200 samples asked for were scored" in gaps and "prompts" not in gaps


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
    cells = row_of(section(text, "### Perplexity"), "8experts_bh_a030")
    assert cells["word perplexity"] == "–"
    cells = row_of(section(text, "### Perplexity"), "8experts_bh_a040")
    assert cells["word perplexity"].startswith("3.40e+306 ±")
    assert (
        "wikitext: word perplexity is too large for a number (over 1e308; “–” in the tables) in "
        "`8experts_bh_a030`."
    ) in section(text, "## Missing, skipped and shortened")
    assert rules.bh_outcomes(study)["untested"] == ["8experts_bh_a030"]
    # Where the baseline's does not exist, the mean of sample losses is the score again.
    for table in (study.experiments, study.configurations):
        table.loc[table["config"] == BASELINE, lost] = np.nan
    again = make_study(study.experiments, study.configurations, study.layers, study.comparisons, BASELINE)
    assert again.scores["wikitext"] == "perplexity"


def test_whole_articles_are_judged_by_their_word_perplexity(images):
    study = study_of(LOSES, documents=True)
    assert study.comparison("8experts_bh_a030", "wikitext")["metric"] == "word_perplexity"
    assert rules.margin(study, "wikitext") == pytest.approx(0.02 * 22)
    assert rules.scores_of(study, "word_perplexity") == ["wikitext"]
    text = report(study, images)
    answer = section(text, "### Best word perplexity")
    assert "The baseline itself has the lowest word perplexity, 22.00 ± 1.20" in answer
    assert "| aim | configuration | average experts | word perplexity |" in section(text, "## Answers")
    tests = section(text, "### Tests on wikitext")
    assert "Score: word perplexity; baseline 22.00" in tests and "linearised paired t-test" in tests
    assert "linearised as a ratio" in section(text, "### How far these answers reach")
    assert "linearised as a ratio" not in report(study_of(LOSES), images)


def test_nothing_is_proved_by_few_samples_or_by_an_interval_without_width():
    study = study_of(TIES, half_width=0.005)
    few = study_of(TIES, half_width=0.005)
    few.comparisons["samples"] = 29
    same = study_of((0.0, 0.0, 1.0), half_width=1e-300)
    same.comparisons["ci_low"] = same.comparisons["ci_high"] = 0.0
    unknown = study_of(TIES, half_width=0.005)
    unknown.comparisons["ci_high"] = np.nan
    assert set(rules.within_margin(study)) == set(study.bh["config"])
    for one in (few, same, unknown):
        assert set(rules.not_worse(one)) == set(one.bh["config"])
        assert rules.within_margin(one) == []


@pytest.mark.parametrize("samples, strategies", [(6, ("topk", "bh")), (9, ("bh",)), (10, None)])
def test_tests_that_cannot_reject_are_said_to(images, samples, strategies):
    # Three top-k and 16 BH configurations: 3 · 2⁻⁵ and 16 · 2⁻⁸ are above the level.
    study = study_of(TIES)
    study.comparisons.loc[study.comparisons["dataset"] == "lambada", "samples"] = samples
    expected = {"lambada": (strategies, samples)} if strategies else {}
    assert rules.powerless(study) == expected
    text = report(study, images)
    limits = section(text, "### How far these answers reach")
    assert ("on lambada" in limits) == (not expected)
    assert "±0.200" not in limits and "±0.20 on wikitext" in limits
    sentence = f"**So few samples cannot show any difference** on lambada ({samples} samples; "
    assert (sentence in section(text, "## Answers")) == bool(expected)
    if strategies == ("bh",):
        assert f"{sentence}BH configurations)" in text


def test_a_rank_test_that_cannot_reject_is_said_to(images):
    study = study_of(TIES)
    sentence = "So few samples cannot show any difference by Wilcoxon's test"
    assert sentence not in report(study, images)
    study = study_of(TIES)
    study.comparisons.loc[study.comparisons["dataset"] == "wikitext", "samples"] = 5
    text = report(study, images)
    assert sentence in section(text, "### Tests on wikitext")
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
    assert "arc_challenge accuracy" in section(text, "### Accuracy")
    assert "arc challenge" not in text
    assert "4 experiments:" in text


def test_names_cannot_break_the_table():
    row = words.table(["what", "value"], [("model", words.code("a|b`c`"))]).splitlines()[-1]
    assert row.count("|") == 3
    assert row.count("`") == 2


def test_printed_settings_are_a_config_file_of_the_same_study(images):
    config = yaml.safe_load((REPOSITORY / "config.yaml").read_text())
    settings = load_settings(config, base_dir=REPOSITORY)
    configurations = settings.pop("configurations")
    text = report(results_tables.study(), images, settings=settings)
    printed = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
    assert printed == plain_settings(settings)
    again = load_settings(printed, base_dir=REPOSITORY)
    assert again.pop("configurations") == configurations
    assert again == settings


class Links(HTMLParser):
    """Collects what a page would load, and its headings."""

    def __init__(self):
        super().__init__()
        self.sources, self.links, self.ids = [], [], []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        assert tag not in ("script", "link", "iframe")
        self.sources += [attributes["src"]] if "src" in attributes else []
        self.links += [attributes["href"]] if "href" in attributes else []
        self.ids += [attributes["id"]] if "id" in attributes else []


def test_markdown_links_its_images_relatively(images):
    text = report(results_tables.study(), images)
    links = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text)
    assert links == ["visualizations/page.png", *(f"visualizations/{panel}.png" for panel in PANELS)]


def test_html_needs_nothing_but_itself(images):
    page = to_html(report(results_tables.study(), images), images.parent)
    parser = Links()
    parser.feed(page)
    assert len(parser.sources) == 10
    assert all(source.startswith("data:image/png;base64,iVBOR") for source in parser.sources)
    assert all(link.startswith("#") and link[1:] in parser.ids for link in parser.links)
    assert "answers" in parser.ids
    assert page.count("<table>") == page.count("</table>") >= 9
    assert "url(" not in page and "@import" not in page


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
        runpy.run_path(str(script), init_globals={"snakemake": SimpleNamespace(threads=1, **job)})

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
    params = SimpleNamespace(baseline=study.baseline, settings={"seed": 0})

    output = Files(*panels["svg"], **page, panels=panels["png"])
    run_script("plot_panels", input=Files(**csv), output=output, params=params, log=[tmp_path / "p.log"])
    assert sorted(path.name for path in images.iterdir()) == sorted(Path(path).name for path in output)

    inputs = Files(
        **csv,
        summaries=list(map(str, study.summaries)),
        figure=page["figure_png"],
        panels=panels["png"],
    )
    output = Files(markdown=str(tmp_path / "report.md"), html=str(tmp_path / "report.html"))
    run_script("write_report", input=inputs, output=output, params=params, log=[tmp_path / "r.log"])
    text = Path(output.markdown).read_text()
    lowest = frames["configurations"].set_index("config")["perplexity"].idxmin()
    assert f"| best perplexity | `{lowest}` |" in text or f"best measured: `{lowest}` |" in text
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
