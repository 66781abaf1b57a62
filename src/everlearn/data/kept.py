"""The rows of a task as a run keeps them in its folder, so that it goes on where their files are no more.

A folder holds `train.jsonl`, `evaluation.jsonl`, `demonstrations.jsonl` (as `Instance.to_json`) and `task.json`; it is
an artifact of the run, under `stages/<stage>/data/<task>`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from everlearn.artifacts import fault_of
from everlearn.data.account import TaskAccount
from everlearn.data.instance import Instance, Task
from everlearn.files import read_jsonl, read_mapping, read_vouched, write_json, write_jsonl

_PARTS = ("train", "evaluation", "demonstrations")


def keep_task(task: Task, fingerprint: str, folder: Path) -> None:
    """Writes a task, and what `Task.fingerprint` gives of it, into a folder."""
    for part in _PARTS:
        write_jsonl(folder / f"{part}.jsonl", (row.to_json() for row in getattr(task, part)))
    about = {"name": task.name, "metric": task.metric, "labels": list(task.labels), "classes": list(task.classes)}
    write_json(folder / "task.json", {**about, "fingerprint": fingerprint})


def kept_fingerprint(folder: Path, name: str) -> str | None:
    """What `Task.fingerprint` gave when a run kept the task; None where it has not."""
    place = next(kept_places(folder, f"data/{name}"), None)
    return None if place is None else str(read_mapping(place / "task.json").get("fingerprint"))


def kept_task(folder: Path, name: str) -> tuple[Task, TaskAccount] | None:
    """A task as a run, or a run of a comparison, has kept it, with the account of its data; None where none has.

    Args:
        folder: Of the run or comparison.
        name: Of the task.

    Raises:
        RunError: the run's manifest is corrupt.
    """
    for place in kept_places(folder, f"data/{name}"):
        about = read_mapping(place / "task.json")
        rows = {part: tuple(map(Instance.from_json, read_jsonl(place / f"{part}.jsonl"))) for part in _PARTS}
        labels, classes = tuple(about["labels"]), tuple(about.get("classes", ()))
        task = Task(name, **rows, metric=str(about["metric"]), labels=labels, classes=classes)
        accounts = read_vouched(place.parents[3] / "manifest.json").get("data", [])
        found = next((one for one in accounts if one.get("task") == name), None)
        return task, TaskAccount.from_json(found) if found else TaskAccount(name, metric=task.metric)
    return None


def kept_places(folder: Path, name: str) -> Iterator[Path]:
    """Where a run, or the runs of a comparison, have an artifact of two parts, such as `data/qa`, and it is whole."""
    for pattern in (f"stages/*/{name}", f"*/stages/*/{name}"):
        for place in sorted(folder.glob(pattern)):
            if fault_of(place) is None and (place.parents[3] / "manifest.json").is_file():
                yield place
