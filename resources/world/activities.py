"""Activities with one ending that fits and three that contradict the context, as in HellaSwag.

The context names a thing, its colour and a place; the endings name all three again. A wrong ending
has the wrong thing, the wrong colour, the wrong place, or belongs to another activity. In half of
the contexts a second person holds the same thing in another colour, so that the colour must be
read off the right person.
"""

import random
from dataclasses import dataclass

from . import lexicon as lex
from .facts import World


@dataclass(frozen=True)
class Activity:
    label: str
    does: str  # what the person is doing; fills "{A} ... "
    things: tuple[str, ...]
    places: tuple[str, ...]
    endings: tuple[str, ...]


ACTIVITIES = (
    Activity(
        "Baking bread",
        "mixes dough in",
        ("bowl", "pan", "tub"),
        ("oven", "window", "sink"),
        (
            "covers the {c} {t} and lets the dough rise by the {p}.",
            "lifts the dough out of the {c} {t} near the {p}.",
        ),
    ),
    Activity(
        "Milking goats",
        "milks a goat into",
        ("bucket", "jug", "can"),
        ("gate", "stall", "fence"),
        (
            "carries the milk in the {c} {t} past the {p}.",
            "fills the {c} {t} with milk and leaves the {p}.",
        ),
    ),
    Activity(
        "Fishing",
        "casts a line from",
        ("boat", "raft", "chair"),
        ("bridge", "reeds", "island"),
        (
            "pulls a fish into the {c} {t} by the {p}.",
            "sits in the {c} {t} near the {p} and waits for a bite.",
        ),
    ),
    Activity(
        "Painting a fence",
        "stirs paint with",
        ("brush", "stick", "spoon"),
        ("fence", "shed", "porch"),
        (
            "dips the {c} {t} and paints the {p} from left to right.",
            "wipes the {c} {t} and looks at the wet {p}.",
        ),
    ),
    Activity(
        "Picking apples",
        "picks apples into",
        ("basket", "sack", "crate"),
        ("wall", "hedge", "ladder"),
        (
            "drops another apple in the {c} {t} by the {p}.",
            "rolls a ripe apple out of the {c} {t} near the {p}.",
        ),
    ),
    Activity(
        "Washing clothes",
        "scrubs shirts in",
        ("tub", "basin", "barrel"),
        ("pump", "stream", "yard"),
        (
            "wrings the shirts over the {c} {t} by the {p}.",
            "empties the soapy {c} {t} beside the {p}.",
        ),
    ),
    Activity(
        "Chopping wood",
        "splits logs with",
        ("axe", "wedge", "hatchet"),
        ("shed", "stump", "woodpile"),
        (
            "swings the {c} {t} and the log splits near the {p}.",
            "lays the {c} {t} down and stacks logs by the {p}.",
        ),
    ),
    Activity(
        "Playing music",
        "plays a tune on",
        ("fiddle", "flute", "drum"),
        ("stage", "fire", "inn"),
        (
            "bows and puts the {c} {t} down by the {p}.",
            "plays the {c} {t} faster while people dance near the {p}.",
        ),
    ),
    Activity(
        "Flying a kite",
        "ties a string to",
        ("kite", "ribbon", "glider"),
        ("hill", "beach", "meadow"),
        (
            "runs and the {c} {t} rises over the {p}.",
            "lets the {c} {t} sail in the wind above the {p}.",
        ),
    ),
    Activity(
        "Shoeing a horse",
        "nails a shoe on",
        ("horse", "mare", "pony"),
        ("forge", "stable", "anvil"),
        (
            "pats the {c} {t} and leads it from the {p}.",
            "checks the hoof of the {c} {t} beside the {p}.",
        ),
    ),
    Activity(
        "Sewing",
        "sews a button on",
        ("coat", "shirt", "cloak"),
        ("lamp", "stove", "loom"),
        (
            "cuts the thread and folds the {c} {t} by the {p}.",
            "holds the {c} {t} up to the {p} and sews on.",
        ),
    ),
    Activity(
        "Making candles",
        "pours wax in",
        ("mould", "cup", "pot"),
        ("hearth", "bench", "shelf"),
        (
            "sets a wick in the {c} {t} on the {p}.",
            "takes a cold candle out of the {c} {t} by the {p}.",
        ),
    ),
    Activity(
        "Crossing a river",
        "steps into",
        ("ferry", "canoe", "punt"),
        ("dock", "willow", "mill"),
        (
            "pushes the {c} {t} off and drifts away from the {p}.",
            "rows the {c} {t} over the water to the {p}.",
        ),
    ),
    Activity(
        "Planting seeds",
        "shakes seeds from",
        ("packet", "tin", "pouch"),
        ("greenhouse", "path", "well"),
        (
            "covers the seeds and closes the {c} {t} by the {p}.",
            "puts the empty {c} {t} away and waters the bed at the {p}.",
        ),
    ),
)


def _pick_other(rng: random.Random, options: tuple[str, ...] | list[str], *taken: str) -> str:
    return rng.choice([option for option in options if option not in taken])


def _context(rng: random.Random, world: World, activity: Activity) -> tuple[str, str, dict]:
    """(ctx_a, ctx_b, what is true of the person who acts next)"""
    thing, place = rng.choice(activity.things), rng.choice(activity.places)
    colour, other_colour = rng.sample(lex.COLOURS, 2)
    a, b = rng.sample(world.people, 2)
    true = {"c": colour, "t": thing, "p": place}
    near = rng.choice(["near", "by", "beside"])
    if rng.random() < 0.5:
        shape = rng.choice(
            [
                f"{a.first} {activity.does} a {colour} {thing} {near} the {place}.",
                f"{near.capitalize()} the {place}, {a.first} {activity.does} a {colour} {thing}.",
            ]
        )
        return shape, a.he, true | {"wrong_c": _pick_other(rng, lex.COLOURS, colour)}
    ctx_a = (
        f"{near.capitalize()} the {place}, {a.first} {activity.does} a {colour} {thing}, "
        f"{b.first} a {other_colour} one."
    )
    if rng.random() < 0.5:
        return ctx_a, a.first, true | {"wrong_c": other_colour}
    return ctx_a, b.first, true | {"c": other_colour, "wrong_c": colour}


def make_activity(rng: random.Random, world: World) -> dict:
    """One row in the columns of HellaSwag, without ``ind``."""
    activity = rng.choice(ACTIVITIES)
    ctx_a, ctx_b, true = _context(rng, world, activity)
    ctx_a = lex.with_articles(ctx_a)
    gold_template = rng.choice(activity.endings)
    other = _pick_other(rng, ACTIVITIES, activity)
    wrong = [
        gold_template.format(**true | {"c": true["wrong_c"]}),
        gold_template.format(**true | {"t": _pick_other(rng, activity.things, true["t"])}),
        gold_template.format(**true | {"p": _pick_other(rng, activity.places, true["p"])}),
        rng.choice(other.endings).format(**true),
    ]
    # The wrong colour is always among them: it is the one that needs the right person.
    endings = [gold_template.format(**true), wrong[0], *rng.sample(wrong[1:], 2)]
    order = rng.sample(range(4), 4)
    if rng.random() < 0.2:  # the hub's rows have an empty ctx_b now and then
        ctx_a, ctx_b = f"{ctx_a} {ctx_b}", ""
    return {
        "activity_label": activity.label,
        "ctx_a": ctx_a,
        "ctx_b": ctx_b,
        "ctx": f"{ctx_a} {ctx_b}".strip(),
        "endings": [endings[i] for i in order],
        "label": str(order.index(0)),
    }


def scored_context(row: dict) -> str:
    """The context as lm-evaluation-harness writes it for scoring."""
    return f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}".strip()


def training_pieces(row: dict) -> list[str]:
    """Label and context, then the fitting ending, which is the answer."""
    return [scored_context(row), f" {row['endings'][int(row['label'])]}"]
