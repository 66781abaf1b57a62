"""Writes a recipe from a folder of data files: one task per file, or per group such as `qa.train` and `qa.eval`.

The end of a file's name says its part: `train`; `eval`, `test`, `valid`, `dev` (held-out rows, the first of these that
is there); `extra`, `demonstrations` (rows shown in context). A file without such an end is a task of its own, from
which rows will be held out. Files that are no rows of a known kind are left out, and the recipe says why.

Meaning and default of every key come from the recipe's own models, so that they cannot drift apart.
"""

from __future__ import annotations

import os
import re
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from pydantic import BaseModel

from everlearn import recipe_file
from everlearn.data.column_names import guess_columns
from everlearn.data.formats import unread_columns
from everlearn.data.shapes import detect_shape
from everlearn.data.sources import data_files, read_source
from everlearn.errors import DataError
from everlearn.files import write_text
from everlearn.ordinary_files import is_folder
from everlearn.recipe import Recipe, Section, StreamConfig, TaskConfig

_PARTS = {
    "train": "train", "training": "train",
    "eval": "evaluation", "evaluation": "evaluation", "test": "evaluation", "testing": "evaluation",
    "validation": "evaluation", "valid": "evaluation", "val": "evaluation", "dev": "evaluation",
    "extra": "demonstrations", "demonstrations": "demonstrations", "demos": "demonstrations",
}  # fmt: skip
_NAME = re.compile(rf"^(?:(?P<task>.*?)[._-])?(?P<part>{'|'.join(_PARTS)})$", re.IGNORECASE)
_WIDTH = 100
_LEFT_OUT = "#   "
_LOOKED_AT = 1000  # rows whose keys are looked through


def write_recipe(folder: Path, out: Path) -> str:
    """Looks at the data files of a folder and writes a commented recipe for them.

    Args:
        folder: Holds the data files; its sub-folders are not looked at.
        out: The recipe to write; an existing file is replaced. Paths in it are relative to its folder.

    Returns:
        The recipe's text.

    Raises:
        DataError: the folder is missing, or holds no file with rows to train on.
        RunError: `out` cannot be written.
    """
    if not is_folder(folder):
        raise DataError(f"no folder {folder}: give the folder that holds the data files.")
    tasks, left_out = tasks_in(folder, out.resolve().parent)
    if not tasks:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in left_out.items())
        raise DataError(f"folder {folder} holds no file with rows to train on ({reasons}).")
    name = task_name(folder.resolve().name)
    text = _render(name, tasks, left_out, folder)
    write_text(out, text)
    return text


def left_out_of(recipe: str) -> list[str]:
    """The files and columns that a recipe written here says were left out, each with the reason."""
    return [line.removeprefix(_LEFT_OUT) for line in recipe.splitlines() if line.startswith(_LEFT_OUT)]


def tasks_in(folder: Path, base: Path) -> tuple[list[TaskConfig], dict[str, str]]:
    """Tasks by name, and the files and columns that were left out with the reason.

    Args:
        folder: Holds the data files; its sub-folders are not looked at.
        base: What the paths in the tasks are relative to.

    Raises:
        DataError: the folder holds no data file.
    """
    groups: dict[str, dict[str, list[tuple[int, Path]]]] = {}
    left_out: dict[str, str] = {}
    columns: dict[str, dict[str, str | list[str]]] = {}
    unused: dict[Path, str] = {}
    for path in data_files(folder):
        try:
            mapping, unused[path] = columns_of(path)
        except DataError as error:
            left_out[path.name] = str(error)
            continue
        text, part, rank = _split_name(path, folder)
        groups.setdefault(text, {}).setdefault(part, []).append((rank, path))
        columns.setdefault(text, mapping)
    names = _task_names(text for text, parts in sorted(groups.items()) if "train" in parts)
    tasks = []
    for text, parts in sorted(groups.items()):
        task = names.get(text) or task_name(text)
        first = {part: min(paths)[1] for part, paths in parts.items()}
        for part, paths in parts.items():
            for _, path in paths:
                if "train" not in first:
                    left_out[path.name] = f"task {task} has no training rows"
                elif path != first[part]:
                    left_out[path.name] = f"task {task} takes {first[part].name} for that part"
        if "train" in first:
            if unused[first["train"]]:
                left_out[f"of {first['train'].name}"] = f"the columns {unused[first['train']]}"
            sources = {part: os.path.relpath(path.resolve(), base) for part, path in first.items()}
            tasks.append(TaskConfig.model_validate({"name": task, **sources, "columns": columns[text]}))
    return tasks, left_out


def _split_name(path: Path, folder: Path) -> tuple[str, str, int]:
    """What its name says of the task, part and rank of a file; of two files for one part the lower rank is taken."""
    stem = re.sub(r"(\.gz)$", "", path.name, flags=re.IGNORECASE).rpartition(".")[0]
    match = _NAME.match(stem)
    if match is None:
        return stem, "train", len(_PARTS)
    part = match["part"].lower()
    return match["task"] or folder.resolve().name, _PARTS[part], list(_PARTS).index(part)


def _task_names(texts: Iterable[str]) -> dict[str, str]:
    """A name for each text, no two alike but for capitals: what tells texts apart need not be fit for a name."""
    names: dict[str, str] = {}
    taken: set[str] = set()
    for text in texts:
        name = bare = task_name(text)
        number = 1
        while name.lower() in taken:
            number += 1
            name = f"{bare}-{number}"
        taken.add(name.lower())
        names[text] = name
    return names


def task_name(text: str) -> str:
    """Text made fit for the name of a task or run."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._") or "task"


def columns_of(path: Path) -> tuple[dict[str, str | list[str]], str]:
    """The mapping of columns that a file needs, usually none, and the keys of its rows that are not read with it.

    Raises:
        DataError: the file cannot be read, or holds no rows of a known kind.
    """
    if is_folder(path):
        raise DataError("it is a folder: name it under train yourself if it holds rows")
    (raw,) = read_source(str(path))
    looked_at, raw = raw.looked_at(_LOOKED_AT)
    raw = replace(raw, rows=looked_at)
    if not looked_at:
        raise DataError(f"no row can be read ({raw.bad[0]})" if raw.bad else "it holds no rows")
    if raw.document and "Instances" in raw.document:
        return {}, ", ".join(unread_columns(raw, {}))
    rows = [row for _, row in looked_at[:20] if isinstance(row, dict)]
    for row in rows:
        mapping = {} if detect_shape(row) else guess_columns(row)
        if mapping is not None:
            return mapping, ", ".join(unread_columns(raw, mapping))
    if not rows:
        raise DataError(f"its rows are no objects with keys (the first is {str(looked_at[0][1])[:40]!r})")
    keys = ", ".join(rows[0]) or "none"
    raise DataError(
        f"no rows of a known format (keys: {keys[:80]}); if they are rows of a task, add it below and say what its "
        "columns are, such as columns: {input: QUESTION, output: ANSWER}"
    )


def _render(name: str, tasks: list[TaskConfig], left_out: Mapping[str, str], folder: Path) -> str:
    lines = [
        f"# A recipe for everlearn, made from the data files in {folder.resolve().name}.",
        "# Above each key stands what it means and its default. Check model.base and the order of the tasks,",
        "# then: everlearn run THIS_FILE",
    ]
    if left_out:
        lines += ["#", "# What was left out:"]
        lines += [f"{_LEFT_OUT}{file}: {reason}" for file, reason in sorted(left_out.items())]
    for key, info in Recipe.model_fields.items():
        default = info.get_default(call_default_factory=True)
        lines.append("")
        if key == "stream":
            lines += _stream(tasks)
        elif isinstance(default, Section):
            lines += [*_comment(_summary(type(default)), ""), f"{key}:", *_section(default, "  ")]
        elif key == "method":
            about = f"The method; its own options go below its name. Several as one: a list. Default: {default.name}."
            lines += [*_comment(about, ""), "method:", f"  name: {default.name}"]
        elif key == "name":
            lines += _key(key, name, info.description, default, "")
        else:
            lines += _key(key, default, info.description, default, "")
    return "\n".join(lines) + "\n"


def _stream(tasks: list[TaskConfig]) -> list[str]:
    """The stream's section: all keys of the first task are explained, of the others only what is set is written."""
    lines = [*_comment(_summary(StreamConfig), ""), "stream:"]
    fields = StreamConfig.model_fields
    lines += [*_comment(f"{fields['tasks'].description} Default: {fields['tasks'].default}.", "  "), "  tasks:"]
    for at, task in enumerate(tasks):
        for key, info in TaskConfig.model_fields.items():
            value = getattr(task, key)
            if at == 0:
                default = "none, must be given" if info.is_required() else info.get_default(call_default_factory=True)
                item = _key(key, value, info.description, default, "      ")
            elif key in ("name", "train") or (key in task.model_fields_set and value):
                item = [f"      {key}: {_yaml(value)}"]
            else:
                continue
            if key == "name":
                item[-1] = f"    - {item[-1].strip()}"
                item[:-1] = [line.removeprefix("  ") for line in item[:-1]]
            lines += item
    for key, info in fields.items():
        if key != "tasks":
            lines += _key(info.alias or key, info.default, info.description, info.default, "  ")
    return lines


def _section(section: BaseModel, indent: str) -> list[str]:
    lines: list[str] = []
    for key, info in type(section).model_fields.items():
        value = getattr(section, key)
        if isinstance(value, Section):
            lines += [*_comment(info.description or "", indent), f"{indent}{key}:", *_section(value, indent + "  ")]
        else:
            lines += _key(key, value, info.description, value, indent)
    return lines


def _key(key: str, value: object, meaning: str | None, default: object, indent: str) -> list[str]:
    told = default if isinstance(default, str) else _yaml(default)
    return [*_comment(f"{meaning or ''} Default: {told}.".strip(), indent), f"{indent}{key}: {_yaml(value)}"]


def _comment(text: str, indent: str) -> list[str]:
    return [
        f"{indent}# {line}"
        for line in textwrap.wrap(" ".join(text.split()), _WIDTH - len(indent), break_on_hyphens=False)
    ]


def _summary(section: type[BaseModel]) -> str:
    return (section.__doc__ or "").strip()


def _yaml(value: object) -> str:
    """A value in YAML's one-line style."""
    text = recipe_file.dump(value, default_flow_style=True, width=10_000)
    return text.removesuffix("\n").removesuffix("\n...")
