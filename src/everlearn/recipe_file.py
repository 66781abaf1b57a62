"""The YAML of recipes, read so that it means what it says.

YAML 1.2's core schema in place of PyYAML's 1.1: `1e-4` is a number, `yes`, `2026-01-01` and `1:30` are text, `010` is
ten. A key that stands twice, a key that is no text, a tag, aliases that unfold into more than anyone writes, nesting
without end and numbers of thousands of digits are refused with their line. What everlearn writes is quoted wherever
YAML 1.1 or 1.2 would read something else.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from everlearn.errors import RecipeError, UserError
from everlearn.ordinary_files import read_text

MOST_BYTES = 1 << 20
"""Of a recipe that somebody wrote: room for ten thousand tasks."""
MOST_STORED_BYTES = 16 << 20
"""Of one that everlearn wrote, in which every key stands."""
_MOST_PARTS = 200_000  # keys and values, those behind an alias counted each time
_MOST_DEPTH = 32
_MOST_DIGITS = 20
_CORE = "tag:yaml.org,2002:"
_PATTERNS = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    "merge": (r"<<", ["<"]),
}
_RESOLVER = yaml.resolver.BaseResolver
_KNOWN_TAGS = {
    *(_CORE + kind for kind in _PATTERNS),
    _RESOLVER.DEFAULT_SCALAR_TAG,
    _RESOLVER.DEFAULT_SEQUENCE_TAG,
    _RESOLVER.DEFAULT_MAPPING_TAG,
}
_UNWRITABLE = re.compile("[\0\ud800-\udfff]")


class _RefusedError(yaml.MarkedYAMLError):
    """YAML that is valid but is no recipe."""


class _Loader(yaml.SafeLoader):
    """Refuses, as it composes, whatever would be read as something else or not at all."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        self._parts: dict[int, int] = {}  # by the identity of a node, which the tree keeps alive

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        mark = self.peek_event().start_mark
        is_alias = self.check_event(yaml.AliasEvent)
        self._depth += 1
        if self._depth > _MOST_DEPTH:
            raise _RefusedError(problem=f"it is nested deeper than {_MOST_DEPTH} levels", problem_mark=mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if is_alias:
            if id(node) not in self._parts:
                raise _RefusedError(problem="an alias stands within what it names", problem_mark=mark)
        elif node is not None:
            _check_node(node)
            children = [part for child in node.value for part in (child if isinstance(child, tuple) else (child,))]
            inner = 0 if isinstance(node, yaml.ScalarNode) else sum(self._parts[id(child)] for child in children)
            self._parts[id(node)] = 1 + inner
            if inner > _MOST_PARTS:
                raise _RefusedError(problem=f"it holds more than {_MOST_PARTS:,} keys and values", problem_mark=mark)
        return node

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        text = str(self.construct_scalar(node))
        if len(text) > _MOST_DIGITS:
            raise _RefusedError(
                problem=f"a number of {len(text):,} digits means nothing", problem_mark=node.start_mark
            )
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))


class _Dumper(yaml.SafeDumper):
    """Quotes text that YAML 1.1 or 1.2 would read as something else."""

    def ignore_aliases(self, data: object) -> bool:
        return True


_Loader.yaml_implicit_resolvers = {}
for _kind, (_pattern, _first) in _PATTERNS.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_CORE + _kind, re.compile(rf"(?:{_pattern})\Z"), _first)
_Loader.add_constructor(f"{_CORE}int", _Loader.construct_yaml_int)


def parse(text: str, where: str) -> object:
    """What a YAML document holds; None for an empty one.

    Args:
        text: One document.
        where: What it is, for messages.

    Raises:
        RecipeError: it is not valid, or cannot be a recipe; names the line.
    """
    try:
        return _Loader(text).get_single_data()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark and "\n" in text.strip() else ""
        said = " ".join(part for part in (error.context, error.problem) if part)
        kind, end = ("", ".") if isinstance(error, _RefusedError) else (" is not valid YAML", "; mend it.")
        raise RecipeError(f"{where}{kind}{line}: {said}{end}") from None
    except (yaml.YAMLError, ValueError, KeyError, RecursionError) as error:  # an explicit tag, such as !!int x
        raise RecipeError(f"{where} is not valid YAML: {' '.join(str(error).split())}; mend it.") from None


def read(path: Path, fault: type[UserError] = RecipeError, most: int = MOST_BYTES) -> object:
    """What a YAML file holds.

    Raises:
        UserError: the file cannot be read, of the class `fault`.
        RecipeError: as `parse`.
    """
    return parse(read_text(path, fault, most), str(path))


def dump(tree: object, **style: Any) -> str:
    """YAML of plain values, in their order; `style` as PyYAML takes it."""
    return str(yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True, **style))


def _check_node(node: yaml.Node) -> None:
    if node.tag not in _KNOWN_TAGS:
        tag = node.tag.replace(_CORE, "!!")
        raise _RefusedError(problem=f"the tag {tag!r} has no meaning in a recipe", problem_mark=node.start_mark)
    if isinstance(node, yaml.ScalarNode) and _UNWRITABLE.search(node.value):
        problem = "a value holds a zero byte or half a letter (a lone surrogate), which no file can hold"
        raise _RefusedError(problem=problem, problem_mark=node.start_mark)
    if not isinstance(node, yaml.MappingNode):
        return
    seen: dict[str, int] = {}
    for key, _ in node.value:
        line = key.start_mark.line + 1
        if key.tag not in (f"{_CORE}str", f"{_CORE}merge"):
            said = key.value if isinstance(key, yaml.ScalarNode) else key.id
            problem = f"the key {said!r} is no text (put it in quotes if it is meant)"
            raise _RefusedError(problem=problem, problem_mark=key.start_mark)
        if key.value in seen:
            first = f", first in line {seen[key.value]}" if seen[key.value] != line else ""
            problem = f"the key {key.value!r} stands twice{first}: leave one of them"
            raise _RefusedError(problem=problem, problem_mark=key.start_mark)
        seen[key.value] = line
