"""The embedded intents: requests of 25 classes in five fields, drawn for class- and task-incremental learning.

A small picture of intent data such as CLINC150: a class has a few ways of being asked for, whose slots are filled from
the pools of the embedded world, and a name that says what it is. Classes stand field by field, five to each, so that
five tasks of five classes are five fields. Training and test rows are different texts; everything follows from a seed.
"""

from __future__ import annotations

import random

from everlearn.data.embedded.grammars import Grammar
from everlearn.data.instance import Instance

TRAIN, TEST = 40, 20  # of each class
_REQUESTS: dict[str, tuple[str, ...]] = {
    "book ticket": (
        "a ticket to {city} on {day}",
        "{name} needs {count} tickets to {city}",
        "a seat in the {vehicle} to {city}",
    ),
    "find hotel": (
        "a hotel in {city} for {name}",
        "{name} wants to sleep in a hotel on {day}",
        "is there a {good} hotel in {city}",
    ),
    "rent car": (
        "{name} wants to rent a {size} car",
        "a {colour} car to rent in {city}",
        "rent us a car for {day}",
    ),
    "tell weather": (
        "will there be {weather} in {city}",
        "is it {weather} and {weather} on {day}",
        "the weather in {country} in {month}",
    ),
    "show way": (
        "the way to the {building} in {city}",
        "how far is the {nature} from {city}",
        "where is the {building} of {city}",
    ),
    "order food": (
        "bring {count} {food} and {drink}",
        "{name} wants {food} with {food}",
        "a plate of {food} for {name}",
    ),
    "find recipe": (
        "how to cook {food} with {fruit}",
        "what goes with {fruit} and {food}",
        "how is {food} made in {country}",
    ),
    "book table": (
        "a table for {number} on {day}",
        "keep {number} chairs for {name} at {time}",
        "a table in the {room} at {time}",
    ),
    "pay bill": (
        "{name} paid {number} for the {food}",
        "how much is the {drink} and the {food}",
        "the price of {count} {fruit} pies",
    ),
    "rate meal": (
        "the {food} was {bad} and {quality}",
        "{name} says the {drink} is {good}",
        "the {food} here is {opinion}",
    ),
    "fix device": (
        "the {device} of {name} is broken",
        "my {colour} {device} is {bad}",
        "fix the {device} in the {room}",
    ),
    "turn off": (
        "turn the {device} off in the {room}",
        "no {device} in the {room} at {time}",
        "the {device} must sleep at {time}",
    ),
    "play music": (
        "play the {instrument} for {name}",
        "{name} wants to hear a {instrument}",
        "more {instrument} and {instrument}",
    ),
    "set clock": (
        "call me at {number} in the {time}",
        "wake {name} on {day} at {number}",
        "clock to {number} on {day}",
    ),
    "buy tool": (
        "sell me a {tool} of {material}",
        "{name} needs a {size} {tool}",
        "a {tool} and a {tool} for the {room}",
    ),
    "find job": (
        "{name} wants to be a {job}",
        "work for a {job} in {city}",
        "is there work as a {job} and {job}",
    ),
    "learn subject": (
        "{name} studies {subject} in {city}",
        "a book on {subject} and {subject}",
        "who can teach {name} {subject}",
    ),
    "join sport": (
        "{name} likes {sport} on {day}",
        "{sport} or {sport} in the {time}",
        "a friend for {sport} in {month}",
    ),
    "feed animal": (
        "what does a {size} {animal} eat",
        "{food} for the {animal} of {name}",
        "the {animal} and the {animal} are hungry",
    ),
    "grow plant": (
        "how much water has a {plant}",
        "a {plant} and a {plant} by the {nature}",
        "the {plant} of {name} is {quality}",
    ),
    "buy clothes": (
        "a {colour} {clothes} for {name}",
        "{clothes} and {clothes} made of {material}",
        "a {size} {clothes} to wear",
    ),
    "move house": (
        "carry the {furniture} to {city}",
        "the {furniture} and the {furniture} go up",
        "move the {furniture} of {name}",
    ),
    "see doctor": (
        "the {body} of {name} is {quality}",
        "my {body} and my {body} are {bad}",
        "a doctor for the {body} on {day}",
    ),
    "write family": (
        "a letter to the {family} of {name}",
        "{name} writes to her {family} and {family}",
        "tell my {family} that i am {mood}",
    ),
    "draw shape": (
        "draw a {colour} {shape}",
        "a {shape} of {material} under the {shape}",
        "paint the {shape} {colour}",
    ),
}
INTENTS = tuple(_REQUESTS)
"""The classes, field by field."""


def intents(seed: int = 0) -> tuple[tuple[Instance, ...], tuple[Instance, ...]]:
    """Draws training and test rows, class after class; `output` is the name of the class."""
    train, test = [], []
    for name, templates in _REQUESTS.items():
        rng = random.Random(f"everlearn-intents-{name}-{seed}")
        grammars = [Grammar(template) for template in templates]
        texts: dict[str, None] = {}
        while len(texts) < TRAIN + TEST:
            texts[rng.choice(grammars).fill(rng)[0]] = None
        rows = [
            Instance("", text, name, "intents", id=f"{name.replace(' ', '-')}-{at}") for at, text in enumerate(texts)
        ]
        train += rows[:TRAIN]
        test += rows[TRAIN:]
    return tuple(train), tuple(test)
