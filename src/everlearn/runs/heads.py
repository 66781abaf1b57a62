"""Classification heads in a run: trained on kept states of a frozen model, and asked for a task's classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from everlearn.data.instance import Task, TaskStream
from everlearn.data.mixture import OWN, Mixture
from everlearn.data.word_prompts import WordTemplate, places_in
from everlearn.data.words import OUTSIDE
from everlearn.models.state import ModelState
from everlearn.progress import Progress

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedTokenizerBase

    from everlearn.artifacts import StepRunner
    from everlearn.data.prompts import PromptTemplate
    from everlearn.methods.base import Stage
    from everlearn.models.features import Part, Places
    from everlearn.models.loading import LoadedModel
    from everlearn.training.phase import Phase

BY_HEADS = "head"
"""Why an answer that no token was written for ends."""


class States:
    """States of prompts under a model, each computed once and kept.

    Args:
        step: Runs steps below the stage at hand.
        template: How an instance becomes a prompt.
        tokenizer: The model's.
        most: Tokens at which prompts of training rows are cut.
        open_model: Loads a model without its heads.
        progress: Where to show what goes on.
    """

    def __init__(
        self,
        step: StepRunner,
        template: PromptTemplate,
        tokenizer: PreTrainedTokenizerBase,
        most: int,
        open_model: Callable[[ModelState], LoadedModel],
        progress: Progress,
    ) -> None:
        self._step, self._template, self._tokenizer, self._most = step, template, tokenizer, most
        self._open, self._progress = open_model, progress

    def of_training(self, state: ModelState, stage: Stage, mixture: Mixture) -> dict[str, np.ndarray]:
        """Those of a stage's training rows by group, one after the other.

        Args:
            state: The model.
            stage: The stage; of earlier tasks' rows the states stand from their own stages.
            mixture: What is rehearsed.
        """
        import numpy as np

        asked = {row.task for group in mixture.groups if not group.template for row in group.rows}
        rows = [(task.train, self._of_task(state, task, "train")) for task in stage.tasks]
        found = {OWN: np.concatenate([states for _, of_task in rows for states in of_task])}
        rows += [(task.train, self._of_task(state, task, "train")) for task in stage.seen if task.name in asked]
        real = {row: states for task, of_task in rows for row, states in zip(task, of_task, strict=True)}
        for group in mixture.groups:
            known = {} if group.template else real
            if others := [row for row in group.rows if row not in known]:
                worded, most = group.template or self._template, self._most
                prompts = [worded.prompt_ids(row, self._tokenizer, most) for row in others]
                places = places_in(others, worded, self._tokenizer, most)
                states = iter(self._of(state, f"{group.name}/rehearsed", prompts, places))
            if group.rows:
                found[group.name] = np.concatenate(
                    [known[row] if row in known else next(states) for row in group.rows]
                )
        return found

    def answers(self, state: ModelState, task: Task, stream: TaskStream) -> list[str]:
        """What heads answer to a task's held-out rows: a class, or a tag for each word.

        A task without a head yet is asked of all heads that there are, in a task-incremental stream too. A word
        without a state is `O`.

        Args:
            state: Has the heads, which must be those of the stream's classes.
            task: Whose rows are asked.
            stream: Says whether the task is known.
        """
        import numpy as np

        from everlearn.models.heads import best_classes, load_heads

        assert state.heads is not None, "the model answers by heads"
        states = np.concatenate(self._of_task(state, task, "evaluation"))
        tasks = [(one.name, one.classes) for one in stream]
        heads = load_heads(state.heads.folder, width=states.shape[1], tasks=tasks)
        found = best_classes(states, heads, task.name if stream.scenario == "task_incremental" else None)
        if not isinstance(self._template, WordTemplate):
            return found
        tags, left = [], iter(found)
        for row in task.evaluation:
            of_row = {word: next(left) for word, _ in self._template.places(row, self._tokenizer)}
            tags.append(" ".join(of_row.get(word, OUTSIDE) for word in range(len(row.words))))
        return tags

    def _of_task(self, state: ModelState, task: Task, part: Part) -> list[np.ndarray]:
        from everlearn.models.features import task_prompts

        return self._of(state, *task_prompts(task, part, self._template, self._tokenizer, self._most))

    def _of(
        self, state: ModelState, name: str, prompts: Sequence[Sequence[int]], places: Places | None
    ) -> list[np.ndarray]:
        """Of each prompt, (states, width)."""
        import numpy as np

        from everlearn.models.features import kept_prompt_states, read_states

        backbone = state.backbone

        def open_model() -> LoadedModel:
            self._progress.say(f"reading {len(prompts):,} prompts of {name}")
            return self._open(backbone)

        kept = kept_prompt_states(self._step, name, backbone.fingerprint, prompts, open_model, places=places)
        sizes = [1] * len(prompts) if places is None else [len(own) for own in places]
        return np.split(read_states(kept), np.cumsum(sizes)[:-1])


def train_heads(
    folder: Path,
    states: Mapping[str, np.ndarray],
    tokenizer: PreTrainedTokenizerBase,
    context_length: int,
    stage: Mapping[str, Any],
    progress: Progress,
) -> None:
    """Trains heads on given states, or makes prototypes of them; no model is loaded.

    Args:
        folder: Receives history, summary and heads.
        states: By group of rows.
        tokenizer: The model's.
        context_length: The model's.
        stage: Arguments of `train_stage` beside those of this function.
        progress: Where to show what goes on.
    """
    import torch

    from everlearn.models.heads import note_weights
    from everlearn.models.loading import LoadedModel
    from everlearn.training.classes import encode_classes, make_prototypes
    from everlearn.training.stage import train_stage

    tuning, phase = stage["tuning"], cast("Phase", stage["phase"])
    of_start = tuning.start.fingerprint
    loaded = LoadedModel(cast(Any, None), tokenizer, of_start, of_start, context_length, torch.device("cpu"))
    assert phase.heads is not None, "the phase trains heads"
    if phase.heads.kind == "prototype":
        most = stage["config"].max_prompt_tokens
        rows = encode_classes(stage["rows"], phase.heads, stage["template"], tokenizer, most, has_states=True)
        make_prototypes(folder, phase.heads, tuning.start.heads, states[OWN], rows)
    else:
        train_stage(loaded, **stage, states=states, folder=folder, progress=progress)
    note_weights(folder, tuning.start.folder)
