"""Builds one task from its part of the recipe: rows read, split, limited, demonstrations and labels found.

Decisions a reader might question: without evaluation rows, part of the training rows is held out, whole conversations
at a time, so that neither a question nor a conversation stands on both sides; limits cut as the published samples do
(`samples.py`), so that a limited classification task keeps all its classes, and never within a conversation; a
demonstration that is or belongs to an evaluation row is refused (a file), or passed over (training rows).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from everlearn.data import words
from everlearn.data.account import PartAccount, TaskAccount, listed
from everlearn.data.bad_rows import SHOWN, BadRow
from everlearn.data.classes import check_classes, first_seen
from everlearn.data.conversations import Rows, links
from everlearn.data.formats import read_rows
from everlearn.data.instance import Instance, Task
from everlearn.data.labels import Spellings, find_labels, ignores_case
from everlearn.data.samples import last_rows
from everlearn.data.scripts import rouge_form
from everlearn.errors import DataError, RecipeError, nearest
from everlearn.recipe import TaskConfig
from everlearn.seeds import derive


@dataclass
class Account:
    """What is collected while the tasks of a stream are read.

    Attributes:
        bad: Rows that cannot be used.
        total: Rows read in all.
        notes: Sentences for the user.
        tasks: What became of the data of each task that could be read.
    """

    bad: list[BadRow] = field(default_factory=list)
    total: int = 0
    notes: list[str] = field(default_factory=list)
    tasks: list[TaskAccount] = field(default_factory=list)


def build_task(
    config: TaskConfig,
    account: Account,
    *,
    seed: int,
    at: int = 0,
    train_limit: int | None = None,
    evaluation_limit: int | None = None,
    brings_classes: bool = False,
) -> Task:
    """Reads a task.

    Args:
        config: Its part of the recipe.
        account: Takes the bad rows, the notes and what became of the task's data.
        seed: Of the run; decides which rows are held out.
        at: Its place under `stream.tasks`, which errors name.
        train_limit: Most training rows.
        evaluation_limit: Most evaluation rows.
        brings_classes: Whether its answers are classes that it brings to a stream with a scenario.

    Raises:
        DataError: a source is missing or unreadable, no usable row is left, the demonstrations do not belong to the
            task, or one of its classes is not both trained and tested.
    """
    told = TaskAccount(config.name)
    ignore_case = config.metric == "auto" or ignores_case(config.metric)
    declared = Spellings(config.labels, ignore_case) if config.labels else None
    where = f"stream.tasks[{at}] {config.name!r}"
    train = read_part(config, where, config.train, "train", declared, account, told)
    evaluation = None
    if config.evaluation is not None:
        evaluation = read_part(config, where, config.evaluation, "evaluation", declared, account, told)
    limits = (train_limit, evaluation_limit)
    return made_of(train, evaluation, config, where, account, told, seed, limits, brings_classes=brings_classes)


def made_of(
    train: Rows,
    evaluation: Rows | None,
    config: TaskConfig,
    where: str,
    account: Account,
    told: TaskAccount,
    seed: int,
    limits: tuple[int | None, int | None],
    *,
    brings_classes: bool,
) -> Task:
    """The task of rows that were read.

    Args:
        train: Training rows.
        evaluation: Test rows; None: a part of the training rows is held out.
        config: The task's part of the recipe.
        where: Its place there, for errors.
        account: As for `build_task`.
        told: The task's account, with the parts that were read.
        seed: As for `build_task`.
        limits: Most training rows, most evaluation rows.
        brings_classes: As for `build_task`.

    Raises:
        DataError: as `build_task`.
    """
    if train.instances[0].words:
        return _of_words(train, evaluation, config, account, told, seed, limits)
    ignore_case = config.metric == "auto" or ignores_case(config.metric)
    train_limit, evaluation_limit = limits
    labels, reason = tuple(config.labels), "the recipe gives the labels"
    if brings_classes and not labels:
        labels, reason = first_seen(train.instances, ignore_case), "the training answers are the task's classes"
    if evaluation is None:
        classes = Spellings(labels, ignore_case) if brings_classes else None
        train, evaluation = held_out(train, config, seed, classes)
        told.held_out = len(evaluation.instances)
    else:
        _note_overlap(config.name, train.instances, evaluation.instances, account)
    if not labels:
        labels, reason = find_labels(train.instances, evaluation.instances, ignore_case)
    spellings = Spellings(labels, ignore_case)
    train, evaluation = (
        rows.with_instances(spellings.join(rows.instances, told.joined)) for rows in (train, evaluation)
    )
    if brings_classes:  # a limit would leave out what is none of them
        check_classes(Task(config.name, train.instances, evaluation.instances, classes=labels))
    else:
        _note_outside(config.name, evaluation.instances, labels, account)
    train, every = train.limited(train_limit, labels, by_class=brings_classes), len(train.instances)
    told.parts["train"].limited = every - len(train.instances)
    evaluation, every = (
        evaluation.limited(evaluation_limit, labels, by_class=brings_classes),
        len(evaluation.instances),
    )
    if "evaluation" in told.parts:
        told.parts["evaluation"].limited = every - len(evaluation.instances)
    elif every > len(evaluation.instances):
        told.notes.append(f"{every - len(evaluation.instances)} held-out instances are left out by the limit.")
    told.metric, told.metric_reason = config.metric, "the recipe gives it"
    if config.metric == "auto":
        told.metric, told.metric_reason = "accuracy", reason
        if not labels:
            told.metric, why = rouge_form(row.output for rows in (train, evaluation) for row in rows.instances)
            told.metric_reason = f"{reason}; {why}" if why else reason
    demonstrations = _demonstrations(config, where, train.instances, evaluation.instances, labels, account, told)
    demonstrations = spellings.join(demonstrations, told.joined)
    task = Task(config.name, train.instances, evaluation.instances, demonstrations, told.metric, labels)
    if brings_classes:
        task = replace(task, classes=labels)
        check_classes(task)
    account.tasks.append(told)
    return task


def _of_words(
    train: Rows,
    evaluation: Rows | None,
    config: TaskConfig,
    account: Account,
    told: TaskAccount,
    seed: int,
    limits: tuple[int | None, int | None],
) -> Task:
    """The task of rows of words: it brings the entity types that are its labels, or those of its training rows."""
    if isinstance(config.demonstrations, str):
        raise RecipeError(
            f"task {config.name}: demonstrations are shown to models that answer in words, and rows of words with "
            "tags are answered by heads: take demonstrations out."
        )
    types = tuple(config.labels) or tuple(words.mentions(train.instances))
    if evaluation is None:
        train, evaluation = held_out(train, config, seed)
        told.held_out = len(evaluation.instances)
    tested = words.mentions(evaluation.instances)
    if not config.labels and (foreign := [name for name in tested if name not in types]):
        raise DataError(
            f"task {config.name}: {tested[foreign[0]]} entities of its test rows are of type {foreign[0]!r}, which no "
            "training row has: take these tags out, or give the type training rows."
        )
    task, cut = words.made_of(config.name, train.instances, evaluation.instances, types, config.metric, limits)
    told.metric, told.metric_reason = task.metric, "entities of rows of words"
    note_cut(told, cut)
    if others := [name for name in words.mentions(train.instances) if name not in types]:
        told.notes.append(f"types of other tasks are O in the training rows: {listed(map(repr, others))}.")
    if aside := sum(not words.holds(row, types) for row in evaluation.instances):
        told.notes.append(f"{aside} of {len(evaluation.instances)} test rows hold none of its types and are left out.")
    account.tasks.append(told)
    return task


def note_cut(told: TaskAccount, cut: tuple[int, int]) -> None:
    """Notes in the account of a task of words how many training and test rows the limits leave out."""
    told.parts["train"].limited = cut[0]
    if "evaluation" in told.parts:
        told.parts["evaluation"].limited = cut[1]
    elif cut[1]:
        told.notes.append(f"{cut[1]} held-out instances are left out by the limit.")


def check_order(order: Sequence[str] | None, names: Sequence[str]) -> None:
    """Refuses an order of tasks that are not there.

    Raises:
        RecipeError: names the task.
    """
    for name in order or ():
        if name not in names:
            guess = nearest(name, names)
            hint = f"did you mean {guess!r}? " if guess else ""
            raise RecipeError(f"stream.order: no task {name!r}: {hint}The tasks are {', '.join(names)}.")
    if order is not None and (not order or len(set(order)) < len(order)):
        raise RecipeError("stream.order: name at least one task, and each one once.")


def held_out(rows: Rows, config: TaskConfig, seed: int, classes: Spellings | None = None) -> tuple[Rows, Rows]:
    """Splits rows into training and evaluation, whole groups of linked rows at a time (`conversations.py`).

    Args:
        rows: Of a task.
        config: Its part of the recipe.
        seed: Of the run.
        classes: Of which each is split for itself; None: all rows at once.

    Raises:
        DataError: all rows (of a class) are linked, so that nothing can be held out.
    """
    aside: set[int] = set()
    for label in classes.labels if classes else ("",):
        part = rows.labelled(classes, (label,)) if classes else rows
        if classes and not part.instances:
            continue  # which is refused where the classes are looked at
        parts = part.split(config.evaluation_ratio, derive(seed, "held-out", config.name, *filter(None, [label])))
        if parts is None:
            of = f" of class {label!r}" if label else ""
            raise DataError(
                f"task {config.name}: its {len(part.instances)} rows{of} ask one and the same question or belong to "
                "one conversation, so none can be held out: give more rows, or set evaluation to a file of held-out "
                "rows."
            )
        aside |= {id(row) for row in parts[1].instances}
    return rows.parted([id(row) in aside for row in rows.instances])


def read_part(
    config: TaskConfig,
    where: str,
    source: str,
    part: str,
    labels: Spellings | None,
    account: Account,
    told: TaskAccount,
    names: Mapping[str, str] | None = None,
) -> Rows:
    """Reads `train`, `evaluation` or `demonstrations` of a task.

    Args:
        config: How its rows are to be read.
        where: Place of the task in the recipe, for errors.
        source: Of the part.
        part: Its name.
        labels: All answers that there may be; None: any.
        account: Takes the bad rows.
        told: Takes what was read.
        names: Of the tags of words that are numbers.

    Raises:
        DataError: the source is missing or unreadable, or none of its rows can be used.
        RecipeError: an instruction for rows of words.
    """
    try:
        result = read_rows(
            source,
            config.format,
            {str(key): name for key, name in config.columns.items()},
            task=config.name,
            instruction=config.instruction,
            labels=labels,
            id_prefix=part,
            positive_examples=part == "demonstrations",
            names=names,
        )
    except DataError as error:
        raise DataError(f"{where} {part}: {error}") from None
    account.bad += result.bad
    account.total += result.total
    told.parts[part] = PartAccount(
        source,
        result.format,
        result.total,
        len(result.bad),
        [str(row) for row in result.bad[:SHOWN]],
        len(result.rows),
        unread=dict(result.unread.most_common()),
        notes=result.notes,
    )
    if not result.rows:
        reasons = "; ".join(str(row) for row in result.bad[:3])
        raise DataError(
            f"task {config.name} is empty: none of the {result.total} rows of {source} can be used ({reasons}): mend "
            "the rows, or say how to read them with format or columns."
        )
    if config.instruction and result.rows[0].words:
        raise RecipeError(f"{where}: instruction is for questions, and rows of words are read alone: take it out.")
    return Rows(tuple(result.rows), tuple(result.units))


def _note_overlap(name: str, train: Sequence[Instance], evaluation: Sequence[Instance], account: Account) -> None:
    trained = _links(train)
    shared = sum(not trained.isdisjoint(links(row)) for row in evaluation)
    if shared:
        account.notes.append(
            f"task {name}: {shared} of {len(evaluation)} evaluation rows ask what training rows ask too, so their "
            "scores say little about new questions: take them out of one of the two files."
        )


def _note_outside(name: str, evaluation: Sequence[Instance], labels: Sequence[str], account: Account) -> None:
    """Says which evaluation answers are no labels, where the labels were found in the training rows."""
    outside = [row.output for row in evaluation if row.output not in labels] if labels else []
    if outside:
        account.notes.append(
            f"task {name}: {len(outside)} of {len(evaluation)} evaluation answers are no label of the training rows "
            f"(the first is {outside[0]!r}), so no answer that was learnt can be right: mend them, or give the labels."
        )


def _links(rows: Iterable[Instance]) -> set[Hashable]:
    return {link for row in rows for link in links(row)}


def _demonstrations(
    config: TaskConfig,
    where: str,
    train: Sequence[Instance],
    evaluation: Sequence[Instance],
    labels: Sequence[str],
    account: Account,
    told: TaskAccount,
) -> tuple[Instance, ...]:
    evaluated = _links(evaluation)
    if isinstance(config.demonstrations, str):
        rows = read_part(config, where, config.demonstrations, "demonstrations", None, account, told).instances
        _check_demonstrations(config.name, rows, train, [row for row in rows if not evaluated.isdisjoint(links(row))])
        return rows
    pool = tuple(row for row in train if evaluated.isdisjoint(links(row)))
    rows = last_rows(pool, config.demonstrations, labels)
    if len(rows) < config.demonstrations:
        account.notes.append(
            f"task {config.name}: {len(rows)} demonstrations rather than {config.demonstrations}, because only "
            f"{len(pool)} training rows can be shown."
        )
    return rows


def _check_demonstrations(
    name: str, rows: Sequence[Instance], train: Sequence[Instance], evaluated: Sequence[Instance]
) -> None:
    """Refuses demonstrations of another task and ones that are evaluation rows."""
    if evaluated:
        raise DataError(
            f"task {name}: {len(evaluated)} of {len(rows)} demonstrations are evaluation rows (the first is "
            f"{evaluated[0].id}), which must not be shown: take them out of the demonstrations."
        )
    definitions = {row.instruction for row in train}
    if len(definitions) == 1:
        foreign = [row for row in rows if row.instruction not in definitions]
        if foreign:
            raise DataError(
                f"task {name}: demonstration {foreign[0].id} belongs to another task, its instruction begins "
                f"{foreign[0].instruction[:60]!r} where the training rows have {next(iter(definitions))[:60]!r}: "
                "demonstrations must be of the task they stand for."
            )
