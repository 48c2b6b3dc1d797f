"""Short stories whose last word follows only from the whole passage, as in LAMBADA.

Every story binds things to one another early on (who carried what, what was hidden where, whose
animal has which name), lets a sentence or two pass, and ends with the one word that the bindings
decide. The last sentence alone never decides it: each of the bound words would fit. The harder
kinds make the reader follow a change (a swap, a move) or two bindings in a row.
"""

import random

from . import lexicon as lex
from .facts import Person, World

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


def _filler(rng: random.Random, probability: float = 0.7) -> str:
    return rng.choice(FILLERS) + " " if rng.random() < probability else ""


def _join(clauses: list[str]) -> str:
    """ "a", "b" and "c" as one sentence."""
    return ", ".join(clauses[:-1]) + " and " + clauses[-1] + "."


def carried(rng: random.Random, people: list[Person]) -> str:
    things = rng.sample(lex.OBJECTS, len(people))
    verb = rng.choice(["carried", "brought", "held", "pulled out", "bought"])
    start = _join([f"{p.first} {verb} a {o}" for p, o in zip(people, things, strict=True)])
    i = rng.randrange(len(people))
    who, thing = people[i], things[i]
    end = rng.choice(
        [
            f"{who.first} was tired and put down the {thing}",
            f"Then {who.first} slipped and dropped the {thing}",
            f"At the gate somebody asked {who.first} to show the {thing}",
            f"When it got dark, {who.first} could not find the {thing}",
        ]
    )
    return f"{start} {_filler(rng)}{end}"


def carrier(rng: random.Random, people: list[Person]) -> str:
    things = rng.sample(lex.OBJECTS, len(people))
    verb = rng.choice(["carried", "brought", "had", "found"])
    start = _join([f"{p.first} {verb} the {o}" for p, o in zip(people, things, strict=True)])
    i = rng.randrange(len(people))
    end = rng.choice(
        [
            f"When they needed the {things[i]}, everybody looked at {people[i].first}",
            f"The one who knew about the {things[i]} was {people[i].first}",
            f"If you want the {things[i]}, you must ask {people[i].first}",
        ]
    )
    return f"{start} {_filler(rng)}{end}"


def hidden(rng: random.Random, people: list[Person]) -> str:
    things = rng.sample(lex.OBJECTS, len(people))
    places = rng.sample(lex.PLACES, len(people))
    verb = rng.choice(["hid", "left", "put", "forgot"])
    start = " ".join(
        f"{p.first} {verb} the {o} in the {place}."
        for p, o, place in zip(people, things, places, strict=True)
    )
    i = rng.randrange(len(people))
    who = rng.choice(people)
    end = rng.choice(
        [
            f"In the morning {who.first} wanted the {things[i]} and went to the {places[i]}",
            f"The {things[i]} stayed all winter in the {places[i]}",
            f"To get the {things[i]} back, {who.first} ran to the {places[i]}",
        ]
    )
    return f"{start} {_filler(rng)}{end}"


def called(rng: random.Random, people: list[Person]) -> str:
    kinds = rng.sample(lex.PET_KINDS, len(people))
    names = rng.sample(lex.PET_NAMES, len(people))
    start = _join(
        [
            f"{p.first} had a {kind} called {name}"
            for p, kind, name in zip(people, kinds, names, strict=True)
        ]
    )
    i = rng.randrange(len(people))
    end = rng.choice(
        [
            f"The {kinds[i]} was gone, so they went out and called {names[i]}",
            f"{people[i].first} stood at the gate and shouted for {names[i]}",
            f"A thief came at night, but the {kinds[i]} woke up. Well done, {names[i]}",
        ]
    )
    return f"{start} {_filler(rng)}{end}"


def colours(rng: random.Random, people: list[Person]) -> str:
    shades = rng.sample(lex.COLOURS, len(people))
    thing = rng.choice(["coat", "hat", "scarf", "boat", "cart", "door"])
    start = _join([f"{p.first} has a {c} {thing}" for p, c in zip(people, shades, strict=True)])
    i = rng.randrange(len(people))
    end = rng.choice(
        [
            f"Far away they saw a {shades[i]} {thing}, so it had to be {people[i].first}",
            f"The {shades[i]} {thing} was lost, and nobody was as sad as {people[i].first}",
            f"When {people[i].first} came along, they knew the {thing} at once, for it was "
            f"{shades[i]}",
        ]
    )
    return f"{start} {_filler(rng)}{end}"


def asked(rng: random.Random, people: list[Person]) -> str:
    foods = rng.sample(lex.FOODS, len(people))
    verb = rng.choice(["wanted", "asked for", "liked only", "hoped for"])
    start = _join([f"{p.first} {verb} {f}" for p, f in zip(people, foods, strict=True)])
    i = rng.randrange(len(people))
    end = rng.choice(
        [
            f"So the plate in front of {people[i].first} was full of {foods[i]}",
            f"The cook remembered it and gave {people[i].first} some {foods[i]}",
            f"The {foods[i]} on the table could only be for {people[i].first}",
        ]
    )
    return f"{start} {_filler(rng)}{end}"


def last_to_come(rng: random.Random, people: list[Person]) -> str:
    place = rng.choice(lex.PLACES)
    rest = " ".join(f"Then {p.first} came." for p in people[1:])
    end, who = rng.choice(
        [
            (f"The last to come to the {place} was", people[-1]),
            (f"The first to see the {place} that day was", people[0]),
        ]
    )
    return f"{people[0].first} came to the {place}. {rest} {_filler(rng)}{end} {who.first}"


def swapped(rng: random.Random, people: list[Person]) -> str:
    """Hard: the binding changes hands once, or twice and back."""
    a, b = people[:2]
    one, two = rng.sample(lex.OBJECTS, 2)
    times = rng.choice(["once", "once", "twice"])
    mine, other = (two, one) if times == "once" else (one, two)
    middle = "They swapped." if times == "once" else "They swapped, and then they swapped back."
    who, thing = rng.choice([(a, mine), (b, other)])
    end = rng.choice(
        [f"That night {who.first} slept beside the {thing}", f"Now {who.first} had the {thing}"]
    )
    return f"{a.first} had the {one} and {b.first} had the {two}. {middle} {_filler(rng)}{end}"


def moved(rng: random.Random, people: list[Person]) -> str:
    """Hard: two things, and one of them is moved; where is one of them now?"""
    one, two = rng.sample(lex.OBJECTS, 2)
    start, other, new = rng.sample(lex.SPOTS, 3)
    mover, thing = people[0].first, rng.choice([one, two])
    where = {one: start, two: other} | {thing: new}
    wanted = rng.choice([one, two])
    return (
        f"The {one} was by the {start} and the {two} was by the {other}. "
        f"{mover} moved the {thing} to the {new}. {_filler(rng)}"
        f"When {people[1].first} looked for the {wanted}, it was by the {where[wanted]}"
    )


def two_steps(rng: random.Random, people: list[Person]) -> str:
    """Hard: person to thing, thing to place."""
    people = people[:3]
    things = rng.sample(lex.OBJECTS, len(people))
    places = rng.sample(lex.PLACES, len(people))
    start = _join([f"{p.first} had the {o}" for p, o in zip(people, things, strict=True)])
    pairs = list(zip(things, places, strict=True))
    rng.shuffle(pairs)
    middle = _join([f"the {o} was for the {place}" for o, place in pairs])
    i = rng.randrange(len(people))
    return (
        f"{start} {middle[0].upper() + middle[1:]} {_filler(rng, 0.4)}"
        f"So {people[i].first} went to the {places[i]}"
    )


KINDS = {
    carried: 12,
    carrier: 12,
    hidden: 14,
    called: 12,
    colours: 12,
    asked: 12,
    last_to_come: 6,
    swapped: 8,
    moved: 8,
    two_steps: 8,
}


def make_story(rng: random.Random, world: World) -> str:
    """One passage of about 45 tokens; its last word is the one to predict."""
    kind = rng.choices(list(KINDS), weights=list(KINDS.values()))[0]
    people = rng.sample(world.people, rng.choices((2, 3, 4), weights=(35, 45, 20))[0])
    return lex.with_articles(kind(rng, people))
