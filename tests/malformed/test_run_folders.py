"""Folders of a real run with one key of one JSON file gone or wrong, or a file lost, added or cut: every command that
reads them refuses in one sentence, or mends what it can and shows what is so."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from everlearn.training import stage
from tests.malformed.answers import answer
from tests.malformed.spoilt_json import spoilt

RECIPE = """
name: r
model: {{base: {model}, device: cpu}}
method: {{name: random_rehearsal, ratio: 0.5}}
stream:
  tasks:
    - {{name: a, train: t.jsonl, evaluation: e.jsonl, demonstrations: 2}}
    - {{name: b, train: t.jsonl, evaluation: e.jsonl, demonstrations: 2}}
training: {{epochs: 1, batch_size: 8}}
evaluation: {{max_new_tokens: 2, bootstrap_samples: 100, general: false}}
"""
EVERY = 23
"""One of so many changes is tried."""
COMMANDS = (("report", "{}"), ("inspect", "{}"), ("doctor", "--cache", "{}"), ("resume", "{}"))


@pytest.fixture(scope="module")
def whole(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs folder of a finished run of two tasks."""
    place = tmp_path_factory.mktemp("whole")
    rows = [{"input": f"the red cat {at}", "output": "yes" if at % 2 else "no"} for at in range(16)]
    (place / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:10]))
    (place / "e.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[10:]))
    (place / "r.yaml").write_text(RECIPE.format(model=tiny_model))
    assert not answer("run", str(place / "r.yaml"), "--runs-dir", str(place / "runs")).is_refused
    return place / "runs"


@pytest.fixture
def runs(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, in which nothing may be trained: what is whole is found, what is not is refused."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("training began")

    monkeypatch.setattr(stage, "train_stage", refuse)
    return copied(whole, tmp_path / "runs")


def copied(whole: Path, target: Path) -> Path:
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(whole, target, copy_function=os.link)  # a file is exchanged, never written into
    return target


def content(folder: Path) -> dict[str, bytes]:
    """What a run shows and hands back, by name."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    left = (".lock", "run.log", "report.html")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files if path.name not in left}


def put(path: Path, text: str) -> None:
    path.unlink()
    path.write_text(text)


def read_json(path: Path) -> object:
    return json.loads(path.read_text())


def give(command: tuple[str, ...], runs: Path, what: str) -> bool:
    """Gives a command on the run, and says whether it was refused; an assertion that fails says what was changed."""
    try:
        return answer(*(part.format(runs / "r") for part in command)).is_refused
    except AssertionError as fault:
        raise AssertionError(what) from fault


def differing(before: dict[str, bytes], run: Path) -> set[str]:
    after = content(run)
    return {name for name in {*before, *after} if before.get(name) != after.get(name)}


def test_any_change_of_any_json_is_refused_in_one_sentence_or_mended(whole: Path, runs: Path) -> None:
    tried, refused, before = 0, 0, content(whole / "r")
    changes = [
        (name, place, changed)
        for name in sorted(before)
        if name.endswith(".json") and not name.endswith("tokenizer.json")
        for place, changed in spoilt(read_json(whole / "r" / name), at_once=1)
    ]
    assert len(changes) > 1000
    for name, place, changed in changes[::EVERY]:
        command = COMMANDS[tried % len(COMMANDS)]
        tried += 1
        put(runs / "r" / name, json.dumps(changed))
        is_refused = give(command, runs, f"{name}: {place}")
        refused += is_refused
        if command[0] == "resume" and not is_refused:
            left = differing(before, runs / "r") - {"manifest.json"}
            # a lineage that was changed is made anew, with the times of the run's steps
            assert left <= ({name} if name.endswith(("artifact.json", "lineage.json")) else set()), (name, place)
            assert "sum" in read_json(runs / "r" / "lineage.json")
        copied(whole, runs)
    assert refused > tried // 5


CHANGES: dict[str, Callable[[Path], object]] = {
    "gone": lambda path: path.unlink(),
    "empty": lambda path: put(path, ""),
    "cut": lambda path: put(path, path.read_bytes()[:-20].decode("latin-1")),
    "nested": lambda path: put(path, "[" * 100_000),
    "pipe": lambda path: (path.unlink(), os.mkfifo(path)),
    "folder": lambda path: (path.unlink(), path.mkdir()),
    "link": lambda path: (path.rename(path.with_name("elsewhere")), path.symlink_to("elsewhere")),
    "device": lambda path: (path.unlink(), path.symlink_to("/dev/zero")),
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_stands_in_the_place_of_a_file_is_refused_or_mended(change: str, whole: Path, runs: Path) -> None:
    before = content(whole / "r")
    for at, name in list(enumerate(sorted(before)))[list(CHANGES).index(change) % 4 :: 4]:
        command = COMMANDS[(at // 4) % len(COMMANDS)]
        CHANGES[change](runs / "r" / name)
        if not give(command, runs, f"{name}: {change}") and command[0] == "resume":
            assert {key for key in differing(before, runs / "r") if key in before} <= {"manifest.json", "recipe.yaml"}
        copied(whole, runs)
