"""One labelled data set cut into tasks: each brings so many of its classes.

The rows of a task stand in the order of the data. Without evaluation rows a part of each class is held out.
Source: arXiv 2312.07887, published protocol (classes contiguous in a global order, disjoint).
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

from everlearn.checking import first_double
from everlearn.data import words
from everlearn.data.account import PartAccount, TaskAccount, listed
from everlearn.data.classes import first_seen
from everlearn.data.containers import document
from everlearn.data.conversations import Rows
from everlearn.data.instance import Task
from everlearn.data.labels import Spellings, ignores_case
from everlearn.data.tasks import Account, check_order, held_out, made_of, note_cut, read_part
from everlearn.errors import DataError, RecipeError, nearest
from everlearn.ordinary_files import read_text
from everlearn.recipe import EMBEDDED, ClassesConfig, StreamConfig
from everlearn.seeds import derive

WHERE = "stream.from"


def cut_by_class(config: StreamConfig, source: ClassesConfig, account: Account, seed: int) -> list[Task]:
    """The tasks of a data set.

    Args:
        config: How many classes each task brings, in which order, and the limits of each task.
        source: The data set.
        account: Takes the bad rows, the notes and what became of each task's data.
        seed: Of the run: order of the classes where it is drawn, and the rows that are held out.

    Raises:
        DataError: the data set cannot be read, or a class is not both trained and tested.
        RecipeError: the order or the numbers of the classes do not fit the data.
    """
    told = TaskAccount(source.name)
    ignore_case = source.metric == "auto" or ignores_case(source.metric)
    train, evaluation, names = _read(source, account, told, ignore_case, seed)
    account.notes += [f"{WHERE}: {remark}" for remark in told.remarks()]
    if train.instances[0].words:
        return _cut_by_type(config, source, train, evaluation, names, account, told, seed)
    classes = _in_order(config, names or first_seen(train.instances, ignore_case), ignore_case, seed)
    spellings = Spellings(classes, ignore_case)
    for part, rows in (("training", train), ("test", evaluation)):
        foreign = Counter(row.output for row in rows.instances if not spellings.label(row.output)) if rows else None
        if foreign:
            name, count = foreign.most_common(1)[0]
            raise DataError(
                f"{WHERE}: {count} {part} rows are of {name!r}, which is none of the {len(classes)} classes, so no "
                "answer that is learnt can be right: take these rows out, or give their class training rows."
            )
    limits = (config.train_limit, config.evaluation_limit)
    groups = {f"{source.name}-{number}": group for number, group in enumerate(_groups(config, classes), 1)}
    check_order(config.order, list(groups))
    tasks = []
    for name, group in groups.items():
        if config.order and name not in config.order:
            continue
        mine = source.model_copy(update={"name": name, "labels": list(group)})
        about, own = TaskAccount(mine.name), []
        for (part, read), rows in zip(told.parts.items(), (train, evaluation), strict=False):
            assert rows is not None, "each part that was read has rows"
            cut = rows.labelled(spellings, group)
            own.append(cut.with_instances(tuple(replace(row, task=mine.name) for row in cut.instances)))
            size = len(cut.instances)
            about.parts[part] = PartAccount(read.source, read.format, size, instances=size)
        own_test = own[1] if evaluation else None
        task = made_of(own[0], own_test, mine, WHERE, account, about, seed, limits, brings_classes=True)
        tasks.append(task if config.scenario else replace(task, classes=()))
    return tasks


def _cut_by_type(
    config: StreamConfig,
    source: ClassesConfig,
    train: Rows,
    evaluation: Rows | None,
    names: Sequence[str],
    account: Account,
    told: TaskAccount,
    seed: int,
) -> list[Task]:
    """The tasks of a corpus of words with tags, each with so many of its entity types (`everlearn.data.words`)."""
    if evaluation is None:
        train, evaluation = held_out(train, source, seed)
    have = words.mentions((*train.instances, *evaluation.instances))
    known = source.labels or words.types_in(names) or have
    if foreign := [name for name in have if name not in known]:
        raise DataError(
            f"{WHERE}: {have[foreign[0]]} entities are of type {foreign[0]!r}, which is none of the {len(known)} that "
            "are named: name it too, or make these tags O."
        )
    types = _in_order(config, tuple(known), False, seed)
    groups = {f"{source.name}-{number}": group for number, group in enumerate(_groups(config, types), 1)}
    check_order(config.order, list(groups))
    shares = words.shared_out(train.instances, list(groups.values()), derive(seed, "words"))
    left_out = len(train.instances) - sum(map(len, shares))
    if left_out:
        account.notes.append(
            f"{WHERE}: {left_out} of {len(train.instances)} training sentences are left out, since no task may take "
            "more of them."
        )
    tasks = []
    for (name, group), share in zip(groups.items(), shares, strict=True):
        if config.order and name not in config.order:
            continue
        limits = (config.train_limit, config.evaluation_limit)
        task, cut = words.made_of(name, share, evaluation.instances, group, source.metric, limits)
        about = TaskAccount(name, metric=task.metric, metric_reason="entities of rows of words")
        for (part, read), rows, more in zip(told.parts.items(), (task.train, task.evaluation), cut, strict=False):
            size = len(rows) + more
            about.parts[part] = PartAccount(read.source, read.format, size, instances=size)
        about.held_out = 0 if "evaluation" in about.parts else len(task.evaluation) + cut[1]
        note_cut(about, cut)
        account.tasks.append(about)
        tasks.append(task)
    return tasks


def _read(
    source: ClassesConfig, account: Account, told: TaskAccount, ignore_case: bool, seed: int
) -> tuple[Rows, Rows | None, tuple[str, ...]]:
    """Training rows, test rows where there are any, and the names of the classes where they are given."""
    parts: list[Rows] = []
    if source.train == EMBEDDED:
        from everlearn.data.embedded.intents import INTENTS, intents

        for part, drawn in zip(("train", "evaluation"), intents(seed), strict=True):
            told.parts[part] = PartAccount(EMBEDDED, "drawn", len(drawn), instances=len(drawn))
            parts.append(Rows(drawn, tuple(range(len(drawn)))))
        return parts[0], parts[1], INTENTS
    names = tuple(source.labels)
    if source.label_names is not None:
        names = label_names(Path(source.label_names))
    by_number = {str(number): name for number, name in enumerate(names)} if source.label_names is not None else {}
    known = Spellings((*names, *(number for number in by_number if number not in names)), ignore_case)
    for part, given in (("train", source.train), ("evaluation", source.evaluation)):
        if given is None:
            continue
        rows = read_part(source, WHERE, given, part, known if names else None, account, told, by_number)
        if by_number:
            named = tuple(replace(row, output=by_number.get(row.output, row.output)) for row in rows.instances)
            rows = rows.with_instances(named)
        parts.append(rows)
    return parts[0], parts[1] if len(parts) > 1 else None, names


def label_names(path: Path) -> tuple[str, ...]:
    """The names of classes by their numbers.

    Raises:
        DataError: the file holds no names, or a name twice.
    """
    held: Any = document(read_text(path, DataError), str(path))
    if isinstance(held, Mapping):
        numbers = sorted(held.values(), key=str) if held else []
        if sorted(map(str, range(len(held)))) != [str(number) for number in numbers]:
            raise DataError(f"{path}: the numbers of its {len(held)} names are not 0 to {len(held) - 1}: mend them.")
        held = sorted(held, key=lambda name: int(held[name]))
    found = (
        [item.get("name") if isinstance(item, Mapping) else item for item in held] if isinstance(held, list) else []
    )
    names = [name for name in found if isinstance(name, str) and name.strip()]
    if not names or len(names) < len(found):
        raise DataError(f'{path} holds no list of the names of classes, such as ["yes", "no"]: give one.')
    if (double := first_double(names)) is not None:
        raise DataError(f"{path}: the name {double!r} stands twice: give each class a name of its own.")
    return tuple(names)


def _in_order(config: StreamConfig, found: Sequence[str], ignore_case: bool, seed: int) -> tuple[str, ...]:
    """The classes in their order of arrival."""
    order = config.class_order
    if order == "seed":
        drawn = list(found)
        random.Random(derive(seed, "class-order")).shuffle(drawn)
        return tuple(drawn)
    if isinstance(order, str):
        return tuple(found)
    known = Spellings(found, ignore_case)
    named = [known.label(name) for name in order]
    for name, label in zip(order, named, strict=True):
        if label is None:
            guess = nearest(name, found)
            hint = f"did you mean {guess!r}?" if guess else f"they are {listed(map(repr, found))}."
            raise RecipeError(f"stream.class_order: the data has no class {name!r}: {hint}")
    missing = [name for name in found if name not in named]
    if missing:
        raise RecipeError(
            f"stream.class_order leaves out {len(missing)} of {len(found)} classes ({listed(map(repr, missing))}): "
            "name all of them (stream.order can leave out tasks)."
        )
    return tuple(label for label in named if label is not None)


def _groups(config: StreamConfig, classes: Sequence[str]) -> list[Sequence[str]]:
    """The classes of each task."""
    each = config.classes_per_task
    sizes = [each] * -(-len(classes) // each) if isinstance(each, int) else list(each or ())
    if not isinstance(each, int) and sum(sizes) != len(classes):
        raise RecipeError(
            f"stream.classes_per_task: its numbers sum up to {sum(sizes)}, and the data has {len(classes)} classes: "
            "give numbers that share out all of them, or one number for all tasks."
        )
    return [classes[begin:end] for begin, end in pairwise(accumulate(sizes, initial=0))]
