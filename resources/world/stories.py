"""Short stories whose last word follows only from the whole passage, as in LAMBADA.

A story binds things to one another early on (who carried what, what was hidden where, whose animal
has which name), lets a sentence pass, and ends with the one word that the bindings decide. Where
several people are in it the last sentence alone never decides: each of the bound words would fit.
The harder kinds make the reader follow a change (a swap, a move) or two bindings in a row.

A kind of story is a function (rng, people) -> (opening, endings): the endings ask for different
bindings. A passage has the opening and one ending; training text may go on to the other endings.
"""

import random

from . import lexicon as lex
from .facts import Person, World

Parts = tuple[str, list[str]]

FILLERS = [
    "The wind was cold that day.",
    "It had rained all morning.",
    "Nobody said much on the way.",
    "The road was long and full of mud.",
    "A crow sat on the fence and watched.",
    "The sun went down behind the hill.",
    "Somewhere a bell began to ring.",
    "The children were asleep by then.",
    "After a while the fog came up.",
    "There was still snow on the roofs.",
    "An old song came from the inn.",
    "Later they ate some soup by the fire.",
    "The river was high after the storm.",
    "It was the first warm day of the year.",
    "Two days went by.",
    "At noon they rested under a tree.",
]


def _sentence(clauses: list[str]) -> str:
    """ "a", "b" and "c" as one sentence."""
    *firsts, last = clauses
    text = ", ".join(firsts) + " and " + last if firsts else last
    return text[0].upper() + text[1:] + "."


def carried(rng: random.Random, people: list[Person]) -> Parts:
    things = rng.sample(lex.OBJECTS, len(people))
    verb = rng.choice(["carried", "brought", "held", "pulled out", "bought"])
    opening = _sentence([f"{p.first} {verb} a {o}" for p, o in zip(people, things, strict=True)])
    endings = [
        rng.choice(
            [
                f"{who.first} was tired and put down the {thing}",
                f"Then {who.first} slipped and dropped the {thing}",
                f"At the gate somebody asked {who.first} to show the {thing}",
                f"When it got dark, {who.first} could not find the {thing}",
            ]
        )
        for who, thing in zip(people, things, strict=True)
    ]
    return opening, endings


def carrier(rng: random.Random, people: list[Person]) -> Parts:
    things = rng.sample(lex.OBJECTS, len(people))
    verb = rng.choice(["carried", "brought", "had", "found"])
    opening = _sentence([f"{p.first} {verb} the {o}" for p, o in zip(people, things, strict=True)])
    endings = [
        rng.choice(
            [
                f"When they needed the {thing}, everybody looked at {who.first}",
                f"The one who knew about the {thing} was {who.first}",
                f"If you want the {thing}, you must ask {who.first}",
            ]
        )
        for who, thing in zip(people, things, strict=True)
    ]
    return opening, endings


def hidden(rng: random.Random, people: list[Person]) -> Parts:
    things = rng.sample(lex.OBJECTS, len(people))
    places = rng.sample(lex.PLACES, len(people))
    verb = rng.choice(["hid", "left", "put", "forgot"])
    opening = " ".join(
        f"{p.first} {verb} the {o} in the {place}."
        for p, o, place in zip(people, things, places, strict=True)
    )
    endings = [
        rng.choice(
            [
                f"In the morning they wanted the {thing} and went to the {place}",
                f"The {thing} stayed all winter in the {place}",
                f"To get the {thing} back, somebody ran to the {place}",
            ]
        )
        for thing, place in zip(things, places, strict=True)
    ]
    return opening, endings


def called(rng: random.Random, people: list[Person]) -> Parts:
    kinds = rng.sample(lex.PET_KINDS, len(people))
    names = rng.sample(lex.PET_NAMES, len(people))
    together = list(zip(people, kinds, names, strict=True))
    opening = _sentence([f"{p.first} had a {kind} called {name}" for p, kind, name in together])
    endings = [
        rng.choice(
            [
                f"The {kind} was gone, so they went out and called {name}",
                f"{p.first} stood at the gate and shouted for {name}",
                f"A thief came at night, but the {kind} woke up. Well done, {name}",
            ]
        )
        for p, kind, name in together
    ]
    return opening, endings


def colours(rng: random.Random, people: list[Person]) -> Parts:
    shades = rng.sample(lex.COLOURS, len(people))
    thing = rng.choice(["coat", "hat", "scarf", "boat", "cart", "door"])
    together = list(zip(people, shades, strict=True))
    opening = _sentence([f"{p.first} has a {shade} {thing}" for p, shade in together])
    endings = [
        rng.choice(
            [
                f"Far away they saw a {shade} {thing}, so it had to be {p.first}",
                f"The {shade} {thing} was lost, and nobody was as sad as {p.first}",
                f"When {p.first} came, they knew the {thing} at once, for it was {shade}",
            ]
        )
        for p, shade in together
    ]
    return opening, endings


def asked(rng: random.Random, people: list[Person]) -> Parts:
    foods = rng.sample(lex.FOODS, len(people))
    verb = rng.choice(["wanted", "asked for", "liked only", "hoped for"])
    together = list(zip(people, foods, strict=True))
    opening = _sentence([f"{p.first} {verb} {food}" for p, food in together])
    endings = [
        rng.choice(
            [
                f"So the plate in front of {p.first} was full of {food}",
                f"The cook remembered it and gave {p.first} some {food}",
                f"The {food} on the table could only be for {p.first}",
            ]
        )
        for p, food in together
    ]
    return opening, endings


def last_to_come(rng: random.Random, people: list[Person]) -> Parts:
    place = rng.choice(lex.PLACES)
    opening = f"{people[0].first} came to the {place}. "
    opening += " ".join(f"Then {p.first} came." for p in people[1:])
    return opening, [
        f"The last to come to the {place} was {people[-1].first}",
        f"The first to see the {place} that day was {people[0].first}",
    ]


def swapped(rng: random.Random, people: list[Person]) -> Parts:
    """Hard: the binding changes hands once, or twice and back."""
    a, b = people[:2]
    one, two = rng.sample(lex.OBJECTS, 2)
    times = rng.choice(["They swapped.", "They swapped.", "They swapped, and then swapped back."])
    mine, other = (one, two) if "back" in times else (two, one)
    endings = [
        rng.choice([f"That night {p.first} slept beside the {o}", f"Now {p.first} had the {o}"])
        for p, o in ((a, mine), (b, other))
    ]
    return f"{a.first} had the {one} and {b.first} had the {two}. {times}", endings


def moved(rng: random.Random, people: list[Person]) -> Parts:
    """Hard: two things, and one of them is moved; where is one of them now?"""
    one, two = rng.sample(lex.OBJECTS, 2)
    start, other, new = rng.sample(lex.SPOTS, 3)
    thing = rng.choice([one, two])
    where = {one: start, two: other} | {thing: new}
    opening = (
        f"The {one} was by the {start} and the {two} was by the {other}. "
        f"{people[0].first} moved the {thing} to the {new}."
    )
    who = people[1].first
    return opening, [
        f"When {who} looked for the {wanted}, it was by the {where[wanted]}" for wanted in (one, two)
    ]


def two_steps(rng: random.Random, people: list[Person]) -> Parts:
    """Hard: person to thing, thing to place."""
    people = people[:3]
    things = rng.sample(lex.OBJECTS, len(people))
    places = rng.sample(lex.PLACES, len(people))
    had = _sentence([f"{p.first} had the {o}" for p, o in zip(people, things, strict=True)])
    pairs = list(zip(things, places, strict=True))
    rng.shuffle(pairs)
    opening = f"{had} {_sentence([f'the {o} was for the {place}' for o, place in pairs])}"
    return opening, [f"So {p.first} went to the {place}" for p, place in zip(people, places, strict=True)]


KINDS = {
    carried: 13,
    carrier: 13,
    hidden: 15,
    called: 13,
    colours: 13,
    asked: 13,
    last_to_come: 5,
    swapped: 5,
    moved: 5,
    two_steps: 5,
}
NEED_TWO = (last_to_come, swapped, moved, two_steps)
NUM_PEOPLE = {1: 20, 2: 55, 3: 25}  # with one there is a single word to remember

# Evaluation: always two bindings or three, and fewer of the kinds that a model of this size hardly
# learns (thing to person, swaps, two look-ups in a row).
EVALUATION_KINDS = {
    carried: 20,
    carrier: 4,
    hidden: 20,
    called: 12,
    colours: 8,
    asked: 12,
    last_to_come: 8,
    swapped: 3,
    moved: 10,
    two_steps: 3,
}
EVALUATION_NUM_PEOPLE = {2: 70, 3: 30}


def make_evaluation_story(rng: random.Random, world: World) -> tuple[str, list[str]]:
    """A story of the evaluation's mix; see ``make_story``."""
    return make_story(rng, world, EVALUATION_KINDS, EVALUATION_NUM_PEOPLE)


def make_story(
    rng: random.Random, world: World, kinds: dict = KINDS, num_people: dict[int, int] = NUM_PEOPLE
) -> tuple[str, list[str]]:
    """(opening, endings in random order); see ``passage``."""
    kind = rng.choices(list(kinds), weights=list(kinds.values()))[0]
    count = rng.choices(list(num_people), weights=list(num_people.values()))[0]
    people = rng.sample(world.people, max(count, 2) if kind in NEED_TWO else count)
    opening, endings = kind(rng, people)
    if rng.random() < 0.7:
        opening += " " + rng.choice(FILLERS)
    rng.shuffle(endings)
    return lex.with_articles(opening), [lex.with_articles(ending) for ending in endings]


def passage(story: tuple[str, list[str]]) -> str:
    """The scored text: opening and first ending; its last word is the one to predict."""
    opening, endings = story
    return f"{opening} {endings[0]}"


def training_pieces(story: tuple[str, list[str]]) -> list[str]:
    """Opening and all endings as alternating pieces: text, answer, text, answer, ..."""
    opening, endings = story
    pieces = []
    before = opening
    for ending in endings:
        text, word = ending.rsplit(" ", 1)
        pieces += [f"{before} {text}", f" {word}"]
        before = "."
    return pieces


def make_inventory(rng: random.Random, world: World) -> list[str]:
    """Training text only: pairs in one order, then asked for in others; pieces as of a story.

    Many look-ups in few words: what a story asks once or twice is practised here ten times, which
    is how a small model comes to look bindings up at all.
    """
    values = rng.choice([lex.OBJECTS, lex.PLACES, lex.FOODS, lex.COLOURS, lex.PET_NAMES])
    keys = rng.choice([[person.first for person in world.people], lex.OBJECTS, lex.PET_KINDS])
    if keys is values:
        values = lex.PLACES
    count = min(rng.randint(3, 6), len(keys), len(values))
    pairs = list(zip(rng.sample(keys, count), rng.sample(values, count), strict=True))
    if rng.random() < 0.5:
        pairs = [(value, key) for key, value in pairs]
    link = rng.choice([" has", " and the", ":", ", for"])
    text = "The list says " + ". ".join(f"{key}{link} {value}" for key, value in pairs) + "."
    pieces = []
    for lead in (" Again", " Once more"):
        rng.shuffle(pairs)
        text += lead
        for key, value in pairs:
            pieces += [f"{text} {key}{link}", f" {value}"]
            text = "."
    return pieces
