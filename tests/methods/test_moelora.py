"""MoELoRA through runs: what is refused, what is carried on, and that what is handed back answers as measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from everlearn.errors import RecipeError
from everlearn.files import read_json
from everlearn.methods.registry import make_method
from everlearn.runs.loop import execute
from tests.methods.contexts import facts_of, number_stream
from tests.runs import test_publish as publish


def test_a_rank_that_experts_do_not_divide_is_refused_before_training() -> None:
    facts = facts_of(number_stream())
    with pytest.raises(RecipeError, match=r"3 experts cannot share model.lora.rank 8 evenly: give .* such as 9"):
        make_method("moelora", {"experts": 3}).check(facts)
    make_method("moelora", {}).check(facts)


def test_experts_are_carried_on_and_what_is_handed_back_answers_as_measured(tmp_path: Path) -> None:
    base = publish.base(tmp_path / "base", publish.CHATML)
    model = {"base": str(base), "template": "chat", "dtype": "float32", "lora": {"rank": 4}}
    folder = execute(publish.recipe_of(tmp_path / "run", model, method={"name": "moelora", "experts": 2})).folder
    shapes = [
        read_json(file)["experts"]  # type: ignore[index, call-overload]
        for file in sorted(folder.glob("stages/*/training/adapter/adapter_config.json"))
    ]
    assert len(shapes) > 1
    assert set(shapes) == {2}
    handed = folder / "model"
    card = (handed / "README.md").read_text()
    assert "put_experts(model, FOLDER)" in card
    assert "mixture of LoRA experts" in card
    rows = publish.predictions(folder)
    assert publish.answers_elsewhere(folder, tmp_path / "moved", rows) == [row["prediction"] for row in rows]
