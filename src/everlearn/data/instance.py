"""What everlearn trains on: instances, tasks and streams of tasks.

All three are immutable; reading, sampling and rehearsal make new ones. Fingerprints depend on content only, so
that two runs over the same data share their artifacts whatever the files were called.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import Literal

from everlearn.data.account import TaskAccount
from everlearn.fingerprints import fingerprint_of

Scenario = Literal["class_incremental", "task_incremental"]
"""Of tasks that bring classes of their own: whether the task of a row is unknown when it is answered, or known."""
REAL = "real"
SYNTHETIC = "synthetic"


@dataclass(frozen=True, slots=True)
class Turn:
    """One earlier message of a conversation: `role` is system, user or assistant."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Instance:
    """One example of a task.

    Attributes:
        instruction: The task definition, or the user's request when there is no separate input. May be empty.
        input: What the instruction is applied to. May be empty.
        output: The gold (or refined) answer.
        task: Name of the task it belongs to.
        origin: `real`, or `synthetic` for an instance that a model wrote.
        id: Stable identifier within the task; readers make one from file and row when the data has none.
        references: Further accepted answers beside `output`.
        history: Earlier turns of the conversation, system message included, oldest first.
        tokens: Of raw text: its ids as they are trained, in the model's own tokens. No template, no cut, all of them
            but the first are targets; `output` is the same for the reader.
        words: Of a row of words with a tag each (`everlearn.data.words`); `input` has them with spaces between, and
            `output` the tags.
        walk: What is thought before the answer, where a method trains on that; empty: nothing is given.
    """

    instruction: str
    input: str
    output: str
    task: str
    origin: str = REAL
    id: str = ""
    references: tuple[str, ...] = ()
    history: tuple[Turn, ...] = ()
    tokens: tuple[int, ...] = ()
    words: tuple[str, ...] = ()
    walk: str = ""

    @property
    def form(self) -> Literal["dialogue", "text"]:
        """A prompt and its answer, or raw text."""
        return "text" if self.tokens else "dialogue"

    @property
    def query(self) -> str:
        """What the model is asked: instruction and input joined by a blank line (SuperNI's `full_prompt`)."""
        if self.instruction and self.input:
            return f"{self.instruction}\n\n{self.input}"
        return self.instruction or self.input

    def to_json(self) -> dict[str, object]:
        """A plain dictionary; empty optional fields are left out."""
        values = zip(self.__slots__, _VALUES(self), strict=True)  # asdict copies them, which takes ten times as long
        row = {key: value for key, value in values if value or key in ("input", "output")}
        if self.history:
            row["history"] = tuple({"role": turn.role, "content": turn.content} for turn in self.history)
        return row

    @classmethod
    def from_json(cls, row: dict[str, object], *, task: str | None = None) -> Instance:
        """The inverse of `to_json`; `task` overrides the row's own."""
        return cls(
            instruction=str(row.get("instruction", "")),
            input=str(row.get("input", "")),
            output=str(row.get("output", "")),
            task=task if task is not None else str(row.get("task", "")),
            origin=str(row.get("origin", REAL)),
            id=str(row.get("id", "")),
            references=tuple(str(text) for text in row.get("references", ())),  # type: ignore[attr-defined]
            history=tuple(Turn(str(t["role"]), str(t["content"])) for t in row.get("history", ())),  # type: ignore[attr-defined]
            tokens=tuple(int(token) for token in row.get("tokens", ())),  # type: ignore[attr-defined]
            words=tuple(str(word) for word in row.get("words", ())),  # type: ignore[attr-defined]
            walk=str(row.get("walk", "")),
        )


_VALUES = attrgetter(*Instance.__slots__)


@dataclass(frozen=True, slots=True)
class Task:
    """One task of a stream.

    Attributes:
        name: Unique within the stream; used in file names (letters, digits, `.`, `_`, `-`).
        train: Training instances.
        evaluation: Held-out instances; never trained on, never shown as demonstrations.
        demonstrations: Pool of in-context demonstrations (SSR: 20 rows of the training split, 1 %).
        metric: Name of the main metric (`everlearn.evaluation.text_metrics.METRICS`).
        labels: The closed set of answers of a classification task, empty otherwise.
        classes: In a stream with a scenario the classes that the task brings, in the order of their columns in a
            head: its labels, which no other task of the stream has, and which all its answers are among; of rows of
            words the tags of its entity types, which are its labels.
    """

    name: str
    train: tuple[Instance, ...]
    evaluation: tuple[Instance, ...]
    demonstrations: tuple[Instance, ...] = ()
    metric: str = "rouge_l"
    labels: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()

    def fingerprint(self) -> str:
        """Hash of the task's whole content."""
        classes = [list(self.classes)] if self.classes else []  # a task without has the hash it had before
        return fingerprint_of(
            [self.name, self.metric, list(self.labels), *classes],
            *(iter([_as_json(rows)]) for rows in (self.train, self.evaluation, self.demonstrations)),
        )


def _as_json(rows: Iterable[Instance]) -> Iterator[dict[str, object]]:
    return (row.to_json() for row in rows)


@dataclass(frozen=True, slots=True)
class TaskStream:
    """An ordered sequence of tasks: the order in which they arrive.

    Attributes:
        tasks: In that order.
        name: For display.
        notes: Sentences for the user.
        accounts: What became of the data of each task that was read from a source.
        scenario: Of tasks that bring classes, whether a row's task is known when it is answered; None: no such tasks.
    """

    tasks: tuple[Task, ...]
    name: str = "stream"
    notes: tuple[str, ...] = field(default=(), compare=False)
    accounts: tuple[TaskAccount, ...] = field(default=(), compare=False)
    scenario: Scenario | None = None

    def __len__(self) -> int:
        return len(self.tasks)

    def __iter__(self) -> Iterator[Task]:
        return iter(self.tasks)

    def __getitem__(self, key: int | str) -> Task:
        if isinstance(key, int):
            return self.tasks[key]
        for task in self.tasks:
            if task.name == key:
                return task
        raise KeyError(f"no task {key!r} in the stream; it has {', '.join(self.names)}")

    @property
    def names(self) -> list[str]:
        """Task names in stream order."""
        return [task.name for task in self.tasks]

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes of all tasks, in the order in which they arrive."""
        return tuple(name for task in self.tasks for name in task.classes)

    def ordered(self, names: Iterable[str]) -> TaskStream:
        """The named tasks in that order (a subset is allowed), with their accounts."""
        names = tuple(names)
        kept = sorted((one for one in self.accounts if one.task in names), key=lambda one: names.index(one.task))
        return replace(self, tasks=tuple(self[name] for name in names), accounts=tuple(kept))
