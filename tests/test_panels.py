"""The figure: what it shows is what the tables hold, in any study, without one text over another."""

import itertools
import multiprocessing
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import results_tables
from adaptive_routing.analysis.study import make_study, read_study
from adaptive_routing.figures import grid_axis, labels, layout, quality, scales, style
from adaptive_routing.figures.panels import PANELS, describe_panel, draw_figure, draw_panel, save_drawings
from adaptive_routing.figures.panels.alpha_max_k_heatmap import quality_changes
from adaptive_routing.figures.panels.floor_middle_ceiling import shares, spread
from adaptive_routing.figures.panels.pareto_frontier import frontier
from adaptive_routing.system.errors import InputError
from hypothesis import given, settings
from hypothesis import strategies as st
from legibility import illegible, texts_of
from matplotlib import image
from matplotlib.collections import PathCollection
from matplotlib.transforms import Bbox
from PIL import Image
from studies import STUDIES

REPOSITORY = Path(__file__).parents[1]
PRINTED = 297 / 25.4, 210 / 25.4  # A4 landscape, inches


@pytest.fixture(params=STUDIES)
def any_study(request):
    return STUDIES[request.param]()


@pytest.fixture(scope="module")
def full():
    return STUDIES["full"]()


def test_the_list_of_panels_costs_no_matplotlib():
    check = (
        "import sys; from adaptive_routing.figures.panels import PANELS; "
        "print(len(PANELS), 'matplotlib' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", check], env={"PYTHONPATH": ":".join(sys.path)}, capture_output=True
    )
    assert done.stdout.strip() == b"9 False", done.stderr


def test_what_reads_the_tables_imports_no_library_of_statistics():
    check = (
        "import sys; import adaptive_routing.report.markdown, adaptive_routing.figures.style;"
        "print(sorted({'scipy.stats', 'scipy.optimize', 'statsmodels'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", check], env={"PYTHONPATH": ":".join(sys.path)}, capture_output=True
    )
    assert done.stdout.strip() == b"[]", done.stderr


def test_the_page_is_legible_and_whole_in_any_study(any_study):
    figure = draw_figure(any_study)
    assert figure.get_size_inches() == pytest.approx(PRINTED, abs=0.01)
    assert illegible(figure) == []
    numbered = [text.get_text() for text in figure.texts if text.get_weight() == "bold"]
    assert [title.split()[0] for title in numbered] == [str(i) for i in range(1, 10)]
    # Every panel shows something.
    assert all(axes.has_data() for axes in figure.axes)
    legend = style.legend_rows(style.legend_handles(any_study), figure.get_figwidth())
    cells = layout.cells(figure, *layout.page(len(PANELS))[1], len(legend))
    centres = [axes.get_position().bounds for axes in figure.axes]
    centres = [(PRINTED[0] * (x + w / 2), PRINTED[1] * (y + h / 2)) for x, y, w, h in centres]
    for panel, cell in zip(PANELS, cells, strict=True):
        box = Bbox.from_bounds(cell.left, cell.bottom, cell.width, cell.height)
        assert any(box.contains(*centre) for centre in centres), panel


@pytest.mark.parametrize("name", ["full", "84 configurations", "BH is the baseline", "four data sets"])
def test_panels_alone_are_legible(name):
    study = STUDIES[name]()
    for panel in PANELS:
        figure = draw_panel(panel, study)
        assert illegible(figure) == [], panel


def test_what_cannot_be_read_is_seen():
    with style.visual_language():
        figure = style.new_figure((2, 2), layout=None)
        for x, text in ((0.2, "first"), (0.25, "second"), (0.95, "outside")):
            figure.text(x, 0.5, text)
        figure.text(0.1, 0.1, "tiny", fontsize=5)
    assert illegible(figure) == [("first", "second"), "outside", "tiny"]


def test_every_axis_is_named(full):
    for panel in PANELS:
        axes = draw_panel(panel, full).axes
        # Small multiples share the names of their first column and last row.
        lefts, bottoms = ({round(one.get_position().bounds[i], 3) for one in axes} for i in (0, 1))
        for one in axes:
            if round(one.get_position().x0, 3) == min(lefts):
                assert one.get_ylabel(), panel
        assert any(one.get_xlabel() for one in axes if round(one.get_position().y0, 3) == min(bottoms)), panel


def test_a_study_without_any_quality_says_so():
    study = results_tables.study(datasets=("prompts",))
    study = make_study(
        study.experiments, study.configurations, study.layers, study.comparisons.iloc[:0], study.baseline
    )
    for panel in ("1_perplexity", "2_task_accuracy", "4_alpha_max_k_heatmap", "9_speed_quality"):
        figure = draw_panel(panel, study)
        assert figure.axes == []
        assert any(text.get_text().startswith("no ") for text in figure.texts), panel
        assert describe_panel(panel, study).endswith(".")


def test_sentences_hold_no_nan(any_study):
    for panel in PANELS:
        sentence = describe_panel(panel, any_study)
        assert sentence.endswith(".")
        assert "nan" not in sentence.replace("`", " ").split()


def points_of(axes):
    """(x, y, face colour, marker path) of every BH point, from left to right."""
    found = []
    for collection in axes.collections:
        if isinstance(collection, PathCollection):
            path = collection.get_paths()[0].vertices.tobytes()
            for (x, y), colour in zip(collection.get_offsets(), collection.get_facecolors(), strict=True):
                found.append((x, y, tuple(colour[:3]), path))
    return sorted(found)


@pytest.mark.parametrize(
    "panel, column", [("1_perplexity", "perplexity"), ("3_average_experts", "avg_experts")]
)
def test_points_show_the_tables_values(full, panel, column):
    (axes,) = draw_panel(panel, full).axes
    # From left to right is the order of the table: by max_k, in it by alpha.
    assert [y for _, y, _, _ in points_of(axes)] == pytest.approx(full.bh[column].tolist())
    levels = [line.get_ydata()[0] for line in axes.lines if line.get_linestyle() == "--"]
    assert levels == [full.baseline_value(column)]
    circles = [line.get_ydata()[0] for line in axes.lines if line.get_marker() == "o"]
    near = full.topk[column] <= axes.get_ylim()[1]
    assert circles[: near.sum()] == full.topk[column][near].tolist()


def test_error_bars_are_one_standard_error(full):
    (axes,) = draw_panel("1_perplexity", full).axes
    low, high = grid_axis.around(
        grid_axis.by_config(full, "perplexity"), grid_axis.by_config(full, "perplexity_stderr")
    )
    drawn = [
        (path[0, 1], path[1, 1])
        for bars in axes.collections
        if hasattr(bars, "get_segments") and bars.get_transform() == axes.transData
        for path in bars.get_segments()
        if path[0, 0] == path[1, 0]
    ]
    for config in full.bh["config"]:
        assert any(np.allclose(ends, (low[config], high[config])) for ends in drawn), config


def test_accuracies_without_a_data_set_become_paired_differences():
    study = STUDIES["wikitext alone"]()
    (axes,) = draw_panel("2_task_accuracy", study).axes
    assert [y for _, y, _, _ in points_of(axes)] == pytest.approx([0.5] * len(study.bh))
    assert describe_panel("2_task_accuracy", study).endswith(
        "lies above 0 (worse) for 19 of 19 configurations and below 0 (better) for 0, before any correction."
    )


def test_a_configuration_looks_the_same_in_every_panel(full):
    looks = {}
    for panel, column in (("1_perplexity", "perplexity"), ("5_pareto_frontier", "token_perplexity")):
        (axes,) = draw_panel(panel, full).axes
        for _, y, colour, path in points_of(axes):
            row = full.bh.iloc[(full.bh[column] - y).abs().argmin()]
            looks.setdefault(row["config"], set()).add((colour, path))
    assert len(looks) == len(full.bh)
    assert all(len(one) == 1 for one in looks.values())
    assert len(set.union(*looks.values())) == len(full.bh)  # and none looks like another
    for config, ((colour, _),) in looks.items():
        assert style.colour(full, config) == pytest.approx(colour)


@settings(deadline=None)
@given(count=st.integers(2, 40))
def test_alphas_keep_their_order_in_greyscale(count):
    study = SimpleNamespace(alphas=[i / 100 for i in range(1, count + 1)])
    luminance = [style.luminance(style.alpha_colour(study, alpha)) for alpha in study.alphas]
    assert np.all(np.diff(luminance) < 0)  # darker for a larger alpha
    assert contrast(1.0, max(luminance)) > 1.6  # against the page
    if count <= style.MOST_SWATCHES:  # each has a swatch of its own: neighbours differ to the eye
        assert min(contrast(a, b) for a, b in itertools.pairwise(luminance)) > 1.2


def test_max_ks_differ_in_shape_and_from_top_k():
    count = len(style.MARKERS)
    study = results_tables.study(max_ks=tuple(range(4, 4 + count)), alphas=(0.3,), ks=(8,))
    shapes = {style.marker(study, config) for config in study.bh["config"]}
    assert len(shapes) == count
    assert style.marker(study, study.baseline) not in shapes


def contrast(lighter, darker):
    """Contrast ratio of two luminances (WCAG 2)."""
    return (lighter + 0.05) / (darker + 0.05)


@settings(deadline=None)
@given(low=st.floats(-300, 50), high=st.floats(-50, 300), lower_is_better=st.booleans())
def test_changes_are_blue_or_orange_darker_the_larger_and_their_numbers_legible(low, high, lower_is_better):
    colours, norm = style.change_colours(min(low, high), max(low, high), lower_is_better)
    reach = norm.vmax
    assert colours(norm(0.0))[:3] == pytest.approx((1, 1, 1), abs=0.02)
    for sign in (-1, 1):
        side = [colours(norm(sign * reach * share))[:3] for share in np.linspace(0.05, 1, 20)]
        better = (sign < 0) == lower_is_better
        assert all((rgb[2] > rgb[0]) == better for rgb in side)
        assert np.all(np.diff([style.luminance(rgb) for rgb in side]) <= 1e-9)
        for rgb in side:
            ink = style.luminance(style.ink_on(rgb))
            assert contrast(*sorted((ink, style.luminance(rgb)), reverse=True)) > 4.5


def test_names_of_configurations(full):
    assert style.label("8experts_topk_baseline") == style.baseline_label(full) == "top-8"
    assert style.label("16experts_bh_a040") == "BH max_k 16, α 0.4"
    assert style.label("16experts_bh_a0305") == "BH max_k 16, α 0.305"
    assert style.baseline_label(STUDIES["without the baseline"]()) == results_tables.BASELINE


def test_a_level_far_outside_is_written_at_the_edge(full):
    study = make_study(
        full.experiments, full.configurations.copy(), full.layers, full.comparisons, full.baseline
    )
    far = study.configurations["config"] == "16experts_topk_baseline"
    study.configurations.loc[far, ["perplexity", "token_perplexity"]] = 2163
    (axes,) = draw_panel("1_perplexity", study).axes
    assert any("↑2.16k" in text.get_text() for text in axes.texts)
    (axes,) = draw_panel("5_pareto_frontier", study).axes
    assert any("top-16 ↑2.16k" in text.get_text() for text in axes.texts)


def test_a_level_far_outside_does_not_flatten_the_rest(full):
    (axes,) = draw_panel("1_perplexity", full).axes
    assert axes.get_ylim()[1] < full.topk["perplexity"].max() / 2
    assert any("↑43" in text.get_text() for text in axes.texts)


@settings(deadline=None, max_examples=30)
@given(
    held=st.lists(st.floats(1, 100), min_size=1, max_size=8),
    others=st.lists(st.floats(1, 1e6), max_size=5),
)
def test_limits_hold_what_must_be_seen(held, others):
    with style.visual_language():
        axes = style.new_figure((3, 2), layout=None).add_subplot()
        above, below = scales.fit_y(axes, held, others)
    low, high = axes.get_ylim()
    assert low < min(held) and max(held) < high
    for value, over, under in zip(others, above, below, strict=True):
        assert over or under or low < value < high
        assert not (over or under) or not min(held) <= value <= max(held)


@settings(deadline=None, max_examples=15)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=12, unique=True))
def test_placed_names_do_not_meet(points):
    with style.visual_language():
        figure = style.new_figure((3, 2), layout=None)
        axes = figure.add_subplot(xticks=[], yticks=[])
        names = [(x, y, f"name {i}", "normal") for i, (x, y) in enumerate(points)]
        labels.place(axes, names, points, [])
    assert illegible(figure) == []
    assert len(axes.texts) >= 1 or len(points) > 1  # one alone always finds room


@pytest.mark.parametrize("name", ["full", "many max_k", "one max_k", "top-k alone", "older grid"])
def test_every_configuration_has_its_own_place(name):
    study = STUDIES[name]()
    places = grid_axis.Places.of(study)
    x = [places.x(row) for _, row in study.configurations.iterrows()]
    assert len(set(np.round(x, 6))) == len(x)
    for place, k in zip(x, study.configurations["k_or_max_k"], strict=True):
        left, right = places.span(k)
        assert left <= place <= right


def test_axes_are_in_their_cell_and_apart():
    with style.visual_language():
        figure = style.new_figure(layout.PAGE, layout=None)
        cells = layout.cells(figure, 3, 3, 1)
        boxes = [one.get_position() for cell in cells for one in cell.axes(2, 3).ravel()]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    assert all(0 < box.x0 < box.x1 < 1 and 0 < box.y0 < box.y1 < 1 for box in boxes)


@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=12),
    st.booleans(),
)
def test_frontier_is_what_nothing_dominates(points, lower_is_better):
    names = [f"c{i}" for i in range(len(points))]
    experts, values = (pd.Series(column, index=names) for column in zip(*points, strict=True))
    measure = quality.Quality(values, values, "", "", None, lower_is_better, False)
    sign = 1 if lower_is_better else -1
    costs = {(cost, sign * value) for cost, value in points}
    expected = {
        cost
        for cost in costs
        if not any(other != cost and other[0] <= cost[0] and other[1] <= cost[1] for other in costs)
    }
    found = frontier(experts, measure)
    assert [(experts[one], sign * values[one]) for one in found] == sorted(expected)


@given(st.lists(st.floats(0, 100), max_size=3))
def test_names_of_shares_are_spread_in_order_within_bounds(places):
    moved = spread(sorted(places), 6.5, 2, 98)
    assert np.all(np.diff(moved) >= 6.5 - 1e-9)
    assert all(2 - 1e-9 <= place <= 98 + 1e-9 for place in moved)


def test_shares_sum_to_all_token_layers(full):
    rows, floor, middle, ceiling = shares(full)
    assert len(rows) == len(full.bh)
    assert floor + middle + ceiling == pytest.approx(np.full(len(rows), 100))
    assert floor == pytest.approx(rows["floor_hit_rate"].to_numpy())


def test_min_k_equal_to_max_k_is_all_ceiling():
    study = results_tables.study(max_ks=(1,))
    study.configurations.loc[
        study.configurations["strategy"] == "bh", ["floor_hit_rate", "ceiling_hit_rate"]
    ] = 100
    _, floor, middle, ceiling = shares(study)
    assert (floor == 0).all() and (middle == 0).all() and (ceiling == 100).all()


def test_heat_map_is_relative_to_the_baseline(full):
    changes = quality_changes(full)
    assert (changes.unit, changes.lower_is_better) == ("%", True)
    assert changes.values[results_tables.BASELINE] == 0
    row = full.bh.iloc[0]
    assert changes.values[row["config"]] == pytest.approx(100 * (row["token_perplexity"] - 11.0) / 11.0)
    expected = {
        c for c in full.configurations["config"] if full.verdict(c, "wikitext") in ("better", "worse")
    }
    assert changes.starred == expected
    lambada = STUDIES["lambada alone"]()
    changes = quality_changes(lambada)
    assert (changes.unit, changes.lower_is_better) == ("points", False)
    comparison = lambada.comparison("16experts_bh_a030", "lambada")
    ends = changes.low["16experts_bh_a030"], changes.high["16experts_bh_a030"]
    assert ends == pytest.approx((100 * comparison["ci_low"], 100 * comparison["ci_high"]))
    loss = quality_changes(STUDIES["prompts alone"]())
    assert loss.values["16experts_bh_a030"] == pytest.approx(100 * (np.exp(0.5) - 1))


def test_heat_map_without_the_baseline_shows_the_values_themselves():
    study = STUDIES["without the baseline"]()
    changes = quality_changes(study)
    assert not changes.from_baseline
    assert changes.values.tolist() == study.configurations["token_perplexity"].tolist()


def test_heat_map_writes_every_change_with_its_sign(full):
    axes = draw_panel("4_alpha_max_k_heatmap", full).axes[0]
    written = {
        (text.get_position()[0], round(text.get_position()[1])): text.get_text() for text in axes.texts
    }
    assert len(written) == len(full.configurations)
    changes = quality_changes(full)
    for _, row in full.bh.iterrows():
        place = full.max_ks.index(row["k_or_max_k"]), 1 + full.alphas.index(row["alpha"])
        value = changes.values[row["config"]]
        star = "*" if row["config"] in changes.starred else ""
        assert written[place] == f"{value:+z.1f}{star}".replace("-", "−")


@pytest.mark.parametrize("columns", [1, 4, 8])
def test_what_a_cell_of_the_heat_map_says_lies_within_it(columns):
    counts = (8, 2, 4, 12, 16, 24, 32, 48)[:columns]
    study = results_tables.study(effect=lambda *_: (3.0, 0.1, 0.001), max_ks=counts, ks=counts)
    figure = draw_figure(study)
    (axes,) = [axes for axes in figure.axes if axes.get_ylabel() == "α (level of BH)"]
    written = {text.get_text() for text in axes.texts}
    boxes = [box for text, box, _ in texts_of(figure) if text in written - {"0"}]
    assert len(boxes) >= 4 and any(text.startswith("+27") for text in written)
    assert max(box.width for box in boxes) < axes.get_window_extent().width / columns


@pytest.mark.parametrize(
    "better, words",
    [(0, "none of them lies below"), (1, "one of them lies below"), (2, "2 of them lie below")],
)
def test_counts_in_sentences_are_singular_or_plural(better, words):
    study = results_tables.study(effect=lambda config, dataset: (0.5, 0.1, 0.9))
    rows = study.bh.index[:better]
    study.configurations.loc[rows, "perplexity"] = 10.0
    assert f"; {words} the baseline" in describe_panel("1_perplexity", study)


def test_a_negative_change_has_a_minus_sign():
    study = results_tables.study(effect=lambda config, dataset: (-1.0, 0.1, 0.9))
    sentence = describe_panel("4_alpha_max_k_heatmap", study)
    assert "by −9.1 % at best" in sentence and "-9" not in sentence


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_the_same_study_gives_the_same_bytes(full, tmp_path, suffix):
    paths = [tmp_path / f"{i}.{suffix}" for i in range(2)]
    for path in paths:
        style.save(draw_panel("5_pareto_frontier", full), path)
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_a_saved_figure_is_the_one_that_savefig_makes(full, tmp_path):
    for suffixes in (["png", "svg"], ["svg", "png"]):
        figure = draw_panel("7_expert_utilization", full)
        for suffix in suffixes:
            style.save(figure, tmp_path / f"{suffixes[0]}_first.{suffix}")
    with style.visual_language():
        draw_panel("7_expert_utilization", full).savefig(tmp_path / "savefig.png", dpi=style.DPI)
    first, second, expected = (
        image.imread(tmp_path / name) for name in ("png_first.png", "svg_first.png", "savefig.png")
    )
    np.testing.assert_array_equal(first, second)
    np.testing.assert_allclose(first, expected, atol=0.01)
    assert (tmp_path / "png_first.svg").read_bytes() == (tmp_path / "svg_first.svg").read_bytes()


@pytest.mark.parametrize("processes", [2, 3, 20])
def test_drawings_are_the_same_from_any_number_of_processes(full, tmp_path, processes):
    names = ["2_task_accuracy", "5_pareto_frontier", "6_floor_middle_ceiling"]
    written = []
    for number in (1, processes):
        files = {name: [tmp_path / f"{number}_{name}.{s}" for s in ("png", "svg")] for name in names}
        save_drawings(full, files, number)
        written.append([path.read_bytes() for paths in files.values() for path in paths])
    assert written[0] == written[1]


@pytest.mark.parametrize("failing", [0, 1])
def test_a_drawing_that_fails_fails_the_job_and_leaves_no_process(full, tmp_path, failing):
    names = ["5_pareto_frontier", "6_floor_middle_ceiling"]
    files = {name: [tmp_path / f"{name}.png"] for name in names}
    (tmp_path / "file").write_text("")
    files[names[failing]] = [tmp_path / "file" / "panel.png"]
    with pytest.raises((OSError, RuntimeError)):
        save_drawings(full, files, processes=2)
    assert multiprocessing.active_children() == []


def test_a_png_has_300_dots_an_inch(full, tmp_path):
    figure = draw_panel("1_perplexity", full)
    style.save(figure, tmp_path / "panel.png")
    with Image.open(tmp_path / "panel.png") as one:
        assert one.info["dpi"] == pytest.approx((300, 300), abs=0.1)
        assert one.width == pytest.approx(300 * figure.get_figwidth(), abs=2)


def test_svg_holds_real_text(full, tmp_path):
    style.save(draw_panel("1_perplexity", full), tmp_path / "panel.svg")
    svg = (tmp_path / "panel.svg").read_text()
    assert ">perplexity, exp(mean sample loss)</text>" in svg
    assert "<dc:date>" not in svg


def test_every_panel_has_a_caption_of_its_own():
    captions = {path.stem: path.read_text() for path in (REPOSITORY / "report").glob("panel_*.rst")}
    assert set(captions) == {f"panel_{panel}" for panel in PANELS}
    assert len(set(captions.values())) == len(PANELS)


def test_empty_and_incomplete_tables_are_refused(tmp_path):
    tables = results_tables.tables()
    paths = {name: tmp_path / f"{name}.csv" for name in tables}
    for name, table in tables.items():
        table.to_csv(paths[name], index=False)
    assert len(read_study(**paths, baseline="8experts_topk_baseline").configurations) == 20

    tables["layers"].iloc[:0].to_csv(paths["layers"], index=False)
    with pytest.raises(InputError, match="table of layers is empty"):
        read_study(**paths, baseline="8experts_topk_baseline")
    tables["layers"].drop(columns="layer").to_csv(paths["layers"], index=False)
    with pytest.raises(InputError, match="no column layer"):
        read_study(**paths, baseline="8experts_topk_baseline")
    paths["layers"].write_text("")
    with pytest.raises(InputError, match="is empty"):
        read_study(**paths, baseline="8experts_topk_baseline")
    paths["layers"].unlink()
    with pytest.raises(InputError, match="does not exist"):
        read_study(**paths, baseline="8experts_topk_baseline")
