"""Expert counts by difficulty: table, trend, sentences and figure; averages over data sets ignore them."""

from itertools import permutations

import numpy as np
import pandas as pd
import pytest
import results_tables
from adaptive_routing.analysis import tables
from adaptive_routing.analysis.difficulty import (
    describe_difficulty,
    difficulty_table,
    difficulty_trend,
    smallest_attainable_p,
    smallest_visible_correlation,
)
from adaptive_routing.analysis.recommendations import QualityMargins
from adaptive_routing.analysis.study import make_study
from adaptive_routing.figures.difficulty import DPI, draw_difficulty_figure
from adaptive_routing.figures.panels import PANELS, describe_panel, draw_figure
from adaptive_routing.figures.style import save
from adaptive_routing.report.answers import answer_sections
from adaptive_routing.report.difficulty import difficulty_section
from adaptive_routing.report.sentences import main_sentences
from legibility import illegible
from PIL import Image
from scipy import stats
from statsmodels.stats.multitest import multipletests
from synthetic import PLAIN

LEVELS = (1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4)
RISING = (2.0, 2.2, 2.1, 3.0, 3.2, 3.1, 4.0, 4.2, 4.1, 5.0, 5.2, 5.1)
FLAT = (3.0, 4.0, 3.5, 3.9, 3.1, 3.4, 3.05, 3.95, 3.6, 3.8, 3.2, 3.3)


def summary(config, experts, levels=LEVELS, new=None, losses=None):
    topk = "topk" in config
    k = int(config.split("experts")[0])
    losses = losses or [0.5 * level for level in levels]
    return {
        "config": config,
        "strategy": "topk" if topk else "bh",
        "k_or_max_k": k,
        "alpha": None if topk else int(config[-3:]) / 100,
        **PLAIN,
        "dataset": "prompts",
        "samples": [
            {
                "sample_id": f"prompts_{i}",
                "difficulty": level,
                "loss": losses[i],
                "avg_experts_prompt": experts[i],
                "avg_experts_new": experts[i] if new is None else new[i],
            }
            for i, level in enumerate(levels)
        ],
    }


TOPK = summary("8experts_topk_baseline", [8.0] * 12)


def described(*summaries):
    return describe_difficulty(difficulty_table(summaries), difficulty_trend(summaries))


def grid(experts=RISING):
    """Summaries of the whole grid of the made-up study; more experts for larger max_k and alpha."""
    bh = [
        summary(f"{k}experts_bh_a{alpha:03d}", [min(k, e * k**0.3 * alpha / 30) for e in experts])
        for k in (8, 16, 32, 64)
        for alpha in (30, 40, 50, 60)
    ]
    return [TOPK, *bh]


def test_the_table_against_hand_worked_numbers():
    table = difficulty_table(
        [summary("8experts_bh_a030", [1, 2, 3, 7], (2, 2, 2, 5), new=[None, 4, 6, None], losses=[3, 3, 6, 1])]
    )
    first, second = table.to_dict("records")
    assert (first["difficulty"], first["samples"]) == (2, 3)
    assert first["avg_experts_prompt"] == 2
    assert first["avg_experts_prompt_stderr"] == pytest.approx(1 / 3**0.5)
    assert (first["loss"], first["loss_stderr"]) == (4, pytest.approx(1))
    assert (first["avg_experts_new"], first["avg_experts_new_stderr"]) == (5, pytest.approx(1))
    assert (second["difficulty"], second["samples"], second["avg_experts_prompt"]) == (5, 1, 7)
    missing = ["avg_experts_prompt_stderr", "avg_experts_new", "avg_experts_new_stderr", "loss_stderr"]
    assert all(np.isnan(second[column]) for column in missing)
    assert tables.records(table)[1]["avg_experts_new"] is None


def test_the_trend_is_spearmans():
    rng = np.random.default_rng(1)
    experts = [(rng.normal(size=12) + slope * np.array(LEVELS)).tolist() for slope in (0, 0.4, -1)]
    summaries = [summary(f"16experts_bh_a0{i + 3}0", values) for i, values in enumerate(experts)]
    trend = difficulty_trend([TOPK, *summaries])
    bh = trend.iloc[1:]
    for rho, p_value, values in zip(
        bh["avg_experts_prompt_rho"], bh["avg_experts_prompt_p_value"], experts, strict=True
    ):
        expected = stats.spearmanr(LEVELS, values)
        assert rho == pytest.approx(expected.statistic)
        # Student's t is an approximation: about right where levels tie.
        assert p_value == pytest.approx(expected.pvalue, abs=0.02)
    holm = multipletests(bh["avg_experts_prompt_p_value"], method="holm")[1]
    assert bh["avg_experts_prompt_p_holm"].to_numpy() == pytest.approx(holm)
    topk = trend.iloc[0]
    assert np.isnan([topk["avg_experts_prompt_rho"], topk["avg_experts_prompt_p_value"]]).all()
    assert topk["loss_rho"] == pytest.approx(1)
    assert np.isnan(topk["loss_p_holm"])


def test_few_prompts_have_the_exact_p_value():
    levels, values = (1, 1, 2, 2, 3), (2.0, 1.0, 3.0, 5.0, 4.0)
    every = np.array([stats.spearmanr(levels, order).statistic for order in permutations(values)])
    observed = stats.spearmanr(levels, values).statistic
    one_sided = np.mean(every >= observed - 1e-12)
    trend = difficulty_trend([summary("8experts_bh_a030", values, levels)])
    assert trend["avg_experts_prompt_p_value"].item() == pytest.approx(2 * one_sided)


def test_a_rise_and_a_fall_are_told():
    assert "The expert count rises with difficulty (Spearman's ρ +0.97" in described(
        TOPK, summary("8experts_bh_a030", RISING)
    )
    text = described(
        summary("8experts_bh_a030", RISING[::-1]),
        summary("16experts_bh_a030", RISING[::-1]),
        summary("32experts_bh_a030", FLAT),
    )
    assert "rises in 0 of 3 configurations, falls in 2 and shows no significant trend in 1" in text
    assert "Spearman's ρ −0.97 to " in text
    assert "(12) leave 1 of them undecided" in text
    assert "the loss of a prompt's tokens goes from 0.50 at difficulty 1 to 2.00 at 4" in text


def test_no_trend_is_not_taken_for_none():
    text = described(TOPK, summary("8experts_bh_a030", FLAT))
    assert "shows no significant trend with difficulty" in text
    assert "So few prompts (12) leave it undecided: a ρ within ±0.58 would not be significant" in text
    assert text.count(". ") == 2


def test_the_visible_correlation_is_that_of_the_corrected_level():
    flat = [summary(f"{k}experts_bh_a030", FLAT) for k in (8, 16, 32, 64)]
    # Student's t at 0.05 / 4 of 12 prompts; the one that rises is out of Holm's way.
    t = stats.t.isf(0.05 / 8, 10)
    expected = f"a ρ within ±{t / (10 + t**2) ** 0.5:.2f} would not be significant among 4 tests"
    assert expected in described(TOPK, *flat)
    assert expected in described(TOPK, *flat, summary("8experts_bh_a060", RISING))
    assert "±0.58" not in described(TOPK, *flat)


@pytest.mark.parametrize("level", [0.05, 0.05 / 16])
def test_the_smallest_visible_correlation_is_where_p_is_at_the_level(level):
    n, rho = 12, smallest_visible_correlation(12, level)
    t = rho * ((n - 2) / (1 - rho**2)) ** 0.5
    assert 2 * stats.t.sf(t, n - 2) == pytest.approx(level)


def test_too_few_prompts_can_show_nothing():
    levels, values = (1, 1, 2, 2), (1.0, 2.0, 3.0, 4.0)
    trend = difficulty_trend([summary("8experts_bh_a030", values, levels)])
    p_value = trend["avg_experts_prompt_p_value"].item()
    assert smallest_attainable_p([2, 2]) == pytest.approx(p_value)
    assert smallest_attainable_p([1]) == 1
    text = described(summary("8experts_bh_a030", values, levels))
    assert (
        "(4) leave it undecided: whatever the expert counts, the Holm-corrected p would not be below the "
        "level"
    ) in text


def test_sentences_where_there_is_little_to_say():
    assert described(TOPK).startswith("No adaptive configuration ran on the prompts")
    one_level = described(summary("8experts_bh_a030", RISING, (2,) * 12))
    assert "all prompts have difficulty 2" in one_level
    assert "Spearman" not in one_level
    no_new_tokens = described(summary("8experts_bh_a030", RISING, new=[None] * 12))
    assert "new tokens" not in no_new_tokens
    without_level_one = described(summary("8experts_bh_a030", RISING[3:], LEVELS[3:]))
    assert "at difficulty 2 to 2.00 at 4" in without_level_one
    for text in (one_level, no_new_tokens, without_level_one):
        assert "nan" not in text


def test_the_figure_shows_the_tables_values(tmp_path):
    table = difficulty_table(grid())
    figure = draw_difficulty_figure(results_tables.study(), table)
    assert illegible(figure) == []
    axes = np.array(figure.axes).reshape(2, 4)
    for row, column in zip(axes, ("avg_experts_prompt", "avg_experts_new"), strict=True):
        assert row[0].get_yscale() == "log"
        assert row[0].get_ylabel().endswith("experts\nper token and layer (log)")
        for ax, max_k in zip(row, (8, 16, 32, 64), strict=True):
            lines = [container.lines[0].get_ydata() for container in ax.containers]
            own = table[table["k_or_max_k"].eq(max_k) & table["strategy"].eq("bh")]
            for y, (_, expected) in zip(lines, own.groupby("alpha"), strict=True):
                assert list(y) == expected[column].tolist()
            assert [line.get_ydata()[0] for line in ax.lines if line.get_color() == "black"] == [8]
    assert [ax.get_xlabel() for ax in axes[1]] == ["difficulty (level)"] * 4
    save(figure, tmp_path / "figure.png", DPI)
    with Image.open(tmp_path / "figure.png") as image:
        assert image.info["dpi"] == pytest.approx((300, 300), abs=0.1)
        assert image.width == pytest.approx(300 * figure.get_figwidth(), abs=2)


@pytest.mark.parametrize(
    "options, summaries",
    [
        ({}, [one for one in grid() if not one["config"].startswith("16")]),
        ({}, [one for one in grid() if one["config"] not in ("8experts_bh_a030", "64experts_bh_a060")]),
        ({"max_ks": (16,), "alphas": (0.3,)}, [summary("16experts_bh_a030", RISING[3:], LEVELS[3:])]),
        ({"ks": ()}, grid()[1:]),
    ],
    ids=["no max_k 16", "two missing", "one configuration, no level 1", "no baseline"],
)
def test_the_figure_is_legible_with_configurations_missing(options, summaries):
    figure = draw_difficulty_figure(results_tables.study(**options), difficulty_table(summaries))
    assert illegible(figure) == []
    texts = [text.get_text() for ax in figure.axes for text in ax.texts]
    drawn = [ax for ax in figure.axes if ax.containers]
    assert len(figure.axes) == len(drawn) + len(texts)  # an empty multiple says so


def test_a_linear_axis_is_not_called_logarithmic():
    table = difficulty_table([TOPK, summary("16experts_bh_a030", [e + 4 for e in RISING])])
    first = draw_difficulty_figure(results_tables.study(), table).axes[0]
    assert first.get_yscale() == "linear"
    assert first.get_ylabel().endswith("per token and layer")


def test_the_figure_says_that_no_bh_configuration_ran():
    (axes,) = draw_difficulty_figure(results_tables.study(max_ks=()), difficulty_table([TOPK])).axes
    assert [text.get_text() for text in axes.texts] == ["no adaptive configuration ran on the prompts"]


def test_the_report_has_a_section_only_with_prompts(tmp_path):
    assert list(difficulty_section(None, tmp_path)) == []
    table, trend = difficulty_table(grid()[:3]), difficulty_trend(grid()[:3])
    figure = tmp_path / "visualizations" / "experts by difficulty.png"
    heading, sentences, image, _, rows = difficulty_section((table, trend, figure), tmp_path)
    assert heading == "## Experts by difficulty"
    assert sentences == describe_difficulty(table, trend)
    assert image.endswith("(visualizations/experts%20by%20difficulty.png)")
    assert len(rows.splitlines()) == 2 + 3
    assert "<br>`8experts_topk_baseline` | 8.00 ± 0.00 |" in rows
    assert rows.splitlines()[2].endswith("| – | – | – |")


def with_prompts():
    """A made-up study whose prompts are far from its other data sets in all that is averaged."""
    parts = results_tables.tables()
    for name in ("experiments", "layers", "comparisons"):
        rows = parts[name][parts[name]["dataset"] == "wikitext"].assign(dataset="prompts")
        if name == "comparisons":
            rows = rows.assign(metric="loss", difference=5.0, p_holm=0.001)
        else:
            rows["avg_experts"] = 1e6
            rows = rows.drop(columns=[c for c in rows if "perplexity" in c])
        parts[name] = pd.concat([parts[name], rows])
    return make_study(**parts, baseline=results_tables.BASELINE)


def test_panels_and_answers_ignore_the_prompts():
    plain, study = results_tables.study(), with_prompts()
    for panel in PANELS:
        assert describe_panel(panel, study) == describe_panel(panel, plain)
    margins = QualityMargins(perplexity=0.02, accuracy=0.02)
    *same, left_out = answer_sections(study, margins)
    assert same == list(answer_sections(plain, margins))
    assert left_out == "Left out of the answers (no perplexity or accuracy): prompts."
    assert main_sentences(study, margins) == main_sentences(plain, margins)
    drawn = [
        [(ax.get_ylim(), [text.get_text() for text in ax.texts]) for ax in draw_figure(one).axes]
        for one in (plain, study)
    ]
    assert drawn[0] == drawn[1]


def test_a_configurations_averages_ignore_the_prompts_where_there_is_more():
    metrics = dict.fromkeys(tables.METRIC_NAMES)
    sizes = {"total_samples": 12, "total_tokens": 600, "forward_seconds": 3.0}

    def experiment(dataset, **values):
        head = {"config": "8experts_bh_a030", "strategy": "bh", "k_or_max_k": 8, "alpha": 0.3}
        own = PLAIN | {"num_experts": 64, "dataset": dataset, "metrics": metrics | sizes | values}
        return head | own

    wikitext = experiment("wikitext", avg_experts=3.0, max_experts=8, latency_ms_per_token=1.0)
    prompts = experiment(
        "prompts", avg_experts=5.0, max_experts=9, latency_ms_per_token=7.0, forward_seconds=90.0
    )
    both, alone = (tables.configurations_table(given) for given in ([wikitext, prompts], [wikitext]))
    pd.testing.assert_frame_equal(both, alone)
    assert both["tokens_per_second"].item() == 200
    assert list(tables.experiments_table([wikitext, prompts])["dataset"]) == ["wikitext", "prompts"]
    only = tables.configurations_table([prompts]).iloc[0]
    assert (only["datasets"], only["avg_experts"]) == ("prompts", 5)
