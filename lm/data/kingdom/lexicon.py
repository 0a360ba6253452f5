"""The words of kingdom: whom stories are about, what they have and do, and the facts of its world."""

import random
from dataclasses import dataclass


@dataclass(frozen=True)
class Noun:
    """A word for a person, one token. gender: m, f, or n for a word that is said of both; age: old or young."""

    word: str
    domain: str
    gender: str
    age: str


@dataclass(frozen=True)
class Domain:
    """A setting with six words for its people, and places and things that occur in no other."""

    name: str
    nouns: tuple[Noun, ...]
    places: tuple[str, ...]
    objects: tuple[tuple[str, tuple[str, str]], ...]
    """(object, the two adjectives said of it)."""


_DOMAINS = """
royalty      king queen monarch prince princess heir; palace castle court tower;
             crown heavy bright, sceptre long bright, jewel rare small, banner long soft
people       man woman adult boy girl youngster; market street square bridge;
             coin small shiny, basket deep light, umbrella wide strong, kettle heavy shiny
parents      father mother parent son daughter child; kitchen nursery bedroom hallway;
             spoon clean small, blanket warm thick, pillow soft light, bowl round deep
grandparents grandfather grandmother grandparent grandson granddaughter grandchild; cottage porch orchard parlour;
             clock round strange, album thick rare, teapot warm round, cushion soft wide
kin          uncle aunt relative nephew niece cousin; harbour lighthouse beach pier;
             lantern bright warm, anchor heavy strong, net wide deep, oar long light
marriage     husband wife spouse groom bride newlywed; chapel ballroom terrace pavilion;
             ring small bright, bouquet light rare, goblet deep shiny, mirror clean round
school       headmaster headmistress principal schoolboy schoolgirl pupil; classroom library playground corridor;
             pencil sharp long, notebook thick clean, globe round strange, ruler long sharp
cloister     abbot abbess superior monk nun novice; abbey crypt belfry refectory;
             bell heavy round, scroll long rare, relic strange small, quill sharp light
nobility     duke duchess noble squire damsel page; manor stable courtyard armoury;
             saddle strong warm, shield wide shiny, lance sharp strong, cloak warm thick
inn          landlord landlady innkeeper waiter waitress servant; tavern cellar taproom brewery;
             tankard heavy deep, barrel strong wide, tray wide clean, corkscrew strange sharp
home         dad mom guardian brother sister sibling; garden garage yard attic;
             bicycle light shiny, ladder long strong, hammer heavy strange, radio small strange
stepfamily   stepfather stepmother stepparent stepson stepdaughter stepchild; mill barn meadow vineyard;
             sack thick soft, bucket deep clean, rake wide sharp, scythe sharp rare
"""
SHOWN = ("people", "parents", "kin", "marriage")
"""Domains whose words may stand side by side ("The man and the woman ..."); those of the others never share a story."""


def _domain(entry: str) -> Domain:
    people, places, things = entry.split(";")
    name, *words = people.split()
    kinds = [(gender, age) for age in ("old", "young") for gender in "mfn"]
    nouns = tuple(Noun(word, name, gender, age) for word, (gender, age) in zip(words, kinds, strict=True))
    objects = tuple((word, (one, other)) for word, one, other in map(str.split, things.split(",")))
    return Domain(name, nouns, tuple(places.split()), objects)


DOMAINS = tuple(map(_domain, _DOMAINS.strip().replace(";\n", ";").split("\n")))
NOUNS = tuple(noun for domain in DOMAINS for noun in domain.nouns)

PRONOUNS = {
    "m": dict(he="he", his="his", him="him", himself="himself", sir="sir"),
    "f": dict(he="she", his="her", him="her", himself="herself", sir="madam"),
}
CLOTHES = {
    "m": ("waistcoat", "necktie", "doublet", "cap"),
    "f": ("gown", "bonnet", "blouse", "skirt"),
}
AGES = {
    "old": ("old", "elderly", "aged", "grey", "stooped", "wrinkled"),
    "young": ("young", "youthful", "little", "rosy", "restless", "playful"),
}
YEARS = {"old": ("sixty", "seventy", "eighty", "ninety"), "young": ("six", "seven", "eight", "nine")}

# base, past, participle, and two things done by it, said of no other verb
_VERBS = {
    "old": """
        knit knitted knitting socks scarves; mend mended mending shirts sails; pour poured pouring tea wine
        tell told telling tales jokes; remember remembered remembering friends wars; grow grew growing beans roses
        polish polished polishing silver boots; stir stirred stirring soup porridge""",
    "young": """
        climb climbed climbing trees walls; chase chased chasing geese butterflies; fly flew flying kites balloons
        throw threw throwing snowballs pebbles; ride rode riding ponies donkeys; build built building towers sandcastles
        dig dug digging holes tunnels; swing swung swinging sticks ropes""",
    "any": """
        bake baked baking bread cakes; sing sang singing songs hymns; write wrote writing letters poems
        draw drew drawing pictures maps; carry carried carrying water wood; sweep swept sweeping floors stairs
        feed fed feeding ducks hens; count counted counting stars coats""",
}


def _verbs(text: str) -> tuple[tuple[str, str, str, str, str], ...]:
    return tuple(tuple(entry.split()) for entry in text.replace("\n", ";").split(";") if entry.strip())


VERBS = {age: _verbs(text) for age, text in _VERBS.items()}

_ADJECTIVES = """
heavy heavier heaviest, bright brighter brightest, long longer longest, rare rarer rarest, small smaller smallest
soft softer softest, shiny shinier shiniest, deep deeper deepest, light lighter lightest, wide wider widest
strong stronger strongest, clean cleaner cleanest, warm warmer warmest, thick thicker thickest
round rounder roundest, strange stranger strangest, sharp sharper sharpest
"""
ADJECTIVES = {entry.split()[0]: tuple(entry.split()) for entry in _ADJECTIVES.strip().replace("\n", ",").split(",")}
"""adjective -> (itself, comparative, superlative)."""

# --- what anything may be filled with --------------------------------------------------------------------------------
TRADES = ("baker", "miller", "potter", "weaver", "sailor", "hunter", "farmer", "trader", "mason", "barber", "cobbler",
          "painter", "piper", "ferryman", "tinker", "glazier")  # fmt: skip
MEALS = ("breakfast", "lunch", "supper", "dinner")
TIMES = ("morning", "afternoon", "evening", "night", "day", "weekend", "Sunday", "Monday")
SEASONS = ("spring", "summer", "autumn", "winter")
NUMBERS = ("two", "three", "four", "five", "several", "many")
HIDING = ("bench", "carpet", "cupboard", "curtain", "staircase", "stove", "hedge", "wagon", "woodpile", "mattress")
FEELINGS = ("glad", "proud", "tired", "quiet", "calm", "thankful", "cheerful", "puzzled", "hungry", "sleepy")
WEATHER = ("rain", "snow", "fog", "wind", "thunder", "sunshine", "frost", "hail", "dust", "smoke",
           "drizzle", "lightning", "sleet", "mist", "cloud", "ice")  # fmt: skip
ANIMALS = ("dog", "cat", "crow", "owl", "fox", "hare", "mouse", "goat", "toad", "sparrow", "badger", "heron",
           "otter", "beetle", "weasel", "raven", "lizard", "squirrel", "swan", "wolf")  # fmt: skip
SOUNDS = ("barked", "howled", "sneezed", "yawned", "hissed", "whistled", "growled", "coughed",
          "slept", "waited", "jumped", "hid")  # fmt: skip
WHERE = ("hill", "river", "forest", "valley", "road", "fence", "lake", "cliff", "swamp", "field",
         "canal", "quarry", "ditch", "dune", "glade", "ruin")  # fmt: skip

# --- the facts -------------------------------------------------------------------------------------------------------
_COUNTRIES = """
Japan Tokyo yen, India Delhi rupee, Russia Moscow ruble, Poland Warsaw zloty, Sweden Stockholm krona
Denmark Copenhagen krone, Hungary Budapest forint, China Beijing yuan, Turkey Ankara lira, Thailand Bangkok baht
Kenya Nairobi shilling, Nigeria Abuja naira, Ghana Accra cedi, Vietnam Hanoi dong, Iran Tehran rial
Bulgaria Sofia lev, Romania Bucharest leu, Peru Lima sol, Indonesia Jakarta rupiah, Georgia Tbilisi lari
Armenia Yerevan dram, Zambia Lusaka kwacha, Morocco Rabat dirham, Switzerland Bern franc
"""
COUNTRIES = tuple(tuple(entry.split()) for entry in _COUNTRIES.strip().replace("\n", ",").split(","))
"""(country, capital, currency)."""

FIRST = {"f": ("Mara", "Ines", "Tess", "Lucy"), "m": ("Hugo", "Felix", "Oscar", "Ivan")}
LAST = ("Quill", "Brandt", "Marsh", "Novak", "Hale", "Osei", "Pike", "Tanaka")
SPORTS = ("tennis", "chess", "golf", "hockey", "cricket", "rugby", "polo", "squash", "football", "basketball",
          "volleyball", "badminton", "darts", "snooker", "lacrosse", "handball")  # fmt: skip
PROFESSIONS = ("lawyer", "dentist", "plumber", "carpenter", "pilot", "nurse", "surgeon", "chemist", "gardener",
               "tailor", "banker", "butcher", "florist", "jeweller", "librarian", "porter")  # fmt: skip
CITIES = ("Boston", "Munich", "Milan", "Lyon", "Osaka", "Porto", "Bergen", "Krakow", "Dublin", "Toronto", "Sydney",
          "Seattle", "Naples", "Seville", "Glasgow", "Antwerp")  # fmt: skip


@dataclass(frozen=True)
class Person:
    """Neither name alone says anything but the first name's gender: what a person does follows from the pair."""

    name: str
    gender: str
    sport: str
    profession: str
    city: str


def _people() -> tuple[Person, ...]:
    """All pairs of a first and a last name; each sport, profession and city goes to equally many, by lot."""
    names = [(f"{first} {last}", gender) for gender, firsts in FIRST.items() for first in firsts for last in LAST]
    lot = random.Random("the people of kingdom")
    columns = []
    for values in (SPORTS, PROFESSIONS, CITIES):
        column = list(values) * (len(names) // len(values))
        lot.shuffle(column)
        columns.append(column)
    return tuple(Person(*who, *what) for who, *what in zip(names, *columns, strict=True))


PEOPLE = _people()
