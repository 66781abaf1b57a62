"""Keep teaching a language model without it forgetting.

import everlearn

stream = everlearn.load_stream("embedded")
result = everlearn.run(stream=stream, method="ssr")
print(result.matrix["values"])
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from everlearn.api import add, compare, evaluate, inspect, load_stream, plan, run, synthesize, update
    from everlearn.data.instance import Instance, Task, TaskStream
    from everlearn.recipe import Recipe, load_recipe

__version__ = "0.1.0"

_HOMES = {
    **dict.fromkeys("add compare evaluate inspect load_stream plan run synthesize update".split(), "everlearn.api"),
    "Instance": "everlearn.data.instance",
    "Task": "everlearn.data.instance",
    "TaskStream": "everlearn.data.instance",
    "Recipe": "everlearn.recipe",
    "load_recipe": "everlearn.recipe",
}

__all__ = [
    "Instance",
    "Recipe",
    "Task",
    "TaskStream",
    "add",
    "compare",
    "evaluate",
    "inspect",
    "load_recipe",
    "load_stream",
    "plan",
    "run",
    "synthesize",
    "update",
]


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'everlearn' has no attribute {name!r}")
