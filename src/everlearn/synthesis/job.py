"""What all steps of synthesizing one task share: the task, the settings, the models and the storage."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from everlearn.artifacts import StepRunner
from everlearn.data.instance import Instance, Task
from everlearn.files import write_json, write_jsonl
from everlearn.synthesis.options import Settings, SynthesisOptions, resolve, rows_asked_for
from everlearn.synthesis.parsing import Sifted
from everlearn.synthesis.writers.writer import Writer

if TYPE_CHECKING:
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
        written_by: Belongs to the inputs of every step in which a model writes.
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
    written_by: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Job:
    """One task to be synthesized.

    Attributes:
        task: The task.
        options: As the user gave them.
        settings: With the preset's values.
        writer: Makes the candidates.
        tools: Models and storage.
        is_refined: Whether a model answers the selected inputs.
    """

    task: Task
    options: SynthesisOptions
    settings: Settings
    writer: Writer
    tools: Tools
    is_refined: bool

    @property
    def pool(self) -> tuple[Instance, ...]:
        """The demonstrations."""
        return self.task.demonstrations


def make_job(task: Task, options: SynthesisOptions, tools: Tools, count: int | None = None) -> Job:
    """Fills in the preset's values and chooses the writer.

    Args:
        task: The task.
        options: What to synthesize.
        tools: Models and storage.
        count: Rows asked for; None: `options.ratio` of the training rows.

    Raises:
        DataError: the demonstrations cannot be used.
    """
    asked = rows_asked_for(options.ratio, len(task.train)) if count is None else count
    settings, is_refined = resolve(options, asked), options.is_refined(has_latest=tools.latest is not None)
    return Job(task, options, settings, options.writer(task, settings, is_refined=is_refined), tools, is_refined)


def write_sifted(folder: Path, sifted: Sifted, counts: Mapping[str, object]) -> None:
    """Writes `kept.jsonl`, `rejected.jsonl` and `counts.json`."""
    write_jsonl(folder / "kept.jsonl", (row.to_json() for row in sifted.kept))
    write_jsonl(folder / "rejected.jsonl", sifted.rejected)
    write_json(folder / "counts.json", counts)
