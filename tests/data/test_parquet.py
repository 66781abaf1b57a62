"""Parquet: names of classes, types that are no text, damage and files too large to hold."""

from __future__ import annotations

import datetime
import decimal
import io
from pathlib import Path

import pytest
from datasets import ClassLabel, Dataset, Features, Sequence, Value

from everlearn.data import parquet
from everlearn.data.formats import read_rows
from everlearn.data.parquet import read_parquet
from everlearn.errors import DataError

NAMES = ClassLabel(names=["day", "night"])


def saved(dataset: Dataset, how: str, tmp_path: Path) -> str:
    path = tmp_path / ("rows.parquet" if how == "parquet" else "saved")
    dataset.to_parquet(path) if how == "parquet" else dataset.save_to_disk(path)
    return str(path)


@pytest.mark.parametrize("how", ["parquet", "saved"])
def test_classes_have_their_names_and_minus_one_is_no_output(how: str, tmp_path: Path) -> None:
    features = Features({"input": Value("string"), "output": NAMES})
    dataset = Dataset.from_dict({"input": ["a", "b", "c", "d"], "output": [0, 1, -1, None]}, features=features)
    result = read_rows(saved(dataset, how, tmp_path), task="t")
    assert [row.output for row in result.rows] == ["day", "night"]
    assert [str(bad) for bad in result.bad] == ["row 3: no output", "row 4: no output"]


@pytest.mark.parametrize("how", ["parquet", "saved"])
def test_classes_within_lists_and_objects_have_their_names(how: str, tmp_path: Path) -> None:
    features = Features(
        {"input": Value("string"), "output": Sequence(NAMES), "more": {"when": NAMES, "n": Value("int32")}}
    )
    rows = {"input": ["a"], "output": [[1, 0]], "more": [{"when": 1, "n": 3}]}
    path = saved(Dataset.from_dict(rows, features=features), how, tmp_path)
    (row,) = read_rows(path, task="t").rows
    assert (row.output, row.references) == ("night", ("day",))
    raw = read_parquet(Path(path).read_bytes(), "x") if how == "parquet" else None
    assert raw is None or raw.rows[0][1] == {
        "input": "a",
        "output": ["night", "day"],
        "more": {"when": "night", "n": 3},
    }


def test_a_class_number_without_a_name_is_a_row_that_cannot_be_used() -> None:
    features = Features({"output": NAMES}).to_dict()
    raw = parquet.with_class_names([{"output": 0}, {"output": 7}], features, "x")
    assert (raw.rows, [str(bad) for bad in raw.bad]) == (
        [(1, {"output": "day"})],
        ["row 2: the class number 7, where there are 2 classes"],
    )


def parquet_file(tmp_path: Path, **columns: object) -> str:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "rows.parquet")
    return str(tmp_path / "rows.parquet")


VALUES = {
    "decimal": (decimal.Decimal("1.50"), "1.50"),
    "date": (datetime.date(2024, 2, 3), "2024-02-03"),
    "moment": (datetime.datetime(2024, 2, 3, 4, 5, tzinfo=datetime.UTC), "2024-02-03T04:05:00+00:00"),
    "time": (datetime.time(4, 5), "04:05:00"),
    "truth": (True, "True"),
    "number": (3.5, "3.5"),
    "texts": (["a", "b"], "a"),
    "bytes": (b"a", None),
    "span": (datetime.timedelta(seconds=3), None),
    "object": ({"a": 1}, None),
    "lists": ([["a"]], None),
}


@pytest.mark.parametrize("kind", VALUES)
def test_a_typed_value_is_text_or_a_row_that_cannot_be_used(kind: str, tmp_path: Path) -> None:
    value, text = VALUES[kind]
    result = read_rows(parquet_file(tmp_path, input=["x"], output=[value]), task="t")
    assert [row.output for row in result.rows] == ([text] if text else [])
    assert all("'output' is" in bad.reason for bad in result.bad)


def test_dictionaries_and_large_texts_are_read_as_their_values(tmp_path: Path) -> None:
    import pyarrow

    inputs = pyarrow.array(["a", "b", "a"]).dictionary_encode()
    outputs = pyarrow.array(["x", "y", "z"], pyarrow.large_string())
    rows = read_rows(parquet_file(tmp_path, input=inputs, output=outputs), task="t").rows
    assert [(row.input, row.output) for row in rows] == [("a", "x"), ("b", "y"), ("a", "z")]


def test_a_file_that_would_not_fit_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = parquet_file(tmp_path, input=["x"] * 3000, output=["y" * 100] * 3000)
    monkeypatch.setattr(parquet, "_MOST_ROWS", 2999)
    with pytest.raises(DataError, match="holds more than 2,999 rows"):
        read_rows(path, task="t")
    monkeypatch.setattr(parquet, "_MOST_ROWS", 3000)
    monkeypatch.setattr(parquet, "MOST_BYTES", 200_000)
    with pytest.raises(DataError, match="or more than 195 KiB"):
        read_rows(path, task="t")


def test_a_column_named_twice_is_refused(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_arrays([pyarrow.array(["x"])] * 2, names=["a", "a"]), file)
    with pytest.raises(DataError, match="the columns a, a name one twice"):
        read_parquet(file.getvalue(), "rows.parquet")
