from __future__ import annotations

import json
from itertools import islice

import pytest

from everlearn.errors import UserError
from everlearn.models.embedded_base import embedded_base_path
from everlearn.training.engine import Engine

torch = pytest.importorskip("torch")


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch):
    """The pre-training module, shrunk to seconds."""
    from everlearn.runs import pretraining as base_model

    monkeypatch.setattr(base_model, "TOKENIZER_DOCUMENTS", 500)
    monkeypatch.setattr(base_model, "VOCABULARY_SIZE", 700)
    monkeypatch.setattr(base_model, "BLOCK_TOKENS", 64)
    monkeypatch.setattr(base_model, "BATCH_BLOCKS", 2)
    return base_model


def test_the_same_seed_gives_the_same_weights_and_the_folder_loads(recipe, tmp_path) -> None:
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    reports = [recipe.pretrain(tmp_path / name, seed=1, steps=3) for name in ("a", "b")]
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("a", "b"))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert first["model.embed_tokens.weight"].dtype == torch.bfloat16
    assert reports[0]["loss"] == reports[1]["loss"]
    assert json.loads((tmp_path / "a" / "pretraining.json").read_text())["tokens"] == 3 * 2 * 64
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "a", dtype=torch.float32)
    assert len(AutoTokenizer.from_pretrained(tmp_path / "a")) == model.config.vocab_size == 700


def test_pretraining_lowers_the_loss_and_reports_progress(recipe, tmp_path) -> None:
    seen: list[dict[str, float]] = []
    recipe.pretrain(tmp_path, steps=60, progress=seen.append)
    assert [state["step"] for state in seen] == [20, 40, 60]
    assert {state["steps"] for state in seen} == {60}
    assert seen[-1]["loss"] < seen[0]["loss"] - 0.3


def test_the_global_generator_is_left_alone(recipe, tmp_path) -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    recipe.pretrain(tmp_path, steps=1)
    assert torch.equal(before, torch.random.get_rng_state())


def test_it_is_trained_by_the_engine_of_all_trainings(recipe, tmp_path, monkeypatch) -> None:
    steps = []
    run = Engine.run
    monkeypatch.setattr(Engine, "run", lambda self, *rest: steps.append(self.pace.steps) or run(self, *rest))
    recipe.pretrain(tmp_path, steps=2)
    assert steps == [2]


def test_the_rate_rises_from_above_zero_and_falls_to_its_rest(recipe) -> None:
    rates = [recipe.rate_factor(step, length=1000) for step in range(1001)]
    assert rates[0] == pytest.approx(0.01)
    assert max(rates) == pytest.approx(rates[99])
    assert rates[-1] == pytest.approx(recipe.FINAL_RATE_RATIO)


def test_two_budgets_or_a_negative_one_are_refused(recipe, tmp_path) -> None:
    with pytest.raises(UserError, match="one budget, but got tokens and steps"):
        recipe.pretrain(tmp_path, tokens=10, steps=1)
    with pytest.raises(UserError, match="steps must be positive"):
        recipe.pretrain(tmp_path, steps=0)
    assert not list(tmp_path.iterdir())


def test_blocks_hold_whole_documents(recipe) -> None:
    tokenizer = recipe.build_tokenizer(0)
    blocks = list(islice(recipe.packed_blocks(tokenizer, 0), 40))
    for block in blocks:
        ids = block.tolist()
        used = ids[: ids.index(tokenizer.pad_token_id)] if tokenizer.pad_token_id in ids else ids
        assert used[0] == tokenizer.bos_token_id
        assert used[-1] == tokenizer.eos_token_id
        assert used.count(tokenizer.bos_token_id) == used.count(tokenizer.eos_token_id)
        assert set(ids[len(used) :]) <= {tokenizer.pad_token_id}


def test_the_answer_of_a_zero_shot_document_is_tokenized_as_in_fine_tuning(recipe) -> None:
    from everlearn.data.embedded.corpus import Document

    tokenizer = recipe.build_tokenizer(0)
    (ids,) = recipe.encode_documents(tokenizer, [Document("zero_shot", "Write the last word.\n\nred cat", "cat")])
    answer = tokenizer("cat", add_special_tokens=False)["input_ids"]
    assert ids[-len(answer) - 1 :] == [*answer, tokenizer.eos_token_id]


def test_the_shipped_weights_are_small_and_made_by_the_default_recipe() -> None:
    from everlearn.runs.pretraining import BATCH_BLOCKS, BLOCK_TOKENS, DEFAULT_TOKENS

    folder = embedded_base_path()
    assert sum(file.stat().st_size for file in folder.iterdir()) < 16 * 2**20
    report = json.loads((folder / "pretraining.json").read_text())
    assert report["seed"] == 0
    assert report["tokens"] == DEFAULT_TOKENS // (BATCH_BLOCKS * BLOCK_TOKENS) * BATCH_BLOCKS * BLOCK_TOKENS
