"""Methods by name, found by listing the folder: a file here but this one, `base`, `stack` and
`synthesizing` is a method.

Listing does not import, so `everlearn --help` stays fast; only the chosen method is imported. The file's name is
the method's name.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TypeVar

from everlearn.checking import checked
from everlearn.errors import RecipeError, unknown
from everlearn.methods.base import Method

MethodType = TypeVar("MethodType", bound=type[Method])
_registered: dict[str, type[Method]] = {}


def register(cls: MethodType) -> MethodType:
    """Class decorator: makes a method known under its module's name."""
    cls.name = cls.__module__.rpartition(".")[2]
    cls.title = cls.__dict__.get("title") or (cls.name.upper() if len(cls.name) <= 3 else cls.name.replace("_", " "))
    _registered[cls.name] = cls
    return cls


def method_names() -> list[str]:
    """Names of all methods, sorted; imports nothing."""
    infrastructure = {"__init__", "base", "registry", "stack", "synthesizing"}
    return sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem not in infrastructure)


def method_class(name: str) -> type[Method]:
    """The class of a method.

    Raises:
        RecipeError: unknown name (with the nearest one).
    """
    if name not in method_names():
        raise RecipeError(unknown("method", name, method_names()))
    import_module(f"everlearn.methods.{name}")
    assert name in _registered, f"everlearn/methods/{name}.py has no class decorated with @register"
    return _registered[name]


def make_method(name: str, options: Mapping[str, object]) -> Method:
    """Builds a method from its name and options.

    Raises:
        RecipeError: unknown method or option, or a value out of range; names the key.
    """
    cls = method_class(name)
    return cls(checked(cls.Options, dict(options), where=f"method {name}"))
