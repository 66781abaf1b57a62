"""Progressive prompts: each task learns a few vectors that stand before the tokens of a row; nothing else moves.

    input of task t = [P_t, P_(t-1), ..., P_1, x]        P_i: k vectors, those of earlier tasks frozen

The loss is the cross-entropy of the answer. Task i is answered with [P_i, ..., P_1], so its answers never change once
it is learnt: nothing is forgotten by construction, and whoever asks must know the task. The report marks such runs as
task-incremental; an unknown task is answered with all prompts, as the model after the last stage has them.

Source: Progressive Prompts (arXiv 2301.12314, from memory) and its code (arazd/ProgressivePrompts, read), which puts
the newest prompt first and starts it from random words of the vocabulary; zzz47zzz puts it last. The authors' code
also knows a residual network over each prompt, off by default in its script, which is not built here; it cuts what is
too long for the model by the prompts' length, where rows are refused here. Prompts need far larger rates than
adapters (authors: 0.3 with T5).
PEFT's prompt tuning holds all prompts of a stage as one; the rows of earlier tasks are copied in, their gradient is
set to 0 before clipping, and nothing decays, so they do not move at all. What a stage leaves is loaded by PEFT alone.
Cost: k more positions a row and task; rows are computed padded and not packed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from everlearn.errors import DataError, RecipeError
from everlearn.evaluation.answering import ByTask, TaskRule
from everlearn.methods.base import Facts, Method, MethodOptions, StageContext
from everlearn.methods.registry import register
from everlearn.models.state import MOVING, ModelState, PartSettings, Tuning
from everlearn.training.influence import Influence, OptimizerStep, Training
from everlearn.training.phase import Phase

if TYPE_CHECKING:
    from torch import Tensor

PAST = "past"
"""Name of the part that holds the prompts of all earlier tasks."""
Order = Literal["newest_first", "oldest_first"]


class ProgressivePromptsOptions(MethodOptions):
    """Length of the prompts, and where a new one stands and starts."""

    tokens: Annotated[int, Field(ge=1)] = 10
    """Vectors that each task learns (the authors' code: 10; zzz47zzz: 5)."""
    order: Order = "newest_first"
    """`newest_first` (the authors' code) or `oldest_first` (zzz47zzz)."""
    start: Literal["vocabulary", "random"] = "vocabulary"
    """What new vectors start as: `vocabulary`, those of random tokens (the authors' code); `random`, drawn anew."""


def new_places(tasks: int, tokens: int, order: Order) -> slice:
    """Where the vectors of the newest of so many tasks stand."""
    first = 0 if order == "newest_first" else (tasks - 1) * tokens
    return slice(first, first + tokens)


def assembled(new: Tensor, past: Tensor, order: Order) -> Tensor:
    """The prompts of all tasks, (tokens of all tasks, width).

    Args:
        new: Of the newest task, (tokens, width).
        past: Of the others, as they were assembled before, (tokens of those, width).
        order: Which stand first.
    """
    import torch

    return torch.cat([new, past] if order == "newest_first" else [past, new])


class FrozenPrompts(Influence):
    """Puts the prompts of earlier tasks beside the new one, and keeps them as they are.

    Args:
        tokens: Vectors of each task.
        order: Of the tasks.
    """

    def __init__(self, tokens: int, order: Order) -> None:
        self._tokens, self._order = tokens, order

    def begin(self, training: Training) -> None:
        """Copies the earlier prompts, once."""
        weights = dict(training.model.named_parameters())
        self._frozen: list[int] = []
        for name, prompt in training.parameters.items():
            past = weights.get(name.replace(f".{MOVING}.", f".{PAST}."))
            if past is None or past is prompt:
                continue
            new = new_places(len(prompt) // self._tokens, self._tokens, self._order)
            prompt.data.copy_(assembled(prompt.data[new].clone(), past.detach().to(prompt), self._order))
            self._frozen = [at for at in range(len(prompt)) if not new.start <= at < new.stop]

    def after_backward(self, step: OptimizerStep) -> None:
        """The earlier prompts have no gradient, so clipping does not count them either."""
        for gradient in step.gradients.values():
            gradient[self._frozen] = 0.0


@register
class ProgressivePrompts(Method):
    """Gives each task a soft prompt before those of the tasks before it."""

    Options = ProgressivePromptsOptions
    options: ProgressivePromptsOptions
    Answerer = ByTask
    traits = frozenset({"changes parts", "is told tasks", "keeps tasks apart", "starts elsewhere"})
    lora_alone = ("it learns vectors beside a frozen model", "moves all weights")

    def check(self, facts: Facts) -> None:
        """Refuses full tuning, and rows that leave no room for the prompts.

        Raises:
            RecipeError: says what to change.
        """
        from everlearn.data.prompts import get_template
        from everlearn.evaluation.tasks import check_lengths
        from everlearn.training.rows import check_rows

        super().check(facts)
        stages = len(self.stages(facts.stream))
        room = facts.context_length - stages * self.options.tokens
        template = get_template(facts.model.template_name, facts.tokenizer)
        try:
            for task in facts.stream:
                check_rows(task.train, template, facts.tokenizer, facts.training, room)
                prompts = [template.prompt_ids(row, facts.tokenizer) for row in task.evaluation]
                check_lengths(task, prompts, room)
        except DataError as error:
            raise RecipeError(
                f"method {self.name}: {stages} prompts of {self.options.tokens} tokens leave {room} of the "
                f"{facts.context_length} that the model takes: lower its tokens (method.tokens), or mend this: {error}"
            ) from None

    def phases(self, context: StageContext) -> Sequence[Phase]:
        """One prompt of the length of all tasks' prompts so far, beside the prompts of the stage before."""
        options, index = self.options, context.stage.index
        start = "SAMPLE_VOCAB" if options.start == "vocabulary" else "RANDOM"
        prompt = PartSettings(
            "PROMPT_TUNING", {"num_virtual_tokens": index * options.tokens, "prompt_tuning_init": start}
        )
        past = ModelState(context.state.fingerprint, context.state.as_part(PAST, is_active=False))
        if context.training.weight_decay:
            context.progress.say(
                f"stage {context.stage.name}: training.weight_decay is taken as 0: it would move the prompts of "
                "earlier tasks."
            )
        return [Phase(tuning=Tuning(past, adds={MOVING: prompt}), changes={"weight_decay": 0.0})]

    def influences(self, context: StageContext) -> Sequence[Influence]:
        """From the second stage on the earlier prompts are kept."""
        return [FrozenPrompts(self.options.tokens, self.options.order)] if context.stage.index > 1 else []

    def answerer(self, context: StageContext) -> ByTask:
        """Each task is answered with the prompts that there were when it had been learnt."""
        states = {f"prompts_{at}": context.phase_of(at, None) for at in range(1, context.stage.index + 1)}
        *earlier, last = states
        tasks = {task.name: name for task, name in zip(context.stage.seen, earlier, strict=True)}
        tasks |= {task.name: last for task in context.stage.tasks}
        return ByTask(TaskRule(tasks=tasks, others=last), states)
