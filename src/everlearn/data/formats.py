"""From a source to instances: finds out the shape of the rows, parses them, and keeps account of the bad ones.

An official SuperNI task file (`Definition`, `Instances`, `Positive Examples`) is a document of its own: its first
definition is the instruction, inputs and outputs are stripped as in SSR's data preparation (spec section 7), and all
references are kept. Asked for demonstrations, it gives its positive examples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from everlearn.data.bad_rows import BadRow, RowFault
from everlearn.data.containers import RawRows
from everlearn.data.instance import Instance
from everlearn.data.shapes import PARSERS, Frame, Parser, Row, detect_shape, guess_columns, parse_columns, text_of
from everlearn.data.sources import read_source
from everlearn.errors import DataError, nearest

_DETECTION_ROWS = 20
_COLUMN_KEYS = ("instruction", "input", "output")


@dataclass(frozen=True, slots=True)
class ReadResult:
    """What a source held.

    Attributes:
        rows: Instances in the order of the source, their ids unique.
        bad: Rows that cannot be used.
        total: Rows in all; a conversation is one row and may be several instances.
        format: Name of the shape (of the first file, if there are several).
    """

    rows: tuple[Instance, ...]
    bad: tuple[BadRow, ...]
    total: int
    format: str


@dataclass
class _Account:
    """What is collected over the files of a source."""

    rows: list[Instance] = field(default_factory=list)
    bad: list[BadRow] = field(default_factory=list)
    ids: set[str] = field(default_factory=set)
    total: int = 0


def read_rows(
    source: str,
    format: str = "auto",
    columns: Mapping[str, str] | None = None,
    *,
    task: str,
    instruction: str | None = None,
    labels: Sequence[str] = (),
    id_prefix: str = "row",
    positive_examples: bool = False,
) -> ReadResult:
    """Reads the instances of a file, a folder, or a dataset.

    Args:
        source: Path, or `name[:config][@split]` of the Hugging Face hub.
        format: `auto`, or a name of `everlearn.data.shapes.PARSERS`.
        columns: Names of the columns for `instruction`, `input`, `output` and `id`.
        task: Name of the task that the instances belong to.
        instruction: Definition for rows that have none.
        labels: The closed set of answers; a row with another output is bad. Empty: any output.
        id_prefix: Rows without an id are called `prefix-N`, N counting over the whole source.
        positive_examples: From SuperNI task files take the positive examples rather than the instances.

    Raises:
        DataError: the source is missing, empty, damaged, or of no known shape. Bad rows do not raise.
    """
    columns = dict(columns or {})
    if columns and format not in ("auto", "columns"):
        raise DataError(f"columns are given, but format is {format}: leave format out, or set it to columns.")
    account, first_shape = _Account(), ""
    for raw in read_source(source):
        if positive_examples and raw.document and isinstance(raw.document.get("Positive Examples"), list):
            examples = raw.document["Positive Examples"]
            assert isinstance(examples, list), "just looked"
            raw = replace(raw, rows=list(enumerate(examples, 1)), bad=[])
        shape, parse = _parser(raw, format, columns)
        first_shape = first_shape or shape
        definition = _definition(raw.document) or instruction or ""
        _parse_file(raw, parse, account, task, definition, columns.get("id", "id"), frozenset(labels), id_prefix)
    if not account.total:
        raise DataError(f"{source} holds no rows: give it some, or take the task out.")
    return ReadResult(tuple(account.rows), tuple(account.bad), account.total, first_shape)


def _parse_file(
    raw: RawRows,
    parse: Parser,
    account: _Account,
    task: str,
    instruction: str,
    id_key: str,
    labels: frozenset[str],
    id_prefix: str,
) -> None:
    bad = list(raw.bad)
    for number, row in raw.rows:
        account.total += 1
        try:
            if not isinstance(row, dict):
                raise RowFault(f"not an object but {str(row)[:40]!r}")
            name = text_of(row, id_key) or f"{id_prefix}-{account.total}"
            if name in account.ids:
                name = f"{name}~{account.total}"
            account.ids.add(name)
            instances = parse(row, Frame(task, instruction, name))
            if labels:
                _check_labels(instances, labels)
            account.rows += instances
        except RowFault as fault:
            bad.append(BadRow(raw.file, number, str(fault), row, raw.unit))
    account.total += len(raw.bad)
    account.bad += sorted(bad, key=lambda row: row.line)


def _parser(raw: RawRows, format: str, columns: dict[str, str]) -> tuple[str, Parser]:
    """Name and parser of the shape of a file's rows."""
    if raw.document and "Instances" in raw.document:
        return "superni", _stripped
    objects = [row for _, row in raw.rows[:_DETECTION_ROWS] if isinstance(row, dict)]
    if columns or format == "columns":
        _check_columns(raw.file, columns, objects)
        return "columns", _renaming(columns)
    if format != "auto":
        return format, PARSERS[format]
    shape = next((name for name in map(detect_shape, objects) if name), None)
    if shape is None and objects:
        raise DataError(_unknown_shape(raw.file, list(objects[0])))
    return (shape, PARSERS[shape]) if shape else ("columns", parse_columns)


def _stripped(row: Row, frame: Frame) -> list[Instance]:
    """An instance of an official SuperNI file, stripped as SSR's data preparation does."""
    return [
        replace(
            instance,
            input=instance.input.strip(),
            output=instance.output.strip(),
            references=tuple(text.strip() for text in instance.references),
        )
        for instance in parse_columns(row, frame)
    ]


def _definition(document: dict[str, object] | None) -> str:
    """The first definition of a SuperNI task file."""
    definition = (document or {}).get("Definition")
    if isinstance(definition, list) and definition:
        definition = definition[0]
    return definition.strip() if isinstance(definition, str) else ""


def _renaming(columns: dict[str, str]) -> Parser:
    """Parses rows whose columns have other names; what is not mapped keeps its own name, unless that is taken."""
    taken = {columns[key] for key in _COLUMN_KEYS if key in columns}
    names = {key: columns.get(key, key) for key in _COLUMN_KEYS if key in columns or key not in taken}

    def parse(row: Row, frame: Frame) -> list[Instance]:
        for key, name in names.items():
            if key in columns and name not in row:
                raise RowFault(f"no column {name!r} for the {key}")
        return parse_columns({key: row.get(name) for key, name in names.items()}, frame)

    return parse


def _check_columns(file: str, columns: dict[str, str], objects: list[dict[str, object]]) -> None:
    """Refuses a mapping that names columns which no row has."""
    present = list(dict.fromkeys(name for row in objects for name in row))
    wanted = columns if "output" in columns else {**columns, "output": "output"}
    for key, name in wanted.items():
        if objects and name not in present:
            guess = nearest(name, present)
            hint = f"did you mean {guess!r}? " if guess else ""
            raise DataError(
                f"{file}: no column {name!r} for the {key}: {hint}The columns are {', '.join(present)}; "
                "mend the task's columns."
            )


def _unknown_shape(file: str, keys: list[str]) -> str:
    guess = guess_columns(keys) or {"input": "QUESTION", "output": "ANSWER"}
    example = ", ".join(f"{key}: {name}" for key, name in guess.items())
    return (
        f"{file}: rows with the keys {', '.join(keys[:12])} have no known format: say which columns the task uses, "
        f"such as columns: {{{example}}}, or set format."
    )


def _check_labels(instances: Sequence[Instance], labels: frozenset[str]) -> None:
    for instance in instances:
        if instance.output not in labels:
            raise RowFault(f"output {instance.output[:40]!r} is none of the labels {', '.join(sorted(labels)[:8])}")
