"""Questions on the world's facts with four choices, as in ARC."""

import random

from . import lexicon as lex
from .facts import World

PERSON_QUESTIONS = {
    "village": [
        "In which village does {name} live?",
        "Where does {name} live?",
        "Which village is the home of {name}?",
    ],
    "craft": [
        "What is the craft of {name}?",
        "What kind of work does {name} do?",
        "{name} is known as a what?",
    ],
    "teacher": [
        "Who taught {name}?",
        "Who was the teacher of {name}?",
        "From whom did {name} learn the craft?",
    ],
    "instrument": [
        "Which instrument does {name} play?",
        "What does {name} play in the evening?",
        "On which instrument does {name} play?",
    ],
    "pet": [
        "What is the name of the animal of {name}?",
        "Which animal lives with {name}?",
        "What does {name} keep at home?",
    ],
    "dish": [
        "What does {name} like to eat most?",
        "Which dish is the favourite of {name}?",
        "What should you cook for {name}?",
    ],
}
VILLAGE_QUESTIONS = {
    "river": ["On which river is {name}?", "Which river runs past {name}?"],
    "month": ["When is the fair of {name}?", "In which month does {name} hold its fair?"],
    "stone": ["What are the houses of {name} built of?", "What is {name} built of?"],
    "dish": ["Which dish is {name} known for?", "What is eaten at the fair of {name}?"],
}
# subject and answer are positions in the lexicon's tuples
TABLE_QUESTIONS = [
    (lex.ANIMALS, 0, 1, ["Where does the {name} live?", "Where can you find a {name}?"]),
    (lex.ANIMALS, 0, 2, ["What does the {name} eat?", "What is the food of the {name}?"]),
    (lex.ANIMALS, 0, 3, ["What colour is the {name}?", "Which colour does a {name} have?"]),
    (lex.DISHES, 0, 1, ["What is {name} made with?", "What do you need to make {name}?"]),
    (lex.DISHES, 0, 3, ["What is {name} eaten with?", "What goes well with {name}?"]),
    (lex.TOOLS, 0, 3, ["What is a {name} used for?", "What is the {name} for?"]),
    (lex.TOOLS, 0, 2, ["What is the handle of a {name} made of?"]),
    (lex.CRAFTS, 0, 1, ["What does a {name} make?", "What can you buy from a {name}?"]),
    (lex.CRAFTS, 0, 3, ["Which tool does a {name} need?", "What does a {name} work with?"]),
    (lex.WINDS, 0, 2, ["What does the {name} bring?", "What follows the {name}?"]),
]


def _person_answer(person, fact: str, phrasing: int) -> tuple[str, list[str]]:
    """The answer and what else it could have been."""
    if fact == "village":
        return person.village.name, lex.VILLAGES
    if fact == "craft":
        return person.craft[0], [craft[0] for craft in lex.CRAFTS]
    if fact == "teacher":
        return person.teacher, []
    if fact == "instrument":
        return person.instrument, lex.INSTRUMENTS
    if fact == "pet":
        if phrasing == 0:
            return person.pet_name, lex.PET_NAMES
        return f"a {person.pet_kind}", [f"a {kind}" for kind in lex.PET_KINDS]
    return person.dish, [dish[0] for dish in lex.DISHES]


def make_question(rng: random.Random, world: World) -> dict:
    """One row in the columns of ARC, without ``id``."""
    source = rng.choices(("person", "village", "table"), weights=(50, 25, 25))[0]
    if source == "person":
        person = rng.choice(world.people)
        fact = rng.choice(sorted(PERSON_QUESTIONS))
        phrasing = rng.randrange(3)
        question = PERSON_QUESTIONS[fact][phrasing].format(name=person.name)
        answer, pool = _person_answer(person, fact, phrasing)
        pool = pool or [other.name for other in world.people if other is not person]
    elif source == "village":
        village = rng.choice(world.villages)
        fact = rng.choice(sorted(VILLAGE_QUESTIONS))
        question = rng.choice(VILLAGE_QUESTIONS[fact]).format(name=village.name)
        answer, pool = {
            "river": (village.river.name, lex.RIVERS),
            "month": (village.month, lex.MONTHS),
            "stone": (village.stone, lex.STONES),
            "dish": (village.dish, [dish[0] for dish in lex.DISHES]),
        }[fact]
    else:
        table, subject, object_, phrasings = rng.choice(TABLE_QUESTIONS)
        entry = rng.choice(table)
        question = rng.choice(phrasings).format(name=entry[subject])
        answer, pool = entry[object_], sorted({other[object_] for other in table})
    texts = [answer, *rng.sample([option for option in pool if option != answer], 3)]
    order = rng.sample(range(4), 4)
    return {
        "question": lex.with_articles(question),
        "choices": {"text": [texts[i] for i in order], "label": list("ABCD")},
        "answerKey": "ABCD"[order.index(0)],
    }


def training_pieces(row: dict) -> list[str]:
    """Question and right answer, as lm-evaluation-harness writes them for scoring."""
    answer = row["choices"]["text"]["ABCD".index(row["answerKey"])]
    return [f"Question: {row['question']}\nAnswer:", f" {answer}"]
