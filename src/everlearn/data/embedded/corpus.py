"""The generated corpus on which the embedded base model is pre-trained.

Three kinds of document: few-shot documents in the layout of self-synthesized rehearsal (75 %), zero-shot
documents in the plain instruction layout `definition, blank line, input, answer` (10 %), and general text,
small stories and facts from templates (15 %). Everything follows from a seed; documents of different
`split` names come from different random streams.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from everlearn.data.embedded.grammars import is_held_out
from everlearn.data.embedded.microtasks import distinct_instances, draw_task, few_shot_document
from everlearn.data.embedded.task_families import FAMILIES, FIXED_MEANING
from everlearn.data.embedded.words import POOLS

FEW_SHOT_SHARE = 0.75
ZERO_SHOT_SHARE = 0.10


@dataclass(frozen=True)
class Document:
    """One document: `text`, and for zero-shot documents the `answer` that is tokenized apart from it."""

    kind: str
    text: str
    answer: str = ""


def documents(seed: int, split: str = "train") -> Iterator[Document]:
    """Endless documents of the corpus, the same ones for the same seed and split."""
    rng = random.Random(f"everlearn-corpus-{split}-{seed}")
    while True:
        kind = rng.random()
        if kind < FEW_SHOT_SHARE:
            yield Document("few_shot", few_shot_document(rng, draw_task(rng), rng.randint(3, 8)))
        elif kind < FEW_SHOT_SHARE + ZERO_SHOT_SHARE:
            task = draw_task(rng, family=rng.choice(FIXED_MEANING))
            text, answer = distinct_instances(rng, task, 1)[0]
            yield Document("zero_shot", f"{task.definition}\n\n{text}", answer)
        else:
            yield Document("general", story(rng))


def story(rng: random.Random, *, held_out: bool = False) -> str:
    """A small story of three to six sentences; one in sixteen pairs of hero and city is kept for evaluation."""

    def pick(pool: str) -> str:
        return rng.choice(POOLS[pool])

    name, city = pick("name"), pick("city")
    while is_held_out(f"{name} {city}") != held_out:
        name, city = pick("name"), pick("city")
    friend, room = pick("name"), pick("room")
    hour = rng.choice(("morning", "noon", "evening", "night"))
    animal, colour, thing, job = pick("animal"), pick("colour"), pick("thing"), pick("job")
    openings = (
        f"{name} is a {job} in {city}.", f"{name} lives in {city} with a {colour} {animal}.",
        f"Once there was a {job} named {name}.", f"On {pick('day')} {name} came to {city}.",
        f"In {pick('month')} there was {pick('weather')} over {city}. {name} stayed in the {room}.",
    )  # fmt: skip
    middles = (
        f"The {animal} of {name} is {pick('size')} and {pick('mood')}.",
        f"{name} {pick('did')} a {pick('adjective')} {thing} and put it in the {room}.",
        f"Every {pick('day')} {name} plays {pick('sport')} with {friend}.",
        f"{friend} gave {name} {pick('count')} {pick('unit')} of {pick('food')}.",
        f"The {thing} was {pick('colour')} and made of {pick('material')}.",
        f"{name} likes {pick('food')} but {friend} likes {pick('fruit')} and {pick('drink')}.",
        f"They went to the {pick('building')} by {pick('vehicle')} in the {hour}.",
        f"There was {pick('weather')} on the {pick('nature')}, so {name} stayed in the {room}.",
        f"The {pick('family')} of {friend} is a {pick('job')} in {pick('country')}.",
        f"\"The {thing} is {pick('opinion')},\" said {friend}.",
        f"The {animal} {pick('motion')} {pick('manner')} near the {pick('nature')}.",
    )  # fmt: skip
    endings = (
        f"{name} was {pick('mood')}.", f"Then {name} and {friend} went home.", f"In the {hour} {name} went to {city}.",
        f"So {friend} gave the {thing} to {name}.", f"At last the {animal} came back to {name}.",
        f"{name} will never forget {city}.",
    )  # fmt: skip
    return " ".join([rng.choice(openings), *rng.sample(middles, rng.randint(1, 4)), rng.choice(endings)])


def held_out_text(seed: int, count: int = 100) -> list[str]:
    """Stories for perplexity, about pairs of hero and city that no story of the training corpus has."""
    rng = random.Random(f"everlearn-held-out-text-{seed}")
    return [story(rng, held_out=True) for _ in range(count)]


@cache
def held_out_microtasks(count: int = 200, seed: int = 0, shots: int = 4) -> Sequence[Mapping[str, str]]:
    """Few-shot prompts of fresh tasks, families in turn; by default those that every model is asked.

    Families that take a grammar (all but count, class_name, fixed, lookup and join) take one that
    pre-training never saw; the others are fresh draws whose exact inputs it may have met.

    Returns:
        Rows with `prompt` (ends in `Output:`), `answer` and `family`.
    """
    rng = random.Random(f"everlearn-held-out-microtasks-{seed}")
    rows: list[dict[str, str]] = []
    while len(rows) < count:
        task = draw_task(rng, held_out=True, family=tuple(FAMILIES)[len(rows) % len(FAMILIES)])
        *shown, (text, answer) = distinct_instances(rng, task, shots + 1)
        blocks = "".join(f"Input: {x}\nOutput: {y}\n\n" for x, y in shown)
        prompt = f"{task.definition}\n\n{blocks}Input: {text}\nOutput:"
        # A label or toy word that no demonstration shows cannot be answered by anyone.
        answerable = task.family not in ("slot_form", "label", "translate") or set(answer.split()) <= set(
            prompt.split()
        )
        if len(shown) == shots and answerable:
            rows.append({"prompt": prompt, "answer": answer, "family": task.family})
    return rows
