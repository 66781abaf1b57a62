"""DER and DER++: rows of a memory are trained beside the new ones, matched to the logits that were kept of them.

    L = CE_new + alpha * mean over memory tokens of a distance from kept logits + beta * CE_memory      beta = 0: DER

The memory is a reservoir (`everlearn.data.reservoir`); each mean is over the answer tokens of its rows in the step.
Source: Buzzega et al., NeurIPS 2020 (arXiv 2004.07211; its formula from memory) and its published code, mammoth
(read), which takes the mean over the classes where the paper takes the sum: its alpha is V times weaker. For a
language model the `top_k` largest logits of a token are kept (chosen here), else a memory would need gigabytes.

Logits are those of the model that has finished the stage in which the row came (as avalanche does; a row can be drawn
from the next stage on), and stay for as long as the row is held. The published code keeps those of the step in which
the row was trained, with dropout; that is not built here, since it is state within a stage. One draw of memory rows
serves both terms here, as in zzz47zzz and avalanche (`draws: two` is mammoth's, at the cost of a third pass). Rows are
real ones of earlier tasks.

Stacked on a method that trains heads the logits are those of all classes that have a head by the end of a stage, and
those of all rows held are made anew then: so z are matched to the model that training starts with, over the classes
before (arXiv 2312.07887's code, which has that model compute along; alpha, beta: its 0.5).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

from pydantic import Field

from everlearn.data.mixture import Group, Mixture
from everlearn.data.reservoir import Memory, Plan, Reservoir, drawn_by
from everlearn.errors import RunError
from everlearn.fingerprints import fingerprint_of
from everlearn.methods.base import Facts, Forecast, Method, MethodOptions, StageContext
from everlearn.methods.registry import register

if TYPE_CHECKING:
    import numpy as np

    from everlearn.artifacts import Artifact
    from everlearn.data.instance import Instance
    from everlearn.training.influence import Influence

_LOGITS = "logits"
_READ_BY_ROWS = ("max_prompt_tokens", "max_target_tokens", "precision")


class DEROptions(MethodOptions):
    """Size of the memory, and how strongly its logits and answers are kept."""

    alpha: Annotated[float, Field(ge=0)] = 0.5
    """Weight of the distance from kept logits (published: 0.1 to 1; zzz47zzz 0.5)."""
    beta: Annotated[float, Field(ge=0)] = 0.5
    """Weight of the memory's cross-entropy (published for DER++: 0.5 or 1); 0: DER."""
    capacity: Annotated[int, Field(ge=1)] = 200
    """Rows of the memory, over all tasks (mammoth: 200, 500 or 5,120)."""
    memory_batch: Annotated[int, Field(ge=1)] | None = None
    """Memory rows in each step, on top of the batch; nothing: as many as a batch has (mammoth)."""
    draws: Literal["one", "two"] = "one"
    """Whether one draw of memory rows serves both terms, or each has its own (mammoth)."""
    offer: Literal["first_epoch", "every_epoch"] = "first_epoch"
    """Whether a row is offered to the memory once (chosen here) or in every epoch (mammoth)."""
    match: Literal["mse", "squared_l2", "kl"] = "mse"
    """Distance of logits: mean of squares over those kept (mammoth's code), their sum (the paper), or the divergence
    of the probabilities over them, for which a constant added to all logits is nothing."""
    top_k: Annotated[int, Field(ge=0)] = 64
    """Logits kept of a token, the largest (chosen here); 0: all, 4 bytes each for every word of the vocabulary."""


@register
class DER(Method):
    """Matches the logits that were kept of a memory's rows."""

    Options = DEROptions
    options: DEROptions
    title = "DER++"
    traits = frozenset({"rehearses"})
    bears_heads = True

    def __init__(self, options: DEROptions) -> None:
        super().__init__(options)
        self._memory = Memory()
        self._kept: dict[str, object] = {}  # inputs of the step that keeps the memory's logits, and its stage

    def forecast(self, context: StageContext, facts: Facts) -> Forecast:
        """As many rows of earlier tasks in every step, once or twice."""
        rows, options = [row for task in context.stage.seen for row in task.train], self.options
        most = min(options.memory_batch or context.training.batch_size, options.capacity, len(rows))
        names = [self.name] if options.draws == "one" or not options.beta else [self.name, f"{self.name}/answers"]
        groups = [Group(name, rows, per_step=most, is_within=False) for name in names if rows]
        return Forecast(Mixture(tuple(groups)), unknown=[f"{self.name}: the logits that it keeps"])

    def rehearsal(self, context: StageContext) -> Mixture:
        """Rows that the memory held when the stage began, in every step."""
        rows = self._memory.rows(context.stage.seen)
        if not rows:
            return Mixture()
        options = self.options
        is_shared = options.draws == "one" or not options.beta
        groups = [self._group(self.name, rows, options.beta if is_shared else 0.0, context)]
        if not is_shared:
            groups.append(self._group(f"{self.name}/answers", rows, options.beta, context))
        return Mixture(tuple(groups))

    def _group(self, name: str, rows: Sequence[Instance], weight: float, context: StageContext) -> Group:
        count = self.options.memory_batch or context.training.batch_size
        drawn = partial(drawn_by, plan=self._planned(context, name))
        return Group(name, tuple(rows), per_step=count, is_within=False, drawn=drawn, weight=weight, mean="own")

    def _planned(self, context: StageContext, purpose: str) -> partial[Plan]:
        """The plan of a stage by its order."""
        options = self.options
        reservoir = Reservoir(options.capacity, is_once=options.offer == "first_epoch", is_at_once=False)
        count = options.memory_batch or context.training.batch_size
        return self._memory.planned(len(context.stage.rows), reservoir, count=count, seed=context.random_seed(purpose))

    def influences(self, context: StageContext) -> Sequence[Influence]:
        """The distance from the logits that were kept, where there are any."""
        from everlearn.training.kept_logits import Matched
        from everlearn.training.row_outputs import RowOutputs

        if not self._memory.held:
            return ()
        found = self._logits(context)
        return [Matched(self.name, RowOutputs(found.path), found.fingerprint, self.options.alpha, self.options.match)]

    def _logits(self, context: StageContext) -> Artifact:
        """The logits of the rows held, by slot, which the last stage has kept.

        Raises:
            RunError: they were deleted; the models that could make them are no more at hand.
        """
        stage, inputs = cast("int", self._kept["stage"]), cast("dict[str, object]", self._kept["inputs"])

        def make(folder: Path) -> None:
            raise RunError(
                f"method {self.name}: the logits that stage {stage} kept of its memory are gone, and are made only "
                "when that stage ends: run the recipe once under another name, which makes them and takes all else "
                "from the cache, and then resume this run."
            )

        return context.steps_of(stage)(_LOGITS, inputs, make)

    def after_stage(self, context: StageContext) -> None:
        """Lets the stage's rows into the memory, and keeps the logits of those that are new in it."""
        if context.stage.is_last:
            return
        if context.state.heads is not None:
            self._keep_classes(context)
            return
        before = len(self._memory.held)
        old = self._logits(context) if before else None
        plan = self._planned(context, self.name)(context.order)
        self._memory.follow(plan, context.stage.tasks)
        rows, training = self._memory.rows((*context.stage.seen, *context.stage.tasks)), context.training
        new = [row for row, item in zip(rows, plan.held, strict=True) if item >= before]

        def make(folder: Path) -> None:
            from everlearn.training.kept_logits import logits_by_row
            from everlearn.training.row_outputs import RowOutputs, write_row_outputs
            from everlearn.training.rows import encode_rows

            latest = context.latest()
            limits = (context.template, latest.tokenizer, training, latest.context_length)
            encoded = encode_rows(new, *limits) if new else []
            made = iter(list(logits_by_row(latest, encoded, training, self.options.top_k)(0)))
            kept = RowOutputs(old.path) if old else None
            every = [kept[item] if kept is not None and item < before else next(made) for item in plan.held]
            write_row_outputs(folder, lambda first: every[first:])

        inputs: dict[str, object] = {
            "model": context.state.fingerprint,
            "old": old and old.fingerprint,
            "held": plan.held,
            "rows": fingerprint_of([row.to_json() for row in rows]),
            "template": context.template.name,
            "training": training.model_dump(mode="json", include=set(_READ_BY_ROWS)),
            "top_k": self.options.top_k,
        }
        context.step(_LOGITS, inputs, make)
        self._kept = {"stage": context.stage.index, "inputs": inputs}

    def _keep_classes(self, context: StageContext) -> None:
        """Lets the stage's rows into the memory, and keeps the heads' logits of all rows in it."""
        self._memory.follow(self._planned(context, self.name)(context.order), context.stage.tasks)
        rows = self._memory.rows((*context.stage.seen, *context.stage.tasks))

        def make(folder: Path) -> None:
            from everlearn.training.kept_logits import class_logits_by_row
            from everlearn.training.row_outputs import write_row_outputs

            assert context.state.heads is not None, "just looked"
            most = context.training.max_prompt_tokens
            found = class_logits_by_row(context.latest(), context.state.heads.folder, rows, context.template, most)
            write_row_outputs(folder, lambda first: found[first:])

        inputs: dict[str, object] = {
            "model": context.state.fingerprint,
            "rows": fingerprint_of([row.to_json() for row in rows]),
            "template": context.template.name,
            "most": context.training.max_prompt_tokens,
        }
        context.step(_LOGITS, inputs, make)
        self._kept = {"stage": context.stage.index, "inputs": inputs}

    def state_json(self) -> dict[str, object]:
        """The rows held, how many were offered, and where their logits stand."""
        return {**self._memory.to_json(), "kept": self._kept}

    def load_state(self, tensors: Mapping[str, np.ndarray], values: Mapping[str, object]) -> None:
        """Takes them back."""
        self._memory.load(values)
        self._kept = cast("dict[str, object]", values["kept"])
