"""The figure's visual language: one look a configuration, the same in every panel and every figure.

BH: the marker says max_k, the colour says alpha. The colours are viridis, perceptually uniform and made for
colour-blind readers, from green (smallest alpha) to violet (largest): their luminance falls with alpha, so
that they keep their order in greyscale too. Top-k: white circles with a black edge, a shape that BH never
has. Other rules: the marker of their max_k, a hue a rule, darker for later variants. The baseline: a dashed
black line wherever there is an axis for it. What is not a configuration is grey.
"""

from __future__ import annotations

import contextlib
import textwrap
from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.legend_handler import HandlerBase
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from adaptive_routing.analysis import rule_names
from adaptive_routing.analysis.rule_names import label as label
from adaptive_routing.system.files import atomic_path

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path
    from typing import Any, Literal

    import pandas as pd
    from matplotlib.colors import Colormap, Normalize

    from adaptive_routing.analysis.study import Study

DPI = 300
COMPRESSION = {"compress_level": 3}  # of PNGs: 5 % larger than at 6, the default, in two thirds of the time

MARKERS = "^sDPXv*p<>hd"
LARGER = {"P": 1.2, "X": 1.15, "*": 1.4, "p": 1.15, "h": 1.15, "d": 1.15}  # than others at the same area
SMALLEST_ALPHA, LARGEST_ALPHA = 0.80, 0.04  # places on viridis, whose light end is too pale on white
# Of the other rules, in turn: the colour of a single variant, and those of the first and last of several.
RULES = (
    ("#d55e00", "#f9b27e", "#a03d00"),  # vermilion
    ("#cc79a7", "#edbfd8", "#93306c"),  # pink
    ("#e69f00", "#f7d98a", "#a56f00"),  # gold
    ("#56b4e9", "#b5def7", "#1c6ea4"),  # sky
    ("#7f7f2a", "#c5c58a", "#4d4d10"),  # olive
    ("#8c2d04", "#c79072", "#551a00"),  # brown
    ("#d62728", "#f3a5a5", "#8b1012"),  # red
    ("#6b6b6b", "#bcbcbc", "#3c3c3c"),  # grey
)
MOST_NAMED = 6  # variants of other rules in the legend by name; of more, every rule has a strip
MOST_SWATCHES = 6  # of alphas in the legend; more become a strip
INK = "#1a1a1a"
NEUTRAL = "#555555"
PALE = "#b8b8b8"
NO_VALUE = "#f2f2f2"
BASELINE: dict[str, Any] = {"color": "black", "linewidth": 1.0, "linestyle": (0, (5, 2))}
TOPK: dict[str, Any] = {
    "linestyle": "none", "marker": "o", "color": "black", "markerfacecolor": "white", "markersize": 4.6,
    "markeredgewidth": 0.9,
}  # fmt: skip
SMALL = 6.0  # points, the smallest text
# Change against the baseline: blue is better, orange worse (Okabe and Ito's blue and vermilion), white none.
BETTER, WORSE = ("#023858", "#0072b2", "#9ecae1", "#ffffff"), ("#ffffff", "#fdc899", "#d55e00", "#6b2400")

SETTINGS: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "sans-serif"],
    "font.size": 7.0,
    "axes.labelsize": 6.8,
    "axes.labelpad": 2.5,
    "axes.linewidth": 0.6,
    "axes.edgecolor": "#333333",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.titlelocation": "left",
    "grid.color": "#e8e8e8",
    "grid.linewidth": 0.5,
    "axes.axisbelow": True,
    "xtick.labelsize": 6.4,
    "ytick.labelsize": 6.4,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "xtick.major.pad": 2.5,
    "ytick.major.pad": 2.0,
    "legend.frameon": False,
    "legend.fontsize": 6.8,
    "lines.linewidth": 1.0,
    "lines.markersize": 4.4,
    "errorbar.capsize": 0,
    "svg.fonttype": "none",  # real text
    "svg.hashsalt": "adaptive_routing",  # the same element names in every run
}


def visual_language() -> contextlib.ExitStack:
    """Context in which figures are drawn and saved."""
    context = contextlib.ExitStack()
    context.enter_context(mpl.rc_context())
    mpl.rcdefaults()
    mpl.rcParams.update(SETTINGS)
    return context


def new_figure(size: tuple[float, float], layout: Literal["constrained"] | None = "constrained") -> Figure:
    """An empty figure of `size` inches; layout None: its parts are placed by hand."""
    figure = Figure(figsize=size, dpi=DPI, layout=layout)
    FigureCanvasAgg(figure)
    if layout == "constrained":
        figure.get_layout_engine().set(w_pad=0.06, h_pad=0.05, wspace=0.04, hspace=0.05)  # ty: ignore[missing-union-attribute, unknown-argument]
    return figure


def headline(figure: Figure, title: str, note: str, size: float) -> None:
    """Write a figure's title of `size` points, and below it a note, above a constrained layout."""
    width, height = figure.get_size_inches()
    # A letter is about half as wide as high.
    lines = textwrap.wrap(note, max(20, int((width - 0.2) * 72 / (0.52 * 0.86 * size))))
    line = 1.25 * 0.86 * size / 72  # inches
    room = 1.5 * size / 72 + line * len(lines) + 0.08
    figure.get_layout_engine().set(rect=(0, 0, 1, 1 - room / height))  # ty: ignore[missing-union-attribute, unknown-argument]
    at = height - 1.3 * size / 72
    figure.text(0.08 / width, at / height, title, fontsize=size, weight="bold")
    for i, text in enumerate(lines, start=1):
        figure.text(0.08 / width, (at - i * line) / height, text, fontsize=0.86 * size, color=NEUTRAL)


def save(figure: Figure, path: Path | str, dpi: float = DPI) -> None:
    """Write a figure as PNG or SVG, whole or not at all, and the same bytes for the same figure.

    `Figure.savefig` lays a figure out for each file, by drawing all of it once more. Here that is done once.
    """
    with visual_language(), atomic_path(path) as temporary:
        figure.dpi = dpi
        canvas = FigureCanvasAgg(figure)
        if figure.get_layout_engine() is not None:
            figure.get_layout_engine().execute(figure)  # ty: ignore[missing-union-attribute]
            figure.set_layout_engine("none")
        if str(path).endswith(".svg"):
            FigureCanvasSVG(figure).print_svg(temporary, metadata={"Date": None, "Creator": None})
        else:
            canvas.print_png(temporary, metadata={"Software": None}, pil_kwargs=COMPRESSION)


def alpha_colour(study: Study, alpha: float) -> tuple[float, float, float]:
    """The colour of an alpha by its rank among the study's on viridis: (red, green, blue) in [0, 1]."""
    count = len(study.alphas)
    place = study.alphas.index(float(alpha)) / (count - 1) if count > 1 else 0.6
    return mpl.colormaps["viridis"](SMALLEST_ALPHA + place * (LARGEST_ALPHA - SMALLEST_ALPHA))[:3]


def max_k_marker(study: Study, max_k: float) -> str:
    """The marker of a max_k: its rank among the study's max_k."""
    return MARKERS[study.max_ks.index(int(max_k)) % len(MARKERS)]


def other_colour(study: Study, name: str) -> tuple[float, float, float]:
    """The colour of one of `Study.others`: (red, green, blue) in [0, 1].

    Its rule decides the hue, its place among the rule's variants how dark it is.
    """
    rules = list(dict.fromkeys(map(study.family, study.others)))
    family = study.family(name)
    turn, hue = divmod(rules.index(family), len(RULES))
    single, *ends = map(mpl.colors.to_rgb, RULES[hue])
    own = [other for other in study.others if study.family(other) == family]
    colour = single
    if len(own) > 1:
        place = own.index(name) / (len(own) - 1)
        colour = tuple((1 - place) * first + place * last for first, last in zip(*ends, strict=True))
    # Rules beyond the last hue begin again, each turn darker, so that no two share a colour.
    red, green, blue = (0.75**turn * part for part in colour)
    return red, green, blue


def variant_colour(study: Study, one: float | str) -> tuple[float, float, float]:
    """The colour of one of `Study.variants`."""
    return other_colour(study, one) if isinstance(one, str) else alpha_colour(study, one)


def colours(study: Study, rows: pd.DataFrame) -> list[tuple[float, float, float]]:
    """The colours of rows of configurations beside top-k."""
    return [variant_colour(study, study.variant(row)) for _, row in rows.iterrows()]


def colour(study: Study, config: str) -> tuple[float, float, float]:
    """The colour of a configuration's marks: black for top-k, else its variant's."""
    row = _row(study, config)
    return (0.0, 0.0, 0.0) if row["strategy"] == "topk" else variant_colour(study, study.variant(row))


def marker(study: Study, config: str) -> str:
    """The marker of a configuration: a circle for top-k (to be filled with white), else its max_k's."""
    row = _row(study, config)
    return "o" if row["strategy"] == "topk" else max_k_marker(study, row["k_or_max_k"])


def variant_text(one: float | str) -> str:
    """What to call one of `Study.variants` in a figure: `α 0.3`, `top-p p 0.3`."""
    return rule_names.variant(one) if isinstance(one, str) else f"α {alpha_text(one)}"


def alpha_text(alpha: float) -> str:
    """An alpha as the config file has it, as far as four digits go."""
    return f"{alpha:.4g}"


def baseline_label(study: Study) -> str:
    """What to call the baseline in the figure; its name where it has no results."""
    return study.baseline if study.baseline_row is None else label(study.baseline)


def reference_name(study: Study) -> str:
    """What to write at the baseline's line: its label where that is short."""
    name = baseline_label(study)
    return name if len(name) <= 8 else "baseline"


def change_colours(low: float, high: float, lower_is_better: bool) -> tuple[Colormap, Normalize]:
    """(colour map, norm) of changes from `low` to `high`: white at 0, blue better, orange worse.

    The same distance from 0 is equally strong on both sides.
    """
    reach = max(-low, high, 1e-9)
    sides = [*BETTER, *WORSE[1:]] if lower_is_better else [*WORSE[::-1], *BETTER[::-1][1:]]
    colours = mpl.colors.LinearSegmentedColormap.from_list("change", sides, N=512)
    return colours.with_extremes(bad=NO_VALUE), mpl.colors.Normalize(-reach, reach)


def plain_colours(low: float, high: float) -> tuple[Colormap, Normalize]:
    """(colour map, norm) of values that have no baseline: greys, darker for larger ones."""
    colours = mpl.colors.LinearSegmentedColormap.from_list("plain", ("#f7f7f7", "#4d4d4d"))
    return colours.with_extremes(bad=NO_VALUE), mpl.colors.Normalize(low, max(high, low + 1e-9))


def luminance(rgb: Any) -> float:
    """Relative luminance (WCAG 2) of a colour, 0 black to 1 white."""
    channels = np.asarray(mpl.colors.to_rgb(rgb))
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))


def ink_on(rgb: Any) -> str:
    """Black or white, whichever has more contrast on a colour."""
    return "black" if (luminance(rgb) + 0.05) ** 2 > 0.05 * 1.05 else "white"


def points(study: Study, max_k: float, size: float) -> dict[str, Any]:
    """The look of a max_k's points in `Axes.scatter`, `size` points wide, colours apart."""
    shape = max_k_marker(study, max_k)
    return {
        "marker": shape, "s": (size * LARGER.get(shape, 1.0)) ** 2, "edgecolors": INK, "linewidths": 0.4,
    }  # fmt: skip


def legend_handles(study: Study) -> list[list[Line2D]]:
    """The legend's entries in groups: shapes, colours, references. The first of a group carries its name."""
    alone = rule_names.only_rule(study)
    shapes, first = [], f"{alone} with max_k " if alone else "max_k "
    for i, max_k in enumerate(study.max_ks):
        shape, name = max_k_marker(study, max_k), f"{first}{max_k}" if i == 0 else f"{max_k}"
        shapes.append(
            Line2D([], [], linestyle="none", marker=shape, color="#888888", label=name, markeredgecolor=INK,
                   markersize=4.6 * LARGER.get(shape, 1.0), markeredgewidth=0.4)
        )  # fmt: skip
    references = [] if study.topk.empty else [Line2D([], [], label="top-k", **TOPK)]
    if study.baseline_row is not None:
        references.append(Line2D([], [], label=f"baseline, {baseline_label(study)}", **BASELINE))
    return [group for group in (shapes, variant_handles(study), references) if group]


def variant_handles(study: Study) -> list[Line2D]:
    """Legend entries of the colours: of the alphas, then of the variants of other strategies."""
    return [*_alpha_handles(study), *_other_handles(study)]


def _other_handles(study):
    """Legend entries of the variants of other rules: each by name, or of many one strip a rule."""
    if len(study.others) <= MOST_NAMED:
        return [Strip([other_colour(study, name)], variant_text(name)) for name in study.others]
    handles = []
    for family in dict.fromkeys(map(study.family, study.others)):
        own = [name for name in study.others if study.family(name) == family]
        text = rule_names.rule(family)
        if len(own) > 1:
            first, last = (rule_names.numbers(name) or [name] for name in (own[0], own[-1]))
            text += f", {first[0]} to {last[0].split()[-1]}"
        handles.append(Strip([other_colour(study, name) for name in own], text))
    return handles


def _alpha_handles(study):
    """Legend entries of the alphas: a swatch each, or one strip from the smallest to the largest of many."""
    if len(study.alphas) > MOST_SWATCHES:
        ends = f"{alpha_text(study.alphas[0])} to {alpha_text(study.alphas[-1])}"
        return [Strip([alpha_colour(study, alpha) for alpha in study.alphas], f"α {ends}")]
    return [
        Strip([alpha_colour(study, alpha)], f"α {alpha_text(alpha)}" if i == 0 else alpha_text(alpha))
        for i, alpha in enumerate(study.alphas)
    ]


def legend_rows(groups: Iterable[Sequence[Line2D]], width: float) -> list[list[Line2D]]:
    """Divide groups of legend entries into rows of at most `width` inches; only too wide a group is split."""
    rows, free = [[]], width
    for group in groups:
        if sum(map(_entry_width, group)) > free and rows[-1]:
            rows.append([])
            free = width
        for handle in group:
            if _entry_width(handle) > free and rows[-1]:
                rows.append([])
                free = width
            rows[-1].append(handle)
            free -= _entry_width(handle)
    return rows


def add_legend(figure: Figure, rows: Sequence[Sequence[Line2D]], row_height: float) -> None:
    """One legend at the figure's bottom, each row centred."""
    for i, handles in enumerate(reversed(rows)):
        figure.legend(
            handles=handles, loc="lower center", ncols=len(handles), columnspacing=1.3, handletextpad=0.4,
            handlelength=1.5, borderaxespad=0, borderpad=0.2, handler_map=HANDLERS,
            bbox_to_anchor=(0.5, (0.03 + i * row_height) / figure.get_figheight()),
        )  # fmt: skip


def _entry_width(handle):
    """About how many inches a legend entry takes."""
    return 0.32 + 0.062 * len(handle.get_label())


class Strip(Line2D):
    """Legend entry of colours side by side."""

    def __init__(self, colours: Sequence[tuple[float, float, float]], label: str) -> None:
        super().__init__([], [], label=label)
        self.colours = colours


class _StripHandler(HandlerBase):
    def create_artists(self, legend, handle, x, y, width, height, fontsize, transform):  # ty: ignore[lost-keyword-for-regular-parameter]
        each = width / len(handle.colours)
        return [
            Rectangle((x + i * each, y), each, height, facecolor=colour, linewidth=0, transform=transform)
            for i, colour in enumerate(handle.colours)
        ]


HANDLERS = {Strip: _StripHandler()}


def _row(study, config):
    rows = study.configurations[study.configurations["config"] == config]
    return rows.iloc[0]
