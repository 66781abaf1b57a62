"""Runs of version updates: the plan carried out, killed and resumed, versions added, releases usable."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from everlearn.progress import LineProgress
from everlearn.updates import loop
from everlearn.updates.executor import execute
from tests.updates.tiny_runs import tiny_recipe


class Killed(Exception):
    """Stands for the end of the process."""


class KillAfter(LineProgress):
    """Ends the run at the n-th write of the log."""

    def __init__(self, flushes: int) -> None:
        super().__init__()
        self.left = flushes

    def step(self, what, total=None):
        inner = super().step(what, total)
        outer = self

        class Counting:
            def __enter__(self):
                tick = inner.__enter__()

                def counted(*args, **kwargs) -> None:
                    tick(*args, **kwargs)
                    if "release" in what or what[0] in "ms" or what[0] == "c":
                        outer.left -= 1
                        if outer.left < 0:
                            raise Killed

                return counted

            def __exit__(self, *exception):
                return inner.__exit__(*exception)

        return Counting()


@pytest.fixture(autouse=True)
def flush_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "FLUSH_STEPS", 2)


def histories(folder: Path) -> dict[str, list[tuple[int, float, float]]]:
    found = {}
    for path in sorted((folder / "segments").glob("*/history.jsonl")):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        found[path.parent.name] = [(row["step"], row["loss"], row["learning_rate"]) for row in rows]
    return found


def releases(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    return {path.name: load_file(path / "model.safetensors") for path in sorted((folder / "releases").iterdir())}


def same_tensors(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("paradigm", ["ptfs", "cpt", "path_switching"])
def test_executed_work_agrees_with_the_plan(tmp_path: Path, paradigm: str) -> None:
    result = execute(tiny_recipe(tmp_path, paradigm=paradigm))
    plan = json.loads((tmp_path / "runs" / "tiny" / "plan.json").read_text())
    ledger = result["ledger"]
    assert [row["executed_steps"] for row in ledger["segments"]] == [s["steps"] for s in plan["segments"]]
    planned = next(cost for cost in ledger["costs"] if cost["paradigm"] == paradigm)
    executed = ledger["executed"]
    assert (executed["steps"], executed["tokens"], executed["flops"]) == tuple(
        planned[key] for key in ("steps", "tokens", "flops")
    )
    logged = histories(tmp_path / "runs" / "tiny")
    for segment in plan["segments"]:
        assert len(logged[segment["id"]]) == segment["steps"]


def test_executed_rates_are_the_planned_ones(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path)
    execute(recipe)
    plan = json.loads((tmp_path / "runs" / "tiny" / "plan.json").read_text())
    steps = tuple(version["steps"] for version in plan["versions"])
    logged = histories(tmp_path / "runs" / "tiny")
    for segment in recipe.version_plan(steps).segments():
        peak = recipe.schedule.maximal_rate
        assert [rate for _, _, rate in logged[segment.id]] == [
            pytest.approx(peak * segment.schedule(step), rel=1e-12, abs=1e-18) for step in range(segment.steps)
        ]


@pytest.mark.parametrize("flushes", [0, 1, 3, 4, 6, 9])
def test_a_killed_run_goes_on_with_the_same_losses_bit_by_bit(tmp_path: Path, flushes: int) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    execute(tiny_recipe(tmp_path / "a"))
    with pytest.raises(Killed):
        execute(tiny_recipe(tmp_path / "b"), progress=KillAfter(flushes))
    result = execute(tiny_recipe(tmp_path / "b"))
    one, two = tmp_path / "a" / "runs" / "tiny", tmp_path / "b" / "runs" / "tiny"
    assert histories(one) == histories(two)
    for name, tensors in releases(one).items():
        assert same_tensors(tensors, releases(two)[name])
    assert result["ledger"]["executed"]["steps"] == sum(len(rows) for rows in histories(one).values())


def test_dropout_goes_on_as_well(tmp_path: Path) -> None:
    gpt2 = {
        "config": {"model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 2, "resid_pdrop": 0.2},
        "vocabulary_size": 320,
    }
    folders = []
    for name, flushes in (("a", None), ("b", 4)):
        (tmp_path / name).mkdir()
        recipe = tiny_recipe(tmp_path / name, model=gpt2)
        recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"config": gpt2["config"]})})
        if flushes:
            with pytest.raises(Killed):
                execute(recipe, progress=KillAfter(flushes))
        execute(recipe)
        folders.append(tmp_path / name / "runs" / "tiny")
    assert histories(folders[0]) == histories(folders[1])


@pytest.mark.parametrize(
    ("paradigm", "trained"),
    [("path_switching", ["m3b", "m4a", "b4"]), ("cpt", ["c4"]), ("ptfs", ["s4"])],
)
def test_adding_a_version_trains_only_what_is_new(tmp_path: Path, paradigm: str, trained: list[str]) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    execute(tiny_recipe(tmp_path / "a", paradigm=paradigm, versions=4))
    execute(tiny_recipe(tmp_path / "b", paradigm=paradigm, versions=3))
    before = set(histories(tmp_path / "b" / "runs" / "tiny"))
    for text in ("text1.txt", "text2.txt"):  # long gone when the fourth version comes
        (tmp_path / "b" / text).unlink()
    later = tiny_recipe(tmp_path / "c" if (tmp_path / "c").mkdir() else tmp_path / "c", paradigm=paradigm, versions=4)
    entries = [
        {**version.model_dump(), "data": str(tmp_path / "b" / Path(version.data).name)} for version in later.versions
    ]
    (tmp_path / "b" / "text4.txt").write_text((tmp_path / "c" / "text4.txt").read_text())
    recipe = tiny_recipe(tmp_path / "c", paradigm=paradigm, versions=4)
    recipe = type(recipe).model_validate(
        {**recipe.model_dump(), "versions": entries, "runs_dir": str(tmp_path / "b" / "runs")}
    )
    execute(recipe)
    after = histories(tmp_path / "b" / "runs" / "tiny")
    assert set(after) - before == set(trained)
    whole = histories(tmp_path / "a" / "runs" / "tiny")
    assert after == whole
    assert same_tensors(
        releases(tmp_path / "a" / "runs" / "tiny")["v4"], releases(tmp_path / "b" / "runs" / "tiny")["v4"]
    )
