"""Logits of a model kept by row, and training that is matched to them.

Kept are the k largest logits of each token that predicts an answer token, as they are (not as probabilities: a
constant added to all of a token's counts as a difference, but for `kl`), with their ids; or all of them. With z the
logits in training and y those kept, over the kept ids of a token:

    mse          mean (z - y)^2
    squared_l2   sum (z - y)^2
    kl           KL(softmax(y) || softmax(z)), both over the kept ids alone

Where heads are trained, they are the logits of the classes that had a head when they were kept.

Source: DER (arXiv 2004.07211) has the sum, its published code (mammoth) the mean, which with all of V logits is V
times less; the k largest are chosen here, since all of a memory's need gigabytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax

from everlearn.data.word_prompts import places_in
from everlearn.devices import autocast_format
from everlearn.models.features import last_prompt_states
from everlearn.models.heads import load_heads
from everlearn.training.answer_loss import AnswerLoss
from everlearn.training.influence import Influence, Seen
from everlearn.training.losses import answer_match, largest_logits

if TYPE_CHECKING:
    from pathlib import Path

    from everlearn.data.instance import Instance
    from everlearn.data.prompts import PromptTemplate
    from everlearn.models.loading import LoadedModel
    from everlearn.recipe import TrainingConfig
    from everlearn.training.row_outputs import Outputs, RowOutputs
    from everlearn.training.rows import EncodedRow

Kind = Literal["mse", "squared_l2", "kl"]
IDS, LOGITS = "ids", "logits"
_AT_ONCE = 256  # rows whose logits are held together
_MOST_TOKENS = {"cpu": 2048}


def distance(scores: Tensor, ids: Tensor, logits: Tensor, *, kind: Kind = "mse") -> Tensor:
    """The distance of each token's logits from those kept of it.

    Args:
        scores: Logits in training, (tokens, vocabulary).
        ids: Which of them were kept, (tokens, kept).
        logits: What was kept, of the same shape.
        kind: Which of the formulas above.

    Returns:
        One value a token, (tokens,).
    """
    found, logits = scores.gather(1, ids.long()), logits.to(scores.dtype)
    if kind == "kl":
        return kl_div(log_softmax(found, 1), log_softmax(logits, 1), reduction="none", log_target=True).sum(1)
    squares = (found - logits) ** 2
    return squares.mean(1) if kind == "mse" else squares.sum(1)


class Matched(Influence):
    """Adds strength * the mean distance from kept logits over the answer tokens of a group.

    Args:
        group: Its rows are in the order of the outputs.
        kept: `ids` and `logits` by row.
        fingerprint: Of all that these depend on.
        strength: Factor of the mean.
        kind: Of the distance.
    """

    reads = reads_logits = True

    def __init__(self, group: str, kept: RowOutputs, fingerprint: str, strength: float, kind: Kind) -> None:
        self._group, self._kept, self._fingerprint = group, kept, fingerprint
        self._strength, self._kind = strength, kind

    def inputs(self) -> Mapping[str, object]:
        """The logits; all else is said by the method's options."""
        return {"kept": self._fingerprint}

    def units(self, rows: Sequence[EncodedRow]) -> int:
        """Answer tokens of the group."""
        return sum(row.answer_count for row in rows if row.group == self._group)

    def term(self, seen: Seen) -> Tensor | None:
        """The sum over the answer tokens of the group."""
        numbers = [row.number for row in seen.rows if row.group == self._group]
        if not numbers or not self._strength:
            return None
        places = seen.places(lambda row: row.group == self._group)
        kept = self._kept.of(numbers, places.device)
        assert len(kept[IDS]) == len(places), "the rows are those whose logits were kept"
        match = partial(distance, kind=self._kind)
        found = answer_match(seen.states[places], seen.head, (kept[IDS], kept[LOGITS]), match, seen.logits_at(places))
        return self._strength * found


def class_logits_by_row(
    loaded: LoadedModel, heads: Path, rows: Sequence[Instance], template: PromptTemplate, most: int
) -> list[Outputs]:
    """The logits of all classes so far for each prompt of rows, or for each of its words.

    Args:
        loaded: The model below the heads.
        heads: Folder that they stand in.
        rows: As they will be trained on.
        template: Makes their prompts.
        most: Tokens at which prompts are cut.
    """
    prompts = [template.prompt_ids(row, loaded.tokenizer, most) for row in rows]
    places = places_in(rows, template, loaded.tokenizer, most)
    states = torch.from_numpy(last_prompt_states(loaded, prompts, places))
    known = load_heads(heads)
    with torch.no_grad():
        logits = known(states)[:, : len(known.known)]
    ids = torch.arange(logits.shape[1], dtype=torch.int32).expand(logits.shape)
    sizes = [1] * len(rows) if places is None else [len(own) for own in places]
    parts = (values.contiguous().split(sizes) for values in (ids, logits))
    return [{IDS: of_row, LOGITS: values} for of_row, values in zip(*parts, strict=True)]


def logits_by_row(
    loaded: LoadedModel, rows: Sequence[EncodedRow], config: TrainingConfig, count: int
) -> Callable[[int], Iterator[Outputs]]:
    """The largest logits of each answer token of rows, from a row on, as a model has them without dropout.

    Args:
        loaded: The model.
        rows: As they will be trained on.
        config: How they will be trained on.
        count: Logits of a token; 0: all.
    """

    def of_rows(first: int) -> Iterator[Outputs]:
        autocast = autocast_format(config.precision, loaded.device)
        loss = AnswerLoss(loaded.model, pad_id=int(loaded.tokenizer.pad_token_id), autocast=autocast)
        most = config.micro_batch_tokens or _MOST_TOKENS.get(loaded.device.type, 32768)
        loaded.model.eval()
        with loss.packed_where_equal(rows), torch.no_grad(), loss.number_format():
            for start in range(first, len(rows), _AT_ONCE):
                some = rows[start : start + _AT_ONCE]
                found: dict[int, Outputs] = {}
                for part in loss.micro_batches(some, most):
                    own = part if isinstance(part, list) else list(part.rows)
                    passed = loss.passed(part)
                    lengths = [row.answer_count for row in own]
                    top = [values.cpu().split(lengths) for values in largest_logits(passed.states, passed.head, count)]
                    for row, ids, logits in zip(own, *top, strict=True):
                        found[id(row)] = {IDS: ids, LOGITS: logits}
                yield from (found[id(row)] for row in some)

    return of_rows
