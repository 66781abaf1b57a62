"""Run folders that were changed after everlearn had written them: no report of what is not so, and no traceback."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from everlearn.cli.main import main
from everlearn.errors import RunError
from everlearn.files import read_mapping, write_vouched
from everlearn.report.facts.study import read_study
from everlearn.report.html import page
from everlearn.report.text import print_tables
from everlearn.runs.compare import planned
from tests.malformed.spoilt_json import spoilt
from tests.report import run_folders

VOUCHED = ("manifest.json", "matrix.json", "metrics.json", "probing.json")
STAGE = "stages/01-sentiment"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run with all its sums."""
    folder = run_folders.make_run(tmp_path_factory.mktemp("whole") / "run", tasks=("sentiment", "ruvian"), rows=4)
    probes = {"linear": {"base": [10.0, 20.0], "values": [[90.0, 30.0], [80.0, 95.0]]}}
    stages = ["01-sentiment", "02-ruvian"]
    run_folders.write_json(
        folder / "probing.json", {"tasks": ["sentiment", "ruvian"], "stages": stages, "probes": probes}
    )
    for name in VOUCHED:
        write_vouched(folder / name, read_mapping(folder / name))
    return folder


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "run"))


def show(folder: Path) -> None:
    """All that a report shows, on a page and on the terminal."""
    page(read_study(folder))
    print_tables(folder, Console(file=io.StringIO(), width=100))


def refusal(call: Callable[[Path], object], folder: Path, place: str) -> str:
    """The sentence that refuses a changed folder; empty where it is accepted."""
    try:
        call(folder)
    except RunError as error:
        return str(error)
    except Exception as error:  # says which change it was
        raise AssertionError(place) from error
    return ""


def test_what_was_not_changed_is_shown(run: Path) -> None:
    show(run)


@pytest.mark.parametrize("name", VOUCHED)
def test_any_change_of_a_file_with_a_sum_is_named(run: Path, name: str) -> None:
    written = json.loads((run / name).read_text())
    for place, changed in spoilt(written, at_once=1):
        (run / name).write_text(json.dumps(changed))
        if place == "sum: gone":  # as the first releases wrote it
            continue
        with pytest.raises(RunError, match=rf"{name} is corrupt"):
            read_study(run)


@pytest.mark.parametrize("name", [*VOUCHED, f"{STAGE}/general/scores.json", f"{STAGE}/synthesis/parsed/counts.json"])
def test_any_change_of_a_file_without_a_sum_is_shown_or_refused_in_one_sentence(run: Path, name: str) -> None:
    run_folders.without_records(run)
    written = {key: value for key, value in read_mapping(run / name).items() if key != "sum"}
    refusals = []
    for place, changed in spoilt(written, at_once=2):
        (run / name).write_text(json.dumps(changed))
        refusals.append(refusal(show, run, place))
    said = [text for text in refusals if text]
    assert len(said) > 5
    assert all(any(known in text for known in (Path(name).name, "manifest.json", "synthesis")) for text in said)


@pytest.mark.parametrize(
    "name",
    [
        f"{STAGE}/predictions/sentiment/predictions.jsonl",
        f"{STAGE}/training/history.jsonl",
        f"{STAGE}/general/scores.json",
        f"{STAGE}/synthesis/parsed/kept.jsonl",
        f"{STAGE}/synthesis/refined/refined.jsonl",
        f"{STAGE}/synthesis/refined/counts.json",
        "stages/00-base/predictions/sentiment/predictions.jsonl",
        "stages/02-ruvian/predictions/ruvian/predictions.jsonl",
        "stages/02-ruvian/predictions/ruvian/scores.json",
    ],
)
@pytest.mark.parametrize(
    "change",
    [
        lambda data: data[:-3] + bytes([data[-3] ^ 1]) + data[-2:],
        lambda data: data[:-30],
        lambda data: data + b"\n",
        lambda data: data + b'{"id": "added"}\n',
        lambda data: b"",
        None,
    ],
)
def test_a_shown_file_of_an_artifact_whose_sum_differs_is_named(
    run: Path, name: str, change: Callable[[bytes], bytes] | None, capsys: pytest.CaptureFixture[str]
) -> None:
    data = (run / name).read_bytes()
    (run / name).unlink()
    if change:
        (run / name).write_bytes(change(data))
    assert main(["report", str(run)]) == 2
    said = capsys.readouterr().err
    assert f"{name} is {'corrupt' if change else 'missing'}" in said
    assert "everlearn resume" in said


def test_a_record_that_is_gone_or_names_another_file_is_no_way_around(run: Path) -> None:
    place = run / STAGE / "predictions" / "sentiment"
    record = (place / "artifact.json").read_text()
    (place / "artifact.json").unlink()
    with pytest.raises(RunError, match=r"artifact\.json is missing"):
        show(run)
    (place / "artifact.json").write_text(record.replace("predictions.jsonl", "others.jsonl"))
    with pytest.raises(RunError, match=r"others\.jsonl is missing"):
        show(run)


def test_rows_beside_artifacts_have_their_sums_in_the_manifest(run: Path) -> None:
    import hashlib

    rehearsed = run / "stages" / "02-ruvian" / "rehearsal.jsonl"
    manifest = read_mapping(run / "manifest.json")
    manifest.pop("sum")
    sums = {rehearsed.relative_to(run).as_posix(): hashlib.sha256(rehearsed.read_bytes()).hexdigest()}
    write_vouched(run / "manifest.json", {**manifest, "rows": sums})
    show(run)
    rehearsed.write_text(rehearsed.read_text().replace("synthetic", "real"))
    with pytest.raises(RunError, match=r"rehearsal\.jsonl is corrupt \(it was changed"):
        show(run)


@pytest.mark.parametrize(
    ("name", "values", "named"),
    [
        ("matrix.json", {"tasks": ["x", "y"]}, "its tasks are x, y; those of manifest"),
        ("matrix.json", {"tasks": ["ruvian", "sentiment"]}, "its tasks are ruvian, sentiment"),
        ("matrix.json", {"stages": ["01-x", "02-y"]}, "its stages are 01-x, 02-y"),
        ("matrix.json", {"values": [[1e308] * 2] * 2}, "values.0.0: Input should be less than"),
        ("matrix.json", {"values": [[0.0, 0.0]] * 18}, "values has 18 rows for 2 stages"),
        ("matrix.json", {"values": [[0.0]] * 2}, "values has a row of 1 cells for 2 tasks"),
        ("matrix.json", {"base": [0.0]}, "base has 1 cells for 2 tasks"),
        ("matrix.json", {"answers": [1, 2, 3]}, "answers has 3 cells for 2 tasks"),
        ("matrix.json", {"empty": [[1]] * 2}, "empty has a row of 1 cells for 2 tasks"),
        ("matrix.json", {"base_empty": [-1, 0]}, "base_empty.0: Input should be greater"),
        ("matrix.json", {"intervals": [[[3, 1], None], [None, None]]}, "in the wrong order"),
        ("manifest.json", {"stages": []}, "stages: List should have at least 1 item"),
        (
            "manifest.json",
            {"stages": [{"index": 1, "name": "../../..", "tasks": ["sentiment"]}]},
            "no name of a folder",
        ),
        ("manifest.json", {"tasks": [{"name": "x"}, {"name": "x"}]}, "task 'x' stands there twice"),
        ("metrics.json", {"AR": {"value": 101.0}}, "value: Input should be less than"),
    ],
)
def test_files_that_do_not_belong_together_are_named(
    run: Path, name: str, values: dict[str, Any], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    written = {key: value for key, value in read_mapping(run / name).items() if key != "sum"}
    (run / name).write_text(json.dumps({**written, **values}))
    assert main(["report", str(run)]) == 2
    said = capsys.readouterr().err
    assert f"{name} is corrupt" in said
    assert named in said


@pytest.mark.parametrize("name", ["manifest.json", "matrix.json", "metrics.json"])
@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": NaN}', "", "null", "3", '{"a": ', "\ufeff{}", "[]"])
def test_a_file_that_is_nothing_of_the_kind_is_one_sentence(
    run: Path, name: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / name).write_text(text, encoding="utf-8")
    assert main(["report", str(run)]) == 2
    assert f"{name} is corrupt" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["comparison.json", "plan.json"])
def test_any_change_of_a_comparison_is_shown_or_refused_in_one_sentence(tmp_path: Path, name: str) -> None:
    folder = run_folders.make_comparison(tmp_path / "both", labels=("ssr",), seeds=(1, 2), rows=2)
    (folder / "plan.json").write_text(json.dumps({"methods": [{"name": "ssr"}] * 2, "seeds": [1, 2], "recipe": {}}))
    written = json.loads((folder / name).read_text())
    for place, changed in spoilt(written, at_once=1):
        (folder / name).write_text(json.dumps(changed))
        assert name in (refusal(read_study, folder, place) or name)
        assert "plan.json is corrupt" in (refusal(planned, folder, place) or "plan.json is corrupt")
    write_vouched(folder / name, written)
    vouched = json.loads((folder / name).read_text())
    for place, changed in spoilt(vouched, at_once=1):
        (folder / name).write_text(json.dumps(changed))
        if place != "sum: gone":
            with pytest.raises(RunError, match=f"{name} is corrupt"):
                read_study(folder)


def test_a_page_that_is_no_report_of_everlearns_stays(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(run)]) == 0
    assert main(["report", str(run)]) == 0  # over an earlier one
    (run / "report.html").write_text("<p>mine</p>")
    assert main(["report", str(run)]) == 2
    assert "report.html is no report of everlearn's: move it" in capsys.readouterr().err
    assert (run / "report.html").read_text() == "<p>mine</p>"
