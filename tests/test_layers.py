"""The shape of the house: imports go downwards, methods stand alone, nothing runs code that comes with data."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from everlearn.methods.registry import method_names

SOURCE = Path(__file__).parents[1] / "src" / "everlearn"
FILES = sorted(SOURCE.rglob("*.py"))
FLOORS = {
    **dict.fromkeys(("recipe", "checking", "errors", "files", "progress", "seeds"), 0),
    "data": 1,
    "models": 2,
    "generation": 3,
    **dict.fromkeys(("synthesis", "training", "evaluation"), 4),
    "methods": 5,
    **dict.fromkeys(("runs", "report"), 6),
    **dict.fromkeys(("api", "updates"), 7),
    "cli": 8,
    **dict.fromkeys(("__init__", "__main__"), 9),
}
"""Rooms by floor; a room may use those on the floors below it. On floor 0 every file may use every other."""


def imports_of(file: Path) -> Iterator[tuple[str, int]]:
    """Names of the modules that a file imports anywhere, with the line."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((name.name, node.lineno) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            yield str(node.module), node.lineno


def room_of(file: Path) -> str:
    return file.relative_to(SOURCE).parts[0].removesuffix(".py")


def test_imports_go_downwards_only() -> None:
    upwards = []
    for file in FILES:
        here = room_of(file)
        for module, line in imports_of(file):
            package, _, inner = module.partition(".")
            if package != "everlearn" or not inner:
                continue
            there = inner.split(".")[0]
            if there != here and FLOORS[there] >= FLOORS[here] > 0:
                upwards.append(f"{file.relative_to(SOURCE)}:{line} imports {module}")
    assert not upwards


def test_the_rooms_of_floors_one_and_above_import_no_heavy_library_in_their_init() -> None:
    for init in SOURCE.rglob("__init__.py"):
        names = {module.split(".")[0] for module, _ in imports_of(init)}
        assert not names & {"torch", "transformers", "peft", "sklearn", "datasets", "jieba"}, init


@pytest.mark.parametrize("method", method_names())
def test_a_method_is_decided_upon_in_its_own_file_only(method: str) -> None:
    compared = re.compile(rf"""(==|!=|\bin)\s*[(\[{{]?\s*["']{method}["']|["']{method}["']\s*(==|!=)""")
    for file in FILES:
        if file != SOURCE / "methods" / f"{method}.py":
            text = file.read_text(encoding="utf-8")
            assert not compared.search(text), file
            assert f"everlearn.methods.{method} " not in text, file


def test_nothing_runs_code_that_comes_with_data_or_models() -> None:
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("eval", "exec", "compile", "__import__"), f"{file}:{node.lineno}"
            if isinstance(node, ast.keyword) and node.arg in ("trust_remote_code", "allow_pickle"):
                assert isinstance(node.value, ast.Constant), f"{file}: {node.arg}"
                assert node.value.value is False, f"{file}: {node.arg}"
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                assert (node.value.id, node.attr) not in (
                    ("torch", "load"),
                    ("torch", "save"),
                    ("yaml", "load"),
                    ("os", "system"),
                ), f"{file}:{node.lineno}"
        modules = {module.split(".")[0] for module, _ in imports_of(file)}
        assert not modules & {"pickle", "dill", "joblib", "cloudpickle", "shelve", "marshal"}, file
