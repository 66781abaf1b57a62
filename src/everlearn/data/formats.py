"""From a source to instances: finds out the shape of the rows, parses them, and keeps account of the bad ones.

An official SuperNI task file (`Definition`, `Instances`, `Positive Examples`) is a document of its own: its first
definition is the instruction, inputs and outputs are stripped as in SSR's data preparation (spec section 7), and all
references are kept. Asked for demonstrations, it gives its positive examples.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from everlearn.data.bad_rows import BadRow, RowFault
from everlearn.data.column_names import guess_columns
from everlearn.data.instance import Instance
from everlearn.data.labels import Spellings
from everlearn.data.raw_rows import RawRows
from everlearn.data.row import Row, kind_of, text_of
from everlearn.data.shapes import PARSERS, Parser, detect_shape, parse_columns, parse_words
from everlearn.data.sources import read_source
from everlearn.data.turns import Frame
from everlearn.errors import DataError, nearest

Columns = Mapping[str, str | Sequence[str]]
"""Key of an instance to the name of its column; several columns are joined, each named in a line of its own."""
_DETECTION_ROWS = 20
_COLUMN_KEYS = ("instruction", "input", "output", "system", "history")


@dataclass
class ReadResult:
    """What a source held.

    Attributes:
        format: Name of the shape (of the first file, if there are several).
        rows: Instances in the order of the source, their ids unique.
        units: For each instance what the instances of its conversation share: the id of its row, or its number.
        bad: Rows that cannot be used.
        total: Rows in all; a conversation is one row and may be several instances.
        unread: Key that was not looked at to the number of rows that hold something under it.
        notes: Sentences on what was decided while reading.
    """

    format: str = ""
    rows: list[Instance] = field(default_factory=list)
    units: list[Hashable] = field(default_factory=list)
    bad: list[BadRow] = field(default_factory=list)
    total: int = 0
    unread: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Reader:
    """What all files of a source are read with."""

    task: str
    id_key: str
    labels: Spellings | None
    id_prefix: str
    names: Mapping[str, str] = field(default_factory=dict)
    ids: set[str] = field(default_factory=set)
    remarks: Counter[str] = field(default_factory=Counter)


def read_rows(
    source: str,
    format: str = "auto",
    columns: Columns | None = None,
    *,
    task: str,
    instruction: str | None = None,
    labels: Spellings | None = None,
    id_prefix: str = "row",
    positive_examples: bool = False,
    names: Mapping[str, str] | None = None,
) -> ReadResult:
    """Reads the instances of a file, a folder, or a dataset.

    Args:
        source: Path, or `name[:config][@split]` of the Hugging Face hub.
        format: `auto`, or a name of `everlearn.data.shapes.PARSERS`.
        columns: Names of the columns for `instruction`, `input`, `output`, `system`, `history` and `id`.
        task: Name of the task that the instances belong to.
        instruction: Definition for rows that have none.
        labels: The closed set of answers; a row with another output is bad. None: any output.
        id_prefix: Rows without an id are called `prefix-N`, N counting over the whole source.
        positive_examples: From SuperNI task files take the positive examples rather than the instances.
        names: Of the tags of words that are numbers.

    Raises:
        DataError: the source is missing, empty, damaged, or of no known shape. Bad rows do not raise.
    """
    columns = dict(columns or {})
    if columns and format not in ("auto", "columns"):
        raise DataError(f"columns are given, but format is {format}: leave format out, or set it to columns.")
    result = ReadResult()
    reader = _Reader(task, str(columns.get("id", "id")), labels, id_prefix, names or {})
    shapes = Counter[str]()
    for raw in read_source(source):
        if positive_examples and raw.document and isinstance(raw.document.get("Positive Examples"), list):
            examples = raw.document["Positive Examples"]
            assert isinstance(examples, list), "just looked"
            raw = replace(raw, rows=list(enumerate(examples, 1)), bad=[])
        first, raw = raw.looked_at(_DETECTION_ROWS)
        shape, parse = _parser(raw, first, format, columns)
        shapes[shape] += 1
        _read_file(raw, parse, reader, _definition(raw.document) or instruction or "", result)
    if not result.total:
        raise DataError(f"{source} holds no rows: give it some, or take the task out.")
    result.format = next(iter(shapes))
    if len(shapes) > 1:
        told = ", ".join(f"{count} of {shape}" for shape, count in shapes.items())
        result.notes.append(f"its files have rows of several formats: {told}.")
    result.notes += [f"rows that {remark}: {count}." for remark, count in reader.remarks.items()]
    return result


def unread_columns(raw: RawRows, columns: Columns) -> list[str]:
    """The keys of a file's rows that nobody looks at when it is read with these columns.

    Raises:
        DataError: the rows are of no known shape.
    """
    result = ReadResult()
    first, raw = raw.looked_at(_DETECTION_ROWS)
    _read_file(raw, _parser(raw, first, "auto", dict(columns))[1], _Reader("", "id", None, "row"), "", result)
    return list(result.unread)


def _read_file(raw: RawRows, parse: Parser, reader: _Reader, instruction: str, result: ReadResult) -> None:
    bad: list[BadRow] = []
    for number, value in raw.rows:
        result.total += 1
        try:
            if not isinstance(value, dict):
                raise RowFault(f"not an object but {str(value)[:40]!r}")
            row = Row(value)
            given = text_of(row, reader.id_key)
            name = given or f"{reader.id_prefix}-{result.total}"
            if name in reader.ids:
                name = f"{name}~{result.total}"
                row.remarks.add("have an id that is given twice, and are told apart by their number behind a ~")
            reader.ids.add(name)
            instances = parse(row, Frame(reader.task, instruction, name, reader.names))
            if reader.labels:
                _check_labels(instances, reader.labels)
            unread = row.unread()
        except RowFault as fault:
            bad.append(BadRow(raw.file, number, str(fault), value, raw.unit))
        except RecursionError:
            bad.append(BadRow(raw.file, number, "nested too deeply to be read", "", raw.unit))
        else:
            result.rows += instances
            result.units += [given or result.total] * len(instances)
            result.unread.update(unread)
            reader.remarks.update(row.remarks)
    result.total += len(raw.bad)
    result.bad += sorted([*raw.bad, *bad], key=lambda row: row.line)
    result.notes += [f"{raw.file}: {note}" for note in raw.notes]


def _parser(raw: RawRows, first: Sequence[tuple[int, object]], format: str, columns: Columns) -> tuple[str, Parser]:
    """Name and parser of the shape of a file's rows, by its first ones."""
    if raw.document and "Instances" in raw.document:
        return "superni", _stripped
    objects = [row for _, row in first if isinstance(row, dict)]
    if columns or format == "columns":
        _check_columns(raw.file, columns, objects)
        return "columns", _renaming(columns)
    if format != "auto":
        return format, PARSERS[format]
    shape = next((name for name in map(detect_shape, objects) if name), None)
    if shape is None and objects:
        raise DataError(_unknown_shape(raw.file, objects[0]))
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


def _renaming(columns: Columns) -> Parser:
    """Parses rows whose columns have other names; what is not mapped keeps its own name, unless that is taken."""
    taken = {name for key in columns for name in _names(columns, key)}
    names = {key: _names(columns, key) for key in _COLUMN_KEYS if key in columns or key not in taken}
    earlier = names.pop("history", [""])[0]

    def parse(row: Row, frame: Frame) -> list[Instance]:
        for key in columns:
            for name in _names(columns, key):
                if name not in row and key != "id":
                    raise RowFault(f"no column {name!r} for the {key}")
        values = {key: row.get(of[0]) if len(of) == 1 else _joined(row, of) for key, of in names.items()}
        if isinstance(row.peek(earlier), list):
            values["history"] = row.get(earlier)
        elif "history" in columns and row.holds(earlier):
            raise RowFault(f"{earlier!r} is {kind_of(row.peek(earlier))}, not a list of earlier turns")
        if isinstance(values.get("input"), list) and isinstance(values.get("output"), list):
            return parse_words(row.renamed({"tokens": values["input"], "tags": values["output"]}), frame)
        return parse_columns(row.renamed(values), frame)

    return parse


def _names(columns: Columns, key: str) -> list[str]:
    """The columns of a key, which is its own where the recipe names none."""
    named = columns.get(key, key)
    return [named] if isinstance(named, str) else list(named)


def _joined(row: Row, names: Sequence[str]) -> str:
    """Several columns as one text, `name: text` line by line as T5 names them; empty ones are left out."""
    texts = ((name, text_of(row, name)) for name in names)
    return "\n".join(f"{name}: {text}" for name, text in texts if text.strip())


def _check_columns(file: str, columns: Columns, objects: list[dict[str, object]]) -> None:
    """Refuses a mapping that names columns which no row has."""
    present = list(dict.fromkeys(name for row in objects for name in row))
    for key in (*columns, *(() if "output" in columns else ("output",))):
        for name in _names(columns, key):
            if objects and name not in present:
                guess = nearest(name, present)
                hint = f"did you mean {guess!r}? " if guess else ""
                raise DataError(
                    f"{file}: no column {name!r} for the {key}: {hint}The columns are {', '.join(present)}; "
                    "mend the task's columns."
                )


def _unknown_shape(file: str, row: Mapping[str, object]) -> str:
    guess = guess_columns(row) or {"input": "QUESTION", "output": "ANSWER"}
    example = ", ".join(
        f"{key}: {name if isinstance(name, str) else '[' + ', '.join(name) + ']'}" for key, name in guess.items()
    )
    return (
        f"{file}: rows with the keys {', '.join([*row][:12])} have no known format: say which columns the task uses, "
        f"such as columns: {{{example}}}, or set format."
    )


def _check_labels(instances: Sequence[Instance], labels: Spellings) -> None:
    for instance in instances:
        if not instance.words and labels.label(instance.output) is None:
            known = ", ".join(sorted(labels.labels)[:8])
            raise RowFault(f"output {instance.output[:40]!r} is none of the labels {known}")
