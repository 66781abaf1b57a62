"""What every engine asks of prompts before it writes: how much room each leaves, and which are equal."""

from __future__ import annotations

from collections.abc import Sequence

from everlearn.errors import UserError
from everlearn.generation.protocol import Sampling


def room_of(index: int, length: int, sampling: Sampling, context: int | None) -> int:
    """How many tokens may be added to a prompt.

    Args:
        index: Of the prompt in the call.
        length: Its tokens.
        sampling: How it is completed.
        context: Most tokens that the model takes, prompt and completion together; None: not known.

    Raises:
        UserError: the prompt is empty, or leaves no room (names its index and length).
    """
    if length == 0:
        raise UserError(f"prompt {index} (counted from 0) has no tokens: give every prompt at least one token.")
    limit = sampling.max_new_tokens
    for name, most in (("the model's context", context), ("max_length", sampling.max_length)):
        if most is None:
            continue
        if length >= most:
            raise UserError(
                f"prompt {index} (counted from 0) has {length} tokens and leaves no room for an answer in {name} "
                f"of {most} tokens: shorten it to at most {most - 1} tokens, or "
                + ("use a model with a longer context." if name != "max_length" else "raise max_length.")
            )
        limit = min(limit, most - length)
    return max(1, limit)


def first_of_equals(prompts: Sequence[Sequence[int]]) -> list[int]:
    """For each prompt the index of the first with the same tokens."""
    seen: dict[tuple[int, ...], int] = {}
    return [seen.setdefault(tuple(ids), at) for at, ids in enumerate(prompts)]
