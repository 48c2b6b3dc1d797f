"""The words of the world. Proper names are invented; everything else is everyday English."""

import re


def words(text: str) -> list[str]:
    return text.split()


def phrases(text: str) -> list[str]:
    return text.split("|")


WOMEN = words("""
    Mara Ilse Oda Runa Sunniva Talia Wenna Yara Berit Calla Delphi Edda Fenna Greta Hanne Isolde
    Jorun Kaia Liska Maren Nella Orla Petra Quilla Rosin Sefa Tilda Ulla Vesna Willa Xenia Ysolt
    Anka Brida Corrie Dunja Elin Frida Gisla Hedda Inka Jessa Katla Lumi Mirka Nora Oonagh Pia
""")

MEN = words("""
    Tobin Alder Bram Corin Dorn Emrik Falk Garrin Hollis Ivo Jarek Kell Lorcan Marek Nils Osric
    Piers Quill Rorik Soren Torv Ulric Viggo Wystan Yorick Zander Anselm Birk Cado Detlef Eskil
    Finn Gorm Hauk Ingram Joss Kasper Lev Mats Niall Olin Pascal Ragnar Sten Tam Ulf Vidar Wim
""")

SURNAMES = words("""
    Venn Ashdown Barrow Calder Dray Elmsley Farrow Gorse Hartle Inkpen Jessop Kestrel Lomax Marl
    Nettle Oakes Pell Quarrie Rudd Sallow Thorne Umber Vane Wick Yarrow Zeller Birch Crane
    Dunmore Eddy Flint Gale Heron Ives Jutland Knoll Larch Moss Nightley Orchard
""")

VILLAGES = words("""
    Halden Brackwater Cresmoor Dunlow Eastry Fallowby Garth Hollin Ilverton Juniper Kelby
    Lowmere Millbeck Norrow Oxley Pender Quarley Ravenby Stoke Tarn Underhill Velby Wexcombe
    Yewdale Aldmoor Birkfold Copley Dellwick Embry Foxholt Gillam Hexby
""")

RIVERS = words("Orle Tamsin Weir Brae Lune Sarn Ister Coll Neth Arrow Dove Mease")

HILLS = phrases("Cold Tor|Bell Hill|Gray Fell|the Anvil|Long Ridge|Crow Top|the Saddle|Beacon Hill")

MONTHS = words("""
    January February March April May June July August September October November December
""")

DIRECTIONS = words("north south east west")

STONES = phrases("granite|limestone|red brick|oak beams|slate|yellow clay|flint|sandstone")

FISH = words("trout pike perch salmon eels carp grayling bream")

INSTRUMENTS = words("fiddle flute drum harp whistle horn lute concertina")

PET_KINDS = words("dog cat goat pony goose donkey rabbit crow")

PET_NAMES = words("""
    Pip Rusk Bramble Soot Tansy Button Clover Dusk Ember Fig Ginger Hop Ivy Juno Kipper Lark Mop
    Nutmeg Otis Pepper
""")

# craft, what it makes, of what, with which tool
CRAFTS = [
    ("potter", "jugs", "clay", "wheel"),
    ("weaver", "blankets", "wool", "loom"),
    ("smith", "hinges", "iron", "hammer"),
    ("carpenter", "tables", "oak", "plane"),
    ("baker", "loaves", "rye flour", "peel"),
    ("cooper", "barrels", "ash staves", "adze"),
    ("cobbler", "boots", "leather", "awl"),
    ("candle maker", "candles", "beeswax", "mould"),
    ("basket maker", "baskets", "willow", "knife"),
    ("glazier", "windows", "glass", "diamond"),
    ("rope maker", "ropes", "hemp", "hook"),
    ("tailor", "coats", "linen", "needle"),
    ("mason", "walls", "stone", "chisel"),
    ("tinker", "kettles", "tin", "file"),
    ("paper maker", "paper", "rags", "press"),
    ("bell founder", "bells", "bronze", "furnace"),
]

# animal, where it lives, what it eats, its colour, number of young, when it is awake
ANIMALS = [
    ("reed otter", "river banks", "crayfish", "brown", "three", "at night"),
    ("stone hare", "high meadows", "clover", "gray", "five", "at dawn"),
    ("marsh owl", "wet fields", "voles", "white", "four", "at dusk"),
    ("bell frog", "ponds", "gnats", "green", "ninety", "after rain"),
    ("hill fox", "bracken slopes", "mice", "red", "six", "at night"),
    ("thorn mouse", "hedges", "rose hips", "yellow", "seven", "at dusk"),
    ("chalk deer", "beech woods", "bark", "silver", "one", "at dawn"),
    ("salt goose", "mud flats", "eelgrass", "black", "eight", "by day"),
    ("barn swift", "old roofs", "moths", "blue", "two", "by day"),
    ("moss badger", "pine woods", "beetles", "brown", "three", "at night"),
    ("copper bee", "lime trees", "nectar", "orange", "many", "by day"),
    ("ditch newt", "wells", "worms", "purple", "twenty", "after rain"),
]

# dish, main ingredient, how it is cooked, what it is eaten with
DISHES = [
    ("harvest pie", "pumpkin", "baked", "sour cream"),
    ("ferry soup", "leeks", "boiled", "black bread"),
    ("miller's cake", "barley", "steamed", "honey"),
    ("smoke stew", "mutton", "smoked", "turnips"),
    ("frost pudding", "apples", "frozen", "cream"),
    ("lantern buns", "saffron", "baked", "butter"),
    ("bridge pancakes", "buckwheat", "fried", "plums"),
    ("widow's broth", "nettles", "boiled", "dumplings"),
    ("shepherd cheese", "goat milk", "pressed", "walnuts"),
    ("river roast", "trout", "grilled", "fennel"),
    ("hearth beans", "beans", "roasted", "bacon"),
    ("tower tart", "cherries", "baked", "almonds"),
]

# tool, what its head is made of, what its handle is made of, what it is for
TOOLS = [
    ("turf spade", "iron", "ash", "cutting peat"),
    ("hay fork", "steel", "hazel", "turning hay"),
    ("eel spear", "bronze", "willow", "catching eels"),
    ("bark knife", "flint", "bone", "peeling bark"),
    ("ice saw", "steel", "oak", "cutting ice"),
    ("seed drill", "tin", "elm", "planting barley"),
    ("wool comb", "copper", "horn", "combing wool"),
    ("bell mallet", "lead", "beech", "ringing bells"),
    ("apple hook", "iron", "hazel", "picking apples"),
    ("mud rake", "oak", "pine", "clearing ditches"),
]

# wind, where it comes from, what it brings
WINDS = [
    ("Gray Nurse", "north", "fog"),
    ("Old Piper", "west", "hail"),
    ("Miller's Friend", "south", "dry days"),
    ("Salt Widow", "east", "sleet"),
    ("Barn Shaker", "north", "snow"),
    ("Plum Wind", "south", "warm rain"),
    ("Long Whistle", "east", "frost"),
    ("Sheep Drover", "west", "thunder"),
]

COLOURS = words("red blue green yellow white black brown gray orange purple")

# What the people of the stories carry, hide, lend and lose.
OBJECTS = words("""
    lamp basket rope key coin drum ladder spade kettle blanket book bell candle hammer jug
    letter map mirror needle bucket saddle whistle lantern hat ring comb axe brush feather clock
""")

# Where they put things and go.
PLACES = words("""
    barn well mill tower boathouse orchard cellar attic stable garden chapel pantry forge shed
    kitchen meadow quarry library bakery school
""")

# Where small things lie inside a house.
SPOTS = words("""
    shelf table drawer chest window stove cupboard bench basket bucket bed door hearth barrel
""")

FOODS = words("""
    bread cheese honey apples soup butter plums eggs milk salt nuts fish cake pears beans onions
""")


def with_articles(text: str) -> str:
    """Turn "a" into "an" before a vowel, so that templates need not know what fills them."""
    return re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", text)
