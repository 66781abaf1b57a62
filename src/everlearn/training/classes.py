"""The objective of classification heads: states of prompts, the cross-entropy over classes.

A row is its prompt, and a class counts as an answer's token does (`EncodedRow.classes`): so batches, groups, packing
and shares of processes are those of answers. No answer is computed and no logit of the vocabulary. The state that
predicts a class is the last prompt token's, of a row of words one of each word, and its logits are those of all heads
in play.

    class-incremental   cross-entropy over all heads in play, mean over the rows (or words) of the step
    task-incremental    for each task with rows in the step its mean over its own head, summed

Where the language model does not move and no dropout acts, states are given (`models/features.py`) and the heads alone
are in training, which gives the same weights as passes through the model.

The optimizer is AdamW with torch's defaults, as published: backbone and heads have a rate and a decay each, and all of
their parameters decay (elsewhere in this house vectors do not). What stands still has no gradient and no place in it,
which is what a rate of 0 amounts to (the published way): AdamW's decay is multiplied by the rate.

Source: zzz47zzz/codebase-for-incremental-learning-with-llm (`models/SEQ.py`, `utils/optimizer.py`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING, Any, NoReturn, cast

import torch
from torch import Tensor, nn

from everlearn.data.words import tags_of
from everlearn.errors import DataError
from everlearn.files import write_json
from everlearn.models.features import decoder_within, padded, states_at
from everlearn.models.heads import Heads, class_cross_entropy, load_heads, save_heads, set_prototypes
from everlearn.training.answer_loss import AnswerLoss, Passed
from everlearn.training.answers import Answers, Batch
from everlearn.training.influence import Seen
from everlearn.training.optimizers import adamw
from everlearn.training.packing import Packing
from everlearn.training.phase import HeadTraining
from everlearn.training.rows import EncodedRow

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from everlearn.data.instance import Instance
    from everlearn.data.prompts import PromptTemplate
    from everlearn.data.word_prompts import WordTemplate
    from everlearn.models.loading import LoadedModel
    from everlearn.models.state import Part


class Headed(nn.Module):
    """A language model and the heads over it, as one that is trained.

    Args:
        backbone: The model; None where its states are given.
        heads: Over its states.
        plan: What moves.
    """

    def __init__(self, backbone: nn.Module | None, heads: Heads, plan: HeadTraining) -> None:
        super().__init__()
        self.backbone, self.heads, self.plan = backbone, heads, plan

    @property
    def config(self) -> Any:
        """Of the language model."""
        return self.backbone and self.backbone.config

    @property
    def device(self) -> torch.device:
        """Where the heads are."""
        return next(self.heads.parameters()).device

    def train(self, mode: bool = True) -> Headed:
        """Dropout acts on a frozen backbone only where it is asked for."""
        super().train(mode)
        if self.backbone is not None and not self.plan.moves_backbone and not self.plan.dropout:
            self.backbone.eval()
        return self

    def named_groups(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """What moves of the backbone, and of the heads."""
        both = (
            [[], list(self.heads.parameters())]
            if self.backbone is None
            else [list(self.backbone.parameters()), list(self.heads.parameters())]
        )
        backbone, heads = ([weight for weight in weights if weight.requires_grad] for weights in both)
        return backbone, heads


def make_heads(plan: HeadTraining, width: int, start: Heads | None) -> Heads:
    """The heads of a phase: those that there are go on, the others are new, and what does not move is frozen.

    Args:
        plan: Which there are, and which move.
        width: Of the model's states.
        start: Those that the phase starts from.
    """
    heads = Heads(plan.kind, width, plan.tasks, seed=plan.seed, scale=plan.scale, ahead=plan.ahead)
    if start is not None:
        assert start.tasks == heads.tasks[: len(start.tasks)], "heads are carried on in the order of the tasks"
        heads = heads.to(start.dtype)
        for mine, theirs in zip(heads.of_task, start.of_task, strict=False):
            mine.load_state_dict(theirs.state_dict())
    first = min(at for at, (name, _) in enumerate(plan.tasks) if name in plan.own)
    for head in heads.of_task[:first]:
        head.requires_grad_(plan.moves_old)
    return heads


def make_head_optimizer(
    backbone: Sequence[nn.Parameter],
    heads: Sequence[nn.Parameter],
    plan: HeadTraining,
    *,
    rate: float,
    decay: float,
    optimizer: str = "adamw",
) -> torch.optim.Optimizer:
    """AdamW over both, with a rate and a decay each.

    Args:
        backbone: What moves of it; nothing where it is frozen.
        heads: What moves of them.
        plan: Has the heads' rate and decay.
        rate: Of the backbone.
        decay: Of the backbone.
        optimizer: `training.optimizer`; heads alone have whole moments.
    """
    groups = [
        {"params": list(backbone), "weight_decay": decay, "rate_factor": 1.0},
        {"params": list(heads), "weight_decay": plan.weight_decay, "rate_factor": plan.learning_rate / rate},
    ]
    kind = optimizer if backbone else "adamw"
    return adamw([group for group in groups if group["params"]], rate=rate, optimizer=kind)


def put_heads(
    loaded: LoadedModel, plan: HeadTraining, start: Part | None, states: Mapping[str, np.ndarray] | None
) -> Headed:
    """Puts the heads of a phase over a model, or over given states alone.

    Args:
        loaded: Prepared for training where it moves; its model is not looked at where states are given.
        plan: The heads.
        start: The heads to go on from; None: there are none.
        states: By group of rows.

    Raises:
        ModelError: heads of another model or of other classes.
    """
    if states is not None:
        width = next(iter(states.values())).shape[1]
    else:
        width = loaded.model.config.get_text_config().hidden_size
    heads = make_heads(plan, width, load_heads(start.folder, width=width, tasks=plan.tasks) if start else None)
    if states is not None:
        return Headed(None, heads, plan)
    from everlearn.models.adapters import inner_model

    reached = {id(weight) for weight in decoder_within(inner_model(loaded.model)).parameters()}
    for weight in loaded.model.parameters():  # what the states do not depend on has no gradient
        weight.requires_grad_(plan.moves_backbone and weight.requires_grad and id(weight) in reached)
    return Headed(loaded.model, heads.to(loaded.device), plan)


def make_prototypes(
    folder: Path, plan: HeadTraining, start: Part | None, states: np.ndarray, rows: Sequence[EncodedRow]
) -> None:
    """Makes the heads of a stage's own tasks the means of their classes' states; no step is taken.

    Args:
        folder: Receives heads and summary.
        plan: The heads.
        start: Those to go on from.
        states: Of the stage's rows, one after the other, (states, width).
        rows: The rows.
    """
    heads = make_heads(plan, states.shape[1], load_heads(start.folder, tasks=plan.tasks) if start else None)
    for task in plan.own:
        set_prototypes(heads, task, torch.from_numpy(states), _labels(rows))
    save_heads(heads, folder)
    write_json(folder / "summary.json", {"steps": 0, "rows": len(rows)})


def encode_classes(
    rows: Sequence[Instance],
    plan: HeadTraining,
    template: PromptTemplate,
    tokenizer: PreTrainedTokenizerBase,
    most: int,
    *,
    has_states: bool = False,
) -> list[EncodedRow]:
    """Rows as prompts, each with the places of its classes among all logits.

    Args:
        rows: Of a group.
        plan: The heads.
        template: Makes the prompts.
        tokenizer: The model's.
        most: Tokens at which prompts are cut.
        has_states: Whether their states are given: one token then stands for each prompt.

    Raises:
        DataError: there are no rows, one's answer is no class that has a head, or no word of one has a state; names
            task and row.
    """
    if not rows:
        raise DataError("there are no rows to train on: give the stage's task at least one training row.")
    places = {name: at for at, name in enumerate(name for _, classes in plan.tasks for name in classes)}
    encoded = []
    for number, row in enumerate(rows, 1):
        where = f"task {row.task!r}, training row {row.id or number}"
        prompt = [0] if has_states else template.prompt_ids(row, tokenizer, most)
        answers = [(len(prompt) - 1, row.output)]
        if row.words:
            tags = tags_of(row)
            answers = [(at, tags[word]) for word, at in cast("WordTemplate", template).places(row, tokenizer, most)]
            if not answers:
                raise DataError(
                    f"{where}: none of its words has a token within training.max_prompt_tokens: remove it."
                )
        if (other := next((name for _, name in answers if name not in places), None)) is not None:
            raise DataError(
                f"{where}: its answer {other!r} is none of the {len(places)} classes that have a head by now: mend "
                "the row, or leave it out."
            )
        classes = tuple((at, places[name]) for at, name in answers)
        encoded.append(EncodedRow(tuple(prompt), len(prompt), number=number - 1, classes=classes))
    return encoded


class ClassLoss(AnswerLoss):
    """Losses of heads over a model that is passed through.

    Args:
        headed: Model and heads.
        inner: The model, with or without adapter.
        pad_id: Fills padded batches.
        autocast: Number format of the model's computation; heads compute in their own.
    """

    def __init__(
        self, headed: Headed, inner: PreTrainedModel, *, pad_id: int, autocast: torch.dtype | None = None
    ) -> None:
        super().__init__(inner, pad_id=pad_id, autocast=autocast)
        self._answers = AnswerLoss(inner, pad_id=pad_id, autocast=autocast)
        self.model, self._headed = headed, headed

    @contextmanager
    def packed_where_equal(self, rows: Sequence[EncodedRow]) -> Iterator[bool]:
        """Packs where rows of answers may be packed."""
        with self._answers.packed_where_equal(rows) as is_packed:
            self.is_packed = is_packed
            yield is_packed

    def most_padded(self, most_tokens: int) -> int:
        """No logits of the vocabulary are computed."""
        return most_tokens

    def passed(
        self, part: Packing | Sequence[EncodedRow], *, keeps_text: bool = False, keeps_layers: bool = False
    ) -> Passed:
        """The forward pass; without gradient where the model is frozen."""
        moves = self._headed.plan.moves_backbone
        with nullcontext() if moves else torch.no_grad():
            return super().passed(part, keeps_text=keeps_text, keeps_layers=keeps_layers)

    def _plain(self, rows: Sequence[EncodedRow], keeps_text: bool, keeps_layers: bool) -> Passed:
        ids, mask = (part.to(self.device) for part in padded([row.ids for row in rows], self.pad_id))
        output = decoder_within(self.inner)(input_ids=ids, attention_mask=mask, use_cache=False)
        states = states_at(output.last_hidden_state, [[at for at, _ in row.classes] for row in rows])
        return Passed(states, None, _labels(rows).to(self.device), None, ())

    def seen(
        self, part: Packing | Sequence[EncodedRow], weights: Sequence[float] | None, **keeps: bool
    ) -> tuple[Tensor, Seen]:
        """The weighted sum, and what there is to see: the logits of all heads in play."""
        total, seen = super().seen(part, weights, **keeps)
        return total, replace(seen, states=self._headed.heads(seen.states), head=None)

    def _loss(self, passed: Passed, weights: Tensor | None) -> tuple[Tensor, Tensor, None]:
        plan, heads = self._headed.plan, self._headed.heads
        found = class_cross_entropy(passed.states, heads, passed.targets, weights, within_task=plan.within_task)
        return *found, None


class StatesLoss:
    """Losses of heads over states that are given.

    Args:
        headed: The heads.
        states: By group, in the order of its rows and their words, (states, width).
        rows: All that there are.
    """

    lockstep = None

    def __init__(self, headed: Headed, states: Mapping[str, np.ndarray], rows: Sequence[EncodedRow]) -> None:
        self.model = headed
        self._states = {group: torch.from_numpy(values) for group, values in states.items()}
        self._first: dict[tuple[str, int], int] = {}
        ends = Counter[str]()
        for row in sorted(rows, key=lambda row: row.number):
            self._first[row.group, row.number] = ends[row.group]
            ends[row.group] += len(row.classes)

    def micro_batches(self, rows: Sequence[EncodedRow], most_tokens: int) -> list[list[EncodedRow]]:
        """All rows together."""
        return [list(rows)] if rows else []

    def __call__(self, part: Packing | Sequence[EncodedRow]) -> Tensor:
        """Summed cross-entropy."""
        return self.seen(part, None)[0]

    def seen(
        self, part: Packing | Sequence[EncodedRow], weights: Sequence[float] | None, **_: bool
    ) -> tuple[Tensor, Seen]:
        """The weighted sum, and what there is to see: the logits of all heads in play, and no other view."""
        assert not isinstance(part, Packing), "nothing is packed"
        states = torch.cat(
            [
                self._states[group][
                    [self._first[group, row.number] + at for row in own for at in range(len(row.classes))]
                ]
                for group, own in groupby(part, key=lambda row: row.group)
            ]
        )
        labels, counts = _labels(part), torch.tensor([len(row.classes) for row in part])
        factors = None if weights is None else torch.tensor(weights).repeat_interleave(counts)
        within, heads = self.model.plan.within_task, self.model.heads
        total, each = class_cross_entropy(states, heads, labels, factors, within_task=within)
        row_of = torch.arange(len(part)).repeat_interleave(counts)
        losses = torch.zeros(len(part)).index_add_(0, row_of, each.float())
        return total, Seen(tuple(part), row_of, labels, heads(states), None, losses, None, _no_other_view)

    def look_again(self, part: object) -> None:
        """Nothing is shared."""

    def number_format(self) -> AbstractContextManager[object]:
        """That of the heads."""
        return nullcontext()

    @contextmanager
    def packed_where_equal(self, rows: Sequence[EncodedRow]) -> Iterator[bool]:
        """Nothing is packed."""
        yield False


def _no_other_view(view: object) -> NoReturn:
    raise AssertionError("states are given, and no model could make others")


def _labels(rows: Sequence[EncodedRow]) -> Tensor:
    """The classes of rows, one after the other."""
    return torch.tensor([label for row in rows for _, label in row.classes])


class ClassRows(Answers):
    """The same batches, where a task-incremental loss is the sum of its tasks' means."""

    def __init__(self, plan: HeadTraining, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._task_of = [at for at, (_, classes) in enumerate(plan.tasks) for _ in classes] if plan.within_task else []

    def read(self, step: int) -> Batch:
        """This process's share of a step."""
        batch = super().read(step)
        if not self._task_of:
            return batch
        tasks = [self._task_of[row.classes[0][1]] for row in batch.whole]
        own = batch.factors or {}
        factors = {
            id(row): own.get(id(row), 1 / batch.answers) * batch.answers / tasks.count(task)
            for row, task in zip(batch.whole, tasks, strict=True)
        }
        return replace(batch, factors=factors)
