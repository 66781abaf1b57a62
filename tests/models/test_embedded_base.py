from __future__ import annotations

import random

import pytest

from everlearn.data.embedded.grammars import Grammar
from everlearn.data.embedded.stream import TASKS, embedded_stream
from everlearn.errors import ModelError
from everlearn.models import embedded_base


@pytest.fixture(scope="module")
def base():
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = embedded_base.embedded_base_path()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return AutoTokenizer.from_pretrained(folder), model


def continuations(base, prompts: list[str], **options: object) -> list[str]:
    tokenizer, model = base
    encoded = tokenizer(prompts, return_tensors="pt", padding=True)
    ids = model.generate(input_ids=encoded["input_ids"], attention_mask=encoded["attention_mask"], **options)
    return tokenizer.batch_decode(ids[:, encoded["input_ids"].shape[1] :], skip_special_tokens=True)


def test_the_base_writes_new_inputs_of_every_task_of_the_stream(base) -> None:
    import torch

    torch.manual_seed(0)
    for spec, task in zip(TASKS, embedded_stream(), strict=True):
        pairs = [random.Random(at).sample(task.demonstrations, 2) for at in range(12)]
        prompts = [
            spec.definition + "\n\n" + "".join(f"Input: {r.input}\nOutput: {r.output}\n\n" for r in pair) + "Input:"
            for pair in pairs
        ]
        texts = continuations(base, prompts, do_sample=True, temperature=0.9, top_p=0.95, max_new_tokens=24)
        inputs = [text.split("\nOutput:")[0].strip() for text in texts]
        fitting = [text for text in inputs if Grammar(spec.template).matches(text)]
        assert len(fitting) >= 9, (task.name, inputs)
        assert len(set(fitting)) >= 8, task.name


def test_the_base_cannot_do_the_stream_before_it_is_taught(base) -> None:
    for task in embedded_stream():
        rows = task.evaluation[:20]
        texts = continuations(base, [row.query for row in rows], do_sample=False, max_new_tokens=12)
        assert sum(text.strip() == row.output for text, row in zip(texts, rows, strict=True)) == 0, task.name


def test_a_missing_file_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setattr(embedded_base, "_FOLDER", tmp_path)
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        with pytest.raises(ModelError, match=rf"lacks {name}.*everlearn pretrain --out"):
            embedded_base.embedded_base_path()
        (tmp_path / name).write_text("{}")
    assert embedded_base.embedded_base_path() == tmp_path
