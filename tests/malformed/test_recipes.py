"""No recipe means something else than it says: each is refused in one sentence, at once."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from everlearn.checking import checked
from everlearn.errors import RecipeError
from everlearn.methods.registry import method_class, method_names
from everlearn.recipe import Recipe, load_recipe
from everlearn.recipe_file import dump, parse
from everlearn.updates.config import UpdateRecipe, load_update_recipe
from tests.malformed.recipes import TEXTS, nested, wrong_numbers

KINDS: dict[str, type[BaseModel]] = {
    "recipe": Recipe,
    "update": UpdateRecipe,
    **{name: method_class(name).Options for name in method_names()},
}


def write(folder: Path, content: str | bytes) -> Path:
    path = folder / "own" / "r.yaml"
    path.parent.mkdir()
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("name", TEXTS)
def test_a_text_that_is_no_recipe_is_refused_in_one_short_sentence_at_once(name: str, tmp_path: Path) -> None:
    content, words = TEXTS[name]
    path = write(tmp_path, content)
    began = time.process_time()
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    said = str(caught.value)
    assert words in said
    assert "\n" not in said
    assert len(said) <= 2100
    assert time.process_time() - began < 20


@pytest.mark.parametrize("text", ["seed: 1\nseed: 2\n", "seed: true\n", "versions: [{id: a, data: .}]\n"])
def test_recipes_of_updates_are_read_as_strictly(text: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"stands twice|valid integer|folder of the recipe itself"):
        load_update_recipe(write(tmp_path, text))


@pytest.mark.parametrize("kind", KINDS)
def test_every_number_refuses_what_is_no_such_number(kind: str) -> None:
    for key, value in wrong_numbers(KINDS[kind]):
        with pytest.raises(RecipeError, match=key.split(".")[0]):
            print(key, value, checked(KINDS[kind], nested(key, value), where="here"))


@pytest.mark.parametrize("kind", KINDS)
def test_defaults_are_what_they_are_when_they_are_given(kind: str) -> None:
    made = checked(KINDS[kind], {}, where="here")
    assert repr(checked(KINDS[kind], made.model_dump(mode="json"), where="here")) == repr(made)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("010", 10),
        ("0x10", 16),
        ("-7", -7),
        ("[yes, no, on, 2026-01-01, 1:30]", ["yes", "no", "on", "2026-01-01", "1:30"]),
        ("{<<: {a: 1, b: 2}, a: 3}", {"a": 3, "b": 2}),
        ("\N{BYTE ORDER MARK}a: 1", {"a": 1}),
        ("'<<': 1", {"<<": 1}),
    ],
)
def test_yaml_means_what_it_says(text: str, value: object) -> None:
    assert parse(text, "here") == value


@pytest.mark.parametrize(
    "text", ["yes", "1e5", "12345e7", "010", "1_000", "1:30", "2026-01-01", "~", "true", "<<", "=", "0o7", "a: b", ""]
)
def test_text_is_written_so_that_every_reader_takes_it_for_text(text: str) -> None:
    import yaml

    tree: dict[str, Any] = {"labels": [text], "number": 1e-5}
    assert parse(dump(tree), "here") == tree
    assert yaml.safe_load(dump(tree)) == tree
