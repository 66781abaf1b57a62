"""JSON with one thing in it changed: every key in turn gone, or with a value that does not belong there."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

WRONG: tuple[Any, ...] = (
    None,
    True,
    -1,
    1.5,
    1e308,
    10**400,
    float("nan"),
    float("inf"),
    "",
    "x",
    "../../../etc/passwd",
    "a\x00b\x1b[31m\u202e",
    [],
    [[[]]],
    {},
    {"x": 1},
)
GONE = object()


def spoilt(value: Any, *, at_once: int = len(WRONG)) -> Iterator[tuple[str, Any]]:
    """Copies of a JSON value with one change each, and where it is.

    Args:
        value: Objects and lists; of a list the first and the last item are changed, and one is added or taken away.
        at_once: How many wrong values each place gets; which they are goes round from place to place.
    """
    for number, path in enumerate(_places(value)):
        name = ".".join(str(part) for part in path)
        chosen = [WRONG[(number * at_once + turn) % len(WRONG)] for turn in range(at_once)]
        for wrong in (GONE, *chosen):
            changed = copy.deepcopy(value)
            inner = changed
            for part in path[:-1]:
                inner = inner[part]
            if wrong is GONE:
                del inner[path[-1]]
            elif type(wrong) is type(inner[path[-1]]) and wrong == inner[path[-1]]:
                continue
            else:
                inner[path[-1]] = wrong
            yield f"{name}: {'gone' if wrong is GONE else repr(wrong)[:30]}", changed


def _places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if isinstance(value, dict):
        keys: list[Any] = list(value)
    else:
        keys = sorted({0, len(value) - 1}) if isinstance(value, list) and value else []
    for key in keys:
        yield (*at, key)
        yield from _places(value[key], (*at, key))


def means(given: Any, made: Any) -> bool:
    """Whether what was made of a value holds all of it, and as what it was: numbers as numbers, truth as truth."""
    if isinstance(given, bool) or isinstance(made, bool):
        return given is made
    if isinstance(given, dict) and isinstance(made, dict):
        return all(key in made and means(value, made[key]) for key, value in given.items())
    if isinstance(given, list) and isinstance(made, list):
        return len(given) == len(made) and all(map(means, given, made))
    return bool(given == made)
