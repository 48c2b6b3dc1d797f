"""The figure: what it shows is what the tables hold, in any study, without one text over another."""

import multiprocessing
import subprocess
import sys
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
import results_tables
from adaptive_routing.errors import InputError
from adaptive_routing.panels import PANELS, describe_panel, draw_figure, draw_panel, save_drawings, style
from adaptive_routing.panels.alpha_max_k_heatmap import quality_measure
from adaptive_routing.panels.floor_middle_ceiling import shares
from adaptive_routing.panels.pareto_frontier import frontier
from adaptive_routing.study import make_study, read_study
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import image
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Annotation

ALPHAS_20 = tuple(i / 20 for i in range(1, 21))


def without(study, *configs):
    """The study as if these configurations had no results."""
    tables = (study.experiments, study.configurations, study.layers, study.comparisons)
    return make_study(*(table[~table["config"].isin(configs)] for table in tables), study.baseline)


def nulled(study, *columns):
    """The study with nothing in these columns."""
    frames = [table.copy() for table in (study.experiments, study.configurations)]
    for frame in frames:
        frame[list(columns)] = np.nan
    return make_study(*frames, study.layers, study.comparisons, study.baseline)


STUDIES = {
    "full": lambda: results_tables.study(),
    "older grid": lambda: results_tables.study(
        max_ks=(4, 8, 16, 32, 64), alphas=(0.01, 0.05, 0.1, 0.2), ks=(8,)
    ),
    "84 configurations": lambda: results_tables.study(alphas=ALPHAS_20),
    "many max_k": lambda: results_tables.study(max_ks=(4, 8, 12, 16, 24, 32, 48, 64), alphas=ALPHAS_20[:10]),
    "one configuration": lambda: results_tables.study(max_ks=(8,), alphas=(0.3,), ks=(8,)),
    "wikitext alone": lambda: results_tables.study(datasets=("wikitext",)),
    "lambada alone": lambda: results_tables.study(datasets=("lambada",)),
    "four data sets": lambda: results_tables.study(
        datasets=("wikitext", "lambada", "hellaswag", "arc_challenge")
    ),
    "top-k alone": lambda: results_tables.study(max_ks=()),
    "BH alone": lambda: results_tables.study(ks=()),
    "without the baseline": lambda: without(results_tables.study(), results_tables.BASELINE),
    "holes in the grid": lambda: without(results_tables.study(), "16experts_bh_a040", "64experts_bh_a060"),
    "no second pass": lambda: nulled(results_tables.study(), "latency_ms_per_token", "expert_overlap_score"),
}


@pytest.fixture(params=STUDIES)
def any_study(request):
    return STUDIES[request.param]()


@pytest.fixture(scope="module")
def full():
    return STUDIES["full"]()


def test_the_list_of_panels_costs_no_matplotlib():
    check = (
        "import sys; from adaptive_routing.panels import PANELS; "
        "print(len(PANELS), 'matplotlib' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", check], env={"PYTHONPATH": ":".join(sys.path)}, capture_output=True
    )
    assert done.stdout.strip() == b"9 False", done.stderr


def test_what_reads_the_tables_imports_no_library_of_statistics():
    check = (
        "import sys; import adaptive_routing.report, adaptive_routing.panels.style;"
        "print(sorted({'scipy.stats', 'scipy.optimize', 'statsmodels'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", check], env={"PYTHONPATH": ":".join(sys.path)}, capture_output=True
    )
    assert done.stdout.strip() == b"[]", done.stderr


def test_the_page_is_legible_in_any_study(any_study):
    figure = draw_figure(any_study)
    assert overlaps(figure) == []
    numbered = [ax.get_title("left") for ax in figure.axes if ax.get_title("left")]
    assert [title.split()[0] for title in numbered] == [str(i) for i in range(1, 10)]


def test_panels_alone_are_legible(full):
    for panel in PANELS:
        assert overlaps(draw_panel(panel, full)) == [], panel


def test_every_axis_is_named_and_no_panel_is_empty(full):
    figure = draw_figure(full)
    for axes in figure.axes:
        if axes.get_label() == "<colorbar>":
            assert axes.get_ylabel()
            continue
        assert axes.get_xlabel(), axes.get_title("left")
        assert axes.get_ylabel(), axes.get_title("left")
        assert axes.has_data(), axes.get_title("left")


def test_a_panel_without_numbers_says_so():
    study = STUDIES["lambada alone"]()
    texts = [text.get_text() for text in draw_panel("1_perplexity", study).axes[0].texts]
    assert texts == ["no data set of this study has a perplexity"]


def test_sentences_hold_no_nan(any_study):
    for panel in PANELS:
        sentence = describe_panel(panel, any_study)
        assert sentence.endswith(".")
        assert "nan" not in sentence.replace("`", " ").split()


@pytest.mark.parametrize(
    "panel, column", [("1_perplexity", "perplexity"), ("3_average_experts", "avg_experts")]
)
def test_lines_show_the_tables_values(full, panel, column):
    (axes,) = draw_panel(panel, full).axes
    points = [line.get_ydata()[0] for line in axes.lines if line.get_marker() in style.MARKERS]
    assert sorted(points) == pytest.approx(sorted(full.bh[column]))
    levels = [line.get_ydata()[0] for line in axes.lines if line.get_linestyle() == "--"]
    assert levels == [full.baseline_value(column)]


def test_error_bars_are_one_standard_error(full):
    (axes,) = draw_panel("1_perplexity", full).axes
    heights = [np.ptp(path[:, 1]) for bars in axes.collections for path in bars.get_segments()]
    assert heights == pytest.approx(2 * full.bh["perplexity_stderr"].to_numpy())


def test_a_configuration_looks_the_same_in_every_panel(full):
    looks = {}
    for panel, column in (("1_perplexity", "perplexity"), ("5_pareto_frontier", "perplexity")):
        (axes,) = draw_panel(panel, full).axes
        for line in axes.lines:
            if (
                line.get_marker() in style.MARKERS
                and len(line.get_ydata()) == 1
                and line.get_color() != "black"
            ):
                row = full.bh.iloc[(full.bh[column] - line.get_ydata()[0]).abs().argmin()]
                look = (line.get_marker(), line.get_color(), line.get_markerfacecolor())
                looks.setdefault(row["config"], set()).add(look)
    assert len(looks) == len(full.bh)
    assert all(len(one) == 1 for one in looks.values())
    assert len(set.union(*looks.values())) == len(full.bh)  # and none looks like another


@given(count=st.integers(2, 12))
def test_max_k_colours_are_ordered_in_greyscale(count):
    study = results_tables.study(max_ks=tuple(range(4, 4 + count)), alphas=(0.3,), ks=(8,))
    luminance = [np.dot(style.colour(study, max_k), (0.2126, 0.7152, 0.0722)) for max_k in study.max_ks]
    assert np.all(np.diff(luminance) > 0)
    assert len({style.marker(study, max_k) for max_k in study.max_ks}) == count


@given(count=st.integers(1, 12))
def test_every_line_is_visible_in_greyscale(count):
    study = results_tables.study(max_ks=tuple(range(4, 4 + count)), ks=(8,))
    for max_k in study.max_ks:
        shades = [style.line_colour(study, max_k, alpha) for alpha in study.alphas]
        luminance = [np.dot(shade, (0.2126, 0.7152, 0.0722)) for shade in shades]
        assert max(luminance) < 0.75
        assert np.all(np.diff(luminance) < 0)  # darker for a larger alpha


def test_a_note_stays_within_its_panel(full):
    # On the page a panel is about a third of its width.
    figure = draw_figure(full)
    canvas = FigureCanvasAgg(figure)
    with style.visual_language():
        canvas.draw()
    renderer = canvas.get_renderer()
    axes = {ax.get_title("left")[:1]: ax for ax in figure.axes if ax.get_title("left")}
    for number, ax in axes.items():
        right = axes.get(str(int(number) + 1))
        limit = figure.bbox.x1 if int(number) % 3 == 0 else right.get_window_extent(renderer).x0
        notes = [t for t in ax.texts if isinstance(t, Annotation) and t.get_fontsize() == style.SMALL]
        for note in notes:
            box = super(Annotation, note).get_window_extent(renderer)
            assert box.x1 < limit - 0.01 * figure.bbox.width, note.get_text()


def test_a_level_far_outside_is_written_as_the_ticks_are(full):
    study = make_study(
        full.experiments, full.configurations.copy(), full.layers, full.comparisons, full.baseline
    )
    study.configurations.loc[study.configurations["config"] == "16experts_topk_baseline", "perplexity"] = 2163
    (axes,) = draw_panel("1_perplexity", study).axes
    assert any("top-16 ↑ 2.16k" in text.get_text() for text in axes.texts)


def test_a_level_far_outside_does_not_flatten_the_rest(full):
    (axes,) = draw_panel("1_perplexity", full).axes
    assert axes.get_ylim()[1] < full.topk["perplexity"].max() / 2
    assert any("top-64 ↑ 42" in text.get_text() for text in axes.texts)


@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=12),
    st.sampled_from(["perplexity", "avg_task_accuracy"]),
)
def test_frontier_is_what_nothing_dominates(points, column):
    table = pd.DataFrame(points, columns=["avg_experts", column])
    table = table.assign(config=[f"c{i}" for i in table.index])

    class Tables:
        configurations = table

    sign = 1 if column == "perplexity" else -1
    costs = {(experts, sign * quality) for experts, quality in points}
    expected = {
        cost
        for cost in costs
        if not any(other != cost and other[0] <= cost[0] and other[1] <= cost[1] for other in costs)
    }
    found = frontier(Tables, column)
    assert list(zip(found["avg_experts"], sign * found[column], strict=True)) == sorted(expected)


@given(st.lists(st.floats(0, 1), max_size=10))
def test_labels_are_spread_in_order_within_bounds(places):
    gap = 0.08
    moved = style.spread(places, gap)
    order = np.argsort(places, kind="stable")
    assert np.all(np.diff(moved[order]) >= gap - 1e-9)
    assert np.all((moved >= -1e-9) & (moved <= 1 + 1e-9))
    if len(places) > 1 and np.diff(np.sort(places)).min() >= gap:
        assert moved == pytest.approx(places)


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
    changes, _, unit, lower_is_better = quality_measure(full)
    assert (unit, lower_is_better) == ("%", True)
    assert changes[results_tables.BASELINE] == 0
    row = full.bh.iloc[0]
    assert changes[row["config"]] == pytest.approx(100 * (row["perplexity"] - 11.0) / 11.0)
    _, _, unit, lower_is_better = quality_measure(STUDIES["lambada alone"]())
    assert (unit, lower_is_better) == ("points", False)


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


def test_svg_holds_real_text(full, tmp_path):
    style.save(draw_panel("1_perplexity", full), tmp_path / "panel.svg")
    svg = (tmp_path / "panel.svg").read_text()
    assert ">perplexity, exp(mean sample loss)</text>" in svg
    assert "<dc:date>" not in svg


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


def overlaps(figure):
    """Pairs of texts that cover each other, or text outside the page; labels of data points may meet."""
    canvas = FigureCanvasAgg(figure)
    with style.visual_language():
        canvas.draw()
        renderer = canvas.get_renderer()
        texts = []
        for axes in figure.axes:
            texts += [axes.title, axes._left_title, axes.xaxis.label, axes.yaxis.label]
            for axis in (axes.xaxis, axes.yaxis):
                low, high = sorted(axis.get_view_interval())
                ticks = zip(axis.get_ticklocs(), axis.get_ticklabels(), strict=False)
                texts += [label for place, label in ticks if low <= place <= high]
            texts += [t for t in axes.texts if isinstance(t, Annotation) and t.xycoords == "axes fraction"]
        texts += [text for legend in figure.legends for text in legend.get_texts()]
        boxes = []
        for text in texts:
            if text.get_text() and text.get_visible():
                # An annotation's own extent includes its leader line.
                box = super(Annotation, text) if isinstance(text, Annotation) else text
                boxes.append((text.get_text(), box.get_window_extent(renderer).padded(-1)))
    faults = [(a, b) for (a, box_a), (b, box_b) in combinations(boxes, 2) if box_a.overlaps(box_b)]
    page = figure.bbox.padded(2)
    faults += [
        a for a, box in boxes if box.x0 < page.x0 or box.x1 > page.x1 or box.y0 < page.y0 or box.y1 > page.y1
    ]
    return faults
