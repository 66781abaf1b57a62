"""The class chosen in task-incremental streams is the likeliest whole answer, by the plain computation."""

from __future__ import annotations

import torch

from everlearn.data.instance import Instance, Task
from everlearn.data.prompts import get_template
from everlearn.evaluation.choice import choose_classes
from everlearn.models.loading import LoadedModel
from everlearn.progress import LineProgress
from tests.evaluation.test_general import loaded  # noqa: F401

CLASSES = ("red", "red cat", "cat", "dog red cat")


def test_the_likeliest_class_of_the_task_is_chosen_as_a_whole_answer(loaded: LoadedModel) -> None:  # noqa: F811
    tokenizer = loaded.tokenizer
    template = get_template("vanilla", tokenizer)
    texts = ["red dog", "cat", "dog dog cat red", "red", "cat dog", "dog"]
    rows = tuple(Instance("", text, "red", "t") for text in texts)
    chosen = choose_classes(loaded, template, Task("t", rows, rows, classes=CLASSES), LineProgress())
    for row, name in zip(rows, chosen, strict=True):
        likelihoods = []
        for other in CLASSES:
            prompt = template.prompt_ids(row, tokenizer)
            ids = [*prompt, *template.target_ids(Instance("", "", other, "t"), tokenizer)]
            with torch.inference_mode():
                logits = loaded.model(torch.tensor([ids])).logits[0].log_softmax(-1)
            likelihoods.append(sum(float(logits[at - 1, ids[at]]) for at in range(len(prompt), len(ids))))
        assert name == CLASSES[max(range(len(CLASSES)), key=likelihoods.__getitem__)]
