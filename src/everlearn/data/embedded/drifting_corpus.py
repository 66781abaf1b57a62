"""A generated corpus whose content drifts from version to version, for the embedded default of `everlearn update`.

A small world of people, towns and inventions, all with made-up names. Each version adds new ones (new words), moves
some of the older people to other towns and jobs (changed facts), and tells short texts: six in ten about what is new,
the rest about anything in the world as it is now. Who lives where and does what is fixed within a version, so a model
that has learnt the version's facts predicts its held-out texts better, and one that has learnt only later versions
predicts the old ones worse. Everything follows from a seed.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from everlearn.data.embedded.words import POOLS
from everlearn.files import write_text

NEW_PEOPLE, NEW_TOWNS, NEW_INVENTIONS = 60, 12, 12
MOVED_SHARE = 0.25
NEW_SHARE = 0.6
_ONSETS = "b br c d dr f fl g gr h j k kl l m n p pr qu r s st t tr v w z".split()
_VOWELS = "a e i o u ai ea io ou".split()
_CODAS = ["", "", "l", "m", "n", "r", "s", "th", "x", "nd", "sk"]


_Member = TypeVar("_Member")


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody, and the facts about them."""

    name: str
    town: str
    job: str
    animal: str
    friend: str


@dataclass(frozen=True, slots=True)
class Thing:
    """A town (`made_by` is its mayor, `kind` its landscape) or an invention (`kind` and `material` of it)."""

    name: str
    kind: str
    material: str
    made_by: str


@dataclass(frozen=True, slots=True)
class World:
    """Everything there is in a version; the new ones come last."""

    people: tuple[Person, ...] = ()
    towns: tuple[Thing, ...] = ()
    inventions: tuple[Thing, ...] = ()


def world_of(version: int, seed: int) -> World:
    """The world as it is in a version (1-based)."""
    world = World()
    used: set[str] = {word.lower() for pool in POOLS.values() for word in pool}
    for number in range(1, version + 1):
        rng = random.Random(f"everlearn-drift-world-{seed}-{number}")
        world = _next(world, rng, used)
    return world


def documents_of(version: int, count: int, seed: int) -> list[str]:
    """The documents of a version: short texts of three to six sentences."""
    world = world_of(version, seed)
    rng = random.Random(f"everlearn-drift-text-{seed}-{version}")
    return [_document(world, rng) for _ in range(count)]


def write_version(folder: Path, version: int, *, documents: int, seed: int) -> Path:
    """The file with a version's text, written unless it is there."""
    path = folder / f"seed{seed}-{documents}-v{version}.txt"
    if not path.exists():
        write_text(path, "\n\n".join(documents_of(version, documents, seed)) + "\n")
    return path


def _next(world: World, rng: random.Random, used: set[str]) -> World:
    town_names = [_new_word(rng, used) for _ in range(NEW_TOWNS)]
    names = [_new_word(rng, used) for _ in range(NEW_PEOPLE)]
    all_towns = [town.name for town in world.towns] + town_names
    all_names = [person.name for person in world.people] + names
    moved = [
        replace(person, town=rng.choice(all_towns), job=rng.choice(POOLS["job"]))
        if rng.random() < MOVED_SHARE
        else person
        for person in world.people
    ]
    pick = lambda pool: rng.choice(POOLS[pool])  # noqa: E731
    people = [
        Person(name, rng.choice(all_towns), pick("job"), pick("animal"), rng.choice(all_names)) for name in names
    ]
    towns = [Thing(name, pick("nature"), pick("weather"), rng.choice(names)) for name in town_names]
    inventions = [
        Thing(_new_word(rng, used).lower(), pick("tool"), pick("material"), rng.choice(names))
        for _ in range(NEW_INVENTIONS)
    ]
    return World((*moved, *people), (*world.towns, *towns), (*world.inventions, *inventions))


def _document(world: World, rng: random.Random) -> str:
    makers = (_about_person, _about_person, _about_person, _about_town, _about_invention)
    first = rng.choice(makers)
    sentences = first(world, rng)
    while len(sentences) < 4:
        sentences += rng.choice(makers)(world, rng)
    return " ".join(sentences[: rng.randint(4, 6)])


def _about_person(world: World, rng: random.Random) -> list[str]:
    who = _pick(world.people, NEW_PEOPLE, rng)
    facts = [
        f"{who.name} lives in {who.town}.",
        f"{who.name} works as a {who.job} in {who.town}.",
        f"The best friend of {who.name} is {who.friend}.",
        f"{who.name} has a {who.animal} at home.",
        f"On {rng.choice(POOLS['day'])} {who.friend} came to {who.town} to see {who.name}.",
        f"The {who.animal} of {who.name} is {rng.choice(POOLS['mood'])}.",
        f"{who.name} {rng.choice(POOLS['did'])} a {rng.choice(POOLS['device'])} in {who.town}.",
    ]
    return rng.sample(facts, rng.randint(2, 4))


def _about_town(world: World, rng: random.Random) -> list[str]:
    town = _pick(world.towns, NEW_TOWNS, rng)
    facts = [
        f"{town.name} is a town by the {town.kind}.",
        f"The mayor of {town.name} is {town.made_by}.",
        f"In {rng.choice(POOLS['month'])} there is often {town.material} in {town.name}.",
        f"{town.made_by} likes the {town.kind} of {town.name}.",
    ]
    return rng.sample(facts, rng.randint(2, 3))


def _about_invention(world: World, rng: random.Random) -> list[str]:
    thing = _pick(world.inventions, NEW_INVENTIONS, rng)
    facts = [
        f"A {thing.name} is a kind of {thing.kind} made of {thing.material}.",
        f"The {thing.name} was invented by {thing.made_by}.",
        f"You need {thing.material} to make a {thing.name}.",
        f"{thing.made_by} sold {rng.choice(POOLS['count'])} of the {thing.name} in {rng.choice(POOLS['month'])}.",
    ]
    return rng.sample(facts, rng.randint(2, 3))


def _pick(pool: Sequence[_Member], new_count: int, rng: random.Random) -> _Member:
    """One of the new ones at the pool's end, or any."""
    return rng.choice(pool[-new_count:] if rng.random() < NEW_SHARE else pool)


def _new_word(rng: random.Random, used: set[str]) -> str:
    while True:
        syllables = rng.randint(2, 3)
        word = "".join(rng.choice(_ONSETS) + rng.choice(_VOWELS) for _ in range(syllables)) + rng.choice(_CODAS)
        if word not in used:
            used.add(word)
            return word.capitalize()
