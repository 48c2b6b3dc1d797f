"""The world itself: who lives where, what flows where. A pure function of the seed."""

import random
from dataclasses import dataclass

from . import lexicon as lex

NUM_PEOPLE = 96  # one per first name, so a first name is enough to know a person


@dataclass(frozen=True)
class River:
    name: str
    source: str
    miles: int
    fish: str
    direction: str


@dataclass(frozen=True)
class Village:
    name: str
    river: River
    stone: str
    founded: int
    population: int
    month: str  # of its festival
    dish: str
    hill: str


@dataclass(frozen=True)
class Person:
    first: str
    surname: str
    he: str
    his: str
    village: Village
    craft: tuple[str, str, str, str]  # name, product, material, tool
    born: int
    dish: str
    instrument: str
    pet_kind: str
    pet_name: str
    teacher: str

    @property
    def name(self) -> str:
        return f"{self.first} {self.surname}"


@dataclass(frozen=True)
class World:
    """Everything that is true. The tuples of ``lexicon`` (animals, dishes, ...) hold in it too."""

    people: tuple[Person, ...]
    villages: tuple[Village, ...]
    rivers: tuple[River, ...]


def build_world(seed: int) -> World:
    """Draw the world's facts; the same seed gives the same world."""
    rng = random.Random(f"{seed}/facts")
    rivers = tuple(
        River(
            name=name,
            source=rng.choice(lex.HILLS),
            miles=rng.randrange(20, 200, 10),
            fish=rng.choice(lex.FISH),
            direction=rng.choice(lex.DIRECTIONS),
        )
        for name in lex.RIVERS
    )
    villages = tuple(
        Village(
            name=name,
            river=rivers[i % len(rivers)],
            stone=rng.choice(lex.STONES),
            founded=rng.randrange(1210, 1800, 10),
            population=rng.randrange(100, 900, 50),
            month=rng.choice(lex.MONTHS),
            dish=lex.DISHES[i % len(lex.DISHES)][0],
            hill=rng.choice(lex.HILLS),
        )
        for i, name in enumerate(lex.VILLAGES)
    )
    women = [(first, "she", "her") for first in lex.WOMEN]
    men = [(first, "he", "his") for first in lex.MEN]
    firsts = (women + men)[:NUM_PEOPLE]
    names = [f"{first} {rng.choice(lex.SURNAMES)}" for first, _, _ in firsts]
    people = tuple(
        Person(
            first=first,
            surname=name.split()[1],
            he=he,
            his=his,
            village=rng.choice(villages),
            craft=rng.choice(lex.CRAFTS),
            born=rng.randrange(1820, 1900),
            dish=rng.choice(lex.DISHES)[0],
            instrument=rng.choice(lex.INSTRUMENTS),
            pet_kind=rng.choice(lex.PET_KINDS),
            pet_name=rng.choice(lex.PET_NAMES),
            teacher=rng.choice([other for other in names if other != name]),
        )
        for (first, he, his), name in zip(firsts, names, strict=True)
    )
    return World(people=people, villages=villages, rivers=rivers)
