"""Every key of every kind of recipe, gone or with a wrong value: refused with its name, or it means what it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from everlearn import recipe_file
from everlearn.checking import checked
from everlearn.errors import RecipeError
from everlearn.recipe import Recipe, load_recipe, make_recipe
from everlearn.runs.prepare import prepare
from everlearn.updates.config import UpdateRecipe
from tests.malformed.answers import refusal
from tests.malformed.spoilt_json import means, spoilt
from tests.malformed.test_recipes import KINDS

GIVEN: dict[str, dict[str, Any]] = {
    "recipe": {
        "name": "r",
        "model": {"base": "tiny", "device": "cpu", "lora": {"targets": ["q_proj"]}},
        "method": "sequential",
        "compare": [{"name": "ssr"}],
        "seeds": [1, 2],
        "stream": {
            "tasks": [
                {
                    "name": "a",
                    "train": "t.jsonl",
                    "evaluation": "e.jsonl",
                    "columns": {"input": ["p", "h"], "output": "l"},
                    "labels": ["yes", "no"],
                    "demonstrations": 4,
                }
            ],
            "order": ["a"],
        },
        "evaluation": {"max_new_tokens": 4},
    },
    "update": {"versions": [{"id": "a", "data": "x.txt"}]},
}
FREE = ("model.config",)
"""Sections whose keys are another library's: it refuses them later."""
LISTED = ("seeds", "tasks", "method", "general_tasks", "0")
"""Keys that take one value in place of a list, or a name in place of a section."""


def whole(kind: str) -> dict[str, Any]:
    """A recipe, or a method's options, with all keys."""
    return checked(KINDS[kind], GIVEN.get(kind, {}), where="here").model_dump(mode="json")


@pytest.mark.parametrize("kind", KINDS)
def test_each_value_is_refused_by_its_key_or_is_what_was_given(kind: str) -> None:
    tried = refused = 0
    for place, changed in spoilt(whole(kind)):
        tried += 1
        key = place.partition(":")[0]
        said = refusal(place, lambda changed=changed: checked(KINDS[kind], changed, where="here"))
        if said is not None:
            refused += 1
            assert key.split(".")[0] in said, (place, said)
        elif not key.startswith(FREE) and key.split(".")[-1] not in LISTED:
            made = checked(KINDS[kind], changed, where="here")
            assert means(changed, made.model_dump(mode="json")), place
    assert tried >= 10 * len(KINDS[kind].model_fields)
    assert refused >= tried // 2


@pytest.mark.parametrize("kind", [Recipe, UpdateRecipe])
def test_a_key_written_wrongly_is_never_passed_over(kind: type[Recipe]) -> None:
    for name in kind.model_fields:
        for wrong in (name.upper(), f"{name} ", f"{name}_", f"_{name}"):
            with pytest.raises(RecipeError, match="unknown key"):
                print(wrong, checked(kind, {wrong: None}, where="here"))


def test_what_a_section_takes_is_refused_by_a_run_or_can_be_run(tiny_model: Path, tmp_path: Path) -> None:
    rows = [{"p": f"the red cat {at}", "h": "cat", "l": "yes" if at % 2 else "no"} for at in range(30)]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:20]))
    (tmp_path / "e.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[20:]))
    (tmp_path / "tiny").symlink_to(tiny_model)
    accepted = refused = 0
    for place, changed in spoilt(whole("recipe")):
        if refusal(place, lambda changed=changed: make_recipe(changed)) is not None:
            continue
        (tmp_path / "r.yaml").write_text(recipe_file.dump(changed), encoding="utf-8")
        said = refusal(place, lambda: prepare(load_recipe(tmp_path / "r.yaml"), trains=True))
        accepted, refused = accepted + (said is None), refused + (said is not None)
    assert accepted > 20
    assert refused > 20
