"""Loads the stream of tasks that a recipe describes: the embedded one, or tasks read from files and datasets.

All that can be known to be wrong with the data is refused here, before any training. Bad rows of all tasks are
collected first, so that one error names them together; a tolerant stream writes them to a file and goes on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from everlearn.data.account import PartAccount, TaskAccount, listed
from everlearn.data.bad_rows import BadRow, refusal
from everlearn.data.classes import check_scenario
from everlearn.data.control_tokens import mentioned, plain_ids
from everlearn.data.cut import WHERE, cut_by_class
from everlearn.data.instance import Task, TaskStream
from everlearn.data.tasks import Account, build_task, check_order
from everlearn.data.words import with_outside
from everlearn.errors import RecipeError, UserError
from everlearn.files import write_jsonl
from everlearn.recipe import EMBEDDED, ClassesConfig, StreamConfig, TaskConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PROBED_ROWS = 50
_UNKNOWN_RATIO = 0.02  # chosen here: a vocabulary made for the text has none, a foreign script nearly only
Kept = Callable[[str], "tuple[Task, TaskAccount] | None"]
"""From the name of a task to its rows, where a run has kept them."""


@dataclass(frozen=True)
class Reading:
    """What the sources of a stream hold, faults included.

    Attributes:
        stream: The tasks that can be read, without the rows that cannot be used.
        bad: Those rows.
        total: Rows read in all.
        faults: Name of a task that cannot be read to the reason.
    """

    stream: TaskStream
    bad: tuple[BadRow, ...] = ()
    total: int = 0
    faults: Mapping[str, UserError] = field(default_factory=dict)

    def refusal(self, config: StreamConfig) -> UserError | None:
        """Why the stream cannot be used as the recipe asks for it; None where it can."""
        if self.faults:
            return next(iter(self.faults.values()))
        return refusal(self.bad, self.total) if self.bad and config.bad_rows == "strict" else None


def load_stream(
    config: StreamConfig,
    *,
    seed: int,
    tokenizer: PreTrainedTokenizerBase | None = None,
    bad_rows_file: Path | None = None,
    kept: Kept | None = None,
) -> TaskStream:
    """Reads and checks the tasks of a stream.

    Args:
        config: The recipe's part.
        seed: Of the run; decides which rows are held out, and draws the embedded stream.
        tokenizer: Of the model that will learn the stream; tasks whose text it cannot write are noted.
        bad_rows_file: Where a tolerant stream sets bad rows aside (`file`, `line`, `reason`, `row`).
        kept: Gives the rows of a task whose sources cannot be read any more; a note says so.

    Returns:
        The stream; its `notes` are sentences for the user.

    Raises:
        RecipeError: a task name is there twice, or `order` names an unknown task.
        DataError: a source cannot be read, a task is empty, or (strict) rows cannot be used.
    """
    reading = read_stream(config, seed=seed, tokenizer=tokenizer, kept=kept)
    if refused := reading.refusal(config):
        raise refused
    if not reading.bad:
        return reading.stream
    return replace(reading.stream, notes=(*reading.stream.notes, _set_aside(reading, bad_rows_file)))


def read_stream(
    config: StreamConfig, *, seed: int, tokenizer: PreTrainedTokenizerBase | None = None, kept: Kept | None = None
) -> Reading:
    """Reads the tasks of a stream as far as they can be read.

    Args:
        config: The recipe's part.
        seed: As in `load_stream`.
        tokenizer: As in `load_stream`.
        kept: As in `load_stream`.

    Raises:
        RecipeError: as `load_stream`.
    """
    account = Account()
    faults: dict[str, UserError] = {}
    if config.from_ is not None:
        stream = _cut(config, config.from_, seed, account, faults, kept)
    elif isinstance(config.tasks, str):
        stream = replace(_embedded(config, seed), scenario=config.scenario)
    else:
        _check_names(config.tasks)
        check_order(config.order, [task.name for task in config.tasks])
        tasks = tuple(_tasks(config, config.tasks, seed, account, faults, kept))
        stream = TaskStream(tasks, accounts=tuple(account.tasks), scenario=config.scenario)
    if config.order and WHERE not in faults:
        if config.from_ is None and isinstance(config.tasks, str):
            check_order(config.order, stream.names)
        stream = stream.ordered(name for name in config.order if name not in faults)
    try:
        stream = with_outside(stream)
        if config.scenario:
            check_scenario(stream)
    except UserError as fault:
        faults.setdefault("stream", fault)
    if tokenizer is not None:
        account.notes += [
            note for task in stream for note in (*_unwritable(task, tokenizer), *_mentions(task, tokenizer))
        ]
    stream = replace(stream, notes=(*stream.notes, *account.notes))
    return Reading(stream, tuple(account.bad), account.total, faults)


def _tasks(
    config: StreamConfig,
    tasks: Sequence[TaskConfig],
    seed: int,
    account: Account,
    faults: dict[str, UserError],
    kept: Kept | None,
) -> Iterator[Task]:
    for at, task in enumerate(tasks):
        if config.order and task.name not in config.order:
            continue
        bad, total, notes = len(account.bad), account.total, len(account.notes)
        try:
            if task.train == EMBEDDED:
                yield _embedded_task(config, task, seed, account)
                continue
            yield build_task(
                task,
                account,
                seed=seed,
                at=at,
                train_limit=config.train_limit,
                evaluation_limit=config.evaluation_limit,
                brings_classes=config.scenario is not None,
            )
        except UserError as fault:
            found = kept(task.name) if kept else None
            if found is None:
                faults[task.name] = fault
                continue
            del account.bad[bad:], account.notes[notes:]
            account.total = total
            account.notes.append(
                f"task {task.name}: its data cannot be read ({str(fault).rstrip('.')}): the rows that the run has "
                "kept are used."
            )
            account.tasks.append(found[1])
            yield found[0]


def _cut(
    config: StreamConfig,
    source: ClassesConfig,
    seed: int,
    account: Account,
    faults: dict[str, UserError],
    kept: Kept | None,
) -> TaskStream:
    """The tasks of a data set that is cut by class, or those that a run has kept of it."""
    bad, total, notes = len(account.bad), account.total, len(account.notes)
    try:
        tasks = cut_by_class(config, source, account, seed)
    except UserError as fault:
        found: list[tuple[Task, TaskAccount]] = []
        for name in config.order or (f"{source.name}-{number}" for number in count(1)):
            if kept is None or (one := kept(name)) is None:
                break
            found.append(one)
        if len(found) < len(config.order or [source.name]):
            faults[WHERE] = fault
            return TaskStream((), scenario=config.scenario)
        del account.bad[bad:], account.notes[notes:]
        account.total = total
        account.notes.append(
            f"{WHERE} cannot be read ({str(fault).rstrip('.')}): the rows that the run has kept are used."
        )
        account.tasks[:] = [told for _, told in found]
        tasks = [task for task, _ in found]
    return TaskStream(tuple(tasks), accounts=tuple(account.tasks), scenario=config.scenario)


def _embedded_task(config: StreamConfig, task: TaskConfig, seed: int, account: Account) -> Task:
    """One of the embedded tasks, in a list with others: of the stream, or of the made-up languages."""
    stream = _embedded(config, seed)
    languages = _languages(config, seed)
    if task.name in languages.names:
        stream = languages
    elif task.name not in stream.names:
        known = ", ".join((*stream.names, *languages.names))
        raise RecipeError(f"stream.tasks: no task {task.name!r} is embedded; those are {known}.")
    account.tasks += stream.ordered([task.name]).accounts
    return stream[task.name]


def _embedded(config: StreamConfig, seed: int) -> TaskStream:
    """The embedded stream, with fewer rows where a limit says so."""
    from everlearn.data.embedded.stream import embedded_stream

    stream = embedded_stream(seed)
    train, evaluation = len(stream[0].train), len(stream[0].evaluation)
    fewer_train = min(train, config.train_limit or train)
    fewer_evaluation = min(evaluation, config.evaluation_limit or evaluation)
    if (fewer_train, fewer_evaluation) != (train, evaluation):
        stream = embedded_stream(seed, train=fewer_train, evaluation=fewer_evaluation)
    return replace(stream, accounts=tuple(map(_drawn, stream)))


def _languages(config: StreamConfig, seed: int) -> TaskStream:
    """The embedded tasks of translation, with fewer rows where a limit says so."""
    from everlearn.data.embedded.translation import embedded_translations

    whole = embedded_translations(seed)[-1]  # the primer has fewer rows
    fewer = embedded_translations(
        seed,
        train=min(len(whole.train), config.train_limit or len(whole.train)),
        evaluation=min(len(whole.evaluation), config.evaluation_limit or len(whole.evaluation)),
    )
    return TaskStream(fewer, accounts=tuple(map(_drawn, fewer)))


def _drawn(task: Task) -> TaskAccount:
    """The account of a task that was drawn rather than read: of as many rows as were asked for, all are used."""
    parts = {
        part: PartAccount(EMBEDDED, "drawn", len(rows), instances=len(rows))
        for part, rows in (("train", task.train), ("evaluation", task.evaluation))
    }
    return TaskAccount(task.name, parts, metric=task.metric, metric_reason="the embedded stream gives it")


def _check_names(tasks: Sequence[TaskConfig]) -> None:
    if not tasks:
        raise RecipeError("stream.tasks is empty: list at least one task, or write 'tasks: embedded'.")
    twice = [name for name, count in Counter(task.name.lower() for task in tasks).items() if count > 1]
    if twice:
        raise RecipeError(
            f"stream.tasks: the name {twice[0]!r} stands for two tasks (capitals do not count): rename one of them."
        )


def _set_aside(reading: Reading, file: Path | None) -> str:
    bad = reading.bad
    told = f"{len(bad)} of {reading.total} rows cannot be used and are"
    first = f"the first: {bad[0].file}, {bad[0]}."
    if file is None:
        return f"{told} left out, {first}"
    write_jsonl(file, [row.to_json() for row in bad])
    return f"{told} set aside in {file}, {first}"


def _unwritable(task: Task, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """A note when the tokenizer knows too little of a task's text (unknown tokens), from its first rows."""
    unknown = tokenizer.unk_token_id
    if unknown is None:
        return []
    texts = (row.query if row.words else f"{row.query}\n{row.output}" for row in task.train[:_PROBED_ROWS])
    ids = [at for text in texts for at in plain_ids(text, tokenizer)]
    ratio = ids.count(unknown) / max(1, len(ids))
    if ratio <= _UNKNOWN_RATIO:
        return []
    return [
        f"task {task.name}: the model's tokenizer cannot write {ratio:.0%} of its text (unknown tokens): choose a "
        "model whose vocabulary fits the language of the data."
    ]


def _mentions(task: Task, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """A note when rows of a task name control tokens, which a model that sees them as such would act on."""
    rows = [
        mentioned((row.query, row.output, *(turn.content for turn in row.history)), tokenizer)
        for row in (*task.train, *task.evaluation)
    ]
    count = sum(bool(tokens) for tokens in rows)
    if not count:
        return []
    names = listed(f"`{token}`" for token in sorted(set().union(*rows)))
    who = "1 row mentions" if count == 1 else f"{count} rows mention"
    return [f"task {task.name}: {who} the model's control tokens ({names}): they are read as text."]
