"""The figure's visual language: one look per configuration, the same in every panel.

BH: max_k gives colour and marker (viridis, whose lightness is monotone: readable in greyscale and by the
colour-blind), alpha gives the filling, from pale (small) to full (large). Top-k: black rings that carry
their k. The baseline: a dashed black line wherever the axis allows one.
"""

import contextlib

import matplotlib as mpl
import numpy as np
import scipy  # loads `optimize` when it is first used: the report does not need it
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.legend_handler import HandlerBase
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from adaptive_routing.files import atomic_path

PAGE = (11.69, 8.27)  # A4 landscape, inches
SINGLE = (5.4, 4.0)
DPI = 250
COMPRESSION = {"compress_level": 3}  # of PNGs: 5 % larger than at 6, the default, in two thirds of the time

MARKERS = "osD^vP*X<>hp"
NEUTRAL = "#555555"
BASELINE = {"color": "black", "linewidth": 1.0, "linestyle": (0, (5, 2))}
SMALL = 6.0

SETTINGS = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "sans-serif"],
    "font.size": 7.0,
    "axes.titlesize": 8.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 13.0,
    "axes.labelsize": 7.0,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.5,
    "axes.axisbelow": True,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "legend.frameon": False,
    "legend.fontsize": 6.5,
    "lines.linewidth": 1.1,
    "lines.markersize": 4.2,
    "errorbar.capsize": 0,
    "svg.fonttype": "none",  # real text
    "svg.hashsalt": "adaptive_routing",  # the same element names in every run
}


def visual_language():
    """Context in which figures are drawn and saved."""
    context = contextlib.ExitStack()
    context.enter_context(mpl.rc_context())
    mpl.rcdefaults()
    mpl.rcParams.update(SETTINGS)
    return context


def new_figure(size):
    """An empty figure of `size` inches whose parts do not overlap (constrained layout)."""
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.06, h_pad=0.05, wspace=0.04, hspace=0.05)
    return figure


def save(figure, path, dpi=DPI):
    """Write a figure as PNG or SVG, whole or not at all, and the same bytes for the same figure.

    `Figure.savefig` lays a figure out for each file, by drawing all of it once more. Here that is done once.
    """
    with visual_language(), atomic_path(path) as temporary:
        figure.dpi = dpi
        canvas = FigureCanvasAgg(figure)
        figure.get_layout_engine().execute(figure)
        figure.set_layout_engine("none")
        if str(path).endswith(".svg"):
            FigureCanvasSVG(figure).print_svg(temporary, metadata={"Date": None, "Creator": None})
        else:
            canvas.print_png(temporary, metadata={"Software": None}, pil_kwargs=COMPRESSION)


def colour(study, max_k):
    """The colour of a max_k: its place among this study's max_k on viridis (the light end left out)."""
    places = np.linspace(0.05, 0.66, len(study.max_ks)) if len(study.max_ks) > 1 else [0.35]
    return mpl.colormaps["viridis"](places[study.max_ks.index(int(max_k))])[:3]


def marker(study, max_k):
    """The marker of a max_k."""
    return MARKERS[study.max_ks.index(int(max_k)) % len(MARKERS)]


def filling(study, max_k, alpha):
    """The face colour of a configuration: its max_k's colour, paler for a smaller alpha."""
    return _shade(colour(study, max_k), study.alphas.index(float(alpha)), len(study.alphas))


def line_colour(study, max_k, alpha):
    """The colour of a configuration's line: as its filling, but visible on white for any alpha."""
    return _shade(colour(study, max_k), study.alphas.index(float(alpha)), len(study.alphas), palest=0.65)


def baseline_label(study):
    """What to call the baseline in the figure."""
    row = study.baseline_row
    if row is None or row["strategy"] != "topk":
        return study.baseline
    return f"top-{int(row['k_or_max_k'])}"


def heading(axes, panel_title, note):
    """Set a panel's title, and below it a note on how to read it."""
    axes.set_title(panel_title)
    text = axes.annotate(
        note, (0, 1), xytext=(0, 3.5), xycoords="axes fraction", textcoords="offset points",
        fontsize=SMALL, color=NEUTRAL, annotation_clip=False,
    )  # fmt: skip
    # Like the title, the note may reach over the axes beside it in the same panel.
    text.set_in_layout(False)


def nothing_to_show(figure, cell, panel_title, reason):
    """Fill a panel whose numbers this study does not have with the reason."""
    axes = figure.add_subplot(cell)
    axes.set_title(panel_title)
    axes.set(xticks=[], yticks=[])
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.text(0.5, 0.5, reason, ha="center", va="center", color=NEUTRAL, transform=axes.transAxes, wrap=True)


def lines_over_alpha(axes, study, column, error=None, interval=None):
    """Draw `column` of the BH configurations over alpha, one line a max_k.

    error: column of standard errors; interval: (lowest, highest), two Series by configuration. Points of
    different max_k are set a little apart, so that their bars do not hide each other.
    """
    spacing = min(0.02, 0.6 / max(1, len(study.max_ks) * len(study.alphas)))
    for i, max_k in enumerate(study.max_ks):
        rows = study.bh[(study.bh["k_or_max_k"] == max_k) & study.bh[column].notna()]
        if rows.empty:
            continue
        x = _apart(study, rows["alpha"].to_numpy(float), spacing * (i - (len(study.max_ks) - 1) / 2))
        y = rows[column].to_numpy(float)
        hue = colour(study, max_k)
        axes.plot(x, y, color=hue, zorder=3)
        if error is not None and error in rows:
            bars = rows[error].fillna(0).to_numpy(float)
            axes.errorbar(x, y, yerr=bars, fmt="none", ecolor=hue, elinewidth=0.8, zorder=3)
        if interval is not None:
            low, high = (series.reindex(rows["config"]).to_numpy(float) for series in interval)
            axes.vlines(x, low, high, color=hue, linewidth=0.8, zorder=3)
        for x_i, y_i, alpha in zip(x, y, rows["alpha"], strict=True):
            point(axes, study, max_k, alpha, x_i, y_i)
    alpha_axis(axes, study)


def scatter(axes, study, x, y, error=None):
    """Draw every configuration's `y` against its `x`: BH joined along alpha, top-k joined along k."""
    topk = study.topk.dropna(subset=[x, y])
    axes.plot(topk[x], topk[y], color=NEUTRAL, linewidth=0.8, linestyle=":", zorder=2)
    for max_k in study.max_ks:
        rows = study.bh[study.bh["k_or_max_k"] == max_k].dropna(subset=[x, y])
        axes.plot(rows[x], rows[y], color=colour(study, max_k), linewidth=0.8, alpha=0.6, zorder=3)
        for _, row in rows.iterrows():
            point(axes, study, max_k, row["alpha"], row[x], row[y])
    for _, row in topk.iterrows():
        ring(axes, row["k_or_max_k"], row[x], row[y])
    if error in study.configurations:
        for _, row in study.configurations.dropna(subset=[x, y, error]).iterrows():
            bh = row["strategy"] == "bh"
            hue = colour(study, row["k_or_max_k"]) if bh else "black"
            axes.errorbar(row[x], row[y], row[error], fmt="none", ecolor=hue, elinewidth=0.6, zorder=2)


def point(axes, study, max_k, alpha, x, y):
    """Draw one BH configuration's marker."""
    axes.plot(
        [x], [y], linestyle="none", marker=marker(study, max_k), color=colour(study, max_k),
        markerfacecolor=filling(study, max_k, alpha), markeredgewidth=0.8, zorder=4,
    )  # fmt: skip


def ring(axes, k, x, y):
    """Draw one top-k configuration: a black ring with its k."""
    axes.plot(
        [x], [y], "o", color="black", markerfacecolor="white", markersize=8.5, markeredgewidth=0.8, zorder=5
    )
    axes.annotate(
        f"{int(k)}", (x, y), ha="center", va="center_baseline", fontsize=5.0 if k < 100 else 4.0, zorder=6
    )


def alpha_axis(axes, study, most_ticks=6, label="α (target false discovery rate)"):
    """The x axis over alpha, logarithmic where the alphas span a decade; ticks at the study's own alphas."""
    alphas = np.array(study.alphas)
    axes.set_xlabel(label)
    if len(alphas) == 0:
        axes.set_xticks([])
        return
    if _log_alpha(alphas):
        axes.set_xscale("log")
    places = np.log(alphas) if _log_alpha(alphas) else alphas
    axes.xaxis.set_major_locator(FixedLocator(_thin(alphas, places, most_ticks)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    ends = _apart(study, alphas[[0, -1]], 0.07)[1], _apart(study, alphas[[0, -1]], -0.07)[0]
    axes.set_xlim(ends[1], ends[0])


def count_axis(axes, name, values):
    """Axis `name` ("x" or "y") shows expert counts: powers of two where the values span a factor 4."""
    positive = _finite(values)
    if len(positive) and positive.min() > 0 and positive.max() / positive.min() >= 4:
        low, high = np.floor(np.log2(positive.min())), np.ceil(np.log2(positive.max()))
        axis = _set_log(axes, name, base=2)
        axis.set_major_locator(FixedLocator(2.0 ** np.arange(low, high + 1)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_locator(NullLocator())


def ratio_axis(axes, name, values):
    """Axis `name` shows positive values such as perplexity: logarithmic where they span a factor 3."""
    positive = _finite(values)
    axis = axes.xaxis if name == "x" else axes.yaxis
    if len(positive) and positive.min() > 0 and positive.max() / positive.min() > 3:
        axis = _set_log(axes, name, base=10)
        decades = 10.0 ** np.arange(np.floor(np.log10(positive.min())), np.ceil(np.log10(positive.max())) + 1)
        steps = (1, 1.5, 2, 3, 5, 7) if positive.max() / positive.min() < 30 else (1, 3)
        axis.set_major_locator(FixedLocator(np.outer(decades, steps).ravel()))
        axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(_short))


def topk_levels(axes, study, column, named=True):
    """Draw the top-k configurations' values in `column` as horizontal lines, named at the right edge.

    To be called when the axis has its scale and its data. A level far outside of them would flatten all
    the rest: its value is written at the edge instead, with an arrow that says where it lies. Where there
    is no room for names, the legend still tells the baseline.
    """
    levels = [(row[column], f"top-{int(row['k_or_max_k'])}") for _, row in study.topk.iterrows()]
    levels = [(value, name) for value, name in levels if np.isfinite(value)]
    baseline = study.baseline_value(column)
    if np.isfinite(baseline):
        axes.axhline(baseline, zorder=2, **BASELINE)
        if baseline_label(study) not in [name for _, name in levels]:
            levels.append((baseline, "baseline"))
    near = [value for value, _ in levels if -0.6 <= _fraction(axes, value) <= 1.6]
    axes.update_datalim([(axes.get_xlim()[0], value) for value in near])
    axes.autoscale_view(scalex=False)
    labels = []
    for value, name in _merged(levels):
        if value in near:
            if value != baseline:
                axes.axhline(value, color=NEUTRAL, linewidth=0.7, linestyle=":", zorder=2)
            labels.append((value, name, value == baseline))
        else:
            arrow = "↑" if _fraction(axes, value) > 1 else "↓"
            labels.append((value, f"{name} {arrow} {_short(float(f'{value:.3g}'))}", False))
    if named:
        edge_labels(axes, labels)


def edge_labels(axes, labels):
    """Write labels at the right edge, each (y value, text, whether to emphasise it), none over another.

    To be called when the axis has its scale and all its data.
    """
    axes.set_ylim(axes.get_ylim())
    places = np.clip([_fraction(axes, value) for value, _, _ in labels], 0.02, 0.97)
    for place, moved, (_, text, emphasis) in zip(places, spread(places, 0.06), labels, strict=True):
        axes.annotate(
            text, (1, place), xytext=(7, moved), xycoords="axes fraction",
            textcoords=("offset points", "axes fraction"),
            va="center", fontsize=5.5, color="black" if emphasis else NEUTRAL,
            weight="bold" if emphasis else "normal", annotation_clip=False,
            arrowprops={
                "arrowstyle": "-", "color": "#aaaaaa", "linewidth": 0.5, "relpos": (0, 0.5), "shrinkA": 1,
                "shrinkB": 0,
            },
        )  # fmt: skip


def spread(places, gap):
    """Move places in [0, 1] apart until neighbours are `gap` from each other, order and bounds kept.

    With place = shift + rank * gap this is an isotonic regression of the shifts within bounds: the sum of
    squared moves is the least possible. Where not all fit, they start at 0 and leave the interval.
    """
    order = np.argsort(places, kind="stable")
    ranks = np.arange(len(places))
    shifts = (
        scipy.optimize.isotonic_regression(np.asarray(places)[order] - gap * ranks).x
        if len(places)
        else ranks
    )
    moved = np.empty(len(places))
    moved[order] = np.clip(shifts, 0, max(0.0, 1 - gap * (len(places) - 1))) + gap * ranks
    return moved


def legend(figure, study):
    """One legend for the whole figure, below the panels."""
    handles = [
        Line2D(
            [], [], color=colour(study, max_k), marker=marker(study, max_k), label=f"BH max_k {max_k}",
            markeredgewidth=0.8,
        )
        for max_k in study.max_ks
    ]  # fmt: skip
    if len(study.alphas) > 1:
        handles += alpha_handles(study)
    if not study.topk.empty:
        handles.append(_Ring(label="top-k (k in the ring)"))
    if study.baseline_row is not None:
        handles.append(Line2D([], [], label=f"baseline, {baseline_label(study)}", **BASELINE))
    per_row = 11 if figure.get_figwidth() > 8 else 5
    rows = -(-len(handles) // per_row)
    columns = max(1, -(-len(handles) // rows))
    figure.legend(
        handles=handles, loc="outside lower center", ncols=columns, columnspacing=1.4, handletextpad=0.5,
        handler_map={_Ring: _RingHandler()},
    )  # fmt: skip


def alpha_handles(study):
    """Legend entries of the alphas, in grey: all, or the smallest and the largest of many."""
    shown = study.alphas if len(study.alphas) <= 5 else [study.alphas[0], study.alphas[-1]]
    return [
        Line2D(
            [], [], linestyle="none", marker="s", color="#444444", label=f"α {alpha:.4g}",
            markerfacecolor=_shade((0.27,) * 3, study.alphas.index(alpha), len(study.alphas)),
        )
        for alpha in shown
    ]  # fmt: skip


class _Ring(Line2D):
    """Legend entry of the top-k configurations."""

    def __init__(self, label):
        super().__init__([], [], label=label)


class _RingHandler(HandlerBase):
    def create_artists(self, legend, handle, x, y, width, height, fontsize, transform):
        centre = x + width / 2, y + height / 2
        circle = Line2D(
            [centre[0]], [centre[1]], marker="o", color="black", markerfacecolor="white", markersize=8.5,
            markeredgewidth=0.8, linestyle="none", transform=transform,
        )  # fmt: skip
        letter = Text(
            *centre, "k", ha="center", va="center_baseline", fontsize=5.5, style="italic", transform=transform
        )
        return [circle, letter]


def _shade(hue, rank, count, palest=0.12):
    """Blend a colour with white: rank 0 of `count` is pale, the last is full."""
    strength = 1.0 if count == 1 else palest + (1 - palest) * rank / (count - 1)
    return tuple(1 - strength * (1 - np.array(hue)))


def _log_alpha(alphas):
    return alphas[0] > 0 and alphas[-1] / alphas[0] >= 10


def _apart(study, x, share):
    """Shift alphas by a share of the axis's length."""
    alphas = np.array(study.alphas)
    if _log_alpha(alphas):
        return x * (alphas[-1] / alphas[0]) ** share
    width = alphas[-1] - alphas[0]
    return x + share * (width if width > 0 else alphas[0])


def _set_log(axes, name, base):
    if name == "x":
        axes.set_xscale("log", base=base)
        return axes.xaxis
    axes.set_yscale("log", base=base)
    return axes.yaxis


def _merged(levels):
    """One name for the levels that coincide: top-16 and top-32 become top-16, 32."""
    names = {}
    for value, name in levels:
        names.setdefault(value, []).append(name)
    return [
        (value, ", ".join([first, *(name.removeprefix("top-") for name in others)]))
        for value, (first, *others) in names.items()
    ]


def _short(value, _position=None):
    if value >= 1e6:
        return f"{value:.3g}"
    return f"{value / 1000:g}k" if value >= 1000 else f"{value:g}"


def _thin(values, places, most):
    """The values whose places on the axis leave room for at most `most` labels, the last among them."""
    gap = 0.85 * (places[-1] - places[0]) / max(1, most - 1)
    kept = [len(values) - 1]
    for i in reversed(range(len(values) - 1)):
        if places[kept[-1]] - places[i] >= gap:
            kept.append(i)
    return np.asarray(values)[kept[::-1]]


def _finite(values):
    values = np.asarray(values, dtype=float)
    return values[np.isfinite(values)]


def _fraction(axes, value):
    """Where `value` lies on the y axis, as a fraction of its length."""
    low, high = axes.yaxis.get_transform().transform(np.array(axes.get_ylim()))
    return float((axes.yaxis.get_transform().transform(np.array([value]))[0] - low) / (high - low))
