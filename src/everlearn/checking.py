"""Checks keys and values of a recipe, or of a method's options, and says all faults in one sentence.

Each fault is named with its key, an unknown key with the nearest valid one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import islice
from reprlib import Repr
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from everlearn.errors import RecipeError, nearest

_SHOWN_CHARACTERS = 80  # of a wrong value in a message
_SHOWN_FAULTS = 8
_NAMED_KEYS = 3  # of a section that holds something else
_CLEARER = {"bool_type": "it is true or false, nothing else", "invalid_key": "a key is text"}

RecipeKind = TypeVar("RecipeKind", bound=BaseModel)


def first_double(values: Iterable[object]) -> object | None:
    """The first value that stands twice; None where each stands once."""
    return next((value for value, count in Counter(values).items() if count > 1), None)


def checked(kind: type[RecipeKind], tree: object, *, where: str) -> RecipeKind:
    """Checks a recipe of any kind, or a part of one.

    Raises:
        RecipeError: an unknown key (with the nearest valid one) or a value out of range; all faults at once.
    """
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        raise RecipeError(_readable(error, where, kind)) from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, nesting without end
        raise RecipeError(f"{where}: a value cannot be read ({error}): mend it.") from None


def _readable(error: ValidationError, where: str, kind: type[BaseModel]) -> str:
    """The faults of a recipe, unknown keys with the nearest valid one; of many the first."""
    lines: dict[str, None] = {}
    found = error.errors(include_url=False, include_context=False)
    faults = [(_location(fault["type"], fault["loc"]), fault) for fault in found[:100]]
    for location, fault in faults:
        if any(len(other) > len(location) and other[: len(location)] == location for other, _ in faults):
            continue  # the other form of a key whose given form has a fault further in
        key = ".".join(str(part) for part in location)
        if fault["type"] == "extra_forbidden":
            known = _fields_at(kind, location[:-1])
            guess = nearest(str(location[-1]), known)
            hint = f"did you mean {guess!r}?" if guess else f"known here: {', '.join(sorted(known)) or 'none'}"
            line = f"unknown key {key!r} ({hint})"
        elif fault["type"] == "missing":
            line = f"key {key!r} is missing"
        elif fault["type"] == "model_type":
            keys = ", ".join(_fields_at(kind, location)[:_NAMED_KEYS])
            given = "nothing" if fault["input"] is None else _shortened(fault["input"])
            line = f"{key} holds {given} where keys of its own belong ({keys}, ...): give some, or leave it out"
        else:
            said = _CLEARER.get(fault["type"]) or fault["msg"].removeprefix("Value error, ")
            said = f"{said[:1].lower()}{said[1:]}"
            line = f"{key}: {said} (given: {_shortened(fault['input'])})" if key else said
        lines[line] = None
    more = f"; and {len(lines) - _SHOWN_FAULTS} more" if len(lines) > _SHOWN_FAULTS else ""
    return f"{where}: {'; '.join(islice(lines, _SHOWN_FAULTS))}{more}."


def _shortened(value: object) -> str:
    shortener = Repr()
    shortener.maxlevel, shortener.maxstring, shortener.maxlong, shortener.maxother = 3, _SHOWN_CHARACTERS, 40, 40
    text = shortener.repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."


def _location(fault: str, parts: tuple[int | str, ...]) -> list[int | str]:
    """Where a fault is, without the names that pydantic gives to the forms of a value."""
    own = len(parts) - (fault in ("extra_forbidden", "missing"))  # these end with a key, whatever it is called
    return [part for at, part in enumerate(parts) if at >= own or not _is_union_branch(part)]


def _is_union_branch(part: object) -> bool:
    text = str(part)
    return "[" in text or text.removeprefix("constrained-") in ("str", "int", "float")


def _fields_at(kind: type[BaseModel], location: list[Any]) -> list[str]:
    """Field names of the section at a location; a position in a list stands for the list's kind of section."""
    section = kind
    for part in location:
        fields = _named_fields(section)
        if isinstance(part, int) or str(part) not in fields:
            continue
        section = _section_of(fields[str(part)].annotation) or section
    return list(_named_fields(section))


def _named_fields(section: type[BaseModel]) -> dict[str, FieldInfo]:
    """The fields of a section by their keys."""
    return {field.alias or name: field for name, field in section.model_fields.items()}


def _section_of(annotation: object) -> type[BaseModel] | None:
    """The section in an annotation such as `Section`, `Section | None` or `list[Section] | str`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _section_of(part))), None)
