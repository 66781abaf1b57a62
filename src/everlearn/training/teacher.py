"""What a teacher says of rows, computed once: its states by row, and what is needed to read them.

The pass is that of training (the same path, the same number format), in evaluation mode and without gradients: else
rounding alone would tell teacher and pupil apart. Logits are made again from states by the head, which is kept as well
where training moves it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from everlearn.devices import autocast_format
from everlearn.errors import ModelError, UserError
from everlearn.files import unfinished, write_error
from everlearn.fingerprints import fingerprint_of
from everlearn.models.batching import ran_out_of_memory, release_device_memory
from everlearn.training.answer_loss import AnswerLoss
from everlearn.training.bands import band_of, mean_and_deviation, pack_states, states_in
from everlearn.training.losses import head_of
from everlearn.training.row_outputs import RowOutputs, write_row_outputs
from everlearn.training.rows import encode_rows

if TYPE_CHECKING:
    from everlearn.artifacts import StepRunner
    from everlearn.data.instance import Instance
    from everlearn.data.prompts import PromptTemplate
    from everlearn.models.loading import LoadedModel
    from everlearn.progress import Progress, Tick
    from everlearn.recipe import TrainingConfig
    from everlearn.training.losses import Head
    from everlearn.training.rows import EncodedRow

STATES = "states"
BAND = "band.safetensors"
"""Beside a teacher's outputs: `band`, (2, width), where bands are kept of its states."""
_HEAD = "head.safetensors"
_AT_ONCE = 256  # rows whose states are held together, in the order of their lengths
_MOST_TOKENS = {"cpu": 2048}


@dataclass(frozen=True)
class Teacher:
    """A teacher's outputs on disk.

    Attributes:
        outputs: By row number.
        fingerprint: Of all that they depend on.
    """

    outputs: RowOutputs
    fingerprint: str

    @classmethod
    def at(cls, folder: Path, fingerprint: str) -> Teacher:
        """The one whose outputs stand in a folder."""
        return cls(RowOutputs(folder), fingerprint)

    def head(self, device: torch.device) -> Head | None:
        """The teacher's output head, where it was kept."""
        path = self.outputs.folder / _HEAD
        if not path.exists():
            return None
        kept = load_file(path)
        bias = kept.get("bias")
        return kept["weight"].to(device), None if bias is None else bias.to(device)


def kept_teacher(
    step: StepRunner,
    name: str,
    model: Callable[[], LoadedModel],
    fingerprint: str,
    rows: Sequence[Instance],
    template: PromptTemplate,
    config: TrainingConfig,
    progress: Progress,
    *,
    keeps_head: bool,
) -> Teacher:
    """A teacher's outputs at the answers of a stage's rows, made in a step or found.

    Args:
        step: Of the stage.
        name: Of the step.
        model: The teacher, loaded when it is asked for.
        fingerprint: Of its weights.
        rows: Of the stage.
        template: How an instance becomes a prompt.
        config: How the stage is trained.
        progress: Where to show what goes on.
        keeps_head: Whether training moves the output head.
    """
    inputs = {
        "model": fingerprint,
        "rows": fingerprint_of([row.to_json() for row in rows]),
        "template": template.name,
        "cut": [config.max_prompt_tokens, config.max_target_tokens],
        "precision": config.precision,
        "head": keeps_head,
    }

    def make(folder: Path) -> None:
        loaded = model()
        encoded = encode_rows(rows, template, loaded.tokenizer, config, loaded.context_length)
        with progress.step("outputs of the teacher", len(encoded)) as tick:
            keep_states(folder, loaded, encoded, config, tick, keeps_head=keeps_head)

    made = step(name, inputs, make)
    return Teacher.at(made.path, made.fingerprint)


def try_teacher(
    loaded: LoadedModel, rows: Sequence[Instance], template: PromptTemplate, config: TrainingConfig
) -> None:
    """Tries on a few rows whether outputs can be kept.

    Raises:
        ModelError: they would be all logits.
    """
    encoded = encode_rows(rows[:2], template, loaded.tokenizer, config, loaded.context_length)
    for _ in states_by_row(loaded, encoded, config)(0):
        pass


def states_by_row(
    loaded: LoadedModel,
    rows: Sequence[EncodedRow],
    config: TrainingConfig,
    tick: Tick | None = None,
) -> Callable[[int], Iterator[Tensor]]:
    """A teacher's states of rows, from a row on: of all tokens of raw text, else those that predict the answer.

    Args:
        loaded: The teacher.
        rows: As they will be trained on.
        config: How they will be trained on.
        tick: Called with (rows done, rows in all).

    Raises:
        ModelError: logits of answers are not made of states by the output head alone.
    """
    loss = AnswerLoss(
        loaded.model,
        pad_id=int(loaded.tokenizer.pad_token_id),
        autocast=autocast_format(config.precision, loaded.device),
    )

    def of_rows(first: int) -> Iterator[Tensor]:
        most = config.micro_batch_tokens or _MOST_TOKENS.get(loaded.device.type, 32768)
        with loss.packed_where_equal(rows):
            for start in range(first, len(rows), _AT_ONCE):
                some = rows[start : start + _AT_ONCE]
                while True:
                    try:
                        yield from _states(loss, some, most)
                        break
                    except RuntimeError as error:
                        if not ran_out_of_memory(error):
                            raise
                    longest = max(len(row.ids) for row in some)
                    if most <= longest:
                        raise UserError(
                            f"the states of {len(rows):,} rows are computed beforehand, and memory ran out on "
                            f"{loaded.device} with one row of {longest} tokens: take shorter rows, or a smaller model."
                        )
                    most = max(longest, most // 2)
                    release_device_memory()
                if tick:
                    tick(min(start + _AT_ONCE, len(rows)), len(rows))

    return of_rows


def _states(loss: AnswerLoss, rows: Sequence[EncodedRow], most_tokens: int) -> list[Tensor]:
    """In the order of the rows."""
    found: dict[int, Tensor] = {}
    loss.model.eval()
    with torch.no_grad(), loss.number_format():
        for part in loss.micro_batches(rows, most_tokens):
            own = part if isinstance(part, list) else list(part.rows)
            passed = loss.passed(part, keeps_text=True)
            if passed.head is None and not all(row.is_text for row in own):
                raise ModelError(
                    "the model treats its logits in a way of its own, so that what is kept of a teacher would be all "
                    "of them: set keep_outputs: false."
                )
            answers = passed.states.split([row.answer_count for row in own])
            texts = iter(() if passed.text is None else passed.text.split([len(r.ids) for r in own if r.is_text]))
            for row, states in zip(own, answers, strict=True):
                found[id(row)] = next(texts) if row.is_text else states
    return [found[id(row)].clone().cpu() for row in rows]


def keep_states(
    folder: Path,
    loaded: LoadedModel,
    rows: Sequence[EncodedRow],
    config: TrainingConfig,
    tick: Tick | None = None,
    *,
    keeps_head: bool = False,
) -> None:
    """Keeps a teacher's states of rows, in the number format in which they are computed.

    Args:
        folder: Receives them; what stands there already is kept.
        loaded: The teacher.
        rows: As they will be trained on.
        config: How they will be trained on.
        tick: Called with (rows done, rows in all).
        keeps_head: Whether the head will be another one by then.
    """
    if keeps_head:
        _keep(folder / _HEAD, _named_head(loaded))
    of_rows = states_by_row(loaded, rows, config, tick)
    write_row_outputs(folder, lambda first: ({STATES: states} for states in of_rows(first)))


def keep_bands(
    folder: Path,
    loaded: LoadedModel,
    rows: Sequence[EncodedRow],
    config: TrainingConfig,
    multiple: float,
    tick: Tick | None = None,
) -> None:
    """Keeps the band of each hidden unit over all tokens of texts, and in which of its ranges each element is.

    The texts are read twice: nothing else than two bits an element is ever stored of them.

    Args:
        folder: Receives them; what stands there already is kept.
        loaded: The teacher.
        rows: Of raw text.
        config: How they will be trained on.
        multiple: Deviations from the mean to the bounds.
        tick: Called with (rows read, twice the rows in all).
    """

    def of_pass(number: int) -> Callable[[int], Iterator[Tensor]]:
        return states_by_row(loaded, rows, config, tick and (lambda done, of: tick(number * of + done, 2 * of)))

    if not (folder / BAND).exists():
        _, mean, deviation = mean_and_deviation(of_pass(0)(0))
        _keep(folder / BAND, {"band": band_of(mean, deviation, multiple)})
    band, of_rows = load_file(folder / BAND)["band"], of_pass(1)
    write_row_outputs(folder, lambda first: ({STATES: pack_states(states_in(h, band))} for h in of_rows(first)))


def _named_head(loaded: LoadedModel) -> dict[str, Tensor]:
    weight, bias = head_of(loaded.model.get_output_embeddings())
    return {"weight": weight} if bias is None else {"weight": weight, "bias": bias}


def _keep(path: Path, tensors: Mapping[str, Tensor]) -> None:
    partial = unfinished(path)
    try:
        save_file({name: value.contiguous().cpu() for name, value in tensors.items()}, partial)
        os.replace(partial, path)
    except (OSError, SafetensorError) as error:
        raise write_error(path, error) from None
    finally:
        partial.unlink(missing_ok=True)


def check_head(loaded: LoadedModel, ids: Sequence[int]) -> None:
    """Refuses a model whose predictions on raw text are not made of its states by the head alone.

    Args:
        loaded: The model.
        ids: A text to try it with.

    Raises:
        ModelError: it treats its logits further.
    """
    if not _head_reads_states(loaded, ids):
        raise ModelError(
            "predictions are compared through the output head over the last hidden states, and this model treats its "
            "logits further: choose a comparison of hidden states (imitation: tm, l1 or l2)."
        )


def _head_reads_states(loaded: LoadedModel, ids: Sequence[int]) -> bool:
    """Whether a model's logits are its output head over its last states, and nothing more."""
    loaded.model.eval()
    with torch.no_grad():
        output = loaded.model(
            input_ids=torch.tensor([ids], device=loaded.device), output_hidden_states=True, use_cache=False
        )
        head = loaded.model.get_output_embeddings()
        return isinstance(head, torch.nn.Linear) and torch.allclose(
            head(output.hidden_states[-1]).float(), output.logits.float(), rtol=1e-3, atol=1e-3
        )
