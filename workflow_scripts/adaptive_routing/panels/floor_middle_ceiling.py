"""Panel 6: how often BH selects min_k experts, max_k experts, or a number between, as its own choice."""

import numpy as np

from adaptive_routing.panels import TITLES, style

TITLE = f"6  {TITLES['6_floor_middle_ceiling']}"
# Greys, so that no share looks like a configuration: floor, middle, ceiling.
FILLS = ("#d9d9d9", "#969696", "#333333")
NAMES = ("floor", "middle", "ceiling")


def draw(figure, cell, study):
    rows, *parts = shares(study)
    if rows.empty:
        return style.nothing_to_show(figure, cell, TITLE, "no BH configuration has these shares")
    axes = figure.add_subplot(cell)
    style.heading(axes, TITLE, "floor: min_k; middle: BH's own count; ceiling: max_k")
    places = np.arange(len(rows)) + 0.8 * (rows["k_or_max_k"].diff().fillna(0) != 0).cumsum().to_numpy()
    bottom = np.zeros(len(rows))
    labels = []
    for share, fill, name in zip(parts, FILLS, NAMES, strict=True):
        axes.bar(places, share, bottom=bottom, width=0.86, color=fill, edgecolor="white", linewidth=0.3)
        labels.append((bottom[-1] + share[-1] / 2, name, False))
        bottom += share
    for max_k in study.max_ks:
        group = places[(rows["k_or_max_k"] == max_k).to_numpy()]
        if len(group):
            _name_group(axes, study, max_k, group.mean())
    axes.set_xlim(places[0] - 0.7, places[-1] + 0.7)
    axes.set(ylim=(0, 114), yticks=range(0, 101, 20))
    axes.axhline(100, zorder=0, **style.BASELINE)
    if len(rows) <= 24:
        axes.set_xticks(places, [f"{alpha:.4g}" for alpha in rows["alpha"]])
    else:
        axes.set_xticks([])
    axes.tick_params(axis="x", rotation=90, length=0, labelsize=5.5, pad=1)
    axes.grid(axis="x", visible=False)
    axes.set_ylabel("share of token-layers (%)")
    axes.set_xlabel("α (target false discovery rate), ascending within each max_k")
    style.edge_labels(axes, [*labels, (100, "top-k", True)])


def shares(study):
    """Return the BH rows that have both rates, and their floor, middle and ceiling shares in percent.

    Where min_k = max_k the one count is floor and ceiling at once; it is shown as ceiling.
    """
    rows = study.bh.dropna(subset=["floor_hit_rate", "ceiling_hit_rate"])
    ceiling = rows["ceiling_hit_rate"].to_numpy(float)
    floor = np.minimum(rows["floor_hit_rate"].to_numpy(float), 100 - ceiling)
    return rows, floor, np.clip(100 - floor - ceiling, 0, 100), ceiling


def describe(study):
    rows, floor, middle, ceiling = shares(study)
    if rows.empty:
        return "No BH configuration has these shares."
    names = rows["config"].tolist()
    free, bound, lowest = int(middle.argmax()), int(ceiling.argmax()), int(floor.argmax())
    return (
        f"BH chooses the number itself, between floor and ceiling, most often in `{names[free]}` "
        f"({middle[free]:.0f} % of token-layers); the ceiling cuts it off most often in `{names[bound]}` "
        f"({ceiling[bound]:.0f} %), and the floor holds it up most often in `{names[lowest]}` "
        f"({floor[lowest]:.0f} %)."
    )


def _name_group(axes, study, max_k, centre):
    text = f"max_k {max_k}" if len(study.max_ks) <= 5 else f"{max_k}"
    axes.text(centre, 109, text, ha="center", va="center_baseline", fontsize=5.5)
    axes.plot(
        [centre], [103.5], linestyle="none", marker=style.marker(study, max_k), markersize=3.2,
        color=style.colour(study, max_k), zorder=4,
    )  # fmt: skip
