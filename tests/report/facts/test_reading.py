from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from everlearn.errors import RunError
from everlearn.report.facts.reading import read_run
from everlearn.report.facts.study import read_study
from everlearn.report.html import write_report
from tests.report.run_folders import without_records


@pytest.fixture
def copy(single: Path, tmp_path: Path) -> Path:
    return without_records(Path(shutil.copytree(single, tmp_path / "copy")))


def test_a_run_is_read_as_it_was_written(single: Path):
    run = read_run(single)
    written = json.loads((single / "matrix.json").read_text())
    assert run.matrix is not None
    assert [list(row) for row in run.matrix.values] == written["values"]
    assert run.matrix.course("ruvian") == [written["base"][1]] + [row[1] for row in written["values"]]
    assert (run.label, run.seed, run.complete, run.finished) == ("ssr", 42, True, 5)
    assert run.confidence == 0.95
    assert {step.kind for step in run.steps} == {"predictions", "general", "training", "synthesis"}


def test_a_folder_without_a_manifest_is_no_run_folder(tmp_path: Path):
    with pytest.raises(RunError, match="is no run folder"):
        write_report(tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "manifest.json",
        "matrix.json",
        "metrics.json",
        "stages/02-ruvian/general/scores.json",
        "stages/02-ruvian/predictions/ruvian/predictions.jsonl",
        "stages/02-ruvian/rehearsal.jsonl",
        "stages/02-ruvian/training/history.jsonl",
        "stages/02-ruvian/synthesis/parsed/kept.jsonl",
        "stages/02-ruvian/synthesis/parsed/counts.json",
        "stages/02-ruvian/synthesis/refined/refined.jsonl",
    ],
)
def test_a_corrupt_file_is_named(copy: Path, name: str):
    (copy / name).write_text('{"half": ')
    with pytest.raises(RunError, match=r"is corrupt .*delete it and run 'everlearn resume'") as error:
        write_report(copy)
    assert Path(name).name in str(error.value)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("manifest.json", '{"stages": 3}'),
        ("manifest.json", '{"stages": [{"index": 1}]}'),
        ("manifest.json", '{"steps": {"a": 1}}'),
        ("matrix.json", '{"tasks": ["a"], "stages": ["01-a"], "values": "abc"}'),
        ("matrix.json", '{"tasks": ["a"], "stages": ["01-a"], "values": [["x"]]}'),
        ("metrics.json", '{"AR": {"value": "high"}}'),
        ("stages/00-base/general/scores.json", '{"perplexity": 3}'),
        ("stages/01-sentiment/predictions/sentiment/predictions.jsonl", '{"id": "a"}'),
        ("stages/01-sentiment/training/history.jsonl", '{"step": "one", "loss": 1}'),
    ],
)
def test_a_file_of_another_form_is_named(copy: Path, name: str, text: str):
    (copy / name).write_text(text)
    with pytest.raises(RunError, match="does not have the form that everlearn writes") as error:
        write_report(copy)
    assert Path(name).name in str(error.value)


@pytest.mark.parametrize(
    "name",
    [
        "matrix.json",
        "metrics.json",
        "recipe.yaml",
        "stages/00-base",
        "stages/03-routing/general",
        "stages/03-routing/predictions",
        "stages/03-routing/training",
        "stages/03-routing/rehearsal.jsonl",
        "stages/03-routing/synthesis/refined",
        "stages/03-routing/synthesis/selected",
        "stages/03-routing/synthesis/parsed/counts.json",
        "stages/03-routing/synthesis/demonstrations.jsonl",
        "stages",
    ],
)
def test_an_absent_part_is_left_out(copy: Path, name: str):
    path = copy / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert write_report(copy).stat().st_size > 5_000


def test_scores_that_are_not_yet_measured_are_none(copy: Path):
    matrix = json.loads((copy / "matrix.json").read_text())
    matrix["values"][-1] = [None] * 5
    matrix["intervals"][1][1] = None
    (copy / "matrix.json").write_text(json.dumps(matrix))
    run = read_run(copy)
    assert run.finished == 4
    write_report(copy)


def test_a_comparison_reads_its_runs_by_label(compared: Path):
    study = read_study(compared)
    assert [(method.label, len(method.runs)) for method in study.methods] == [
        ("sequential", 3), ("random_rehearsal", 3), ("ssr", 3), ("multitask", 3),
    ]  # fmt: skip
    assert study.complete
    assert [method.is_joint for method in study.methods] == [False, False, False, True]


def test_a_comparison_that_runs_on_shows_finished_runs_and_counts_the_planned(compared: Path, tmp_path: Path):
    folder = tmp_path / "half"
    for name in ("ssr-s42", "sequential-s42", "sequential-s43"):
        shutil.copytree(compared / name, folder / name)
    manifest = folder / "sequential-s43" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"status": "running"}))
    (folder / "plan.json").write_text(json.dumps({"methods": [{}, {}], "seeds": [42, 43, 44]}))
    study = read_study(folder)
    assert [(method.label, len(method.runs)) for method in study.methods] == [("sequential", 1), ("ssr", 1)]
    assert (study.complete, study.finished_runs, study.left_out, study.planned) == (False, 2, 1, 6)
    assert "2 of 6 runs are finished" in write_report(folder).read_text()


def test_a_run_outside_the_comparison_is_refused(compared: Path, tmp_path: Path):
    entry = {"label": "x", "folder": "../../elsewhere"}
    (tmp_path / "comparison.json").write_text(json.dumps({"name": "x", "runs": [entry]}))
    with pytest.raises(RunError, match="outside the comparison"):
        read_study(tmp_path)
