"""Seeds of a comparison, and what a run folder is not bound to."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from everlearn.errors import RecipeError
from everlearn.recipe import MethodConfig, make_recipe
from everlearn.runs.compare import compare, planned
from everlearn.runs.loop import claim, recipe_of
from everlearn.training import stage_trainer
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
    train = stage_trainer.train_stage

    def counting(*args: object, **kwargs: object) -> object:
        trained.append(kwargs["seed"])
        return train(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(stage_trainer, "train_stage", counting)
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
