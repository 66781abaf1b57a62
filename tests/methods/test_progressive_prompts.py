"""Progressive prompts: what stands before a row, that earlier prompts stay, and what is asked with which."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from everlearn.errors import RecipeError
from everlearn.files import read_json
from everlearn.methods.progressive_prompts import assembled, new_places
from everlearn.methods.registry import make_method
from everlearn.runs.loop import execute
from tests.methods.contexts import Told, facts_of, number_stream
from tests.runs import test_publish as publish


@pytest.mark.parametrize("order", ["newest_first", "oldest_first"])
def test_prompts_are_assembled_as_in_the_golden_vectors(golden_dir: Path, order) -> None:
    cases = json.loads((golden_dir / "baselines" / "progressive_prompts.json").read_text())["cases"]
    assert cases
    for case in cases:
        prompts = [torch.tensor(one, dtype=torch.float64) for one in case["prompts_in_order_of_tasks"]]
        words = torch.tensor(case["input_embeddings"], dtype=torch.float64)
        whole = prompts[0]
        for prompt in prompts[1:]:
            whole = assembled(prompt, whole, order)
        limit = (
            case["sequence_limit"] if order == "newest_first" else None
        )  # the authors' code cuts, everlearn refuses
        expected = torch.tensor(case[f"expected_input_{order}"], dtype=torch.float64)
        torch.testing.assert_close(torch.cat([whole, words])[:limit], expected, rtol=0, atol=1e-6)
        new = new_places(len(prompts), len(prompts[0]), order)
        assert list(range(new.start, new.stop)) == case[f"trainable_positions_{order}"]


def test_earlier_prompts_do_not_move_and_each_task_is_answered_with_its_own(tmp_path: Path) -> None:
    base = publish.base(tmp_path / "base", publish.CHATML)
    model = {"base": str(base), "template": "chat", "dtype": "float32"}
    method = {"name": "progressive_prompts", "tokens": 3}
    training = {"epochs": 3, "batch_size": 4, "learning_rate": 0.3, "weight_decay": 0.1}
    recipe = publish.recipe_of(tmp_path / "run", model, method=method, training=training)
    told = Told()
    folder = execute(recipe, progress=told).folder
    assert sum("weight_decay is taken as 0" in line for line in told.said) == len(publish.TASKS)
    first, second = (
        load_file(next(folder.glob(f"stages/{at:02d}-*/training/adapter/adapter_model.safetensors"))) for at in (1, 2)
    )
    (first,), (second,) = first.values(), second.values()
    assert (len(first), len(second)) == (3, 6)
    assert torch.equal(second[3:], first)
    manifest, matrix = read_json(folder / "manifest.json"), read_json(folder / "matrix.json")
    assert manifest["answers"] == {"models": 2, "knows_task": True}  # type: ignore[index, call-overload]
    assert matrix["values"][0][0] == matrix["values"][1][0]  # type: ignore[index, call-overload]
    rows = publish.predictions(folder)
    handed = folder / "model"
    assert "soft prompt" in (handed / "README.md").read_text()
    space: dict = {}
    exec(publish.code_of(handed), space)
    tasks = [name for name in publish.TASKS for _ in range(8)]
    answers = [space["answer"](row["input"], task).strip() for row, task in zip(rows, tasks, strict=True)]
    assert answers == [row["prediction"] for row in rows]


def test_full_tuning_and_rows_without_room_for_the_prompts_are_refused() -> None:
    facts = facts_of(number_stream())
    method = make_method("progressive_prompts", {})
    method.check(facts)
    with pytest.raises(RecipeError, match=r"set model\.tuning to lora"):
        method.check(replace(facts, model=facts.model.model_copy(update={"tuning": "full"})))
    count = len(facts.stream.names)
    with pytest.raises(
        RecipeError, match=rf"{count} prompts of 340 tokens leave .* lower its tokens \(method\.tokens\)"
    ):
        make_method("progressive_prompts", {"tokens": 340}).check(facts)
