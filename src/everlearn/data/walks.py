"""A completion that thinks before it answers: `<think>` walk `</think>`, then `<answer>` answer `</answer>`.

The opening `<think>` belongs to the prompt, so whoever looks at a completion puts it back first. Only the response is
looked at: the published scorer splits prompt and response at the first header that it finds, so that a header's words
anywhere in them move the split.
Source: R1-T1 (arXiv 2502.19735), its published reward (`verl/utils/reward_score/translate.py`; spec section 5).
"""

from __future__ import annotations

import re

OPENING = "<think>"
TAGS = (OPENING, "</think>", "<answer>", "</answer>")
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_WALK = re.compile(r"<think>(.*?)</think>", re.DOTALL)


def answer_in(response: str) -> str | None:
    """The last answer between tags, stripped; None: there is none."""
    found = _ANSWER.findall(response)
    return found[-1].strip() if found else None


def walk_in(response: str) -> str | None:
    """What is thought, stripped; None: no such tags."""
    found = _WALK.search(response)
    return found[1].strip() if found else None


def is_well_formed(response: str) -> bool:
    """Whether each tag stands exactly once, in order; text outside of them is allowed."""
    places = [response.find(tag) for tag in TAGS]
    return all(response.count(tag) == 1 for tag in TAGS) and places == sorted(places)


def completion_of(walk: str, answer: str) -> list[str]:
    """What is to be written after the opening tag, tags and texts apart: with spaces around texts, as the published
    prompt shows it, so that words have the tokens that they have elsewhere, and a blank line as published chains."""
    return [f" {walk} ", TAGS[1], "\n\n", TAGS[2], f" {answer} ", TAGS[3]]
