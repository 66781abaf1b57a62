"""Families of small text tasks, from which the embedded model learns to read demonstrations.

A task is a definition, one input grammar (sometimes two) and a function of the input. `draw_task` makes a
fresh one; `few_shot_document` writes it in the layout of self-synthesized rehearsal (arXiv 2403.01244,
section 3.1): definition, blank line, `Input: x / Output: y` blocks, each followed by a blank line.
What a label or a toy word means is drawn per task, so it can only be read off the demonstrations.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from everlearn.data.embedded.grammars import draw_grammar
from everlearn.data.embedded.task_families import FAMILIES, Draw, any_word, category
from everlearn.data.embedded.words import TITLES

_KINDS = tuple("text message note line phrase record sentence remark entry input request card report item".split())
_OPENERS = (
    "", "", "", "Given a {k}, ", "Read the {k}. ", "You are given a short {k}. ", "For each {k}, ", "Here is a {k}. ",
    "In this task you see a {k}. ", "Look at the {k} and ", "You will be shown a {k}. ", "From the {k}, ",
)  # fmt: skip
_CLOSERS = (
    "", "", "", "", " Answer with one line.", " Write only the answer.", " Keep the order.", " Be short.",
    " Use the rule of the examples.", " Do not explain.", " Follow the pattern.",
)  # fmt: skip
_VAGUE = (
    "apply the {a} rule", "answer as the {a} {b} does", "do what the examples show", "use the {a} code",
    "write it in the {a} way", "find the {a} answer", "give the {a} of the {b}", "say which {a} fits the {b}",
    "mark it with the {a} word", "convert it for the {b} of {a}", "turn the {k} into a {b} form",
)  # fmt: skip


@dataclass(frozen=True)
class MicroTask:
    """One freshly drawn task: its family, its definition and a generator of instances."""

    family: str
    definition: str
    draw: Draw


def draw_task(rng: random.Random, *, held_out: bool = False, family: str | None = None) -> MicroTask:
    """Draw a task; `held_out` takes its grammars from the part kept for evaluation."""
    name = family or rng.choices(list(FAMILIES), weights=[weight for weight, _ in FAMILIES.values()])[0]
    bodies, draw = FAMILIES[name][1](rng, lambda: draw_grammar(rng, held_out=held_out))
    vague = rng.random() < 0.3
    return MicroTask(name, _definition(rng, rng.choice(_VAGUE) if vague else rng.choice(bodies)), draw)


def few_shot_document(rng: random.Random, task: MicroTask, count: int) -> str:
    """A definition and `count` different instances, each block followed by a blank line."""
    parts = [task.definition, "\n\n"]
    for text, answer in distinct_instances(rng, task, count):
        parts.append(f"Input: {text}\nOutput: {answer}\n\n")
    return "".join(parts)


def distinct_instances(rng: random.Random, task: MicroTask, count: int) -> list[tuple[str, str]]:
    """Up to `count` instances with different inputs (fewer where the task has no more)."""
    seen: dict[str, str] = {}
    for _ in range(4 * count):
        text, answer = task.draw(rng)
        seen.setdefault(text, answer)
        if len(seen) == count:
            break
    return list(seen.items())


def _definition(rng: random.Random, body: str) -> str:
    kind = rng.choice(_KINDS)
    opener = rng.choice(_OPENERS)
    if not opener or opener.endswith(". "):
        body = body[0].upper() + body[1:]
    text = opener + body + "." + rng.choice(_CLOSERS)
    if "{" in text:
        text = text.replace("{k}", kind).replace("{a}", any_word(rng)).replace("{b}", TITLES[category(rng)])
    return text
