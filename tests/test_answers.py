"""The report's first answer, at the same compute: its words and figures on studies whose truth is known."""

from dataclasses import replace

import control_tables
import pandas as pd
import pytest
import results_tables
from adaptive_routing.analysis import contrasts
from adaptive_routing.analysis import control_outcomes as controls
from adaptive_routing.analysis.featured import featured
from adaptive_routing.analysis.recommendations import QualityMargins
from adaptive_routing.analysis.study import read_study
from adaptive_routing.figures.panels import PANELS, describe_panel, draw_figure
from adaptive_routing.figures.same_compute import draw_decomposition, draw_same_compute, draw_where
from adaptive_routing.report.answers import answer_sections
from adaptive_routing.report.model_card import report_note
from adaptive_routing.report.sentences import main_sentences
from adaptive_routing.report.warnings import warning_section
from legibility import illegible

MARGINS = QualityMargins(perplexity=0.02, accuracy=0.02)
USEFUL, WORTHLESS, HARMFUL = (0.03, -0.01, 0.0), (0.0, -0.01, 0.0), (-0.03, -0.01, 0.0)
ALL_MINP = {f"bh_a0{a}0": (f"minp_p0{a}0", "minp") for a in (3, 4, 5, 6)}


def study_of(worth, **options):
    return control_tables.with_controls(results_tables.study(), {"bh": worth}, **options)


def minp_alone():
    return control_tables.renamed(results_tables.tables(), ALL_MINP)


def sections(study, **options):
    return "\n\n".join(answer_sections(study, MARGINS, **options))


def summaries(**routing):
    return [{"routing": {"weights": "native", "renormalized": False, "min_k": 1} | routing}]


@pytest.mark.parametrize(
    "worth, answer, why",
    [
        (USEFUL, "BH does better than a fixed number of experts: all 16", "carries useful information"),
        (WORTHLESS, "BH does worse than a fixed number of experts: all 16", "is worth nothing"),
        (HARMFUL, "BH does worse than a fixed number of experts: all 16", "does harm"),
        ((0.0, 0.0, 0.0), "BH does as well as a fixed number of experts: all 16", "is worth nothing"),
    ],
)
def test_what_token_information_is_worth_is_said(worth, answer, why):
    first, second, *others = main_sentences(study_of(worth), MARGINS)
    assert first.startswith(f"At the same compute, {answer} BH configurations are")
    assert second.startswith(f"Why BH does so: its choice of tokens {why}")
    assert len(others) == 3
    spread = "cost quality" if worth[1] else "cost nothing by themselves"
    assert f"unequal counts within a layer {spread}" in second
    assert "different means for different layers make no difference" in second


def test_the_best_configuration_stands_with_its_simultaneous_interval():
    study = study_of(USEFUL)
    rows = study.same_compute
    best = (rows["config"] == "16experts_bh_a040") & (rows["contrast"] == "answer")
    rows.loc[best & (rows["dataset"] == "wikitext"), ["difference", "ci_low", "ci_high"]] = -0.1, -0.12, -0.08
    first = main_sentences(study, MARGINS)[0]
    assert "The best against its control, `16experts_bh_a040`" in first
    # exp(−0.1) is 9.5 % less.
    assert "wikitext token perplexity by −9.5 % (simultaneous 95 % interval −11.3 to −7.7 %)" in first


def test_what_is_shown_first_is_what_the_sentences_name():
    study = study_of(USEFUL)
    named = featured(study, MARGINS)
    assert f"The best against its control, `{named}`" in main_sentences(study, MARGINS)[0]
    without_controls = results_tables.study()
    assert f"`{featured(without_controls, MARGINS)}`" in main_sentences(without_controls, MARGINS)[-1]
    assert featured(results_tables.study(ks=()), MARGINS) == "8experts_bh_a030"  # nothing to compare with
    assert featured(results_tables.study(max_ks=()), MARGINS) is None


def test_an_interval_beyond_the_margin_leaves_the_answer_open():
    first, second, *_ = main_sentences(study_of((0.0, 0.0, 0.0), half_width=0.1), MARGINS)
    assert "it is open whether BH beats a fixed number of experts" in first
    assert second.startswith("Why cannot be told")
    first, second, *_ = main_sentences(study_of((0.0, -0.3, 0.0), half_width=0.1), MARGINS)
    assert "BH does worse than a fixed number of experts" in first
    assert "its choice of tokens is not shown to be worth anything" in second


def test_several_open_rules_are_open():
    study = control_tables.with_controls(control_tables.rivals(), {"": (0.0, 0.0, 0.0)}, half_width=0.1)
    first, second, *_ = main_sentences(study, MARGINS)
    assert first.startswith(
        "At the same compute, it is open for every rule (BH, BH (null centred), confidence"
    )
    assert second.startswith("Why cannot be told")


def test_better_on_one_data_set_and_worse_on_another_is_both():
    study = study_of((0.0, 0.0, 0.0))
    rows = study.same_compute
    one = (rows["config"] == "8experts_bh_a030") & (rows["contrast"] == "answer")
    rows.loc[one & (rows["dataset"] == "wikitext"), "verdict"] = "better"
    rows.loc[one & (rows["dataset"] == "lambada"), "verdict"] = "worse"
    (outcome,) = controls.by_rule(study, contrasts.ANSWER)
    assert outcome.outcomes["mixed"] == ["8experts_bh_a030"] and outcome.verdict == "mixed"
    first = main_sentences(study, MARGINS)[0]
    assert "better than a fixed number of experts in some cases and worse in others" in first
    assert "and 1 better on one data set and worse on another" in first


def test_without_controls_the_first_sentence_says_how_to_get_the_answer():
    study = results_tables.study()
    first, verdict, *_ = main_sentences(study, MARGINS)
    assert first.startswith(
        "This study cannot tell whether BH beats a fixed number of experts at the same compute"
    )
    assert "add `controls: {of: [all]}` to the settings" in first
    assert "compared with the baseline" in verdict or "the baseline" in verdict
    text = sections(study)
    assert text.index("### At the same compute") < text.index("### What to use")
    assert "### Why" not in text and "### Where\n" not in text
    assert "no comparison at the same compute" in "".join(warning_section(study, summaries()))


def test_top_k_alone_says_nothing_of_the_same_compute():
    study = results_tables.study(max_ks=())
    assert main_sentences(study, MARGINS)[0].startswith(
        "This study does not say whether adaptive routing helps"
    )
    assert "same compute" not in sections(study)
    assert list(warning_section(study, summaries())) == []


def test_another_strategy_alone_is_spoken_of_as_itself():
    plain = minp_alone()
    study = control_tables.with_controls(plain, {"minp": USEFUL})
    text = "\n".join([*main_sentences(study, MARGINS), sections(study)])
    text += "\n".join(describe_panel(panel, study) for panel in PANELS)
    assert text.startswith("At the same compute, min-p does better than a fixed number of experts")
    assert "all 16 min-p configurations" in text
    assert "BH" not in text.replace("p (BH)", "")
    assert main_sentences(plain, MARGINS)[0].startswith("This study cannot tell whether min-p beats")
    assert "### Where min-p does not help" in sections(plain)


def test_several_rules_are_sorted_by_what_they_do():
    worth = {"": HARMFUL, "minp": USEFUL, "topp": (0.0, 0.0, 0.0)}
    study = control_tables.with_controls(control_tables.rivals(), worth)
    assert study.families == ["bh", "bh_ncentred", "confidence", "hc_bauto", "minp", "topp"]
    first, second, *_ = main_sentences(study, MARGINS)
    assert "min-p (8 of 8 configurations) does better than a fixed number of experts" in first
    assert "BH (12 of 12), BH (null centred) (12 of 12)" in first and "top-p (8 of 8) does as well" in first
    assert second.startswith(
        "Why: on wikitext, token information changes the loss of BH by +0.030 nats per token (significantly "
        "worse in all 12), spread over tokens by +0.010"
    )
    assert "; on wikitext, token information changes the loss of BH (null centred) by" in second
    assert "min-p" not in second and "| min-p | wikitext token perplexity | −0.030 (▲ 8 of 8)" in sections(
        study
    )
    text = sections(study)
    assert "| min-p | 8 | 8 | – | – | – | – |" in text
    assert "adaptive: `" in text.split("### What to use")[1]


def test_how_much_of_the_counts_is_the_mean_logit_is_said():
    def check(*explained):
        return pd.DataFrame({"alpha": [0.3, 0.6, 0.6], "r2_mean_logit": [0.1, *explained]})

    checks = {"default": check(0.6, 0.7), "centred": check(0.1, 0.02)}
    told = " Of the variance of BH's counts between tokens, {} is the token's mean logit"
    why = main_sentences(study_of(HARMFUL), MARGINS, checks)[1]
    assert told.format("65 % (BH, α 0.6)") in why
    several = control_tables.with_controls(control_tables.rivals(), {"": HARMFUL})
    why = main_sentences(several, MARGINS, checks)[1]
    assert told.format("65 % (BH, α 0.6) and 6 % (BH (null centred), α 0.6)") in why
    alone = control_tables.with_controls(minp_alone(), {"minp": HARMFUL})
    assert "mean logit" not in main_sentences(alone, MARGINS, checks)[1]


def test_no_rule_better_is_said_first():
    study = control_tables.with_controls(control_tables.rivals(), {"": HARMFUL, "topp": (0.0, 0.0, 0.0)})
    first = main_sentences(study, MARGINS)[0]
    assert first.startswith(
        "At the same compute, no rule is shown to do better than a fixed number of experts: "
    )
    assert "| fixed (adaptive gains nothing) |" in sections(study)


def test_rules_without_controls_are_named():
    study = control_tables.with_controls(control_tables.rivals(), {"minp": USEFUL})
    text = sections(study)
    assert "Without controls, and so without an answer: BH, BH (null centred), confidence steps" in text


def test_an_upper_bound_is_named_and_not_recommended():
    study = control_tables.renamed(results_tables.tables(), {"bh_a060": ("pooled_b2", "pooled")})
    study = control_tables.with_controls(study, {"pooled": USEFUL, "bh": HARMFUL})
    first = main_sentences(study, MARGINS)[0]
    assert "BH does worse than a fixed number of experts" in first
    assert "it looks at later tokens and is only an upper bound" in first
    (row,) = [line for line in sections(study).splitlines() if line.startswith("| adaptive or fixed")]
    assert "| fixed |" in row and "pooled" not in row


def test_a_rule_that_wins_against_its_controls_and_loses_to_the_baseline_is_not_recommended():
    study = results_tables.study(effect=lambda config, dataset: (0.5, 0.1, 0.001))
    study = control_tables.with_controls(study, {"bh": USEFUL})
    (row,) = [line for line in sections(study).splitlines() if line.startswith("| adaptive or fixed")]
    assert "| fixed |" in row
    assert "16 of 16 configurations are significantly better than their control" in row
    assert "each of the 16 is significantly worse than the baseline on wikitext" in row


def test_where_most_are_worse_and_none_is_better_adaptive_routing_does_not_help():
    def effect(config, dataset):
        worse = dataset == "wikitext" and not config.startswith("64experts")
        return (0.5, 0.1, 0.001) if worse else (0.0, 0.5, 0.9)

    against = main_sentences(results_tables.study(effect=effect), MARGINS)[1]
    assert against.startswith("Against the baseline `8experts_topk_baseline`")
    assert "BH does not help: 12 of 16 BH configurations are significantly worse" in against
    assert "none is better; for 4 of 16 equality is not confirmed" in against


def test_bins_that_differ_between_configurations_are_named_by_their_rank():
    study = study_of(HARMFUL, where=lambda config, by, i: -0.1 * (i == 3) * (by == "baseline_loss"))
    moved = study.where["config"].str.startswith("8experts") & (study.where["by"] == "baseline_loss")
    study.where.loc[moved, "bin_low"] += 0.5
    text = sections(study)
    assert (
        "The baseline's loss: significantly better at highest quarter, in at least one configuration" in text
    )
    assert "bh_routing_where.csv" in text


def test_the_answers_stand_in_order():
    figures = {name: f"{name}.png" for name in ("same_compute", "decomposition", "where")}
    study = study_of(HARMFUL, where=lambda config, by, i: 0.05 * (i - 1))
    text = sections(study, figures=figures, null_check=["### The null distributions"])
    headings = [line for line in text.splitlines() if line.startswith("### ")]
    assert headings[:6] == [
        "### At the same compute",
        "### Why",
        "### The null distributions",
        "### What to use",
        "### What it costs",
        "### Where",
    ]
    assert len(set(headings)) == len(headings)
    assert all(f"]({name}.png)" in text for name in figures)
    assert "Position in the text: significantly better at 0 to 15" in text
    assert "nan" not in text.replace("`", " ").split()


def test_the_parts_stand_with_their_counts():
    text = sections(study_of(HARMFUL))
    row = "| BH | wikitext token perplexity | +0.030 (▼ 16 of 16) | +0.010 (▼ 16 of 16) | +0.000 |"
    assert f"{row} +0.040 (▼ 16 of 16) |" in text


def test_weights_that_shrink_the_output_are_warned_of():
    study = study_of(USEFUL)
    text = "".join(warning_section(study, summaries()))
    assert "not renormalised" in text and "smaller output of the layer" in text
    for routing in ({"weights": "renormalized", "renormalized": True}, {"renormalized": True}):
        assert "renormalised" not in "".join(warning_section(study, summaries(**routing)))


def repeating(study, *configs):
    """The study in which all configurations ran what the first one did."""
    first = study.experiments[study.experiments["config"] == configs[0]]
    ran = first.drop(columns=["config", "strategy", "k_or_max_k", "alpha"]).set_index("dataset")
    rows = study.experiments.set_index("dataset")
    for config in configs[1:]:
        rows.loc[rows["config"] == config, ran.columns] = ran
    return replace(study, experiments=rows.reset_index())


def test_what_ran_twice_counts_once():
    study = study_of(USEFUL)
    assert study.repetitions == {} and study.repeated == set()
    first, *others = (f"{max_k}experts_bh_a030" for max_k in (8, 16, 32))
    study = repeating(study, first, *others)
    assert study.repetitions == {first: others} and study.repeated == set(others)
    answer, why, verdict, *_ = main_sentences(study, MARGINS)
    assert "all 14 BH configurations are significantly better" in answer
    assert "(significant in all 14)" in why
    assert " of 14 BH configurations " in verdict or " all 14 BH configurations " in verdict
    assert others[0] in set(study.adaptive["config"])  # tables and figures show it

    other = study.experiments["config"] == others[0]
    study.experiments.loc[other, "avg_experts"] += 1e-9
    assert replace(study).repetitions == {first: others[1:]}


def test_equal_numbers_of_different_rules_are_no_repetition():
    study = control_tables.renamed(results_tables.tables(), {"bh_a030": ("minp_p030", "minp")})
    study = repeating(study, "8experts_bh_a040", "8experts_minp_p030", "8experts_topk_baseline")
    assert study.repetitions == {}


def test_few_clusters_and_a_saturated_data_set_are_warned_of():
    study = study_of(USEFUL)
    assert "cluster" not in "".join(warning_section(study, summaries()))
    study.same_compute.loc[study.same_compute["dataset"] == "wikitext", "clusters"] = 6
    study.comparisons.loc[study.comparisons["dataset"] == "hellaswag", "baseline_value"] = 0.995
    text = "".join(warning_section(study, summaries()))
    assert "On wikitext the samples form only 6 clusters" in text
    assert "On hellaswag the baseline is right on 199 of 200 samples" in text
    assert "On lambada" not in text


def test_a_models_card_can_hold_a_note(tmp_path):
    card = tmp_path / "README.md"
    assert report_note(None) is None and report_note(card) is None
    for text in ("# A model\n", "---\ntags: [a]\n---\n", "---\na: [\n---\n", "---\nreport_note: 3\n---\n"):
        card.write_text(text)
        assert report_note(card) is None
    card.write_text("---\nreport_note: >-\n  trained\n  so\nlicense: mit\n---\n# A model\n")
    assert report_note(card) == "trained so"


@pytest.mark.parametrize("name", ["BH", "one configuration", "min-p", "many rules", "without top-k"])
def test_the_figures_are_legible(name):
    made = {
        "BH": results_tables.study,
        "one configuration": lambda: results_tables.study(max_ks=(8,), alphas=(0.3,), ks=(8,)),
        "min-p": minp_alone,
        "many rules": control_tables.rivals,
        "without top-k": lambda: results_tables.study(ks=()),
    }[name]()
    study = control_tables.with_controls(made, {"": HARMFUL, "minp": USEFUL}, half_width=0.02)
    for figure in (draw_same_compute(study), draw_decomposition(study, MARGINS), draw_where(study, MARGINS)):
        assert illegible(figure) == []
        assert figure.axes and all(axes.has_data() for axes in figure.axes)
        assert all(axes.get_xlabel() for axes in figure.axes)


def test_a_significant_difference_is_filled_and_another_is_white():
    study = study_of(HARMFUL)
    rows = study.same_compute
    open_one = (rows["config"] == "8experts_bh_a030") & (rows["contrast"] == "answer")
    rows.loc[open_one, "verdict"] = "open"
    axes = draw_same_compute(study).axes[0]
    faces = [line.get_markerfacecolor() for line in axes.lines if len(line.get_xdata()) == 1]
    assert len(faces) == 16 and faces.count("white") == 1
    assert sorted(line.get_ydata()[0] for line in axes.lines if len(line.get_xdata()) == 1) == pytest.approx(
        [100 * (pd.Series([0.04]).apply("exp")[0] - 1)] * 16
    )


def test_the_panels_hold_11_top_k_and_48_adaptive_configurations():
    study = control_tables.rivals()
    assert len(study.configurations) == 59
    figure = draw_figure(study)
    assert illegible(figure) == []
    (perplexity,) = [axes for axes in figure.axes if axes.get_ylabel().startswith("perplexity, exp")][:1]
    ticks = [tick.get_text() for tick in perplexity.get_xticklabels()]
    assert ticks == ["1", "2", "3", "4", "5", "6", "7", "8", "16", "32", "64"]
    for panel in PANELS:
        assert "BH configuration" not in describe_panel(panel, study)


def test_rules_have_hues_and_variants_shades():
    from adaptive_routing.figures import style

    study = control_tables.rivals()
    colours = {variant: style.variant_colour(study, variant) for variant in study.variants}
    assert len(set(colours.values())) == len(study.variants)
    first, last = colours["minp_p010"], colours["minp_p030"]
    assert style.luminance(first) > style.luminance(last)


def test_the_tables_are_read_with_the_study(tmp_path):
    study = study_of(USEFUL)
    tables = ("experiments", "configurations", "layers", "comparisons", "same_compute", "where")
    paths = {name: tmp_path / f"{name}.csv" for name in tables}
    for name, path in paths.items():
        getattr(study, name).to_csv(path, index=False)
    again = read_study(**paths, baseline=results_tables.BASELINE)
    assert main_sentences(again, MARGINS) == main_sentences(study, MARGINS)
    assert len(again.where) == len(study.where)
    del paths["same_compute"], paths["where"]
    without = read_study(**paths, baseline=results_tables.BASELINE)
    assert without.same_compute.empty and without.where.empty


def test_rows_that_do_not_decide_are_left_out():
    study = study_of(USEFUL)
    losses = study.same_compute.assign(metric="loss", deciding=False, verdict="worse")
    both = replace(study, same_compute=pd.concat([study.same_compute, losses], ignore_index=True))
    assert main_sentences(both, MARGINS) == main_sentences(study, MARGINS)
