"""A conversation as exchanges: the form in which every template of prompts takes it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from everlearn.data.instance import Turn


class Exchange(NamedTuple):
    """A question and its answer; the last one of a prompt has none yet."""

    question: str
    answer: str | None = None


def exchanges_of(history: Sequence[Turn], query: str) -> tuple[str | None, list[Exchange]]:
    """Splits a conversation into its system text and its exchanges; the last exchange asks `query`."""
    if not history:
        return None, [Exchange(query)]
    system: list[str] = []
    questions: list[str] = []
    exchanges: list[Exchange] = []
    for turn in history:
        if turn.role == "system":
            system.append(turn.content)
        elif turn.role == "user":
            questions.append(turn.content)
        else:
            exchanges.append(Exchange("\n\n".join(questions), turn.content))
            questions = []
    exchanges.append(Exchange("\n\n".join([*questions, query])))
    return "\n\n".join(system) or None, exchanges
