"""Which demonstrations are shown together, and whether a pool of them can be used at all.

Published: every ordered subset of K pool indexes, lexicographic; for 20 rows and K = 2 that is 380 prompts.
Source: arXiv 2403.01244, section 3.2 and the released generation script (spec section 1).

Chosen here: a cap draws that many of the ordered subsets by seed and keeps their order; no subset is listed that is
not used, so large pools cost nothing.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Literal

from everlearn.data.instance import Instance, Turn
from everlearn.errors import DataError

Layout = Literal["superni", "alpaca"]


def ordered_subsets(size: int, length: int, *, most: int | None = None, seed: int = 0) -> list[tuple[int, ...]]:
    """Ordered subsets of `range(size)`, the first index changing slowest.

    Args:
        size: Rows in the pool.
        length: Demonstrations in a prompt (K).
        most: Cap; so many are then drawn by `seed`.
        seed: Of the draw.

    Returns:
        All `size! / (size - length)!` of them, or `most`, in lexicographic order.
    """
    total = math.perm(size, length)
    if most is None or most >= total:
        ranks: Sequence[int] = range(total)
    else:
        ranks = sorted(random.Random(seed).sample(range(total), most))
    return [_subset_of_rank(rank, size, length) for rank in ranks]


def _subset_of_rank(rank: int, size: int, length: int) -> tuple[int, ...]:
    """The ordered subset at that place of the lexicographic order."""
    left = list(range(size))
    subset = []
    for place in range(length):
        following = math.perm(size - place - 1, length - place - 1)
        at, rank = divmod(rank, following)
        subset.append(left.pop(at))
    return tuple(subset)


def layout_of(demonstrations: Sequence[Instance]) -> Layout:
    """`superni` where all demonstrations share one instruction and have an input; else `alpaca`.

    In the second form the model invents the instructions too.
    """
    one_instruction = len({row.instruction for row in demonstrations}) == 1
    return "superni" if one_instruction and all(row.input for row in demonstrations) else "alpaca"


def system_turns(demonstrations: Sequence[Instance]) -> tuple[Turn, ...]:
    """The system message that all demonstrations share; synthetic instances get the same."""
    return demonstrations[0].history if demonstrations else ()


def check_demonstrations(name: str, demonstrations: Sequence[Instance], length: int, layout: str) -> None:
    """Refuses a pool that synthesis cannot work with.

    Args:
        name: Of the task.
        demonstrations: The pool.
        length: Demonstrations in a prompt (K).
        layout: `auto`, `superni` or `alpaca`.

    Raises:
        DataError: the pool is empty or smaller than K, its rows have earlier turns, or `superni` is asked for
            although the rows have several instructions or lack inputs.
    """
    if not demonstrations:
        raise DataError(
            f"task {name} has no demonstrations to synthesize from: set its `demonstrations` to a number of training "
            "rows (published: 20) or to a file."
        )
    if len(demonstrations) < length:
        raise DataError(
            f"task {name} has {len(demonstrations)} demonstrations but a prompt shows {length}: lower the method's "
            "`demonstrations` or give the task more of them."
        )
    first = demonstrations[0]
    for row in demonstrations:
        if row.history != first.history or any(turn.role != "system" for turn in row.history):
            raise DataError(
                f"task {name}: demonstration {row.id or repr(row.query[:40])} belongs to a longer conversation, but "
                "only single questions can be synthesized: give demonstrations without earlier turns (a system "
                "message that all share is allowed)."
            )
        if layout == "superni" and (row.instruction != first.instruction or not row.input):
            fault = "has no input" if not row.input else "has another instruction than the first"
            raise DataError(
                f"task {name}: demonstration {row.id or repr(row.query[:40])} {fault}, but layout superni needs one "
                "instruction and an input in every row: set the method's `layout` to alpaca or auto."
            )
