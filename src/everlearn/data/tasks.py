"""Builds one task from its part of the recipe: rows read, split, limited, demonstrations and labels found.

Decisions a reader might question: without evaluation rows, part of the training rows is held out by query, so that
the same question never stands on both sides; limits cut as the published samples do (`samples.py`), so that a
limited classification task keeps all its classes; a demonstration that is also an evaluation row is refused (a
file), or passed over (training rows).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from everlearn.data.bad_rows import BadRow
from everlearn.data.formats import read_rows
from everlearn.data.instance import Instance, Task
from everlearn.data.samples import first_rows, last_rows
from everlearn.errors import DataError, RecipeError
from everlearn.recipe import TaskConfig
from everlearn.seeds import derive

MOST_LABELS = 20  # documented in the recipe
_LABEL_CHARACTERS = 40  # chosen here: names of classes are shorter, sentences longer
_ROWS_PER_LABEL = 3  # chosen here: fewer rows per distinct answer look like free text

Rows = tuple[Instance, ...]


@dataclass
class Account:
    """What is collected while the tasks of a stream are read.

    Attributes:
        bad: Rows that cannot be used.
        total: Rows read in all.
        notes: Sentences for the user.
    """

    bad: list[BadRow] = field(default_factory=list)
    total: int = 0
    notes: list[str] = field(default_factory=list)


def build_task(
    config: TaskConfig,
    account: Account,
    *,
    seed: int,
    at: int = 0,
    train_limit: int | None = None,
    evaluation_limit: int | None = None,
) -> Task:
    """Reads a task.

    Args:
        config: Its part of the recipe.
        account: Takes the bad rows and the notes.
        seed: Of the run; decides which rows are held out.
        at: Its place under `stream.tasks`, which errors name.
        train_limit: Most training rows.
        evaluation_limit: Most evaluation rows.

    Raises:
        DataError: a source is missing or unreadable, no usable row is left, or the demonstrations do not belong to
            the task.
    """
    train = _read(config, at, config.train, "train", account)
    if config.evaluation is None:
        train, evaluation = held_out(train, config, seed)
    else:
        evaluation = _read(config, at, config.evaluation, "evaluation", account)
        _note_overlap(config.name, train, evaluation, account)
    labels = tuple(config.labels) or find_labels(train, evaluation)
    train = first_rows(train, train_limit, labels) if train_limit else train
    evaluation = first_rows(evaluation, evaluation_limit, labels) if evaluation_limit else evaluation
    metric = config.metric
    if metric == "auto":
        metric = "accuracy" if labels else "rouge_l"
    demonstrations = _demonstrations(config, at, train, evaluation, labels, account)
    return Task(config.name, train, evaluation, demonstrations, metric, labels)


def find_labels(train: Sequence[Instance], evaluation: Sequence[Instance]) -> tuple[str, ...]:
    """The closed set of answers of a classification task, sorted; empty when the outputs look like free text.

    They are labels when the training rows have 2 to 20 distinct outputs of one short line, at least three rows for
    each on average, and the evaluation rows have no other.
    """
    outputs = {row.output for row in train}
    if not 2 <= len(outputs) <= MOST_LABELS or len(train) < _ROWS_PER_LABEL * len(outputs):
        return ()
    if any(len(text) > _LABEL_CHARACTERS or "\n" in text for text in outputs):
        return ()
    return tuple(sorted(outputs)) if all(row.output in outputs for row in evaluation) else ()


def held_out(rows: Rows, config: TaskConfig, seed: int) -> tuple[Rows, Rows]:
    """Splits rows into training and evaluation, whole groups of one query at a time.

    Raises:
        DataError: all rows ask the same, so that nothing can be held out.
    """
    groups = list(dict.fromkeys(map(_question, rows)))
    if len(groups) < 2:
        raise DataError(
            f"task {config.name}: its {len(rows)} rows ask one and the same question, so none can be held out: "
            "give more rows, or set evaluation to a file of held-out rows."
        )
    random.Random(derive(seed, "held-out", config.name)).shuffle(groups)
    count = min(max(1, round(config.evaluation_ratio * len(groups))), len(groups) - 1)
    aside = set(groups[:count])
    return (
        tuple(row for row in rows if _question(row) not in aside),
        tuple(row for row in rows if _question(row) in aside),
    )


def _question(row: Instance) -> object:
    return (row.query, row.history) if row.history else row.query


def _read(config: TaskConfig, at: int, source: str, part: str, account: Account) -> Rows:
    try:
        result = read_rows(
            source,
            config.format,
            {str(key): name for key, name in config.columns.items()},
            task=config.name,
            instruction=config.instruction,
            labels=config.labels if part != "demonstrations" else (),
            id_prefix=part,
            positive_examples=part == "demonstrations",
        )
    except DataError as error:
        raise DataError(f"stream.tasks[{at}] {config.name!r} {part}: {error}") from None
    account.bad += result.bad
    account.total += result.total
    if not result.rows:
        reasons = "; ".join(str(row) for row in result.bad[:3])
        raise DataError(
            f"task {config.name} is empty: none of the {result.total} rows of {source} can be used ({reasons}): mend "
            "the rows, or say how to read them with format or columns."
        )
    return result.rows


def _note_overlap(name: str, train: Rows, evaluation: Rows, account: Account) -> None:
    trained = set(map(_question, train))
    shared = sum(_question(row) in trained for row in evaluation)
    if shared:
        account.notes.append(
            f"task {name}: {shared} of {len(evaluation)} evaluation rows ask what training rows ask too, so their "
            "scores say little about new questions: take them out of one of the two files."
        )


def _demonstrations(
    config: TaskConfig, at: int, train: Rows, evaluation: Rows, labels: Sequence[str], account: Account
) -> Rows:
    evaluated = set(map(_question, evaluation))
    if isinstance(config.demonstrations, str):
        rows = _read(config, at, config.demonstrations, "demonstrations", account)
        _check_demonstrations(config.name, rows, train, [row for row in rows if _question(row) in evaluated])
        return rows
    if config.demonstrations < 0:
        raise RecipeError(f"task {config.name}: demonstrations is {config.demonstrations}: give 0 or more, or a file.")
    pool = tuple(row for row in train if _question(row) not in evaluated)
    rows = last_rows(pool, config.demonstrations, labels)
    if len(rows) < config.demonstrations:
        account.notes.append(
            f"task {config.name}: {len(rows)} demonstrations rather than {config.demonstrations}, because only "
            f"{len(pool)} training rows can be shown."
        )
    return rows


def _check_demonstrations(name: str, rows: Rows, train: Rows, evaluated: Sequence[Instance]) -> None:
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
