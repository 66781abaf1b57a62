"""Input grammars of the generated corpus: templates with slots, written or composed at random.

A grammar is one template such as ``{name} bought {count} {unit} of {food}``; filling its slots gives inputs.
Grammars in the held-out part (a stable hash of the template, about one in sixteen) and the grammars of the
embedded tasks are never drawn for pre-training, so few-shot ability can be measured on unseen ones.
"""

from __future__ import annotations

import random
import re
import zlib
from dataclasses import dataclass, field

from everlearn.data.embedded.words import CONNECTIVES, LABELS, POOLS

HELD_OUT_MODULUS = 16  # one grammar in sixteen is kept for evaluation

RESERVED_TEMPLATES: frozenset[str] = frozenset(
    {
        "this {thing} is {opinion} and very {opinion}",
        "the {colour} {vehicle} {motion}",
        "{name} has no {item} for the {family}",
        "{name} had {number} {unit} for {name} in {city}",
        "{day} at {number} in the {room}",
    }
)

_SKELETONS = """
{name} {did} the {adjective} {thing} in {city}|{name} {did} {count} {unit} of {food}|the {animal} {motion} {manner}
{name} met {name} at the {building}|my {family} lives in {city}|the {job} from {city} likes {sport}
{name} plays {sport} every {day}|{name} plays the {instrument} in the {room}|we eat {food} with {food}
the {adjective} {animal} is near the {nature}|on {day} we have {subject} in the {room}|{day} : {weather} and {weather}
from {city} to {city} by {vehicle}|{number} {unit} of {eatable}|{food} , {food} and {drink}
{name} is {mood} in the {time}|{name} feels {mood} about the {thing}|the {colour} {vehicle} is at the {building}
please bring the {tool} to the {room}|please send {count} {unit} to {city}|turn the {device} off in the {room}
the {person} was {mood} on {day}|every {animal} in {country} is {size}|there is {weather} over {city}
{month} {number} in {country}|meeting on {day} with {name}|call {name} at {number} in the {time}
name : {name} , city : {city}|item : {thing} , color : {colour}|day = {day} ; room = {room}
job : {job} , age : {number}|order {number} : {count} {unit} of {eatable}|id {number} {name} {city}
the {food} here is {opinion}|a {opinion} {building} in {city}|the {device} was {opinion} and {opinion}
i think the {subject} teacher is {opinion}|very {opinion} {drink} at the {building}
{name} says the {thing} is {opinion}
the {material} {furniture} is {quality}|a {shape} of {material}|draw a {colour} {shape} under the {shape}
put the {thing} on the {furniture}|the {animal} has a {colour} {body}|my {body} is {quality} in the {time}
{name} , {name} and {name}|{animal} {animal} {animal}|{colour} {colour} {colour} {colour}|{fruit} and {fruit}
{number} plus {number}|{number} {unit} and {number} {unit}|from {number} to {number}
the {family} of {name} is a {job}|{name} wants to be a {job} in {country}|{name} studies {subject} in {city}
{plant} and {plant} by the {nature}|a {plant} in the {room}|it will {motion} before {time}
in {month} the {weather} comes to {country}|{weather} in {city} on {day}|the {building} is closed on {day}
ticket to {city} on {day} by {vehicle}|{vehicle} {number} leaves at {time}|take the {vehicle} to the {building}
{manner} the {person} {did} the {thing}|who {did} the {colour} {clothes}|where is the {tool} of {name}
{name} has {number} {unit}|{name} has a {adjective} {animal}|{family} and {family} at {time}
wear the {colour} {clothes} and the {clothes}|{clothes} made of {material}|{size} {clothes} for {name}
to {name} : {sport} at {time}|from {name} : bring {food}|note : {animal} seen near the {nature}
{adjective} {thing}|{mood} {person}|{size} {animal} in the {nature}|{name} - {job} - {country}
the {person} {did} {count} {fruit} pies|is the {animal} {size} or {size}|not {mood} but {mood}
{name} paid {number} for the {thing}|{thing} for sale in {city}|the price of the {thing} is {number}
"""

SKELETONS: tuple[str, ...] = tuple(
    item for line in _SKELETONS.strip().splitlines() for item in (part.strip() for part in line.split("|")) if item
)

_SLOT_CATEGORIES = tuple(name for name in POOLS)
_KEYS = tuple("name city item color day room job age food animal size count mood sport code to from".split())
_SEPARATORS = (" ", " ", " ", " , ", " and ", " / ", " - ", " ; ", " : ", " + ")


@dataclass(frozen=True)
class Grammar:
    """A template cut into literal pieces and slots; `fill` draws one input of it."""

    template: str
    pieces: tuple[str, ...] = field(init=False)
    slots: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        parts = re.split(r"\{(\w+)\}", self.template)
        object.__setattr__(self, "pieces", tuple(parts[0::2]))
        object.__setattr__(self, "slots", tuple(parts[1::2]))

    def fill(self, rng: random.Random, pools: dict[int, tuple[str, ...]] | None = None) -> tuple[str, list[str]]:
        """Draw fillers, all different; `pools` replaces the word pool of a slot by position.

        Returns:
            The input text and the fillers in slot order.
        """
        fillers: list[str] = []
        for position, slot in enumerate(self.slots):
            pool = pools[position] if pools and position in pools else POOLS[slot]
            word = rng.choice(pool)
            while word in fillers:
                word = rng.choice(pool)
            fillers.append(word)
        return self.render(fillers), fillers

    def render(self, fillers: list[str]) -> str:
        """Put fillers into the template."""
        out = [self.pieces[0]]
        for filler, literal in zip(fillers, self.pieces[1:], strict=True):
            out.append(filler)
            out.append(literal)
        return "".join(out)

    def matches(self, text: str) -> bool:
        """Whether a text is an input of this grammar."""
        pattern = re.escape(self.pieces[0])
        for slot, literal in zip(self.slots, self.pieces[1:], strict=True):
            pattern += f"(?:{'|'.join(map(re.escape, POOLS[slot]))})" + re.escape(literal)
        return re.fullmatch(pattern, text) is not None


def is_held_out(template: str) -> bool:
    """Whether a template belongs to the part that pre-training never sees."""
    return zlib.crc32(template.encode()) % HELD_OUT_MODULUS == 0


def draw_grammar(rng: random.Random, *, held_out: bool = False) -> Grammar:
    """Draw a grammar of the training part (or the held-out part)."""
    while True:
        template = rng.choice(SKELETONS) if rng.random() < 0.3 else _compose(rng)
        if template not in RESERVED_TEMPLATES and is_held_out(template) == held_out:
            return Grammar(template)


def _compose(rng: random.Random) -> str:
    """A random template: a list, a record of keys, or a free mix of slots and words."""
    kind = rng.random()
    if kind < 0.15:
        slot, count, separator = rng.choice(_SLOT_CATEGORIES), rng.randint(2, 4), rng.choice(_SEPARATORS)
        return separator.join([f"{{{slot}}}"] * count)
    if kind < 0.3:
        keys, mark, end = (
            rng.sample(_KEYS, rng.randint(2, 3)),
            rng.choice((" : ", " = ", " ")),
            rng.choice((" , ", " ; ", " ")),
        )
        return end.join(f"{key}{mark}{{{rng.choice(_SLOT_CATEGORIES)}}}" for key in keys)
    if kind < 0.45:
        separator = rng.choice(_SEPARATORS)
        return separator.join(f"{{{rng.choice(_SLOT_CATEGORIES)}}}" for _ in range(rng.randint(2, 4)))
    words: list[str] = []
    slots = rng.randint(1, 4)
    for position in range(slots):
        for _ in range(rng.choice((0, 1, 1, 1, 2, 2, 3))):
            words.append(rng.choice(CONNECTIVES) if rng.random() < 0.7 else _content_word(rng))
        words.append(f"{{{rng.choice(_SLOT_CATEGORIES)}}}")
        if position + 1 == slots and rng.random() < 0.4:
            words.append(_content_word(rng))
    if len(words) == 1:
        words.insert(0, _content_word(rng))
    return " ".join(words)


def _content_word(rng: random.Random) -> str:
    return rng.choice(LABELS) if rng.random() < 0.3 else rng.choice(POOLS[rng.choice(_SLOT_CATEGORIES)])
