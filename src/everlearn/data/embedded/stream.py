"""The embedded stream: five small tasks that the embedded model cannot do before it is trained on them.

Each task has a definition, one input grammar that pre-training never saw (`RESERVED_TEMPLATES`) and an
arbitrary mapping: labels, desks, a toy lexicon and room codes have no meaning outside the stream. All words
are known ones, so the model can imagine new inputs of a task from two demonstrations; their answers must be
learnt. Training and evaluation rows have different inputs, and everything follows from a seed.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from everlearn.data.embedded.grammars import RESERVED_TEMPLATES, Grammar
from everlearn.data.embedded.words import NONSENSE, POOLS
from everlearn.data.instance import Instance, Task, TaskStream

DEMONSTRATIONS = 20  # the last rows of the training split, as in the SSR data


@dataclass(frozen=True)
class EmbeddedTask:
    """What a task of the stream consists of: name, definition, template, slot pools by position, answer."""

    name: str
    definition: str
    template: str
    draw: Callable[[random.Random, Grammar], tuple[str, str]]
    labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        assert self.template in RESERVED_TEMPLATES, "templates of the stream are reserved in grammars.py"


_TEMPLATES = (
    "this {thing} is {opinion} and very {opinion}",
    "the {colour} {vehicle} {motion}",
    "{name} has no {item} for the {family}",
    "{name} had {number} {unit} for {name} in {city}",
    "{day} at {number} in the {room}",
)
_RUVIAN_WORDS = (*POOLS["colour"], *POOLS["vehicle"], *POOLS["motion"])
RUVIAN = dict(zip(_RUVIAN_WORDS, NONSENSE, strict=False))
DESKS = {"tool": "harbor", "clothes": "cedar", "device": "opal", "fruit": "raven"}
DAY_CODES = dict(zip(POOLS["day"], NONSENSE[64:], strict=False))
ROOM_CODES = dict(zip(POOLS["room"], NONSENSE[71:], strict=False))


def _remark(rng: random.Random, grammar: Grammar) -> tuple[str, str]:
    kind = rng.choice(("good", "bad"))
    text, _ = grammar.fill(rng, {1: POOLS[kind], 2: POOLS[kind]})
    return text, "praise" if kind == "good" else "grumble"


def _ruvian(rng: random.Random, grammar: Grammar) -> tuple[str, str]:
    text, words = grammar.fill(rng)
    return text, " ".join(RUVIAN[word] for word in reversed(words))


def _routing(rng: random.Random, grammar: Grammar) -> tuple[str, str]:
    kind = rng.choice(tuple(DESKS))
    text, _ = grammar.fill(rng, {1: POOLS[kind]})
    return text, DESKS[kind]


def _delivery(rng: random.Random, grammar: Grammar) -> tuple[str, str]:
    text, (_, number, unit, receiver, city) = grammar.fill(rng)
    return text, f"{receiver} + {unit} {number} + {city}"


def _booking(rng: random.Random, grammar: Grammar) -> tuple[str, str]:
    text, (day, number, room) = grammar.fill(rng)
    return text, f"{DAY_CODES[day]} / {number} / {ROOM_CODES[room]}"


TASKS: tuple[EmbeddedTask, ...] = (
    EmbeddedTask("sentiment", "Judge the remark about the object as our clerk does.", _TEMPLATES[0], _remark,
                 ("praise", "grumble")),
    EmbeddedTask("ruvian", "Translate the little phrase into Ruvian.", _TEMPLATES[1], _ruvian),
    EmbeddedTask("routing", "Say which desk of our market should get the note.", _TEMPLATES[2], _routing,
                 tuple(DESKS.values())),
    EmbeddedTask("delivery", "Write the short note for our driver.", _TEMPLATES[3], _delivery),
    EmbeddedTask("booking", "Turn the request into the code of our hotel.", _TEMPLATES[4], _booking),
)  # fmt: skip


def embedded_stream(seed: int = 0, *, train: int = 300, evaluation: int = 100) -> TaskStream:
    """Draw the five tasks.

    Args:
        seed: Draws the rows; definitions, grammars and mappings are always the same.
        train: Training rows per task.
        evaluation: Evaluation rows per task.

    Returns:
        The stream in its default order, metric `exact_match`.
    """
    return TaskStream(tuple(_draw(task, seed, train, evaluation) for task in TASKS), name="embedded")


def _draw(task: EmbeddedTask, seed: int, train: int, evaluation: int) -> Task:
    rng = random.Random(f"everlearn-embedded-{task.name}-{seed}")
    grammar = Grammar(task.template)
    rows: dict[str, str] = {}
    while len(rows) < train + evaluation:
        text, answer = task.draw(rng, grammar)
        rows.setdefault(text, answer)
    instances = tuple(
        Instance(task.definition, text, answer, task.name, id=f"{task.name}-{at}")
        for at, (text, answer) in enumerate(rows.items())
    )
    kept = instances[:train]
    return Task(task.name, kept, instances[train:], kept[-DEMONSTRATIONS:], "exact_match", task.labels)
