"""Classification heads over the states of a causal model, one a task, as a part of a model state.

    linear      W h + b, as torch initialises it
    cosine      (W_c / |W_c|) . (h / |h|), no bias, scale 1 unless asked; W ~ U(-1/sqrt(d), 1/sqrt(d))
    prototype   the same with W_c the mean of the states of class c

h is the state at the last token of a prompt, or at a token of each of its words (`features.py`). Cosine logits lie in
[-1, 1]: with K classes the cross-entropy cannot fall below log(1 + (K-1) e^-2), which is a part of why old heads go on
competing. The published code normalises the axis 1 of its input, which is the width of (rows, width) and the sequence
of (rows, length, width); here it is the width of both, and `over_sequence` gives the published one.

On disk (`heads/` beside an adapter, or alone): `heads.safetensors` with `0.weight`, `0.bias`, ... in the order of the
tasks, and `heads.json` with kind, width, the class names of each task in the order of their columns, how many of the
last tasks are to come (`ahead`), and the hash of the weights that they stand over (empty: the base's). States that
heads read are float32, and so are they.

Source: zzz47zzz/codebase-for-incremental-learning-with-llm (`utils/classifier.py`), of arXiv 2312.07887.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear, normalize

from everlearn.artifacts import read_record
from everlearn.checking import checked
from everlearn.errors import ModelError, RecipeError
from everlearn.files import read_mapping, sha256_of, write_json
from everlearn.fingerprints import fingerprint_of
from everlearn.models.folders import check_tensors
from everlearn.models.json_files import read_object
from everlearn.models.state import HEADS, HeadKind
from everlearn.ordinary_files import shown
from everlearn.recipe import Section
from everlearn.seeds import derive

if TYPE_CHECKING:
    import numpy as np

Classes = Sequence[tuple[str, Sequence[str]]]
"""Tasks in order of arrival and the names of their classes, in the order of the columns."""
SETTINGS, TENSORS = "heads.json", "heads.safetensors"


class Head(nn.Module):
    """The head of one task.

    Args:
        kind: How states become logits.
        width: Of the states.
        classes: How many.
        seed: Of the first values.
        scale: Factor of cosines.
    """

    def __init__(self, kind: HeadKind, width: int, classes: int, *, seed: int, scale: float = 1.0) -> None:
        super().__init__()
        self.kind, self.scale = kind, scale
        bound = 1 / math.sqrt(width)
        drawn = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.empty(classes, width).uniform_(-bound, bound, generator=drawn))
        bias = torch.empty(classes).uniform_(-bound, bound, generator=drawn) if kind == "linear" else None
        self.bias = nn.Parameter(bias) if bias is not None else None

    def forward(self, states: Tensor) -> Tensor:
        """Logits (..., classes) of states (..., width)."""
        if self.kind == "linear":
            return linear(states, self.weight, self.bias)
        return self.scale * cosine_logits(states, self.weight)


def cosine_logits(states: Tensor, weight: Tensor, *, over_sequence: bool = False) -> Tensor:
    """Cosines of states (..., width) and rows of `weight` (classes, width).

    Args:
        states: (rows, width), or (rows, length, width).
        weight: Of the head.
        over_sequence: Published: axis 1 of the states is normalised, the sequence of (rows, length, width).
    """
    return linear(normalize(states, dim=1 if over_sequence else -1), normalize(weight, dim=-1))


class Heads(nn.Module):
    """The heads of tasks, in order of arrival.

    Args:
        kind: Of all of them.
        width: Of the states.
        tasks: Names and classes.
        seed: Of the first values, which depend on it and on the place of the task alone.
        scale: Factor of cosines (published: none).
        ahead: How many of the last ones are tasks to come: trained as wrong answers, and never asked.
    """

    def __init__(
        self, kind: HeadKind, width: int, tasks: Classes, *, seed: int = 0, scale: float = 1.0, ahead: int = 0
    ) -> None:
        super().__init__()
        self.kind, self.width, self.scale, self.ahead = kind, width, scale, ahead
        self.tasks = tuple((name, tuple(classes)) for name, classes in tasks)
        self.of_task = nn.ModuleList(
            Head(kind, width, len(classes), seed=derive(seed, "head", at), scale=scale)
            for at, (_, classes) in enumerate(self.tasks)
        )

    @property
    def classes(self) -> tuple[str, ...]:
        """All classes in the order of the logits."""
        return tuple(name for _, classes in self.tasks for name in classes)

    @property
    def known(self) -> tuple[str, ...]:
        """The classes of all tasks so far."""
        return tuple(name for _, classes in self.tasks[: len(self.tasks) - self.ahead] for name in classes)

    @property
    def dtype(self) -> torch.dtype:
        """In which they compute."""
        return next(self.parameters()).dtype

    @property
    def each(self) -> list[Head]:
        """The head of each task."""
        return [head for head in self.of_task if isinstance(head, Head)]

    def columns(self, task: str) -> slice | None:
        """Where the classes of a task stand among the logits; None: it has no head."""
        first = 0
        for name, classes in self.tasks:
            if name == task:
                return slice(first, first + len(classes))
            first += len(classes)
        return None

    def forward(self, states: Tensor) -> Tensor:
        """Logits of all heads beside each other, (..., classes of all tasks), in the number format of the heads."""
        weight = torch.cat([head.weight for head in self.each])
        with torch.autocast(states.device.type, enabled=False):
            states = states.to(self.dtype)
            if self.kind != "linear":
                return self.scale * cosine_logits(states, weight)
            return linear(states, weight, torch.cat([head.bias for head in self.each if head.bias is not None]))


def class_cross_entropy(
    states: Tensor, heads: Heads, labels: Tensor, weights: Tensor | None = None, *, within_task: bool = False
) -> tuple[Tensor, Tensor]:
    """Weighted sum of cross-entropies, and each of them detached.

    Args:
        states: (rows, width).
        heads: All of those in play.
        labels: Place of each row's class among all logits, (rows,).
        weights: Of the rows; None: 1.
        within_task: Task-incremental: the softmax of a row runs over the classes of its own task, and a head without
            rows has no gradient at all (with one of 0 it would decay).
    """
    with torch.autocast(states.device.type, enabled=False):
        states = states.to(heads.dtype)
        if within_task:
            each = states.new_zeros(len(states))
            for at, (name, _) in enumerate(heads.tasks):
                columns = heads.columns(name)
                assert columns is not None, "the task has a head"
                own = ((labels >= columns.start) & (labels < columns.stop)).nonzero()[:, 0]
                if len(own):
                    logits = heads.of_task[at](states[own])
                    each = each.index_add(0, own, cross_entropy(logits, labels[own] - columns.start, reduction="none"))
        else:
            each = cross_entropy(heads(states), labels, reduction="none")
        return (each if weights is None else weights * each).sum(), each.detach()


@torch.no_grad()
def set_prototypes(heads: Heads, task: str, states: Tensor, labels: Tensor) -> None:
    """Makes the weights of a task's head the means of its classes' states, as they are (not normalised).

    A class without rows, as an `I-` tag may be, has a weight of zeros.

    Args:
        heads: Gets the means.
        task: Whose head.
        states: (rows, width).
        labels: Place of each row's class among the logits of all heads; rows of other tasks do not count.
    """
    columns = heads.columns(task)
    assert columns is not None, "the task has a head"
    head = heads.each[[name for name, _ in heads.tasks].index(task)]
    for place, label in enumerate(range(columns.start, columns.stop)):
        own = states[labels == label]
        head.weight[place] = own.sum(0) / max(len(own), 1)


def best_classes(states: np.ndarray, heads: Heads, task: str | None) -> list[str]:
    """The class of the greatest logit of each state.

    Args:
        states: (rows, width).
        heads: Those of tasks to come are not asked.
        task: Whose classes are asked for; None, or one that is to come or has no head: those of all tasks so far.
    """
    known = len(heads.known)
    own = heads.columns(task) if task else None
    columns = own if own and own.stop <= known else slice(known)
    with torch.inference_mode():
        logits = heads(torch.from_numpy(states))[:, columns]
    names = heads.classes[columns]
    return [names[at] for at in logits.argmax(1).tolist()]


class _Task(Section):
    name: str
    classes: Annotated[list[str], Field(min_length=1)]


class _Settings(Section):
    over: str = ""
    kind: HeadKind
    width: Annotated[int, Field(ge=1, le=1 << 20)]
    scale: Annotated[float, Field(gt=0, le=1e6)] = 1.0
    tasks: Annotated[list[_Task], Field(min_length=1)]
    ahead: Annotated[int, Field(ge=0)] = 0


def save_heads(heads: Heads, folder: Path) -> None:
    """Writes `heads/` into a folder.

    Raises:
        RunError: the disk is full or the folder cannot be written to.
    """
    from safetensors.torch import save_file

    inner = folder / HEADS
    inner.mkdir(parents=True, exist_ok=True)
    tensors = {
        name.removeprefix("of_task."): weight.detach().cpu().contiguous() for name, weight in heads.named_parameters()
    }
    save_file(tensors, inner / TENSORS, metadata={"format": "pt"})
    tasks = [{"name": name, "classes": list(classes)} for name, classes in heads.tasks]
    about = {"kind": heads.kind, "width": heads.width, "scale": heads.scale, "tasks": tasks}
    write_json(inner / SETTINGS, about | ({"ahead": heads.ahead} if heads.ahead else {}))


def note_weights(folder: Path, beneath: Path | None) -> None:
    """Writes into the settings of a folder's heads which weights they were trained over.

    Args:
        folder: That `heads/` stands in.
        beneath: Checkpoint folder of those weights; None: the base's.
    """
    path = folder / HEADS / SETTINGS
    write_json(path, {**read_mapping(path), "over": weights_hash(beneath)})


def weights_hash(checkpoint: Path | None) -> str:
    """Identifies the weights of a checkpoint, not its settings, which name a place; empty for those of the base."""
    if checkpoint is None:
        return ""
    record = read_record(checkpoint)
    sums = {}
    for inner in (checkpoint, checkpoint / "adapter", checkpoint / "model"):
        for file in sorted((*inner.glob("adapter_model*.safetensors"), *inner.glob("model*.safetensors"))):
            known = record and record.files.get(file.relative_to(checkpoint).as_posix())
            sums[file.name] = known[1] if known else sha256_of(file)
    return fingerprint_of(sums) if sums else ""


def check_weights(folder: Path, beneath: Path | None) -> None:
    """Refuses heads over other weights than those that they were trained over.

    Raises:
        ModelError: says what to give instead.
    """
    settings = read_mapping(folder / HEADS / SETTINGS)
    if settings.get("over", "") != weights_hash(beneath):
        raise ModelError(
            f"the heads in {shown(folder / HEADS)} were trained over other weights than "
            f"{'the base, which is all that stands there' if beneath is None else 'those beside them'}: give the "
            "folder that holds both, such as the 'model' folder of their run."
        )


def load_heads(folder: Path, *, width: int | None = None, tasks: Classes | None = None) -> Heads:
    """Reads the heads of a folder.

    Args:
        folder: That `heads/` stands in.
        width: Of the model's states; None: whatever they were made for.
        tasks: That they must belong to, those behind them not counted; None: any.

    Raises:
        ModelError: a file is missing or damaged, or the heads belong to another model or other classes.
    """
    from safetensors.torch import load_file

    inner = folder / HEADS
    what, remedy = f"the heads in {shown(inner)}", "take the heads of this model's own run, or train them again"
    check_tensors(inner, [TENSORS], what, remedy)
    try:
        settings = checked(_Settings, read_object(inner / SETTINGS, what), where=SETTINGS)
    except RecipeError as error:
        raise ModelError(f"{what}: {str(error).removesuffix('.')}: {remedy}.") from None
    stored = [(task.name, tuple(task.classes)) for task in settings.tasks]
    if tasks is not None:
        refuse_other_classes(stored, tasks, what, remedy)
    if width is not None and width != settings.width:
        raise ModelError(f"{what} read states of width {settings.width}, and this model's have {width}: {remedy}.")
    heads = Heads(settings.kind, settings.width, stored, scale=settings.scale, ahead=settings.ahead)
    tensors = load_file(inner / TENSORS)
    wanted = {name: tuple(weight.shape) for name, weight in heads.of_task.named_parameters()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    is_finite = all(torch.isfinite(tensor).all() for tensor in tensors.values())
    if found != wanted or not is_finite or settings.ahead >= len(stored):
        raise ModelError(f"{what}: {TENSORS} does not hold what {SETTINGS} says: {remedy}.")
    heads.of_task.load_state_dict(tensors)
    return heads


def refuse_other_classes(stored: Classes, tasks: Classes, what: str, remedy: str) -> None:
    """Refuses heads of other classes than those of a stream, or of the same in another order.

    Raises:
        ModelError: names the task, and the first class that differs.
    """
    for at, (name, classes) in enumerate(stored):
        own = tasks[at] if at < len(tasks) else ("", ())
        if own[0] != name:
            raise ModelError(
                f"{what} are of the task {shown(name)!r} where this stream has "
                f"{shown(own[0]) + ' (its classes differ)' if own[0] else 'none'}: {remedy}."
            )
        if list(classes) != list(own[1]):
            differ = [(a, b) for a, b in zip(classes, own[1], strict=False) if a != b]
            how = (
                f"their {shown(differ[0][0])!r} is {shown(differ[0][1])!r} there"
                if differ
                else f"they have {len(classes)} classes, there are {len(own[1])}"
            )
            raise ModelError(f"{what} belong to another class list of the task {shown(name)!r} ({how}): {remedy}.")
