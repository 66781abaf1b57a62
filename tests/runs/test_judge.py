"""A run whose final answers a stand-in judges: after everything else, resumable, against gold or another run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from everlearn import http
from everlearn.errors import RecipeError
from everlearn.http import ServerError
from everlearn.recipe import JudgeConfig, Recipe
from everlearn.report.facts.study import read_study
from everlearn.report.html import page
from everlearn.runs.claim import recipe_of
from everlearn.runs.loop import execute
from tests.evaluation.test_judging import longest, reply
from tests.report.pages import parse
from tests.runs.test_loop import tiny_recipe
from tests.stand_in_server import stand_in


@pytest.fixture(autouse=True)
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http.time, "sleep", lambda _: None)


def judged(recipe: Recipe, url: str, name: str = "judged", **keys: Any) -> Recipe:
    judge = JudgeConfig(**{"url": url, "model": "owl", "attempts": 2, **keys})
    evaluation = recipe.evaluation.model_copy(update={"judge": judge})
    return recipe.model_copy(update={"evaluation": evaluation, "name": name})


def scores_in(folder: Path) -> dict[str, Any]:
    (path,) = folder.glob("stages/*/judge/scores.json")
    return json.loads(path.read_text())


def answer(path: str, body: dict[str, Any] | None) -> dict[str, Any]:
    return {"data": [{"id": "owl"}]} if path.endswith("/models") else longest(path, body)


def test_a_run_is_judged_last_and_goes_on_when_its_judge_has_died_and_moved(tmp_path: Path, tiny_model: Path) -> None:
    recipe = tiny_recipe(tmp_path, tiny_model)

    def dying(path: str, body: dict[str, Any] | None) -> Any:
        return answer(path, body) if len(served.asked) <= 3 else (503, b"", {})

    with stand_in(dying) as served:
        first = judged(recipe, served.url, parallel=1)
        with pytest.raises(ServerError, match="503"):
            execute(first)
    folder = Path(recipe.runs_dir) / "judged"
    assert (folder / "model").is_dir()  # all else is done
    assert json.loads((folder / "manifest.json").read_text())["status"] == "running"
    with stand_in(answer) as other:
        moved = judged(recipe, other.url)
        execute(moved)
        asked = len(other.asked)
        execute(moved)
        assert len(other.asked) == asked  # neither for its models nor for anything else
    assert recipe_of(folder).evaluation.judge == moved.evaluation.judge
    scores = scores_in(folder)
    assert (scores["judge"], scores["against"]) == ("owl", "gold")
    rows = sum(of_task["judged"] for of_task in scores["tasks"].values())
    assert scores["all"]["judged"] == rows > 0
    text = " ".join(parse(page(read_study(folder))).text.split())
    assert "Judge: owl, against the test rows' outputs" in text

    with stand_in(answer) as third:  # the same answers, against those of the run itself: nothing to choose
        execute(judged(recipe, third.url, "again", against=str(folder), limit=2))
    assert {path for path, _, _ in third.asked} == {"/v1/models"}
    found = scores_in(Path(recipe.runs_dir) / "again")["all"]
    assert found["equal"] == found["judged"] == 2 * len(scores["tasks"])


def test_what_cannot_be_judged_is_refused_before_anything_is_trained(tmp_path: Path, tiny_model: Path) -> None:
    recipe = tiny_recipe(tmp_path, tiny_model)
    with stand_in(lambda path, body: {"data": [{"id": "raven"}]}) as served:
        with pytest.raises(ServerError, match="serves no model 'owl'"):
            execute(judged(recipe, served.url))
        with pytest.raises(RecipeError, match=r"against: .* is no finished run"):
            execute(judged(recipe, served.url, model="raven", against=str(tmp_path)))
    with pytest.raises(ServerError, match="cannot be reached"):
        execute(judged(recipe, served.url))
    assert not (Path(recipe.runs_dir) / "judged" / "stages").exists()


def test_a_judge_is_asked_of_a_run_that_is_done(tmp_path: Path, tiny_model: Path) -> None:
    recipe = tiny_recipe(tmp_path, tiny_model)
    folder = execute(recipe.model_copy(update={"name": "judged"})).folder
    before = json.loads((folder / "manifest.json").read_text())["steps"]
    with stand_in(lambda path, body: {"data": []} if path.endswith("models") else reply("tie")) as served:
        execute(judged(recipe, served.url))
    after = json.loads((folder / "manifest.json").read_text())["steps"]
    assert [place for place in after if place not in before] == [place for place in after if place.endswith("/judge")]
    assert scores_in(folder)["all"]["tied"] == scores_in(folder)["all"]["judged"]
