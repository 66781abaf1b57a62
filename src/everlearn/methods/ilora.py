"""I-LoRA: a fast adapter learns, a slow one follows it, and the fast one is tied to it on rows of earlier tasks.

    after step n    a = min(1 - 1/(n + 1), keep)        slow = a * slow + (1 - a) * fast        for A and B apart
    from the second task on

        L = (CE_new + CE_memory) / 2 + weight * mean over layers, positions and width of (h_fast - h_slow)^2

with a batch of memory rows as large as the new one. The next task starts from the fast adapter; the slow one, which is
to be the long-term memory, is measured and handed back.

Source: I-LoRA (arXiv 2402.18865; its body could not be read) and its code (which47/LLMCL, read). In that code, and in
EasyCL's, the slow adapter never changes (names are looked up while they are gone through; run), so the tie there is to
the base model; the expression that it means to apply is what is built here. Chosen here: the slow adapter starts as
the fast one, the rows of the memory are those of earlier tasks, the tie is two-sided, and n goes on from stage to
stage (a restart makes the slow adapter forget within a few steps where `keep` is near 1). The preset `faithful` takes
what the code means: keep 0.25 (so the slow adapter is the fast one of a few steps ago), a one-sided tie
(h_fast - max(h_fast, h_slow)), a restart each stage, and the fast adapter measured, which is what it saves. What the
paper's value of `keep` means could not be read: sources use it with opposite meanings.
Cost: the memory's rows in every step, one more forward pass without gradient, one copy of the adapter.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

from pydantic import Field

from everlearn.data.mixture import Group, Mixture
from everlearn.data.reservoir import Memory, Plan, Reservoir, drawn_by
from everlearn.methods.base import Facts, Forecast, Method, MethodOptions, StageContext
from everlearn.methods.registry import register
from everlearn.models.state import MOVING, ModelState, Tuning
from everlearn.training.influence import Influence
from everlearn.training.phase import Phase
from everlearn.training.slow_adapter import Sides, SlowAdapter, TieToSlow

if TYPE_CHECKING:
    import numpy as np


class ILoraOptions(MethodOptions):
    """The slow adapter, the tie to it, and the memory. What is left out takes the preset's value."""

    preset: Literal["improved", "faithful"] = "improved"
    """`faithful`: what the published code means to do; `improved`: a slow adapter that remembers."""
    keep: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Most that the slow adapter keeps of itself in a step: 0.99, `faithful` 0.25."""
    consistency: Sides | None = None
    """Which differences of hidden states count: `two_sided`, `faithful` `one_sided`."""
    weight: Annotated[float, Field(ge=0)] = 1.0
    """Of the tie (the code's)."""
    restart: bool | None = None
    """Whether n starts again with each task: no, `faithful` yes."""
    evaluate: Literal["slow", "fast"] | None = None
    """Which adapter is measured and handed back: `slow`, `faithful` `fast`."""
    capacity: Annotated[int, Field(ge=1)] = 500
    """Rows of the memory, a reservoir over all tasks (the code's)."""

    def resolved(self) -> ILoraOptions:
        """The options with the preset's values."""
        improved = {"keep": 0.99, "consistency": "two_sided", "restart": False, "evaluate": "slow"}
        faithful = {"keep": 0.25, "consistency": "one_sided", "restart": True, "evaluate": "fast"}
        values = improved if self.preset == "improved" else faithful
        missing = {key: value for key, value in values.items() if getattr(self, key) is None}
        return self.model_copy(update=missing)


@register
class ILora(Method):
    """Ties a fast adapter to a slow one that follows it."""

    Options = ILoraOptions
    options: ILoraOptions
    title = "I-LoRA"
    traits = frozenset({"averages weights", "rehearses", "weighs own rows"})
    lora_alone = ("its fast and slow weights are adapters", "has none")

    def __init__(self, options: ILoraOptions) -> None:
        super().__init__(options.resolved())
        self._memory = Memory()
        self._slow: dict[str, np.ndarray] = {}
        self._done = 0

    def forecast(self, context: StageContext, facts: Facts) -> Forecast:
        """From the second task on as many rows of earlier tasks as new ones in every step."""
        rows = [row for task in context.stage.seen for row in task.train]
        most = min(context.training.batch_size, self.options.capacity, len(rows))
        groups = (Group(self.name, rows, per_step=most, is_within=False),) if rows else ()
        return Forecast(Mixture(groups))

    def rehearsal(self, context: StageContext) -> Mixture:
        """From the second task on as many memory rows as new ones in every step, each with half the loss."""
        rows = self._memory.rows(context.stage.seen)
        if not rows:
            return Mixture()
        group = Group(
            self.name,
            rows,
            per_step=context.training.batch_size,
            is_within=False,
            drawn=partial(drawn_by, plan=self._planned(context)),
            weight=0.5,
            mean="own",
        )
        return Mixture((group,), own=(0.5, "own"))

    def _planned(self, context: StageContext) -> partial[Plan]:
        """The plan of a stage by its order."""
        return self._memory.planned(
            len(context.stage.rows),
            Reservoir(self.options.capacity, is_at_once=False),
            count=context.training.batch_size,
            seed=context.random_seed(self.name),
        )

    def phases(self, context: StageContext) -> Sequence[Phase]:
        """One, which carries the fast adapter on."""
        index = context.stage.index
        return [Phase() if index == 1 else Phase(tuning=Tuning(context.phase_of(index - 1, None)))]

    def influences(self, context: StageContext) -> Sequence[Influence]:
        """The slow adapter, and from the second task on the tie to it."""
        options = self.options
        assert options.keep is not None, "the preset has a value"
        assert options.consistency is not None, "the preset has a value"
        slow = SlowAdapter(options.keep, done=0 if options.restart else self._done, slow=self._slow or None)
        if not self._memory.held or not options.weight:
            return [slow]
        return [slow, TieToSlow(slow, self.name, options.weight, options.consistency)]

    def after_stage(self, context: StageContext) -> None:
        """Keeps the slow adapter, and what the memory holds."""
        from everlearn.training.checkpoint import left_by

        assert context.state.folder is not None, "the stage was trained"
        self._slow = left_by(SlowAdapter, context.state.folder)
        self._done += context.steps
        self._memory.follow(self._planned(context)(context.order), context.stage.tasks)

    def released(self, context: StageContext) -> ModelState | None:
        """The slow adapter in the fast one's place."""
        if self.options.evaluate == "fast":
            return None
        (part,) = context.state.parts
        inputs = {"fast": context.state.fingerprint}
        make = partial(_slow_instead, part.folder / part.kind, part.kind, self._slow)
        artifact = context.step("released", inputs, make, version=self.version)
        return ModelState(artifact.fingerprint, (replace(part, folder=artifact.path),), made_of=(context.state,))

    def state_tensors(self) -> dict[str, np.ndarray]:
        """The slow adapter by parameter name."""
        return self._slow

    def state_json(self) -> dict[str, object]:
        """The memory, and the steps that the slow adapter has followed."""
        return {"memory": self._memory.to_json(), "steps": self._done}

    def load_state(self, tensors: Mapping[str, np.ndarray], values: Mapping[str, object]) -> None:
        """Takes them back."""
        self._slow, self._done = dict(tensors), cast("int", values["steps"])
        self._memory.load(cast("Mapping[str, object]", values["memory"]))


def _slow_instead(fast: Path, kind: str, slow: Mapping[str, np.ndarray], folder: Path) -> None:
    """A copy of an adapter's folder with other weights."""
    from safetensors.numpy import save_file

    target = folder / kind
    shutil.copytree(fast, target, dirs_exist_ok=True)
    stored = {name.replace(f".{MOVING}.weight", ".weight"): values for name, values in slow.items()}
    save_file(stored, str(target / "adapter_model.safetensors"), metadata={"format": "pt"})
