"""How a recipe names a method, or several that are stacked.

`method: l2`, `{name: l2, strength: 1}`, and for stacks `ssr+l2`, `[ssr, {name: l2, strength: 1}]` and
`{name: ssr+l2, l2: {strength: 1}}`. The last form, in which each option has a dotted key of its own
(`method.l2.strength`), is the one that is kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from everlearn.checking import first_double

Options: TypeAlias = dict[str, object]
JOIN = "+"
"""Stands between the names of a stack; no method's name holds it."""


def names_in(name: str) -> list[str]:
    """The names of a stack, or the one name."""
    return [part.strip() for part in name.split(JOIN)]


def one_form(given: object) -> object:
    """A method, however it is named, as a mapping with its name and its options, of a stack by method.

    What has none of the forms comes back as it is, to be refused by key.

    Raises:
        ValueError: a stack that does not say which methods it has, or whose an option is.
    """
    if isinstance(given, list | tuple):
        for item in given:
            if not (isinstance(item, str) or (isinstance(item, Mapping) and isinstance(item.get("name"), str))):
                raise ValueError("each method of a stack is a name, or a mapping with its name and its options")
    elif not (isinstance(given, str) or (isinstance(given, Mapping) and isinstance(given.get("name"), str))):
        return given
    parts = _parts(given)
    names = [name for name, _ in parts]
    if not names:
        raise ValueError("the list is empty: name a method, or leave the key out")
    if len(names) == 1:
        return {"name": names[0], **parts[0][1]}
    if not all(names):
        raise ValueError(f"a name is missing beside a {JOIN!r}: write a stack as one{JOIN}other")
    if double := first_double(names):
        raise ValueError(f"method {double} stands twice in the stack: name each method once")
    return {"name": JOIN.join(names), **dict(parts)}


def renamed(there: object, given: object) -> object:
    """Another method in the place of one: each that was there before, and has no options now, keeps its own.

    Raises:
        ValueError: as `one_form`.
    """
    before = one_form(there)
    had = dict(_parts(before)) if isinstance(before, Mapping) and isinstance(before.get("name"), str) else {}
    wanted = one_form(given)
    if not isinstance(wanted, Mapping) or not isinstance(wanted.get("name"), str):
        return wanted
    return one_form([{"name": name, **(options or had.get(name, {}))} for name, options in _parts(wanted)])


def _parts(given: object) -> list[tuple[str, Options]]:
    """Names and options, in order."""
    if isinstance(given, str):
        return [(name, {}) for name in names_in(given)]
    if isinstance(given, list | tuple):
        return [part for item in given for part in _parts(item)]
    assert isinstance(given, Mapping), "a method is named by a text, a list or a mapping"
    whole = str(given["name"])
    names, options = names_in(whole), {key: value for key, value in given.items() if key != "name"}
    if len(names) == 1:
        return [(names[0], options)]
    for key, value in options.items():
        if key not in names:
            places = " or ".join(f"{name}.{key}" for name in names if name)
            raise ValueError(f"{whole} is a stack of methods: say whose option {key} is ({places})")
        if not isinstance(value, Mapping):
            held = "nothing" if value is None else str(value)[:40]
            raise ValueError(f"{key} holds {held} where the options of that method belong")
    return [(name, dict(options.get(name, {}))) for name in names]
