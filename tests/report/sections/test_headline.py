from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from everlearn.report.facts.definitions import CONTINUAL
from everlearn.report.facts.study import read_study
from everlearn.report.html import page
from everlearn.report.page.numbers import THIN, score
from everlearn.report.sections.headline import best_of
from tests.report import run_folders
from tests.report.pages import Element, parse


def tree(folder: Path) -> Element:
    return parse(page(read_study(folder)))


def text_of(folder: Path) -> str:
    return tree(folder).one("h1").text.replace(THIN, " ")


def matrix_of(folder: Path) -> list[list[float]]:
    return json.loads((folder / "matrix.json").read_text())["values"]


def earlier(folder: Path) -> tuple[float, float]:
    """Mean of the first four tasks when just learnt and now, straight from the file."""
    values = matrix_of(folder)
    return sum(values[i][i] for i in range(4)) / 4, sum(values[-1][i] for i in range(4)) / 4


def test_a_run_says_what_it_has_kept(single: Path):
    then, now = earlier(single)
    assert text_of(single) == (
        f"After five tasks, SSR answers {score(now)} % of the first four tasks, "
        f"down from {score(then)} % when each had just been learnt."
    )


def test_a_comparison_names_the_worst_and_the_best_method(compared: Path):
    worst = [earlier(compared / f"sequential-s{seed}") for seed in (42, 43, 44)]
    best = [earlier(compared / f"ssr-s{seed}") for seed in (42, 43, 44)]
    assert text_of(compared) == (
        f"After five tasks, sequential answers {score(sum(now for _, now in worst) / 3)} % of the first four tasks, "
        f"down from {score(sum(then for then, _ in worst) / 3)} % when each had just been learnt; "
        f"SSR answers {score(sum(now for _, now in best) / 3)} %."
    )


def test_the_upper_bound_is_named_as_such(compared: Path):
    lead = tree(compared).one("p", "lead").text
    assert "Training on all tasks at once (multitask), the upper bound, reaches" in lead
    assert "general ability falls from" in lead


def test_an_unfinished_run_says_so(unfinished: Path):
    assert text_of(unfinished).startswith("So far, after three of five tasks, SSR answers")
    assert "3 of 5 stages measured" in tree(unfinished).one("p", "banner").text


def test_a_run_before_its_first_stage_shows_the_base_model(tmp_path: Path):
    folder = run_folders.make_run(tmp_path / "new", finished=0)
    base = json.loads((folder / "matrix.json").read_text())["base"]
    assert (
        text_of(folder)
        == f"So far, before any training, the base model answers {score(sum(base) / 5)} % of all tasks."
    )


def test_a_run_of_one_stage_speaks_of_its_task(tmp_path: Path):
    folder = run_folders.make_run(tmp_path / "one", tasks=("sentiment",))
    assert text_of(folder) == f"After one task, SSR answers {score(matrix_of(folder)[0][0])} % of sentiment."


def test_graded_scores_are_not_called_answers(tmp_path: Path):
    folder = run_folders.make_run(tmp_path / "graded", metric="rouge_l")
    _, now = earlier(folder)
    assert text_of(folder).startswith(f"After five tasks, SSR scores {score(now)} on the first four tasks, down from")
    assert "Scores: ROUGE-L (published form: jieba tokens) on held-out rows" in tree(folder).text


def test_multitask_alone_claims_no_forgetting(compared: Path):
    heading = text_of(compared / "multitask-s42")
    assert heading.startswith("Trained on all tasks at once, multitask answers")


def test_models_of_single_tasks_are_a_reference_and_no_continual_method(tmp_path: Path):
    folder = run_folders.make_comparison(
        tmp_path / "c", labels=("sequential", "single_task", "ssr"), seeds=(1,), rows=10
    )
    heading = text_of(folder)
    assert "sequential answers" in heading
    assert "SSR answers" in heading
    values = matrix_of(folder / "single_task-s1")
    method = read_study(folder).methods[1]
    assert method.estimate("AR").value == pytest.approx(sum(values[i][i] for i in range(5)) / 5)
    assert method.estimate("BWT").value is None
    assert "each task alone" in tree(folder).one("table").text
    assert text_of(folder / "single_task-s1").startswith("Trained on each task alone, single task answers")


def test_nothing_measured_is_said_plainly(single: Path, tmp_path: Path):
    (tmp_path / "bare").mkdir()
    shutil.copy(single / "manifest.json", tmp_path / "bare" / "manifest.json")
    assert text_of(tmp_path / "bare") == "Nothing has been measured yet."


@pytest.mark.parametrize(("change", "words"), [(0.0, "as they were when just learnt"), (2.0, "up from")])
def test_nothing_lost_and_gains_are_said_too(single: Path, tmp_path: Path, change: float, words: str):
    folder = Path(shutil.copytree(single, tmp_path / "copy"))
    matrix = json.loads((folder / "matrix.json").read_text())
    for task in range(5):
        matrix["values"][task][task] = 90.0
        matrix["values"][-1][task] = 90.0 + (change if task < 4 else 0)
    (folder / "matrix.json").write_text(json.dumps(matrix))
    assert words in text_of(folder)


def with_general(folder: Path, before: float, now: float) -> None:
    run_folders.without_records(folder)
    for path in folder.rglob("general/scores.json"):
        value = before if "00-base" in path.parts else now
        path.write_text(json.dumps({"perplexity": {"value": value, "tokens": 9}}))


@pytest.mark.parametrize(
    ("before", "now", "words"),
    [
        (605.11, 605.08, "stays at 605.1."),
        (605.08, 605.11, "stays at 605.1."),
        (605.1, 605.1, "stays at 605.1."),
        (605.1, 605.2, "rises from 605.1 to 605.2."),
        (605.2, 605.1, "falls from 605.2 to 605.1."),
        (1.2e5, 1.21e5, "stays at 1.2\u202f×\u202f10⁵."),
    ],
)
def test_a_change_that_cannot_be_seen_is_none(single: Path, tmp_path: Path, before: float, now: float, words: str):
    folder = Path(shutil.copytree(single, tmp_path / "copy"))
    with_general(folder, before, now)
    assert tree(folder).one("p", "lead").text == f"Perplexity on ordinary text (lower is better) {words}"


def test_scores_that_are_shown_alike_are_called_alike(single: Path, tmp_path: Path):
    folder = Path(shutil.copytree(single, tmp_path / "copy"))
    matrix = json.loads((folder / "matrix.json").read_text())
    for task in range(5):
        matrix["values"][task][task] = 93.56
        matrix["values"][-1][task] = 93.64
    (folder / "matrix.json").write_text(json.dumps(matrix))
    assert "93.6 % of the first four tasks, as they were when just learnt" in text_of(folder)


def test_tiles_show_the_metrics_with_their_intervals(single: Path):
    metrics = json.loads((single / "metrics.json").read_text())
    tiles = {
        tile.one("p", "name").text[:-2]: tile.text.replace("\u00a0", " ") for tile in tree(single).all("li", "tile")
    }
    assert score(metrics["AR"]["value"]) in tiles["Average at the end"]
    assert f"interval {score(metrics['AR']['low'])} to {score(metrics['AR']['high'])}" in tiles["Average at the end"]
    assert f"−{score(-metrics['BWT']['value'])} points" in tiles["Backward transfer"]
    assert "Last accuracy" not in tiles, "it equals the average at the end when the stream is over"


def test_equal_values_are_all_best_or_none(compared: Path):
    study = read_study(compared)
    assert [method.label for method in best_of(study, CONTINUAL[0])] == ["ssr"]
    same = replace(study, methods=(study.methods[2], replace(study.methods[2], label="twin")))
    assert best_of(same, CONTINUAL[0]) == []
    tied = replace(study, methods=(*study.methods, replace(study.methods[2], label="twin")))
    assert [method.label for method in best_of(tied, CONTINUAL[0])] == ["ssr", "twin"]


def test_intervals_of_scores_stay_between_0_and_100(compared: Path):
    method = read_study(compared).methods[-1]
    summary = json.loads((compared / "comparison.json").read_text())["summary"]["multitask"]["AR"]
    assert summary["high"] > 100
    assert method.estimate("AR").high == 100
