"""The likeliest of a task's classes, where the task of a row is known when it is answered.

In task-incremental learning an answer is one of the classes of the row's task. A model that answers in words is asked
how likely it finds each class as the whole answer, its end included (the sum of the tokens' log-probabilities, nothing
divided by their number), after exactly the prompt that it was trained on. The published code writes freely in both
scenarios, which makes no use of the task.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from everlearn.evaluation.likelihood import Window, window_losses

if TYPE_CHECKING:
    from everlearn.data.instance import Task
    from everlearn.data.prompts import PromptTemplate
    from everlearn.models.loading import LoadedModel
    from everlearn.progress import Progress

CHOSEN = "chosen"
"""Why an answer ends that is one of the task's classes."""


def choose_classes(loaded: LoadedModel, template: PromptTemplate, task: Task, progress: Progress) -> list[str]:
    """The likeliest class of each evaluation instance of a task; of two alike the first.

    Args:
        loaded: The model to measure.
        template: How an instance becomes a prompt, and a class an answer.
        task: With its classes.
        progress: Where to show how far it is.
    """
    windows = []
    for row in task.evaluation:
        prompt = template.prompt_ids(row, loaded.tokenizer)
        for name in task.classes:
            answer = template.target_ids(replace(row, output=name), loaded.tokenizer)
            windows.append(Window(0, (*prompt, *answer), len(prompt)))
    with progress.step(f"choosing a class for each row of {task.name}", len(windows)) as tick:
        losses = np.array(window_losses(loaded, windows, tick)).reshape(len(task.evaluation), len(task.classes))
    return [task.classes[at] for at in losses.argmin(axis=1)]
