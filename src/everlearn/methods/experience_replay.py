"""Experience replay: rows of a memory are trained beside the new ones in every step.

A step draws `memory_batch` rows from the memory without replacement (all, if it holds fewer) and trains on them and
its own rows as one mean over their answer tokens; afterwards its own rows are offered to the memory. The memory is a
reservoir of `capacity` rows: with k rows offered before, a row takes slot k if k < capacity, else slot u, drawn
uniformly from 0..k, if u < capacity. So every row offered is held with the same probability, and the memory works
within the first stage already.
Source: mammoth's `er` and its reservoir (read), which offers the rows of every epoch (`offer: every_epoch`); offering
each row once is chosen here. What is drawn depends on the order of rows and the seed alone, so a stage's steps are
planned before it is trained; what is kept between stages are the places of the rows held and how many were offered.
Cost: a step takes twice as long where `memory_batch` is the batch size.

With `selection: herding` the memory is chosen when a stage has been trained, and is the same for all steps of the next
one: of every class so far an equal part of `capacity`, those rows whose mean feature (state of the last prompt token
under the model just trained) stays nearest to their class's (`everlearn.data.herding`); older classes keep the first
of theirs. A task without labels counts as one class.
Source: arXiv 2312.07887's released code (read; its `herding` buffer, whose budget the classes so far share).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, model_validator

from everlearn.data.mixture import Group, Mixture
from everlearn.data.reservoir import Memory, Plan, Reservoir, drawn_by
from everlearn.data.words import is_of_words
from everlearn.errors import RecipeError
from everlearn.methods.base import Facts, Forecast, Method, MethodOptions, StageContext
from everlearn.methods.registry import register

if TYPE_CHECKING:
    import numpy as np


class ExperienceReplayOptions(MethodOptions):
    """Size of the memory, and how its rows enter."""

    added = frozenset({"selection"})

    capacity: Annotated[int, Field(ge=1)] = 200
    """Rows of the memory, over all tasks (mammoth: 200, 500 or 5,120)."""
    memory_batch: Annotated[int, Field(ge=1)] | None = None
    """Memory rows in each step, on top of the batch; nothing: as many as a batch has (mammoth)."""
    offer: Literal["first_epoch", "every_epoch"] = "first_epoch"
    """Whether a row is offered to the memory once (chosen here) or in every epoch (mammoth)."""
    mean: Literal["joint", "separate"] = "joint"
    """`joint`: one mean over the answer tokens of new and memory rows (mammoth); `separate`: the mean over new rows
    and `beta` times that over memory rows."""
    selection: Literal["reservoir", "herding"] = "reservoir"
    """How the memory's rows are chosen: a sample of all that came, or of each class those that stand for it best."""
    beta: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the memory's mean; only with `mean: separate`."""

    @model_validator(mode="after")
    def _beta_has_a_mean(self) -> Self:
        if self.mean == "joint" and self.beta != 1.0:
            raise ValueError("beta weighs a mean of the memory's own, so it needs mean: separate")
        if self.selection == "herding" and self.offer != "first_epoch":
            raise ValueError("offer is about the reservoir, so it goes with selection: reservoir")
        return self


@register
class ExperienceReplay(Method):
    """Trains rows of a memory beside the new ones in every step."""

    Options = ExperienceReplayOptions
    options: ExperienceReplayOptions
    traits = frozenset({"rehearses"})

    def __init__(self, options: ExperienceReplayOptions) -> None:
        super().__init__(options)
        self._memory = Memory()

    def check(self, facts: Facts) -> None:
        """Refuses a memory to herd that leaves nothing for each class, or whose rows are words.

        Raises:
            RecipeError: says how many rows it needs.
        """
        if self.options.selection == "herding" and is_of_words(facts.stream):
            raise RecipeError(
                f"method {self.name}: selection: herding takes one state a row, and a row of words has many: set it "
                "to reservoir."
            )
        classes = sum(max(1, len(task.labels)) for task in facts.stream)
        if self.options.selection == "herding" and self.options.capacity < classes:
            raise RecipeError(
                f"method {self.name}: a memory of {self.options.capacity} rows leaves none for each of {classes} "
                f"classes: set capacity to {classes} or more, or selection: reservoir."
            )

    def forecast(self, context: StageContext, facts: Facts) -> Forecast:
        """As many rows in every step, of all that came; to herd, the stage's own are read once."""
        from everlearn.models.features import task_prompts

        stage, options, herds = context.stage, self.options, self.options.selection == "herding"
        count = options.memory_batch or context.training.batch_size
        rows = [row for task in (*stage.seen, *(() if herds else stage.tasks)) for row in task.train]
        most = min(count, options.capacity, len(rows))
        groups = (Group(self.name, rows, per_step=most, is_within=False),) if rows else ()
        read = 0
        for task in stage.tasks if herds else ():
            cut = context.training.max_prompt_tokens
            read += sum(map(len, task_prompts(task, "train", context.template, facts.tokenizer, cut)[1]))
        return Forecast(Mixture(groups), read_tokens=read)

    def rehearsal(self, context: StageContext) -> Mixture:
        """The memory and the stage's own rows, which enter it as the stage goes on."""
        options = self.options
        rows = self._memory.rows(context.stage.seen)
        if options.selection == "reservoir":  # else the stage's own rows are not drawn before the next one
            rows += context.stage.rows
        if not rows:
            return Mixture()
        group = Group(
            self.name,
            tuple(rows),
            per_step=options.memory_batch or context.training.batch_size,
            is_within=False,
            drawn=partial(drawn_by, plan=self._planned(context)),
            weight=options.beta,
            mean="tokens" if options.mean == "joint" else "own",
        )
        return Mixture((group,))

    def _planned(self, context: StageContext) -> partial[Plan]:
        """The plan of a stage by its order."""
        options = self.options
        reservoir = Reservoir(options.capacity, is_once=options.offer == "first_epoch")
        count = options.memory_batch or context.training.batch_size
        seed = context.random_seed(self.name)
        offered = len(context.stage.rows) if options.selection == "reservoir" else 0
        return self._memory.planned(offered, reservoir, count=count, seed=seed)

    def after_stage(self, context: StageContext) -> None:
        """Keeps what the memory holds."""
        if self.options.selection == "herding":
            self._memory.herd(context.stage.seen, context.stage.tasks, self._states(context), self.options.capacity)
            return
        self._memory.follow(self._planned(context)(context.order), context.stage.tasks)

    def _states(self, context: StageContext) -> list[np.ndarray]:
        """Of the training rows of the stage's tasks, (rows, width) each."""
        from everlearn.models.features import kept_prompt_states, read_states, task_prompts

        found, tokenizer = [], context.latest().tokenizer
        for task in context.stage.tasks:
            most = context.training.max_prompt_tokens
            name, prompts, _ = task_prompts(task, "train", context.template, tokenizer, most)
            with context.progress.step(f"reading training rows of {task.name}", len(prompts)) as tick:
                path = kept_prompt_states(
                    context.step,
                    name,
                    context.state.backbone.fingerprint,
                    prompts,
                    context.latest,
                    lambda tick=tick: tick,  # type: ignore[misc]
                )
            found.append(read_states(path))
        return found

    def state_json(self) -> dict[str, object]:
        """The rows held, as places in their tasks, and how many were offered."""
        return self._memory.to_json()

    def load_state(self, tensors: Mapping[str, np.ndarray], values: Mapping[str, object]) -> None:
        """Takes them back."""
        self._memory.load(values)
