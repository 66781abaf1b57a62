"""What all steps of synthesizing one task share: the task, the settings, the models and the storage."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from everlearn.artifacts import StepRunner
from everlearn.data.control_tokens import plain_ids
from everlearn.data.instance import Instance, Task
from everlearn.files import write_json, write_jsonl
from everlearn.synthesis.demonstrations import Layout, check_demonstrations, layout_of
from everlearn.synthesis.options import Settings, SynthesisOptions, resolve, rows_asked_for
from everlearn.synthesis.parsing import Candidate, Counters, Sifted

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from everlearn.data.prompts import PromptTemplate
    from everlearn.generation.protocol import Generator
    from everlearn.models.loading import LoadedModel
    from everlearn.progress import Progress
    from everlearn.recipe import TrainingConfig


@dataclass(frozen=True)
class Tools:
    """Models and storage; a model is loaded only when a step has to be made.

    Attributes:
        step: Keeps the results of steps.
        base: The base model theta(0).
        base_fingerprint: Identifies it.
        generator_for: A generation engine over a loaded model.
        template: Of training.
        training: How the models are trained.
        progress: Where to show what goes on.
        seed: Of the run.
        latest: The model that has just learnt the task; None: no refinement.
        latest_fingerprint: Identifies it.
    """

    step: StepRunner
    base: Callable[[], LoadedModel]
    base_fingerprint: str
    generator_for: Callable[[LoadedModel], Generator]
    template: PromptTemplate
    training: TrainingConfig
    progress: Progress
    seed: int
    latest: Callable[[], LoadedModel] | None = None
    latest_fingerprint: str = ""


@dataclass(frozen=True)
class Job:
    """One task to be synthesized.

    Attributes:
        task: The task.
        options: As the user gave them.
        settings: With the preset's values.
        layout: Of prompts and parser.
        tools: Models and storage.
        is_refined: Whether the latest model answers the selected inputs.
    """

    task: Task
    options: SynthesisOptions
    settings: Settings
    layout: Layout
    tools: Tools
    is_refined: bool

    @property
    def pool(self) -> tuple[Instance, ...]:
        """The demonstrations."""
        return self.task.demonstrations

    @property
    def plan(self) -> tuple[int, int]:
        """Prompts to use and samples of each."""
        return self.settings.plan(math.perm(len(self.pool), self.options.demonstrations))

    def compared(self, row: Candidate | Instance) -> str:
        """What tells instances apart: the input alone, or with the instruction where that is invented too."""
        return row.input if self.layout == "superni" else row.query


def make_job(task: Task, options: SynthesisOptions, tools: Tools, count: int | None = None) -> Job:
    """Checks the demonstrations and fills in the preset's values.

    Args:
        task: The task.
        options: What to synthesize.
        tools: Models and storage.
        count: Rows asked for; None: `options.ratio` of the training rows.

    Raises:
        DataError: the demonstrations cannot be used.
    """
    check_demonstrations(task.name, task.demonstrations, options.demonstrations, options.layout)
    asked = rows_asked_for(options.ratio, len(task.train)) if count is None else count
    layout = layout_of(task.demonstrations) if options.layout == "auto" else options.layout
    is_refined = options.refine and tools.latest is not None
    return Job(task, options, resolve(options, asked), layout, tools, is_refined)


def counters_of(tokenizer: PreTrainedTokenizerBase) -> Counters:
    """Token counts by the model's own tokenizer.

    The published counts are by one fixed tokenizer each (P10): the language model's with BOS, the embedding model's
    with two special tokens; here the model's own stands for both.
    """

    @cache
    def count(text: str) -> int:
        return len(plain_ids(text, tokenizer))

    return Counters(text=lambda text: 1 + count(text), embedded=lambda text: 2 + count(text))


def write_sifted(folder: Path, sifted: Sifted, counts: Mapping[str, object]) -> None:
    """Writes `kept.jsonl`, `rejected.jsonl` and `counts.json`."""
    write_jsonl(folder / "kept.jsonl", (row.to_json() for row in sifted.kept))
    write_jsonl(folder / "rejected.jsonl", sifted.rejected)
    write_json(folder / "counts.json", counts)
