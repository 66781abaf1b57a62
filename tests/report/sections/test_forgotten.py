from __future__ import annotations

import json
from pathlib import Path

from everlearn.report.facts.reading import read_run
from everlearn.report.facts.study import read_study
from everlearn.report.html import page
from everlearn.report.sections.forgotten import SHOWN_PER_TASK, memory_of
from tests.report import run_folders
from tests.report.pages import Element, parse

NAMES = ["01-sentiment", "02-ruvian", "03-routing", "04-delivery", "05-booking"]


def right(folder: Path, stage: int, task: str) -> list[bool]:
    """Which rows were right after a stage, straight from the file."""
    path = folder / "stages" / NAMES[stage - 1] / "predictions" / task / "predictions.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [row["scores"]["exact_match"] == 100 for row in rows]


def forgotten_part(folder: Path) -> Element:
    tree = parse(page(read_study(folder)))
    return next(part for part in tree.all("section") if part.attributes.get("id") == "forgotten")


def test_every_row_is_kept_gained_forgotten_or_never_right(compared: Path):
    folder = compared / "sequential-s42"
    for place, memory in enumerate(memory_of(read_run(folder)), 1):
        courses = list(zip(*(right(folder, stage, memory.task) for stage in range(place, 6)), strict=True))
        assert memory.counts == {
            "kept": sum(course[0] and course[-1] for course in courses),
            "gained": sum(not course[0] and course[-1] for course in courses),
            "forgotten": sum(any(course) and not course[-1] for course in courses),
            "never": sum(not any(course) for course in courses),
        }
        assert sum(memory.counts.values()) == len(courses)
        assert len(memory.lost) == memory.counts["forgotten"]


def test_the_newest_task_has_nothing_to_forget_yet(single: Path):
    assert [memory.task for memory in memory_of(read_run(single))] == list(run_folders.TASKS[:4])


def test_a_forgotten_row_shows_the_right_old_answer_and_the_wrong_new_one(compared: Path):
    folder = compared / "sequential-s42"
    for memory in memory_of(read_run(folder)):
        for lost in memory.lost:
            assert lost.old_answer == lost.row["gold"]
            assert lost.row["prediction"] != lost.row["gold"]
            assert lost.old_stage < lost.wrong_since


def test_a_row_that_was_right_later_gives_that_stage(tmp_path: Path):
    folder = run_folders.without_records(
        run_folders.make_run(tmp_path / "run", tasks=("sentiment", "ruvian", "routing"), rows=1)
    )
    rights = {1: False, 2: True, 3: False}
    for stage, is_right in rights.items():
        path = folder / "stages" / NAMES[stage - 1] / "predictions" / "sentiment" / "predictions.jsonl"
        row = {
            "id": "a",
            "input": "q",
            "gold": "g",
            "prediction": f"p{stage}",
            "scores": {"exact_match": 100.0 * is_right},
        }
        path.write_text(json.dumps(row))
    (lost,) = memory_of(read_run(folder))[0].lost
    assert (lost.old_answer, lost.old_stage, lost.wrong_since, lost.row["prediction"]) == ("p2", 2, 3, "p3")


def test_a_row_that_is_right_only_in_the_end_is_learnt_later(tmp_path: Path):
    folder = run_folders.without_records(
        run_folders.make_run(tmp_path / "run", tasks=("sentiment", "ruvian", "routing"), rows=1)
    )
    for stage in (1, 2, 3):
        path = folder / "stages" / NAMES[stage - 1] / "predictions" / "sentiment" / "predictions.jsonl"
        path.write_text(json.dumps({"id": "a", "gold": "g", "scores": {"exact_match": 100.0 * (stage == 3)}}))
    assert memory_of(read_run(folder))[0].counts == {"kept": 0, "gained": 1, "forgotten": 0, "never": 0}


def test_graded_scores_count_as_right_from_one_half(tmp_path: Path):
    folder = run_folders.without_records(
        run_folders.make_run(tmp_path / "run", tasks=("sentiment", "ruvian"), rows=1, metric="rouge_l")
    )
    for stage, value in ((1, 50.0), (2, 49.9)):
        path = folder / "stages" / NAMES[stage - 1] / "predictions" / "sentiment" / "predictions.jsonl"
        path.write_text(json.dumps({"id": "a", "gold": "g", "prediction": "p", "scores": {"rouge_l": value}}))
    assert memory_of(read_run(folder))[0].counts["forgotten"] == 1
    assert "A ROUGE-L of 50 or more counts as right here." in forgotten_part(folder).text


def test_at_most_twenty_rows_a_task_are_shown_and_all_are_counted(compared: Path):
    folder = compared / "sequential-s42"
    part = forgotten_part(folder)
    memories = {memory.task: memory for memory in memory_of(read_run(folder))}
    for heading, items in zip(part.all("h3"), part.all("ul"), strict=True):
        task = heading.one("bdi").text
        assert f"{len(memories[task].lost)} instances forgotten" in heading.text
        assert len(items.all("li")) == min(SHOWN_PER_TASK, len(memories[task].lost))
    cut = [memory for memory in memories.values() if len(memory.lost) > SHOWN_PER_TASK]
    places = [place.text for place in part.all("code")]
    assert places
    assert places == [f"{folder.name}/stages/05-booking/predictions/{memory.task}/predictions.jsonl" for memory in cut]
    assert all((compared / place).is_file() for place in places)


def test_bars_carry_their_counts_for_those_who_cannot_see_them(single: Path):
    memory = memory_of(read_run(single))[0]
    stack = forgotten_part(single).one("div", "stack")
    label = stack.attributes["aria-label"]
    assert label == (
        f"kept {memory.counts['kept']}, learnt later {memory.counts['gained']}, "
        f"forgotten {memory.counts['forgotten']}, never right {memory.counts['never']}, of 40"
    )
