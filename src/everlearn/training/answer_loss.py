"""The loss of a micro-batch: cross-entropy on answer tokens, on the packed path where the model allows it.

Two paths with the same value. Packed: the model's decoder runs over one sequence without padding (`packing.py`),
and the output head only sees states that predict an answer token (`losses.py`). Plain: a padded batch through the
model's own forward pass, and the logits of the answer tokens. The packed path is used only when it is right for the
model: its layers mix tokens by attention alone, its settings scale or cap no logits and no window of attention is
shorter than a row, and both paths agree on a few short rows computed before training. (Agreement alone proves little
in bfloat16, or where a layer's share in the logits is small.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn import Linear, Module
from torch.nn.functional import cross_entropy
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from everlearn.models.adapters import inner_model
from everlearn.models.batching import by_length
from everlearn.models.kinds import soft_prompt
from everlearn.models.sides import Sides
from everlearn.training.attention import packed_attention_on
from everlearn.training.influence import Seen
from everlearn.training.losses import Head, cross_entropy_and_logits, head_of
from everlearn.training.packing import Packing, pack
from everlearn.training.prefixes import split_batch
from everlearn.training.rows import EncodedRow
from everlearn.training.sharding import Lockstep, Pass

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from everlearn.training.influence import View

IGNORED = -100
"""Label of tokens outside the loss, as in Transformers."""
_NO_MASK = torch.zeros(1, 1, 1, 1)
"""A mask of four dimensions is handed down as it is; packed attention does not read it."""
_WINDOWS = ("sliding_window", "attention_chunk_size")
_LOGIT_SCALES = (
    "final_logit_softcapping",
    "logit_scale",
    "logits_scaling",
    "lm_head_multiplier",
    "output_multiplier",
)
"""Settings by which Transformers' models treat logits after the head. On an untrained model their effect can be too
small for the comparison to see, and grow later."""
_PROBE_TOKENS = 24
MOST_LOGITS = 1 << 28
"""Most logits of a padded batch: 0.5 GiB in bfloat16, and as much again for their gradient. The 32,768 tokens that a
GPU takes otherwise would have 16 GiB of them with Gemma's vocabulary of 256,000. A single row may have more."""


class Passed(NamedTuple):
    """What the forward pass of a part of a batch has left.

    Attributes:
        states: That predict the answer tokens, (answers, width); logits where there is no head.
        head: The output head over them; None on the plain path.
        targets: The answer tokens.
        text: Final hidden states of all tokens of the rows of raw text, (tokens, width); None where there are none.
        layers: The states of all tokens between the layers, the embeddings first, each (tokens, width); empty where
            nobody looks at them.
    """

    states: Tensor
    head: Module | None
    targets: Tensor
    text: Tensor | None
    layers: tuple[Tensor, ...]


class AnswerLoss:
    """Computes losses of micro-batches.

    Args:
        model: With or without adapter.
        pad_id: Fills padded batches on the plain path.
        autocast: Number format of the computation; None: that of the weights.
        lockstep: Of processes that share the model's weights; None: they are whole here.
    """

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        *,
        pad_id: int,
        autocast: torch.dtype | None = None,
        lockstep: Lockstep | None = None,
    ) -> None:
        self.model = model
        self.inner = inner_model(model, sees_prompt=True)
        self.pad_id = pad_id
        self.device = next(model.parameters()).device
        self.autocast = autocast
        self.lockstep = lockstep
        self.is_packed = False
        self._side = Sides(self.inner).of

    def packs(self, row: EncodedRow) -> bool:
        """Whether a row is computed on the packed path."""
        # a packed row lacks its last token, so only where rows are shortest is its side surely that of the whole row
        return self.is_packed and self._side(len(row.ids)) == 0

    def micro_batches(self, rows: Sequence[EncodedRow], most_tokens: int) -> list[Packing | list[EncodedRow]]:
        """Splits a batch into parts that are computed one after the other, each with rows of one side of the model."""
        packed = [row for row in rows if self.packs(row)]
        padded = rows if not packed else [row for row in rows if not self.packs(row)]
        parts: list[Packing | list[EncodedRow]] = []
        if packed:
            parts += [pack(groups) for groups in split_batch(packed, most_tokens)]
        return [*parts, *by_length(padded, lambda row: len(row.ids), self.most_padded(most_tokens), self._side)]

    def most_padded(self, most_tokens: int) -> int:
        """Most tokens of a padded batch: each has logits."""
        vocabulary = self.inner.get_output_embeddings().weight.shape[0]
        return min(most_tokens, max(1, MOST_LOGITS // vocabulary))

    def __call__(self, part: Packing | Sequence[EncodedRow]) -> Tensor:
        """Summed cross-entropy over the answer tokens of a part of a batch."""
        with self.number_format():
            return self._loss(self.passed(part), None)[0]

    def seen(
        self,
        part: Packing | Sequence[EncodedRow],
        weights: Sequence[float] | None,
        *,
        keeps_layers: bool = False,
        keeps_logits: bool = False,
    ) -> tuple[Tensor, Seen]:
        """The loss of a part of a batch, and what its forward pass has left for influences.

        Args:
            part: Of a batch.
            weights: Factor of each row's cross-entropy, in the order of the part's rows; None: 1.
            keeps_layers: Whether the states between the layers are looked at.
            keeps_logits: Whether the logits of the answer tokens are.

        Returns:
            The weighted sum over the answer tokens, and what there is to see.
        """
        rows = part.rows if isinstance(part, Packing) else tuple(part)
        counts = torch.tensor([row.answer_count for row in rows])
        row_of = torch.arange(len(rows)).repeat_interleave(counts).to(self.device)
        passed = self.passed(part, keeps_text=True, keeps_layers=keeps_layers)
        factors = None if weights is None else torch.tensor(weights, device=self.device)[row_of]
        total, each, logits = self._loss(passed, factors)
        losses = torch.zeros(len(rows), device=self.device).index_add_(0, row_of, each.float())

        def looked(view: View, *, keeps_layers: bool = False) -> tuple[Passed, Head | None]:
            if self.lockstep is not None:
                for _ in self.lockstep.before(Pass.AGAIN):
                    raise AssertionError("no pass goes before this one")
            return self.look_again(part, view, keeps_layers=keeps_layers)

        def again(view: View) -> tuple[Tensor, Head | None]:
            there, head = looked(view)
            return there.states, head

        return total, Seen(
            rows,
            row_of,
            passed.targets,
            passed.states,
            passed.head,
            losses,
            passed.text,
            again,
            layers=passed.layers,
            tokens_of=_tokens_of(part),
            layers_again=lambda view: looked(view, keeps_layers=True)[0].layers,
            logits=logits if keeps_logits else None,
        )

    def look_again(
        self, part: Packing | Sequence[EncodedRow], view: View = nullcontext, *, keeps_layers: bool = False
    ) -> tuple[Passed, Head | None]:
        """What the forward pass of a part leaves under another view of the model, and the head."""
        self.model.eval()  # else dropout would act on the other view, and the draws be others for the rest
        try:
            with torch.no_grad(), self.number_format(keeps_casts=False), view():
                there = self.passed(part, keeps_layers=keeps_layers)
                return there, None if there.head is None else head_of(there.head)
        finally:
            self.model.train()

    def padded(self, rows: Sequence[EncodedRow]) -> dict[str, Tensor]:
        """`input_ids`, `attention_mask` and `labels` of rows as Transformers' models take them, (rows, longest)."""
        length = max(len(row.ids) for row in rows)
        ids = torch.full((len(rows), length), self.pad_id)
        labels = torch.full((len(rows), length), IGNORED)
        mask = torch.zeros((len(rows), length), dtype=torch.long)
        for at, row in enumerate(rows):
            ids[at, : len(row.ids)] = torch.tensor(row.ids)
            labels[at, row.prompt_length : len(row.ids)] = torch.tensor(row.ids[row.prompt_length :])
            mask[at, : len(row.ids)] = 1
        batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
        return {name: values.to(self.device) for name, values in batch.items()}

    @contextmanager
    def packed_where_equal(self, rows: Sequence[EncodedRow]) -> Iterator[bool]:
        """Uses the packed path for the block if both paths agree on a few short rows; yields whether they do."""
        with ExitStack() as stack:
            self.is_packed = self._agrees(_probe_rows(rows), max(len(row.ids) for row in rows), stack)
            if not self.is_packed:
                stack.close()
            try:
                yield self.is_packed
            finally:
                self.is_packed = False

    @torch.no_grad()
    def _agrees(self, probe: Sequence[EncodedRow], longest: int, stack: ExitStack) -> bool:
        """Switches the attention within `stack` and compares both paths without dropout and autocast."""
        settings = self.inner.config.get_text_config()
        windows = [getattr(settings, name, None) or longest for name in _WINDOWS]
        scales = [getattr(settings, name, None) or 1.0 for name in _LOGIT_SCALES]
        is_linear = isinstance(self.inner.get_output_embeddings(), Linear)
        if min(windows) < longest or set(scales) != {1.0} or not is_linear or not self._is_attention_alone(longest):
            return False
        if soft_prompt(self.model) is not None:  # each row begins with it, and the wrapper alone puts it there
            return False
        is_training = self.model.training
        self.model.eval()
        try:
            plain, *_ = self._loss(self.passed(probe), None)
            stack.enter_context(packed_attention_on(self.inner))
            packed, *_ = self._loss(self.passed(pack(split_batch(probe, 1 << 20)[0])), None)
        except (TypeError, ValueError, RuntimeError, AttributeError, IndexError, ImportError):
            return False
        finally:
            self.model.train(is_training)
        tolerance = 1e-4 if next(self.inner.parameters()).dtype == torch.float32 else 3e-2
        return bool(torch.isclose(packed.float(), plain.float(), rtol=tolerance, atol=0.0))

    def _is_attention_alone(self, longest: int) -> bool:
        """Whether no layer has convolutions, recurrent states or windows by which packed rows would see others."""
        layers = DynamicCache(config=self.inner.config).layers
        windows = [layer.sliding_window for layer in layers if isinstance(layer, DynamicSlidingWindowLayer)]
        is_plain = all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)
        return is_plain and not self.inner._is_stateful and min(windows, default=longest) >= longest

    def passed(
        self, part: Packing | Sequence[EncodedRow], *, keeps_text: bool = False, keeps_layers: bool = False
    ) -> Passed:
        """The forward pass of a part of a batch.

        Args:
            part: Of a batch.
            keeps_text: Whether the states of raw text are looked at.
            keeps_layers: Whether those between the layers are.
        """
        if isinstance(part, Packing):
            return self._packed(part, keeps_text, keeps_layers)
        return self._plain(part, keeps_text, keeps_layers)

    def _loss(self, passed: Passed, weights: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """The weighted sum of cross-entropies, each one and the logits detached, where the head has made them."""
        if passed.head is not None:
            return cross_entropy_and_logits(passed.states, passed.head, passed.targets, weights)
        each = cross_entropy(passed.states.float(), passed.targets, reduction="none")
        return (each if weights is None else weights * each).sum(), each.detach(), None

    def _packed(self, packing: Packing, keeps_text: bool, keeps_layers: bool) -> Passed:
        packing = packing.to(self.device)
        output = self.inner.get_decoder()(
            input_ids=packing.input_ids,
            position_ids=packing.position_ids,
            attention_mask=_NO_MASK.to(self.device),
            use_cache=False,
            packing=packing,
            output_hidden_states=keeps_layers,
        )
        states = output.last_hidden_state[0]  # (tokens, width)
        text = states.index_select(0, packing.text) if keeps_text and len(packing.text) else None
        head = self.inner.get_output_embeddings()
        layers = tuple(one[0] for one in output.hidden_states) if keeps_layers else ()
        return Passed(states.index_select(0, packing.predicts), head, packing.targets, text, layers)

    def _plain(self, rows: Sequence[EncodedRow], keeps_text: bool, keeps_layers: bool) -> Passed:
        batch = self.padded(rows)
        wanted = batch.pop("labels")[:, 1:]
        is_answer = wanted != IGNORED
        is_text = torch.tensor([row.is_text for row in rows], device=self.device)
        keeps_text = keeps_text and any(row.is_text for row in rows)
        output = self.model(**batch, use_cache=False, output_hidden_states=keeps_text or keeps_layers)
        length = wanted.shape[1] + 1  # a soft prompt's positions stand before it
        is_text = batch["attention_mask"].bool() & is_text[:, None]
        text = output.hidden_states[-1][:, -length:][is_text] if keeps_text else None
        layers = tuple(one[:, -length:].flatten(0, 1) for one in output.hidden_states) if keeps_layers else ()
        return Passed(output.logits[:, -length:-1][is_answer], None, wanted[is_answer], text, layers)

    def number_format(self, *, keeps_casts: bool = True) -> AbstractContextManager[object]:
        """Autocast as the stage has it.

        Args:
            keeps_casts: A weight is cast once; not where it is another one for a while (autocast would not notice),
                nor where it is whole for a while only.
        """
        if self.autocast is None:
            return nullcontext()
        return torch.autocast(self.device.type, self.autocast, cache_enabled=keeps_casts and self.lockstep is None)


def _tokens_of(part: Packing | Sequence[EncodedRow]) -> tuple[tuple[range, range], ...]:
    """Where the tokens of each row stand among those of a part: a beginning that it may share, and its own.

    The last token of an answer, which a packed forward pass leaves out, is left out of a padded one too.
    """
    if isinstance(part, Packing):
        return part.places
    longest = max(len(row.ids) for row in part)
    return tuple((range(0), range(at * longest, at * longest + row.computed)) for at, row in enumerate(part))


def _probe_rows(rows: Sequence[EncodedRow]) -> list[EncodedRow]:
    """Short rows of several lengths, two of them with a shared beginning, made of the first rows' tokens."""
    ids = (rows[0].ids + rows[-1].ids)[:_PROBE_TOKENS]
    middle = len(ids) // 2
    return [
        EncodedRow(ids, max(len(ids) - 2, 1)),
        EncodedRow((*ids[:-1], *ids[:3]), max(len(ids) - 1, 1)),
        EncodedRow(ids[::-1][: middle + 1], max(middle - 1, 1)),
    ]
