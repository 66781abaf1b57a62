"""A method, and a stack of several, has many names in a recipe and one form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from everlearn.errors import RecipeError
from everlearn.recipe import Recipe, load_recipe, make_recipe, set_dotted
from everlearn.recipe_paths import anchored

RATIO: dict[str, Any] = {"name": "ssr", "ratio": 0.3}
STRENGTH: dict[str, Any] = {"name": "l2", "strength": 2}
STACK: dict[str, Any] = {"name": "ssr+l2", "ssr": {"ratio": 0.3}, "l2": {"strength": 2}}


@pytest.mark.parametrize(
    ("given", "form"),
    [
        ("l2", {"name": "l2"}),
        (["l2"], {"name": "l2"}),
        ([STRENGTH], STRENGTH),
        ("ssr+l2", {"name": "ssr+l2", "ssr": {}, "l2": {}}),
        (" ssr + l2 ", {"name": "ssr+l2", "ssr": {}, "l2": {}}),
        (["ssr", "l2"], {"name": "ssr+l2", "ssr": {}, "l2": {}}),
        ([RATIO, STRENGTH], STACK),
        (STACK, STACK),
        ({"name": "ssr+l2", "l2": {"strength": 2}}, {"name": "ssr+l2", "ssr": {}, "l2": {"strength": 2}}),
        (["ssr+l2", "ewc"], {"name": "ssr+l2+ewc", "ssr": {}, "l2": {}, "ewc": {}}),
    ],
)
def test_every_way_to_name_a_stack_has_one_form(given: object, form: dict[str, Any]) -> None:
    recipe = make_recipe({"method": given, "compare": ["sequential", given]})
    assert recipe.method.model_dump() == recipe.compare[1].model_dump() == form
    assert list(recipe.method.parts) == form["name"].split("+")
    assert make_recipe(recipe.model_dump(mode="json")) == recipe


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "the list is empty"),
        (["l2", 3], "each method of a stack is a name, or a mapping"),
        (["l2", {"strength": 1}], "each method of a stack is a name, or a mapping"),
        ([["ssr", "l2"]], "each method of a stack is a name, or a mapping"),
        ("ssr+", "a name is missing beside a '\\+'"),
        ("+", "a name is missing beside a '\\+'"),
        ("l2+ssr+l2", "method l2 stands twice in the stack"),
        (["l2", STRENGTH], "method l2 stands twice in the stack"),
        ({"name": "ssr+l2", "ratio": 1}, r"say whose option ratio is \(ssr\.ratio or l2\.ratio\)"),
        ({"name": "ssr+l2", "ewc": {}}, r"say whose option ewc is"),
        ({"name": "ssr+l2", "l2": None}, "l2 holds nothing where the options of that method belong"),
        ({"name": "ssr+l2", "l2": 2}, "l2 holds 2 where the options of that method belong"),
    ],
)
def test_what_names_no_stack_is_refused_by_its_key(given: object, message: str) -> None:
    with pytest.raises(RecipeError, match=f"recipe: method: .*{message}"):
        make_recipe({"method": given})
    with pytest.raises(RecipeError, match=f"recipe: compare.0: .*{message}"):
        make_recipe({"compare": [given]})


def overridden(given: object, keys: dict[str, object]) -> Recipe:
    tree: dict[str, Any] = {} if given is None else {"method": given}
    for key, value in keys.items():
        set_dotted(tree, key, value)
    return make_recipe(tree)


@pytest.mark.parametrize(
    ("method", "keys", "form"),
    [
        (RATIO, {"method.name": "ssr+l2"}, {"name": "ssr+l2", "ssr": {"ratio": 0.3}, "l2": {}}),
        (RATIO, {"method.name": "ssr+l2", "method.l2.strength": 2}, STACK),
        ([RATIO, STRENGTH], {"method.name": "ssr"}, RATIO),
        ([RATIO, STRENGTH], {"method": "l2"}, STRENGTH),
        ([RATIO, STRENGTH], {"method": ["ewc", "ssr"]}, {"name": "ewc+ssr", "ewc": {}, "ssr": {"ratio": 0.3}}),
        ([RATIO, STRENGTH], {"method.name": "ewc"}, {"name": "ewc"}),
        ([RATIO, "l2"], {"method.l2.strength": 2}, STACK),
        ("ssr+l2", {"method.ssr.ratio": 0.3, "method.l2.strength": 2}, STACK),
        ({"ratio": 0.3}, {"method.name": "ssr"}, RATIO),
        (None, {"method.name": "ssr+l2"}, {"name": "ssr+l2", "ssr": {}, "l2": {}}),
    ],
)
def test_the_command_line_names_methods_and_their_options(
    method: object, keys: dict[str, object], form: dict[str, object]
) -> None:
    assert overridden(method, keys).method.model_dump() == form


@pytest.mark.parametrize(
    ("method", "keys", "message"),
    [
        ("ssr+l2", {"method.strength": 2}, r"say whose option strength is \(ssr\.strength or l2\.strength\)"),
        ("ssr", {"method.name": "l2+l2"}, r"cannot set 'method\.name': method l2 stands twice"),
        ("l2+l2", {"method.strength": 2}, r"cannot set 'method\.strength': method l2 stands twice"),
        ("ssr+l2", {"method.name": 3}, r"method\.name: input should be a valid string"),
    ],
)
def test_an_override_that_means_no_method_is_refused(method: object, keys: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        overridden(method, keys)


def test_paths_among_the_options_of_a_stack_are_relative_to_what_names_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("own", "here"):
        (tmp_path / folder / "models" / "a").mkdir(parents=True)
    path = tmp_path / "own" / "r.yaml"
    path.write_text("method: [l2, {name: ssr, embedding: models/a}]\n")
    monkeypatch.chdir(tmp_path / "here")
    assert load_recipe(path).method.parts["ssr"] == {"embedding": str(tmp_path / "own" / "models" / "a")}
    given = load_recipe(path, {"method.ssr.embedding": "models/a"})
    assert given.method.parts["ssr"] == {"embedding": str(tmp_path / "here" / "models" / "a")}
    assert anchored(given, None) == given
