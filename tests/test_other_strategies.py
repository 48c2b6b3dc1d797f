"""Figures and report of a study that holds a strategy beside top-k and BH."""

import re
from pathlib import Path

import control_tables
import numpy as np
import pytest
import results_tables
import yaml
from adaptive_routing.analysis.difficulty import difficulty_table
from adaptive_routing.analysis.recommendations import QualityMargins
from adaptive_routing.analysis.rule_names import label, variant
from adaptive_routing.analysis.study import make_study
from adaptive_routing.figures import style
from adaptive_routing.figures.atlas import shown_configurations
from adaptive_routing.figures.difficulty import draw_difficulty_figure
from adaptive_routing.figures.panels import PANELS, describe_panel, draw_figure
from adaptive_routing.report.answers import answer_sections
from adaptive_routing.report.method import method_sections
from adaptive_routing.report.sentences import main_sentences
from adaptive_routing.report.tables import table_sections
from adaptive_routing.report.words import both_names
from adaptive_routing.settings.configurations import Configuration, grid
from adaptive_routing.settings.load import load_settings, needs_p_values
from legibility import illegible
from synthetic import PLAIN

ROOT = Path(__file__).parents[1]
MARGINS = QualityMargins(0.02, 0.02)
RENAMED = {"bh_a050": "topp_p050", "bh_a060": "topp_p060"}
ALL_RENAMED = RENAMED | {"bh_a030": "topp_p030", "bh_a040": "topp_p040"}


def study_with(renamed, baseline=results_tables.BASELINE):
    """The made-up study, some of its BH configurations being of the strategy topp."""
    count, _, name = baseline.partition("experts_")
    before = {new: old for old, new in renamed.items()}
    tables = results_tables.tables(baseline=f"{count}experts_{before.get(name, name)}")
    for table in tables.values():
        count = table["config"].str.partition("experts_")
        other = count[2].map(renamed)
        is_other = other.notna()
        table.loc[is_other, "config"] = (count[0] + "experts_" + other)[is_other]
        if "strategy" in table:
            table.loc[is_other, "strategy"] = "topp"
            table.loc[is_other, "alpha"] = np.nan
    return make_study(**tables, baseline=baseline)


STUDIES = [
    (RENAMED, results_tables.BASELINE),
    (RENAMED, "8experts_topp_p050"),
    (ALL_RENAMED, results_tables.BASELINE),
]


@pytest.mark.parametrize("renamed, baseline", STUDIES, ids=["beside BH", "as baseline", "without BH"])
def test_every_panel_shows_it(renamed, baseline):
    study = study_with(renamed, baseline)
    figure = draw_figure(study)
    assert illegible(figure) == []
    legend = [text.get_text() for one in figure.legends for text in one.get_texts()]
    assert {variant(name) for name in renamed.values()} <= set(legend)
    by_name = {name: style.other_colour(study, name) for name in renamed.values()}
    assert len(set(by_name.values())) == len(by_name)
    # Panel 5 has a point a configuration, in its own colour.
    (pareto,) = [ax for ax in figure.axes if ax.get_xlabel() == "average experts per token and layer"]
    drawn = {
        (round(float(x), 6), tuple(colour[:3]))
        for points in pareto.collections
        if len(points.get_offsets()) == len(points.get_facecolors())
        for (x, _), colour in zip(points.get_offsets(), points.get_facecolors(), strict=True)
    }
    table = study.configurations
    for _, row in table[table["strategy"] == "topp"].iterrows():
        assert (round(row["avg_experts"], 6), by_name[study.variant(row)]) in drawn
    for panel in PANELS:
        assert "nan" not in describe_panel(panel, study)


@pytest.mark.parametrize("renamed, baseline", STUDIES, ids=["beside BH", "as baseline", "without BH"])
def test_the_report_counts_and_judges_it(renamed, baseline):
    study = study_with(renamed, baseline)
    text = "\n".join(
        [*main_sentences(study, MARGINS), *answer_sections(study, MARGINS), *table_sections(study)]
    )
    assert "nan" not in text
    assert "top-p comparisons on all data sets" in text
    summaries = [line for line in text.splitlines() if "<summary>Tests on wikitext" in line]
    counts = study.configurations["strategy"].value_counts()
    assert len(summaries) == 1 and "; top-p " in summaries[0]
    assert ("BH " in summaries[0]) == ("bh" in counts)


def test_its_configurations_stand_last_and_by_name():
    study = study_with(RENAMED)
    assert list(dict.fromkeys(study.configurations["strategy"])) == ["topk", "bh", "topp"]
    assert study.variants == [0.3, 0.4, "topp_p050", "topp_p060"]
    assert {row["config"] for row in shown_configurations(study)} == {f"64experts_bh_a0{a}0" for a in (3, 4)}


@pytest.mark.parametrize(
    "strategy, lists, expected",
    [
        ("topk", {"k": 8}, "top-8"),
        ("topk", {"k": 8, "weights": "uniform"}, "top-8, uniform weights"),
        ("bh", {"max_k": 8, "alpha": 0.6}, "BH max_k 8, α 0.6"),
        ("bh", {"max_k": 64, "alpha": 0.305, "null": "centred"}, "BH max_k 64, α 0.305, null centred"),
        ("minp", {"max_k": 16, "p": 0.1, "weights": "uniform"}, "min-p max_k 16, p 0.1, uniform weights"),
        ("hc", {"max_k": 16, "beta": 1}, "Higher Criticism max_k 16, β 1"),
        ("hc", {"max_k": 16, "beta": "auto"}, "Higher Criticism max_k 16, β auto"),
        ("entropy", {"max_k": 16, "steps": 8}, "entropy steps max_k 16, 8 steps"),
        ("confidence", {"max_k": 16}, "confidence steps max_k 16"),
        ("layerwise", {"max_k": 16, "budget": 128}, "layer-wise k max_k 16, budget 128"),
        ("pooled", {"max_k": 16, "budget": 4}, "pooled top-B max_k 16, budget 4"),
    ],
)
def test_a_configuration_has_one_name_for_people(strategy, lists, expected):
    (one,) = grid({strategy: {name: [value] for name, value in lists.items()}})
    assert label(one.name) == style.label(one.name) == expected
    assert both_names(one.name) == f"{expected}<br>`{one.name}`"


def test_a_name_that_is_none_of_the_workflow_stays():
    assert label("my model") == "my model"
    assert label("16experts_bh_a030_shuffled") == "BH max_k 16, α 0.3, shuffled"
    assert label("16experts_threshold_t005") == "threshold max_k 16, t 0.05"  # a strategy of one's own


def test_no_two_variants_share_a_colour_however_many_rules_there_are():
    names = [f"{rule}_p{p:03d}" for rule in "abcdefghijklm" for p in (5, 10, 30)]
    renamed = {f"bh_a{i:03d}": name for i, name in enumerate(names, start=10)}
    tables = results_tables.tables(alphas=tuple(i / 100 for i in range(10, 10 + len(names))))
    study = control_tables.renamed(
        tables, {old: (new, new.partition("_")[0]) for old, new in renamed.items()}
    )
    colours = {style.other_colour(study, name) for name in names}
    assert len({tuple(round(255 * part) for part in colour) for colour in colours}) == len(names)


def test_a_study_of_another_rule_alone_reads_as_one():
    study = study_with(ALL_RENAMED)
    study = control_tables.with_controls(study, {"topp": (0.03, -0.01, 0.0)})
    config = yaml.safe_load((ROOT / "config.yaml").read_text())
    config["strategies"] |= {"bh": None, "topp": {"max_k": [8, 16, 32, 64], "p": [0.3, 0.4, 0.5, 0.6]}}
    method = "\n".join(method_sections(study, load_settings(config, base_dir=ROOT)))
    assert "- **Top-p** runs the fewest experts whose router probabilities sum to at least p" in method
    text = "\n".join(
        [
            *main_sentences(study, MARGINS),
            *answer_sections(study, MARGINS),
            *(describe_panel(panel, study) for panel in PANELS),
            method,
        ]
    )
    assert not re.search(r"\bBH\b|Null distribution\*\*", text)
    figure = draw_figure(study)
    said = [ax.get_xlabel() + ax.get_ylabel() + "".join(t.get_text() for t in ax.texts) for ax in figure.axes]
    said += [text.get_text() for text in figure.texts]
    said += [text.get_text() for one in figure.legends for text in one.get_texts()]
    assert not [one for one in said if "BH" in one or "α" in one or "false discovery" in one]
    assert "top-p with max_k 8" in said and any("max_k of top-p" in one for one in said)


def test_the_figure_of_the_prompts_has_a_line_for_it():
    study = study_with(RENAMED)
    heads = study.configurations[["config", "strategy", "k_or_max_k", "alpha", *PLAIN]].to_dict("records")
    prompts = [
        {"difficulty": level, "loss": 1.0, "avg_experts_prompt": 2.0 + level, "avg_experts_new": 3.0 + level}
        for level in (1, 2, 3)
    ]
    figure = draw_difficulty_figure(study, difficulty_table([one | {"samples": prompts} for one in heads]))
    assert illegible(figure) == []
    assert [len(axes.containers) for axes in figure.axes] == [len(study.variants)] * 8


def test_the_schema_says_which_strategies_need_null_distributions():
    assert needs_p_values(Configuration("8experts_bh_a030", "bh", 8, {"max_k": 8, "alpha": 0.3}))
    assert not needs_p_values(Configuration("8experts_topk_baseline", "topk", 8, {"k": 8}))
