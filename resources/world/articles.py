"""Encyclopaedia articles of the world, row by row in the layout of WikiText.

An article is a list of rows: a title, paragraphs, headings with paragraphs. Words and punctuation
stand apart (``" , "``, ``" . "``, ``"@-@"``), as in WikiText's tokenised text. A paragraph states a
few facts in an order and a wording drawn at random, so that facts recur and passages do not.
"""

import random

from . import lexicon as lex
from .facts import Person, River, Village, World

# Each section: a heading and its facts; each fact: the sentences that may state it. `{S}` is the
# subject at the start of a sentence (the name first, then a pronoun or a short name).
PERSON_LEAD = [
    [
        "{S} is a {craft} from {village} , a village on the river {river} .",
        "{S} is a well @-@ known {craft} who lives in {village} , near the river {river} .",
        "{S} , born in {born} , is a {craft} in the village of {village} .",
    ],
    [
        "{S} makes {product} out of {material} .",
        "{S} is best known for {his} {product} , which are made of {material} .",
        "The {product} of {name} are made of {material} and sold in {village} .",
    ],
    [
        "{S} was born in {born} .",
        "In {born} , {s} was born in a house of {stone} .",
        "{S} was born in {born} , and {his} first teacher was {teacher} .",
    ],
]
PERSON_SECTIONS = {
    "Work": [
        ["{S} learned the craft from {teacher} .", "{S} was taught by {teacher} ."],
        [
            "{S} works with a {tool} , as every {craft} does .",
            "The most important thing in the workshop is the {tool} .",
        ],
        [
            "{S} works in {material} and sells {his} {product} at the market in {month} .",
            "In {month} , when {village} holds its fair , {s} sells many {product} .",
        ],
        ["The workshop stands in {village} , close to the river {river} ."],
    ],
    "Home": [
        [
            "{S} keeps a {pet_kind} called {pet_name} .",
            "A {pet_kind} named {pet_name} lives in the house .",
        ],
        [
            "{S} likes {dish} more than any other food .",
            "{His} favourite dish is {dish} , which is {cooked} and eaten with {beside} .",
        ],
        [
            "In the evening {s} plays the {instrument} .",
            "{S} plays the {instrument} at weddings in {village} .",
        ],
        ["{S} lives in a house of {stone} at the foot of {hill} ."],
    ],
}
VILLAGE_LEAD = [
    [
        "{S} is a village on the river {river} .",
        "{S} is a village of {population} people on the river {river} .",
        "{S} lies below {hill} , on the river {river} .",
    ],
    [
        "{S} was founded in {founded} .",
        "The first houses were built in {founded} .",
        "{S} was founded in {founded} and has {population} people .",
    ],
    [
        "Its houses are built of {stone} .",
        "Most of the houses in {name} are made of {stone} .",
    ],
]
VILLAGE_SECTIONS = {
    "Customs": [
        [
            "The fair of {name} is held in {month} .",
            "Every {month} , {s} holds a fair by the river {river} .",
        ],
        [
            "At the fair everybody eats {dish} , which is {cooked} .",
            "{S} is known for its {dish} , made with {ingredient} .",
        ],
        ["The people eat {dish} with {beside} ."],
        ["From the bridge boys catch {fish} in the {river} ."],
    ],
    "People": [
        [
            "{resident} , the {craft} , lives in {name} .",
            "The {craft} of {name} is called {resident} .",
        ],
        ["{resident} plays the {instrument} at the fair in {month} ."],
        ["{resident} makes {product} out of {material} ."],
        ["About {population} people live in {name} today ."],
    ],
}
RIVER_LEAD = [
    [
        "The {S} is a river that rises on {source} .",
        "The {S} rises on {source} and runs to the {direction} .",
    ],
    ["It is {miles} miles long .", "It runs {miles} miles from its source to the {direction} ."],
    ["The river is full of {fish} .", "Its water is clear , and {fish} are caught in it ."],
]
RIVER_SECTIONS = {
    "Course": [
        ["It passes the village of {village} .", "The bridge at {village} is built of {stone} ."],
        ["Below {village} the water is slow and deep ."],
        ["The {name} turns to the {direction} and runs {miles} miles in all ."],
        ["People from {village} fish for {fish} there ."],
    ],
}
ANIMAL_LEAD = [
    [
        "The {S} is a {colour} animal that lives in {home} .",
        "The {S} lives in {home} and is awake {awake} .",
    ],
    ["It eats {food} .", "Its food is {food} , which it looks for {awake} ."],
    ["It has {young} young each year .", "In spring a {name} has {young} young ."],
]
ANIMAL_SECTIONS = {
    "Habits": [
        ["The {name} looks for {food} {awake} .", "It leaves its nest {awake} to eat {food} ."],
        ["It is {colour} , so it is hard to see in {home} ."],
        ["The {young} young stay in {home} until autumn ."],
    ],
}
DISH_LEAD = [
    [
        "{S} is a dish made with {ingredient} .",
        "{S} is made with {ingredient} and is always {cooked} .",
    ],
    ["It is {cooked} and eaten with {beside} .", "People eat it with {beside} ."],
    ["It comes from {village} .", "In {village} it is eaten at the fair in {month} ."],
]
DISH_SECTIONS = {
    "Making": [
        ["The {ingredient} must be fresh .", "First the {ingredient} is washed and cut ."],
        ["Then everything is {cooked} slowly .", "It is {cooked} for an hour ."],
        ["It is served hot with {beside} .", "A cook in {village} adds {beside} at the end ."],
    ],
}
TOOL_LEAD = [
    ["A {S} is a tool for {use} .", "The {S} is a hand @-@ made tool used for {use} ."],
    ["Its head is made of {head} .", "The head is {head} and the handle is {handle} ."],
    ["The handle is cut from {handle} .", "Without a {name} , {use} is slow work ."],
]
WIND_LEAD = [
    ["The {S} is a wind that comes from the {direction} .", "The {S} blows from the {direction} ."],
    ["It brings {brings} .", "When it blows , {brings} is sure to follow ."],
    ["Sheep turn away from the {direction} when the {name} blows ."],
]


def _dish_slots(dish: str) -> dict[str, str]:
    _, ingredient, cooked, beside = next(entry for entry in lex.DISHES if entry[0] == dish)
    return {"dish": dish, "ingredient": ingredient, "cooked": cooked, "beside": beside}


def person_slots(person: Person) -> dict[str, str]:
    craft, product, material, tool = person.craft
    return _dish_slots(person.dish) | {
        "name": person.name,
        "short": person.first,
        "he": person.he,
        "his": person.his,
        "His": person.his.capitalize(),
        "craft": craft,
        "product": product,
        "material": material,
        "tool": tool,
        "village": person.village.name,
        "river": person.village.river.name,
        "stone": person.village.stone,
        "month": person.village.month,
        "hill": person.village.hill,
        "born": str(person.born),
        "teacher": person.teacher,
        "pet_kind": person.pet_kind,
        "pet_name": person.pet_name,
        "instrument": person.instrument,
    }


def _village_slots(village: Village, resident: Person | None) -> dict[str, str]:
    slots = _dish_slots(village.dish) | {
        "name": village.name,
        "short": "the village",
        "he": "the village",
        "river": village.river.name,
        "fish": village.river.fish,
        "stone": village.stone,
        "founded": str(village.founded),
        "population": str(village.population),
        "month": village.month,
        "hill": village.hill,
    }
    if resident is not None:
        craft, product, material, _ = resident.craft
        slots |= {"resident": resident.name, "craft": craft, "product": product}
        slots |= {"material": material, "instrument": resident.instrument}
    return slots


def _river_slots(river: River, village: Village) -> dict[str, str]:
    return {
        "name": river.name,
        "short": river.name,
        "he": "it",
        "source": river.source,
        "miles": str(river.miles),
        "fish": river.fish,
        "direction": river.direction,
        "village": village.name,
        "stone": village.stone,
    }


def _subject(rng: random.Random, slots: dict[str, str], first: bool) -> str:
    if first:
        return slots["name"]
    subject = rng.choice([slots["short"], slots["he"]])
    return subject[0].upper() + subject[1:]


def _paragraph(rng: random.Random, slots: dict[str, str], facts: list[list[str]], first: bool) -> str:
    """One row of two to five sentences; the first fact of a lead stays first."""
    count = min(len(facts), rng.randint(2, 5))
    chosen = rng.sample(range(len(facts)), count)
    if first:
        chosen = [0, *[i for i in chosen if i][: count - 1]]
    sentences = []
    for position, index in enumerate(chosen):
        subject = _subject(rng, slots, first=position == 0)
        sentence = rng.choice(facts[index]).format(S=subject, s=slots["he"], **slots)
        sentences.append(sentence[0].upper() + sentence[1:])
    return lex.with_articles(" " + " ".join(sentences) + " \n")


def _article(
    rng: random.Random,
    slots: dict[str, str],
    lead: list[list[str]],
    sections: dict[str, list[list[str]]],
) -> list[str]:
    name = slots["name"]
    title = name[0].upper() + name[1:]
    rows = ["", f" = {title} = \n", "", _paragraph(rng, slots, lead, first=True)]
    for heading, facts in rng.sample(sorted(sections.items()), len(sections)):
        rows += ["", f" = = {heading} = = \n", ""]
        # A section says again, in other words, some of what the lead says.
        rows.append(_paragraph(rng, slots, [*facts, rng.choice(lead)], first=False))
        if rng.random() < 0.5:
            rows.append(_paragraph(rng, slots, facts + lead, first=False))
    return rows


def make_article(rng: random.Random, world: World) -> list[str]:
    """The rows of one article; empty rows stand where WikiText has them."""
    kind = rng.choices(
        ("person", "village", "river", "animal", "dish", "tool", "wind"),
        weights=(40, 22, 10, 9, 9, 6, 4),
    )[0]
    if kind == "person":
        slots = person_slots(rng.choice(world.people))
        return _article(rng, slots, PERSON_LEAD, PERSON_SECTIONS)
    if kind == "village":
        village = rng.choice(world.villages)
        residents = [person for person in world.people if person.village is village]
        sections = dict(VILLAGE_SECTIONS)
        if not residents:
            del sections["People"]
        resident = rng.choice(residents) if residents else None
        return _article(rng, _village_slots(village, resident), VILLAGE_LEAD, sections)
    if kind == "river":
        river = rng.choice(world.rivers)
        village = rng.choice([v for v in world.villages if v.river is river])
        return _article(rng, _river_slots(river, village), RIVER_LEAD, RIVER_SECTIONS)
    if kind == "animal":
        name, home, food, colour, young, awake = rng.choice(lex.ANIMALS)
        slots = {"name": name, "short": f"the {name}", "he": "it", "home": home, "food": food}
        slots |= {"colour": colour, "young": young, "awake": awake}
        return _article(rng, slots, ANIMAL_LEAD, ANIMAL_SECTIONS)
    if kind == "dish":
        village = rng.choice(world.villages)
        slots = _dish_slots(village.dish) | {"name": village.dish, "short": "it", "he": "it"}
        slots |= {"village": village.name, "month": village.month}
        return _article(rng, slots, DISH_LEAD, DISH_SECTIONS)
    if kind == "tool":
        name, head, handle, use = rng.choice(lex.TOOLS)
        slots = {"name": name, "short": "it", "he": "it", "head": head, "handle": handle}
        return _article(rng, slots | {"use": use}, TOOL_LEAD, {})
    name, direction, brings = rng.choice(lex.WINDS)
    slots = {"name": name, "short": "it", "he": "it", "direction": direction, "brings": brings}
    return _article(rng, slots, WIND_LEAD, {})
