"""Command lines with values and paths that nobody means: refused in one sentence, or taken as they are written."""

from __future__ import annotations

import gzip
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from everlearn.cli import run
from everlearn.cli.options import FLAGS, NUMBERS
from everlearn.recipe import Recipe
from everlearn.recipe_file import parse
from tests.malformed.answers import answer
from tests.malformed.spoilt_json import means

VALUES = (
    "", " ", "\t", "x", "-1", "-", "nan", "inf", ".inf", "1e400", "1e-4", "true", "yes", "~", "null", "9" * 5000,
    "n" * 300, "0x10", "010", "1_000", "1:30", "+3", "３", "'3'", "3 # x", "- 3", "1,2", ",", "1 2", "[", "{a: 1}",
    "{<<: 1}", "*a", "&a 3", "!!int 3", "!x 3", "a: b: c", "a=b", "../../../etc/passwd", "~nobody/x", "a\0b", "\ud800",
    "\x1b[31m", "\u202etxt", "a\nb", "%s", "$HOME", "\N{BYTE ORDER MARK}3",
)  # fmt: skip
ROWS = [{"input": f"the red cat {at}", "output": "yes" if at % 2 else "no"} for at in range(12)]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: a recipe of a run and one of updates, with their data."""
    folder = tmp_path / "one" / "two" / "three" / "four"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    Path("t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    Path("r.yaml").write_text("model: {base: ./m}\nmethod: sequential\nstream: {tasks: [{name: t, train: t.jsonl}]}\n")
    Path("u.yaml").write_text("model: {vocabulary_size: 300}\nversions: [{id: v1, data: text.txt}]\n")
    Path("text.txt").write_text("The red cat.\n\nThe blue cat.\n")
    Path("data").mkdir()
    Path("data/t.jsonl").write_text(Path("t.jsonl").read_text())
    return folder


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[Recipe]:
    """The recipes that a command would go on with."""
    recipes: list[Recipe] = []
    monkeypatch.setattr(run, "run_folder", lambda recipe, *_: recipes.append(recipe) or 0)
    return recipes


@pytest.mark.parametrize("flag", FLAGS)
def test_a_flag_is_refused_by_its_key_or_holds_what_is_written(flag: str, project: Path, begun: list[Recipe]) -> None:
    key = FLAGS[flag][0]
    for value in VALUES:
        begun.clear()
        told = answer("run", "r.yaml", f"{flag}={value}")
        if told.is_refused:
            assert not begun
            assert any(word in told.said for word in (key, flag, key.split(".")[0], "cannot be read")), (
                value,
                told.said,
            )
            continue
        found = _at(begun[0], key)
        meant = parse(value, value) if key in NUMBERS else value.strip() if key == "method.name" else value
        is_path = key in ("model.base", "runs_dir", "cache_dir")
        assert found == meant or (is_path and Path(str(found)) == Path(value).expanduser().resolve()), (value, found)


def test_a_key_set_on_the_command_line_is_read_as_strictly_as_a_recipe(project: Path, begun: list[Recipe]) -> None:
    keys = ("seed", "training.batch_size", "training.gradient_checkpointing", "stream.train_limit", "name", "model")
    for key in (
        *keys,
        "stream",
        "stream.tasks",
        "x.y",
        ".",
        "training.",
        "training.epochs.x",
        "a" * 5000,
        "method.a.b",
    ):
        for value in VALUES:
            begun.clear()
            told = answer("run", "r.yaml", "--set", f"{key}={value}")
            assert told.is_refused != bool(begun), (key, value)
            if begun:
                assert key.startswith("method") or means(parse(value, value), _at(begun[0], key)), (key, value)


def _at(recipe: Recipe, key: str) -> object:
    found: object = recipe.model_dump(mode="json")
    for part in key.split("."):
        assert isinstance(found, dict)
        found = found[part]
    return found


@pytest.mark.parametrize("value", ["", "x", "-1", "1.5", "nan", "9" * 5000, "[", "\0"])
@pytest.mark.parametrize(
    "before",
    [
        ("inspect", "t.jsonl", "--rows"),
        ("pretrain", "--out", "p", "--tokens"),
        ("pretrain", "--out", "p", "--seed"),
        ("pretrain", "--out", "p", "--threads"),
        ("synthesize", "r.yaml", "--count"),
        ("compare", "r.yaml", "--seeds"),
        ("compare", "r.yaml", "--methods"),
        ("update", "u.yaml", "--plan", "--set"),
        ("run", "--nonesuch"),
        ("nonesuch",),
    ],
)
def test_a_value_that_no_command_can_mean_is_refused(before: tuple[str, ...], value: str, project: Path) -> None:
    known = {("compare", "r.yaml", "--seeds"): ("-1",), ("inspect", "t.jsonl", "--rows"): ("-1",)}
    if value in known.get(before, ()):
        return
    assert answer(*before, value).is_refused


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path.name)


MADE: dict[str, Callable[[Path], object]] = {
    "pipe": os.mkfifo,
    "socket": make_socket,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "dangling": lambda path: path.symlink_to("nowhere"),
    "circle": lambda path: path.symlink_to(path.name),
    "text": lambda path: path.write_bytes(b"no such thing\n" * 3),
    "empty": lambda path: path.write_bytes(b""),
    "noise": lambda path: path.write_bytes(bytes(range(256)) * 9),
    "bomb": lambda path: path.write_bytes(gzip.compress(bytes(70 << 20))),
    "nested": lambda path: path.write_text("[" * 5_000),
}
NAMES = {"long": "n" * 300, "deep": "n/" * 3000, "zero": "a\0b", "half": "a\ud800", "below": "t.jsonl/x", "blank": " "}
READING = (
    ("run", "{}"), ("inspect", "{}"), ("inspect", "t.jsonl", "{}"), ("compare", "{}"), ("evaluate", "{}"),
    ("synthesize", "{}"), ("update", "{}", "--plan"), ("report", "{}"), ("resume", "{}"), ("doctor", "--cache", "{}"),
    ("init", "{}"), ("run", "r.yaml", "--model", "{}"), ("run", "r.yaml", "--model", "embedded", "--runs-dir", "{}"),
    ("evaluate", "r.yaml", "--model", "embedded", "--checkpoint", "{}"), ("pretrain", "--out", "{}", "--tokens", "1"),
    ("inspect", "r.yaml", "--model", "embedded", "--set", "evaluation.general_text='{}'"),
    ("inspect", "--model", "embedded", "--set", "stream.tasks=[{{name: t, train: '{}'}}]"),
    ("inspect", "--model", "embedded", "--set", "stream.tasks=[{{name: t, train: t.jsonl, demonstrations: '{}'}}]"),
    ("update", "u.yaml", "--plan", "--runs-dir", "{}"),
    ("update", "u.yaml", "--plan", "--set", "versions=[{{id: a, data: '{}'}}]"),
)  # fmt: skip


@pytest.mark.parametrize("command", READING, ids=" ".join)
def test_no_path_is_waited_for_or_ends_in_a_traceback(command: tuple[str, ...], project: Path) -> None:
    for name, make in MADE.items():
        make(project / name)
    for path in (*MADE, *NAMES.values()):
        arguments = [part.format(path) if "{" in part else part for part in command]
        told = answer(*arguments)
        is_text = path in ("text", "nested") and ("text" in command[-1] or "versions" in command[-1])
        assert told.is_refused or is_text, (arguments, told)
