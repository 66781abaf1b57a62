"""One LoRA a task: each task trains an adapter of its own on the base, and its rows are answered with that one.

Nothing is shared, so nothing is forgotten and nothing is passed on; whoever asks must know the task. The report marks
such runs as task-incremental. An unknown task is answered with the last adapter. The study around SEQ* (arXiv
2312.07887) has it as `PEFT` with a head a task; here the answers are words, as those of the base's other methods.
"""

from __future__ import annotations

from collections.abc import Sequence

from everlearn.evaluation.answering import ByTask, TaskRule
from everlearn.methods.base import Method, StageContext
from everlearn.methods.registry import register
from everlearn.models.state import ModelState, Tuning
from everlearn.training.phase import Phase


@register
class TaskLora(Method):
    """Gives each task an adapter of its own, from the base."""

    title = "one LoRA a task"
    Answerer = ByTask
    traits = frozenset({"is told tasks", "keeps tasks apart", "starts elsewhere"})
    lora_alone = ("it keeps an adapter for each task", "would leave as many whole models")

    def phases(self, context: StageContext) -> Sequence[Phase]:
        """One, from the base model."""
        return [Phase(tuning=Tuning(ModelState(context.base_fingerprint)))]

    def answerer(self, context: StageContext) -> ByTask:
        """Each task is answered with the adapter that it has trained."""
        stage = context.stage
        states = {f"adapter_{at}": context.phase_of(at, None) for at in range(1, stage.index + 1)}
        *earlier, last = states
        tasks = {task.name: name for task, name in zip(stage.seen, earlier, strict=True)}
        return ByTask(TaskRule(tasks=tasks | {task.name: last for task in stage.tasks}, others=last), states)
