"""Seeds of a comparison, and what a run folder is not bound to."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from everlearn.errors import RecipeError
from everlearn.evaluation.bootstrap import seeds_interval
from everlearn.files import read_json
from everlearn.methods.stack import assemble
from everlearn.progress import LineProgress
from everlearn.recipe import MethodConfig, Recipe, make_recipe
from everlearn.runs import compare as module
from everlearn.runs.claim import claim, recipe_of
from everlearn.runs.compare import compare, labels_of, parse_methods, planned
from everlearn.runs.loop import RunResult
from everlearn.training import stage
from tests.runs.test_loop import tiny_recipe

OTHER_COMMANDS = {
    "compare": ["sequential", "l2"],
    "seeds": [1, 2],
    "synthesize": {"tasks": ["colours"], "count": 3, "checkpoint": "x", "out": "y"},
    "evaluate": {"checkpoint": "z"},
}


def test_a_run_folder_goes_on_whatever_the_keys_of_other_commands_say(tmp_path: Path, tiny_model: Path) -> None:
    plain = tiny_recipe(tmp_path, tiny_model)
    claim(tmp_path / "run", plain)
    kept = (tmp_path / "run" / "recipe.yaml").read_text()
    assert not OTHER_COMMANDS.keys() & yaml.safe_load(kept)
    claim(tmp_path / "run", tiny_recipe(tmp_path, tiny_model, **OTHER_COMMANDS))
    assert (tmp_path / "run" / "recipe.yaml").read_text() == kept
    claim(tmp_path / "other", tiny_recipe(tmp_path, tiny_model, **OTHER_COMMANDS))
    assert (tmp_path / "other" / "recipe.yaml").read_text() == kept
    assert recipe_of(tmp_path / "other").model_copy(update={"runs_dir": plain.runs_dir}) == plain


def test_a_comparison_takes_its_seeds_from_the_recipe_and_more_of_them_later(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = []
    train = stage.train_stage

    def counting(*args: object, **kwargs: object) -> object:
        trained.append(kwargs["seed"])
        return train(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(stage, "train_stage", counting)
    recipe = tiny_recipe(tmp_path, tiny_model, seeds=[1])
    folder = Path(recipe.runs_dir) / recipe.name
    assert [result.folder.name for result in compare(recipe)["sequential"]] == ["sequential-s1"]
    stored = (folder / "sequential-s1" / "recipe.yaml").read_text()
    assert len(trained) == 3

    more = tiny_recipe(tmp_path, tiny_model, seeds=[1, 2], synthesize={"count": 5})
    assert len(compare(more)["sequential"]) == 2
    assert len(trained) == 6  # of the second seed alone
    assert (folder / "sequential-s1" / "recipe.yaml").read_text() == stored
    found = planned(folder)
    assert found is not None
    assert found[1:] == ([MethodConfig(name="sequential")], [1, 2])
    assert found[0].seeds == []

    compare(more, seeds=[1])
    assert len(trained) == 6


def test_seeds_given_in_python_are_checked_as_those_of_a_recipe() -> None:
    import everlearn

    with pytest.raises(RecipeError, match="seeds: 3 stands twice"):
        everlearn.compare(make_recipe({}), ["sequential"], seeds=[3, 3])


def test_one_method_with_one_seed_is_no_comparison(tmp_path: Path, tiny_model: Path) -> None:
    with pytest.raises(RecipeError, match="nothing to compare: name methods, such as --methods sequential,ssr"):
        compare(tiny_recipe(tmp_path, tiny_model))


METHODS = {"compare": ["sequential", {"name": "random_rehearsal", "ratio": 0.5}], "seeds": [1, 2]}


@pytest.fixture
def executed(monkeypatch: pytest.MonkeyPatch) -> list[Recipe]:
    """The runs that a comparison executes; each scores ten times its seed, the second method one more."""
    done: list[Recipe] = []

    def execute(one: Recipe, *, folder: Path, label: str, progress: object) -> RunResult:
        done.append(one)
        metrics: dict[str, object] = {"BWT": {"value": None}, "definitions": {"AR": "mean"}}
        metrics["AR"] = {"value": 10.0 * one.seed + (one.method.name != "sequential")}
        assert one.method.name in label
        return RunResult(folder, {}, metrics)

    stream = SimpleNamespace(notes=["3 rows are set aside"], accounts=(), tasks=(), scenario=None)
    prepared = SimpleNamespace(stream=stream, facts=None, engine=None)
    monkeypatch.setattr(module, "execute", execute)

    def prepare(recipe: Recipe, *_: object, **__: object) -> SimpleNamespace:
        assert recipe.method == recipe.compare[0]
        prepared.recipe, prepared.method = recipe, assemble(recipe.method)
        return prepared

    monkeypatch.setattr(module, "prepare", prepare)
    return done


def test_every_method_runs_with_every_seed_over_one_cache(tmp_path: Path, executed: list[Recipe]) -> None:
    lines: list[str] = []
    recipe = make_recipe({"name": "both", "runs_dir": str(tmp_path), **METHODS})
    results = compare(recipe, progress=LineProgress(lines.append))
    assert [(one.method.name, one.seed, one.name) for one in executed] == [
        ("sequential", 1, "sequential-s1"),
        ("random_rehearsal", 1, "random_rehearsal-s1"),
        ("sequential", 2, "sequential-s2"),
        ("random_rehearsal", 2, "random_rehearsal-s2"),
    ]
    assert {one.cache_dir for one in executed} == {str(tmp_path / ".cache")}
    assert [result.folder.name for result in results["random_rehearsal"]] == [
        "random_rehearsal-s1",
        "random_rehearsal-s2",
    ]
    assert [line for line in lines if "rows" in line or "seed" in line][:2] == [
        "3 rows are set aside",
        "sequential, seed 1",
    ]


def test_a_comparison_is_summed_up_over_the_seeds(tmp_path: Path, executed: list[Recipe]) -> None:
    tree = {"name": "both", "runs_dir": str(tmp_path), "evaluation": {"confidence": 0.8}, **METHODS}
    compare(make_recipe(tree))
    low, high = seeds_interval([11, 21], 0.8) or (0, 0)
    found = read_json(tmp_path / "both" / "comparison.json")
    assert isinstance(found, dict)
    assert found["runs"][3] == {
        "label": "random_rehearsal",
        "method": "random_rehearsal",
        "options": {"ratio": 0.5},
        "seed": 2,
        "folder": "random_rehearsal-s2",
    }
    assert found["summary"]["random_rehearsal"] == {
        "seeds": 2,
        "AR": {"mean": 16.0, "low": low, "high": high, "values": [11.0, 21.0]},
    }
    compare(make_recipe({**tree, "seeds": [1]}))
    found = read_json(tmp_path / "both" / "comparison.json")
    assert isinstance(found, dict)
    assert found["summary"]["sequential"]["AR"] == {"mean": 10.0, "low": None, "high": None, "values": [10.0]}


def test_a_stopped_comparison_shows_the_runs_that_are_finished_and_can_go_on(
    tmp_path: Path, executed: list[Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    execute = module.execute

    def stopping(one: Recipe, **where: object) -> RunResult:
        if executed:
            raise KeyboardInterrupt
        return execute(one, **where)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "execute", stopping)
    recipe = make_recipe({"name": "both", "runs_dir": str(tmp_path), **METHODS})
    with pytest.raises(KeyboardInterrupt):
        compare(recipe)
    found = read_json(tmp_path / "both" / "comparison.json")
    assert isinstance(found, dict)
    assert [run["folder"] for run in found["runs"]] == ["sequential-s1"]
    assert list(found["summary"]) == ["sequential"]
    moved = (tmp_path / "both").rename(tmp_path / "elsewhere")
    again = planned(moved)
    assert again is not None
    assert again[0].runs_dir == str(tmp_path)
    assert again[1:] == (recipe.compare, [1, 2])
    assert planned(tmp_path) is None


def test_methods_of_the_command_line_take_their_options_from_the_recipe() -> None:
    recipe = make_recipe(
        {
            "method": {"name": "ssr", "preset": "faithful"},
            "compare": [{"name": "l2", "strength": 1}, {"name": "l2", "strength": 2}, {"name": "ssr", "ratio": 0.2}],
        }
    )
    found = parse_methods("ssr, l2,ewc,l2:strength=3,ssr:ratio=0.5;preset=improved;", recipe)
    assert [(method.name, method.options) for method in found] == [
        ("ssr", {"ratio": 0.2}),
        ("l2", {"strength": 1}),
        ("ewc", {}),
        ("l2", {"strength": 3}),
        ("ssr", {"ratio": 0.5, "preset": "improved"}),
    ]
    assert parse_methods("ssr", make_recipe({"method": {"name": "ssr", "ratio": 0.3}}))[0].options == {"ratio": 0.3}
    with pytest.raises(RecipeError, match="write options as name:key=value;key=value"):
        parse_methods("l2:strength", recipe)


def test_a_method_that_stands_twice_is_refused() -> None:
    with pytest.raises(RecipeError, match="method 'l2' stands twice"):
        labels_of([MethodConfig(name="l2"), MethodConfig(name="l2")])


def test_a_stack_of_the_command_line_takes_the_options_of_its_methods_from_the_recipe() -> None:
    recipe = make_recipe(
        {"method": {"name": "ssr", "ratio": 0.3}, "compare": [["ewc", {"name": "l2", "strength": 2}]]}
    )
    found = parse_methods("ssr+l2, l2,ewc+l2,ssr + l2:l2.strength=3;ssr.refine=false", recipe)
    assert [method.model_dump() for method in found] == [
        {"name": "ssr+l2", "ssr": {"ratio": 0.3}, "l2": {"strength": 2}},
        {"name": "l2", "strength": 2},
        {"name": "ewc+l2", "ewc": {}, "l2": {"strength": 2}},
        {"name": "ssr+l2", "ssr": {"ratio": 0.3, "refine": False}, "l2": {"strength": 3}},
    ]
    assert labels_of(found) == ["ssr+l2 l2.strength=2", "l2", "ewc+l2", "ssr+l2 ssr.refine=False l2.strength=3"]
    with pytest.raises(RecipeError, match="say whose option strength is"):
        parse_methods("ssr+l2:strength=3", recipe)


def test_options_too_long_for_a_folders_name_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    recipe = make_recipe({"name": "long", "runs_dir": str(tmp_path)})
    methods = [MethodConfig.model_validate({"name": "ssr", "embedding": letter * 90}) for letter in "ab"]
    with pytest.raises(RecipeError, match=r"would be called by 108 letters.*differ in fewer options"):
        compare(recipe, methods)
    assert not list(tmp_path.iterdir())
