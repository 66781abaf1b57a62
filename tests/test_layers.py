"""The shape of the house: imports go downwards, methods stand alone, nothing runs code that comes with data."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from everlearn.methods.registry import method_names
from everlearn.recipe import MethodConfig

SOURCE = Path(__file__).parents[1] / "src" / "everlearn"
FILES = sorted(SOURCE.rglob("*.py"))
FLOORS = {
    **dict.fromkeys("recipe recipe_file recipe_method recipe_paths kept_recipe".split(), 0),
    **dict.fromkeys("artifacts run_folder store crew leash devices layout environment fingerprints".split(), 0),
    **dict.fromkeys("checking errors files http made_once findings ordinary_files progress room".split(), 0),
    **dict.fromkeys("seeds shares usage visible".split(), 0),
    "data": 1,
    "models": 2,
    **dict.fromkeys(("generation", "rewards"), 3),
    **dict.fromkeys(("synthesis", "training", "evaluation"), 4),
    "methods": 5,
    **dict.fromkeys(("runs", "updates", "report"), 6),
    **dict.fromkeys(("api", "cli"), 7),
    **dict.fromkeys(("__init__", "__main__"), 8),
}
"""Rooms by floor; a room may use those on the floors below it. On floor 0 every file may use every other."""
REPORT_FLOORS = {"page": 0, "facts": 1, "sections": 2, "versions": 2, **dict.fromkeys(("html", "text", "__init__"), 3)}
"""The same within the report's room."""


def imports_of(file: Path) -> Iterator[tuple[str, int]]:
    """Names of the modules that a file imports anywhere, with the line."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((name.name, node.lineno) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            if node.module == "everlearn":
                yield from ((_of_package(name.name), node.lineno) for name in node.names if name.name != "__version__")
            else:
                yield str(node.module), node.lineno
        elif isinstance(node, ast.Call) and "import_module" in ast.unparse(node.func):
            text = node.args[0].values[0] if isinstance(node.args[0], ast.JoinedStr) else node.args[0]
            if isinstance(text, ast.Constant):
                yield str(text.value).rstrip("."), node.lineno


def _of_package(name: str) -> str:
    """What `from everlearn import name` reaches: a room, or what the package itself offers."""
    return f"everlearn.{name if name in FLOORS else '__init__'}"


def room_of(file: Path) -> str:
    return file.relative_to(SOURCE).parts[0].removesuffix(".py")


def test_imports_go_downwards_only() -> None:
    upwards = []
    for file in FILES:
        here = room_of(file)
        for module, line in imports_of(file):
            package, _, inner = module.partition(".")
            if package != "everlearn":
                continue
            there = inner.split(".")[0] or "__init__"
            is_beside = FLOORS[there] == FLOORS[here] > 0
            if there != here and (FLOORS[there] > FLOORS[here] or is_beside):
                upwards.append(f"{file.relative_to(SOURCE)}:{line} imports {module}")
    assert not upwards


def test_imports_within_the_report_go_downwards_only() -> None:
    upwards = []
    for file in (SOURCE / "report").rglob("*.py"):
        here = file.relative_to(SOURCE / "report").parts[0].removesuffix(".py")
        for module, line in imports_of(file):
            if module.startswith("everlearn.report."):
                there = module.split(".")[2]
                if there != here and REPORT_FLOORS.get(there, 3) >= REPORT_FLOORS.get(here, 3):
                    upwards.append(f"{file.relative_to(SOURCE)}:{line} imports {module}")
    assert not upwards


def test_the_rooms_of_floors_one_and_above_import_no_heavy_library_in_their_init() -> None:
    for init in SOURCE.rglob("__init__.py"):
        names = {module.split(".")[0] for module, _ in imports_of(init)}
        assert not names & {"torch", "transformers", "peft", "sklearn", "datasets", "jieba"}, init


def test_a_method_is_named_in_its_own_file_only() -> None:
    """The one exception is the default of a recipe; the values of an option are words of another meaning (a norm)."""
    methods = set(method_names())
    for file in FILES:
        others = methods - ({file.stem} if file.parent == SOURCE / "methods" else set())
        tree = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
        choices = {value for node in tree if isinstance(node, ast.Subscript) for value in _choices(node)}
        named = [
            node.value
            for node in tree
            if isinstance(node, ast.Constant) and node not in choices and isinstance(node.value, str)
            if node.value in others
        ]
        assert named == ([MethodConfig().name] if file.name == "recipe.py" else []), file
        assert not {f"everlearn.methods.{name}" for name in others} & {module for module, _ in imports_of(file)}, file


def _choices(node: ast.Subscript) -> Iterator[ast.AST]:
    """The values of a `Literal`."""
    if isinstance(node.value, ast.Name) and node.value.id == "Literal":
        yield from ast.walk(node.slice)


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
