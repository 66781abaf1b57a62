"""A stream of number tasks, a tiny model, and the context of a stage over them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import Tensor
from torch.nn import Module

from everlearn.data.instance import Task, TaskStream
from everlearn.data.prompts import VanillaTemplate
from everlearn.methods.base import Facts, Method, Stage, StageContext
from everlearn.models.loading import LoadedModel, load_model, load_tokenizer
from everlearn.models.parameters import tuned_parameters
from everlearn.models.state import ModelState, Part
from everlearn.progress import LineProgress
from everlearn.recipe import LoraConfig, ModelConfig, TrainingConfig
from everlearn.training.checkpoint import save_left
from everlearn.training.influence import Training
from everlearn.training.processes import here
from everlearn.training.row_order import Batches
from tests.synthesis.fakes import FakeGenerator, FolderSteps, answer_parity, number_task, write_instances


def number_stream(rows: int = 40, *, labels: bool = False) -> TaskStream:
    """Three tasks whose rows differ in task and instruction."""

    def renamed(name: str) -> Task:
        task = number_task(rows=rows, labels=labels)
        changed = [
            tuple(
                replace(row, task=name, instruction=f"{name}: {row.instruction}", input=f"is the {row.input}")
                for row in part
            )
            for part in (task.train, task.demonstrations)
        ]
        return replace(task, name=name, train=changed[0], demonstrations=changed[1])

    return TaskStream(tuple(renamed(name) for name in ("first", "second", "third")))


def with_classes(stream: TaskStream) -> TaskStream:
    """The stream as a class-incremental one, the answers of each task with its name before them."""

    def own(task: Task) -> Task:
        train = tuple(replace(row, output=f"{task.name} {row.output}") for row in task.train)
        return replace(task, train=train, classes=tuple(dict.fromkeys(row.output for row in train)))

    return replace(stream, tasks=tuple(map(own, stream)), scenario="class_incremental")


def with_walks(stream: TaskStream) -> TaskStream:
    """The stream with something that is thought before each answer."""

    def thought(task: Task) -> Task:
        return replace(task, train=tuple(replace(row, walk=f"so {row.output}") for row in task.train))

    return replace(stream, tasks=tuple(map(thought, stream)))


def tiny_config(folder: Path, tuning: str = "lora") -> ModelConfig:
    """LoRA of rank 2, or full tuning, of the tiny model."""
    return ModelConfig(base=str(folder), tuning=tuning, lora=LoraConfig(rank=2), device="cpu")  # type: ignore[arg-type]


def facts_of(stream: TaskStream, *, context_length: int = 1024, tuning: str = "lora") -> Facts:
    """What is known of a run over the stream with the embedded base."""
    model = ModelConfig(base="embedded", device="cpu", tuning=tuning)  # type: ignore[arg-type]
    return Facts(stream, load_tokenizer(model), context_length, model, TrainingConfig())


class Told(LineProgress):
    """Keeps what is said."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


class Bench:
    """Makes contexts; the engine of the base model writes instances, that of the latest answers them.

    Args:
        folder: For steps.
        model: Folder of a tiny model.
        tuning: How it is tuned.
    """

    def __init__(self, folder: Path, model: Path, tuning: str = "lora") -> None:
        self.folder = folder
        self.config = tiny_config(model, tuning)
        self.latest: LoadedModel = load_model(tiny_config(model, tuning), trainable=True, seed=3)
        self.base = load_model(tiny_config(model, tuning))
        self.writer = FakeGenerator(self.base.tokenizer, write_instances)
        self.answerer = FakeGenerator(self.base.tokenizer, answer_parity)
        self.steps: dict[int, FolderSteps] = {}

    def context(self, stage: Stage, *, seed: int = 0) -> StageContext:
        """The context of a stage."""
        return StageContext(
            stage=stage,
            stream=TaskStream((*stage.seen, *stage.tasks)),
            seed=seed,
            template=VanillaTemplate(),
            model=self.config,
            training=TrainingConfig(),
            step=self._steps(stage.index),
            steps_of=self._steps,
            progress=LineProgress(),
            latest=lambda: self.latest,
            state=ModelState(f"latest-{stage.index}"),
            base=lambda: self.base,
            base_fingerprint="base",
            generator_for=lambda loaded: self.writer if loaded is self.base else self.answerer,
            phase_of=lambda index, name: ModelState(f"phase-{index}-{name}"),
            order=Batches(len(stage.rows), batch_size=8, epochs=1, seed=seed),
        )

    def _steps(self, index: int) -> FolderSteps:
        return self.steps.setdefault(index, FolderSteps(self.folder / str(index)))


def training_of(model: Module) -> Training:
    """What the influences of a phase are told of a model in training."""
    moving = tuned_parameters(model)
    device = next(model.parameters()).device
    return Training(model, moving, [], device, seed=0, steps=1, gradients_of=lambda rows: {})


def penalty_of(method: Method, context: StageContext, model: Module) -> Tensor | None:
    """The sum of the penalties that a method's influences put on a model as it stands."""
    found = []
    for influence in method.influences(context):
        influence.begin(training_of(model))
        found.append(influence.penalty(()))
    return sum(penalty for penalty in found if penalty is not None) if any(p is not None for p in found) else None


def trained(method: Method, context: StageContext, model: Module) -> StageContext:
    """The context after a training that has not moved the model: what influences leave is there."""
    influences = method.influences(context)
    folder = context.step("training", {}, lambda folder: None).path
    for influence in influences:
        influence.begin(training_of(model))
    save_left(folder, influences, here(next(model.parameters()).device))
    return replace(context, state=ModelState(context.state.fingerprint, (Part(folder, "adapter"),)))


def stored_and_loaded(method: Method, fresh: Method, folder: Path) -> Method:
    """`fresh` with the state of `method`, through files as the stage loop writes them."""
    import json

    from safetensors.numpy import load_file, save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file(dict(method.state_tensors()), folder / "state.safetensors")
    values = json.loads(json.dumps(method.state_json()))
    fresh.load_state(load_file(folder / "state.safetensors"), values)
    return fresh


def equal_tensors(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> bool:
    """Same names and same bits."""
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)
